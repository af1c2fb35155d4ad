//! Where a replacement stands: what is left to do of the one transaction.
//!
//! Pure. A replacement that was interrupted is typed again and goes on: the
//! sky's facts say how far it came.

use model::api::{MachineState, MachineView, UnitState, UnitView};
use model::{Incarnation, UnitName};

use crate::birth::MachineName;

/// How to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Begin a new incarnation: it fences the old machine at once.
    Begin,
    /// This incarnation was begun and no machine serves as it yet.
    Resume(Incarnation),
    /// The newcomer has used its ticket: give it the secrets again and follow it.
    Follow(Incarnation),
}

/// Why a unit is not replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoReplacement {
    /// There is nothing to replace.
    #[error("unit {0}: has never been in service, so there is nothing to replace")]
    NeverLived(UnitName),
    /// Without the escrow the backups would be lost.
    #[error("unit {0}: no escrow is stored, so a newcomer could not open its backups")]
    NoEscrow(UnitName),
    /// The machine serves already.
    #[error("unit {unit}: {machine} serves as it already")]
    ServesAlready {
        unit: UnitName,
        machine: MachineName,
    },
}

/// Whether a machine has used the ticket of the unit's current incarnation.
fn is_redeemed(unit: &UnitView, machines: &[MachineView]) -> bool {
    unit.last_check_in.is_some()
        || newest_machine(unit, machines).is_some_and(|machine| !waits(machine))
}

/// The machine that the current incarnation's ticket is for. A box that is
/// born a second time has a second code, with the same serial.
fn newest_machine<'a>(unit: &UnitView, machines: &'a [MachineView]) -> Option<&'a MachineView> {
    let serial = unit.machine_serial.as_ref()?;
    machines
        .iter()
        .filter(|machine| machine.unit.as_ref() == Some(&unit.unit))
        .filter(|machine| machine.facts.serial == *serial)
        .max_by_key(|machine| machine.first_seen)
}

/// Whether a machine stands in its installer without having used a ticket.
fn waits(machine: &MachineView) -> bool {
    matches!(machine.state, MachineState::Held | MachineState::Approved)
}

/// Returns the incarnation of a first birth that was begun and that no
/// machine serves as yet: a ticket for it can still be given.
pub(crate) fn unborn_incarnation(unit: &UnitView, machines: &[MachineView]) -> Option<Incarnation> {
    let begun = unit.incarnation > Incarnation(0)
        && matches!(unit.state, UnitState::Unborn | UnitState::Birth);
    (begun && !is_redeemed(unit, machines)).then_some(unit.incarnation)
}

