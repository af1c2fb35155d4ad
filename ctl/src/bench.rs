//! What becomes of a machine that announces itself at a bench with rules.
//!
//! Pure: a machine, the rules, and what the sky shows → the approval, or why
//! the machine is left held. A doubt always holds: a person can still approve.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use model::UnitName;
use model::api::{MachineState, MachineView, UnitState, UnitView};
use model::machine::{DiskContent, DiskFacts, DiskHealth, MachineCode, MachineFacts, Severity};

use crate::birth::{self, Disks};
use crate::replacement::unborn_incarnation;
use crate::rules::{Becomes, DiskRule, Fit, Rule, Rules};

/// An installer is heard of twice a minute; one that is silent for so long is gone.
const SILENCE: SignedDuration = SignedDuration::from_mins(5);

/// What the decision looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bench<'a> {
    /// All machines that the sky knows.
    pub(crate) machines: &'a [MachineView],
    /// All units.
    pub(crate) units: &'a [UnitView],
    /// What was given away since the sky was asked.
    pub(crate) given: &'a BTreeMap<UnitName, MachineCode>,
    /// The operator's time.
    pub(crate) now: Timestamp,
}

/// What becomes of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision<'a> {
    /// It may become this unit.
    Approve(Approve<'a>),
    /// It is left as it is.
    Hold {
        /// The rule that is meant for it.
        rule: Option<&'a Rule>,
        why: Hold,
    },
}

/// What is permitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Approve<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) unit: &'a UnitView,
    pub(crate) disks: Disks<'a>,
}

/// Why a machine is left held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Hold {
    #[error("no rule fits: {0}")]
    NoRule(String),
    #[error("the rule means this machine and {0}")]
    Misfit(String),
    #[error("its installer says: {0}")]
    Stops(String),
    #[error("not heard of for 5 min; is it switched off, or this computer's clock wrong?")]
    Silent,
    #[error("the sky shows other keys than those that its code stands for")]
    OtherKeys,
    #[error("it was started again and is machine {0} now")]
    Restarted(MachineCode),
    #[error("machine {0} says that it is the same hardware and is there too")]
    Twice(MachineCode),
    #[error("machine {0} has the same serial and is there too")]
    SameSerial(MachineCode),
    #[error("this hardware was given to {0} before; to use it again, approve it by hand")]
    Served(UnitName),
    #[error("unit {0} does not exist; leapctl unit create {0}")]
    NoSuchUnit(UnitName),
    #[error("unit {0} has lived; leapctl unit replace {0} gives it new hardware")]
    HasLived(UnitName),
    #[error("unit {unit} has a machine already: {machine}")]
    HasMachine { unit: UnitName, machine: String },
    #[error("every unit of {0} has a machine; create more with leapctl unit create")]
    NoneLeft(String),
    #[error("{0}")]
    NoDisk(String),
    #[error("disk {0} holds data that is not ours; the rule does not say foreign_data = \"erase\"")]
    ForeignData(String),
    #[error("disk {0} holds a unit; the rule does not say unit_data = \"erase\"")]
    UnitData(String),
    #[error("disk {path} is failing, by its own word: {reason}; replace it")]
    FailingDisk { path: String, reason: String },
}

/// Decides about a machine that is held.
pub(crate) fn decide<'a>(
    rules: &'a Rules,
    machine: &'a MachineView,
    bench: Bench<'a>,
) -> Decision<'a> {
    if bench.now.duration_since(machine.last_seen) > SILENCE {
        return hold(None, Hold::Silent);
    }
    if !birth::keys_are_the_codes(machine) {
        return hold(None, Hold::OtherKeys);
    }
    let rule = match first_fit(rules, &machine.facts) {
        Ok(rule) => rule,
        Err((rule, why)) => return hold(rule, why),
    };
    let mut findings = machine.facts.findings.iter();
    if let Some(stops) = findings.find(|finding| finding.severity == Severity::Stops) {
        return hold(Some(rule), Hold::Stops(stops.text.clone()));
    }
    let decided = only_one(rule, machine, bench).and_then(|()| {
        Ok((
            choose_unit(rules, rule, machine, bench)?,
            choose_disks(rule, &machine.facts)?,
        ))
    });
    match decided {
        Ok((unit, disks)) => Decision::Approve(Approve { rule, unit, disks }),
        Err(why) => hold(Some(rule), why),
    }
}

