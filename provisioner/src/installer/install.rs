//! Applies an install plan: the only code of this crate that writes a disk.
//!
//! Runs on a thread of its own and asks the link for bytes. Every byte is
//! compared with its signed digest before it is written, and read back after.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use edge::runner::Tool;
use model::api::InstallStep;
use model::release::{Artifact, ReleaseManifest, SEGMENT_SIZE, SegmentedImage};
use model::{Digest, Verified};
use rustix::fs::{Advice, fadvise};
use slots::esp::{Birth, EspContent, EspError, EspFile, Fat, Incoming as _};
use slots::writer::{Content, Image, WriteError, Writer, fetch_ranges};
use slots::{Disk, Mirror, Part, Target, Window, enrol, esp, gpt};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::console::Console;
use super::link::{Link, LinkError};
use super::mirror;
use super::permit::ErasePermit;
use super::plan::{Action, Plan};

/// How often something that arrives altered is fetched again.
const REFETCH: u32 = 3;
/// Bytes between two flushes of a slot.
const BATCH: u64 = 64 << 20;
/// Place of the identity on the data partition, which is `/var` on the unit.
const IDENTITY: &str = "lib/leapserv/identity";
/// Where the programs of an initial RAM disk are.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The customer's layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The signed document, as received and verified.
    pub document: Bytes,
    /// The image, of the digest that the document names.
    pub image: Bytes,
}

/// A file of the identity.
#[derive(Debug)]
pub struct Paper {
    /// Its name.
    pub name: &'static str,
    /// Its content.
    pub content: Zeroizing<String>,
    /// Its mode: 0600 for what is secret.
    pub mode: u32,
}

/// Everything that an installation needs.
#[derive(Debug)]
pub struct Job {
    /// What to do.
    pub plan: Plan,
    /// The permission to do it.
    pub permit: ErasePermit,
    /// The release.
    pub manifest: Arc<Verified<ReleaseManifest>>,
    /// Its bytes as signed.
    pub manifest_bytes: Bytes,
    /// The customer's layer, where there is one.
    pub layer: Option<Layer>,
    /// The identity.
    pub papers: Vec<Paper>,
    /// Where the bytes come from.
    pub link: Link,
    /// Where progress is shown.
    pub progress: Progress,
    /// A folder in memory for what is on its way to the disk.
    pub scratch: PathBuf,
}

/// Shows progress on the console and passes it on.
#[derive(Debug, Clone)]
pub struct Progress {
    console: Console,
    told: tokio::sync::watch::Sender<Option<model::api::Progress>>,
}

impl Progress {
    /// Progress on a console; what is told can be watched.
    pub fn new(console: Console) -> Self {
        let (told, _) = tokio::sync::watch::channel(None);
        Self { console, told }
    }

    /// Watches what is told.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<Option<model::api::Progress>> {
        self.told.subscribe()
    }

    /// So much of a step is done.
    pub fn step(&self, step: InstallStep, done: u64, total: u64) {
        self.console.step(step, done, total);
        self.told.send_replace(Some(model::api::Progress {
            step,
            done,
            total,
            seconds: self.console.seconds(),
            problem: None,
        }));
    }
}

/// Does everything that the plan says. Blocks: call it off the event loop, on
/// a thread from which the runtime can be reached.
///
/// # Errors
/// The first step that failed. The disk does not start then: its boot loader
/// is placed last.
pub fn apply(job: &Job) -> Result<()> {
    job.permit.recheck()?;
    let birth = plan_esp(job)?;
    let mut steps = Steps::of(job);
    for action in &job.plan.actions {
        act(job, &birth, &mut steps, action).with_context(|| action.to_string())?;
    }
    Ok(())
}

/// Bytes of each step, so that per cents mean something.
struct Steps {
    verity_offset: u64,
    write: u64,
    boot: u64,
    placed: u64,
}

impl Steps {
    fn of(job: &Job) -> Self {
        let manifest = &job.manifest;
        let components: u64 = manifest.components.iter().map(|c| c.image.size).sum();
        Self {
            verity_offset: manifest.root.stored_size,
            write: manifest.root.stored_size + manifest.verity.stored_size,
            boot: manifest.uki.size + components,
            placed: 0,
        }
    }
}

