//! The cache of finished steps, by the key of their inputs.
//!
//! A step writes into a folder of its own that gets its final name only when
//! it is complete, so an interrupted or a second simultaneous build leaves
//! nothing half-made that a later one would trust. What an interrupted build
//! leaves of unfinished work, the next one removes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::draft::{self, DraftFolder};
use crate::plan::{Planned, short};
use crate::segment::FrameStore;
use crate::steps::unpack::digest_file;
use anyhow::Context as _;
use edge::durable;
use edge::exit::{self, Kind};
use model::Digest;

/// So many outputs of one step are kept: enough for the releases of a demonstration
/// and for going back and forth between two recipes.
const KEPT: usize = 8;
/// Segments that no build asked for so long are removed.
const FORGOTTEN: Duration = Duration::from_secs(30 * 86_400);
/// How folders of unfinished work are called.
const WORK: &str = "work-";

/// A folder with finished steps, downloaded packages and compressed segments.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
    supplies: PathBuf,
}

impl Cache {
    /// Opens a cache, making its folder when it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        for part in ["steps", "work", "debs", "apt", "frames", "disks"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part)
                .with_context(|| format!("make the cache folder {}", part.display()))?;
        }
        let folder = folder
            .canonicalize()
            .with_context(|| format!("look at the cache {}", folder.display()))?;
        Ok(Self {
            supplies: folder.clone(),
            folder,
        })
    }

    /// Returns a cache without a finished step, in a folder of its own that is
    /// removed with the second value. Downloaded packages are shared.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn empty(&self) -> anyhow::Result<(Self, DraftFolder)> {
        let folder = self.work()?;
        let mut cache = Self::open(folder.path())?;
        cache.supplies.clone_from(&self.supplies);
        Ok((cache, folder))
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of downloaded packages.
    pub fn packages(&self) -> PathBuf {
        self.supplies.join("debs")
    }

    /// The folder of images that disks are composed of.
    pub fn disks(&self) -> PathBuf {
        self.folder.join("disks")
    }

    /// The folder of apt's state.
    pub fn apt(&self) -> PathBuf {
        self.supplies.join("apt")
    }

    /// Compares a finished step's files with their digests from the time when
    /// it was kept, and removes the step when one differs.
    ///
    /// # Errors
    /// Names the file that differs.
    pub fn check(&self, planned: &Planned) -> anyhow::Result<()> {
        let folder = self.place(planned);
        let damaged = |name: &str| {
            self.discard(&folder);
            exit::hint(
                exit::marked(
                    Kind::Failed,
                    format!(
                        "cache: step {}: {name} is not what the step wrote",
                        planned.step
                    ),
                ),
                "the damaged step was removed; build again to make it again",
            )
        };
        // A power cut can have taken the digests' bytes, too.
        let sums = std::fs::read(folder.join(SUMS)).ok();
        let sums: Option<BTreeMap<String, Digest>> =
            sums.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(sums) = sums else {
            return Err(damaged(SUMS));
        };
        let found = sums_of(&folder)?;
        let mut names = sums.keys().chain(found.keys());
        match names.find(|name| sums.get(*name) != found.get(*name)) {
            Some(name) => Err(damaged(name)),
            None => Ok(()),
        }
    }

    /// Removes a finished step. First it loses its name at once: of a step that is
    /// half removed, another build would take what is left.
    fn discard(&self, step: &Path) {
        let gone = self.work().and_then(|work| {
            std::fs::rename(step, work.path().join("gone")).context("move the step away")
        });
        if let Err(problem) = gone {
            tracing::debug!(path = %step.display(), problem = format!("{problem:#}"), "not removed from the cache");
        }
    }

    /// Returns a finished step's folder, if it is here.
    pub fn find(&self, planned: &Planned) -> Option<PathBuf> {
        let folder = self.place(planned);
        folder.is_dir().then(|| {
            touch(&folder);
            folder
        })
    }

    /// Makes a folder to work in. It is removed when it is dropped.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn work(&self) -> anyhow::Result<DraftFolder> {
        DraftFolder::new(&self.folder.join("work"), WORK).context("make a folder to work in")
    }

    /// Keeps a finished step's folder and returns where it now is.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn keep(&self, planned: &Planned, work: DraftFolder) -> anyhow::Result<PathBuf> {
        let place = self.place(planned);
        let sums = serde_json::to_vec(&sums_of(work.path())?).context("write the digests")?;
        std::fs::write(work.path().join(SUMS), sums).context("write the digests")?;
        let made = work.keep();
        match durable::rename(&made, &place) {
            Ok(()) => Ok(place),
            // Another build was faster; it made the same.
            Err(_) if place.is_dir() => {
                std::fs::remove_dir_all(&made).context("remove a second copy of a step")?;
                Ok(place)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes what no build has asked for lately. A build that runs beside this one has
    /// asked for all that it uses.
    ///
    /// # Errors
    /// When a folder cannot be read. What cannot be removed stays.
    pub fn tidy(&self, now: SystemTime) -> anyhow::Result<()> {
        let mut outputs: BTreeMap<String, Vec<(SystemTime, PathBuf)>> = BTreeMap::new();
        for (path, used) in entries(&self.folder.join("steps"))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some((step, _)) = name.rsplit_once('-') {
                outputs
                    .entry(step.to_owned())
                    .or_default()
                    .push((used, path));
            }
        }
        for mut of_step in outputs.into_values() {
            of_step.sort_by(|a, b| b.cmp(a));
            for (_, path) in of_step.into_iter().skip(KEPT) {
                self.discard(&path);
            }
        }
        draft::remove_abandoned(&self.folder.join("work"), WORK)?;
        let older = |used: SystemTime, age| now.duration_since(used).is_ok_and(|past| past > age);
        // They are made again in seconds, so it does not matter who used them when.
        for (path, made) in entries(&self.folder.join("disks"))? {
            if older(made, FORGOTTEN) {
                remove(&path);
            }
        }
        for (folder, _) in entries(&self.folder.join("frames"))? {
            for (path, used) in entries(&folder)? {
                if older(used, FORGOTTEN) {
                    remove(&path);
                }
            }
        }
        Ok(())
    }

    fn place(&self, planned: &Planned) -> PathBuf {
        let name = format!("{}-{}", planned.step, short(&planned.key));
        self.folder.join("steps").join(name)
    }

    /// The store of compressed segments for one compression level.
    pub fn frames(&self, level: i32) -> Frames {
        Frames {
            folder: self.folder.join("frames"),
            level,
        }
    }
}