fn hold(rule: Option<&Rule>, why: Hold) -> Decision<'_> {
    Decision::Hold { rule, why }
}

fn first_fit<'a>(
    rules: &'a Rules,
    facts: &MachineFacts,
) -> Result<&'a Rule, (Option<&'a Rule>, Hold)> {
    let mut lacks = Vec::new();
    for rule in rules.all() {
        match rule.fit(facts) {
            Fit::Yes => return Ok(rule),
            // It is meant and not as expected: no later rule may take it.
            Fit::Not(lack) => return Err((Some(rule), Hold::Misfit(lack))),
            Fit::No(lack) => lacks.push(format!("{:?} {lack}", rule.name)),
        }
    }
    Err((None, Hold::NoRule(lacks.join(", "))))
}

/// Whether two announcements claim to be the same box. A box that is started
/// again has new keys and so a new code.
fn same_box(a: &MachineFacts, b: &MachineFacts) -> bool {
    let mac = a.nics.iter().any(|x| b.nics.iter().any(|y| x.mac == y.mac));
    let named = !a.serial.is_empty() && a.serial == b.serial && a.uuid == b.uuid;
    mac || named
}

/// Refuses a machine that is there twice, or that was a unit before.
fn only_one(rule: &Rule, machine: &MachineView, bench: Bench<'_>) -> Result<(), Hold> {
    let facts = &machine.facts;
    let others = || {
        bench
            .machines
            .iter()
            .filter(|other| other.code != machine.code)
    };
    for other in others().filter(|other| same_box(&other.facts, facts)) {
        let code = || other.code.clone();
        match (other.state, &other.unit) {
            (MachineState::Held | MachineState::Approved, _) => {
                if other.first_seen > machine.last_seen {
                    return Err(Hold::Restarted(code()));
                }
                // One box speaks with one set of keys: the old ones are silent
                // once the new ones are announced.
                if other.last_seen >= machine.first_seen {
                    return Err(Hold::Twice(code()));
                }
            }
            (_, Some(unit)) => return Err(Hold::Served(unit.clone())),
            (_, None) => {}
        }
    }
    if rule.serial.is_some() {
        let there = |other: &&MachineView| {
            other.facts.serial == facts.serial
                && !same_box(&other.facts, facts)
                && bench.now.duration_since(other.last_seen) <= SILENCE
        };
        if let Some(other) = others().find(there) {
            return Err(Hold::SameSerial(other.code.clone()));
        }
    }
    Ok(())
}

fn choose_unit<'a>(
    rules: &Rules,
    rule: &Rule,
    machine: &MachineView,
    bench: Bench<'a>,
) -> Result<&'a UnitView, Hold> {
    let patterns = match &rule.becomes {
        Becomes::Unit(name) => {
            let mut units = bench.units.iter();
            let unit = units.find(|unit| unit.unit == *name);
            let unit = unit.ok_or_else(|| Hold::NoSuchUnit(name.clone()))?;
            free(unit, machine, bench)?;
            return Ok(unit);
        }
        Becomes::Next(patterns) => patterns,
    };
    let mut candidates: Vec<&UnitView> = Vec::new();
    for pattern in patterns {
        let mut fitting: Vec<&UnitView> = bench
            .units
            .iter()
            .filter(|unit| pattern.fits(&unit.unit) && !rules.keeps(&unit.unit))
            .filter(|unit| !candidates.iter().any(|known| known.unit == unit.unit))
            .collect();
        fitting.sort_by_cached_key(|unit| natural(unit.unit.name()));
        candidates.extend(fitting);
    }
    candidates.retain(|unit| free(unit, machine, bench).is_ok());
    // Started again before it used its ticket: the same unit, not a second one.
    let own = candidates
        .iter()
        .find(|unit| unit.state == UnitState::Birth);
    own.or(candidates.first()).copied().ok_or_else(|| {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        Hold::NoneLeft(patterns.join(", "))
    })
}

