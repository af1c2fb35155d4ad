//! Writes a release into the other slot. The only code of the updater that touches a disk.
//!
//! The order is the safety: entries that start the slot go first, then the
//! slot is written, then what lies beside it on the ESP, then the partitions
//! get their names, and last the kernel gets its own. That rename is the
//! commit: before it nothing starts the new release, after it everything that
//! it needs is there.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use model::Verified;
use model::release::{Artifact, ReleaseManifest};
use slots::decide::WritePlan;
use slots::esp::{self, Entry, Incoming as _};
use slots::writer::{
    Content, FetchRange, Image, Progress, WriteError, Writer, fetch_ranges, forget,
};
use slots::{Disk, Part, Target, Window};

use crate::site::Site;
use crate::sky::Files;
use crate::update::Running;

/// Bytes between two missing segments that are rather fetched along than asked for twice.
const GAP: u64 = 64 << 10;
/// Bytes of one request.
const REQUEST: u64 = 8 << 20;
/// How often a request is repeated before the update waits for the next check-in.
const TRIES: u32 = 5;

/// One release on its way into one slot.
#[derive(Debug)]
pub struct Job<'a> {
    /// The unit.
    pub site: &'a Site,
    /// What runs.
    pub running: &'a Running,
    /// The new release.
    pub manifest: &'a Verified<ReleaseManifest>,
    /// `manifest.json` as it was signed.
    pub bytes: &'a [u8],
    /// What was decided.
    pub plan: &'a WritePlan,
    /// The running release, to copy what has not changed.
    pub old: Option<&'a Verified<ReleaseManifest>>,
    /// The new release's files.
    pub files: &'a Files,
}

/// Carries the plan out. After a power cut or an error it goes on where it was.
///
/// # Errors
/// What failed; the running system and its way back are untouched.
pub async fn apply(job: &Job<'_>, mut say: impl FnMut(Progress)) -> Result<()> {
    let esp = job.site.esp();
    for entry in &job.plan.remove_entries {
        esp.remove(&entry.path())?;
    }
    for release in &job.plan.remove_releases {
        esp.remove_release(*release)?;
    }
    let mut done = Progress::default();
    let images = [
        (Content::Root, Part::Root(job.plan.slot), "root"),
        (Content::Verity, Part::Verity(job.plan.slot), "verity"),
    ];
    let mut total = 0;
    for (content, _, _) in images {
        total += Image::of(job.manifest, content)?.segments() as u64;
    }
    for (content, part, name) in images {
        let progress = write_image(job, content, part, name, |now| {
            say(add(done, now, total));
        })
        .await?;
        done = add(done, progress, total);
        say(done);
    }
    tracing::info!(
        segments = done.done,
        resumed = done.resumed,
        copied = done.copied,
        "slot written"
    );

    let version = job.manifest.version;
    esp.write(&esp::manifest(version), job.bytes)?;
    for component in &job.manifest.components {
        let path = esp::component(version, component)
            .ok_or_else(|| anyhow!("component {}: path leads out", component.name))?;
        place(job.site, job.files, &path, &component.image).await?;
    }
    place(
        job.site,
        job.files,
        esp::boot_loader(job.manifest.architecture),
        &job.manifest.boot_loader,
    )
    .await?;
    let mut disk = open(job)?;
    tokio::task::block_in_place(|| {
        slots::gpt::set_slot(&mut disk, job.plan.slot, &job.manifest.root_hash)
    })?;
    drop(disk);
    // The commit.
    let entry = Entry::new(version, job.manifest.tries);
    place(job.site, job.files, &entry.path(), &job.manifest.uki).await?;
    for (_, _, name) in images {
        forget(&journal(job, name)).context("remove journal")?;
    }
    Ok(())
}

fn add(done: Progress, now: Progress, total: u64) -> Progress {
    Progress {
        done: done.done + now.done,
        total,
        resumed: done.resumed + now.resumed,
        copied: done.copied + now.copied,
    }
}

fn open(job: &Job<'_>) -> Result<Disk> {
    let path = &job.running.disk;
    Disk::open(path).with_context(|| format!("open {}", path.display()))
}

fn journal(job: &Job<'_>, name: &str) -> std::path::PathBuf {
    job.site.state(&format!("{name}.journal.json"))
}

fn window(job: &Job<'_>, part: Part) -> Result<Window<Disk>> {
    let partition = job.running.layout.partition(part);
    Ok(Window::new(open(job)?, partition.start, partition.size))
}

