//! The EFI system partition: where its files lie, and how they get there.
//!
//! Two ways lead onto it. A [`Birth`] writes the file system that
//! [`crate::fat`] has planned into a partition or an image, without a mount and
//! with the same bytes every time; [`Fat`] reads it back. [`Mounted`] changes a
//! mounted one, on a living unit, so that a power cut leaves the old or the new
//! file.
//!
//! Boot counting is the boot loader's own (systemd, "Automatic Boot
//! Assessment"): `leapserv_VERSION+LEFT-DONE.efi`. The boot loader counts down
//! before it starts an entry, and a boot that passed the health gate is
//! blessed by dropping the counter.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use edge::durable;
use model::release::{Artifact, Component};
use model::{Architecture, Digest, ReleaseVersion};
use sha2::Digest as _;

use crate::fat::{self, FatError, Owner};
use crate::target::{Stream, Target};

/// Where the firmware looks for a boot loader (UEFI specification, "Removable Media Boot
/// Behavior").
pub fn boot_loader(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "EFI/BOOT/BOOTX64.EFI",
        Architecture::Arm64 => "EFI/BOOT/BOOTAA64.EFI",
    }
}
/// The folder that the boot loader searches for kernels.
pub const ENTRIES: &str = "EFI/Linux";
/// The boot loader's configuration.
pub const LOADER_CONF: &str = "loader/loader.conf";
/// The text of [`LOADER_CONF`]: start at once, and let nobody edit the command line.
pub const LOADER_CONF_TEXT: &str = "timeout 0\neditor no\n";
/// The folder with one folder for each release on the disk.
pub const RELEASES: &str = "leapserv/releases";
/// The folder of what is one customer's.
const CUSTOMER: &str = "leapserv/customer/";
/// The customer layer's signed document.
pub const LAYER_JSON: &str = "leapserv/customer/layer.json";
/// The customer layer's image.
pub const LAYER_RAW: &str = "leapserv/customer/layer.raw";

/// On a stick: where its installer finds the sky ([`model::pass::StickSettings`]).
pub const STICK_SETTINGS: &str = "leapserv/stick.json";
/// On a stick: a one-time code that somebody has put there. We never do.
pub const STICK_PASS: &str = "leapserv/pass.txt";

/// Returns the folder of a release.
pub fn release_dir(version: ReleaseVersion) -> String {
    format!("{RELEASES}/{version}")
}

/// Returns the place of a release's signed manifest.
pub fn manifest(version: ReleaseVersion) -> String {
    format!("{RELEASES}/{version}/manifest.json")
}

/// Returns the place of the manifest that was active before, while another
/// revision of the release is on trial.
pub fn former_manifest(version: ReleaseVersion) -> String {
    format!("{RELEASES}/{version}/former.json")
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

/// How the name of a file ends until it is whole.
const UNFINISHED: &str = ".new";
/// Bytes of a large file that are read at once.
const PIECE: usize = 256 << 10;

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
    /// The files do not make a file system.
    #[error("ESP: not planned")]
    Plan(#[source] FatError),
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

/// One file of the ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspFile {
    /// Where it goes.
    pub path: String,
    /// What it must be.
    pub content: EspContent,
}

/// What a file of the ESP must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EspContent {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of the release, by its path in the release's folder.
    Release(Artifact),
    /// The image of the customer's layer.
    Layer(Artifact),
}

impl EspFile {
    /// Returns its length in bytes.
    pub fn length(&self) -> u64 {
        match &self.content {
            EspContent::Bytes(bytes) => u64::try_from(bytes.len()).expect("bytes in memory"),
            EspContent::Release(artifact) | EspContent::Layer(artifact) => artifact.size,
        }
    }

    /// Returns whose it is: a customer's files lie in a folder of their own.
    pub fn owner(&self) -> Owner {
        if self.path.starts_with(CUSTOMER) {
            Owner::Disk
        } else {
            Owner::Release
        }
    }
}

/// Plans the file system of an ESP of `size` bytes.
///
/// # Errors
/// The files do not make a file system.
pub fn plan(size: u64, volume_id: u32, files: &[EspFile]) -> Result<fat::Plan, EspError> {
    let listed: Vec<_> = files
        .iter()
        .map(|file| fat::File {
            path: file.path.clone(),
            length: file.length(),
            owner: file.owner(),
        })
        .collect();
    fat::Plan::new(size, volume_id, &listed).map_err(EspError::Plan)
}

