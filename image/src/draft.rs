//! Folders in the making.
//!
//! Each is locked by the process that fills it, and the kernel drops the lock when
//! that process ends, however it ends. So a folder without a lock is what an
//! interrupted build has left, whatever its age, and one with a lock is in use.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

/// A folder that only this process fills. Removed when it is dropped.
#[derive(Debug)]
pub struct DraftFolder {
    folder: TempDir,
    // Held as long as this value lives.
    _lock: File,
}

impl DraftFolder {
    /// Makes a folder in `parent` whose name begins with `prefix`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(parent: &Path, prefix: &str) -> anyhow::Result<Self> {
        let making = || format!("make a folder in {}", parent.display());
        // Between being made and being locked a folder looks abandoned.
        let _guard = lock(parent).with_context(making)?;
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .with_context(making)?;
        let lock = lock(folder.path()).with_context(making)?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder to the caller.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

/// Waits until nobody else holds the folder `path`, and holds it.
///
/// # Errors
/// When it cannot be opened.
pub fn lock(path: &Path) -> std::io::Result<File> {
    let folder = File::open(path)?;
    // Some network file systems lock no folders. There two builds may meet, and what
    // was abandoned stays.
    if let Err(problem) = folder.lock() {
        tracing::debug!(path = %path.display(), %problem, "not locked");
    }
    Ok(folder)
}

/// Removes the folders in `parent` whose names begin with `prefix` and that no
/// process fills any more. What cannot be removed stays.
///
/// # Errors
/// When `parent` cannot be read.
pub fn remove_abandoned(parent: &Path, prefix: &str) -> anyhow::Result<()> {
    let looking = || format!("look at {}", parent.display());
    let _guard = lock(parent).with_context(looking)?;
    for entry in std::fs::read_dir(parent).with_context(looking)? {
        let entry = entry.with_context(looking)?;
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        let Ok(folder) = File::open(&path) else {
            continue;
        };
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => continue,
        }
        // A tool of the interrupted build may still be writing into it: then the
        // next build removes the rest.
        if let Err(problem) = std::fs::remove_dir_all(&path) {
            tracing::debug!(path = %path.display(), %problem, "abandoned work not removed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays_and_what_is_abandoned_goes() {
        let parent = tempfile::tempdir().unwrap();
        let used = DraftFolder::new(parent.path(), "work-").unwrap();
        let abandoned = parent.path().join("work-abandoned");
        let other = parent.path().join("other");
        for folder in [&abandoned, &other] {
            std::fs::create_dir_all(folder.join("inner")).unwrap();
        }
        remove_abandoned(parent.path(), "work-").unwrap();
        assert!(used.path().exists() && other.exists() && !abandoned.exists());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
    }
}
