//! The cache of finished steps, by the key of their inputs.
//!
//! A step writes into a folder of its own that gets its final name only when
//! it is complete, so an interrupted or a second simultaneous build leaves
//! nothing half-made that a later one would trust.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::durable;
use model::Digest;
use tempfile::TempDir;

use crate::plan::{Planned, short};
use crate::segment::FrameStore;

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
        folder.is_dir().then_some(folder)
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
        std::fs::read(self.place(content)).ok()
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
    fn an_abandoned_step_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let work = cache.work().unwrap();
        let path = work.path().to_owned();
        drop(work);
        assert!(!path.exists());
    }
}
