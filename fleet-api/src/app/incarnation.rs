//! Incarnations: a new one fences all older ones at once.

use model::api::{IncarnationReason, IncarnationView};
use model::{Incarnation, UnitName};

use super::unit::find;
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::NewEvent;

/// Begins the next incarnation. From its commit on all older ones are fenced.
///
/// # Errors
/// Not found; conflict with the unit's life.
pub async fn begin(
    sky: &Sky,
    unit: &UnitName,
    reason: IncarnationReason,
) -> Result<IncarnationView, Problem> {
    let now = sky.now();
    let mut session = sky.store.change().await?;
    let current = find(&mut session, unit).await?.incarnation;
    let lived = session.has_lived(unit).await?;
    let next = decide(unit, reason, current, lived)?;
    session.begin_incarnation(unit, next, reason, now).await?;
    let event = match reason {
        IncarnationReason::Birth => {
            NewEvent::new("birth", format!("incarnation {next} begun: first birth"))
        }
        IncarnationReason::Replace => NewEvent::new(
            "replace",
            format!("incarnation {next} begun: all older ones are fenced"),
        ),
    };
    session.append_event(event.unit(unit), now).await?;
    session.commit().await?;
    tracing::info!(%unit, incarnation = next.0, "incarnation begun");
    Ok(IncarnationView {
        unit: unit.clone(),
        incarnation: next,
    })
}

fn decide(
    unit: &UnitName,
    reason: IncarnationReason,
    current: Incarnation,
    lived: bool,
) -> Result<Incarnation, Problem> {
    match reason {
        IncarnationReason::Birth if lived => {
            return Err(Problem::conflict(format!(
                "unit {unit}: has been in service, as incarnation {current} at last"
            ))
            .hint(format!(
                "if its hardware is dead: leapctl unit replace {unit}"
            )));
        }
        IncarnationReason::Replace if current == Incarnation(0) => {
            return Err(Problem::conflict(format!(
                "unit {unit}: there is nothing to replace, its birth was never begun"
            )));
        }
        IncarnationReason::Birth | IncarnationReason::Replace => {}
    }
    current
        .0
        .checked_add(1)
        .map(Incarnation)
        .ok_or_else(|| Problem::conflict(format!("unit {unit}: no incarnation is left")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use IncarnationReason::{Birth, Replace};

    #[test]
    fn birth_may_be_repeated_until_the_unit_has_lived() {
        let unit = "motivatit/houma-1".parse().unwrap();
        let decide = |reason, current, lived| {
            decide(&unit, reason, Incarnation(current), lived)
                .map(|next| next.0)
                .ok()
        };
        assert_eq!(decide(Birth, 0, false), Some(1));
        assert_eq!(decide(Birth, 1, false), Some(2));
        assert_eq!(decide(Birth, 2, true), None);
        assert_eq!(decide(Replace, 2, true), Some(3));
        assert_eq!(decide(Replace, 2, false), Some(3));
        assert_eq!(decide(Replace, 0, false), None);
        assert_eq!(decide(Replace, u32::MAX, true), None);
    }
}
