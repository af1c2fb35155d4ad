//! Check-ins: what a unit says, and what it lacks.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use model::api::{CheckIn, CheckInReply, ConfigurationStatus};
use model::configuration::Configuration;
use model::{DeviceIdentity, Signed};

use super::fence::{self, Standing};
use super::secrets::{EscrowStep, check_sealed, escrow_step};
use super::{channel, check_id};
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::{NewEvent, Session};

/// Commands given in one answer; the others follow when these are reported on.
const MOST_COMMANDS: u32 = 50;

/// Takes a check-in and answers with what the unit lacks.
///
/// All that the answer confirms is durable by then.
///
/// # Errors
/// Fenced, or an escrow that is not sealed.
pub async fn check_in(
    sky: &Sky,
    identity: &DeviceIdentity,
    mut said: CheckIn,
) -> Result<CheckInReply, Problem> {
    let escrow = said.escrow.take();
    let reports = std::mem::take(&mut said.reports);
    if let Some(escrow) = &escrow {
        check_sealed(escrow)?;
    }
    for report in &reports {
        check_id("command", &report.id)?;
    }
    let now = sky.now();
    let unit = &identity.unit;
    let mut session = sky.store.change().await?;
    let record = session.unit(unit).await?;
    // Once more inside the transaction: a fence may have come up since the call was let in.
    match fence::standing(identity, record.as_ref().map(|record| record.incarnation)) {
        Standing::Current => {}
        Standing::Fenced { current } => return Err(fence::fenced(identity, current)),
        Standing::Unknown => return Err(fence::unknown(identity)),
    }
    let record = record.ok_or_else(|| fence::unknown(identity))?;
    let before = session.incarnation(identity).await?;
    let before = before.and_then(|incarnation| incarnation.check_in);

    session.save_check_in(identity, &said, now).await?;
    for event in changes(before.as_ref(), &said) {
        session.append_event(event.unit(unit), now).await?;
    }
    let stored = session.escrow(unit).await?.map(|escrow| escrow.version);
    match escrow_step(escrow.as_ref().map(|escrow| escrow.version), stored) {
        EscrowStep::Keep => {}
        EscrowStep::Store => {
            if let Some(escrow) = &escrow {
                session.insert_escrow(identity, escrow, now).await?;
                let message = format!("escrow version {} stored", escrow.version);
                session
                    .append_event(NewEvent::new("escrow", message).unit(unit), now)
                    .await?;
            }
        }
        // The rest of the check-in counts: a unit that is ill must stay within reach.
        EscrowStep::Behind { stored } => {
            tracing::warn!(%unit, stored, "older escrow refused");
            let known = before.as_ref().and_then(|before| before.secrets_version);
            if known != said.secrets_version {
                let message = format!("an escrow older than version {stored} was refused");
                session
                    .append_event(NewEvent::new("escrow-refused", message).unit(unit), now)
                    .await?;
            }
        }
    }
    let mut reports_stored = Vec::with_capacity(reports.len());
    for report in reports {
        if session.insert_report(unit, &report, now).await? {
            let message = format!("command {}: {}", report.id, report.message);
            session
                .append_event(NewEvent::new("command-report", message).unit(unit), now)
                .await?;
        }
        reports_stored.push(report.id);
    }
    let mut reply = lacks(&mut session, identity, &said, now).await?;
    session.commit().await?;
    sky.check_ins.fetch_add(1, Ordering::Relaxed);

    reply.reports_stored = reports_stored;
    reply.channel = channel::pointer(sky, &record.channel).await?;
    Ok(reply)
}