/// Plans the ESP with all that the actions will place on it.
fn plan_esp(job: &Job) -> Result<Birth> {
    let layout = job.plan.layout();
    let mut files = Vec::new();
    let mut file = |path: &str, content| {
        files.push(EspFile {
            path: path.to_owned(),
            content,
        });
    };
    for action in &job.plan.actions {
        match action {
            Action::PlaceManifest { path } => {
                file(path, EspContent::Bytes(job.manifest_bytes.to_vec()));
            }
            Action::PlaceFile { artifact, path } => {
                file(path, EspContent::Release(artifact.clone()));
            }
            Action::PlaceLayer => {
                if let Some(layer) = &job.layer {
                    file(esp::LAYER_JSON, EspContent::Bytes(layer.document.to_vec()));
                    file(esp::LAYER_RAW, EspContent::Bytes(layer.image.to_vec()));
                }
            }
            Action::PlaceBootLoader { artifact } => {
                let text = match job.manifest.secure_boot {
                    Some(_) => enrol::loader_conf(),
                    None => esp::LOADER_CONF_TEXT.to_owned(),
                };
                file(esp::LOADER_CONF, EspContent::Bytes(text.into_bytes()));
                file(
                    esp::boot_loader(job.manifest.architecture),
                    EspContent::Release(artifact.clone()),
                );
            }
            _ => {}
        }
    }
    // In the order in which the second disk of a mirror is kept up to date.
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let volume = slots::compose::volume_id(layout);
    Ok(Birth::plan(
        layout.partition(Part::Esp).size,
        volume,
        files,
    )?)
}

fn act(job: &Job, birth: &Birth, steps: &mut Steps, action: &Action) -> Result<()> {
    let Job { plan, permit, .. } = job;
    match action {
        Action::WriteTable => {
            job.progress.step(InstallStep::Partition, 0, 2);
            for (mut disk, planned) in permit.open_each()?.into_iter().zip(&plan.disks) {
                gpt::write(&mut disk, &planned.layout)?;
            }
            Ok(())
        }
        Action::FormatEsp => {
            job.progress.step(InstallStep::Partition, 1, 2);
            Ok(birth.begin(&mut open_part(job, Part::Esp)?)?)
        }
        Action::WriteImage { content, part } => {
            let before = match content {
                Content::Root => 0,
                Content::Verity => steps.verity_offset,
            };
            write_image(job, *content, *part, before, steps.write)
        }
        Action::PlaceManifest { path } => place_bytes(job, birth, path),
        Action::PlaceFile { artifact, path } => {
            place_file(job, birth, artifact, path, |done| {
                let done = steps.placed + done;
                job.progress.step(InstallStep::Boot, done, steps.boot);
            })?;
            steps.placed += artifact.size;
            Ok(())
        }
        Action::PlaceLayer => match &job.layer {
            Some(_) => {
                place_bytes(job, birth, esp::LAYER_JSON)?;
                place_bytes(job, birth, esp::LAYER_RAW)
            }
            None => Ok(()),
        },
        Action::MirrorData => mirror::create(&plan.disks).context("mirror the data partitions"),
        Action::MakeData => make_data(job),
        Action::ReadBack => read_back(job, birth),
        Action::PlaceBootLoader { artifact } => {
            place_bytes(job, birth, esp::LOADER_CONF)?;
            place_file(
                job,
                birth,
                artifact,
                esp::boot_loader(job.manifest.architecture),
                |_| {},
            )?;
            // The head of the file system: with it the disk starts.
            birth.finish(&mut open_part(job, Part::Esp)?)?;
            permit.open()?.flush().context("flush the disk")?;
            for disk in permit.open_each()? {
                let esp = window(job, drop_cache(disk)?, Part::Esp);
                let path = esp::boot_loader(job.manifest.architecture);
                expect_artifact(&Fat::open(esp)?, path, artifact)?;
            }
            job.progress.step(InstallStep::Verify, 1, 1);
            Ok(())
        }
    }
}

/// A partition, on all disks.
fn open_part(job: &Job, part: Part) -> Result<Window<Mirror<Disk>>> {
    Ok(window(job, job.permit.open()?, part))
}

fn window<T: Target>(job: &Job, disk: T, part: Part) -> Window<T> {
    let partition = job.plan.layout().partition(part);
    Window::new(disk, partition.start, partition.size)
}

/// Places what was planned as bytes, durably.
fn place_bytes(job: &Job, birth: &Birth, path: &str) -> Result<()> {
    let mut esp = open_part(job, Part::Esp)?;
    birth.place_bytes(path, &mut esp)?;
    esp.flush().context("flush the ESP")
}

