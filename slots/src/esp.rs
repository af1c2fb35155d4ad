//! The EFI system partition: where its files lie, and how they get there.
//!
//! Two ways lead onto it. [`Fat`] makes the file system inside a partition or
//! an image, at birth, without a mount and with the same bytes every time.
//! [`Mounted`] changes a mounted one, on a living unit, so that a power cut
//! leaves the old or the new file.
//!
//! Boot counting is the boot loader's own (systemd, "Automatic Boot
//! Assessment"): `leapserv_VERSION+LEFT-DONE.efi`. The boot loader counts down
//! before it starts an entry, and a boot that passed the health gate is
//! blessed by dropping the counter.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use edge::durable;
use model::release::{Artifact, Component};
use model::{Digest, ReleaseVersion};
use sha2::Digest as _;

use crate::target::{Stream, Target};

/// Where the firmware looks for a boot loader.
pub const BOOT_LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
/// The folder that the boot loader searches for kernels.
pub const ENTRIES: &str = "EFI/Linux";
/// The boot loader's configuration.
pub const LOADER_CONF: &str = "loader/loader.conf";
/// The text of [`LOADER_CONF`]: start at once, and let nobody edit the command line.
pub const LOADER_CONF_TEXT: &str = "timeout 0\neditor no\n";
/// The folder with one folder for each release on the disk.
pub const RELEASES: &str = "leapserv/releases";
/// The customer layer's signed document.
pub const LAYER_JSON: &str = "leapserv/customer/layer.json";
/// The customer layer's image.
pub const LAYER_RAW: &str = "leapserv/customer/layer.raw";

/// Returns the folder of a release.
pub fn release_dir(version: ReleaseVersion) -> String {
    format!("{RELEASES}/{version}")
}

/// Returns the place of a release's signed manifest.
pub fn manifest(version: ReleaseVersion) -> String {
    format!("{RELEASES}/{version}/manifest.json")
}

/// Returns the place of a component's image, or `None` where its path would lead elsewhere.
pub fn component(version: ReleaseVersion, component: &Component) -> Option<String> {
    let path = &component.image.path;
    let good = !path.is_empty()
        && path
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':', '\0']));
    good.then(|| format!("{RELEASES}/{version}/{path}"))
}

/// Where a boot entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryState {
    /// Its health gate has passed once; it is not counted any more.
    Good,
    /// It still has to prove itself and may be tried so many more times.
    Pending {
        /// Tries left; never 0.
        left: u32,
    },
    /// All of its tries are used up.
    Bad,
}

/// A boot entry, by its file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The release that it starts.
    pub version: ReleaseVersion,
    /// Tries left and tries used, while they are counted.
    pub tries: Option<(u32, u32)>,
}

impl Entry {
    /// An entry that still has to prove itself.
    pub fn new(version: ReleaseVersion, tries: u8) -> Self {
        Self {
            version,
            // Without a try it would be born bad.
            tries: Some((u32::from(tries.max(1)), 0)),
        }
    }

    /// Returns where it stands.
    pub fn state(&self) -> EntryState {
        match self.tries {
            None => EntryState::Good,
            Some((0, _)) => EntryState::Bad,
            Some((left, _)) => EntryState::Pending { left },
        }
    }

    /// Returns its path on the partition.
    pub fn path(&self) -> String {
        format!("{ENTRIES}/{self}")
    }

    /// Returns the entry without its counter, as after a blessing.
    #[must_use]
    pub fn blessed(&self) -> Self {
        Self {
            version: self.version,
            tries: None,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leapserv_{}", self.version)?;
        match self.tries {
            None => {}
            Some((left, 0)) => write!(f, "+{left}")?,
            Some((left, done)) => write!(f, "+{left}-{done}")?,
        }
        f.write_str(".efi")
    }
}

/// A file name that is no boot entry of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("boot entry {0:?}: expected leapserv_VERSION[+LEFT[-DONE]].efi")]
pub struct NotAnEntry(String);

impl FromStr for Entry {
    type Err = NotAnEntry;

