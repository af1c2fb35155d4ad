//! Who has which address, until when; and how that outlives a restart.
//!
//! Leases are kept by hardware address alone.
//! Off-spec: RFC 2131 prefers the client identifier (option 61). Firmware, boot
//! loader and operating system of one machine send different ones, so a machine
//! would use up three addresses and change its address in mid-boot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use model::id::MacAddr;
use thiserror::Error;

/// How long an offered address is kept for the client that it was offered to.
const OFFER_HOLD: Duration = Duration::from_secs(60);
/// How long an address that a client declined is not given out.
const DECLINE_HOLD: Duration = Duration::from_secs(3600);

/// What an address is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Offered, not taken yet. Never stored.
    Offered,
    /// In use.
    Bound,
    /// Given back; remembered so that its last user gets it again.
    Released,
    /// In use by somebody whom we do not know.
    Declined,
}

/// The state of one address, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The address.
    pub address: Ipv4Addr,
    /// Its last user.
    pub mac: MacAddr,
    /// What it is used for.
    pub state: LeaseState,
    /// End of that use, in seconds of Unix time. Afterwards it may be given away.
    pub until: i64,
}

/// The addresses of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// First and last address that may be given out.
    pub range: RangeInclusive<Ipv4Addr>,
    /// Addresses for one machine alone, inside the range or not.
    pub reservations: BTreeMap<MacAddr, Ipv4Addr>,
    /// Addresses for whichever machine is plugged in at one place.
    pub places: BTreeSet<Ipv4Addr>,
    /// Length of a lease.
    pub lease: Duration,
}

/// Who wants an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Its hardware address.
    pub mac: MacAddr,
    /// The address of the place where it is plugged in, if a relay told a place
    /// that has one. A reservation for the machine itself comes first.
    pub place: Option<Ipv4Addr>,
}

impl From<MacAddr> for Client {
    fn from(mac: MacAddr) -> Self {
        Self { mac, place: None }
    }
}

/// Why a machine cannot have an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// All addresses are in use.
    #[error("no free address: all of the pool are leased or declined")]
    Exhausted,
    /// Another machine has it.
    #[error("{0} belongs to {1}")]
    Taken(Ipv4Addr, MacAddr),
    /// Neither in the pool nor reserved for the machine.
    #[error("{0} is not an address of this network's pool")]
    Foreign(Ipv4Addr),
    /// The machine has another address by reservation.
    #[error("{0} is not the reserved address {1}")]
    Reserved(Ipv4Addr, Ipv4Addr),
}

/// All leases. Pure: it knows neither clock nor disk.
#[derive(Debug)]
pub struct LeaseTable {
    pools: Vec<PoolState>,
    leases: HashMap<Ipv4Addr, LeaseRecord>,
    by_mac: HashMap<MacAddr, Ipv4Addr>,
}

#[derive(Debug)]
struct PoolState {
    pool: Pool,
    reserved: BTreeSet<Ipv4Addr>,
    /// Addresses of the range from here on were never used.
    fresh: u32,
    /// Used addresses by the end of their use: the one idle longest comes first.
    by_end: BTreeSet<(i64, Ipv4Addr)>,
}

impl LeaseTable {
    /// Returns a table of the pools with the stored records in it. Records of
    /// addresses that are in no pool any more are dropped.
    #[must_use]
    pub fn new(pools: Vec<Pool>, records: impl IntoIterator<Item = LeaseRecord>) -> Self {
        let pools = pools
            .into_iter()
            .map(|pool| PoolState {
                reserved: pool
                    .reservations
                    .values()
                    .chain(&pool.places)
                    .copied()
                    .collect(),
                fresh: u32::from(*pool.range.start()),
                by_end: BTreeSet::new(),
                pool,
            })
            .collect();
        let mut table = Self {
            pools,
            leases: HashMap::new(),
            by_mac: HashMap::new(),
        };
        for record in records {
            if table.pools.iter().any(|pool| pool.holds(record.address)) {
                table.put(record);
            }
        }
        table
    }

    /// Returns everything worth storing.
    #[must_use]
    pub fn records(&self) -> Vec<LeaseRecord> {
        let stored = |record: &&LeaseRecord| record.state != LeaseState::Offered;
        let mut records: Vec<_> = self.leases.values().filter(stored).copied().collect();
        records.sort_by_key(|record| record.address);
        records
    }