/// The digests of a step's files are kept beside them.
const SUMS: &str = ".sums.json";

/// The digests of all files below a folder, by their paths.
fn sums_of(folder: &Path) -> anyhow::Result<BTreeMap<String, Digest>> {
    fn go(base: &Path, folder: &Path, sums: &mut BTreeMap<String, Digest>) -> anyhow::Result<()> {
        let reading = || format!("read {}", folder.display());
        for entry in std::fs::read_dir(folder).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let (path, kind) = (entry.path(), entry.file_type().with_context(reading)?);
            let name = path.strip_prefix(base).unwrap_or(&path).to_string_lossy();
            if kind.is_dir() {
                go(base, &path, sums)?;
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&path).with_context(reading)?;
                let target = target.into_os_string().into_encoded_bytes();
                sums.insert(name.into_owned(), Digest::of(&target));
            } else if name != SUMS {
                sums.insert(name.into_owned(), digest_file(&path)?);
            }
        }
        Ok(())
    }
    let mut sums = BTreeMap::new();
    go(folder, folder, &mut sums)?;
    Ok(sums)
}

/// The entries of a folder, each with the time when it was last used.
fn entries(folder: &Path) -> anyhow::Result<Vec<(PathBuf, SystemTime)>> {
    let looking = || format!("look at {}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(looking)? {
        let entry = entry.with_context(looking)?;
        // What another build has removed meanwhile is none.
        if let Ok(used) = entry.metadata().and_then(|meta| meta.modified()) {
            found.push((entry.path(), used));
        }
    }
    Ok(found)
}

/// Says that something was used now.
fn touch(path: &Path) {
    let now = SystemTime::from(edge::clock::now());
    if let Err(problem) = File::open(path).and_then(|file| file.set_modified(now)) {
        tracing::debug!(path = %path.display(), %problem, "use not recorded");
    }
}

fn remove(path: &Path) {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    if let Err(problem) = removed {
        tracing::debug!(path = %path.display(), %problem, "not removed from the cache");
    }
}

/// Compressed segments by the digest of their content.
#[derive(Debug, Clone)]
pub struct Frames {
    folder: PathBuf,
    level: i32,
}

impl Frames {
    fn place(&self, content: &Digest) -> PathBuf {
        let name = content.to_string();
        self.folder
            .join(&name[..2])
            .join(format!("{}-{}.zst", &name[2..], self.level))
    }
}

impl FrameStore for Frames {
    fn get(&self, content: &Digest) -> Option<Vec<u8>> {
        let place = self.place(content);
        let frame = std::fs::read(&place).ok()?;
        touch(&place);
        Some(frame)
    }

