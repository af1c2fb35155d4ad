//! The snapshot gate: a store that holds back snapshot files.
//!
//! The library writes the snapshot as the last step of a run, before anyone
//! has looked at the ledger. The gate keeps that file in memory, so that a
//! run which is judged partial, or which is killed, leaves no snapshot that
//! claims to be whole.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustic_core::{BytesList, FileType, Id, ReadBackend, RusticResult, WriteBackend};

/// A store in front of another one that lets everything pass but snapshots.
#[derive(Debug)]
pub struct Gate {
    inner: Arc<dyn WriteBackend>,
    held: Mutex<Vec<(Id, BytesList)>>,
}

impl Gate {
    /// A closed gate before `inner`.
    pub fn new(inner: Arc<dyn WriteBackend>) -> Self {
        Self {
            inner,
            held: Mutex::default(),
        }
    }

    /// Lets the held snapshots pass, as they are, and names them.
    ///
    /// # Errors
    /// When the store behind cannot write.
    pub fn release(&self) -> RusticResult<Vec<Id>> {
        let mut written = Vec::new();
        for (id, content) in self.take() {
            self.inner
                .write_bytes(FileType::Snapshot, &id, true, content)?;
            written.push(id);
        }
        Ok(written)
    }

    /// Throws the held snapshots away and says how many there were.
    pub fn discard(&self) -> usize {
        self.take().len()
    }

    fn take(&self) -> Vec<(Id, BytesList)> {
        std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ReadBackend for Gate {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        self.inner.list_with_size(kind)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.inner.read_full(kind, id)
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        self.inner.read_partial(kind, id, cacheable, offset, length)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.inner.warmup_path(kind, id)
    }
}

impl WriteBackend for Gate {
    fn create(&self) -> RusticResult<()> {
        self.inner.create()
    }

    fn write_bytes(
        &self,
        kind: FileType,
        id: &Id,
        cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        if kind == FileType::Snapshot {
            self.held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((*id, content));
            return Ok(());
        }
        self.inner.write_bytes(kind, id, cacheable, content)
    }

    fn remove(&self, kind: FileType, id: &Id, cacheable: bool) -> RusticResult<()> {
        self.inner.remove(kind, id, cacheable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Local;

    fn gate() -> (tempfile::TempDir, Arc<dyn WriteBackend>, Gate) {
        let folder = tempfile::tempdir().unwrap();
        let inner: Arc<dyn WriteBackend> = Arc::new(Local::new(folder.path()));
        inner.create().unwrap();
        let gate = Gate::new(Arc::clone(&inner));
        (folder, inner, gate)
    }

    #[test]
    fn snapshot_is_held_until_released_and_packs_pass() {
        let (_folder, inner, gate) = gate();
        let id = Id::random();
        for kind in [FileType::Snapshot, FileType::Pack] {
            gate.write_bytes(kind, &id, false, b"x".to_vec().into())
                .unwrap();
        }
        assert_eq!(inner.list(FileType::Pack).unwrap(), [id]);
        assert!(inner.list(FileType::Snapshot).unwrap().is_empty());
        gate.release().unwrap();
        assert_eq!(inner.list(FileType::Snapshot).unwrap(), [id]);
    }

    #[test]
    fn discarded_snapshot_never_reaches_the_store() {
        let (_folder, inner, gate) = gate();
        gate.write_bytes(
            FileType::Snapshot,
            &Id::random(),
            true,
            b"x".to_vec().into(),
        )
        .unwrap();
        assert_eq!(gate.discard(), 1);
        gate.release().unwrap();
        assert!(inner.list(FileType::Snapshot).unwrap().is_empty());
    }
}
