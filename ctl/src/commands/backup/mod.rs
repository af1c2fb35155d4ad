//! `leapctl backup`.

mod list;

mod order;

mod restore;

mod run;

use edge::exit::Failure;

use crate::operator::Operator;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Backup {
    /// Back up now
    Run(run::Args),
    /// List a unit's snapshots and where they lie
    List(list::Args),
    /// Restore from a snapshot, to the source or to a folder on the unit
    Restore(restore::Args),
}

impl Backup {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        match self {
            Self::Run(args) => args.run(operator).await,
            Self::List(args) => args.run(operator).await,
            Self::Restore(args) => args.run(operator).await,
        }
    }
}