async fn lacks(
    session: &mut Session,
    identity: &DeviceIdentity,
    said: &CheckIn,
    now: Timestamp,
) -> Result<CheckInReply, Problem> {
    let unit = &identity.unit;
    let configuration = wanted_configuration(session, identity).await?;
    let secrets = session.device_secrets(identity).await?;
    let escrow = session.escrow(unit).await?;
    let mut commands = Vec::new();
    for (id, command) in session.open_commands(unit, MOST_COMMANDS).await? {
        session.mark_delivered(unit, &id, now).await?;
        commands.push(command);
    }
    Ok(CheckInReply {
        time: now,
        configuration: configuration
            .filter(|(generation, _)| *generation != said.configuration.applied)
            .map(|(_, document)| document),
        channel: None,
        commands,
        secrets: secrets.filter(|sealed| {
            said.secrets_version
                .is_none_or(|version| version < sealed.version)
        }),
        escrow_version: escrow.map(|escrow| escrow.version),
        reports_stored: Vec::new(),
    })
}

/// Returns the generation that an incarnation is to run, with its document.
async fn wanted_configuration(
    session: &mut Session,
    identity: &DeviceIdentity,
) -> Result<Option<(u64, Signed<Configuration>)>, Problem> {
    let unit = &identity.unit;
    let Some((newest, document)) = session.newest_configuration(unit).await? else {
        return Ok(None);
    };
    let earlier = session.earlier_check_ins(identity).await?;
    let earlier: Vec<_> = earlier.iter().map(|said| &said.configuration).collect();
    let wanted = wanted_generation(newest, &earlier);
    if wanted == newest {
        return Ok(Some((newest, document)));
    }
    let document = session.configuration(unit, wanted).await?;
    Ok(document.map(|document| (wanted, document)))
}

/// Chooses a generation for an incarnation by what the earlier ones said last, the latest
/// first: what one of them has taken back is not tried again on the next hardware.
fn wanted_generation(newest: u64, earlier: &[&ConfigurationStatus]) -> u64 {
    let taken_back = earlier
        .iter()
        .filter_map(|said| said.rejected.as_ref())
        .any(|rejected| rejected.generation == newest);
    let mut applied = earlier.iter().map(|said| said.applied);
    match applied.find(|applied| *applied > 0) {
        Some(applied) if taken_back => applied,
        _ => newest,
    }
}

