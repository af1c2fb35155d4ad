//! Commands: verified, carried out once, reported until the sky has the report.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use anyhow::Result;
use edge::durable::{self, Mode};
use jiff::Timestamp;
use model::command::{Action, CommandOutcome, CommandReport, RestoreTarget, UnitCommand};
use model::{Signed, TrustRoot, UnitName};
use serde::{Deserialize, Serialize};

use crate::generation::peek;
use crate::site::{Site, read_state};

/// How many ended commands are remembered beyond those that the sky has not confirmed.
const REMEMBERED: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Counts up, to forget the oldest first.
    number: u64,
    /// `None` while it is being carried out.
    report: Option<CommandReport>,
    /// Whether the sky has the report.
    stored: bool,
}

/// The commands that this unit has seen.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    rows: BTreeMap<String, Row>,
}

/// What to do with a command that the sky sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Carry it out.
    Run(UnitCommand),
    /// It was seen before.
    Seen,
    /// It is refused; the report says why.
    Refused(CommandReport),
}

impl Ledger {
    /// Reads the ledger. A command that a restart has cut off has failed: it
    /// is not known how far it came, so it is not repeated by itself.
    pub fn read(site: &Site) -> Self {
        let mut rows: BTreeMap<String, Row> =
            read_state(&site.state("commands.json")).unwrap_or_default();
        for (id, row) in &mut rows {
            if row.report.is_none() {
                row.report = Some(report(
                    id,
                    CommandOutcome::Failed,
                    "the unit restarted while it was carried out",
                ));
            }
        }
        Self { rows }
    }

    /// Judges a command. Pure.
    pub fn judge(
        &self,
        trust: &TrustRoot,
        me: &UnitName,
        signed: &Signed<UnitCommand>,
        now: Timestamp,
    ) -> Verdict {
        let refused = |id: &str, problem: &str| {
            if self.rows.contains_key(id) {
                return Verdict::Seen;
            }
            Verdict::Refused(report(id, CommandOutcome::Refused, problem))
        };
        let command = match trust.verify(signed, now) {
            Ok(command) => command.into_inner(),
            Err(problem) => {
                let claimed = peek(signed)
                    .and_then(|payload| Some(payload.get("id")?.as_str()?.to_owned()))
                    .unwrap_or_default();
                return refused(&claimed, &problem.to_string());
            }
        };
        if command.unit != *me {
            return refused(&command.id, &format!("made for unit {}", command.unit));
        }
        // A forged document with this id may have been refused before; it must
        // not keep the true one out.
        let refused_before = self.rows.get(&command.id).is_none_or(|row| {
            let outcome = row.report.as_ref().map(|report| report.outcome);
            outcome == Some(CommandOutcome::Refused)
        });
        if !refused_before {
            return Verdict::Seen;
        }
        Verdict::Run(command)
    }

    /// Notes that a command is begun, before it is.
    ///
    /// # Errors
    /// The note cannot be made durable: the command must not be begun.
    pub fn begin(&mut self, site: &Site, id: &str) -> Result<()> {
        self.put(id, None);
        self.save(site)
    }

    /// Notes how a command ended.
    ///
    /// # Errors
    /// The note cannot be made durable.
    pub fn end(&mut self, site: &Site, report: CommandReport) -> Result<()> {
        let id = report.id.clone();
        self.put(&id, Some(report));
        self.save(site)
    }

    /// Returns the reports that the sky does not have.
    pub fn reports(&self) -> Vec<CommandReport> {
        self.rows
            .values()
            .filter(|row| !row.stored)
            .filter_map(|row| row.report.clone())
            .collect()
    }

    /// Says whether a command is being carried out.
    pub fn is_busy(&self) -> bool {
        self.rows.values().any(|row| row.report.is_none())
    }

    /// The sky has these reports.
    ///
    /// # Errors
    /// That cannot be made durable.
    pub fn stored(&mut self, site: &Site, ids: &[String]) -> Result<()> {
        let mut news = false;
        for id in ids {
            if let Some(row) = self.rows.get_mut(id)
                && row.report.is_some()
                && !row.stored
            {
                row.stored = true;
                news = true;
            }
        }
        if news { self.save(site) } else { Ok(()) }
    }

