//! The units' files on the vault's disk.
//!
//! Each unit has a folder in restic's default layout, so stock `restic` opens
//! it as it lies. Nothing here overwrites or deletes a stored file.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use edge::durable::sync_dir;
use model::UnitName;
use tempfile::NamedTempFile;

/// A kind of file, with the folder that it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Encrypted packs.
    Data,
    /// What is in which pack.
    Index,
    /// The master key, sealed with a password.
    Keys,
    /// Snapshots.
    Snapshots,
    /// The one file whose name is not its hash.
    Config,
}

impl Kind {
    /// The kind that a path of the protocol names.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "data" => Self::Data,
            "index" => Self::Index,
            "keys" => Self::Keys,
            "snapshots" => Self::Snapshots,
            _ => return None,
        })
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Index => "index",
            Self::Keys => "keys",
            Self::Snapshots => "snapshots",
            Self::Config => "",
        }
    }
}

/// Why a file was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another file is there under that name.
    #[error("a different file is stored under this name: expected a new name")]
    Exists,
    /// The unit's quota is used up.
    #[error("quota of {quota} bytes is used up: {used} are stored")]
    Quota {
        /// What the unit may store.
        quota: u64,
        /// What it stores.
        used: u64,
    },
    /// The disk failed.
    #[error("store file")]
    Io(#[from] io::Error),
}

/// Whether a stored file is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was not there.
    New,
    /// The very same file was there.
    Same,
}

/// The root folder with all units' places.
#[derive(Debug)]
pub struct Places {
    units: PathBuf,
    incoming: PathBuf,
    quota: Option<u64>,
    used: Mutex<HashMap<UnitName, u64>>,
}

impl Places {
    /// Opens the root folder, makes what is missing and sweeps unfinished uploads.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(root: &Path, quota: Option<u64>) -> io::Result<Self> {
        let units = root.join("units");
        let incoming = root.join("incoming");
        fs::create_dir_all(&units)?;
        if incoming.try_exists()? {
            fs::remove_dir_all(&incoming)?;
        }
        fs::create_dir_all(&incoming)?;
        sync_dir(root)?;
        Ok(Self {
            units,
            incoming,
            quota,
            used: Mutex::default(),
        })
    }

    /// A unit's own folder.
    pub fn folder(&self, unit: &UnitName) -> PathBuf {
        self.units.join(unit.customer().as_str()).join(unit.name())
    }

    /// Where a file of a unit lies. The name is 64 hexadecimal digits; the caller has checked.
    pub fn path(&self, unit: &UnitName, kind: Kind, name: &str) -> PathBuf {
        let folder = self.folder(unit);
        match kind {
            Kind::Config => folder.join("config"),
            Kind::Data => folder.join("data").join(&name[..2]).join(name),
            other => folder.join(other.folder()).join(name),
        }
    }

    /// Makes a unit's folder. Repeated, it changes nothing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(&self, unit: &UnitName) -> io::Result<()> {
        let folder = self.folder(unit);
        for kind in [Kind::Data, Kind::Index, Kind::Keys, Kind::Snapshots] {
            fs::create_dir_all(folder.join(kind.folder()))?;
        }
        fs::create_dir_all(folder.join("locks"))?;
        for dir in [
            &folder,
            &self.units.join(unit.customer().as_str()),
            &self.units,
        ] {
            sync_dir(dir)?;
        }
        Ok(())
    }

    /// Lists the files of a kind with their sizes; a unit without a place has none.
    ///
    /// # Errors
    /// When the disk cannot tell.
    pub fn list(&self, unit: &UnitName, kind: Kind) -> io::Result<Vec<(String, u64)>> {
        let folder = self.folder(unit).join(kind.folder());
        let mut found = Vec::new();
        if kind == Kind::Data {
            for shard in entries(&folder)? {
                let shard = shard?;
                if shard.file_type()?.is_dir() {
                    list_folder(&shard.path(), &mut found)?;
                }
            }
        } else {
            list_folder(&folder, &mut found)?;
        }
        Ok(found)
    }

    /// A file for an upload, outside of every unit's place. Dropped, it is gone.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn incoming(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(&self.incoming)
    }

    /// Puts a complete, checked upload in its place, durably and never over another file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn store(
        &self,
        unit: &UnitName,
        kind: Kind,
        name: &str,
        upload: NamedTempFile,
    ) -> Result<Stored, StoreError> {
        let size = upload.as_file().metadata()?.len();
        let path = self.path(unit, kind, name);
        if path.try_exists()? {
            return self.compare(&path, kind, &upload, size);
        }
        self.reserve(unit, size)?;
        let stored = self.place(&path, upload);
        match stored {
            Ok(()) => Ok(Stored::New),
            Err(error) => {
                self.release(unit, size);
                match error {
                    // Another upload of the same file was quicker.
                    StoreError::Exists if kind != Kind::Config => Ok(Stored::Same),
                    other => Err(other),
                }
            }
        }
    }

    fn place(&self, path: &Path, upload: NamedTempFile) -> Result<(), StoreError> {
        let folder = path.parent().expect("every file lies in a unit's folder");
        if !folder.try_exists()? {
            fs::create_dir_all(folder)?;
            sync_dir(folder.parent().expect("below the root"))?;
        }
        upload.as_file().sync_all()?;
        upload.persist_noclobber(path).map_err(|error| {
            if error.error.kind() == io::ErrorKind::AlreadyExists {
                StoreError::Exists
            } else {
                StoreError::Io(error.error)
            }
        })?;
        sync_dir(folder)?;
        Ok(())
    }

    /// The name is the hash, so a file of equal size is the same unless the disk failed.
    fn compare(
        &self,
        path: &Path,
        kind: Kind,
        upload: &NamedTempFile,
        size: u64,
    ) -> Result<Stored, StoreError> {
        if fs::metadata(path)?.len() != size {
            return Err(StoreError::Exists);
        }
        if kind == Kind::Config && fs::read(path)? != fs::read(upload.path())? {
            return Err(StoreError::Exists);
        }
        Ok(Stored::Same)
    }

    fn reserve(&self, unit: &UnitName, size: u64) -> Result<(), StoreError> {
        let Some(quota) = self.quota else {
            return Ok(());
        };
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !used.contains_key(unit) {
            used.insert(unit.clone(), self.measure(unit)?);
        }
        let used = used.get_mut(unit).expect("inserted above");
        let after = used.saturating_add(size);
        if after > quota {
            return Err(StoreError::Quota { quota, used: *used });
        }
        *used = after;
        Ok(())
    }

    fn release(&self, unit: &UnitName, size: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = used.get_mut(unit) {
            *used = used.saturating_sub(size);
        }
    }

    fn measure(&self, unit: &UnitName) -> io::Result<u64> {
        let mut sum = 0;
        for kind in [Kind::Data, Kind::Index, Kind::Keys, Kind::Snapshots] {
            sum += self
                .list(unit, kind)?
                .iter()
                .map(|(_, size)| size)
                .sum::<u64>();
        }
        Ok(sum)
    }
}