    /// Returns the last user of each address.
    pub fn users(&self) -> impl Iterator<Item = (Ipv4Addr, MacAddr)> {
        self.by_mac.iter().map(|(mac, address)| (*address, *mac))
    }

    /// Returns the address that a machine has or had last.
    #[must_use]
    pub fn address_of(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
    }

    /// Tells whether a machine has an address now, by lease or by offer.
    #[must_use]
    pub fn has(&self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> bool {
        self.owned(mac, address).is_some()
            && self
                .leases
                .get(&address)
                .is_some_and(|lease| lease.until > now.as_second())
    }

    /// Chooses an address for a machine and keeps it for a minute: the reserved
    /// one, else that of its place, else the one it had, else the one it wants, else one that was never
    /// used, else the one that is unused longest.
    ///
    /// # Errors
    /// [`Unavailable::Exhausted`].
    pub fn offer(
        &mut self,
        pool: usize,
        client: impl Into<Client>,
        wanted: Option<Ipv4Addr>,
        now: Timestamp,
    ) -> Result<Ipv4Addr, Unavailable> {
        let client = client.into();
        let (second, mac) = (now.as_second(), client.mac);
        let own = self.pools[pool].own(client);
        let candidates = [own, self.address_of(mac), wanted];
        let known = candidates
            .into_iter()
            .flatten()
            .find(|a| self.usable(pool, client, *a, now).is_ok());
        let address = match known {
            Some(address) => address,
            None => self.pools[pool]
                .unused(second, &self.leases)
                .ok_or(Unavailable::Exhausted)?,
        };
        // A running lease of the same machine is longer than the hold, and
        // stays: the machine may not take this offer.
        let running = self.leases.get(&address).is_some_and(|lease| {
            let runs = self.pools[pool].runs(lease.until, second);
            lease.mac == mac && lease.state == LeaseState::Bound && runs
        });
        if !running {
            let until = end(now, OFFER_HOLD);
            self.put(LeaseRecord {
                address,
                mac,
                state: LeaseState::Offered,
                until,
            });
        }
        Ok(address)
    }

    /// Gives an address to a machine until `now + duration`, or prolongs its lease.
    ///
    /// # Errors
    /// [`Unavailable`] if the machine cannot have this address.
    pub fn bind(
        &mut self,
        pool: usize,
        client: impl Into<Client>,
        address: Ipv4Addr,
        duration: Duration,
        now: Timestamp,
    ) -> Result<LeaseRecord, Unavailable> {
        let client = client.into();
        self.usable(pool, client, address, now)?;
        // Whose lease ran out may use the address all the same, and so may a stranger:
        // our clock may have jumped. Another machine has it only by an offer, before
        // which the link was asked; one that comes with it from elsewhere is sent to
        // ask for one.
        if let Some(lease) = self.leases.get(&address)
            && client.place != Some(address)
            && match lease.state {
                LeaseState::Declined => true,
                LeaseState::Bound => lease.mac != client.mac,
                LeaseState::Offered | LeaseState::Released => false,
            }
        {
            return Err(Unavailable::Taken(address, lease.mac));
        }
        let record = LeaseRecord {
            address,
            mac: client.mac,
            state: LeaseState::Bound,
            until: end(now, duration),
        };
        self.put(record);
        Ok(record)
    }

    /// Takes an address back from the machine that has it. `None` if it has not.
    pub fn release(
        &mut self,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Option<LeaseRecord> {
        self.owned(mac, address)?;
        let record = LeaseRecord {
            address,
            mac,
            state: LeaseState::Released,
            until: now.as_second(),
        };
        self.put(record);
        Some(record)
    }

    /// Notes that somebody else uses the address. `None` if the machine that
    /// says so was not given it: else anybody could empty the pool.
    pub fn decline(
        &mut self,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Option<LeaseRecord> {
        self.owned(mac, address)?;
        let until = end(now, DECLINE_HOLD);
        let record = LeaseRecord {
            address,
            mac,
            state: LeaseState::Declined,
            until,
        };
        self.put(record);
        self.by_mac.remove(&mac);
        Some(record)
    }

    /// Forgets an offer that the machine did not take.
    pub fn withdraw(&mut self, mac: MacAddr, now: Timestamp) {
        let Some(address) = self.address_of(mac) else {
            return;
        };
        if let Some(lease) = self.leases.get(&address)
            && lease.state == LeaseState::Offered
        {
            let record = LeaseRecord {
                until: now.as_second(),
                ..*lease
            };
            self.put(record);
        }
    }

    fn owned(&self, mac: MacAddr, address: Ipv4Addr) -> Option<()> {
        let lease = self.leases.get(&address)?;
        (lease.mac == mac && matches!(lease.state, LeaseState::Bound | LeaseState::Offered))
            .then_some(())
    }

    fn usable(
        &self,
        pool: usize,
        client: Client,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<(), Unavailable> {
        let (state, mac) = (&self.pools[pool], client.mac);
        let own = state.own(client);
        let runs = |lease: &LeaseRecord| state.runs(lease.until, now.as_second());
        let blocked = |lease: &LeaseRecord| {
            // Whoever is plugged in at a place now has its address; the machine
            // that was there before is not.
            let successor = client.place == Some(lease.address) && own == client.place;
            runs(lease)
                && match lease.state {
                    LeaseState::Declined => true,
                    LeaseState::Released => false,
                    LeaseState::Offered | LeaseState::Bound => lease.mac != mac && !successor,
                }
        };
        if let Some(lease) = self.leases.get(&address)
            && blocked(lease)
        {
            return Err(Unavailable::Taken(address, lease.mac));
        }
        if let Some(own) = own {
            // A declined reservation falls back to the pool rather than to nothing.
            let lost = self.leases.get(&own).is_some_and(blocked);
            return match address {
                address if address == own => Ok(()),
                address if lost && state.in_range(address) => Ok(()),
                address => Err(Unavailable::Reserved(address, own)),
            };
        }
        // A renewal goes round the relay, so nobody tells its place.
        let renews = self
            .leases
            .get(&address)
            .is_some_and(|lease| lease.mac == mac && lease.state == LeaseState::Bound);
        if state.in_range(address)
            || (renews && client.place.is_none() && state.pool.places.contains(&address))
        {
            Ok(())
        } else {
            Err(Unavailable::Foreign(address))
        }
    }

    fn put(&mut self, record: LeaseRecord) {
        if let Some(old) = self.leases.insert(record.address, record) {
            for pool in &mut self.pools {
                pool.by_end.remove(&(old.until, old.address));
            }
            if old.mac != record.mac && self.by_mac.get(&old.mac) == Some(&old.address) {
                self.by_mac.remove(&old.mac);
            }
        }
        for pool in &mut self.pools {
            if pool.in_range(record.address) {
                pool.by_end.insert((record.until, record.address));
            }
        }
        if record.state != LeaseState::Declined {
            self.by_mac.insert(record.mac, record.address);
        }
    }
}

impl PoolState {
    /// The one address that a client is to have.
    fn own(&self, client: Client) -> Option<Ipv4Addr> {
        let reserved = self.pool.reservations.get(&client.mac).copied();
        reserved.or(client.place)
    }

    fn in_range(&self, address: Ipv4Addr) -> bool {
        self.pool.range.contains(&address) && !self.reserved.contains(&address)
    }

    fn holds(&self, address: Ipv4Addr) -> bool {
        self.pool.range.contains(&address) || self.reserved.contains(&address)
    }

    fn unused(&mut self, second: i64, leases: &HashMap<Ipv4Addr, LeaseRecord>) -> Option<Ipv4Addr> {
        let last = u32::from(*self.pool.range.end());
        while self.fresh <= last {
            let address = Ipv4Addr::from(self.fresh);
            if self.in_range(address) && !leases.contains_key(&address) {
                return Some(address);
            }
            self.fresh = self.fresh.checked_add(1)?;
        }
        let ends = [self.by_end.first(), self.by_end.last()];
        let mut ends = ends.into_iter().flatten();
        ends.find(|(until, _)| !self.runs(*until, second))
            .map(|(_, address)| *address)
    }

    /// Tells whether a use that ends at `until` runs. One that ends later than any
    /// that begins now was noted while our clock stood ahead, for days or years: it
    /// does not keep the address, whose user is asked for on the link.
    fn runs(&self, until: i64, second: i64) -> bool {
        let longest = self.pool.lease.max(DECLINE_HOLD).as_secs();
        let latest = second.saturating_add_unsigned(longest.saturating_mul(2));
        until > second && until <= latest
    }
}

fn end(now: Timestamp, duration: Duration) -> i64 {
    now.as_second().saturating_add_unsigned(duration.as_secs())
}

/// Keeps records across restarts.
pub trait LeaseStore: Send + 'static {
    /// Returns the last record of each address.
    ///
    /// # Errors
    /// The store cannot be read.
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>>;

    /// Stores records. They are durable when it returns.
    ///
    /// # Errors
    /// They may or may not be stored; the server answers none of the requests
    /// that they belong to.
    fn append(&mut self, records: &[LeaseRecord]) -> io::Result<()>;
}

/// Keeps nothing: for proxyDHCP, which gives no addresses, and for tests.
#[derive(Debug, Default)]
pub struct NoStore;

impl LeaseStore for NoStore {
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>> {
        Ok(Vec::new())
    }

    fn append(&mut self, _: &[LeaseRecord]) -> io::Result<()> {
        Ok(())
    }
}

/// A journal: one line for each record, the last of an address counts.
///
/// Each line ends with its CRC-32, so that what a power cut tore is not read as
/// a lease. The journal is rewritten when most of it is outdated.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    file: File,
    live: HashMap<Ipv4Addr, LeaseRecord>,
    lines: usize,
}

impl FileStore {
    /// Opens or creates a journal.
    ///
    /// # Errors
    /// The file cannot be created, read or rewritten.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (records, damaged) = read_journal(&text);
        if damaged > 0 {
            tracing::warn!(path = %path.display(), damaged, "damaged lines in lease journal ignored");
        }
        let live: HashMap<_, _> = records.into_iter().collect();
        // Rewriting drops a torn tail, onto which the next line would be glued.
        let file = rewrite(&path, &live)?;
        let lines = live.len();
        Ok(Self {
            path,
            file,
            live,
            lines,
        })
    }
}

impl LeaseStore for FileStore {
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>> {
        Ok(self.live.values().copied().collect())
    }

