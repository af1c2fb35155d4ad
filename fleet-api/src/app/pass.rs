//! Passes: how a machine at a customer's, without a factory, reaches the sky.
//!
//! A pass lets an installer announce itself and fetch what is public among friends:
//! releases and its customer's layer. Everything else takes a ticket.

use jiff::{SignedDuration, Timestamp};
use model::pass::{NewPass, PassView};
use model::{CustomerName, UnitName};

use super::unit;
use crate::auth::Caller;
use crate::error::{Kind, Problem};
use crate::sky::Sky;
use crate::store::{MachineRecord, NewEvent, PassRecord, Session};

/// A pass is for one visit, not for a drawer.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// So many machines may announce themselves with one pass: an installer makes new keys at
/// each start, and more starts than these are no visit any more.
const MACHINES: i64 = 32;

/// Takes a unit's pass, in place of an older one.
///
/// # Errors
/// Not found; an end that is past or too far away.
pub async fn put(sky: &Sky, unit: &UnitName, new: &NewPass) -> Result<PassView, Problem> {
    let now = sky.now();
    check_end(new.expires, now)?;
    let mut session = sky.store.change().await?;
    unit::find(&mut session, unit).await?;
    session.replace_pass(unit, new, now).await?;
    let message = format!(
        "a one-time code was made: until {} an installer may reach the sky with it",
        new.expires
    );
    let event = NewEvent::new("pass-made", message).unit(unit);
    session.append_event(event, now).await?;
    session.commit().await?;
    tracing::info!(%unit, expires = %new.expires, "pass made");
    Ok(PassView {
        unit: unit.clone(),
        expires: new.expires,
    })
}

fn check_end(expires: Timestamp, now: Timestamp) -> Result<(), Problem> {
    if expires <= now {
        return Err(Problem::invalid(format!(
            "expires: {expires} is past, expected at most {} days from now",
            LONGEST.as_hours() / 24
        )));
    }
    if now.duration_until(expires) > LONGEST {
        return Err(Problem::invalid(format!(
            "expires: {expires} is too far away, expected at most {} days from now",
            LONGEST.as_hours() / 24
        )));
    }
    Ok(())
}

/// Shows an installer what its pass is for.
#[must_use]
pub fn show(pass: &PassRecord) -> PassView {
    PassView {
        unit: pass.unit.clone(),
        expires: pass.expires,
    }
}

/// A machine behind a factory is the factory's affair; one that came with a pass is its
/// own and nobody else's.
///
/// # Errors
/// Refused: an installer asks for a machine that did not come with its pass, or whose
/// pass another machine has used.
pub fn check(caller: &Caller, machine: &MachineRecord) -> Result<(), Problem> {
    let Caller::Installer(pass) = caller else {
        return Ok(());
    };
    if machine.pass.as_ref() != Some(&pass.unit) {
        return Err(Problem::refused(format!(
            "machine {}: did not come with this one-time code",
            machine.code
        )));
    }
    match &pass.used_by {
        Some(other) if *other != machine.code => Err(used(pass, other.as_str())),
        _ => Ok(()),
    }
}

fn used(pass: &PassRecord, machine: &str) -> Problem {
    Problem::refused(format!(
        "one-time code of {}: used by machine {machine}",
        pass.unit
    ))
    .hint("make a new one: leapctl unit pass UNIT")
}

/// Whether a machine that is not known yet may announce itself.
///
/// # Errors
/// Refused: the pass is used up.
pub async fn admit(session: &mut Session, pass: &PassRecord) -> Result<(), Problem> {
    if let Some(machine) = &pass.used_by {
        return Err(used(pass, machine.as_str()));
    }
    let before = session.machines_with_pass(&pass.unit, pass.created).await?;
    if before >= MACHINES {
        return Err(Problem::refused(format!(
            "one-time code of {}: {before} installers have announced themselves with it",
            pass.unit
        ))
        .hint("find out who they are: leapctl machine list; then leapctl unit pass UNIT"));
    }
    Ok(())
}

