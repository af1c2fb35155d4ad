//! Waiting for something at the sky, with progress, patience and an end.

use std::time::Duration;

use anyhow::anyhow;
use edge::exit::{Failure, Kind, hint};
use edge::progress::Bar;
use model::api::{InstallStep, MachineState, MachineView, UnitState, UnitView};
use model::machine::MachineCode;
use model::{Incarnation, UnitName};
use tokio::time::Instant;

use crate::client::{Sky, SkyError};
use crate::condition::Judgement;

/// Looks again and again until `judge` finds the condition met, and returns what was seen last.
///
/// A sky that does not answer is asked again until the time is up: a restart
/// of it must not end an operator's wait.
pub(crate) async fn until<T>(
    what: &str,
    timeout: Duration,
    mut look: impl AsyncFnMut() -> Result<T, SkyError>,
    mut judge: impl FnMut(&T) -> Judgement,
) -> Result<T, Failure> {
    let bar = Bar::spinner(what);
    let begun = Instant::now();
    let mut stand = String::new();
    loop {
        match look().await {
            Ok(seen) => match judge(&seen) {
                Judgement::Met => {
                    bar.finish();
                    return Ok(seen);
                }
                Judgement::Never(why) => {
                    return Err(Failure::new(Kind::Refused, anyhow!("{what}: {why}")));
                }
                Judgement::NotYet(now) => {
                    if now != stand {
                        tracing::info!(what, stand = now, "waiting");
                        bar.label(format!("{what}: {now}"));
                    }
                    stand = now;
                }
            },
            Err(error) if error.is_passing() && !stand.is_empty() => {
                tracing::warn!(%error, "asking again");
            }
            Err(error) => return Err(error.into()),
        }
        let waited = begun.elapsed();
        if waited >= timeout {
            return Err(Failure::new(
                Kind::Failed,
                hint(
                    anyhow!("{what}: not within {} s: {stand}", timeout.as_secs()),
                    "look at leapctl events, or wait longer with --timeout SECONDS",
                ),
            ));
        }
        tokio::time::sleep(interval(waited).min(timeout - waited)).await;
    }
}

/// Quick at first, since most waits are short; then easy on the sky.
fn interval(waited: Duration) -> Duration {
    match waited.as_secs() {
        0..10 => Duration::from_millis(300),
        10..120 => Duration::from_secs(1),
        _ => Duration::from_secs(2),
    }
}

/// Who is being born as what.
#[derive(Debug, Clone)]
pub(crate) struct Newborn {
    pub(crate) unit: UnitName,
    pub(crate) incarnation: Incarnation,
    pub(crate) machine: MachineCode,
}

/// Follows a birth, from the ticket until the unit is in service.
pub(crate) async fn birth(
    sky: &Sky,
    newborn: &Newborn,
    timeout: Duration,
) -> Result<UnitView, Failure> {
    let what = format!("{} incarnation {}", newborn.unit, newborn.incarnation);
    let (unit, _) = until(
        &what,
        timeout,
        async || {
            let unit = sky.unit(&newborn.unit).await?;
            let machine = sky.machine(&newborn.machine).await?;
            Ok((unit, machine))
        },
        |(unit, machine)| judge(newborn, unit, machine),
    )
    .await
    .map_err(|failure| {
        let kind = failure.kind();
        let next = format!("leapctl explain {}", newborn.machine);
        match kind {
            Kind::Refused => Failure::new(Kind::Failed, hint(into_error(failure), next)),
            _ => failure,
        }
    })?;
    Ok(unit)
}

fn into_error(failure: Failure) -> anyhow::Error {
    anyhow!("{failure}")
}

/// Pure: what the sky's two views say about a birth.
fn judge(newborn: &Newborn, unit: &UnitView, machine: &MachineView) -> Judgement {
    if unit.incarnation > newborn.incarnation {
        return Judgement::Never(format!("incarnation {} has taken over", unit.incarnation));
    }
    if unit.state == UnitState::InService {
        return Judgement::Met;
    }
    if machine.state == MachineState::Failed {
        let problem = machine.progress.as_ref().and_then(|p| p.problem.as_deref());
        return Judgement::Never(format!(
            "the installer gave up: {}",
            problem.unwrap_or("without a reason")
        ));
    }
    Judgement::NotYet(match machine.state {
        MachineState::Held => "machine is held".into(),
        MachineState::Approved => "machine has not used its ticket yet".into(),
        MachineState::Installing => match &machine.progress {
            Some(progress) if progress.step == InstallStep::Write && progress.total > 0 => {
                format!("write {} %", progress.done * 100 / progress.total)
            }
            Some(progress) => crate::view::step_word(progress.step).into(),
            None => "installing".into(),
        },
        MachineState::Born | MachineState::Failed => match &unit.last_check_in {
            None => "starting, no check-in yet".into(),
            Some(last) => crate::view::gate_words(last),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use model::api::Progress;

    use super::*;
    use crate::view::tests::living_unit;

    #[tokio::test]
    async fn a_wait_ends_when_met_and_when_hopeless_and_in_time() {
        let looks = Cell::new(0);
        let look = async || {
            looks.set(looks.get() + 1);
            Ok(looks.get())
        };
        let second = Duration::from_secs(1);
        let met = until("x", second * 60, look, |n| match n {
            2 => Judgement::Met,
            n => Judgement::NotYet(n.to_string()),
        });
        assert_eq!(met.await.unwrap(), 2);
        let never = until("x", second, look, |_| Judgement::Never("dead".into()));
        assert_eq!(never.await.unwrap_err().kind(), Kind::Refused);
        let late = until("x", Duration::ZERO, look, |_| {
            Judgement::NotYet("slow".into())
        });
        let late = late.await.unwrap_err();
        assert_eq!(late.kind(), Kind::Failed);
        assert!(late.to_string().contains("not within 0 s: slow"), "{late}");
    }

    #[test]
    fn a_birth_ends_in_service_or_with_the_installers_reason() {
        let mut unit = living_unit();
        let mut machine = crate::birth::tests::machine("S1", vec![]);
        let newborn = Newborn {
            unit: unit.unit.clone(),
            incarnation: unit.incarnation,
            machine: machine.code.clone(),
        };
        assert_eq!(judge(&newborn, &unit, &machine), Judgement::Met);
        unit.state = UnitState::Birth;
        machine.state = MachineState::Failed;
        machine.progress = Some(Progress {
            step: InstallStep::Failed,
            done: 0,
            total: 0,
            seconds: 7,
            problem: Some("disk /dev/vda: input/output error".into()),
        });
        assert_eq!(
            judge(&newborn, &unit, &machine),
            Judgement::Never("the installer gave up: disk /dev/vda: input/output error".into())
        );
        unit.incarnation = Incarnation(2);
        assert!(matches!(
            judge(&newborn, &unit, &machine),
            Judgement::Never(_)
        ));
    }
}
