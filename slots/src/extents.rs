//! A disk that lies nowhere: extents by reference, read at any place.
//!
//! What many disks share (a release's images, a template's blocks) is held
//! once and pointed at; what is a disk's own is a few kilobytes of bytes.
//! Whatever no extent covers reads as zeros.
//!
//! A map has an identity: the SHA-256 of where its extents lie and of the
//! identities of what they hold. Maps with the same identity have the same
//! bytes, and it is known without reading one of them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::Digest;

use crate::fat::Chains;

/// The least run of zeros that is left out of bytes, and the grain of what is kept.
const GRAIN: usize = 512;

/// Bytes in memory with their digest.
#[derive(Debug, PartialEq, Eq)]
pub struct Blob {
    bytes: Vec<u8>,
    digest: Digest,
}

impl Blob {
    /// Takes bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let mut bytes = bytes.into();
        bytes.shrink_to_fit();
        let digest = Digest::of(&bytes);
        Self { bytes, digest }
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns their SHA-256.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// An open file whose content is known by a digest.
#[derive(Debug)]
pub struct Backing {
    file: File,
    path: PathBuf,
    size: u64,
    digest: Digest,
}

impl Backing {
    /// Opens a file whose content somebody has compared with `digest`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path, digest: Digest) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            path: path.to_owned(),
            size,
            digest,
        })
    }

    /// Returns the open file, for those who hand ranges of it to the kernel.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns where it lay when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            let path = self.path.display();
            io::Error::new(error.kind(), format!("{path}: read at {offset}: {error}"))
        })
    }
}

/// What an extent holds.
#[derive(Debug, Clone)]
enum Content {
    Bytes(Arc<Blob>),
    File(Arc<Backing>, u64),
    Chains(Arc<Chains>),
    Map(Arc<Map>),
}

#[derive(Debug, Clone)]
struct Extent {
    start: u64,
    length: u64,
    content: Content,
}

impl Extent {
    fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// A piece of a map that comes from one place.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Its length in bytes.
    pub length: u64,
    /// Where its bytes come from.
    pub source: Source<'a>,
}

/// Where the bytes of a piece come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// They are zeros.
    Zeros,
    /// They are these.
    Bytes(&'a [u8]),
    /// A file has them from this offset on.
    File(&'a Backing, u64),
    /// They are computed: a file allocation table from this offset on.
    Chains(&'a Chains, u64),
}

impl Piece<'_> {
    /// Reads the first bytes of the piece into `buffer`, which is not longer.
    ///
    /// # Errors
    /// The file behind it failed.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<()> {
        match self.source {
            Source::Zeros => buffer.fill(0),
            Source::Bytes(bytes) => buffer.copy_from_slice(&bytes[..buffer.len()]),
            Source::File(file, offset) => file.read_at(offset, buffer)?,
            Source::Chains(chains, offset) => chains.read(offset, buffer),
        }
        Ok(())
    }
}

/// A range of bytes made of extents.
#[derive(Debug)]
pub struct Map {
    size: u64,
    extents: Vec<Extent>,
    id: Digest,
}