/// An ESP that is written at birth.
///
/// The head of the file system is written last. Before that there is none, so a
/// power cut leaves a disk that does not start.
#[derive(Debug)]
pub struct Birth {
    files: Vec<EspFile>,
    plan: fat::Plan,
}

impl Birth {
    /// Plans an ESP of `size` bytes with these files.
    ///
    /// # Errors
    /// The files do not make a file system.
    pub fn plan(size: u64, volume_id: u32, files: Vec<EspFile>) -> Result<Self, EspError> {
        let plan = plan(size, volume_id, &files)?;
        Ok(Self { files, plan })
    }

    /// Returns the files.
    pub fn files(&self) -> &[EspFile] {
        &self.files
    }

    /// Takes the head of any old file system away, and writes tables and folders.
    ///
    /// # Errors
    /// The target failed.
    pub fn begin(&self, esp: &mut impl Target) -> Result<(), EspError> {
        let head = vec![0; self.plan.boot().len()];
        esp.write_at(0, &head)
            .and_then(|()| esp.flush())
            .map_err(failed("", "erase"))?;
        let mut buffer = vec![0; 1 << 16];
        for table in self.plan.tables() {
            let mut at = table.start;
            while at < table.end {
                let left = usize::try_from(table.end - at).unwrap_or(usize::MAX);
                let now = left.min(buffer.len());
                self.plan
                    .chains()
                    .read(at - table.start, &mut buffer[..now]);
                esp.write_at(at, &buffer[..now])
                    .map_err(failed("", "format"))?;
                at += u64::try_from(now).expect("at most the buffer");
            }
        }
        for (place, bytes) in self.plan.folders() {
            esp.write_at(*place, bytes).map_err(failed("", "format"))?;
        }
        Ok(())
    }

    /// Begins the content of a file that must turn out as signed. It can be begun again.
    ///
    /// # Errors
    /// No such file was planned.
    pub fn place<T: Target>(&self, path: &str, esp: T) -> Result<Placing<T>, EspError> {
        let number = self.number(path)?;
        let check = match &self.files[number].content {
            EspContent::Bytes(bytes) => Check::new(
                path,
                &Artifact {
                    path: path.to_owned(),
                    size: self.files[number].length(),
                    sha256: Digest::of(bytes),
                },
            ),
            EspContent::Release(artifact) | EspContent::Layer(artifact) => {
                Check::new(path, artifact)
            }
        };
        Ok(Placing {
            esp,
            at: self.plan.place(number),
            check,
        })
    }

    /// Writes the content of a file that was planned as bytes.
    ///
    /// # Errors
    /// The target failed, or no such file was planned as bytes.
    pub fn place_bytes(&self, path: &str, esp: &mut impl Target) -> Result<(), EspError> {
        let number = self.number(path)?;
        let EspContent::Bytes(bytes) = &self.files[number].content else {
            return Err(not_planned(path));
        };
        esp.write_at(self.plan.place(number), bytes)
            .map_err(failed(path, "write"))
    }

    /// Whether the content of a file lies at its place already.
    ///
    /// # Errors
    /// The target failed, or no such file was planned.
    pub fn holds(&self, path: &str, esp: &mut impl Target) -> Result<bool, EspError> {
        let mut placing = self.place(path, &mut *esp)?;
        let mut left = placing.check.expected.size;
        let mut at = placing.at;
        let mut buffer = vec![0; PIECE];
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            placing
                .esp
                .read_at(at, &mut buffer[..now])
                .map_err(failed(path, "read"))?;
            placing.check.push(&buffer[..now])?;
            let now = u64::try_from(now).expect("at most the buffer");
            (at, left) = (at + now, left - now);
        }
        Ok(placing.check.finish().is_ok())
    }

    fn number(&self, path: &str) -> Result<usize, EspError> {
        let found = self.files.iter().position(|file| file.path == path);
        found.ok_or_else(|| not_planned(path))
    }

    /// Looks at the file system as it will be when it is finished.
    pub fn preview<T: Target>(&self, esp: T) -> Preview<'_, T> {
        Preview {
            head: self.plan.boot(),
            esp,
        }
    }

    /// Makes everything durable, then gives the file system its head, durably.
    ///
    /// # Errors
    /// The target failed.
    pub fn finish(&self, esp: &mut impl Target) -> Result<(), EspError> {
        esp.flush()
            .and_then(|()| esp.write_at(0, self.plan.boot()))
            .and_then(|()| esp.flush())
            .map_err(failed("", "complete"))
    }
}

