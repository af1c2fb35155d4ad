//! What all disks of a release share, laid ready once; and disks composed of it.
//!
//! A disk is composed in well under a millisecond: the uncompressed images and
//! the files of the release and the empty data partition are pointed at, and
//! only the partition table, the folders of the ESP and the customer's layer
//! are the disk's own. Nothing is written.
//!
//! What has to be made for that is made once and kept in a folder: the images,
//! decompressed by the one writer of slots, which compares every segment with
//! its signed digest, and the file system of the data partition, which depends
//! on its size alone. Each gets its name, which is what it is, only when it is
//! whole and durable.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use edge::runner::Tool;
use model::pass::StickSettings;
use model::release::{Artifact, CustomerLayer, ReleaseManifest};
use model::{Digest, UnitName, Verified};
use rustix::fs::{SeekFrom, seek};
use sha2::Digest as _;

use crate::compose::{self, ComposeError, Layer, Release};
use crate::esp::{self, EspContent, EspFile};
use crate::extents::{Backing, Blob, Builder, Map};
use crate::gpt;
use crate::layout::{ALIGNMENT, Layout, Part, Slot};
use crate::target::{Disk, Target};
use crate::writer::{Content, Image, WriteError, Writer};

/// The size of a disk that nobody named one for, in bytes.
pub const USUAL_SIZE: u64 = 16 << 30;
/// Larger layers are pointed at, smaller ones are kept in memory.
const SMALL_LAYER: u64 = 32 << 10;
/// How finely the data of the empty data partition is looked at.
const BLOCK: usize = 4096;
/// Room on a stick beyond its files, in bytes.
const STICK_SPARE: u64 = 64 << 20;