    fn from_str(name: &str) -> Result<Self, NotAnEntry> {
        let bad = || NotAnEntry(name.to_owned());
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten().ok_or_else(bad)
        };
        let stem = name
            .strip_prefix("leapserv_")
            .and_then(|rest| rest.strip_suffix(".efi"))
            .ok_or_else(bad)?;
        let (version, tries) = match stem.split_once('+') {
            None => (stem, None),
            Some((version, counter)) => {
                let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
                (version, Some((number(left)?, number(done)?)))
            }
        };
        Ok(Self {
            version: version.parse().map_err(|_| bad())?,
            tries,
        })
    }
}

/// Why a file did not get onto the partition.
#[derive(Debug, thiserror::Error)]
pub enum EspError {
    /// The partition or its file system failed.
    #[error("ESP: {path}: {what} failed")]
    Io {
        /// The file or folder.
        path: String,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The file is not the one that was signed.
    #[error("ESP: {path}: {problem}")]
    NotAsSigned {
        /// The file.
        path: String,
        /// What is different.
        problem: String,
    },
}

fn failed(path: &str, what: &'static str) -> impl FnOnce(io::Error) -> EspError {
    let path = path.to_owned();
    move |source| EspError::Io { path, what, source }
}

/// Compares a file on its way with what was signed.
#[derive(Debug)]
struct Check {
    path: String,
    expected: Artifact,
    size: u64,
    hash: sha2::Sha256,
}

impl Check {
    fn new(path: &str, expected: &Artifact) -> Self {
        Self {
            path: path.to_owned(),
            expected: expected.clone(),
            size: 0,
            hash: sha2::Sha256::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), EspError> {
        self.size += bytes.len() as u64;
        if self.size > self.expected.size {
            return Err(self.not_as_signed(format!(
                "longer than the signed {} bytes",
                self.expected.size
            )));
        }
        self.hash.update(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), EspError> {
        if self.size != self.expected.size {
            return Err(self.not_as_signed(format!(
                "{} bytes, expected {}",
                self.size, self.expected.size
            )));
        }
        let found = Digest::from(<[u8; 32]>::from(std::mem::take(&mut self.hash).finalize()));
        if found != self.expected.sha256 {
            return Err(self.not_as_signed(format!(
                "SHA-256 {found}, expected {}",
                self.expected.sha256
            )));
        }
        Ok(())
    }

    fn not_as_signed(&self, problem: String) -> EspError {
        EspError::NotAsSigned {
            path: self.path.clone(),
            problem,
        }
    }
}

/// A file on its way onto the partition. Dropped without [`Incoming::finish`], it does not count.
pub trait Incoming {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// The partition failed, or more came than was signed.
    fn push(&mut self, bytes: &[u8]) -> Result<(), EspError>;

    /// Compares with what was signed, and gives the file its place.
    ///
    /// # Errors
    /// The partition failed, or the file is not the signed one: then it is removed.
    fn finish(self) -> Result<(), EspError>;

    /// Takes everything that a reader has, then finishes.
    ///
    /// # Errors
    /// Those of the reader too.
    fn copy(mut self, from: &mut impl Read) -> Result<(), EspError>
    where
        Self: Sized,
    {
        let mut buffer = vec![0; 1 << 18];
        loop {
            match from.read(&mut buffer).map_err(failed("source", "read"))? {
                0 => return self.finish(),
                length => self.push(&buffer[..length])?,
            }
        }
    }
}

/// A FAT32 file system inside a target.
///
/// Nothing is durable before [`Fat::finish`].
pub struct Fat<T: Target> {
    system: fatfs::FileSystem<Stream<Shared<T>>>,
    target: Shared<T>,
}

/// The library keeps what it is given; the partition must be flushed after it.
struct Shared<T>(Arc<Mutex<T>>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Shared<T> {
    fn inner(&self) -> std::sync::MutexGuard<'_, T> {
        self.0
            .lock()
            .expect("nothing panics while it holds the target")
    }
}

impl<T: Target> Target for Shared<T> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner().read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner().write_at(offset, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner().flush()
    }

    fn size(&self) -> u64 {
        self.inner().size()
    }
}

impl<T: Target> fmt::Debug for Fat<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fat").finish_non_exhaustive()
    }
}

/// Gives every entry the first day of FAT's calendar: the same bytes every time.
///
/// The library's own default is day 0 of month 0, which UEFI firmware refuses when a
/// file is renamed; then systemd-boot cannot count its tries.
#[derive(Debug)]
struct FirstDay;

