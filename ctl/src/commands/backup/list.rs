//! `leapctl backup list`.

use edge::exit::Failure;
use model::UnitName;

use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME
    unit: UnitName,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let unit = operator.sky()?.unit(&self.unit).await?;
        let status = unit.last_check_in.and_then(|last| last.backup);
        operator.show(&status, |status| view::backups(status.as_ref()));
        Ok(())
    }
}