/// Why a release is not laid ready, or a disk not composed.
#[derive(Debug, thiserror::Error)]
pub enum StockError {
    /// A file cannot be read or written.
    #[error("{path}: {what} failed")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file is not the one that was signed.
    #[error("{path}: {problem}")]
    NotAsSigned {
        /// The file.
        path: PathBuf,
        /// What is different.
        problem: String,
    },
    /// An image is not what its index says.
    #[error("{path}: not unpacked")]
    Image {
        /// The file of segments.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// The file system of the data partition was not made.
    #[error("data partition: not made")]
    Data(#[source] anyhow::Error),
    /// The parts do not make a disk.
    #[error("disk: not composed")]
    Compose(#[from] ComposeError),
    /// An image is larger than its slot.
    #[error("{part}: image of {size} bytes, expected at most {room}")]
    TooLarge {
        /// The partition.
        part: Part,
        /// Size of the image.
        size: u64,
        /// Size of the partition.
        room: u64,
    },
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> StockError {
    let path = path.to_owned();
    move |source| StockError::Io { path, what, source }
}

/// A customer's layer, with its image at hand.
#[derive(Debug, Clone)]
pub struct StoredLayer {
    document: Verified<CustomerLayer>,
    bytes: Arc<Blob>,
    image: Held,
}

#[derive(Debug, Clone)]
enum Held {
    Memory(Arc<Blob>),
    File(Arc<Backing>),
}

impl StoredLayer {
    /// Takes a verified layer, the bytes that were verified, and the file of its
    /// image, which is compared with what was signed.
    ///
    /// # Errors
    /// The image cannot be read or is not the signed one.
    pub fn open(
        document: Verified<CustomerLayer>,
        bytes: Vec<u8>,
        image: &Path,
    ) -> Result<Self, StockError> {
        let expected = &document.image;
        let held = if expected.size <= SMALL_LAYER {
            let mut content = Vec::new();
            File::open(image)
                .and_then(|file| file.take(SMALL_LAYER + 1).read_to_end(&mut content))
                .map_err(failed(image, "read"))?;
            let blob = Blob::new(content);
            compare(image, expected, blob.bytes().len() as u64, blob.digest())?;
            Held::Memory(Arc::new(blob))
        } else {
            Held::File(Arc::new(checked(image, expected)?))
        };
        Ok(Self {
            document,
            bytes: Arc::new(Blob::new(bytes)),
            image: held,
        })
    }

    /// Returns the signed document.
    pub fn document(&self) -> &Verified<CustomerLayer> {
        &self.document
    }
}

fn compare(path: &Path, expected: &Artifact, size: u64, found: Digest) -> Result<(), StockError> {
    let problem = if size != expected.size {
        format!("{size} bytes, expected {}", expected.size)
    } else if found != expected.sha256 {
        format!("SHA-256 {found}, expected {}", expected.sha256)
    } else {
        return Ok(());
    };
    Err(StockError::NotAsSigned {
        path: path.to_owned(),
        problem,
    })
}

/// Opens a file and compares it with what was signed.
fn checked(path: &Path, expected: &Artifact) -> Result<Backing, StockError> {
    let backing = Backing::open(path, expected.sha256).map_err(failed(path, "open"))?;
    let mut hash = sha2::Sha256::new();
    if backing.size() == expected.size {
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < expected.size {
            let left = usize::try_from(expected.size - at).unwrap_or(usize::MAX);
            let now = &mut buffer[..left.min(1 << 20)];
            let read = backing.file().read_exact_at(now, at);
            read.map_err(failed(path, "read"))?;
            hash.update(&*now);
            at += now.len() as u64;
        }
    }
    let found = Digest::from(<[u8; 32]>::from(hash.finalize()));
    compare(path, expected, backing.size(), found)?;
    Ok(backing)
}

/// What tells how far the laying ready is: a word, what is done, and all of it.
pub type Told<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// Where things come from, and where what was made is kept.
pub struct Places<'a> {
    /// The release's folder.
    pub release: &'a Path,
    /// The folder of what was made. It may be lost at any time.
    pub kept: &'a Path,
    /// Gives `mke2fs`, when it is needed.
    pub mke2fs: &'a dyn Fn() -> anyhow::Result<Tool>,
    /// Whose `mke2fs` it is: another's makes another file system.
    pub maker: &'a str,
    /// The time that the data partition was made at, in seconds since 1970.
    pub time: u32,
}

impl std::fmt::Debug for Places<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places")
            .field("release", &self.release)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

/// A release, laid ready for disks of one size.
#[derive(Debug)]
pub struct Stock {
    manifest: Verified<ReleaseManifest>,
    bytes: Vec<u8>,
    size: u64,
    root: Arc<Backing>,
    verity: Arc<Backing>,
    files: BTreeMap<String, Arc<Backing>>,
    data: Arc<Map>,
    /// Small files of the ESP that are the same on all disks.
    texts: Mutex<BTreeMap<String, Arc<Blob>>>,
}

impl Stock {
    /// Lays a release ready for disks of `size` bytes.
    ///
    /// Every file is compared with what was signed. Images that were unpacked
    /// before are taken as they are.
    ///
    /// # Errors
    /// [`StockError`]; what was half made is removed.
    pub fn open(
        manifest: Verified<ReleaseManifest>,
        bytes: Vec<u8>,
        size: u64,
        places: &Places<'_>,
        told: Told<'_>,
    ) -> Result<Self, StockError> {
        // Before anything is made: a disk that is too small is refused at once.
        let layout = Layout::plan(size, &Digest::of(b""), manifest.architecture)
            .map_err(ComposeError::Layout)?;
        let Places { release, kept, .. } = places;
        fs::create_dir_all(kept).map_err(failed(kept, "make the folder"))?;
        let mut files = BTreeMap::new();
        let images = manifest.components.iter().map(|component| &component.image);
        for artifact in [&manifest.boot_loader, &manifest.uki]
            .into_iter()
            .chain(images)
        {
            let backing = checked(&release.join(&artifact.path), artifact)?;
            files.insert(artifact.path.clone(), Arc::new(backing));
        }
        let mut image = |content, part| -> Result<Arc<Backing>, StockError> {
            let image = Image::of(&manifest, content).map_err(|source| StockError::Image {
                path: release.join("manifest.json"),
                source,
            })?;
            let room = layout.partition(part).size;
            if image.size() > room {
                return Err(StockError::TooLarge {
                    part,
                    size: image.size(),
                    room,
                });
            }
            unpacked(image, release, kept, told).map(Arc::new)
        };
        let root = image(Content::Root, Part::Root(Slot::A))?;
        let verity = image(Content::Verity, Part::Verity(Slot::A))?;
        let room = layout.partition(Part::Data).size;
        told("data partition", 0, 1);
        let data = data_partition(&manifest, room, places)?;
        told("data partition", 1, 1);
        Ok(Self {
            manifest,
            bytes,
            size,
            root,
            verity,
            files,
            data: Arc::new(data),
            texts: Mutex::default(),
        })
    }

    /// Returns the release's manifest.
    pub fn manifest(&self) -> &Verified<ReleaseManifest> {
        &self.manifest
    }

    /// Returns the size of the disks in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Composes the disk of a customer, or of one unit of it.
    ///
    /// The same release, layer, size and unit give the same disk, and the name
    /// of a unit gives a disk GUIDs of its own.
    ///
    /// # Errors
    /// The layer's files and the release's do not fit together on the ESP.
    pub fn disk(&self, layer: &StoredLayer, unit: Option<&UnitName>) -> Result<Map, StockError> {
        let seed = seed(&self.bytes, layer.bytes.bytes(), unit);
        let mut layout = Layout::plan(self.size, &seed, self.manifest.architecture)
            .map_err(ComposeError::Layout)?;
        layout.set_slot(Slot::A, &self.manifest.root_hash);
        let release = Release {
            manifest: &self.manifest,
            bytes: &self.bytes,
        };
        let document = Layer {
            document: &layer.document,
            bytes: layer.bytes.bytes(),
        };
        let files = compose::esp_files(release, document)?;
        let mut disk = Builder::new(self.size);
        table(&mut disk, &layout)?;
        esp(&mut disk, &layout, &files, |file| {
            Ok(match &file.content {
                EspContent::Bytes(bytes) => Held::Memory(self.text(file, bytes, layer)),
                EspContent::Layer(_) => layer.image.clone(),
                EspContent::Release(artifact) => held(&self.files, artifact)?,
            })
        })?;
        for (part, file) in [
            (Part::Root(Slot::A), &self.root),
            (Part::Verity(Slot::A), &self.verity),
        ] {
            disk.file(
                layout.partition(part).start,
                file.size(),
                Arc::clone(file),
                0,
            );
        }
        disk.map(layout.partition(Part::Data).start, Arc::clone(&self.data));
        Ok(disk.build())
    }

    /// Bytes of the ESP, kept once where all disks have the same.
    fn text(&self, file: &EspFile, bytes: &[u8], layer: &StoredLayer) -> Arc<Blob> {
        if layer.bytes.bytes() == bytes {
            return Arc::clone(&layer.bytes);
        }
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        match texts.get(&file.path) {
            Some(known) if known.bytes() == bytes => Arc::clone(known),
            _ => {
                let blob = Arc::new(Blob::new(bytes));
                texts.insert(file.path.clone(), Arc::clone(&blob));
                blob
            }
        }
    }
}

/// Returns the seed of a disk's GUIDs.
pub fn seed(manifest: &[u8], layer: &[u8], unit: Option<&UnitName>) -> Digest {
    let mut bytes = [manifest, layer].concat();
    if let Some(unit) = unit {
        bytes.extend(format!("\nunit {unit}\n").as_bytes());
    }
    Digest::of(&bytes)
}

/// A file of the release that is at hand.
fn held(files: &BTreeMap<String, Arc<Backing>>, artifact: &Artifact) -> Result<Held, StockError> {
    let file = files.get(&artifact.path);
    let file = file.ok_or_else(|| ComposeError::Source {
        path: artifact.path.clone(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    Ok(Held::File(Arc::clone(file)))
}

/// Places the ESP on the disk: its file system, and what `content` holds for each file.
fn esp(
    disk: &mut Builder,
    layout: &Layout,
    files: &[EspFile],
    content: impl Fn(&EspFile) -> Result<Held, StockError>,
) -> Result<(), StockError> {
    let partition = layout.partition(Part::Esp);
    let volume = compose::volume_id(layout);
    let plan = esp::plan(partition.size, volume, files).map_err(ComposeError::Esp)?;
    let start = partition.start;
    disk.bytes(start, plan.boot());
    for (place, bytes) in plan.folders() {
        disk.bytes(start + place, bytes);
    }
    for (number, file) in files.iter().enumerate() {
        let at = start + plan.place(number);
        match content(file)? {
            Held::Memory(blob) => disk.blob(at, blob),
            Held::File(file) => disk.file(at, file.size(), file, 0),
        }
    }
    let tables = plan.tables();
    let chains = Arc::new(plan.into_chains());
    for table in tables {
        disk.chains(start + table.start, Arc::clone(&chains));
    }
    Ok(())
}

fn table(disk: &mut Builder, layout: &Layout) -> Result<(), StockError> {
    let pieces = gpt::pieces(layout).map_err(ComposeError::Table)?;
    for (place, bytes) in pieces {
        disk.bytes(place, &bytes);
    }
    Ok(())
}

/// Composes a stick that starts the release's installer, with the whole release
/// and the customer's layer on it. Its size follows from what is on it. With `settings`
/// the installer reaches the sky that they name; without, it looks for a factory.
///
/// # Errors
/// A file of the release is not as signed, or they do not fit onto a stick.
pub fn stick(
    manifest: &Verified<ReleaseManifest>,
    bytes: &[u8],
    release: &Path,
    layer: &StoredLayer,
    settings: Option<&StickSettings>,
) -> Result<Map, StockError> {
    let folder = esp::release_dir(manifest.version);
    let file = |path: String, content| EspFile { path, content };
    let mut files = vec![
        file(
            esp::boot_loader(manifest.architecture).to_owned(),
            EspContent::Release(manifest.installer.clone()),
        ),
        file(
            esp::manifest(manifest.version),
            EspContent::Bytes(bytes.to_vec()),
        ),
    ];
    let mut backings = BTreeMap::new();
    let images = manifest.components.iter().map(|component| &component.image);
    let artifacts = [&manifest.installer, &manifest.boot_loader, &manifest.uki];
    for artifact in artifacts.into_iter().chain(images) {
        let backing = checked(&release.join(&artifact.path), artifact)?;
        backings.insert(artifact.path.clone(), Arc::new(backing));
        if artifact.path != manifest.installer.path {
            files.push(file(
                format!("{folder}/{}", artifact.path),
                EspContent::Release(artifact.clone()),
            ));
        }
    }
    for content in [Content::Root, Content::Verity] {
        let image = Image::of(manifest, content);
        let image = image.map_err(|source| StockError::Image {
            path: release.join("manifest.json"),
            source,
        })?;
        let path = release.join(image.path());
        let digest = stored_digest(&path, image)?;
        let backing = Backing::open(&path, digest).map_err(failed(&path, "open"))?;
        files.push(file(
            format!("{folder}/{}", image.path()),
            EspContent::Release(Artifact {
                path: image.path().to_owned(),
                size: backing.size(),
                sha256: digest,
            }),
        ));
        backings.insert(image.path().to_owned(), Arc::new(backing));
    }
    files.push(file(
        esp::LAYER_JSON.to_owned(),
        EspContent::Bytes(layer.bytes.bytes().to_vec()),
    ));
    files.push(file(
        esp::LAYER_RAW.to_owned(),
        EspContent::Layer(layer.document.image.clone()),
    ));

    if let Some(settings) = settings {
        let text = serde_json::to_vec_pretty(settings).expect("two texts are JSON");
        files.push(file(
            esp::STICK_SETTINGS.to_owned(),
            EspContent::Bytes(text),
        ));
    }

    let seed = Digest::of(format!("stick {}", seed(bytes, layer.bytes.bytes(), None)).as_bytes());
    let content: u64 = files
        .iter()
        .map(|file| file.length().next_multiple_of(8192))
        .sum();
    let room = (content + STICK_SPARE).next_multiple_of(ALIGNMENT);
    let size = ALIGNMENT + room + ALIGNMENT;
    // The table of a stick has one partition only; the disk's GUID is derived as ever.
    let whole = size.max(crate::layout::MIN_DISK_SIZE);
    let mut layout =
        Layout::plan(whole, &seed, manifest.architecture).map_err(ComposeError::Layout)?;
    layout.disk_size = size;
    layout.partitions.truncate(1);
    layout.partitions[0].size = room;
    let mut disk = Builder::new(size);
    table(&mut disk, &layout)?;
    esp(&mut disk, &layout, &files, |file| {
        Ok(match &file.content {
            EspContent::Bytes(bytes) => Held::Memory(Arc::new(Blob::new(bytes.as_slice()))),
            EspContent::Layer(_) => layer.image.clone(),
            EspContent::Release(artifact) => held(&backings, artifact)?,
        })
    })?;
    Ok(disk.build())
}

/// The digest of a file of segments, each of which is compared with what was signed.
fn stored_digest(path: &Path, image: Image<'_>) -> Result<Digest, StockError> {
    let wrong = |source| StockError::Image {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed(path, "open"))?;
    let mut stored = Hashed(
        io::BufReader::with_capacity(1 << 20, file),
        sha2::Sha256::new(),
    );
    let mut writer = Writer::begin(image, Nowhere(image.size()), None).map_err(wrong)?;
    writer.push_all(&mut stored).map_err(wrong)?;
    Ok(Digest::from(<[u8; 32]>::from(stored.1.finalize())))
}

/// A reader that hashes what is read.
struct Hashed<R>(R, sha2::Sha256);

impl<R: io::Read> io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.update(&buffer[..count]);
        Ok(count)
    }
}

/// Takes everything and keeps nothing.
#[derive(Debug)]
struct Nowhere(u64);

impl Target for Nowhere {
    fn read_at(&mut self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.0
    }
}

/// Opens the unpacked form of an image, which is made where it is missing.
fn unpacked(
    image: Image<'_>,
    release: &Path,
    kept: &Path,
    told: Told<'_>,
) -> Result<Backing, StockError> {
    let digest = image.identity();
    let place = kept.join(format!("{digest}.image"));
    if let Ok(backing) = Backing::open(&place, digest)
        && backing.size() == image.size()
    {
        return Ok(backing);
    }
    let path = release.join(image.path());
    let file = File::open(&path).map_err(failed(&path, "open"))?;
    let mut stored = Counted {
        reader: io::BufReader::with_capacity(1 << 20, file),
        told,
        label: image.path().to_owned(),
        done: 0,
        total: image.stored_size(),
    };
    let draft = draft(kept)?;
    let disk = Disk::create(draft.path(), image.size()).map_err(failed(draft.path(), "create"))?;
    let unpack = || -> Result<(), WriteError> {
        let mut writer = Writer::begin(image, disk, None)?;
        writer.push_all(&mut stored)?;
        writer.finish()?;
        Ok(())
    };
    unpack().map_err(|source| StockError::Image { path, source })?;
    keep(draft, &place)?;
    Backing::open(&place, digest).map_err(failed(&place, "open"))
}

fn draft(kept: &Path) -> Result<tempfile::NamedTempFile, StockError> {
    tempfile::Builder::new()
        .prefix(".making-")
        .tempfile_in(kept)
        .map_err(failed(kept, "make a file in the folder"))
}

fn keep(draft: tempfile::NamedTempFile, place: &Path) -> Result<(), StockError> {
    draft
        .as_file()
        .sync_all()
        .map_err(failed(draft.path(), "flush"))?;
    draft
        .persist(place)
        .map_err(|error| failed(place, "write")(error.error))?;
    let folder = place.parent().unwrap_or(Path::new("."));
    edge::durable::sync_dir(folder).map_err(failed(folder, "flush"))
}

/// A reader that tells how far it is.
struct Counted<'a, R> {
    reader: R,
    told: Told<'a>,
    label: String,
    done: u64,
    total: u64,
}

impl<R: io::Read> io::Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.done += count as u64;
        (self.told)(&self.label, self.done, self.total);
        Ok(count)
    }
}

/// The empty file system of the data partition: made once for a release and a size.
fn data_partition(
    manifest: &Verified<ReleaseManifest>,
    size: u64,
    places: &Places<'_>,
) -> Result<Map, StockError> {
    let Places {
        kept,
        mke2fs,
        maker,
        time,
        ..
    } = places;
    let release = manifest.root_hash;
    let name = format!("data of {size} bytes for {release} by {maker} at {time}");
    let digest = Digest::of(name.as_bytes());
    let place = kept.join(format!("{digest}.data"));
    let right = |path: &Path| fs::metadata(path).is_ok_and(|found| found.len() == size);
    if !right(&place) {
        let draft = draft(kept)?;
        let make = || -> anyhow::Result<()> {
            draft
                .as_file()
                .set_len(size)
                .context("make a sparse file")?;
            let uuid = uuid::Builder::from_custom_bytes(first(&digest)).into_uuid();
            // mke2fs takes its defaults from a file of the host. Where there is none, it
            // takes those that it was built with, journal and all.
            mke2fs()?
                .args(["-q", "-F", "-t", "ext4", "-L", "data", "-m", "1", "-U"])
                .arg(uuid.to_string())
                .arg("-E")
                .arg(format!(
                    "root_owner=0:0,hash_seed={uuid},lazy_itable_init=1,lazy_journal_init=1,nodiscard"
                ))
                .arg(draft.path())
                .arg(format!("{}k", size / 1024))
                .env("MKE2FS_CONFIG", "/nonexistent")
                .env("SOURCE_DATE_EPOCH", time.to_string())
                .env("E2FSPROGS_FAKE_TIME", time.to_string())
                .run()
        };
        make().map_err(StockError::Data)?;
        keep(draft, &place)?;
    }
    let map = data_extents(&place, size);
    map.map_err(failed(&place, "read"))
}

fn first(digest: &Digest) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes
}