/// Whether a machine may be approved for a unit: one with a pass is for the pass's unit.
///
/// # Errors
/// Conflict.
pub fn check_approval(machine: &MachineRecord, unit: &UnitName) -> Result<(), Problem> {
    match &machine.pass {
        Some(pass) if pass != unit => Err(Problem::conflict(format!(
            "machine {}: came with the one-time code of {pass}, not of {unit}",
            machine.code
        ))
        .hint("approve it for that unit, or give its people a code of this one")),
        _ => Ok(()),
    }
}

/// Whether an installer may have a customer's layer.
///
/// # Errors
/// Refused.
pub fn check_customer(pass: &PassRecord, customer: &CustomerName) -> Result<(), Problem> {
    if pass.unit.customer() == customer {
        return Ok(());
    }
    Err(Problem::refused(format!(
        "one-time code of {}: not of customer {customer}",
        pass.unit
    )))
}

/// Whether the pass counts at `now`.
///
/// # Errors
/// Unauthorized.
pub fn check_time(pass: &PassRecord, now: Timestamp) -> Result<(), Problem> {
    if now < pass.expires {
        return Ok(());
    }
    Err(Problem::new(
        Kind::Unauthorized,
        format!("one-time code: expired {}", pass.expires),
    )
    .hint("make a new one: leapctl unit pass UNIT"))
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::{NOW, machine};
    use super::*;
    use jiff::ToSpan as _;

    fn pass(unit: &str) -> PassRecord {
        PassRecord {
            unit: unit.parse().unwrap(),
            expires: NOW + 1.hour(),
            created: NOW,
            used_by: None,
        }
    }

    #[test]
    fn an_installer_speaks_for_the_machines_of_its_pass_only() {
        let mine = pass("motivatit/houma-1");
        let caller = Caller::Installer(mine.clone());
        let with = |unit: Option<&str>| MachineRecord {
            pass: unit.map(|unit| unit.parse().unwrap()),
            ..machine()
        };
        assert!(check(&caller, &with(Some("motivatit/houma-1"))).is_ok());
        // Of another unit, and behind a factory.
        assert!(check(&caller, &with(Some("motivatit/houma-2"))).is_err());
        assert!(check(&caller, &with(None)).is_err());
        // Once a machine is born with it, it is that machine's alone.
        let used_by = |code| {
            Caller::Installer(PassRecord {
                used_by: Some(code),
                ..mine.clone()
            })
        };
        let own = with(Some("motivatit/houma-1"));
        assert!(check(&used_by(own.code.clone()), &own).is_ok());
        assert!(check(&used_by("0000-0000".parse().unwrap()), &own).is_err());
        // Factories speak for all.
        assert!(check(&Caller::Factory, &with(None)).is_ok());
    }

    #[test]
    fn a_machine_with_a_pass_becomes_its_unit_or_none() {
        let [one, two] =
            ["motivatit/houma-1", "motivatit/houma-2"].map(|unit| unit.parse().unwrap());
        let came = MachineRecord {
            pass: Some(UnitName::clone(&one)),
            ..machine()
        };
        assert!(check_approval(&came, &one).is_ok());
        assert!(check_approval(&came, &two).is_err());
        assert!(check_approval(&machine(), &two).is_ok());
        let pass = pass("motivatit/houma-1");
        assert!(check_customer(&pass, &"motivatit".parse().unwrap()).is_ok());
        assert!(check_customer(&pass, &"other".parse().unwrap()).is_err());
    }

    #[test]
    fn a_pass_ends_within_days() {
        assert!(check_end(NOW + 1.hour(), NOW).is_ok());
        assert!(check_end(NOW, NOW).is_err());
        assert!(check_end(NOW + 169.hours(), NOW).is_err());
        let pass = pass("motivatit/houma-1");
        assert!(check_time(&pass, NOW).is_ok());
        assert!(check_time(&pass, pass.expires).is_err());
    }
}
