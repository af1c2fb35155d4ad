//! `leapctl backup run`.

use edge::exit::Failure;
use model::UnitName;
use model::command::Action;

use super::order::{OrderArgs, send};
use crate::operator::Operator;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME
    unit: UnitName,
    /// Only this source; else every one
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    #[command(flatten)]
    order: OrderArgs,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let action = Action::BackUp {
            source: self.source,
        };
        send(operator, self.unit, action, &self.order).await
    }
}