fn not_planned(path: &str) -> EspError {
    failed(path, "find in the plan")(io::ErrorKind::NotFound.into())
}

/// The content of a file on its way to its place.
#[derive(Debug)]
pub struct Placing<T> {
    esp: T,
    at: u64,
    check: Check,
}

impl<T: Target> Incoming for Placing<T> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), EspError> {
        let at = self.at + self.check.size;
        self.check.push(bytes)?;
        self.esp
            .write_at(at, bytes)
            .map_err(failed(&self.check.path, "write"))
    }

    fn finish(mut self) -> Result<(), EspError> {
        self.check.finish()
    }
}

/// A partition with the head that it does not have yet. Writes fail.
#[derive(Debug)]
pub struct Preview<'a, T> {
    head: &'a [u8],
    esp: T,
}

impl<T: Target> Target for Preview<'_, T> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.esp.read_at(offset, buffer)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(head) = self.head.get(from..) {
            let count = head.len().min(buffer.len());
            buffer[..count].copy_from_slice(&head[..count]);
        }
        Ok(())
    }

    fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.esp.size()
    }

    fn sector_size(&self) -> u64 {
        self.esp.sector_size()
    }
}

/// A FAT32 file system inside a target, to read.
pub struct Fat<T: Target> {
    system: fatfs::FileSystem<Stream<T>>,
}

impl<T: Target> fmt::Debug for Fat<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fat").finish_non_exhaustive()
    }
}