impl Map {
    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the identity: equal identities mean equal bytes.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// A file behind it failed, or `UnexpectedEof` past the end.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u64::try_from(buffer.len()).expect("a buffer in memory");
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{length} bytes at {offset} lie outside of {}", self.size),
            ));
        };
        let mut rest = buffer;
        for piece in self.pieces(offset..end) {
            let length = usize::try_from(piece.length).expect("not longer than the buffer");
            let (now, later) = rest.split_at_mut(length);
            piece.read(now)?;
            rest = later;
        }
        Ok(())
    }

    /// Returns the pieces of a range in their order, zeros among them.
    ///
    /// What lies past the end is left out.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece<'_>> {
        let end = range.end.min(self.size);
        let mut offset = range.start;
        std::iter::from_fn(move || {
            (offset < end).then(|| {
                let piece = self.piece(offset, end - offset);
                offset += piece.length;
                piece
            })
        })
    }

    /// The piece at `offset`, at most `limit` bytes of it.
    fn piece(&self, offset: u64, limit: u64) -> Piece<'_> {
        let after = self.extents.partition_point(|e| e.start <= offset);
        let here = after.checked_sub(1).map(|index| &self.extents[index]);
        let Some(extent) = here.filter(|extent| offset < extent.end()) else {
            let next = self.extents.get(after).map_or(self.size, |e| e.start);
            return Piece {
                length: limit.min(next - offset),
                source: Source::Zeros,
            };
        };
        let within = offset - extent.start;
        let length = limit.min(extent.length - within);
        let source = match &extent.content {
            Content::Bytes(blob) => {
                let from = usize::try_from(within).expect("inside of a blob in memory");
                let count = usize::try_from(length).expect("inside of a blob in memory");
                Source::Bytes(&blob.bytes[from..from + count])
            }
            Content::File(file, start) => Source::File(file, start + within),
            Content::Chains(chains) => Source::Chains(chains, within),
            Content::Map(map) => return map.piece(within, length),
        };
        Piece { length, source }
    }

    /// Returns the bytes of memory that this map takes beyond what it points
    /// at and others point at too.
    pub fn own_memory(&self) -> usize {
        let held = |content: &Content| match content {
            Content::Bytes(blob) if Arc::strong_count(blob) == 1 => {
                blob.bytes.len() + size_of::<Blob>()
            }
            // Each of the two tables counts half.
            Content::Chains(chains) => chains.memory() / 2,
            _ => 0,
        };
        let extents = self.extents.capacity() * size_of::<Extent>();
        let content: usize = self.extents.iter().map(|e| held(&e.content)).sum();
        size_of::<Self>() + extents + content
    }
}

/// Puts extents together to a map.
#[derive(Debug)]
pub struct Builder {
    size: u64,
    extents: Vec<Extent>,
}

