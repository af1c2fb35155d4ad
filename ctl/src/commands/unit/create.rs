//! `leapctl unit create`.

use edge::exit::Failure;
use model::UnitName;
use model::api::NewUnit;

use crate::operator::Operator;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME; the customer must exist
    unit: UnitName,
    /// Which components and disk layout it gets
    #[arg(long, default_value = "backup")]
    profile: String,
    /// The channel that it follows
    #[arg(long, default_value = "stable")]
    channel: String,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let new = NewUnit {
            unit: self.unit,
            profile: self.profile,
            channel: self.channel,
        };
        let unit = operator.sky()?.create_unit(&new).await?;
        operator.show(&unit, |unit| {
            format!(
                "unit {} created; next: leapctl unit configure {} FILE.toml",
                unit.unit, unit.unit
            )
        });
        Ok(())
    }
}
