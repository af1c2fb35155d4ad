//! `leapctl machine attend`: an operator's process that stands at the bench.
//!
//! It holds the key and signs what `leapctl machine approve` would sign; the
//! rules only say when. Whatever is in doubt stays held, with the reason.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure, Kind};
use model::api::{MachineState, MachineView};
use model::machine::MachineCode;
use model::ticket::BirthTicket;
use model::{Role, TrustRoot, UnitName};
use serde::Serialize;
use tokio::time::Instant;

use super::approve::{self, Permission, TicketArgs};
use crate::bench::{self, Approve, Bench, Decision, Hold};
use crate::client::{Sky, SkyError};
use crate::keys::KeyFolder;
use crate::operator::Operator;
use crate::rules::{self, Rules};

/// How long to leave a machine alone whose approval was refused.
const PAUSE: Duration = Duration::from_secs(60);
/// How long to wait for news before looking again: who is silent tells no news.
const LOOK: u32 = 30;
/// Between two tries to reach the sky.
const BACK_OFF: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The rules (TOML), tried in order
    rules: PathBuf,
    /// End after so many approvals
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    at_most: Option<u64>,
    /// Tell what would become of the machines that are there now, sign nothing, and end
    #[arg(long)]
    dry_run: bool,
}

/// What was decided about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Told {
    machine: MachineCode,
    serial: String,
    /// `approve`, `would-approve` or `hold`.
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<UnitName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<BirthTicket>,
}