    fn append(&mut self, records: &[LeaseRecord]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let text = write_journal(records);
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        self.lines += records.len();
        for record in records {
            self.live.insert(record.address, *record);
        }
        if self.lines > 4096 + 4 * self.live.len() {
            self.file = rewrite(&self.path, &self.live)?;
            self.lines = self.live.len();
        }
        Ok(())
    }
}

/// Returns the lines of a journal for records.
#[must_use]
pub fn write_journal(records: &[LeaseRecord]) -> String {
    let mut text = String::with_capacity(records.len() * 80);
    for record in records {
        encode(record, &mut text);
    }
    text
}

/// Returns the last record of each address in a journal, and how many lines of it
/// are damaged: a power cut tears the last one, a failing disk any.
#[must_use]
pub fn read_journal(text: &[u8]) -> (BTreeMap<Ipv4Addr, LeaseRecord>, usize) {
    let mut live = BTreeMap::new();
    let mut damaged = 0;
    let lines = text.split(|byte| *byte == b'\n');
    for line in lines.filter(|line| !line.is_empty()) {
        match decode(line) {
            Some(record) => {
                live.insert(record.address, record);
            }
            None => damaged += 1,
        }
    }
    (live, damaged)
}

fn rewrite(path: &Path, live: &HashMap<Ipv4Addr, LeaseRecord>) -> io::Result<File> {
    let mut records: Vec<_> = live.values().copied().collect();
    records.sort_by_key(|record| record.address);
    let text = write_journal(&records);
    let next = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

fn encode(record: &LeaseRecord, out: &mut String) {
    let LeaseRecord {
        address,
        mac,
        state,
        until,
    } = record;
    let state = match state {
        LeaseState::Offered => "offered",
        LeaseState::Bound => "bound",
        LeaseState::Released => "released",
        LeaseState::Declined => "declined",
    };
    let line = format!("{address} {mac} {state} {until}");
    let sum = crc32(line.as_bytes());
    out.push_str(&line);
    out.push_str(&format!(" {sum:08x}\n"));
}

fn decode(line: &[u8]) -> Option<LeaseRecord> {
    let (line, sum) = std::str::from_utf8(line).ok()?.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16).ok()? != crc32(line.as_bytes()) {
        return None;
    }
    let mut words = line.split(' ');
    let record = LeaseRecord {
        address: words.next()?.parse().ok()?,
        mac: words.next()?.parse().ok()?,
        state: match words.next()? {
            "bound" => LeaseState::Bound,
            "released" => LeaseState::Released,
            "declined" => LeaseState::Declined,
            _ => return None,
        },
        until: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(record)
}

/// CRC-32 of IEEE 802.3, bit by bit: the lines are short.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn table(first: u8, last: u8, reservations: &[(u8, u8)]) -> LeaseTable {
        let reservations = reservations
            .iter()
            .map(|(m, a)| (mac(*m), ip(*a)))
            .collect();
        LeaseTable::new(
            vec![Pool {
                range: ip(first)..=ip(last),
                reservations,
                places: BTreeSet::from([ip(90)]),
                lease: HOUR,
            }],
            [],
        )
    }