impl fatfs::TimeProvider for FirstDay {
    fn get_current_date(&self) -> fatfs::Date {
        fatfs::Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        fatfs::DateTime {
            date: self.get_current_date(),
            time: fatfs::Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

impl<T: Target> Fat<T> {
    /// Makes an empty file system over all of `target`.
    ///
    /// # Errors
    /// The target failed or is smaller than FAT32 can be (about 34 MiB).
    pub fn format(target: T, volume_id: u32) -> Result<Self, EspError> {
        let target = Shared(Arc::new(Mutex::new(target)));
        let mut stream = Stream::new(target.clone());
        let size = stream.seek(SeekFrom::End(0)).unwrap_or(0);
        stream
            .seek(SeekFrom::Start(0))
            .map_err(failed("", "format"))?;
        // The largest cluster that still leaves enough of them for FAT32.
        let cluster = [8192, 4096, 2048, 1024, 512]
            .into_iter()
            .find(|cluster| size / u64::from(*cluster) > 66_600)
            .unwrap_or(512);
        let options = fatfs::FormatVolumeOptions::new()
            .fat_type(fatfs::FatType::Fat32)
            .bytes_per_cluster(cluster)
            .volume_id(volume_id)
            .volume_label(*b"LEAPSERV   ");
        fatfs::format_volume(&mut stream, options).map_err(failed("", "format"))?;
        Self::of(target)
    }

    /// Opens the file system that a target holds.
    ///
    /// # Errors
    /// The target failed, or there is none.
    pub fn open(target: T) -> Result<Self, EspError> {
        Self::of(Shared(Arc::new(Mutex::new(target))))
    }

    fn of(target: Shared<T>) -> Result<Self, EspError> {
        let stream = Stream::new(target.clone());
        let options = fatfs::FsOptions::new().time_provider(&FirstDay);
        let system = fatfs::FileSystem::new(stream, options).map_err(failed("", "open"))?;
        Ok(Self { system, target })
    }

    /// Begins a file that must turn out as signed. Its folders are made.
    ///
    /// # Errors
    /// The target failed.
    pub fn begin<'a>(
        &'a self,
        path: &str,
        expected: &Artifact,
    ) -> Result<FatFile<'a, T>, EspError> {
        Ok(FatFile {
            fat: self,
            file: self.create(path)?,
            check: Check::new(path, expected),
        })
    }

    /// Writes a small file. Its folders are made.
    ///
    /// # Errors
    /// The target failed.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<(), EspError> {
        let mut file = self.create(path)?;
        file.write_all(bytes)
            .and_then(|()| file.flush())
            .map_err(failed(path, "write"))
    }

    /// Reads a small file.
    ///
    /// # Errors
    /// The target failed, or there is no such file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, EspError> {
        let mut bytes = Vec::new();
        let root = self.system.root_dir();
        root.open_file(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(failed(path, "read"))?;
        Ok(bytes)
    }

    /// Returns the boot entries.
    ///
    /// # Errors
    /// The target failed.
    pub fn entries(&self) -> Result<Vec<Entry>, EspError> {
        let root = self.system.root_dir();
        let folder = root.open_dir(ENTRIES).map_err(failed(ENTRIES, "read"))?;
        let names: Vec<String> = folder
            .iter()
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()
            .map_err(failed(ENTRIES, "read"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Completes the file system and makes it durable.
    ///
    /// # Errors
    /// The target failed.
    pub fn finish(mut self) -> Result<(), EspError> {
        self.system.unmount().map_err(failed("", "complete"))?;
        dots::correct(&mut self.target).map_err(failed("", "complete"))?;
        self.target.flush().map_err(failed("", "flush"))
    }

    fn create(&self, path: &str) -> Result<fatfs::File<'_, Stream<Shared<T>>>, EspError> {
        let mut folder = self.system.root_dir();
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            folder = folder
                .create_dir(part)
                .map_err(failed(path, "make folder"))?;
        }
        let mut file = folder.create_file(name).map_err(failed(path, "create"))?;
        file.truncate().map_err(failed(path, "create"))?;
        Ok(file)
    }
}

/// Corrects what the library writes into the head of each folder.
///
/// Off-spec: `fatfs` 0.3 puts long-name entries before `.` and `..`, and lets
/// `..` of a folder in the root point to the root's cluster where the
/// specification wants 0. Linux and firmware do not mind; `fsck.fat` does, and
/// its repair renames things.
mod dots {
    use std::io;

