//! The cache of finished steps, by the key of their inputs.
//!
//! A step writes into a folder of its own that gets its final name only when
//! it is complete, so an interrupted or a second simultaneous build leaves
//! nothing half-made that a later one would trust.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use edge::durable;
use model::Digest;
use tempfile::TempDir;

use crate::plan::{Planned, short};
use crate::segment::FrameStore;

/// So many outputs of one step are kept: enough for the releases of a demonstration
/// and for going back and forth between two recipes.
const KEPT: usize = 8;
/// Segments that no build asked for so long, and work that was abandoned, are removed.
const FORGOTTEN: Duration = Duration::from_secs(30 * 86_400);
const ABANDONED: Duration = Duration::from_secs(86_400);

/// A folder with finished steps, downloaded packages and compressed segments.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens a cache, making its folder when it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        for part in ["steps", "work", "debs", "apt", "frames"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part)
                .with_context(|| format!("make the cache folder {}", part.display()))?;
        }
        let folder = folder
            .canonicalize()
            .with_context(|| format!("look at the cache {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The folder of downloaded packages.
    pub fn packages(&self) -> PathBuf {
        self.folder.join("debs")
    }

    /// The folder of apt's state.
    pub fn apt(&self) -> PathBuf {
        self.folder.join("apt")
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
    pub fn work(&self) -> anyhow::Result<TempDir> {
        tempfile::Builder::new()
            .prefix("work-")
            .tempdir_in(self.folder.join("work"))
            .context("make a folder to work in")
    }

    /// Keeps a finished step's folder and returns where it now is.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn keep(&self, planned: &Planned, work: TempDir) -> anyhow::Result<PathBuf> {
        let place = self.place(planned);
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
                remove(&path);
            }
        }
        let older = |used: SystemTime, age| now.duration_since(used).is_ok_and(|past| past > age);
        for (path, used) in entries(&self.folder.join("work"))? {
            if older(used, ABANDONED) {
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

    #[test]
    fn a_step_is_found_only_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let planned = Planned {
            step: Step::Root,
            key: Digest::of(b"x"),
        };
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
        let planned = |number: usize| Planned {
            step: Step::Root,
            key: Digest::of(&number.to_le_bytes()),
        };
        let begun = SystemTime::UNIX_EPOCH;
        for number in 0..KEPT + 2 {
            let place = cache.keep(&planned(number), cache.work().unwrap()).unwrap();
            let time = begun + Duration::from_secs(number as u64);
            File::open(place).unwrap().set_modified(time).unwrap();
        }
        // The oldest one is asked for again.
        assert!(cache.find(&planned(0)).is_some());
        let other = Planned {
            step: Step::Verity,
            key: Digest::of(b"x"),
        };
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

        cache.tidy(now + FORGOTTEN + ABANDONED).unwrap();
        assert!(!running.path().exists());
        assert!(cache.frames(3).get(&Digest::of(b"y")).is_none());
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
