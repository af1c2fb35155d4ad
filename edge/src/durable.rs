//! Files that are either the old or the new one after a power cut, and never half.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The owner alone: 0600.
    Secret,
    /// Everyone: 0644.
    Public,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Secret => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Replaces a file: temporary file, fsync, rename, fsync of the folder.
///
/// The folder is made when it is missing.
///
/// # Errors
/// Any of these steps; the old file is untouched then.
pub fn write(path: &Path, bytes: &[u8], mode: Mode) -> Result<()> {
    let dir = folder(path);
    fs::create_dir_all(dir).with_context(|| format!("make folder {}", dir.display()))?;
    let describe = || format!("write {}", path.display());
    // Made with mode 0600, so that a secret is never readable by others in between.
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(dir)
        .with_context(describe)?;
    file.write_all(bytes).with_context(describe)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(mode.bits()))
        .with_context(describe)?;
    file.as_file().sync_all().with_context(describe)?;
    file.persist(path)
        .map_err(|error| error.error)
        .with_context(describe)?;
    sync_dir(dir).with_context(describe)
}

/// Replaces a file with a value as JSON.
///
/// # Errors
/// As for [`write()`].
pub fn write_json(path: &Path, value: &impl Serialize, mode: Mode) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value)
        .with_context(|| format!("write {}: encode", path.display()))?;
    write(path, &bytes, mode)
}

/// Renames a file or folder durably; both must be on one file system.
///
/// # Errors
/// The rename or the fsync of a folder.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let describe = || format!("rename {} to {}", from.display(), to.display());
    fs::rename(from, to).with_context(describe)?;
    sync_dir(folder(to)).with_context(describe)?;
    if folder(from) != folder(to) {
        sync_dir(folder(from)).with_context(describe)?;
    }
    Ok(())
}

/// Makes the entries of a folder durable.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/secret");
        write(&path, b"old", Mode::Public).unwrap();
        write(&path, b"new", Mode::Secret).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir_all(path.join("by-a-folder")).unwrap();
        assert!(write(&path, b"new", Mode::Public).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
