//! A source that holds one small file: the canary.

use std::io::Cursor;
use std::path::PathBuf;

use jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{ReadSource, ReadSourceEntry, RusticResult};

/// One file with its content in memory.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    content: Vec<u8>,
    modified: Timestamp,
}

impl Memory {
    /// A file at an absolute `path`.
    pub fn new(path: impl Into<PathBuf>, content: Vec<u8>, modified: Timestamp) -> Self {
        Self {
            path: path.into(),
            content,
            modified,
        }
    }
}

impl ReadSource for Memory {
    type Open = Cursor<Vec<u8>>;
    type Iter = std::iter::Once<RusticResult<ReadSourceEntry<Self::Open>>>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(Some(self.content.len() as u64))
    }

    fn entries(&self) -> Self::Iter {
        let meta = Metadata {
            mode: Some(0o600),
            mtime: Some(self.modified),
            size: self.content.len() as u64,
            links: 1,
            ..Metadata::default()
        };
        let name = self.path.file_name().unwrap_or_default();
        std::iter::once(Ok(ReadSourceEntry {
            path: self.path.clone(),
            node: Node::new_node(name, NodeType::File, meta),
            open: Some(Cursor::new(self.content.clone())),
        }))
    }
}