impl Builder {
    /// A map of `size` zeros.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            extents: Vec::new(),
        }
    }

    fn add(&mut self, start: u64, length: u64, content: Content) {
        if length > 0 {
            self.extents.push(Extent {
                start,
                length,
                content,
            });
        }
    }

    /// Places bytes that others may share.
    pub fn blob(&mut self, start: u64, blob: Arc<Blob>) {
        let length = u64::try_from(blob.bytes.len()).expect("bytes in memory");
        self.add(start, length, Content::Bytes(blob));
    }

    /// Places bytes of its own. Runs of zeros in them are not kept.
    pub fn bytes(&mut self, start: u64, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let grain = |at: usize| &bytes[at..bytes.len().min(at + GRAIN)];
            let zero = |at: usize| grain(at).iter().all(|byte| *byte == 0);
            if zero(at) {
                at += GRAIN;
                continue;
            }
            let first = at;
            while at < bytes.len() && !zero(at) {
                at += GRAIN;
            }
            let run = &bytes[first..at.min(bytes.len())];
            let place = start + u64::try_from(first).expect("bytes in memory");
            self.blob(place, Arc::new(Blob::new(run)));
        }
    }

    /// Places a range of a file.
    pub fn file(&mut self, start: u64, length: u64, file: Arc<Backing>, offset: u64) {
        self.add(start, length, Content::File(file, offset));
    }

    /// Places a file allocation table.
    pub fn chains(&mut self, start: u64, chains: Arc<Chains>) {
        self.add(start, chains.length(), Content::Chains(chains));
    }

    /// Places another map.
    pub fn map(&mut self, start: u64, map: Arc<Map>) {
        self.add(start, map.size, Content::Map(map));
    }

    /// Returns the map.
    ///
    /// # Panics
    /// When extents overlap or lie outside, or a file is shorter than what is
    /// asked of it: whoever plans them keeps them apart.
    pub fn build(mut self) -> Map {
        self.extents.sort_by_key(|extent| extent.start);
        self.extents.shrink_to_fit();
        let mut end = 0;
        let mut identity = b"leapserv extents 1\n".to_vec();
        identity.extend(self.size.to_le_bytes());
        for extent in &self.extents {
            assert!(extent.start >= end, "extents overlap at {}", extent.start);
            end = extent.end();
            identity.extend(extent.start.to_le_bytes());
            identity.extend(extent.length.to_le_bytes());
            let (kind, offset, digest) = match &extent.content {
                Content::Bytes(blob) => (0, 0, blob.digest),
                Content::File(file, offset) => {
                    assert!(offset + extent.length <= file.size, "more than the file");
                    (1, *offset, file.digest)
                }
                Content::Chains(chains) => (2, 0, chains.id()),
                Content::Map(map) => (3, 0, map.id),
            };
            identity.push(kind);
            identity.extend(u64::to_le_bytes(offset));
            identity.extend(digest.as_bytes());
        }
        assert!(end <= self.size, "extents end at {end} of {}", self.size);
        Map {
            size: self.size,
            extents: self.extents,
            id: Digest::of(&identity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backing(folder: &Path, name: &str, content: &[u8]) -> Arc<Backing> {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        Arc::new(Backing::open(&path, Digest::of(content)).unwrap())
    }

    /// A map with every kind of extent, and the bytes that it must have.
    fn sample(folder: &Path) -> (Map, Vec<u8>) {
        let content: Vec<u8> = (0..5000u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let file = backing(folder, "file", &content);
        let mut bytes = vec![0; 40_000];
        let mut inner = Builder::new(9000);
        inner.bytes(100, &[7; 700]);
        inner.file(3000, 1000, Arc::clone(&file), 2000);
        let mut outer = Builder::new(40_000);
        outer.file(512, 5000, file, 0);
        outer.map(10_000, Arc::new(inner.build()));
        let chains = Arc::new(Chains::new(vec![2, 5, 9]));
        outer.chains(20_000, Arc::clone(&chains));
        let mut holes = vec![0; 3000];
        holes[600] = 1;
        holes[2999] = 2;
        outer.bytes(37_000, &holes);
        bytes[512..5512].copy_from_slice(&content);
        bytes[10_100..10_800].fill(7);
        bytes[13_000..14_000].copy_from_slice(&content[2000..3000]);
        let length = usize::try_from(chains.length()).unwrap();
        chains.read(0, &mut bytes[20_000..20_000 + length]);
        bytes[37_000..].copy_from_slice(&holes);
        (outer.build(), bytes)
    }

    proptest! {
        #[test]
        fn any_range_reads_as_the_whole_does(from in 0usize..40_000, length in 0usize..40_000) {
            let folder = tempfile::tempdir().unwrap();
            let (map, bytes) = sample(folder.path());
            let to = (from + length).min(40_000);
            let mut read = vec![0xaa; to - from];
            map.read_at(from as u64, &mut read).unwrap();
            prop_assert!(read == bytes[from..to]);
            let pieces: u64 = map.pieces(from as u64..to as u64).map(|p| p.length).sum();
            prop_assert_eq!(pieces, (to - from) as u64);
        }
    }

    #[test]
    fn the_identity_is_that_of_the_content_and_not_of_the_place_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let map = |name: &str, content: &[u8], start| {
            let mut builder = Builder::new(10_000);
            builder.file(start, 100, backing(folder.path(), name, content), 0);
            builder.build().id()
        };
        assert_eq!(map("one", &[1; 100], 0), map("two", &[1; 100], 0));
        assert_ne!(map("one", &[1; 100], 0), map("one", &[2; 100], 0));
        assert_ne!(map("one", &[1; 100], 0), map("one", &[1; 100], 512));
    }

    #[test]
    fn zeros_are_not_kept_and_nothing_is_read_past_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (map, _) = sample(folder.path());
        assert!(map.read_at(39_999, &mut [0; 2]).is_err());
        assert!(map.read_at(u64::MAX, &mut [0; 2]).is_err());
        assert_eq!(map.pieces(50_000..60_000).count(), 0);
        let mut sparse = Builder::new(1 << 20);
        let mut bytes = vec![0; 1 << 20];
        bytes[5000] = 1;
        sparse.bytes(0, &bytes);
        assert!(sparse.build().own_memory() < 1024);
    }

    #[test]
    fn a_file_that_shrinks_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (map, _) = sample(folder.path());
        std::fs::write(folder.path().join("file"), b"short").unwrap();
        let error = map.read_at(0, &mut [0; 4096]).unwrap_err();
        assert!(error.to_string().contains("file: read at"), "{error}");
    }
}
