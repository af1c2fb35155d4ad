//! What would keep a machine from its birth, or a unit from a long life: told while the
//! machine waits, before anyone approves it. Pure.

use jiff::SignedDuration;
use model::machine::{DiskContent, DiskHealth, Finding, MachineFacts, Severity};
use slots::layout::MIN_DISK_SIZE;

use super::plan::MIN_MEMORY;

/// A clock that is off by more has lost its battery, not its precision.
const LOST: SignedDuration = SignedDuration::from_hours(24 * 300);

/// What became of the wish for keys in the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// They are in it.
    InTpm,
    /// The machine has none.
    NoTpm,
    /// It has one that did not do it, and why.
    TpmFailed(String),
}

/// Looks at a machine. `clock` is how far its clock was off.
pub fn check(facts: &MachineFacts, clock: Option<SignedDuration>, keys: &Keys) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |severity, text: String| findings.push(Finding { severity, text });
    if facts.firmware != "uefi" {
        add(
            Severity::Stops,
            format!(
                "started by {}: switch the firmware to UEFI network boot",
                facts.firmware
            ),
        );
    }
    if facts.memory < MIN_MEMORY {
        add(
            Severity::Stops,
            format!(
                "{} MiB of memory, a unit needs {}",
                facts.memory >> 20,
                MIN_MEMORY >> 20
            ),
        );
    }
    let fixed = || facts.disks.iter().filter(|disk| !disk.removable);
    if fixed().count() == 0 {
        add(
            Severity::Stops,
            "no fixed disk: connect one, or switch its controller on in the firmware".into(),
        );
    } else if fixed().all(|disk| disk.size < MIN_DISK_SIZE) {
        add(
            Severity::Stops,
            format!("no disk of {} GiB or more", MIN_DISK_SIZE.div_ceil(1 << 30)),
        );
    }
    for disk in fixed().filter(|disk| disk.content == DiskContent::Foreign) {
        add(
            Severity::Matters,
            format!(
                "{} holds data that is not ours, or cannot be read",
                disk.path
            ),
        );
    }
    for disk in fixed() {
        if let Some(DiskHealth::Failing { reason }) = &disk.health {
            add(
                Severity::Matters,
                format!("{} is failing, by its own word: {reason}", disk.path),
            );
        }
    }
    if let Some(clock) = clock.filter(|clock| clock.abs() > LOST) {
        let direction = if clock.is_positive() {
            "behind"
        } else {
            "ahead"
        };
        add(
            Severity::Matters,
            format!(
                "its clock was {} days {direction}: the battery of the board may be empty",
                clock.as_hours().abs() / 24
            ),
        );
    }
    match keys {
        Keys::InTpm => {}
        Keys::NoTpm => add(
            Severity::Matters,
            "no TPM 2.0: its keys are in a file, for who has the disk".into(),
        ),
        Keys::TpmFailed(problem) => add(
            Severity::Matters,
            format!("its TPM does not make keys, they are in a file: {problem}"),
        ),
    }
    if facts.serial.is_empty() {
        add(
            Severity::Matters,
            "no serial number: only its UUID and its addresses tell it from others".into(),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use model::machine::DiskFacts;

    use super::*;

    fn disk(size: u64) -> DiskFacts {
        DiskFacts {
            path: "/dev/vda".into(),
            serial: "D1".into(),
            model: String::new(),
            size,
            removable: false,
            content: DiskContent::Empty,
            health: None,
        }
    }

    fn facts() -> MachineFacts {
        MachineFacts {
            serial: "S1".into(),
            uuid: String::new(),
            product: String::new(),
            cpu: String::new(),
            cpus: 2,
            memory: 1 << 30,
            disks: vec![disk(64 << 30)],
            nics: vec![],
            firmware: "uefi".into(),
            secure_boot: true,
            tpm: true,
            findings: vec![],
        }
    }

    fn found(
        change: impl Fn(&mut MachineFacts),
        clock: i64,
        keys: &Keys,
    ) -> Vec<(Severity, String)> {
        let mut facts = facts();
        change(&mut facts);
        let clock = (clock != 0).then(|| SignedDuration::from_hours(24 * clock));
        let findings = check(&facts, clock, keys);
        findings
            .into_iter()
            .map(|finding| (finding.severity, finding.text))
            .collect()
    }

    #[test]
    fn a_good_machine_has_nothing_to_tell() {
        assert_eq!(found(|_| {}, 0, &Keys::InTpm), []);
        // Some minutes, or a time zone: corrected, and nobody's business.
        assert_eq!(found(|_| {}, 1, &Keys::InTpm), []);
    }

    #[test]
    fn each_lack_is_told_with_what_to_do() {
        type Change = fn(&mut MachineFacts);
        let cases: [(Change, Severity, &str); 7] = [
            (
                |f| f.firmware = "bios".into(),
                Severity::Stops,
                "UEFI network boot",
            ),
            (
                |f| f.memory = 256 << 20,
                Severity::Stops,
                "256 MiB of memory",
            ),
            (|f| f.disks.clear(), Severity::Stops, "no fixed disk"),
            (
                |f| f.disks[0].removable = true,
                Severity::Stops,
                "no fixed disk",
            ),
            (
                |f| f.disks[0].size = 1 << 30,
                Severity::Stops,
                "GiB or more",
            ),
            (
                |f| f.disks[0].content = DiskContent::Foreign,
                Severity::Matters,
                "/dev/vda holds data",
            ),
            (|f| f.serial.clear(), Severity::Matters, "no serial number"),
        ];
        for (change, severity, words) in cases {
            let found = found(change, 0, &Keys::InTpm);
            assert_eq!(found.len(), 1, "{words}: {found:?}");
            assert_eq!(found[0].0, severity, "{words}");
            assert!(found[0].1.contains(words), "{words}: {found:?}");
        }
        // One small disk beside a large one is no lack.
        let both = |facts: &mut MachineFacts| facts.disks.push(disk(1 << 30));
        assert_eq!(found(both, 0, &Keys::InTpm), []);
    }

    #[test]
    fn a_clock_that_has_lost_its_years_is_told_in_its_direction() {
        let behind = found(|_| {}, 20_000, &Keys::InTpm);
        assert!(behind[0].1.starts_with("its clock was 20000 days behind"));
        let ahead = found(|_| {}, -4000, &Keys::InTpm);
        assert!(ahead[0].1.starts_with("its clock was 4000 days ahead"));
    }

    #[test]
    fn keys_in_a_file_are_told_with_the_reason() {
        assert!(
            found(|_| {}, 0, &Keys::NoTpm)[0]
                .1
                .starts_with("no TPM 2.0")
        );
        let failed = Keys::TpmFailed("refused with X".into());
        let told = found(|_| {}, 0, &failed);
        assert_eq!(told[0].0, Severity::Matters);
        assert!(told[0].1.ends_with("refused with X"));
    }
}
