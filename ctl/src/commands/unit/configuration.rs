//! `leapctl unit configuration`.

use anyhow::anyhow;
use edge::exit::{Failure, Kind, hint};
use model::UnitName;

use super::configure::{current, to_toml};
use crate::operator::Operator;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME
    unit: UnitName,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let (sky, keys) = (operator.sky()?, operator.keys()?);
        // Told apart from a unit without configuration: the sky knows neither.
        sky.unit(&self.unit).await?;
        let Some(configuration) = current(&sky, &keys, &self.unit).await? else {
            return Err(Failure::new(
                Kind::Failed,
                hint(
                    anyhow!("unit {}: has no configuration yet", self.unit),
                    format!("leapctl unit configure {} FILE.toml", self.unit),
                ),
            ));
        };
        let text = to_toml(&configuration.settings)?;
        operator.show(&configuration, |configuration| {
            format!(
                "# {}, generation {}\n{text}",
                configuration.unit, configuration.generation
            )
        });
        Ok(())
    }
}