/// Whether the unit has no machine, or only this one, which has not used its ticket.
fn free(unit: &UnitView, machine: &MachineView, bench: Bench<'_>) -> Result<(), Hold> {
    let name = || unit.unit.clone();
    let taken = |machine: String| Hold::HasMachine {
        unit: name(),
        machine,
    };
    if let Some(code) = bench
        .given
        .get(&unit.unit)
        .filter(|code| **code != machine.code)
    {
        return Err(taken(code.to_string()));
    }
    match unit.state {
        UnitState::InService | UnitState::Unhealthy | UnitState::Rebirth => {
            Err(Hold::HasLived(name()))
        }
        UnitState::Unborn => Ok(()),
        UnitState::Birth => {
            let holders = || {
                let all = bench.machines.iter();
                all.filter(|other| other.unit.as_ref() == Some(&unit.unit))
            };
            let own = |holder: &MachineView| same_box(&holder.facts, &machine.facts);
            let unused = unborn_incarnation(unit, bench.machines).is_some();
            if unused && holders().next().is_some() && holders().all(own) {
                return Ok(());
            }
            let serial = unit.machine_serial.as_deref().unwrap_or("unknown");
            Err(taken(format!("serial {serial:?}")))
        }
    }
}

/// Sorts `houma-2` before `houma-10`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let word = rest.len() - rest.trim_start_matches(|c: char| !c.is_ascii_digit()).len();
        let (text, after) = rest.split_at(word);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = after.split_at(digits);
        parts.push((text.to_owned(), number.parse().unwrap_or(u64::MAX)));
        rest = after;
    }
    parts
}

fn choose_disks<'a>(rule: &Rule, facts: &'a MachineFacts) -> Result<Disks<'a>, Hold> {
    let disks = match &rule.disk {
        DiskRule::Mirrored(least) => birth::choose_pair(facts, *least).map_err(no_disk)?,
        DiskRule::Smallest(0) => one_disk(facts, None)?,
        DiskRule::Smallest(least) => {
            let disk = birth::smallest_disk(facts, *least).ok_or_else(|| {
                Hold::NoDisk(format!("no fixed disk of at least {}", birth::size(*least)))
            })?;
            Disks::one(disk)
        }
        DiskRule::Named(name) => one_disk(facts, Some(name))?,
        DiskRule::Size(least, most) => one_disk_of(facts, *least, *most)?,
    };
    for disk in disks.iter() {
        may_be_erased(rule, disk)?;
    }
    Ok(disks)
}

fn no_disk(error: birth::NoDisk) -> Hold {
    Hold::NoDisk(error.to_string())
}

fn one_disk<'a>(facts: &'a MachineFacts, name: Option<&str>) -> Result<Disks<'a>, Hold> {
    let disk = birth::choose_disk(facts, name);
    disk.map(Disks::one).map_err(no_disk)
}

fn one_disk_of(facts: &MachineFacts, least: u64, most: u64) -> Result<Disks<'_>, Hold> {
    let range = || format!("{} to {}", birth::size(least), birth::size(most));
    let within = |disk: &&DiskFacts| !disk.removable && (least..=most).contains(&disk.size);
    let mut found = facts.disks.iter().filter(within);
    match (found.next(), found.next()) {
        (None, _) => Err(Hold::NoDisk(format!("no fixed disk of {}", range()))),
        (Some(a), Some(b)) => {
            let both = format!("{} and {} are both of {}", a.path, b.path, range());
            Err(Hold::NoDisk(both))
        }
        (Some(disk), None) => one_disk(facts, Some(&disk.path)),
    }
}

