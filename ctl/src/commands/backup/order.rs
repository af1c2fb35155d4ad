//! Signing a command for a unit and waiting for what becomes of it.

use anyhow::anyhow;
use edge::exit::{Failure, Kind, hint};
use edge::progress::Bar;
use jiff::SignedDuration;
use model::api::CommandView;
use model::command::{Action, CommandOutcome, CommandReport, UnitCommand};
use model::{Role, UnitName};
use serde::Serialize;
use tokio::time::Instant;

use crate::client::Sky;
use crate::commands::{after, duration, random_id, seconds};
use crate::operator::Operator;

/// How a command is sent and waited for.
#[derive(Debug, clap::Args)]
pub(crate) struct OrderArgs {
    /// Wait for the unit's report
    #[arg(long)]
    wait: bool,
    /// How long to wait for it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    /// How long the unit may begin with it
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = duration)]
    valid: SignedDuration,
}

/// A command that was sent.
#[derive(Debug, Serialize)]
struct Outcome {
    unit: UnitName,
    /// The command's id.
    command: String,
    report: Option<CommandReport>,
    /// Seconds from signing to the report.
    seconds: u64,
}

/// Seconds that one call waits at the sky.
const POLL: u32 = 20;

/// Signs and sends `action`, and waits for the report if asked to.
pub(super) async fn send(
    operator: &Operator,
    unit: UnitName,
    action: Action,
    args: &OrderArgs,
) -> Result<(), Failure> {
    let (sky, keys) = (operator.sky()?, operator.keys()?);
    let signer = keys.signer(Role::Configuration)?;
    let now = edge::clock::now();
    let command = UnitCommand {
        id: random_id()?,
        unit: unit.clone(),
        action,
        issued: now,
        expires: after(now, args.valid)?,
    };
    let begun = Instant::now();
    sky.command(&unit, &signer.sign(&command)).await?;
    let mut outcome = Outcome {
        unit,
        command: command.id,
        report: None,
        seconds: 0,
    };
    if args.wait {
        let report = await_report(&sky, &outcome.unit, &outcome.command, args.timeout).await?;
        outcome.report = Some(report);
        outcome.seconds = begun.elapsed().as_secs();
    }
    operator.show(&outcome, human);
    judge(outcome.report.as_ref())
}

async fn await_report(
    sky: &Sky,
    unit: &UnitName,
    id: &str,
    timeout: u64,
) -> Result<CommandReport, Failure> {
    let bar = Bar::spinner(&format!("{unit}: wait until it asks for its commands"));
    let deadline = Instant::now() + seconds(timeout);
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_secs();
        let poll = u32::try_from(left).map_or(POLL, |left| left.min(POLL));
        match sky.command_view(unit, id, poll).await {
            Ok(CommandView {
                report: Some(report),
                ..
            }) => {
                bar.finish();
                return Ok(report);
            }
            Ok(view) if view.delivered.is_some() => bar.label(format!("{unit}: at work")),
            Ok(_) => {}
            // The sky may be restarting; the command is stored durably there.
            Err(error) if error.is_passing() => {
                tracing::warn!(%error, "asking again");
                tokio::time::sleep(seconds(1)).await;
            }
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Kind::Failed,
                hint(
                    anyhow!("unit {unit}: no report on command {id} within {timeout} s"),
                    format!("the unit may still carry it out: leapctl unit show {unit}"),
                ),
            ));
        }
    }
}

/// Pure: the report as the command line's own end.
fn judge(report: Option<&CommandReport>) -> Result<(), Failure> {
    let Some(report) = report else { return Ok(()) };
    let kind = match report.outcome {
        CommandOutcome::Done => return Ok(()),
        CommandOutcome::Failed => Kind::Failed,
        CommandOutcome::Refused => Kind::Refused,
    };
    Err(Failure::new(
        kind,
        anyhow!("the unit says: {}", report.message),
    ))
}

fn human(outcome: &Outcome) -> String {
    match &outcome.report {
        None => format!(
            "command {} sent to {}; see leapctl backup list {}",
            outcome.command, outcome.unit, outcome.unit
        ),
        Some(report) => {
            let word = match report.outcome {
                CommandOutcome::Done => "done",
                CommandOutcome::Failed => "failed",
                CommandOutcome::Refused => "refused",
            };
            let (unit, seconds) = (&outcome.unit, outcome.seconds);
            format!("{unit}: {word} after {seconds} s: {}", report.message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_unit_says_is_the_exit_code() {
        let report = |outcome| CommandReport {
            id: "1".into(),
            outcome,
            message: "no".into(),
            detail: serde_json::Value::Null,
        };
        let code = |outcome| {
            let failure = judge(Some(&report(outcome))).unwrap_err();
            failure.kind().code()
        };
        assert!(judge(None).is_ok());
        assert!(judge(Some(&report(CommandOutcome::Done))).is_ok());
        assert_eq!(code(CommandOutcome::Failed), 1);
        assert_eq!(code(CommandOutcome::Refused), 5);
    }
}
