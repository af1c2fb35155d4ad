//! Fences: who is current, and who ran against one.

use jiff::SignedDuration;
use model::api::{FenceAttempt, Fences};
use model::{DeviceIdentity, Incarnation};

use crate::error::{Kind, Problem};
use crate::sky::Sky;
use crate::store::{NewEvent, Session};

/// A machine that asks again within this time, at the same place from the same
/// address, is one attempt: it asks for ranges by the hundred.
const SAME_ATTEMPT: SignedDuration = SignedDuration::from_secs(30);

/// How an identity stands to its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is the unit.
    Current,
    /// It was.
    Fenced {
        /// The incarnation that is the unit now.
        current: Incarnation,
    },
    /// The sky does not know the unit, or not such an incarnation yet.
    Unknown,
}

/// Returns how `identity` stands to its unit, whose current incarnation is `current`.
pub fn standing(identity: &DeviceIdentity, current: Option<Incarnation>) -> Standing {
    match current {
        Some(current) if identity.incarnation == current && current > Incarnation(0) => {
            Standing::Current
        }
        Some(current) if identity.incarnation < current => Standing::Fenced { current },
        _ => Standing::Unknown,
    }
}

/// Lets a unit's current incarnation pass; records the attempt of a fenced one.
///
/// # Errors
/// Fenced; refused where the sky does not know the identity.
pub async fn check(
    sky: &Sky,
    identity: &DeviceIdentity,
    place: &str,
    address: &str,
) -> Result<(), Problem> {
    let unit = sky.store.read().await?.unit(&identity.unit).await?;
    match standing(identity, unit.map(|unit| unit.incarnation)) {
        Standing::Current => Ok(()),
        Standing::Unknown => Err(unknown(identity)),
        Standing::Fenced { current } => {
            let attempt = FenceAttempt {
                identity: identity.clone(),
                place: place.to_owned(),
                address: address.to_owned(),
                time: sky.now(),
            };
            let mut session = sky.store.change().await?;
            record(&mut session, &attempt).await?;
            session.commit().await?;
            Err(fenced(identity, current))
        }
    }
}

/// The answer to a fenced incarnation.
pub(super) fn fenced(identity: &DeviceIdentity, current: Incarnation) -> Problem {
    Problem::new(
        Kind::Fenced,
        format!(
            "unit {}: incarnation {} is fenced, {current} is current",
            identity.unit, identity.incarnation
        ),
    )
}

/// The answer to an identity that the sky does not know.
pub(super) fn unknown(identity: &DeviceIdentity) -> Problem {
    Problem::refused(format!(
        "unit {}: incarnation {} is not known here",
        identity.unit, identity.incarnation
    ))
}

async fn record(session: &mut Session, attempt: &FenceAttempt) -> Result<(), Problem> {
    let last = session.last_attempt(attempt).await?;
    let again = last.is_some_and(|last| {
        let since = attempt.time.duration_since(last);
        !since.is_negative() && since < SAME_ATTEMPT
    });
    if again {
        return Ok(());
    }
    session.insert_attempt(attempt).await?;
    let message = format!(
        "fenced incarnation {} tried {} from {}",
        attempt.identity.incarnation, attempt.place, attempt.address
    );
    let event = NewEvent::new("fenced", message).unit(&attempt.identity.unit);
    session.append_event(event, attempt.time).await?;
    tracing::warn!(
        unit = %attempt.identity.unit,
        incarnation = attempt.identity.incarnation.0,
        place = attempt.place,
        address = attempt.address,
        "fenced incarnation"
    );
    Ok(())
}

/// Returns which incarnations are current.
///
/// # Errors
/// Internal only.
pub async fn list(sky: &Sky) -> Result<Fences, Problem> {
    let units = sky.store.read().await?.current_incarnations().await?;
    Ok(Fences { units })
}

/// Takes an attempt that a vault has seen.
///
/// # Errors
/// The unit is unknown, the incarnation is not fenced, or a text is malformed.
pub async fn report(sky: &Sky, attempt: &FenceAttempt) -> Result<(), Problem> {
    for (name, text) in [("place", &attempt.place), ("address", &attempt.address)] {
        if !(1..=100).contains(&text.len()) || text.chars().any(char::is_control) {
            return Err(Problem::invalid(format!(
                "{name}: expected 1 to 100 bytes without control characters"
            )));
        }
    }
    let mut session = sky.store.change().await?;
    let identity = &attempt.identity;
    let unit = session.unit(&identity.unit).await?;
    match standing(identity, unit.map(|unit| unit.incarnation)) {
        Standing::Fenced { .. } => record(&mut session, attempt).await?,
        Standing::Current => {
            return Err(Problem::conflict(format!(
                "unit {}: incarnation {} is current, not fenced",
                identity.unit, identity.incarnation
            )));
        }
        Standing::Unknown => {
            return Err(Problem::not_found(format!(
                "unit {}: no incarnation {} is known here",
                identity.unit, identity.incarnation
            )));
        }
    }
    session.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_incarnation_is_current_and_all_lower_ones_are_fenced() {
        let identity = |number: u32| DeviceIdentity {
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(number),
        };
        let current = Incarnation(2);
        let fenced = Standing::Fenced { current };
        let standings = [0, 1, 2, 3].map(|number| standing(&identity(number), Some(current)));
        assert_eq!(
            standings,
            [fenced, fenced, Standing::Current, Standing::Unknown]
        );
        assert_eq!(standing(&identity(1), None), Standing::Unknown);
        assert_eq!(
            standing(&identity(0), Some(Incarnation(0))),
            Standing::Unknown
        );
    }
}