fn write_image(job: &Job, content: Content, part: Part, before: u64, total: u64) -> Result<()> {
    let image = Image::of(&job.manifest, content)?;
    let mut writer = Writer::begin(image, open_part(job, part)?, None)?.with_batch(BATCH);
    let mut altered = 0;
    loop {
        let missing = writer.missing();
        if missing.is_empty() {
            break;
        }
        for range in fetch_ranges(image, &missing, 0, u64::MAX) {
            let version = job.plan.release;
            let mut pieces = job
                .link
                .stream(version, image.path(), range.offset, range.length);
            let mut feed = writer.feed(&range);
            let mut place = before + range.offset;
            while let Some(piece) = pieces.blocking_recv() {
                let piece = piece?;
                place += u64::try_from(piece.len()).expect("a piece in memory");
                match feed.push(&piece) {
                    Ok(()) => job.progress.step(InstallStep::Write, place, total),
                    // Not written. What comes after it is fetched again too.
                    Err(problem @ WriteError::BadSegment { .. }) => {
                        altered += 1;
                        job.link.distrust_shelf();
                        if altered > REFETCH {
                            return Err(problem.into());
                        }
                        let console = &job.progress.console;
                        console.line(&format!("altered on the way, fetched again: {problem}"));
                        break;
                    }
                    Err(problem) => return Err(problem.into()),
                }
            }
        }
    }
    writer.finish()?;
    Ok(())
}

fn place_file(
    job: &Job,
    birth: &Birth,
    artifact: &Artifact,
    path: &str,
    progress: impl Fn(u64),
) -> Result<()> {
    let mut tries = 0;
    loop {
        let version = job.plan.release;
        let mut pieces = job.link.stream(version, &artifact.path, 0, artifact.size);
        let mut place = || -> Result<()> {
            let mut esp = open_part(job, Part::Esp)?;
            let mut file = birth.place(path, &mut esp)?;
            let mut done = 0;
            while let Some(piece) = next(&mut pieces)? {
                file.push(&piece)?;
                done += u64::try_from(piece.len()).expect("a piece in memory");
                progress(done);
            }
            file.finish()?;
            esp.flush().context("flush the ESP")
        };
        match place() {
            Err(problem) if tries < REFETCH && is_altered(&problem) => {
                tries += 1;
                job.link.distrust_shelf();
                let console = &job.progress.console;
                console.line(&format!("altered on the way, fetched again: {problem:#}"));
            }
            other => return other,
        }
    }
}

fn next(pieces: &mut mpsc::Receiver<Result<Bytes, LinkError>>) -> Result<Option<Bytes>> {
    Ok(pieces.blocking_recv().transpose()?)
}

fn is_altered(problem: &anyhow::Error) -> bool {
    matches!(problem.downcast_ref(), Some(EspError::NotAsSigned { .. }))
}

fn make_data(job: &Job) -> Result<()> {
    job.progress.step(InstallStep::Identity, 0, 1);
    let seed = job.scratch.join("data");
    // A try before this one may have left it.
    match fs::remove_dir_all(&seed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("remove the seed of the data partition");
        }
        _ => {}
    }
    let made = seed_and_format(job, &seed);
    // The keys are on the disk now, or the installation has failed.
    drop(fs::remove_dir_all(&seed));
    made?;
    let place = DataPlace::of(job);
    let device = Disk::open_read_only(&place.device)
        .with_context(|| format!("open {}", place.device.display()))?;
    let mut data = Window::new(device, place.start, place.size.unwrap_or(u64::MAX));
    data.flush().context("flush the data partition")?;
    let mut magic = [0; 2];
    data.read_at(1024 + 56, &mut magic)
        .context("read the data partition back")?;
    ensure!(
        magic == [0x53, 0xef],
        "data partition: no file system on it"
    );
    drop(data);
    if job.plan.is_mirrored() {
        mirror::stop()?;
    }
    job.progress.step(InstallStep::Identity, 1, 1);
    Ok(())
}

/// Where the file system for data goes.
struct DataPlace {
    device: PathBuf,
    /// Its first byte on the device.
    start: u64,
    /// Its size in bytes; none for all of the device.
    size: Option<u64>,
}

impl DataPlace {
    fn of(job: &Job) -> Self {
        if job.plan.is_mirrored() {
            return Self {
                device: PathBuf::from(mirror::DEVICE),
                start: 0,
                size: None,
            };
        }
        let partition = job.plan.layout().partition(Part::Data);
        Self {
            device: PathBuf::from(&job.plan.disks[0].path),
            start: partition.start,
            size: Some(partition.size),
        }
    }
}