    #[test]
    fn an_expired_lease_is_another_machines_only_by_an_offer() {
        let mut table = table(10, 10, &[]);
        table.bind(0, mac(1), ip(10), HOUR, at(0)).unwrap();
        let taken = Err(Unavailable::Taken(ip(10), mac(1)));
        assert_eq!(table.bind(0, mac(2), ip(10), HOUR, at(9_000)), taken);
        assert_eq!(table.offer(0, mac(2), None, at(9_000)), Ok(ip(10)));
        assert!(table.bind(0, mac(2), ip(10), HOUR, at(9_001)).is_ok());
        table.release(mac(2), ip(10), at(9_002));
        assert!(table.bind(0, mac(3), ip(10), HOUR, at(9_003)).is_ok());
        table.decline(mac(3), ip(10), at(9_004)).unwrap();
        let later = at(9_004 + 3_601);
        assert!(table.bind(0, mac(3), ip(10), HOUR, later).is_err());
        assert_eq!(table.offer(0, mac(3), None, later), Ok(ip(10)));
        assert!(table.bind(0, mac(3), ip(10), HOUR, later).is_ok());
    }

    #[test]
    fn leases_of_a_clock_that_stood_years_ahead_do_not_use_the_pool_up() {
        let mut table = table(10, 11, &[]);
        let year = 365 * 86_400;
        table.bind(0, mac(1), ip(10), HOUR, at(year)).unwrap();
        table.offer(0, mac(2), None, at(year)).unwrap();
        table.decline(mac(2), ip(11), at(year)).unwrap();
        let full = Err(Unavailable::Exhausted);
        assert_eq!(table.offer(0, mac(3), None, at(year)), full);
        assert_eq!(table.offer(0, mac(1), None, at(0)), Ok(ip(10)), "its own");
        assert_eq!(table.offer(0, mac(3), None, at(0)), Ok(ip(11)));
        // A step back of seconds ends nothing.
        table.bind(0, mac(3), ip(11), HOUR, at(5)).unwrap();
        table.bind(0, mac(1), ip(10), HOUR, at(5)).unwrap();
        assert_eq!(table.offer(0, mac(4), None, at(0)), full);
    }

