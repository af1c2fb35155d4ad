//! A local repository that is still being filled, completed by a destination.
//!
//! After a replacement the unit restores at once: what is not on the disk yet
//! is read from the destination. Writes go to the disk alone.

use bytes::Bytes;
use rustic_core::{BytesList, FileType, Id, ReadBackend, RusticResult, WriteBackend};

use crate::local::Local;
use crate::rest::Remote;

/// Reads locally where it can, remotely where it must.
#[derive(Debug)]
pub struct Overlay {
    local: Local,
    remote: Remote,
}

impl Overlay {
    /// `local` before `remote`; both hold the same repository.
    pub fn new(local: Local, remote: Remote) -> Self {
        Self { local, remote }
    }
}

impl ReadBackend for Overlay {
    fn location(&self) -> String {
        self.local.location()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let mut files = self.local.list_with_size(kind)?;
        if kind == FileType::Pack {
            let here: std::collections::BTreeSet<Id> = files.iter().map(|(id, _)| *id).collect();
            let there = self.remote.list_with_size(kind)?;
            files.extend(there.into_iter().filter(|(id, _)| !here.contains(id)));
        }
        Ok(files)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        if self.local.holds(kind, id) {
            self.local.read_full(kind, id)
        } else {
            self.remote.read_full(kind, id)
        }
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        if self.local.holds(kind, id) {
            self.local.read_partial(kind, id, cacheable, offset, length)
        } else {
            self.remote
                .read_partial(kind, id, cacheable, offset, length)
        }
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.local.warmup_path(kind, id)
    }
}

impl WriteBackend for Overlay {
    fn create(&self) -> RusticResult<()> {
        self.local.create()
    }

    fn write_bytes(
        &self,
        kind: FileType,
        id: &Id,
        cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        self.local.write_bytes(kind, id, cacheable, content)
    }

    fn remove(&self, kind: FileType, id: &Id, cacheable: bool) -> RusticResult<()> {
        self.local.remove(kind, id, cacheable)
    }
}