    fn put(&mut self, id: &str, report: Option<CommandReport>) {
        let next = self.rows.values().map(|row| row.number).max().unwrap_or(0) + 1;
        let row = self.rows.entry(id.to_owned()).or_insert(Row {
            number: next,
            report: None,
            stored: false,
        });
        row.report = report;
        row.stored = false;
        let mut old: Vec<(u64, String)> = self
            .rows
            .iter()
            .filter(|(_, row)| row.stored)
            .map(|(id, row)| (row.number, id.clone()))
            .collect();
        old.sort();
        let too_many = old.len().saturating_sub(REMEMBERED);
        for (_, id) in &old[..too_many] {
            self.rows.remove(id);
        }
    }

    fn save(&self, site: &Site) -> Result<()> {
        durable::write_json(&site.state("commands.json"), &self.rows, Mode::Public)
    }
}

fn report(id: &str, outcome: CommandOutcome, message: &str) -> CommandReport {
    CommandReport {
        id: id.to_owned(),
        outcome,
        message: message.to_owned(),
        detail: serde_json::Value::Null,
    }
}

/// Returns the backup engine's arguments for an action. Pure.
pub fn arguments(action: &Action) -> Vec<String> {
    let mut arguments = vec!["--json".to_owned()];
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    match action {
        Action::BackUp { source } => {
            add(&["run"]);
            if let Some(source) = source {
                add(&["--source", source]);
            }
        }
        Action::Restore {
            source,
            snapshot,
            from,
            path,
            to,
        } => {
            // One word each: a value that begins with a dash is no option.
            add(&[
                "restore",
                &format!("--snapshot={snapshot}"),
                &format!("--source={source}"),
                &format!("--from={from}"),
                &format!("--path={path}"),
            ]);
            match to {
                RestoreTarget::Source { path: None } => add(&["--to=source"]),
                RestoreTarget::Source { path: Some(path) } => {
                    add(&["--to=source", &format!("--target-path={path}")]);
                }
                RestoreTarget::Unit { path } => add(&[&format!("--to={path}")]),
            }
        }
    }
    arguments
}

/// Carries a command out.
pub async fn carry_out(site: &Site, command: &UnitCommand) -> CommandReport {
    let tool = site.backup_tool().args(arguments(&command.action));
    tracing::info!(id = command.id, command = %tool.line(), "command begins");
    let result = tool
        .tokio_command()
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let report = match result {
        Err(problem) => report(
            &command.id,
            CommandOutcome::Failed,
            &format!("leap-backup does not start: {problem}"),
        ),
        Ok(output) => {
            let detail = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let said = String::from_utf8_lossy(&output.stderr);
            let (outcome, message) = if output.status.success() {
                (CommandOutcome::Done, "done".to_owned())
            } else {
                (
                    CommandOutcome::Failed,
                    last_words(&said).unwrap_or_else(|| output.status.to_string()),
                )
            };
            CommandReport {
                id: command.id.clone(),
                outcome,
                message,
                detail,
            }
        }
    };
    tracing::info!(id = command.id, outcome = ?report.outcome, message = report.message, "command ended");
    report
}

/// The error that a tool printed, with its causes, in one line.
fn last_words(stderr: &str) -> Option<String> {
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let start = lines
        .iter()
        .rposition(|line| line.starts_with("error: "))
        .unwrap_or(lines.len().saturating_sub(3));
    (!lines.is_empty()).then(|| lines[start..].join(" "))
}