    #[test]
    fn a_machine_keeps_its_address() {
        let mut table = table(10, 12, &[]);
        let first = table.offer(0, mac(1), None, at(0)).unwrap();
        table.bind(0, mac(1), first, HOUR, at(0)).unwrap();
        assert_eq!(
            table.offer(0, mac(2), Some(first), at(1)),
            Ok(ip(11)),
            "taken"
        );
        assert_eq!(
            table.offer(0, mac(1), None, at(9_000)),
            Ok(first),
            "long after its end"
        );
        table.release(mac(1), first, at(9_001));
        assert_eq!(
            table.offer(0, mac(1), None, at(9_002)),
            Ok(first),
            "after giving it back"
        );
    }

    #[test]
    fn a_full_pool_gives_nothing_until_a_lease_ends() {
        let mut table = table(10, 11, &[]);
        for machine in 1..=2 {
            let address = table.offer(0, mac(machine), None, at(0)).unwrap();
            table
                .bind(0, mac(machine), address, HOUR, at(i64::from(machine)))
                .unwrap();
        }
        assert_eq!(
            table.offer(0, mac(3), None, at(100)),
            Err(Unavailable::Exhausted)
        );
        // The one that ended first is given away first.
        assert_eq!(table.offer(0, mac(3), None, at(3_602)), Ok(ip(10)));
    }