async fn write_image(
    job: &Job<'_>,
    content: Content,
    part: Part,
    name: &str,
    mut say: impl FnMut(Progress),
) -> Result<Progress> {
    let image = Image::of(job.manifest, content)?;
    let target = window(job, part)?;
    let journal = journal(job, name);
    let mut writer = tokio::task::block_in_place(|| Writer::begin(image, target, Some(&journal)))?;
    say(writer.progress());
    if let Some(old) = job.old {
        let old_part = match content {
            Content::Root => Part::Root(job.running.slot),
            Content::Verity => Part::Verity(job.running.slot),
        };
        let mut source = window(job, old_part)?;
        let old = Image::of(old, content)?;
        tokio::task::block_in_place(|| writer.copy_from(old, &mut source))?;
        say(writer.progress());
    }
    for range in fetch_ranges(image, &writer.missing(), GAP, REQUEST) {
        fetch(job, image, &mut writer, range, &mut say).await?;
    }
    Ok(tokio::task::block_in_place(|| writer.finish())?)
}

async fn fetch<T: Target>(
    job: &Job<'_>,
    image: Image<'_>,
    writer: &mut Writer<'_, T>,
    range: FetchRange,
    say: &mut impl FnMut(Progress),
) -> Result<()> {
    let mut ranges = vec![range];
    for attempt in 1.. {
        let mut problem = None;
        for range in &ranges {
            if let Err(error) = fetch_once(job, image, writer, range, say).await {
                problem = Some(error);
                break;
            }
        }
        let Some(problem) = problem else { break };
        let lasting = problem
            .downcast_ref::<WriteError>()
            .is_some_and(|error| !matches!(error, WriteError::BadSegment { .. }));
        if lasting || attempt == TRIES {
            return Err(problem);
        }
        tracing::warn!(
            problem = format!("{problem:#}"),
            attempt,
            "download interrupted"
        );
        tokio::time::sleep(Duration::from_secs(1 << attempt.min(4))).await;
        // What has arrived is not fetched again.
        let wanted: Vec<usize> = writer
            .missing()
            .into_iter()
            .filter(|index| ranges.iter().any(|range| range.segments.contains(index)))
            .collect();
        ranges = fetch_ranges(image, &wanted, GAP, REQUEST);
    }
    Ok(())
}

async fn fetch_once<T: Target>(
    job: &Job<'_>,
    image: Image<'_>,
    writer: &mut Writer<'_, T>,
    range: &FetchRange,
    say: &mut impl FnMut(Progress),
) -> Result<()> {
    let mut download = job
        .files
        .range(image.path(), range.offset, range.length)
        .await?;
    let mut feed = writer.feed(range);
    while let Some(bytes) = download.next().await? {
        tokio::task::block_in_place(|| feed.push(&bytes))?;
        say(feed.progress());
    }
    if feed.complete() {
        Ok(())
    } else {
        Err(anyhow!("fetch {}: ended early", image.path()))
    }
}

/// Brings one file of the release onto the ESP, unless it is there as signed.
///
/// After an interruption it goes on where it was.
///
/// # Errors
/// The sky or the ESP failed, or the file is not as signed: it has no name then.
pub(crate) async fn place(
    site: &Site,
    files: &Files,
    path: &str,
    artifact: &Artifact,
) -> Result<()> {
    let esp = site.esp();
    if tokio::task::block_in_place(|| esp.holds(path, artifact))? {
        return Ok(());
    }
    let mut file = esp.begin(path, artifact)?;
    let mut received = 0;
    for attempt in 1.. {
        let fetched = async {
            let mut download = if received == 0 {
                files.whole(&artifact.path).await?
            } else {
                let rest = artifact.size - received;
                files.range(&artifact.path, received, rest).await?
            };
            while let Some(bytes) = download.next().await? {
                tokio::task::block_in_place(|| file.push(&bytes))?;
                received += bytes.len() as u64;
            }
            anyhow::ensure!(
                received >= artifact.size,
                "fetch {}: ended early",
                artifact.path
            );
            anyhow::Ok(())
        };
        let problem = match fetched.await {
            Ok(()) => break,
            Err(problem) => problem,
        };
        if attempt == TRIES || problem.is::<esp::EspError>() {
            return Err(problem);
        }
        tracing::warn!(
            problem = format!("{problem:#}"),
            attempt,
            received,
            "download interrupted"
        );
        tokio::time::sleep(Duration::from_secs(1 << attempt.min(4))).await;
    }
    tokio::task::block_in_place(|| file.finish())?;
    Ok(())
}
