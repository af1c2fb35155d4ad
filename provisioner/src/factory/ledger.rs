//! The durable memory of machines: one line of JSON for each change, the last
//! line of a machine counts. An answer that follows from a change is given
//! only after the change is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use model::api::Progress;
use model::machine::{MachineCode, MachineFacts};
use model::{MacAddr, UnitName};
use serde::{Deserialize, Serialize};

use super::birth::{Birth, Boot, Event, Refusal};

/// What is kept of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRecord {
    /// Number of the machine in this ledger.
    pub id: u64,
    /// Hardware addresses of its ports.
    pub macs: BTreeSet<MacAddr>,
    /// SMBIOS UUID, unless it is one of those that vendors give to all their boards.
    pub uuid: Option<String>,
    /// SMBIOS serial number.
    pub serial: String,
    /// Where it stands.
    pub birth: Birth,
    /// The unit that it becomes or is.
    pub unit: Option<UnitName>,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When its state last changed.
    pub changed: Timestamp,
    /// The end of its installation, until the sky has taken note of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<Progress>,
}

impl MachineRecord {
    /// A name for people: unit, serial or hardware address.
    pub fn label(&self) -> String {
        let mac = self.macs.first().map(MacAddr::to_string);
        match (&self.unit, self.serial.as_str(), mac) {
            (Some(unit), "", _) => unit.to_string(),
            (Some(unit), serial, _) => format!("{unit} (serial {serial})"),
            (None, "", mac) => mac.unwrap_or_else(|| "machine without address".into()),
            (None, serial, _) => format!("serial {serial}"),
        }
    }
}

/// What is known of a machine that asks: the parts of it that it tells.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Hardware addresses.
    pub macs: &'a [MacAddr],
    /// SMBIOS UUID in its text form, if it is told.
    pub uuid: Option<&'a str>,
    /// The same UUID with its first fields in the other byte order: firmware
    /// and iPXE do not agree on it.
    pub swapped: Option<&'a str>,
    /// SMBIOS serial number, or empty.
    pub serial: &'a str,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The state machine says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No machine has this name.
    #[error("machine {0}: not in the ledger")]
    NoSuchMachine(String),
    /// More than one machine has this name.
    #[error("machine {0}: more than one machine has this name; use its MAC address")]
    Ambiguous(String),
    /// The change could not be made durable, and was not made.
    #[error("store the change of a machine")]
    Store(#[source] io::Error),
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened or read.
    #[error("open ledger {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// A line in the middle of the file is damaged.
    #[error("ledger {}:{line}: not a machine's record", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        #[source]
        problem: serde_json::Error,
    },
    /// Another provisioner uses it.
    #[error("ledger {}: another leap-provisioner uses it", .0.display())]
    InUse(PathBuf),
}

/// Where the ledger's lines are kept: a file, or what a simulation lets survive.
pub trait Journal: fmt::Debug + Send {
    /// Forgets what stands behind so many bytes: it was never acknowledged.
    ///
    /// # Errors
    /// It may still be there, and nothing may be appended.
    fn cut(&mut self, length: u64) -> io::Result<()>;

    /// Adds a line with its end. It is durable on return.
    ///
    /// # Errors
    /// It does not count, and nothing of it stands before a later line.
    fn append(&mut self, line: &[u8]) -> io::Result<()>;
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    journal: Box<dyn Journal>,
    machines: BTreeMap<u64, MachineRecord>,
}