/// Finds the blocks of a sparse file that are not zeros.
///
/// Blocks and not the file system's extents: where these lie depends on the host.
fn data_extents(path: &Path, size: u64) -> io::Result<Map> {
    let file = File::open(path)?;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 256 * BLOCK];
    let mut end = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
        end = seek(&file, SeekFrom::Hole(start))?;
        let mut at = start / BLOCK as u64 * BLOCK as u64;
        while at < end {
            let left = usize::try_from(size - at).unwrap_or(usize::MAX);
            let now = left.min(buffer.len());
            file.read_exact_at(&mut buffer[..now], at)?;
            for block in buffer[..now].chunks(BLOCK) {
                let length = block.len() as u64;
                if at < end && block.iter().any(|byte| *byte != 0) {
                    hash.update(at.to_le_bytes());
                    hash.update(block);
                    match runs.last_mut() {
                        Some((start, old)) if *start + *old == at => *old += length,
                        _ => runs.push((at, length)),
                    }
                }
                at += length;
            }
        }
    }
    let digest = Digest::from(<[u8; 32]>::from(hash.finalize()));
    let backing = Arc::new(Backing::open(path, digest)?);
    let mut map = Builder::new(size);
    for (start, length) in runs {
        map.file(start, length, Arc::clone(&backing), start);
    }
    Ok(map.build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::tests::Parts;
    use crate::layout::MIN_DISK_SIZE;
    use edge::runner::Tool;
    use model::Architecture;
    use proptest::prelude::*;

    const MANIFEST: &[u8] = b"signed manifest";
    const LAYER: &[u8] = b"signed layer";

    fn stock(parts: &Parts, size: u64) -> Result<Stock, StockError> {
        let places = Places {
            release: parts.folder.path(),
            kept: &parts.folder.path().join("kept"),
            mke2fs: &|| Ok(Tool::new("mke2fs")),
            maker: "test",
            time: 1_700_000_000,
        };
        let manifest = parts.manifest.clone();
        Stock::open(
            manifest,
            MANIFEST.to_vec(),
            size,
            &places,
            &mut |_, _, _| {},
        )
    }

    fn layer(parts: &Parts) -> Result<StoredLayer, StockError> {
        let image = parts.folder.path().join("layer.raw");
        StoredLayer::open(parts.layer.clone(), LAYER.to_vec(), &image)
    }

    /// The disk that the composer of files writes, without its data partition.
    fn written(parts: &Parts) -> Disk {
        let mut disk = Disk::create(&parts.folder.path().join("disk"), MIN_DISK_SIZE).unwrap();
        let seed = seed(MANIFEST, LAYER, None);
        let (release, layer) = (parts.release(), parts.layer());
        compose::compose(&mut disk, &seed, release, layer, &mut parts.source()).unwrap();
        disk
    }

    #[test]
    fn a_composed_disk_has_the_bytes_of_a_written_one() {
        let parts = Parts::make();
        let stock = stock(&parts, MIN_DISK_SIZE).unwrap();
        let disk = stock.disk(&layer(&parts).unwrap(), None).unwrap();
        let mut file = written(&parts);
        let layout = gpt::read(&mut file).unwrap();
        let data = layout.partition(Part::Data);
        let mut ours = vec![0; 1 << 20];
        let mut theirs = vec![0; 1 << 20];
        let compare = |disk: &Map, file: &mut Disk, at: u64, ours: &mut [u8], theirs: &mut [u8]| {
            disk.read_at(at, ours).unwrap();
            file.read_at(at, theirs).unwrap();
            ours == theirs
        };
        // Whatever either of them holds; the zeros between are too many to look at all.
        let mut at = 0;
        for piece in disk.pieces(0..data.start) {
            let from = at / (1 << 20) * (1 << 20);
            let to = at + piece.length;
            let zeros = matches!(piece.source, crate::extents::Source::Zeros);
            for place in (from..to)
                .step_by(1 << 20)
                .take(if zeros { 2 } else { usize::MAX })
            {
                assert!(
                    compare(&disk, &mut file, place, &mut ours, &mut theirs),
                    "at {place}"
                );
            }
            at = to;
        }
        let end = data.start + data.size;
        assert!(
            compare(&disk, &mut file, end, &mut ours, &mut theirs),
            "backup table"
        );
        proptest!(ProptestConfig::with_cases(300), |(at in 0..data.start - 70_000, length in 0usize..70_000)| {
            let (mut ours, mut theirs) = (vec![0; length], vec![0; length]);
            disk.read_at(at, &mut ours).unwrap();
            file.file().read_exact_at(&mut theirs, at).unwrap();
            prop_assert!(ours == theirs, "at {}", at);
        });
    }

    #[test]
    fn the_data_partition_is_an_empty_file_system_that_all_disks_share() {
        let parts = Parts::make();
        let stock = stock(&parts, MIN_DISK_SIZE).unwrap();
        let disk = stock.disk(&layer(&parts).unwrap(), None).unwrap();
        let layout = Layout::plan(MIN_DISK_SIZE, &Digest::of(b""), Architecture::Amd64).unwrap();
        let data = layout.partition(Part::Data);
        let place = parts.folder.path().join("data");
        let mut file = Disk::create(&place, data.size).unwrap();
        let mut at = 0;
        for piece in disk.pieces(data.start..data.start + data.size) {
            if !matches!(piece.source, crate::extents::Source::Zeros) {
                let mut bytes = vec![0; usize::try_from(piece.length).unwrap()];
                piece.read(&mut bytes).unwrap();
                file.write_at(at, &bytes).unwrap();
            }
            at += piece.length;
        }
        Tool::new("e2fsck").arg("-fn").arg(&place).run().unwrap();
        let said = Tool::new("debugfs")
            .args(["-R", "ls -p /"])
            .arg(&place)
            .text()
            .unwrap();
        assert!(
            said.contains("/lost+found/") && !said.contains("identity"),
            "{said}"
        );
        // Made again elsewhere it is the same, and so is the whole disk.
        let other = Parts::make();
        let again = self::stock(&other, MIN_DISK_SIZE).unwrap();
        assert_eq!(
            again.disk(&layer(&other).unwrap(), None).unwrap().id(),
            disk.id()
        );
    }

    #[test]
    fn disks_differ_by_layer_unit_and_size_and_keep_little_of_their_own() {
        let parts = Parts::make();
        let stock = stock(&parts, MIN_DISK_SIZE).unwrap();
        let one = layer(&parts).unwrap();
        let mut other = one.clone();
        other.bytes = Arc::new(Blob::new(&b"another layer"[..]));
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        let larger = self::stock(&parts, MIN_DISK_SIZE + (1 << 20)).unwrap();
        let mut ids = vec![
            stock.disk(&one, None).unwrap().id(),
            stock.disk(&one, Some(&unit)).unwrap().id(),
            stock.disk(&other, None).unwrap().id(),
            larger.disk(&one, None).unwrap().id(),
        ];
        assert_eq!(stock.disk(&one, None).unwrap().id(), ids[0]);
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 4);
        let own = stock.disk(&one, None).unwrap().own_memory();
        assert!(own < 64 << 10, "{own} bytes");
    }

    #[test]
    fn what_is_not_as_signed_is_refused_and_leaves_nothing_behind() {
        let parts = Parts::make();
        let kept = parts.folder.path().join("kept");
        let place = |path: &str| parts.folder.path().join(path);
        let whole = fs::read(place("root.seg")).unwrap();
        for broken in [&whole[..whole.len() - 9], &whole[1..]] {
            fs::write(place("root.seg"), broken).unwrap();
            let error = stock(&parts, MIN_DISK_SIZE).unwrap_err();
            assert!(matches!(error, StockError::Image { .. }), "{error}");
            assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
        }
        fs::write(place("root.seg"), whole).unwrap();
        for path in ["leapserv.efi", "components/backup.raw"] {
            let good = fs::read(place(path)).unwrap();
            let mut bad = good.clone();
            bad[0] ^= 1;
            fs::write(place(path), bad).unwrap();
            let error = stock(&parts, MIN_DISK_SIZE).unwrap_err();
            assert!(matches!(error, StockError::NotAsSigned { .. }), "{error}");
            fs::remove_file(place(path)).unwrap();
            let error = stock(&parts, MIN_DISK_SIZE).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
            fs::write(place(path), good).unwrap();
        }
        fs::write(place("layer.raw"), b"other").unwrap();
        assert!(matches!(layer(&parts), Err(StockError::NotAsSigned { .. })));
        let small = stock(&parts, MIN_DISK_SIZE - 1).unwrap_err();
        assert!(matches!(
            small,
            StockError::Compose(ComposeError::Layout(_))
        ));
    }

    #[test]
    fn a_stick_holds_the_installer_the_release_and_the_layer() {
        let parts = Parts::make();
        fs::write(parts.folder.path().join("installer.efi"), b"installer").unwrap();
        let layer = layer(&parts).unwrap();
        let settings = StickSettings {
            sky: "https://sky.example:8443".into(),
            ca: "PEM".into(),
        };
        let make = |settings: Option<&StickSettings>| {
            let folder = parts.folder.path();
            stick(&parts.manifest, MANIFEST, folder, &layer, settings).unwrap()
        };
        let disk = make(Some(&settings));
        assert_eq!(disk.id(), make(Some(&settings)).id());
        assert_ne!(disk.id(), make(None).id());
        let place = parts.folder.path().join("stick");
        let mut file = Disk::create(&place, disk.size()).unwrap();
        let mut at = 0;
        for piece in disk.pieces(0..disk.size()) {
            let mut bytes = vec![0; usize::try_from(piece.length).unwrap()];
            piece.read(&mut bytes).unwrap();
            file.write_at(at, &bytes).unwrap();
            at += piece.length;
        }
        let said = Tool::new("sgdisk")
            .arg("--verify")
            .arg(&place)
            .text()
            .unwrap();
        assert!(said.contains("No problems found"), "{said}");
        let size = disk.size() - 2 * ALIGNMENT;
        let fat = esp::Fat::open(crate::Window::new(file, ALIGNMENT, size)).unwrap();
        assert_eq!(
            fat.read(esp::boot_loader(Architecture::Amd64)).unwrap(),
            b"installer"
        );
        assert_eq!(fat.read(esp::LAYER_RAW).unwrap(), b"layer");
        let read = fat.read(esp::STICK_SETTINGS).unwrap();
        assert_eq!(
            serde_json::from_slice::<StickSettings>(&read).unwrap(),
            settings
        );
        assert!(fat.read(esp::STICK_PASS).is_err(), "no secret is composed");
        let folder = esp::release_dir(parts.manifest.version);
        for path in [
            "root.seg",
            "verity.seg",
            "leapserv.efi",
            "components/backup.raw",
        ] {
            let expected = fs::read(parts.folder.path().join(path)).unwrap();
            assert!(
                fat.read(&format!("{folder}/{path}")).unwrap() == expected,
                "{path}"
            );
        }
        fs::write(parts.folder.path().join("verity.seg"), b"evil").unwrap();
        assert!(stick(&parts.manifest, MANIFEST, parts.folder.path(), &layer, None).is_err());
    }
}