    fn put(&self, content: &Digest, frame: &[u8]) {
        let place = self.place(content);
        let write = || -> anyhow::Result<()> {
            let folder = place.parent().context("a frame has a folder")?;
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            std::io::Write::write_all(&mut file, frame)?;
            file.persist(&place)?;
            Ok(())
        };
        if let Err(problem) = write() {
            tracing::debug!(%problem, "segment not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Step;

    fn planned(step: Step, key: &[u8]) -> Planned {
        Planned {
            step,
            key: Digest::of(key),
            needs: Vec::new(),
        }
    }

    #[test]
    fn an_empty_cache_shares_packages_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let planned = planned(Step::Root, b"x");
        cache.keep(&planned, cache.work().unwrap()).unwrap();
        let (empty, place) = cache.empty().unwrap();
        assert_eq!(empty.find(&planned), None);
        assert_eq!(empty.packages(), cache.packages());
        let path = place.path().to_owned();
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn a_step_is_found_only_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let planned = planned(Step::Root, b"x");
        let (first, second) = (cache.work().unwrap(), cache.work().unwrap());
        std::fs::write(first.path().join("out"), b"1").unwrap();
        assert_eq!(cache.find(&planned), None);
        let place = cache.keep(&planned, first).unwrap();
        assert_eq!(cache.find(&planned), Some(place.clone()));
        // A second build of the same step gives way.
        std::fs::write(second.path().join("out"), b"1").unwrap();
        assert_eq!(cache.keep(&planned, second).unwrap(), place);
        assert_eq!(std::fs::read(place.join("out")).unwrap(), b"1");
    }

    #[test]
    fn what_no_build_asked_for_lately_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let planned = |number: usize| planned(Step::Root, &number.to_le_bytes());
        let begun = SystemTime::UNIX_EPOCH;
        for number in 0..KEPT + 2 {
            let place = cache.keep(&planned(number), cache.work().unwrap()).unwrap();
            let time = begun + Duration::from_secs(number as u64);
            File::open(place).unwrap().set_modified(time).unwrap();
        }
        // The oldest one is asked for again.
        assert!(cache.find(&planned(0)).is_some());
        let other = super::tests::planned(Step::Verity, b"x");
        cache.keep(&other, cache.work().unwrap()).unwrap();
        let running = cache.work().unwrap();
        cache.frames(3).put(&Digest::of(b"y"), b"frame");

        let now = std::fs::metadata(running.path())
            .unwrap()
            .modified()
            .unwrap();
        cache.tidy(now).unwrap();
        let kept: Vec<_> = (0..KEPT + 2)
            .filter(|number| cache.find(&planned(*number)).is_some())
            .collect();
        assert_eq!(kept.len(), KEPT);
        assert!(kept.contains(&0) && !kept.contains(&1) && !kept.contains(&2));
        assert!(cache.find(&other).is_some());
        assert!(running.path().exists());
        assert!(cache.frames(3).get(&Digest::of(b"y")).is_some());

        cache.tidy(now + FORGOTTEN * 2).unwrap();
        assert!(running.path().exists());
        assert!(cache.frames(3).get(&Digest::of(b"y")).is_none());
    }

    #[test]
    fn a_step_whose_digests_are_gone_is_removed_as_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let planned = planned(Step::Root, b"x");
        for damage in [None, Some("")] {
            let place = cache.keep(&planned, cache.work().unwrap()).unwrap();
            match damage {
                None => std::fs::remove_file(place.join(SUMS)).unwrap(),
                Some(text) => std::fs::write(place.join(SUMS), text).unwrap(),
            }
            let problem = cache.check(&planned).unwrap_err();
            let text = exit::render(&problem);
            assert!(text.contains("build again"), "{text}");
            assert_eq!(cache.find(&planned), None);
            assert_eq!(entries(&folder.path().join("work")).unwrap().len(), 0);
        }
    }

    #[test]
    fn a_damaged_step_is_named_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let planned = planned(Step::Root, b"x");
        let work = cache.work().unwrap();
        std::fs::create_dir(work.path().join("inner")).unwrap();
        std::fs::write(work.path().join("inner/root"), b"content").unwrap();
        let place = cache.keep(&planned, work).unwrap();
        cache.check(&planned).unwrap();
        std::fs::write(place.join("inner/root"), b"cOntent").unwrap();
        let problem = cache.check(&planned).unwrap_err();
        assert!(
            format!("{problem:#}").contains("step root: inner/root"),
            "{problem:#}"
        );
        assert_eq!(cache.find(&planned), None);
    }

    #[test]
    fn an_abandoned_step_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let work = cache.work().unwrap();
        let path = work.path().to_owned();
        drop(work);
        assert!(!path.exists());
    }
}