impl Ledger {
    /// Opens a ledger, or makes an empty one. It is locked until it is dropped.
    ///
    /// # Errors
    /// [`OpenError`]. A last line without its end is no error: the power went
    /// before it was acknowledged, and it is cut off.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |error| OpenError::File(path.to_owned(), error);
        let journal = FileJournal::open(path)?;
        let file = journal.file.try_clone().map_err(failed)?;
        let (mut inner, lines) = Inner::read(path, BufReader::new(file), Box::new(journal))?;
        if lines > 64 && lines > 4 * inner.machines.len() {
            inner.compact(path).map_err(failed)?;
        }
        Ok(Self {
            inner: Mutex::new(inner),
        })
    }

    /// Goes on with the text of a journal, which errors call by `name`.
    ///
    /// # Errors
    /// [`OpenError::Damaged`], or the journal cannot be cut.
    pub fn resume(name: &Path, text: &[u8], journal: Box<dyn Journal>) -> Result<Self, OpenError> {
        let (inner, _) = Inner::read(name, text, journal)?;
        Ok(Self {
            inner: Mutex::new(inner),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between journal and map cannot happen: the map is changed by
        // one insert after the journal.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all machines in the order of their first appearance.
    pub fn machines(&self) -> Vec<MachineRecord> {
        self.lock().machines.values().cloned().collect()
    }

    /// Returns the machine that a claim fits.
    pub fn find(&self, claim: Claim<'_>) -> Option<MachineRecord> {
        let inner = self.lock();
        inner.id_of(claim).map(|id| inner.machines[&id].clone())
    }

    /// Returns the machine whose installer has made the keys of `code`.
    pub fn by_code(&self, code: &MachineCode) -> Option<MachineRecord> {
        let inner = self.lock();
        let mut all = inner.machines.values();
        all.find(|record| record.birth.code() == Some(code))
            .cloned()
    }

    /// Takes note of an installer's announcement.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] for a machine that has its disk (what its
    /// hardware told is kept all the same), and `Store`.
    pub fn announce(
        &self,
        facts: &MachineFacts,
        code: &MachineCode,
        now: Timestamp,
    ) -> Result<MachineRecord, LedgerError> {
        let mut inner = self.lock();
        let macs: Vec<MacAddr> = facts.nics.iter().map(|nic| nic.mac).collect();
        let claim = Claim {
            macs: &macs,
            uuid: Some(&facts.uuid),
            swapped: None,
            serial: &facts.serial,
        };
        let old = inner.id_of(claim).map(|id| inner.machines[&id].clone());
        let mut record = old.clone().unwrap_or_else(|| MachineRecord {
            id: inner.machines.last_key_value().map_or(1, |(id, _)| id + 1),
            macs: BTreeSet::new(),
            uuid: None,
            serial: String::new(),
            birth: Birth::Unknown,
            unit: None,
            first_seen: now,
            changed: now,
            owed: None,
        });
        record.macs.extend(&macs);
        record.uuid = usable_uuid(&facts.uuid).map(str::to_owned).or(record.uuid);
        if !facts.serial.is_empty() {
            record.serial.clone_from(&facts.serial);
        }
        let next = record.birth.next(&Event::Announced { code: code.clone() });
        if let Ok(next) = &next
            && *next != record.birth
        {
            record.birth = next.clone();
            record.changed = now;
            record.unit = None;
        }
        if old.as_ref() != Some(&record) {
            inner.store(record.clone())?;
        }
        next?;
        Ok(record)
    }

    /// Applies an event to the machine with the keys of `code`.
    ///
    /// # Errors
    /// [`LedgerError`]: then nothing has changed.
    pub fn apply(
        &self,
        code: &MachineCode,
        event: &Event,
        details: Details,
        now: Timestamp,
    ) -> Result<MachineRecord, LedgerError> {
        let record = self
            .by_code(code)
            .ok_or_else(|| LedgerError::NoSuchMachine(code.to_string()))?;
        self.change(record.id, event, details, now)
    }

    /// Applies an event to the machine that an operator names by hardware
    /// address, UUID, serial number, code or unit.
    ///
    /// # Errors
    /// [`LedgerError`]: then nothing has changed.
    pub fn apply_named(
        &self,
        name: &str,
        event: &Event,
        now: Timestamp,
    ) -> Result<MachineRecord, LedgerError> {
        let record = self.by_name(name)?;
        self.change(record.id, event, Details::default(), now)
    }

    /// Returns the machine that an operator names.
    ///
    /// # Errors
    /// None or several have the name.
    pub fn by_name(&self, name: &str) -> Result<MachineRecord, LedgerError> {
        let mac = name.parse::<MacAddr>().ok();
        let code = name.parse::<MachineCode>().ok();
        let mut found: Vec<MachineRecord> = self.machines();
        found.retain(|record| {
            mac.is_some_and(|mac| record.macs.contains(&mac))
                || record.uuid.as_deref() == Some(name.to_lowercase().as_str())
                || (!record.serial.is_empty() && record.serial == name)
                || (code.is_some() && record.birth.code() == code.as_ref())
                || record
                    .unit
                    .as_ref()
                    .is_some_and(|unit| unit.to_string() == name)
        });
        match found.len() {
            0 => Err(LedgerError::NoSuchMachine(name.to_owned())),
            1 => Ok(found.remove(0)),
            _ => Err(LedgerError::Ambiguous(name.to_owned())),
        }
    }

    /// Forgets that the sky has to be told the end of an installation.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn settle(&self, id: u64) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        match inner.machines.get(&id).cloned() {
            Some(mut record) if record.owed.is_some() => {
                record.owed = None;
                inner.store(record)
            }
            _ => Ok(()),
        }
    }

    fn change(
        &self,
        id: u64,
        event: &Event,
        details: Details,
        now: Timestamp,
    ) -> Result<MachineRecord, LedgerError> {
        let mut inner = self.lock();
        let old = inner
            .machines
            .get(&id)
            .cloned()
            .ok_or_else(|| LedgerError::NoSuchMachine(id.to_string()))?;
        let mut record = old.clone();
        record.birth = old.birth.next(event)?;
        if record.birth != old.birth {
            record.changed = now;
        }
        record.unit = details.unit.or(record.unit);
        record.owed = details.owed.or(record.owed);
        if record != old {
            inner.store(record.clone())?;
        }
        Ok(record)
    }
}