    use crate::target::Target;

    const ENTRY: usize = 32;
    const DIRECTORY: u8 = 0x10;
    const LONG_NAME: u8 = 0x0f;

    struct Geometry {
        fat: u64,
        data: u64,
        cluster: u64,
        root: u32,
    }

    pub(super) fn correct(target: &mut impl Target) -> io::Result<()> {
        let geometry = geometry(target)?;
        let mut folders = vec![(geometry.root, true)];
        while let Some((folder, is_root)) = folders.pop() {
            for cluster in chain(target, &geometry, folder)? {
                let mut entries = vec![0; usize::try_from(geometry.cluster).unwrap_or(0)];
                let at = geometry.data + u64::from(cluster - 2) * geometry.cluster;
                target.read_at(at, &mut entries)?;
                for entry in entries.chunks_exact(ENTRY) {
                    let child = first_cluster(entry);
                    let counts = !matches!(entry[0], 0 | 0xe5 | b'.');
                    if counts && entry[11] & DIRECTORY != 0 && entry[11] != LONG_NAME {
                        correct_head(target, &geometry, child, is_root)?;
                        folders.push((child, false));
                    }
                }
            }
        }
        Ok(())
    }

    fn correct_head(
        target: &mut impl Target,
        geometry: &Geometry,
        folder: u32,
        in_root: bool,
    ) -> io::Result<()> {
        let at = geometry.data + u64::from(folder - 2) * geometry.cluster;
        let mut head = [0; 4 * ENTRY];
        target.read_at(at, &mut head)?;
        if head[11] == LONG_NAME && head[ENTRY] == b'.' && head[2 * ENTRY + 11] == LONG_NAME {
            head.copy_within(ENTRY..2 * ENTRY, 0);
            head.copy_within(3 * ENTRY.., ENTRY);
            // Two removed entries; the first bytes that are 0 would end the folder.
            head[2 * ENTRY..].fill(0);
            head[2 * ENTRY] = 0xe5;
            head[3 * ENTRY] = 0xe5;
        }
        if in_root {
            head[ENTRY + 20..ENTRY + 22].fill(0);
            head[ENTRY + 26..ENTRY + 28].fill(0);
        }
        target.write_at(at, &head)
    }

    fn geometry(target: &mut impl Target) -> io::Result<Geometry> {
        let mut boot = [0; 512];
        target.read_at(0, &mut boot)?;
        let two = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let four =
            |at: usize| u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]);
        let sector = two(11);
        let fat = two(14) * sector;
        Ok(Geometry {
            fat,
            data: fat + u64::from(boot[16]) * u64::from(four(36)) * sector,
            cluster: u64::from(boot[13]) * sector,
            root: four(44),
        })
    }

    fn chain(target: &mut impl Target, geometry: &Geometry, first: u32) -> io::Result<Vec<u32>> {
        let mut clusters = vec![first];
        let mut next = [0; 4];
        loop {
            let last = clusters[clusters.len() - 1];
            target.read_at(geometry.fat + 4 * u64::from(last), &mut next)?;
            match u32::from_le_bytes(next) & 0x0fff_ffff {
                cluster @ 2..0x0fff_fff8 => clusters.push(cluster),
                _ => return Ok(clusters),
            }
        }
    }

    fn first_cluster(entry: &[u8]) -> u32 {
        let high = u16::from_le_bytes([entry[20], entry[21]]);
        let low = u16::from_le_bytes([entry[26], entry[27]]);
        u32::from(high) << 16 | u32::from(low)
    }
}

/// A file on its way into a [`Fat`].
pub struct FatFile<'a, T: Target> {
    fat: &'a Fat<T>,
    file: fatfs::File<'a, Stream<Shared<T>>>,
    check: Check,
}

impl<T: Target> fmt::Debug for FatFile<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.check.fmt(f)
    }
}