impl Told {
    fn human(&self) -> String {
        let mut text = format!("{}  {:<13}  ", self.machine, self.decision);
        match (&self.unit, &self.disk) {
            (Some(unit), Some(disk)) => text.push_str(&format!("{unit}, erasing {disk}")),
            _ => text.push_str(&format!("serial {:?}", self.serial)),
        }
        if let Some(ticket) = &self.ticket {
            text.push_str(&format!(
                ", release {}, ticket {}",
                ticket.release, ticket.id
            ));
        }
        if let Some(rule) = &self.rule {
            text.push_str(&format!(" (rule {rule:?})"));
        }
        if let Some(reason) = &self.reason {
            text.push_str(&format!(": {reason}"));
        }
        text
    }
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let stop = edge::shutdown::token();
        let name = self.rules.display().to_string();
        let text = std::fs::read_to_string(&self.rules)
            .with_context(|| format!("read {name}"))
            .invalid_input()?;
        let rules = rules::parse(&text, &name)?;
        let (sky, keys) = (operator.sky()?, operator.keys()?);
        let mut attendant = Attendant {
            root: keys.trust_root()?,
            json: operator.json(),
            left: self.at_most,
            dry_run: self.dry_run,
            rules,
            sky,
            keys,
            told: BTreeMap::new(),
            paused: BTreeMap::new(),
        };
        // A key that is not there is missed now and not with the first machine.
        attendant.keys.signer(Role::Configuration)?;
        let mut last = newest_event(&attendant.sky).await?;
        loop {
            match attendant.look().await {
                Ok(()) => {}
                Err(error) if error.is_passing() => tracing::warn!(%error, "asking again"),
                Err(error) => return Err(error.into()),
            }
            if self.dry_run || attendant.left == Some(0) {
                return Ok(());
            }
            let news = async {
                match attendant.sky.events(last, LOOK).await {
                    Ok(events) => Ok(events.last().map_or(last, |event| event.number)),
                    Err(error) if error.is_passing() => {
                        tokio::time::sleep(BACK_OFF).await;
                        Ok(last)
                    }
                    Err(error) => Err(error),
                }
            };
            tokio::select! {
                seen = news => last = seen?,
                // Between two looks only: what is being approved is finished.
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

/// Returns the number of the newest event: what follows is news.
async fn newest_event(sky: &Sky) -> Result<u64, SkyError> {
    let mut last = 0;
    loop {
        match sky.events(last, 0).await?.last() {
            Some(event) => last = event.number,
            None => return Ok(last),
        }
    }
}

struct Attendant {
    rules: Rules,
    sky: Sky,
    keys: KeyFolder,
    root: TrustRoot,
    json: bool,
    dry_run: bool,
    /// Approvals that are left.
    left: Option<u64>,
    /// The last decision about each machine; it is told once.
    told: BTreeMap<MachineCode, Told>,
    /// Machines whose approval was refused.
    paused: BTreeMap<MachineCode, Instant>,
}

impl Attendant {
    /// Looks at all machines that are held, in the order of their coming.
    async fn look(&mut self) -> Result<(), SkyError> {
        let mut machines = self.sky.machines().await?;
        let units = self.sky.units().await?;
        machines.sort_by(|a, b| (a.first_seen, &a.code).cmp(&(b.first_seen, &b.code)));
        let mut given = BTreeMap::new();
        // Its rules are borrowed by the decisions.
        let rules = self.rules.clone();
        for machine in machines.iter().filter(|it| it.state == MachineState::Held) {
            if self.left == Some(0) {
                return Ok(());
            }
            let paused = self.paused.get(&machine.code);
            if paused.is_some_and(|since| since.elapsed() < PAUSE) {
                continue;
            }
            let bench = Bench {
                machines: &machines,
                units: &units,
                given: &given,
                now: edge::clock::now(),
            };
            let told = match bench::decide(&rules, machine, bench) {
                // Yesterday's machines are no news.
                Decision::Hold {
                    why: Hold::Silent, ..
                } if !self.dry_run && !self.told.contains_key(&machine.code) => continue,
                Decision::Hold { rule, why } => Told {
                    reason: Some(why.to_string()),
                    rule: rule.map(|rule| rule.name.clone()),
                    ..hold(machine)
                },
                Decision::Approve(yes) => {
                    let unit = yes.unit.unit.clone();
                    let told = self.approve(machine, &yes).await?;
                    given.insert(unit, machine.code.clone());
                    told
                }
            };
            self.tell(told);
        }
        Ok(())
    }

    /// Signs a ticket and hands it over; a refusal is told like any other hold.
    async fn approve(
        &mut self,
        machine: &MachineView,
        yes: &Approve<'_>,
    ) -> Result<Told, SkyError> {
        let unit = &yes.unit.unit;
        let mut told = Told {
            decision: "would-approve",
            rule: Some(yes.rule.name.clone()),
            unit: Some(unit.clone()),
            disk: Some(yes.disks.describe()),
            ..hold(machine)
        };
        if !self.dry_run {
            match self.sign(machine, yes).await {
                Ok(ticket) => {
                    tracing::info!(machine = %machine.code, %unit, ticket = ticket.id, "approved");
                    told.decision = "approve";
                    told.ticket = Some(ticket);
                }
                Err(failure) => {
                    // What the sky or this computer lacks may be there again soon.
                    if failure.kind() != Kind::Environment {
                        self.paused.insert(machine.code.clone(), Instant::now());
                    }
                    told.decision = "hold";
                    told.disk = None;
                    told.reason = Some(one_line(&failure));
                    return Ok(told);
                }
            }
        }
        self.left = self.left.map(|left| left - 1);
        Ok(told)
    }

    async fn sign(&self, machine: &MachineView, yes: &Approve<'_>) -> Result<BirthTicket, Failure> {
        let args = TicketArgs {
            disk: yes.disks.iter().map(|disk| disk.path.clone()).collect(),
            mirrored: false,
            erase_foreign: yes.rule.erase.foreign,
            release: yes.rule.release,
            valid: yes.rule.valid,
        };
        approve::refuse_lived(yes.unit)?;
        let signer = self.keys.signer(Role::Configuration)?;
        let permission =
            Permission::prepare(&args, &self.sky, &self.root, signer, yes.unit).await?;
        let (_, ticket) = approve::approve(&self.sky, &permission, yes.unit, machine).await?;
        Ok(ticket)
    }

    fn tell(&mut self, told: Told) {
        let before = self.told.insert(told.machine.clone(), told.clone());
        if before.as_ref() == Some(&told) {
            return;
        }
        if self.json {
            let line = serde_json::to_string(&told);
            edge::out::line(line.expect("decisions are plain JSON values"));
        } else {
            edge::out::line(told.human());
        }
    }
}

fn one_line(failure: &Failure) -> String {
    let text = edge::exit::render(failure.error());
    text.trim_start_matches("error: ").replace('\n', "; ")
}

fn hold(machine: &MachineView) -> Told {
    Told {
        machine: machine.code.clone(),
        serial: machine.facts.serial.clone(),
        decision: "hold",
        rule: None,
        unit: None,
        disk: None,
        reason: None,
        ticket: None,
    }
}