/// Whether a text is a file's name: 64 lower-case hexadecimal digits.
pub fn is_name(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn entries(folder: &Path) -> io::Result<Vec<io::Result<fs::DirEntry>>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn list_folder(folder: &Path, found: &mut Vec<(String, u64)>) -> io::Result<()> {
    for entry in entries(folder)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_name(name)) {
            found.push((name.to_owned(), entry.metadata()?.len()));
        }
    }
    Ok(())
}

/// Opens a stored file and tells its size; `None` when there is none.
///
/// # Errors
/// When the disk cannot tell.
pub fn open(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::open(path) {
        Ok(file) => {
            let size = file.metadata()?.len();
            Ok(Some((file, size)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn upload(places: &Places, content: &[u8]) -> NamedTempFile {
        let mut file = places.incoming().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn unit() -> UnitName {
        "motivatit/houma-1".parse().unwrap()
    }

    #[test]
    fn quota_counts_what_is_stored_and_what_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let name = |n: u8| hex::encode([n; 32]);
        let places = Places::open(folder.path(), Some(10)).unwrap();
        let put = |places: &Places, n: u8, content: &[u8]| {
            places.store(&unit(), Kind::Data, &name(n), upload(places, content))
        };
        assert_eq!(put(&places, 1, b"123456").unwrap(), Stored::New);
        assert_eq!(put(&places, 1, b"123456").unwrap(), Stored::Same);
        let again = Places::open(folder.path(), Some(10)).unwrap();
        assert!(matches!(
            put(&again, 2, b"12345"),
            Err(StoreError::Quota { quota: 10, used: 6 })
        ));
        assert_eq!(put(&again, 3, b"1234").unwrap(), Stored::New);
    }

    #[test]
    fn nothing_is_ever_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::open(folder.path(), None).unwrap();
        for (kind, name) in [(Kind::Config, ""), (Kind::Index, &*hex::encode([1; 32]))] {
            places
                .store(&unit(), kind, name, upload(&places, b"first"))
                .unwrap();
            let second = places.store(&unit(), kind, name, upload(&places, b"second"));
            assert!(matches!(second, Err(StoreError::Exists)));
            let path = places.path(&unit(), kind, name);
            assert_eq!(fs::read(path).unwrap(), b"first");
        }
    }

    #[test]
    fn unfinished_uploads_are_swept_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::open(folder.path(), None).unwrap();
        let (_, path) = upload(&places, b"torn").keep().unwrap();
        assert!(path.exists());
        Places::open(folder.path(), None).unwrap();
        assert!(!path.exists());
    }
}
