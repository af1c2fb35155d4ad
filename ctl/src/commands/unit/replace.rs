//! `leapctl unit replace`: one transaction from a dead machine to its successor.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use edge::exit::{Classify as _, Failure, Kind, hint};
use model::api::{IncarnationReason, MachineView, UnitState, UnitView};
use model::machine::MachineCode;
use model::secrets::UnitSecrets;
use model::{Incarnation, ReleaseVersion, Role, TrustRoot, UnitName};
use serde::Serialize;

use crate::birth::MachineName;
use crate::client::Sky;
use crate::commands::machine::approve::{Permission, TicketArgs, await_machine};
use crate::commands::seconds;
use crate::escrow;
use crate::follow::{self, Newborn};
use crate::keys::KeyFolder;
use crate::operator::Operator;
use crate::replacement::{self, NoReplacement, Plan};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME
    unit: UnitName,
    /// The newcomer, by the code on its screen or by serial; waits until it announces itself
    #[arg(long, value_name = "CODE|SERIAL")]
    machine: String,
    /// The recovery identity; else recovery.age in the key folder
    #[arg(long, value_name = "FILE")]
    recovery: Option<PathBuf>,
    #[command(flatten)]
    ticket: TicketArgs,
    /// Do not ask on a terminal whether the old machine is to be fenced
    #[arg(long)]
    yes: bool,
    /// Follow the newcomer until the unit is in service
    #[arg(long)]
    wait: bool,
    /// How long to wait for the machine, and then for the unit, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Outcome {
    unit: UnitName,
    incarnation: Incarnation,
    machine: MachineCode,
    machine_serial: String,
    secrets_version: u64,
    /// The release that the ticket installs; `None` when it was given by an earlier try.
    release: Option<ReleaseVersion>,
    /// The unit's state, if it was waited for.
    state: Option<UnitState>,
    /// Seconds from the command's start.
    seconds: u64,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let begun = tokio::time::Instant::now();
        let (sky, keys) = (operator.sky()?, operator.keys()?);
        // Everything that can be wrong is found before anything is fenced.
        let root = keys.trust_root()?;
        let signer = keys.signer(Role::Configuration)?;
        let unit = sky.unit(&self.unit).await?;
        let machines = sky.machines().await?;
        let name = MachineName::any(&self.machine);
        let plan = replacement::decide(&unit, &name, &machines).map_err(refused)?;
        let secrets = self.open_escrow(&sky, &keys, &root).await?;
        let permission = Permission::prepare(&self.ticket, &sky, &root, signer, &unit).await?;
        let there = name.find(&machines);
        if let (Some(machine), Plan::Begin | Plan::Resume(_)) = (there, &plan) {
            permission.ticket(machine, &self.unit, unit.incarnation)?;
        }
        self.confirm(&unit, there, &plan)?;

        let incarnation = match plan {
            Plan::Begin => {
                let reason = IncarnationReason::Replace;
                sky.begin_incarnation(&self.unit, reason).await?.incarnation
            }
            Plan::Resume(incarnation) | Plan::Follow(incarnation) => incarnation,
        };
        tracing::info!(unit = %self.unit, %incarnation, ?plan, "older incarnations are fenced");
        let machine = match &plan {
            Plan::Follow(_) => there
                .cloned()
                .with_context(|| format!("{name}: the sky does not show it"))?,
            _ => await_machine(&sky, &name, &self.unit, seconds(self.timeout)).await?,
        };
        let release = self
            .hand_over(&sky, &permission, &plan, &machine, incarnation, &secrets)
            .await?;
        let mut outcome = Outcome {
            unit: self.unit.clone(),
            incarnation,
            machine: machine.code.clone(),
            machine_serial: machine.facts.serial.clone(),
            secrets_version: secrets.version,
            release,
            state: None,
            seconds: 0,
        };
        if self.wait {
            let newborn = Newborn {
                unit: self.unit.clone(),
                incarnation,
                machine: machine.code.clone(),
            };
            let unit = follow::birth(&sky, &newborn, seconds(self.timeout)).await?;
            outcome.state = Some(unit.state);
        }
        outcome.seconds = begun.elapsed().as_secs();
        operator.show(&outcome, human);
        Ok(())
    }

    /// Fetches the escrow and opens it here; the sky never sees what is inside.
    async fn open_escrow(
        &self,
        sky: &Sky,
        keys: &KeyFolder,
        root: &TrustRoot,
    ) -> Result<UnitSecrets, Failure> {
        let identity = keys.recovery(self.recovery.as_deref())?;
        let recipient = identity.to_public().to_string();
        if !root.recovery.contains(&recipient) {
            tracing::warn!(recipient, "the trust root does not name this recovery key");
        }
        let sealed = sky.escrow(&self.unit).await?;
        escrow::open(&sealed, &identity)
            .map_err(|error| {
                hint(
                    error,
                    format!(
                        "give the identity of one of {} as --recovery FILE",
                        root.recovery.join(", ")
                    ),
                )
            })
            .refused()
    }

    /// Gives the newcomer its secrets and then its ticket: once it has the
    /// ticket it may come up at any moment, and must not come up without them.
    async fn hand_over(
        &self,
        sky: &Sky,
        permission: &Permission<'_>,
        plan: &Plan,
        machine: &MachineView,
        incarnation: Incarnation,
        secrets: &UnitSecrets,
    ) -> Result<Option<ReleaseVersion>, Failure> {
        // Made first, since it checks that the keys are those of the machine's code.
        let ticket = match plan {
            Plan::Follow(_) if crate::birth::keys_are_the_codes(machine) => None,
            _ => Some(permission.ticket(machine, &self.unit, incarnation)?),
        };
        let sealed = escrow::seal(secrets, &machine.keys.recipient).refused()?;
        sky.give_secrets(&self.unit, incarnation, &sealed).await?;
        if let Some(ticket) = &ticket {
            permission.give(sky, machine, ticket).await?;
        }
        Ok(ticket.map(|ticket| ticket.release))
    }

    /// Asks a person on a terminal; a program is taken at its word.
    fn confirm(
        &self,
        unit: &UnitView,
        machine: Option<&MachineView>,
        plan: &Plan,
    ) -> Result<(), Failure> {
        let question = question(unit, machine, plan, edge::clock::now());
        if self.yes || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            tracing::info!(question, "not asked");
            return Ok(());
        }
        let mut terminal = std::io::stderr().lock();
        write!(terminal, "{question} [y/N] ").context("ask on the terminal")?;
        terminal.flush().context("ask on the terminal")?;
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .context("read the answer")?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        Err(Failure::new(
            Kind::Failed,
            anyhow!("unit {}: not replaced, as you said", unit.unit),
        ))
    }
}

