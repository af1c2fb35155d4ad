//! Inodes: where a file's data lies.

use super::{ErofsError, damaged, u16_at, u32_at, u64_at};

/// The kinds of files, as in `st_mode`.
pub(super) const FIFO: u32 = 0o010_000;
pub(super) const CHARACTER: u32 = 0o020_000;
pub(super) const FOLDER: u32 = 0o040_000;
pub(super) const BLOCK: u32 = 0o060_000;
pub(super) const FILE: u32 = 0o100_000;
pub(super) const LINK: u32 = 0o120_000;
pub(super) const SOCKET: u32 = 0o140_000;

/// How the data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In consecutive blocks.
    Plain,
    /// In consecutive blocks but for the last, which follows the inode.
    InlineTail,
    /// In chunks of this many bytes; the table follows the inode.
    Chunks {
        /// Bytes of a chunk, as a power of two above the block size.
        bits: u32,
        /// Whether the table's fields name a device.
        indexes: bool,
    },
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) offset: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: u64,
    pub(super) layout: Layout,
    pub(super) attribute_size: usize,
    length: u64,
    start: u32,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// At this byte of the image.
    At(u64),
    /// From this block of the image.
    Block(u64),
    /// In the chunk with this number.
    Chunk(u64),
}

/// What is wrong with an inode; the caller knows which one it is.
#[derive(Debug)]
pub(super) enum Problem {
    Damaged(&'static str),
    Unsupported(&'static str),
}

impl Problem {
    pub(super) fn at(self, path: &str) -> ErofsError {
        match self {
            Self::Damaged(problem) => damaged(format!("/{path}"), problem),
            Self::Unsupported(what) => ErofsError::Unsupported(format!("/{path}: {what}")),
        }
    }
}

impl Inode {
    /// Reads an inode from its first bytes, up to 64 of them.
    pub(super) fn parse(offset: u64, bytes: &[u8], created: u64) -> Result<Self, Problem> {
        let format = u16_at(bytes, 0);
        let extended = format & 1 != 0;
        let length = if extended { 64 } else { 32 };
        if bytes.len() < length {
            return Err(Problem::Damaged("inode lies outside of the image"));
        }
        let start = u32_at(bytes, 16);
        let layout = match format >> 1 & 7 {
            0 => Layout::Plain,
            2 => Layout::InlineTail,
            4 if start & !0x3f != 0 => return Err(Problem::Unsupported("format of its chunks")),
            4 => Layout::Chunks {
                bits: start & 0x1f,
                indexes: start & 0x20 != 0,
            },
            1 | 3 => return Err(Problem::Unsupported("compressed data")),
            _ => return Err(Problem::Unsupported("layout of its data")),
        };
        if format >> 4 != 0 {
            return Err(Problem::Unsupported("format of its inode"));
        }
        let count = usize::from(u16_at(bytes, 2));
        let (size, uid, gid, mtime) = if extended {
            let (size, mtime) = (u64_at(bytes, 8), u64_at(bytes, 32));
            (size, u32_at(bytes, 24), u32_at(bytes, 28), mtime)
        } else {
            let (uid, gid) = (u16_at(bytes, 24), u16_at(bytes, 26));
            (u64::from(u32_at(bytes, 8)), uid.into(), gid.into(), created)
        };
        Ok(Self {
            offset,
            mode: u32::from(u16_at(bytes, 4)),
            uid,
            gid,
            size,
            mtime,
            layout,
            attribute_size: count.checked_sub(1).map_or(0, |more| 12 + 4 * more),
            length: length as u64,
            start,
        })
    }

    pub(super) fn kind_bits(&self) -> u32 {
        self.mode & 0o170_000
    }

    /// Where the extended attributes start.
    pub(super) fn attributes_at(&self) -> u64 {
        self.offset + self.length
    }

    /// Where an inline tail or a table of chunks starts.
    pub(super) fn data_at(&self) -> u64 {
        self.attributes_at() + self.attribute_size as u64
    }

    /// The pieces of the data in order, each with its length.
    pub(super) fn pieces(
        &self,
        block_size: u64,
    ) -> impl Iterator<Item = Result<(Data, u64), Problem>> {
        // At most two pieces, or as many as there are chunks.
        let (size, start) = (self.size, u64::from(self.start));
        let tail = match self.layout {
            // The last block, which may be a whole one, is the inline one.
            Layout::InlineTail if size > 0 => (size - 1) % block_size + 1,
            _ => 0,
        };
        let chunk = match self.layout {
            Layout::Chunks { bits, .. } => block_size.checked_shl(bits).unwrap_or(0),
            _ => 0,
        };
        let pieces = match self.layout {
            Layout::Chunks { .. } if chunk < block_size => 1,
            Layout::Chunks { .. } => size.div_ceil(chunk),
            Layout::Plain | Layout::InlineTail => 2,
        };
        let tail_at = self.data_at();
        let layout = self.layout;
        (0..pieces).filter_map(move |index| match (layout, index) {
            (Layout::Chunks { .. }, _) if chunk < block_size => {
                Some(Err(Problem::Damaged("size of its chunks is out of range")))
            }
            (Layout::Chunks { .. }, index) => {
                let length = chunk.min(size - index * chunk);
                Some(Ok((Data::Chunk(index), length)))
            }
            (_, 0) => (size > tail).then_some(Ok((Data::Block(start), size - tail))),
            _ if tail == 0 => None,
            _ if tail_at % block_size + tail > block_size => {
                Some(Err(Problem::Damaged("its end crosses a block")))
            }
            _ => Some(Ok((Data::At(tail_at), tail))),
        })
    }
}