impl<T: Target> Incoming for FatFile<'_, T> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), EspError> {
        self.check.push(bytes)?;
        self.file
            .write_all(bytes)
            .map_err(failed(&self.check.path, "write"))
    }

    fn finish(mut self) -> Result<(), EspError> {
        let path = self.check.path.clone();
        self.file.flush().map_err(failed(&path, "write"))?;
        let checked = self.check.finish();
        if checked.is_err() {
            drop(self.file);
            self.fat
                .system
                .root_dir()
                .remove(&path)
                .map_err(failed(&path, "remove"))?;
        }
        checked
    }
}

/// A mounted EFI system partition.
///
/// FAT has no journal: a file gets its name only after its content is on the
/// medium, and a call returns only after the name is.
#[derive(Debug, Clone)]
pub struct Mounted {
    root: PathBuf,
}

impl Mounted {
    /// The partition that is mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns where a file of the partition lies in the file system.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Returns the boot entries, the newest release first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, EspError> {
        let mut entries: Vec<Entry> = self
            .names(ENTRIES)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        entries.sort_by(|a, b| b.version.cmp(&a.version).then(a.tries.cmp(&b.tries)));
        Ok(entries)
    }

    /// Returns the releases that have a folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn releases(&self) -> Result<Vec<ReleaseVersion>, EspError> {
        let names = self.names(RELEASES)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, EspError> {
        let entries = match fs::read_dir(self.path(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(folder, "read"))?,
        };
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(failed(folder, "read"))
    }

    /// Reads a small file.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, EspError> {
        fs::read(self.path(path)).map_err(failed(path, "read"))
    }

    /// Replaces a small file durably. Its folders are made.
    ///
    /// # Errors
    /// The file system failed.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<(), EspError> {
        let mut file = self.create(path)?;
        file.write_all(bytes).map_err(failed(path, "write"))?;
        self.commit(path, &file)
    }

    /// Begins a file that must turn out as signed. Its folders are made.
    ///
    /// It has its place only after [`Incoming::finish`].
    ///
    /// # Errors
    /// The file system failed.
    pub fn begin(&self, path: &str, expected: &Artifact) -> Result<MountedFile, EspError> {
        Ok(MountedFile {
            esp: self.clone(),
            file: self.create(path)?,
            check: Check::new(path, expected),
        })
    }

    /// Says whether a file is there and as signed.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn holds(&self, path: &str, expected: &Artifact) -> Result<bool, EspError> {
        let mut file = match File::open(self.path(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.map_err(failed(path, "read"))?,
        };
        let mut check = Check::new(path, expected);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let length = file.read(&mut buffer).map_err(failed(path, "read"))?;
            if length == 0 {
                return Ok(check.finish().is_ok());
            }
            if check.push(&buffer[..length]).is_err() {
                return Ok(false);
            }
        }
    }

    /// Gives a file another name, durably.
    ///
    /// # Errors
    /// The file system failed.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), EspError> {
        durable::rename(&self.path(from), &self.path(to))
            .map_err(|error| failed(from, "rename")(io::Error::other(error)))
    }

    /// Removes a file durably. One that is not there is no error.
    ///
    /// # Errors
    /// The file system failed.
    pub fn remove(&self, path: &str) -> Result<(), EspError> {
        match fs::remove_file(self.path(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed
                .and_then(|()| durable::sync_dir(&self.folder(path)))
                .map_err(failed(path, "remove")),
        }
    }

    /// Removes the folder of a release.
    ///
    /// # Errors
    /// The file system failed.
    pub fn remove_release(&self, version: ReleaseVersion) -> Result<(), EspError> {
        let path = release_dir(version);
        match fs::remove_dir_all(self.path(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed
                .and_then(|()| durable::sync_dir(&self.path(RELEASES)))
                .map_err(failed(&path, "remove")),
        }
    }

    /// The name that a file has until it is whole; nothing looks for it.
    fn temporary(path: &str) -> String {
        format!("{path}.new")
    }

    fn folder(&self, path: &str) -> PathBuf {
        let path = self.path(path);
        path.parent().map_or(path.clone(), Path::to_owned)
    }

    fn create(&self, path: &str) -> Result<File, EspError> {
        fs::create_dir_all(self.folder(path)).map_err(failed(path, "make folder"))?;
        File::create(self.path(&Self::temporary(path))).map_err(failed(path, "create"))
    }

    fn commit(&self, path: &str, file: &File) -> Result<(), EspError> {
        file.sync_all().map_err(failed(path, "flush"))?;
        self.rename(&Self::temporary(path), path)
    }
}

/// A file on its way onto a [`Mounted`] partition.
#[derive(Debug)]
pub struct MountedFile {
    esp: Mounted,
    file: File,
    check: Check,
}

impl Incoming for MountedFile {
    fn push(&mut self, bytes: &[u8]) -> Result<(), EspError> {
        self.check.push(bytes)?;
        self.file
            .write_all(bytes)
            .map_err(failed(&self.check.path, "write"))
    }

    fn finish(mut self) -> Result<(), EspError> {
        if let Err(error) = self.check.finish() {
            self.esp.remove(&Mounted::temporary(&self.check.path))?;
            return Err(error);
        }
        self.esp.commit(&self.check.path, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;
    use crate::writer::tests::artifact;
    use edge::runner::Tool;
    use proptest::prelude::*;

    fn entry(name: &str) -> Result<Entry, NotAnEntry> {
        name.parse()
    }

    #[test]
    fn the_name_of_an_entry_says_where_it_stands() {
        let state = |name: &str| entry(name).unwrap().state();
        assert_eq!(state("leapserv_2026.11.1.efi"), EntryState::Good);
        let pending = EntryState::Pending { left: 2 };
        assert_eq!(state("leapserv_2026.11.1+2-1.efi"), pending);
        assert_eq!(state("leapserv_2026.11.1+2.efi"), pending);
        assert_eq!(state("leapserv_2026.11.1+0-3.efi"), EntryState::Bad);
        for name in [
            "leapserv_2026.11.1+.efi",
            "leapserv_2026.11.1+-1.efi",
            "leapserv_2026.11.1++1.efi",
            "leapserv_2026.11.1+99999999999.efi",
            "leapserv_2026.11.01.efi",
            "leapserv_2026.11.1.efi.new",
            "debian.efi",
        ] {
            assert!(entry(name).is_err(), "{name}");
        }
        let version = "2026.11.1".parse().unwrap();
        assert_eq!(
            Entry::new(version, 3).to_string(),
            "leapserv_2026.11.1+3.efi"
        );
        assert_eq!(
            Entry::new(version, 0).state(),
            EntryState::Pending { left: 1 }
        );
        assert_eq!(
            Entry::new(version, 3).blessed().path(),
            "EFI/Linux/leapserv_2026.11.1.efi"
        );
    }

    proptest! {
        #[test]
        fn an_entry_survives_its_name(number: u32, tries: Option<(u32, u32)>) {
            let version = format!("2026.11.{number}").parse().unwrap();
            let one = Entry { version, tries };
            prop_assert_eq!(entry(&one.to_string()).unwrap(), one);
        }

        #[test]
        fn no_name_makes_the_parser_panic(name in "(leapserv_)?[0-9.+-]{0,20}(.efi)?") {
            drop(entry(&name));
        }
    }

    #[test]
    fn a_component_never_leaves_its_release() {
        let version = "2026.11.1".parse().unwrap();
        let at = |path: &str| {
            let one = Component {
                name: "backup".into(),
                version: "1".into(),
                image: artifact(path, b""),
            };
            component(version, &one)
        };
        assert_eq!(
            at("components/backup.raw").unwrap(),
            "leapserv/releases/2026.11.1/components/backup.raw"
        );
        for path in [
            "",
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a//b",
            "a\\b",
            "./a",
        ] {
            assert_eq!(at(path), None, "{path}");
        }
    }

    #[test]
    fn a_fat_file_system_is_the_same_each_time_and_good_for_other_tools() {
        let folder = tempfile::tempdir().unwrap();
        let uki = crate::writer::tests::content(3 << 20, 7);
        let make = |name: &str| {
            let path = folder.path().join(name);
            let mut disk = Disk::create(&path, 64 << 20).unwrap();
            let fat = Fat::format(&mut disk, 0x1234_abcd).unwrap();
            fat.write(LOADER_CONF, LOADER_CONF_TEXT.as_bytes()).unwrap();
            for number in 0..40 {
                fat.write(&format!("{RELEASES}/many/file-{number}"), b"x")
                    .unwrap();
            }
            fat.write(BOOT_LOADER, b"a longer old one").unwrap();
            fat.write(BOOT_LOADER, b"loader").unwrap();
            let file = fat
                .begin("EFI/Linux/leapserv_2026.11.1+3.efi", &artifact("uki", &uki))
                .unwrap();
            file.copy(&mut uki.as_slice()).unwrap();
            let refused = fat
                .begin("EFI/Linux/leapserv_2026.11.2.efi", &artifact("uki", &uki))
                .unwrap()
                .copy(&mut &uki[1..])
                .unwrap_err();
            assert!(matches!(refused, EspError::NotAsSigned { .. }));
            fat.finish().unwrap();
            path
        };
        let (one, two) = (make("one"), make("two"));
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap());

        let fat = Fat::open(Disk::open_read_only(&one).unwrap()).unwrap();
        assert_eq!(
            fat.entries().unwrap(),
            [entry("leapserv_2026.11.1+3.efi").unwrap()]
        );
        assert_eq!(fat.read(BOOT_LOADER).unwrap(), b"loader");
        assert!(fat.read(&fat.entries().unwrap()[0].path()).unwrap() == uki);

        Tool::new("fsck.fat").arg("-nv").arg(&one).run().unwrap();
        let said = Tool::new("mdir")
            .args(["-/", "-b", "-i"])
            .arg(&one)
            .arg("::/")
            .text()
            .unwrap();
        assert!(
            said.contains("::/EFI/Linux/leapserv_2026.11.1+3.efi"),
            "{said}"
        );
        assert!(said.contains("::/EFI/BOOT/BOOTX64.EFI"), "{said}");
        assert!(!said.contains("2026.11.2"), "{said}");
        // Firmware refuses to rename a file of day 0 in month 0.
        let said = Tool::new("mdir")
            .arg("-i")
            .arg(&one)
            .arg("::/EFI/Linux")
            .text()
            .unwrap();
        assert!(said.contains("1980-01-01"), "{said}");
    }

    #[test]
    fn a_mounted_file_has_its_name_only_when_it_is_as_signed() {
        let folder = tempfile::tempdir().unwrap();
        let esp = Mounted::new(folder.path());
        assert_eq!(esp.entries().unwrap(), []);
        let good = artifact("uki", b"good kernel");
        let path = "EFI/Linux/leapserv_2026.11.2+3.efi";
        for bad in [&b"evil kernel"[..], b"good kerne", b"good kernel!"] {
            let file = esp.begin(path, &good).unwrap();
            assert!(file.copy(&mut &*bad).is_err());
            assert_eq!(esp.entries().unwrap(), []);
        }
        esp.begin(path, &good)
            .unwrap()
            .copy(&mut &b"good kernel"[..])
            .unwrap();
        esp.write("EFI/Linux/leapserv_2026.11.1.efi", b"old")
            .unwrap();
        assert!(esp.holds(path, &good).unwrap());
        assert!(
            !esp.holds("EFI/Linux/leapserv_2026.11.1.efi", &good)
                .unwrap()
        );
        assert!(!esp.holds("nothing", &good).unwrap());
        let names: Vec<_> = esp
            .entries()
            .unwrap()
            .iter()
            .map(Entry::to_string)
            .collect();
        assert_eq!(
            names,
            ["leapserv_2026.11.2+3.efi", "leapserv_2026.11.1.efi"]
        );
        let new = esp.entries().unwrap().remove(0);
        esp.rename(&new.path(), &new.blessed().path()).unwrap();
        assert_eq!(esp.entries().unwrap()[0].state(), EntryState::Good);
        esp.remove(&new.blessed().path()).unwrap();
        esp.remove(&new.blessed().path()).unwrap();
        assert_eq!(esp.entries().unwrap().len(), 1);
    }

    #[test]
    fn the_folder_of_a_release_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let esp = Mounted::new(folder.path());
        let version = "2026.11.2".parse().unwrap();
        esp.write(&manifest(version), b"{}").unwrap();
        assert_eq!(esp.releases().unwrap(), [version]);
        assert_eq!(esp.read(&manifest(version)).unwrap(), b"{}");
        esp.remove_release(version).unwrap();
        esp.remove_release(version).unwrap();
        assert_eq!(esp.releases().unwrap(), []);
    }
}