/// Decides how to go on with replacing `unit` by the machine `wanted`.
pub(crate) fn decide(
    unit: &UnitView,
    wanted: &MachineName,
    machines: &[MachineView],
) -> Result<Plan, NoReplacement> {
    let name = || unit.unit.clone();
    match unit.state {
        UnitState::Unborn | UnitState::Birth => return Err(NoReplacement::NeverLived(name())),
        _ if unit.escrow_version.is_none() => return Err(NoReplacement::NoEscrow(name())),
        _ => {}
    }
    let newcomer = wanted.find(machines);
    // Whatever its serial, a machine that waits for a ticket does not serve.
    let serves = !newcomer.is_some_and(waits)
        && (unit.machine_serial.is_some() && unit.machine_serial.as_deref() == wanted.serial()
            || newest_machine(unit, machines).is_some_and(|it| Some(&it.code) == wanted.code()));
    match unit.state {
        UnitState::Rebirth if !is_redeemed(unit, machines) => Ok(Plan::Resume(unit.incarnation)),
        UnitState::Rebirth if serves => Ok(Plan::Follow(unit.incarnation)),
        // The newcomer died during its birth, or this is the first try.
        UnitState::Rebirth => Ok(Plan::Begin),
        _ if serves => Err(NoReplacement::ServesAlready {
            unit: name(),
            machine: wanted.clone(),
        }),
        _ => Ok(Plan::Begin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::birth::tests::machine;
    use crate::view::tests::living_unit;

    fn serial(text: &str) -> MachineName {
        MachineName::Serial(text.into())
    }

    #[test]
    fn the_first_try_begins_an_incarnation() {
        assert_eq!(decide(&living_unit(), &serial("NEW"), &[]), Ok(Plan::Begin));
    }

    #[test]
    fn an_interrupted_try_goes_on_with_its_incarnation() {
        let mut unit = living_unit();
        unit.state = UnitState::Rebirth;
        unit.incarnation = Incarnation(2);
        unit.machine_serial = None;
        unit.last_check_in = None;
        let resume = Ok(Plan::Resume(Incarnation(2)));
        assert_eq!(decide(&unit, &serial("NEW"), &[]), resume);
        // The ticket is out and not used yet.
        let mut newcomer = machine("NEW", vec![]);
        newcomer.state = MachineState::Approved;
        newcomer.unit = Some(unit.unit.clone());
        unit.machine_serial = Some("NEW".into());
        assert_eq!(decide(&unit, &serial("NEW"), &[newcomer]), resume);
    }

    #[test]
    fn a_first_birth_that_was_begun_goes_on_until_its_ticket_is_used() {
        let mut unit = living_unit();
        unit.state = UnitState::Unborn;
        unit.last_check_in = None;
        unit.machine_serial = None;
        assert_eq!(unborn_incarnation(&unit, &[]), Some(Incarnation(1)));
        let mut machine = machine("S1", vec![]);
        machine.unit = Some(unit.unit.clone());
        unit.machine_serial = Some("S1".into());
        unit.state = UnitState::Birth;
        machine.state = MachineState::Approved;
        let machines = std::slice::from_mut(&mut machine);
        assert_eq!(unborn_incarnation(&unit, machines), Some(Incarnation(1)));
        machines[0].state = MachineState::Failed;
        assert_eq!(unborn_incarnation(&unit, machines), None);
        unit.incarnation = Incarnation(0);
        assert_eq!(unborn_incarnation(&unit, &[]), None);
    }

    #[test]
    fn a_newcomer_that_is_installing_is_followed() {
        let mut newcomer = machine("NEW", vec![]);
        newcomer.state = MachineState::Installing;
        let mut unit = living_unit();
        newcomer.unit = Some(unit.unit.clone());
        unit.state = UnitState::Rebirth;
        unit.incarnation = Incarnation(2);
        unit.machine_serial = Some("NEW".into());
        unit.last_check_in = None;
        let machines = [newcomer];
        let follow = Ok(Plan::Follow(Incarnation(2)));
        assert_eq!(decide(&unit, &serial("NEW"), &machines), follow);
        let code = MachineName::Code(machines[0].code.clone());
        assert_eq!(decide(&unit, &code, &machines), follow);
        // Another machine takes over from a newcomer that died at birth.
        assert_eq!(decide(&unit, &serial("THIRD"), &machines), Ok(Plan::Begin));
    }

    #[test]
    fn the_same_box_with_a_new_disk_may_take_over() {
        let unit = living_unit();
        let same = serial(unit.machine_serial.as_deref().unwrap());
        assert!(matches!(
            decide(&unit, &same, &[]),
            Err(NoReplacement::ServesAlready { .. })
        ));
        let held = machine(unit.machine_serial.as_deref().unwrap(), vec![]);
        assert_eq!(decide(&unit, &same, &[held]), Ok(Plan::Begin));
    }

    #[test]
    fn without_an_escrow_nothing_is_fenced() {
        let mut unit = living_unit();
        unit.escrow_version = None;
        assert!(matches!(
            decide(&unit, &serial("NEW"), &[]),
            Err(NoReplacement::NoEscrow(_))
        ));
        unit.state = UnitState::Birth;
        assert!(matches!(
            decide(&unit, &serial("NEW"), &[]),
            Err(NoReplacement::NeverLived(_))
        ));
    }
}