/// Returns what changed between two check-ins and is worth telling.
fn changes(before: Option<&CheckIn>, said: &CheckIn) -> Vec<NewEvent> {
    let mut events = Vec::new();
    let mut tell = |kind, message: String| events.push(NewEvent::new(kind, message));
    let started = before.is_none_or(|before| before.boot_id != said.boot_id);
    let was_healthy = !started && before.is_some_and(|before| before.healthy);
    if started {
        tell(
            "started",
            format!("started release {} in slot {}", said.release, said.slot),
        );
    }
    if said.healthy && !was_healthy {
        tell(
            "in-service",
            format!(
                "in service with release {}, as {}",
                said.release, said.hostname
            ),
        );
    }
    if !said.healthy && was_healthy {
        let failed: Vec<_> = said
            .checks
            .iter()
            .filter(|check| !check.ok)
            .map(|check| format!("{}: {}", check.name, check.message))
            .collect();
        tell("unhealthy", failed.join("; "));
    }
    let mirror = |said: &CheckIn| said.checks.iter().find(|it| it.name == "mirror").cloned();
    if let Some(now) = mirror(said) {
        // A unit that was never heard of is thought to be whole.
        let was_whole = before.and_then(mirror).is_none_or(|then| then.ok);
        if now.ok != was_whole {
            tell("mirror", now.message);
        }
    }
    let configuration = &said.configuration;
    let old = before.map(|before| &before.configuration);
    let applied = old.map_or(0, |old| old.applied);
    if configuration.applied != applied {
        tell(
            "configuration",
            format!("generation {} is applied", configuration.applied),
        );
    }
    if let Some(rejected) = &configuration.rejected
        && old.and_then(|old| old.rejected.as_ref()) != Some(rejected)
    {
        tell(
            "configuration-rejected",
            format!("generation {}: {}", rejected.generation, rejected.reason),
        );
    }
    for rejected in &said.update.rejected {
        if before.is_none_or(|before| !before.update.rejected.contains(rejected)) {
            tell(
                "release-rejected",
                format!("release {}: {}", rejected.release, rejected.reason),
            );
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::api::{HealthCheck, RejectedGeneration, UpdateStatus};

    fn said() -> CheckIn {
        CheckIn {
            release: "2026.11.1".parse().unwrap(),
            revision: 0,
            root_hash: "00".repeat(32),
            slot: "a".into(),
            boot_id: "one".into(),
            healthy: true,
            checks: vec![HealthCheck {
                name: "canary".into(),
                ok: false,
                message: "did not restore".into(),
            }],
            configuration: ConfigurationStatus {
                applied: 1,
                rejected: None,
            },
            update: UpdateStatus::default(),
            backup: None,
            escrow: None,
            secrets_version: None,
            reports: vec![],
            hostname: "houma-1".into(),
            addresses: vec![],
        }
    }

    fn kinds(before: Option<&CheckIn>, said: &CheckIn) -> Vec<String> {
        changes(before, said)
            .into_iter()
            .map(|event| format!("{event:?}"))
            .map(|text| text.split('"').nth(1).unwrap().to_owned())
            .collect()
    }

    fn status(applied: u64, rejected: Option<u64>) -> ConfigurationStatus {
        ConfigurationStatus {
            applied,
            rejected: rejected.map(|generation| RejectedGeneration {
                generation,
                reason: "sky not reached".into(),
            }),
        }
    }

    #[test]
    fn the_next_incarnation_is_not_given_what_an_earlier_one_took_back() {
        assert_eq!(wanted_generation(3, &[]), 3);
        assert_eq!(wanted_generation(3, &[&status(2, None)]), 3);
        assert_eq!(wanted_generation(3, &[&status(2, Some(3))]), 2);
        // A newer one may be the remedy.
        assert_eq!(wanted_generation(4, &[&status(2, Some(3))]), 4);
        // The third one, after a second one that never saw generation 3.
        assert_eq!(
            wanted_generation(3, &[&status(2, None), &status(1, Some(3))]),
            2
        );
        // One that died before it applied anything has nothing to say.
        assert_eq!(
            wanted_generation(3, &[&status(0, None), &status(2, Some(3))]),
            2
        );
        // Nothing was ever applied: there is nothing better to offer.
        assert_eq!(wanted_generation(3, &[&status(0, Some(3))]), 3);
    }

    #[test]
    fn what_has_not_changed_is_not_told_again() {
        assert_eq!(
            kinds(None, &said()),
            ["started", "in-service", "configuration"]
        );
        assert_eq!(kinds(Some(&said()), &said()), Vec::<String>::new());
    }

    #[test]
    fn illness_restart_and_rejection_are_told() {
        let mut ill = said();
        ill.healthy = false;
        assert_eq!(kinds(Some(&said()), &ill), ["unhealthy"]);
        assert_eq!(kinds(Some(&ill), &said()), ["in-service"]);
        let mut restarted = ill.clone();
        restarted.boot_id = "two".into();
        assert_eq!(kinds(Some(&said()), &restarted), ["started"]);
        let mut rejected = said();
        rejected.configuration.rejected = Some(RejectedGeneration {
            generation: 2,
            reason: "the sky could not be reached with it".into(),
        });
        assert_eq!(kinds(Some(&said()), &rejected), ["configuration-rejected"]);
    }

    #[test]
    fn a_mirror_that_breaks_or_is_whole_again_is_told_once() {
        let with_mirror = |ok| {
            let mut said = said();
            said.checks.push(HealthCheck {
                name: "mirror".into(),
                ok,
                message: "only sda works".into(),
            });
            said
        };
        let (whole, broken) = (with_mirror(true), with_mirror(false));
        assert_eq!(kinds(Some(&said()), &whole), Vec::<String>::new());
        assert_eq!(kinds(Some(&whole), &broken), ["mirror"]);
        assert_eq!(kinds(Some(&broken), &broken), Vec::<String>::new());
        assert_eq!(kinds(Some(&broken), &whole), ["mirror"]);
        assert_eq!(kinds(Some(&said()), &broken), ["mirror"]);
    }
}