    #[test]
    fn an_offer_that_was_not_taken_is_free_after_a_minute() {
        let mut table = table(10, 10, &[]);
        assert_eq!(table.offer(0, mac(1), None, at(0)), Ok(ip(10)));
        assert_eq!(
            table.offer(0, mac(2), None, at(59)),
            Err(Unavailable::Exhausted)
        );
        assert_eq!(table.offer(0, mac(2), None, at(60)), Ok(ip(10)));
        assert!(table.records().is_empty(), "offers are not stored");
    }

    #[test]
    fn the_address_of_a_place_goes_to_whoever_is_plugged_in_there() {
        let at_place = |number| Client {
            mac: mac(number),
            place: Some(ip(90)),
        };
        let mut table = table(10, 12, &[(7, 11)]);
        assert_eq!(table.offer(0, at_place(1), Some(ip(10)), at(0)), Ok(ip(90)));
        table.bind(0, at_place(1), ip(90), HOUR, at(0)).unwrap();
        // Its renewal goes round the relay.
        assert!(table.bind(0, mac(1), ip(90), HOUR, at(1)).is_ok());
        assert_eq!(table.offer(0, mac(2), Some(ip(90)), at(2)), Ok(ip(10)));
        // The machine is replaced, and its lease still runs.
        assert_eq!(table.offer(0, at_place(3), None, at(3)), Ok(ip(90)));
        table.bind(0, at_place(3), ip(90), HOUR, at(3)).unwrap();
        assert!(table.bind(0, mac(1), ip(90), HOUR, at(4)).is_err());
        assert_eq!(table.offer(0, at_place(7), None, at(5)), Ok(ip(11)));
        // Somebody else uses it: the pool is better than nothing.
        table.decline(mac(3), ip(90), at(6)).unwrap();
        assert_eq!(table.offer(0, at_place(3), None, at(7)), Ok(ip(12)));
    }

    #[test]
    fn a_reserved_address_goes_to_its_machine_alone() {
        let mut table = table(10, 11, &[(7, 10), (8, 99), (9, 98)]);
        assert_eq!(table.offer(0, mac(1), Some(ip(10)), at(0)), Ok(ip(11)));
        assert_eq!(table.offer(0, mac(7), None, at(0)), Ok(ip(10)));
        assert_eq!(
            table.offer(0, mac(8), Some(ip(11)), at(0)),
            Ok(ip(99)),
            "outside the range"
        );
        let other = table.bind(0, mac(8), ip(11), HOUR, at(0));
        assert!(
            matches!(
                other,
                Err(Unavailable::Taken(..) | Unavailable::Reserved(..))
            ),
            "{other:?}"
        );
        let stolen = table.bind(0, mac(1), ip(98), HOUR, at(0));
        assert_eq!(stolen, Err(Unavailable::Foreign(ip(98))));
    }

    #[test]
    fn a_declined_address_rests_and_only_its_holder_can_decline_it() {
        let mut table = table(10, 11, &[]);
        let address = table.offer(0, mac(1), None, at(0)).unwrap();
        assert_eq!(table.decline(mac(2), address, at(0)), None);
        assert!(table.decline(mac(1), address, at(0)).is_some());
        assert_eq!(table.offer(0, mac(1), Some(address), at(1)), Ok(ip(11)));
        assert_eq!(
            table.offer(0, mac(2), None, at(3_599)),
            Ok(ip(11)),
            "the offer ran out"
        );
        assert_eq!(
            table.offer(0, mac(3), None, at(3_601)),
            Ok(address),
            "an hour later"
        );
    }