/// What a change brings along.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// The unit that the machine becomes.
    pub unit: Option<UnitName>,
    /// What the sky has to be told.
    pub owed: Option<Progress>,
}

impl Inner {
    /// Reads what was acknowledged and cuts off the rest. Tells the number of lines too.
    fn read(
        name: &Path,
        mut text: impl io::BufRead,
        mut journal: Box<dyn Journal>,
    ) -> Result<(Self, usize), OpenError> {
        let failed = |error| OpenError::File(name.to_owned(), error);
        let mut machines = BTreeMap::new();
        let (mut length, mut lines) = (0, 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = text.read_until(b'\n', &mut line).map_err(failed)?;
            // The end, or a line that was never acknowledged.
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            lines += 1;
            let record: MachineRecord =
                serde_json::from_slice(&line).map_err(|problem| OpenError::Damaged {
                    path: name.to_owned(),
                    line: lines,
                    problem,
                })?;
            machines.insert(record.id, record);
            length += u64::try_from(read).expect("a line is shorter than 64 bits");
        }
        journal.cut(length).map_err(failed)?;
        Ok((Self { journal, machines }, lines))
    }

    fn id_of(&self, claim: Claim<'_>) -> Option<u64> {
        self.machines
            .values()
            .filter_map(|record| Some((likeness(record, claim)?, record)))
            // Of two that fit alike, the one with a disk: booting a disk harms none.
            .max_by_key(|(likeness, record)| {
                let has_disk = matches!(record.birth.boot(), Boot::LocalDisk(_));
                (*likeness, has_disk, record.changed)
            })
            .map(|(_, record)| record.id)
    }

    fn store(&mut self, record: MachineRecord) -> Result<(), LedgerError> {
        let line = line_of(&record).map_err(LedgerError::Store)?;
        self.journal.append(&line).map_err(LedgerError::Store)?;
        self.machines.insert(record.id, record);
        Ok(())
    }

    fn compact(&mut self, path: &Path) -> io::Result<()> {
        let mut text = Vec::new();
        for record in self.machines.values() {
            text.extend(line_of(record)?);
        }
        // The lock is on the old file: it is held until the new one has its own.
        edge::durable::write(path, &text, edge::durable::Mode::Public).map_err(io::Error::other)?;
        let mut journal = FileJournal::open(path).map_err(io::Error::other)?;
        journal.cut(u64::try_from(text.len()).map_err(io::Error::other)?)?;
        self.journal = Box::new(journal);
        Ok(())
    }
}

