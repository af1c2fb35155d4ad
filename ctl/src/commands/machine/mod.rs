//! `leapctl machine`.

pub(crate) mod approve;

pub(crate) mod attend;

pub(crate) mod label;

use edge::exit::Failure;
use model::machine::MachineCode;

use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Machine {
    /// List the machines that have announced themselves
    List,
    /// Show a machine's facts
    Show(Show),
    /// Permit to erase a machine's disk and make it a unit
    Approve(approve::Args),
    /// Stand at the bench: approve machines by a file of rules as they announce themselves
    Attend(attend::Args),
    /// Show or draw the label of a unit: a QR code of unit and serial
    Label(label::Args),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// The code on the machine's screen
    code: MachineCode,
}

impl Machine {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        match self {
            Self::List => {
                let machines = operator.sky()?.machines().await?;
                operator.show(&machines, |machines| {
                    view::machines(machines, edge::clock::now())
                });
                Ok(())
            }
            Self::Show(args) => {
                let machine = operator.sky()?.machine(&args.code).await?;
                operator.show(&machine, |machine| {
                    view::machine(machine, edge::clock::now())
                });
                Ok(())
            }
            Self::Approve(args) => args.run(operator).await,
            Self::Attend(args) => args.run(operator).await,
            Self::Label(args) => args.run(operator).await,
        }
    }
}