/// Locks the ledger.
pub(crate) fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger
        .lock()
        .expect("nothing panics while it holds the ledger")
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::trust::RoleKeys;
    use model::{Role, Signer};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn signer() -> Signer {
        Signer::from_seed(&[4; 32])
    }

    fn trust() -> TrustRoot {
        let keys = RoleKeys {
            keys: vec![signer().public()],
            threshold: 1,
        };
        TrustRoot {
            version: 1,
            roles: [(Role::Configuration, keys)].into(),
            recovery: vec![],
        }
    }

    fn me() -> UnitName {
        "motivatit/houma-1".parse().unwrap()
    }

    fn command(id: &str) -> UnitCommand {
        UnitCommand {
            id: id.into(),
            unit: me(),
            action: Action::BackUp { source: None },
            issued: NOW,
            expires: Timestamp::MAX,
        }
    }

    #[test]
    fn a_command_is_carried_out_once_even_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let mut ledger = Ledger::read(&site);
        let signed = signer().sign(&command("1"));
        let judge = |ledger: &Ledger| ledger.judge(&trust(), &me(), &signed, NOW);
        assert_eq!(judge(&ledger), Verdict::Run(command("1")));
        ledger.begin(&site, "1").unwrap();
        assert!(ledger.is_busy());
        assert_eq!(judge(&ledger), Verdict::Seen);
        let mut ledger = Ledger::read(&site);
        assert_eq!(judge(&ledger), Verdict::Seen);
        assert!(!ledger.is_busy());
        assert_eq!(ledger.reports()[0].outcome, CommandOutcome::Failed);
        ledger.stored(&site, &["1".into(), "2".into()]).unwrap();
        assert_eq!(ledger.reports(), []);
        assert_eq!(judge(&Ledger::read(&site)), Verdict::Seen);
    }

    #[test]
    fn what_is_not_for_this_unit_now_is_refused_and_reported() {
        let ledger = Ledger::default();
        let outcome =
            |signed: &Signed<UnitCommand>| match ledger.judge(&trust(), &me(), signed, NOW) {
                Verdict::Refused(report) => (report.id, report.message),
                other => panic!("{other:?}"),
            };
        let mut other = command("1");
        other.unit = "motivatit/houma-2".parse().unwrap();
        let (id, message) = outcome(&signer().sign(&other));
        assert_eq!(
            (id.as_str(), message.as_str()),
            ("1", "made for unit motivatit/houma-2")
        );
        let mut late = command("2");
        late.expires = NOW;
        assert!(outcome(&signer().sign(&late)).1.contains("expired"));
        let forged = Signer::from_seed(&[9; 32]).sign(&command("3"));
        assert_eq!(outcome(&forged).0, "3");
        // The forgery does not keep the true command out.
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let mut ledger = Ledger::default();
        let refused = report("3", CommandOutcome::Refused, "forged");
        ledger.end(&site, refused).unwrap();
        assert_eq!(ledger.judge(&trust(), &me(), &forged, NOW), Verdict::Seen);
        let signed = signer().sign(&command("3"));
        assert_eq!(
            ledger.judge(&trust(), &me(), &signed, NOW),
            Verdict::Run(command("3"))
        );
    }

    #[test]
    fn the_ledger_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let mut ledger = Ledger::default();
        for number in 0..REMEMBERED + 20 {
            let id = number.to_string();
            ledger.put(&id, Some(report(&id, CommandOutcome::Done, "")));
            if number != 3 {
                ledger.stored(&site, &[id]).unwrap();
            }
        }
        assert!(ledger.rows.len() <= REMEMBERED + 2);
        assert!(ledger.rows.contains_key("3"), "not confirmed and forgotten");
        assert!(!ledger.rows.contains_key("0"));
    }

    #[test]
    fn an_action_becomes_the_engines_command_line() {
        let restore = |to| Action::Restore {
            source: "gallery".into(),
            snapshot: "latest".into(),
            from: "vault-1".into(),
            path: "-x/a b".into(),
            to,
        };
        let line = |action: &Action| arguments(action).join("|");
        assert_eq!(line(&Action::BackUp { source: None }), "--json|run");
        assert_eq!(
            line(&Action::BackUp {
                source: Some("gallery".into())
            }),
            "--json|run|--source|gallery"
        );
        assert_eq!(
            line(&restore(RestoreTarget::Source { path: None })),
            "--json|restore|--snapshot=latest|--source=gallery|--from=vault-1|--path=-x/a b|--to=source"
        );
        assert!(
            line(&restore(RestoreTarget::Source {
                path: Some("/new".into())
            }))
            .ends_with("|--to=source|--target-path=/new")
        );
        assert!(line(&restore(RestoreTarget::Unit { path: "/x".into() })).ends_with("|--to=/x"));
    }

    #[test]
    fn an_engines_error_is_reported_with_its_causes() {
        let said = "INFO x\nerror: restore\n  because: no snapshot\nhint: see snapshots\n";
        assert_eq!(
            last_words(said).unwrap(),
            "error: restore because: no snapshot hint: see snapshots"
        );
        assert_eq!(last_words(""), None);
    }
}