fn may_be_erased(rule: &Rule, disk: &DiskFacts) -> Result<(), Hold> {
    if let Some(DiskHealth::Failing { reason }) = &disk.health {
        return Err(Hold::FailingDisk {
            path: disk.path.clone(),
            reason: reason.clone(),
        });
    }
    match disk.content {
        DiskContent::Foreign if !rule.erase.foreign => Err(Hold::ForeignData(disk.path.clone())),
        DiskContent::Leapserv if !rule.erase.unit => Err(Hold::UnitData(disk.path.clone())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use model::Incarnation;
    use model::machine::{Finding, NicFacts};

    use super::*;
    use crate::birth::tests::{disk, machine as some_machine};
    use crate::rules::tests::rules;
    use crate::view::tests::living_unit;

    const POOL: &str =
        "[[rule]]\nname = 'bench'\nproduct = 'QEMU*'\nunits = ['motivatit/houma-*']\n";
    const ORDERED: &str = "[[rule]]\nname = 'ordered'\nserial = 'S1'\nunit = 'motivatit/houma-1'\n";

    fn time(text: &str) -> Timestamp {
        format!("2026-11-22T{text}Z").parse().unwrap()
    }

    fn machine(serial: &str, mac: u8) -> MachineView {
        let mut machine = some_machine(serial, vec![disk("/dev/vda", "D1", 20)]);
        machine.facts.uuid = format!("uuid-{mac}");
        machine.facts.nics = vec![NicFacts {
            name: "ens3".into(),
            mac: format!("52:54:00:00:00:{mac:02x}").parse().unwrap(),
            link: true,
        }];
        machine
    }

    /// The same hardware with new keys.
    fn again(machine: &MachineView, first_seen: &str) -> MachineView {
        let mut again = machine.clone();
        again.keys.public_key = model::Digest::of(first_seen.as_bytes());
        again.code = MachineCode::of(&again.keys);
        (again.first_seen, again.last_seen) = (time(first_seen), time(first_seen));
        again
    }

    fn unborn(name: &str) -> UnitView {
        let mut unit = living_unit();
        unit.unit = name.parse().unwrap();
        unit.state = UnitState::Unborn;
        unit.incarnation = Incarnation(0);
        unit.machine_serial = None;
        unit.last_check_in = None;
        unit.last_seen = None;
        unit.escrow_version = None;
        unit
    }

    /// The unit, or why the first machine is held.
    fn told(text: &str, machines: &[MachineView], units: &[UnitView]) -> String {
        let given = BTreeMap::new();
        given_told(text, machines, units, &given)
    }

    fn given_told(
        text: &str,
        machines: &[MachineView],
        units: &[UnitView],
        given: &BTreeMap<UnitName, MachineCode>,
    ) -> String {
        let bench = Bench {
            machines,
            units,
            given,
            now: time("20:00:30"),
        };
        match decide(&rules(text), &machines[0], bench) {
            Decision::Approve(yes) => {
                let disks: Vec<_> = yes.disks.iter().map(|disk| disk.path.as_str()).collect();
                format!("{} {}", yes.unit.unit, disks.join(" "))
            }
            Decision::Hold { why, .. } => why.to_string(),
        }
    }

    #[test]
    fn a_machine_becomes_its_unit_or_the_next_one_in_natural_order() {
        let units = [
            "motivatit/houma-10",
            "motivatit/houma-2",
            "motivatit/houma-1",
        ]
        .map(unborn);
        let one = [machine("S1", 1)];
        assert_eq!(told(POOL, &one, &units), "motivatit/houma-1 /dev/vda");
        assert_eq!(told(ORDERED, &one, &units), "motivatit/houma-1 /dev/vda");
        // What is kept for a serial is never given to another machine.
        let both = format!("{ORDERED}{POOL}");
        assert_eq!(
            told(&both, &[machine("S2", 2)], &units),
            "motivatit/houma-2 /dev/vda"
        );
        let given = [("motivatit/houma-2".parse().unwrap(), one[0].code.clone())].into();
        let two = [machine("S2", 2)];
        assert_eq!(
            given_told(&both, &two, &units, &given),
            "motivatit/houma-10 /dev/vda"
        );
        assert!(told(POOL, &one, &[]).starts_with("every unit of motivatit/houma-* has a machine"));
        assert!(told(ORDERED, &one, &[]).starts_with("unit motivatit/houma-1 does not exist"));
        let other = POOL.replace("QEMU*", "Dell*");
        let why = told(&format!("{ORDERED}{other}"), &two, &units);
        assert_eq!(
            why,
            "no rule fits: \"ordered\" is for serial \"S1\", \"bench\" wants product \"Dell*\""
        );
    }

    #[test]
    fn a_machine_that_is_meant_by_serial_is_taken_by_no_later_rule() {
        let text = format!("{}\ntpm = true\n{POOL}", ORDERED.trim_end());
        let units = [unborn("motivatit/houma-1"), unborn("motivatit/houma-2")];
        let why = told(&text, &[machine("S1", 1)], &units);
        assert_eq!(why, "the rule means this machine and wants a TPM");
    }

    #[test]
    fn what_stops_a_birth_is_no_wish_of_a_rule() {
        let units = [unborn("motivatit/houma-1")];
        let found = |severity| {
            let mut machine = machine("S1", 1);
            machine.facts.findings = vec![Finding {
                severity,
                text: "256 MiB of memory".into(),
            }];
            told(POOL, &[machine], &units)
        };
        assert_eq!(found(Severity::Matters), "motivatit/houma-1 /dev/vda");
        let why = found(Severity::Stops);
        assert_eq!(why, "its installer says: 256 MiB of memory");
    }

    #[test]
    fn no_rule_takes_a_disk_that_says_that_it_is_failing() {
        let units = [unborn("motivatit/houma-1")];
        let mut one = [machine("S1", 1)];
        one[0].facts.disks[0].health = Some(DiskHealth::Passed);
        assert_eq!(told(POOL, &one, &units), "motivatit/houma-1 /dev/vda");
        one[0].facts.disks[0].health = Some(DiskHealth::Failing {
            reason: "Current_Pending_Sector: 16".into(),
        });
        let why = told(POOL, &one, &units);
        assert!(
            why.contains("Current_Pending_Sector: 16; replace it"),
            "{why}"
        );
    }

    #[test]
    fn data_is_erased_only_where_the_rule_says_so() {
        let units = [unborn("motivatit/houma-1")];
        let mut one = [machine("S1", 1)];
        one[0].facts.disks[0].content = DiskContent::Foreign;
        assert!(told(POOL, &one, &units).contains("holds data that is not ours"));
        let erase = format!("{POOL}foreign_data = 'erase'\n");
        assert_eq!(told(&erase, &one, &units), "motivatit/houma-1 /dev/vda");
        one[0].facts.disks[0].content = DiskContent::Leapserv;
        assert!(told(&erase, &one, &units).contains("holds a unit"));
        let erase = format!("{POOL}unit_data = 'erase'\n");
        assert_eq!(told(&erase, &one, &units), "motivatit/houma-1 /dev/vda");
    }

    #[test]
    fn the_disk_is_the_one_that_the_rule_means_or_none() {
        let units = [unborn("motivatit/houma-1")];
        let mut stick = disk("/dev/sdc", "USB", 500);
        stick.removable = true;
        let mut one = [machine("S1", 1)];
        one[0].facts.disks = vec![
            disk("/dev/sda", "A", 100),
            disk("/dev/sdb", "B", 500),
            disk("/dev/sdd", "C", 510),
            stick,
        ];
        let with = |what: &str| told(&format!("{POOL}{what}\n"), &one, &units);
        assert_eq!(with(""), "motivatit/houma-1 /dev/sda");
        assert_eq!(with("least_disk = '200 GiB'"), "motivatit/houma-1 /dev/sdb");
        assert_eq!(with("disk = 'B'"), "motivatit/houma-1 /dev/sdb");
        assert_eq!(with("disk = '/dev/sdd'"), "motivatit/houma-1 /dev/sdd");
        assert_eq!(
            with("disk_size = ['90 GiB', '110 GiB']"),
            "motivatit/houma-1 /dev/sda"
        );
        let both = with("disk_size = ['490 GiB', '520 GiB']");
        assert!(
            both.starts_with("/dev/sdb and /dev/sdd are both of"),
            "{both}"
        );
        assert!(with("disk_size = ['1 TiB', '2 TiB']").starts_with("no fixed disk of"));
        // Neither the small one nor the stick, which is of the same size.
        assert_eq!(
            with("disk = 'mirrored'"),
            "motivatit/houma-1 /dev/sdb /dev/sdd"
        );
        let large = with("disk = 'mirrored'\nleast_disk = '505 GiB'");
        assert!(large.contains("no two fixed disks"), "{large}");
        assert!(with("disk = 'USB'").contains("removable"));
        assert!(with("disk = 'D9'").contains("no disk with this serial"));
    }

    #[test]
    fn a_doubt_about_who_it_is_holds() {
        let units = [unborn("motivatit/houma-1")];
        let mut gone = machine("S1", 1);
        gone.last_seen = time("19:50:00");
        assert!(told(POOL, &[gone], &units).starts_with("not heard of for 5 min"));
        let mut swapped = machine("S1", 1);
        swapped.keys.recipient = "age1hostile".into();
        assert!(told(POOL, &[swapped], &units).contains("other keys"));
        // Started again: the old code is left alone, the new one goes on.
        let old = machine("S1", 1);
        let new = again(&old, "20:00:20");
        assert!(told(POOL, &[old.clone(), new.clone()], &units).contains("started again"));
        let born = told(POOL, &[new.clone(), old.clone()], &units);
        assert_eq!(born, "motivatit/houma-1 /dev/vda");
        // Both speak at once: one of them is a clone.
        let mut awake = old;
        awake.last_seen = time("20:00:25");
        assert!(told(POOL, &[new.clone(), awake.clone()], &units).contains("is there too"));
        assert!(told(POOL, &[awake, new], &units).contains("is there too"));
        // Another board with the same serial; only a rule that means the serial cares.
        let pair = [machine("S1", 1), again(&machine("S1", 2), "20:00:00")];
        assert!(told(ORDERED, &pair, &units).contains("has the same serial"));
        assert_eq!(told(POOL, &pair, &units), "motivatit/houma-1 /dev/vda");
    }

    #[test]
    fn a_unit_gets_one_machine_and_a_machine_one_unit() {
        let mut unit = unborn("motivatit/houma-1");
        let spare = unborn("motivatit/houma-2");
        let first = machine("S1", 1);
        let newcomer = again(&first, "20:00:20");
        // Approved, and started again before the ticket was used.
        unit.state = UnitState::Birth;
        unit.incarnation = Incarnation(1);
        unit.machine_serial = Some("S1".into());
        let mut approved = first.clone();
        approved.state = MachineState::Approved;
        approved.unit = Some(unit.unit.clone());
        let units = [spare.clone(), unit.clone()];
        let machines = [newcomer.clone(), approved.clone()];
        assert_eq!(told(POOL, &machines, &units), "motivatit/houma-1 /dev/vda");
        assert_eq!(
            told(ORDERED, &machines, &units),
            "motivatit/houma-1 /dev/vda"
        );
        // Somebody else's ticket is out.
        let stranger = machine("S2", 2);
        let machines = [stranger, approved.clone()];
        assert_eq!(told(POOL, &machines, &units), "motivatit/houma-2 /dev/vda");
        let mine = ORDERED.replace("S1", "S2");
        assert!(told(&mine, &machines, &units).contains("has a machine already"));
        // The ticket was used: never erased again without a person.
        for state in [
            MachineState::Installing,
            MachineState::Failed,
            MachineState::Born,
        ] {
            approved.state = state;
            let machines = [newcomer.clone(), approved.clone()];
            let why = told(POOL, &machines, &units);
            assert!(why.contains("was given to motivatit/houma-1"), "{why}");
            assert_eq!(told(ORDERED, &machines, &units), why);
        }
        for state in [
            UnitState::InService,
            UnitState::Unhealthy,
            UnitState::Rebirth,
        ] {
            unit.state = state;
            let units = [unit.clone()];
            assert!(told(ORDERED, std::slice::from_ref(&first), &units).contains("has lived"));
            assert!(told(POOL, std::slice::from_ref(&first), &units).starts_with("every unit"));
        }
    }
}