fn line_of(record: &MachineRecord) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// Returns how well a machine fits a claim, or `None` where it is another.
///
/// A hardware address alone names a machine. A different UUID or serial number
/// says that the port was moved to another one.
fn likeness(record: &MachineRecord, claim: Claim<'_>) -> Option<u8> {
    if !claim.macs.iter().any(|mac| record.macs.contains(mac)) {
        return None;
    }
    let claimed = claim.uuid.and_then(usable_uuid);
    match (record.uuid.as_deref(), claimed) {
        (Some(known), Some(claimed)) if known == claimed => Some(3),
        (Some(known), Some(_)) if claim.swapped == Some(known) => Some(2),
        (Some(_), Some(_)) => None,
        _ if !record.serial.is_empty() && !claim.serial.is_empty() => {
            (record.serial == claim.serial).then_some(2)
        }
        _ => Some(1),
    }
}

/// Returns a UUID that names one machine; some vendors give the same to many.
fn usable_uuid(uuid: &str) -> Option<&str> {
    let digits: String = uuid.chars().filter(|c| *c != '-').collect();
    let same = |digit: char| digits.chars().all(|c| c.eq_ignore_ascii_case(&digit));
    let shared = digits.is_empty()
        || same('0')
        || same('f')
        || uuid.eq_ignore_ascii_case("03000200-0400-0500-0006-000700080009")
        || uuid.eq_ignore_ascii_case("00020003-0004-0005-0006-000700080009");
    (!shared).then_some(uuid)
}

/// A locked file.
#[derive(Debug)]
struct FileJournal {
    path: PathBuf,
    file: File,
    length: u64,
}

impl FileJournal {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |error| OpenError::File(path.to_owned(), error);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(OpenError::InUse(path.to_owned()));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            length: 0,
        })
    }
}

