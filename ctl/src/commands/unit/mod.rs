//! `leapctl unit`.

mod create;

mod show;

mod configure;

mod configuration;

mod replace;

mod pass;

use edge::exit::Failure;

use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Unit {
    /// Create a unit; it is born when a machine is approved for it
    Create(create::Args),
    /// List the units
    List,
    /// Show a unit, watch it, or wait for a condition
    Show(show::Args),
    /// Sign a new configuration generation from a TOML file
    Configure(configure::Args),
    /// Print the newest signed configuration as TOML
    Configuration(configuration::Args),
    /// Let another machine take a dead unit's place
    Replace(replace::Args),
    /// Make a one-time code: an installer on a stick reaches the sky with it
    Pass(pass::Args),
}

impl Unit {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        match self {
            Self::Create(args) => args.run(operator).await,
            Self::List => {
                let units = operator.sky()?.units().await?;
                operator.show(&units, |units| view::units(units, edge::clock::now()));
                Ok(())
            }
            Self::Show(args) => args.run(operator).await,
            Self::Configure(args) => args.run(operator).await,
            Self::Configuration(args) => args.run(operator).await,
            Self::Replace(args) => args.run(operator).await,
            Self::Pass(args) => args.run(operator).await,
        }
    }
}
