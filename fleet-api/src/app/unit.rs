//! Units, and where they stand in life.

use model::api::{CheckIn, IncarnationReason, NewUnit, UnitState, UnitView};
use model::{DeviceIdentity, UnitName};

use super::{check_label, customer};
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::{NewEvent, Session, UnitRecord};

/// Attempts of fenced incarnations that a view shows.
const SHOWN_ATTEMPTS: u32 = 20;

/// What a unit's state is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Why the current incarnation was begun; `None` before the first.
    pub begun: Option<IncarnationReason>,
    /// Whether a ticket for the current incarnation exists, used or not.
    pub ticket: bool,
    /// Whether any incarnation was ever in service.
    pub lived: bool,
    /// Whether the current incarnation was ever in service.
    pub in_service: bool,
    /// Whether the current incarnation's last word was healthy; `None` before its first.
    pub healthy: Option<bool>,
}

/// Returns where a unit stands in life.
pub fn state(life: &Life) -> UnitState {
    match *life {
        Life { begun: None, .. } => UnitState::Unborn,
        Life {
            in_service: true,
            healthy,
            ..
        } => match healthy {
            Some(true) => UnitState::InService,
            _ => UnitState::Unhealthy,
        },
        Life { lived: true, .. }
        | Life {
            begun: Some(IncarnationReason::Replace),
            ..
        } => UnitState::Rebirth,
        Life {
            healthy: Some(_), ..
        } => UnitState::Unhealthy,
        Life { ticket: true, .. } => UnitState::Birth,
        Life { .. } => UnitState::Unborn,
    }
}

/// Adds a unit. Repeated with the same values, it changes nothing.
///
/// # Errors
/// Unknown customer, a malformed name, conflict with a unit of other values.
pub async fn create(sky: &Sky, new: NewUnit) -> Result<UnitView, Problem> {
    check_label("profile", &new.profile)?;
    check_label("channel", &new.channel)?;
    let now = sky.now();
    let mut session = sky.store.change().await?;
    let owner = new.unit.customer();
    session
        .customer(owner)
        .await?
        .ok_or_else(|| customer::unknown(owner))?;
    if let Some(known) = session.unit(&new.unit).await? {
        if known.profile != new.profile || known.channel != new.channel {
            return Err(Problem::conflict(format!(
                "unit {}: exists with profile {:?} and channel {:?}",
                new.unit, known.profile, known.channel
            )));
        }
        return view(&mut session, known).await;
    }
    session
        .insert_unit(&new.unit, &new.profile, &new.channel, now)
        .await?;
    let event = NewEvent::new("unit", format!("unit {} created", new.unit)).unit(&new.unit);
    session.append_event(event, now).await?;
    let record = find(&mut session, &new.unit).await?;
    let view = view(&mut session, record).await?;
    session.commit().await?;
    Ok(view)
}

/// Returns all units.
///
/// # Errors
/// Internal only.
pub async fn list(sky: &Sky) -> Result<Vec<UnitView>, Problem> {
    let mut session = sky.store.read().await?;
    let records = session.units().await?;
    let mut views = Vec::with_capacity(records.len());
    for record in records {
        views.push(view(&mut session, record).await?);
    }
    Ok(views)
}

/// Returns one unit.
///
/// # Errors
/// Not found.
pub async fn show(sky: &Sky, unit: &UnitName) -> Result<UnitView, Problem> {
    let mut session = sky.store.read().await?;
    let record = find(&mut session, unit).await?;
    view(&mut session, record).await
}

/// Returns a unit's record.
pub(super) async fn find(session: &mut Session, unit: &UnitName) -> Result<UnitRecord, Problem> {
    session
        .unit(unit)
        .await?
        .ok_or_else(|| Problem::not_found(format!("unit {unit}: does not exist")))
}

async fn view(session: &mut Session, record: UnitRecord) -> Result<UnitView, Problem> {
    let unit = record.unit;
    let current = DeviceIdentity {
        unit: unit.clone(),
        incarnation: record.incarnation,
    };
    let incarnation = session.incarnation(&current).await?;
    let ticket = session.ticket_of(&current).await?;
    let machine = match &ticket {
        Some(ticket) => session.machine(&ticket.machine).await?,
        None => None,
    };
    let configuration = session.newest_configuration(&unit).await?;
    let life = Life {
        begun: incarnation.as_ref().map(|incarnation| incarnation.reason),
        ticket: ticket.is_some(),
        lived: session.has_lived(&unit).await?,
        in_service: incarnation
            .as_ref()
            .is_some_and(|incarnation| incarnation.in_service.is_some()),
        healthy: incarnation
            .as_ref()
            .and_then(|incarnation| incarnation.check_in.as_ref())
            .map(|said: &CheckIn| said.healthy),
    };
    let (last_check_in, last_seen) = incarnation.map_or((None, None), |incarnation| {
        (incarnation.check_in, incarnation.seen)
    });
    Ok(UnitView {
        profile: record.profile,
        channel: record.channel,
        state: state(&life),
        incarnation: record.incarnation,
        machine_serial: machine.map(|machine| machine.facts.serial),
        configuration_generation: configuration.map_or(0, |(generation, _)| generation),
        last_check_in,
        last_seen,
        escrow_version: session.escrow(&unit).await?.map(|escrow| escrow.version),
        fenced_attempts: session.attempts(&unit, SHOWN_ATTEMPTS).await?,
        unit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use IncarnationReason::{Birth, Replace};

    const UNBORN: Life = Life {
        begun: None,
        ticket: false,
        lived: false,
        in_service: false,
        healthy: None,
    };

    #[test]
    fn a_first_life_goes_from_unborn_to_service() {
        let begun = Life {
            begun: Some(Birth),
            ..UNBORN
        };
        let ticket = Life {
            ticket: true,
            ..begun
        };
        let seen = Life {
            healthy: Some(false),
            ..ticket
        };
        let served = Life {
            lived: true,
            in_service: true,
            healthy: Some(true),
            ..ticket
        };
        let sick = Life {
            healthy: Some(false),
            ..served
        };
        let states = [UNBORN, begun, ticket, seen, served, sick].map(|life| state(&life));
        assert_eq!(
            states,
            [
                UnitState::Unborn,
                UnitState::Unborn,
                UnitState::Birth,
                UnitState::Unhealthy,
                UnitState::InService,
                UnitState::Unhealthy
            ]
        );
    }

    #[test]
    fn a_replaced_unit_is_in_rebirth_until_the_newcomer_serves() {
        let begun = Life {
            begun: Some(Replace),
            lived: true,
            ..UNBORN
        };
        assert_eq!(state(&begun), UnitState::Rebirth);
        let seen = Life {
            ticket: true,
            healthy: Some(false),
            ..begun
        };
        assert_eq!(state(&seen), UnitState::Rebirth);
        let served = Life {
            in_service: true,
            healthy: Some(true),
            ..seen
        };
        assert_eq!(state(&served), UnitState::InService);
    }
}
