//! The repository on the unit's own disk, written durably.
//!
//! The library's own local backend syncs a file but not the folder that
//! names it; after a power cut an acknowledged pack could be gone. Here the
//! file and its folder are both on the disk before a write returns.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};

/// Folders of a repository in restic's default layout.
const FOLDERS: [&str; 5] = ["data", "index", "keys", "snapshots", "locks"];

/// Unfinished files live here; the name is unknown to the format, so every reader ignores it.
const INCOMING: &str = "incoming";

/// A repository folder in restic's default layout.
#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// A repository at `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of the repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a repository configuration is there.
    ///
    /// # Errors
    /// When the disk cannot tell.
    pub fn exists(&self) -> io::Result<bool> {
        self.root.join("config").try_exists()
    }

    /// Whether a file is here.
    pub fn holds(&self, kind: FileType, id: &Id) -> bool {
        self.path(kind, id).exists()
    }

    /// Removes files that an interrupted write left behind.
    ///
    /// The caller holds the writer's lock.
    ///
    /// # Errors
    /// When a leftover cannot be removed.
    pub fn sweep(&self) -> io::Result<()> {
        match fs::read_dir(self.root.join(INCOMING)) {
            Ok(entries) => {
                for entry in entries {
                    fs::remove_file(entry?.path())?;
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, kind: FileType, id: &Id) -> PathBuf {
        let name = id.to_hex();
        match kind {
            FileType::Config => self.root.join("config"),
            FileType::Pack => self.root.join("data").join(&name[..2]).join(&*name),
            other => self.root.join(other.dirname()).join(&*name),
        }
    }

    fn store(&self, kind: FileType, id: &Id, content: &BytesList) -> io::Result<()> {
        let path = self.path(kind, id);
        let folder = path.parent().expect("every file lies in a folder");
        if !folder.try_exists()? {
            fs::create_dir_all(folder)?;
            sync_folder(folder.parent().expect("a folder below the root"))?;
        }
        let incoming = self.root.join(INCOMING);
        fs::create_dir_all(&incoming)?;
        let mut file = tempfile::NamedTempFile::new_in(&incoming)?;
        for part in content.slice() {
            file.write_all(part)?;
        }
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        sync_folder(folder)
    }

    fn list(&self, kind: FileType) -> io::Result<Vec<(Id, u32)>> {
        let mut found = Vec::new();
        match kind {
            FileType::Config => match fs::metadata(self.root.join("config")) {
                Ok(meta) => found.push((Id::default(), size(&meta)?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            },
            FileType::Pack => {
                for folder in entries(&self.root.join("data"))? {
                    let folder = folder?;
                    if folder.file_type()?.is_dir() {
                        list_folder(&folder.path(), &mut found)?;
                    }
                }
            }
            other => list_folder(&self.root.join(other.dirname()), &mut found)?,
        }
        Ok(found)
    }
}

/// Makes a name in a folder survive a power cut.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn size(meta: &fs::Metadata) -> io::Result<u32> {
    u32::try_from(meta.len()).map_err(|_| io::Error::other("file is larger than 4 GiB"))
}

fn entries(folder: &Path) -> io::Result<Vec<io::Result<fs::DirEntry>>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn list_folder(folder: &Path, found: &mut Vec<(Id, u32)>) -> io::Result<()> {
    for entry in entries(folder)? {
        let entry = entry?;
        // A name that is no identifier is not the repository's.
        if let Some(Ok(id)) = entry.file_name().to_str().map(str::parse) {
            found.push((id, size(&entry.metadata()?)?));
        }
    }
    Ok(())
}

fn failed(operation: &str, path: &Path, error: io::Error) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "{operation} {path}", error)
        .attach_context("operation", operation)
        .attach_context("path", path.display().to_string())
}

impl ReadBackend for Local {
    fn location(&self) -> String {
        format!("local:{}", self.root.display())
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        self.list(kind)
            .map_err(|error| failed("list", &self.root.join(kind.dirname()), error))
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        let path = self.path(kind, id);
        fs::read(&path)
            .map(Bytes::from)
            .map_err(|error| failed("read", &path, error))
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let path = self.path(kind, id);
        let read = || -> io::Result<Bytes> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(u64::from(offset)))?;
            let mut part = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            file.read_exact(&mut part)?;
            Ok(part.into())
        };
        read().map_err(|error| failed("read", &path, error))
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.path(kind, id).display().to_string()
    }
}

impl WriteBackend for Local {
    fn create(&self) -> RusticResult<()> {
        let make = || -> io::Result<()> {
            for folder in FOLDERS {
                fs::create_dir_all(self.root.join(folder))?;
            }
            sync_folder(&self.root)
        };
        make().map_err(|error| failed("create repository", &self.root, error))
    }

    fn write_bytes(
        &self,
        kind: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        self.store(kind, id, &content)
            .map_err(|error| failed("write", &self.path(kind, id), error))
    }

    fn remove(&self, kind: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        let path = self.path(kind, id);
        let remove = || -> io::Result<()> {
            fs::remove_file(&path)?;
            sync_folder(path.parent().expect("every file lies in a folder"))
        };
        remove().map_err(|error| failed("remove", &path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_file_is_listed_read_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::new(folder.path());
        local.create().unwrap();
        let id = Id::random();
        let mut content = BytesList::from(b"12345".to_vec());
        content.add(Bytes::from_static(b"678"));
        local
            .write_bytes(FileType::Pack, &id, false, content)
            .unwrap();
        assert_eq!(local.list_with_size(FileType::Pack).unwrap(), [(id, 8)]);
        assert_eq!(
            local
                .read_partial(FileType::Pack, &id, false, 4, 3)
                .unwrap(),
            "567"
        );
        local.remove(FileType::Pack, &id, false).unwrap();
        assert!(local.list_with_size(FileType::Pack).unwrap().is_empty());
        assert!(local.read_full(FileType::Pack, &id).is_err());
    }

    #[test]
    fn leftovers_of_a_crash_are_invisible_and_swept() {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::new(folder.path());
        local.create().unwrap();
        fs::create_dir_all(folder.path().join(INCOMING)).unwrap();
        fs::write(folder.path().join(INCOMING).join("x"), b"torn").unwrap();
        assert!(local.list_with_size(FileType::Pack).unwrap().is_empty());
        local.sweep().unwrap();
        assert_eq!(
            fs::read_dir(folder.path().join(INCOMING)).unwrap().count(),
            0
        );
    }
}