    #[test]
    fn stored_leases_come_back_and_torn_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases");
        let record = |last: u8, until| LeaseRecord {
            address: ip(last),
            mac: mac(last),
            state: LeaseState::Bound,
            until,
        };
        let mut store = FileStore::open(&path).unwrap();
        store.append(&[record(10, 5), record(11, 5)]).unwrap();
        store.append(&[record(10, 9)]).unwrap();
        drop(store);
        let mut torn = fs::read(&path).unwrap();
        let whole = torn.len();
        torn.extend_from_slice(b"10.0.0.12 02:00:00:00:00:0c bound 99 0bad");
        torn[whole - 3] ^= 1;
        fs::write(&path, &torn).unwrap();
        let mut store = FileStore::open(&path).unwrap();
        let mut found = store.load().unwrap();
        found.sort_by_key(|record| record.address);
        // The damaged line held the later end; the earlier one is what is left.
        assert_eq!(found, [record(10, 5), record(11, 5)]);
        store.append(&[record(12, 1)]).unwrap();
        assert_eq!(FileStore::open(&path).unwrap().load().unwrap().len(), 3);
    }

    #[test]
    fn the_journal_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases");
        let mut store = FileStore::open(&path).unwrap();
        let records: Vec<_> = (0..500)
            .map(|until| LeaseRecord {
                address: ip(10),
                mac: mac(1),
                state: LeaseState::Bound,
                until,
            })
            .collect();
        for _ in 0..20 {
            store.append(&records).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() < 4_700 * 70);
        assert_eq!(
            FileStore::open(&path).unwrap().load().unwrap(),
            records[499..]
        );
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Offer(u8, Option<u8>),
        Bind(u8, u8),
        Release(u8, u8),
        Decline(u8, u8),
        Withdraw(u8),
        Pass(u16),
    }

    fn event() -> impl Strategy<Value = Event> {
        let machine = 1u8..8;
        let address = 8u8..16;
        prop_oneof![
            (machine.clone(), proptest::option::of(address.clone()))
                .prop_map(|(m, a)| Event::Offer(m, a)),
            (machine.clone(), address.clone()).prop_map(|(m, a)| Event::Bind(m, a)),
            (machine.clone(), address.clone()).prop_map(|(m, a)| Event::Release(m, a)),
            (machine.clone(), address).prop_map(|(m, a)| Event::Decline(m, a)),
            machine.prop_map(Event::Withdraw),
            (1u16..4000).prop_map(Event::Pass),
        ]
    }

    proptest! {
        #[test]
        fn no_two_machines_ever_have_one_address(events in proptest::collection::vec(event(), 1..80)) {
            let mut table = table(10, 13, &[(7, 12)]);
            let mut granted: HashMap<Ipv4Addr, (MacAddr, i64)> = HashMap::new();
            let mut second = 0;
            for event in events {
                match event {
                    Event::Offer(machine, wanted) => {
                        if let Ok(address) = table.offer(0, mac(machine), wanted.map(ip), at(second)) {
                            let taken = granted.get(&address).is_some_and(|(owner, until)| {
                                *owner != mac(machine) && *until > second
                            });
                            prop_assert!(!taken, "{address} was offered while leased");
                        }
                    }
                    Event::Bind(machine, address) => {
                        if table.bind(0, mac(machine), ip(address), HOUR, at(second)).is_ok() {
                            let old = granted.insert(ip(address), (mac(machine), second + 3600));
                            let stolen = old.is_some_and(|(owner, until)| {
                                owner != mac(machine) && until > second
                            });
                            prop_assert!(!stolen, "{address} was leased twice");
                            prop_assert!(address != 12 || machine == 7, "reserved");
                            prop_assert!((10..=13).contains(&address), "outside the pool");
                        }
                    }
                    Event::Release(machine, address) => {
                        if table.release(mac(machine), ip(address), at(second)).is_some() {
                            granted.remove(&ip(address));
                        }
                    }
                    Event::Decline(machine, address) => {
                        if table.decline(mac(machine), ip(address), at(second)).is_some() {
                            granted.remove(&ip(address));
                        }
                    }
                    Event::Withdraw(machine) => table.withdraw(mac(machine), at(second)),
                    Event::Pass(seconds) => second += i64::from(seconds),
                }
            }
            // A restart forgets offers and nothing else.
            let pools = vec![table.pools[0].pool.clone()];
            let again = LeaseTable::new(pools, table.records());
            prop_assert_eq!(again.records(), table.records());
        }

        #[test]
        fn no_line_makes_the_journal_panic(line in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&line);
        }
    }
}