fn refused(error: NoReplacement) -> Failure {
    let next = match &error {
        NoReplacement::NeverLived(unit) => format!("leapctl machine approve CODE --unit {unit}"),
        NoReplacement::NoEscrow(unit) => format!("leapctl unit show {unit}"),
        NoReplacement::ServesAlready { .. } => {
            "to be born again it must stand in its installer: start it from the network with an \
             empty disk"
                .into()
        }
    };
    Failure::new(Kind::Refused, hint(error, next))
}

/// Pure: what a person is asked before the old machine is fenced.
fn question(
    unit: &UnitView,
    machine: Option<&MachineView>,
    plan: &Plan,
    now: jiff::Timestamp,
) -> String {
    let name = &unit.unit;
    let mut text = match plan {
        Plan::Begin => {
            let serial = unit.machine_serial.as_deref().unwrap_or("unknown");
            let seen = unit.last_seen.map_or("never seen".to_owned(), |seen| {
                format!("last seen {}", crate::view::ago(seen, now))
            });
            format!("{name}: fence machine {serial} ({seen}) for ever")
        }
        Plan::Resume(incarnation) | Plan::Follow(incarnation) => {
            format!("{name}: go on with incarnation {incarnation}")
        }
    };
    if let Some(machine) = machine {
        text.push_str(&format!(
            " and give its place and secrets to the machine that shows {} on its screen",
            machine.code
        ));
    }
    text.push('?');
    text
}

fn human(outcome: &Outcome) -> String {
    let mut text = format!(
        "{}: incarnation {} is machine {} (serial {}); all older ones are fenced\n  \
         secrets  version {} sealed to it",
        outcome.unit,
        outcome.incarnation,
        outcome.machine,
        outcome.machine_serial,
        outcome.secrets_version,
    );
    if let Some(release) = outcome.release {
        text.push_str(&format!("\n  release  {release}"));
    }
    match outcome.state {
        Some(state) => text.push_str(&format!(
            "\n  {} after {} s",
            crate::view::state_word(state),
            outcome.seconds
        )),
        None => text.push_str("\nfollow it with leapctl birth --watch"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::birth::tests::machine;
    use crate::view::tests::living_unit;

    #[test]
    fn a_person_is_told_who_is_fenced_and_which_code_to_compare() {
        let newcomer = machine("NEW", vec![]);
        let now = "2026-11-22T20:10:12Z".parse().unwrap();
        let asked = question(&living_unit(), Some(&newcomer), &Plan::Begin, now);
        assert_eq!(
            asked,
            format!(
                "motivatit/houma-1: fence machine LEAP-0001 (last seen 12 s ago) for ever and give \
                 its place and secrets to the machine that shows {} on its screen?",
                newcomer.code
            )
        );
    }
}