impl Journal for FileJournal {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.file.seek(SeekFrom::Start(length))?;
        self.file.sync_all()?;
        if let Some(dir) = self.path.parent() {
            edge::durable::sync_dir(dir)?;
        }
        self.length = length;
        Ok(())
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self
            .file
            .write_all(line)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // What was half written must not stand before a later line.
            self.file.set_len(self.length)?;
            self.file.seek(SeekFrom::Start(self.length))?;
            return Err(error);
        }
        self.length += u64::try_from(line.len()).expect("a line is shorter than 64 bits");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::machine::NicFacts;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn facts(mac: u8, uuid: &str, serial: &str) -> MachineFacts {
        MachineFacts {
            serial: serial.into(),
            uuid: uuid.into(),
            product: String::new(),
            cpu: String::new(),
            cpus: 2,
            memory: 1 << 30,
            disks: vec![],
            nics: vec![NicFacts {
                name: "eth0".into(),
                mac: MacAddr([2, 0, 0, 0, 0, mac]),
                link: true,
            }],
            firmware: "uefi".into(),
            secure_boot: false,
            tpm: false,
            findings: vec![],
        }
    }

    fn code(text: &str) -> MachineCode {
        text.parse().unwrap()
    }

    fn claim<'a>(macs: &'a [MacAddr], uuid: Option<&'a str>) -> Claim<'a> {
        Claim {
            macs,
            uuid,
            swapped: None,
            serial: "",
        }
    }

    /// Takes one machine to its birth.
    fn give_birth(ledger: &Ledger, facts: &MachineFacts, code: &MachineCode) {
        let ticket = "t1".to_owned();
        ledger.announce(facts, code, NOW).unwrap();
        let events = [
            Event::TicketShown {
                code: code.clone(),
                ticket: ticket.clone(),
            },
            Event::Redeemed {
                code: code.clone(),
                ticket,
            },
            Event::Done { code: code.clone() },
        ];
        for event in events {
            ledger.apply(code, &event, Details::default(), NOW).unwrap();
        }
    }

    #[test]
    fn a_born_machine_is_still_born_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/machines.jsonl");
        let facts = facts(1, "u1", "s1");
        let ledger = Ledger::open(&path).unwrap();
        give_birth(&ledger, &facts, &code("7QK2-M9XD"));
        let before = ledger.machines();
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.machines(), before);
        let macs = [MacAddr([2, 0, 0, 0, 0, 1])];
        for uuid in [None, Some("u1")] {
            let found = ledger.find(claim(&macs, uuid)).unwrap();
            assert!(matches!(found.birth.boot(), Boot::LocalDisk(_)));
        }
        let again = ledger.announce(&facts, &code("0000-0001"), NOW);
        assert!(matches!(again, Err(LedgerError::Refused(Refusal::HasDisk))));
    }

    #[test]
    fn every_prefix_of_the_journal_opens_to_a_state_that_was_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.jsonl");
        let ledger = Ledger::open(&path).unwrap();
        give_birth(&ledger, &facts(1, "u1", "s1"), &code("7QK2-M9XD"));
        drop(ledger);
        let whole = std::fs::read(&path).unwrap();
        let words = ["", "held", "approved", "installing", "born"];
        // Around each line's end, and now and then between.
        let near_end = |cut: usize| {
            let end = |at: usize| at > 0 && whole.get(at - 1) == Some(&b'\n');
            end(cut) || end(cut + 1) || end(cut.saturating_sub(1))
        };
        for cut in (0..=whole.len()).filter(|cut| cut % 97 == 0 || near_end(*cut)) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            let full = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let machines = ledger.machines();
            let word = machines.first().map_or("", |record| record.birth.word());
            assert_eq!(word, words[full], "cut at {cut}");
            // And it goes on from there.
            let other = facts(9, "u9", "s9");
            ledger.announce(&other, &code("0000-0009"), NOW).unwrap();
            drop(ledger);
            let reopened = Ledger::open(&path).unwrap();
            assert_eq!(reopened.machines().len(), machines.len() + 1);
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error_and_not_a_forgotten_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.jsonl");
        std::fs::write(&path, "nonsense\n").unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { line: 1, .. }));
    }

    #[test]
    fn a_second_provisioner_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.jsonl");
        let _first = Ledger::open(&path).unwrap();
        assert!(matches!(Ledger::open(&path), Err(OpenError::InUse(_))));
    }

    #[test]
    fn a_long_journal_is_made_short_and_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machines.jsonl");
        let ledger = Ledger::open(&path).unwrap();
        give_birth(&ledger, &facts(1, "u1", "s1"), &code("7QK2-M9XD"));
        for _ in 0..40 {
            for event in [Event::Invited, Event::Uninvited] {
                ledger.apply_named("s1", &event, NOW).unwrap();
            }
        }
        let before = ledger.machines();
        drop(ledger);
        let long = std::fs::metadata(&path).unwrap().len();
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.machines(), before);
        assert!(std::fs::metadata(&path).unwrap().len() < long / 10);
        ledger.apply_named("s1", &Event::Invited, NOW).unwrap();
        assert!(matches!(Ledger::open(&path), Err(OpenError::InUse(_))));
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.machines()[0].birth, Birth::Invited);
    }

    #[test]
    fn a_port_moved_to_another_machine_does_not_take_the_disk_along() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("machines.jsonl")).unwrap();
        give_birth(&ledger, &facts(1, "u1", "s1"), &code("7QK2-M9XD"));
        let macs = [MacAddr([2, 0, 0, 0, 0, 1])];
        assert!(ledger.find(claim(&macs, Some("u2"))).is_none());
        let other = facts(1, "u2", "s2");
        ledger.announce(&other, &code("0000-0002"), NOW).unwrap();
        assert_eq!(ledger.machines().len(), 2);
        let found = ledger.find(claim(&macs, Some("u1"))).unwrap();
        assert_eq!(found.serial, "s1");
    }

    #[test]
    fn a_uuid_that_a_vendor_gives_to_all_its_boards_names_none() {
        let shared = "03000200-0400-0500-0006-000700080009";
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("machines.jsonl")).unwrap();
        give_birth(&ledger, &facts(1, shared, ""), &code("7QK2-M9XD"));
        assert_eq!(ledger.machines()[0].uuid, None);
        let other = [MacAddr([2, 0, 0, 0, 0, 2])];
        assert!(ledger.find(claim(&other, Some(shared))).is_none());
        let same = [MacAddr([2, 0, 0, 0, 0, 1])];
        assert!(ledger.find(claim(&same, Some(shared))).is_some());
    }

    #[test]
    fn firmware_with_the_other_byte_order_is_the_same_machine() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("machines.jsonl")).unwrap();
        give_birth(&ledger, &facts(1, "u1", "s1"), &code("7QK2-M9XD"));
        let macs = [MacAddr([2, 0, 0, 0, 0, 1])];
        let found = ledger.find(Claim {
            macs: &macs,
            uuid: Some("1u"),
            swapped: Some("u1"),
            serial: "",
        });
        assert!(found.is_some());
    }
}