fn seed_and_format(job: &Job, seed: &Path) -> Result<()> {
    let describe = || format!("make {}", seed.display());
    let mut dir = seed.to_owned();
    for (name, mode) in [
        ("", 0o755),
        ("lib", 0o755),
        ("leapserv", 0o755),
        ("identity", 0o700),
    ] {
        dir.push(name);
        fs::create_dir_all(&dir).with_context(describe)?;
        fs::set_permissions(&dir, Permissions::from_mode(mode)).with_context(describe)?;
    }
    debug_assert!(dir.ends_with(IDENTITY), "the folders spell the path");
    for paper in &job.papers {
        let path = dir.join(paper.name);
        fs::write(&path, paper.content.as_bytes()).with_context(describe)?;
        fs::set_permissions(&path, Permissions::from_mode(paper.mode)).with_context(describe)?;
    }
    let place = DataPlace::of(job);
    Tool::new("mke2fs")
        .args([
            "-q", "-F", "-t", "ext4", "-L", "data", "-b", "4096", "-m", "1",
        ])
        // No discard: with an offset, old versions discarded from the start of the disk.
        .args(["-E", "nodiscard"])
        .arg("-E")
        .arg(format!(
            "offset={},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
            place.start
        ))
        .arg("-d")
        .arg(seed)
        .arg(&place.device)
        .args(place.size.map(|size| format!("{}k", size / 1024)))
        .env("PATH", PATH)
        .run()
}

fn read_back(job: &Job, birth: &Birth) -> Result<()> {
    let manifest = &job.manifest;
    let images = [
        (&manifest.root, Part::Root(job.plan.slot)),
        (&manifest.verity, Part::Verity(job.plan.slot)),
    ];
    let disks = u64::try_from(job.plan.disks.len())?;
    let total = disks * (manifest.root.size + manifest.verity.size + manifest.uki.size);
    let mut done = 0;
    job.progress.step(InstallStep::Verify, 0, total);
    job.permit.open()?.flush().context("flush the disk")?;
    for disk in 0..job.plan.disks.len() {
        let open = || -> Result<Disk> { Ok(job.permit.open_each()?.swap_remove(disk)) };
        drop_cache(open()?)?;
        for (image, part) in images {
            let open = || Ok(window(job, open()?, part));
            verify_image(image, part, open, |here| {
                job.progress.step(InstallStep::Verify, done + here, total);
            })?;
            done += image.size;
        }
        let esp = window(job, open()?, Part::Esp);
        verify_files(job, &Fat::open(birth.preview(esp))?)?;
        done += manifest.uki.size;
    }
    Ok(())
}

fn verify_files<T: Target>(job: &Job, fat: &Fat<T>) -> Result<()> {
    for action in &job.plan.actions {
        match action {
            Action::PlaceFile { artifact, path } => expect_artifact(fat, path, artifact)?,
            Action::PlaceManifest { path } => {
                let same = fat.read(path)? == job.manifest_bytes;
                ensure!(same, "ESP: {path}: does not read back as written");
            }
            _ => {}
        }
    }
    if let Some(layer) = &job.layer {
        let same = fat.read(esp::LAYER_RAW)? == layer.image;
        ensure!(
            same,
            "ESP: the customer's layer does not read back as written"
        );
    }
    Ok(())
}

/// Reads an image back on all processors: hashing is what takes the time.
fn verify_image<T: Target>(
    image: &SegmentedImage,
    part: Part,
    open: impl Fn() -> Result<T> + Sync,
    progress: impl Fn(u64) + Sync,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done = AtomicU64::new(0);
    let verify = |first: usize| -> Result<()> {
        let mut window = open()?;
        let mut content = Vec::new();
        for (index, segment) in image
            .segments
            .iter()
            .enumerate()
            .skip(first)
            .step_by(threads)
        {
            content.resize(usize::try_from(segment.length)?, 0);
            window
                .read_at(u64::try_from(index)? * SEGMENT_SIZE, &mut content)
                .with_context(|| format!("{part}: read segment {index} back"))?;
            ensure!(
                Digest::of(&content) == segment.sha256,
                "{part}: segment {index} does not read back as signed"
            );
            let length = u64::from(segment.length);
            progress(done.fetch_add(length, Ordering::Relaxed) + length);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let verify = &verify;
        let running: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || verify(first)))
            .collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().expect("reading back does not panic"))
    })
}

fn expect_artifact<T: Target>(fat: &Fat<T>, path: &str, artifact: &Artifact) -> Result<()> {
    let found = Digest::of(&fat.read(path)?);
    if found != artifact.sha256 {
        bail!("ESP: {path}: does not read back as signed");
    }
    Ok(())
}

/// Makes the next reads come from the medium and not from memory.
fn drop_cache(mut disk: Disk) -> Result<Disk> {
    disk.flush().context("flush the disk")?;
    fadvise(disk.file(), 0, None, Advice::DontNeed).context("drop the disk's cache")?;
    Ok(disk)
}