impl<T: Target> Fat<T> {
    /// Opens the file system that a target holds.
    ///
    /// # Errors
    /// The target failed, or there is none.
    pub fn open(target: T) -> Result<Self, EspError> {
        let options = fatfs::FsOptions::new();
        let system = fatfs::FileSystem::new(Stream::new(target), options);
        Ok(Self {
            system: system.map_err(failed("", "open"))?,
        })
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

    /// Reads `length` bytes of a file from `offset` on, and gives `each` the pieces until
    /// it wants no more. A file that is shorter ends earlier.
    ///
    /// # Errors
    /// The target failed, or there is no such file.
    pub fn read_part(
        &self,
        path: &str,
        offset: u64,
        length: u64,
        mut each: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<(), EspError> {
        let root = self.system.root_dir();
        let mut file = root.open_file(path).map_err(failed(path, "open"))?;
        file.seek(SeekFrom::Start(offset))
            .map_err(failed(path, "read"))?;
        let mut left = length;
        while left > 0 {
            let mut piece = Vec::with_capacity(PIECE);
            let most = u64::try_from(PIECE).expect("a size in memory").min(left);
            let read = (&mut file).take(most).read_to_end(&mut piece);
            let count = read.map_err(failed(path, "read"))?;
            left -= u64::try_from(count).expect("a size in memory");
            if count == 0 || !each(piece) {
                break;
            }
        }
        Ok(())
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

    /// Returns all files with their sizes, by path.
    ///
    /// # Errors
    /// The target failed, or a folder lies deeper than any of ours.
    pub fn files(&self) -> Result<Vec<(String, u64)>, EspError> {
        const DEEP: usize = 16;
        let mut found = Vec::new();
        let mut open = vec![(String::new(), self.system.root_dir())];
        while let Some((path, folder)) = open.pop() {
            for entry in folder.iter() {
                let entry = entry.map_err(failed(&path, "read"))?;
                let name = entry.file_name();
                if matches!(name.as_str(), "." | "..") {
                    continue;
                }
                let inner = match path.as_str() {
                    "" => name,
                    path => format!("{path}/{name}"),
                };
                if entry.is_file() {
                    found.push((inner, entry.len()));
                } else if inner.split('/').count() < DEEP {
                    open.push((inner, entry.to_dir()));
                } else {
                    // A damaged table can lead round in a circle.
                    return Err(failed(&inner, "read")(io::ErrorKind::InvalidData.into()));
                }
            }
        }
        found.sort();
        Ok(found)
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

    /// Returns the files in the folder of a release, by their paths on the partition.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn release_files(&self, version: ReleaseVersion) -> Result<Vec<String>, EspError> {
        let mut files = Vec::new();
        let mut folders = vec![release_dir(version)];
        while let Some(folder) = folders.pop() {
            for name in self.names(&folder)? {
                let path = format!("{folder}/{name}");
                match self.path(&path).is_dir() {
                    true => folders.push(path),
                    false => files.push(path),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Returns all files with their sizes, by path, without those that are not whole yet.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn files(&self) -> Result<Vec<(String, u64)>, EspError> {
        let mut files = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for name in self.names(&folder)? {
                let path = match folder.as_str() {
                    "" => name,
                    folder => format!("{folder}/{name}"),
                };
                let facts = fs::metadata(self.path(&path)).map_err(failed(&path, "read"))?;
                if facts.is_dir() {
                    folders.push(path);
                } else if !path.ends_with(UNFINISHED) {
                    files.push((path, facts.len()));
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Returns the SHA-256 of a file.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn digest(&self, path: &str) -> Result<Digest, EspError> {
        let mut file = File::open(self.path(path)).map_err(failed(path, "open"))?;
        let mut hash = sha2::Sha256::new();
        let mut buffer = vec![0; PIECE];
        loop {
            match file.read(&mut buffer).map_err(failed(path, "read"))? {
                0 => return Ok(Digest::from(<[u8; 32]>::from(hash.finalize()))),
                length => hash.update(&buffer[..length]),
            }
        }
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
        format!("{path}{UNFINISHED}")
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
                verity: None,
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
    fn an_esp_is_the_same_each_time_and_good_for_other_tools() {
        let folder = tempfile::tempdir().unwrap();
        let uki = crate::writer::tests::content(3 << 20, 7);
        let path = "EFI/Linux/leapserv_2026.11.1+3.efi";
        let files = || {
            let file = |path: &str, content| EspFile {
                path: path.to_owned(),
                content,
            };
            vec![
                file(LOADER_CONF, EspContent::Bytes(LOADER_CONF_TEXT.into())),
                file(path, EspContent::Release(artifact("uki", &uki))),
                file(LAYER_RAW, EspContent::Layer(artifact("layer", b"layer"))),
            ]
        };
        let make = |name: &str| {
            let place = folder.path().join(name);
            let mut disk = Disk::create(&place, 64 << 20).unwrap();
            // What lay there before must not show.
            for at in 0..64 {
                disk.write_at(at << 20, &[0xa5; 1 << 17]).unwrap();
            }
            let birth = Birth::plan(64 << 20, 0x1234_abcd, files()).unwrap();
            birth.begin(&mut disk).unwrap();
            birth.place_bytes(LOADER_CONF, &mut disk).unwrap();
            let refused = birth
                .place(path, &mut disk)
                .unwrap()
                .copy(&mut &uki[1..])
                .unwrap_err();
            assert!(matches!(refused, EspError::NotAsSigned { .. }));
            birth
                .place(path, &mut disk)
                .unwrap()
                .copy(&mut uki.as_slice())
                .unwrap();
            let layer = birth.place(LAYER_RAW, &mut disk).unwrap();
            layer.copy(&mut &b"layer"[..]).unwrap();
            assert!(birth.place("EFI/other", &mut disk).is_err());
            // Nothing starts before the end, and it can be looked at all the same.
            assert!(Fat::open(&mut disk).is_err());
            let seen = Fat::open(birth.preview(&mut disk)).unwrap().read(path);
            assert!(seen.unwrap() == uki);
            birth.finish(&mut disk).unwrap();
            place
        };
        let (one, two) = (make("one"), make("two"));
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap());
        let fat = Fat::open(Disk::open_read_only(&one).unwrap()).unwrap();
        assert_eq!(
            fat.entries().unwrap(),
            [entry("leapserv_2026.11.1+3.efi").unwrap()]
        );
        assert!(fat.read(&fat.entries().unwrap()[0].path()).unwrap() == uki);
        let files = fat.files().unwrap();
        let expected = [
            (path, 3 << 20),
            (LAYER_RAW, 5),
            (LOADER_CONF, LOADER_CONF_TEXT.len() as u64),
        ];
        assert_eq!(files, expected.map(|(path, size)| (path.to_owned(), size)));

        Tool::new("fsck.fat").arg("-nv").arg(&one).run().unwrap();
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
        esp.write(&format!("{RELEASES}/2026.11.2/a/b.raw"), b"b")
            .unwrap();
        assert_eq!(
            esp.release_files(version).unwrap(),
            [
                "leapserv/releases/2026.11.2/a/b.raw",
                "leapserv/releases/2026.11.2/manifest.json"
            ]
        );
        esp.remove_release(version).unwrap();
        esp.remove_release(version).unwrap();
        assert_eq!(esp.releases().unwrap(), []);
    }
}
