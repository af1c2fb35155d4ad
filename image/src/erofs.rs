//! Reading EROFS images, without mounting them.
//!
//! It knows what `mkfs.erofs` writes for us: uncompressed files, plain, with
//! an inline tail, or in chunks; extended attributes inline and shared. An
//! image with anything else is refused by the name of what it uses.
//!
//! The bytes may be anybody's. Nothing here panics on them, and what a walk
//! reads is bounded by the size of the image: a folder is entered once, and
//! there are never more names than fit into the image.
//!
//! All places in this file are the on-disk format's, little endian.

mod inode;
mod xattr;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};

use model::Digest;
use serde::Serialize;

use crate::block::Block;
use inode::{Data, Inode, Layout};

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// It is none.
    #[error("no EROFS image: {0}")]
    Foreign(&'static str),
    /// It uses what this reader does not know.
    #[error("EROFS image: {0} is not supported")]
    Unsupported(String),
    /// It contradicts itself.
    #[error("EROFS image: {place}: {problem}")]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong there.
        problem: &'static str,
    },
    /// It cannot be read.
    #[error("EROFS image: cannot be read")]
    Read(#[source] io::Error),
    /// What was read cannot be passed on.
    #[error("write what an EROFS image holds")]
    Write(#[source] io::Error),
}

fn damaged(place: impl fmt::Display, problem: &'static str) -> ErofsError {
    ErofsError::Damaged {
        place: place.to_string(),
        problem,
    }
}

/// Where the super block lies.
pub const SUPER_OFFSET: u64 = 1024;
/// The super block's first four bytes.
pub const MAGIC: u32 = 0xe0f5_e1e2;
const SUPER_SIZE: usize = 128;
/// A sparse file may be larger than its image, but not than a root slot.
const MAX_FILE: u64 = 4 << 30;
/// Longer paths cannot be opened on Linux.
const MAX_PATH: usize = 4096;
const CHECKSUM: u32 = 0x1;
const CHUNKED: u32 = 0x4;

/// Features that change how an image is to be read, and that are not read here.
const FOREIGN: [(u32, &str); 8] = [
    (0x01, "LZ4 compression with padding"),
    (0x02, "compression"),
    (0x08, "a second compression head or further devices"),
    (0x10, "inline compressed tails"),
    (0x20, "fragments and deduplication"),
    (0x40, "long prefixes of extended attributes"),
    (0x80, "48 bit block addresses"),
    (0x100, "a separate box of metadata"),
];

/// What the super block says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Super {
    /// Size of a block in bytes.
    pub block_size: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Number of inodes.
    pub inodes: u64,
    /// When the image was made, in Unix seconds.
    pub created: u64,
    /// The file system's UUID.
    pub uuid: String,
    #[serde(skip)]
    root: u64,
    #[serde(skip)]
    inode_start: u64,
    #[serde(skip)]
    attribute_start: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Link(String),
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One name in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Path without a leading slash; the root's is empty.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// The lower twelve bits of the mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of last change, in Unix seconds.
    pub mtime: u64,
    /// Extended attributes.
    pub attributes: BTreeMap<String, Vec<u8>>,
    #[serde(skip)]
    inode: u64,
}

/// An EROFS image.
#[derive(Debug)]
pub struct Image<B> {
    block: B,
    head: Super,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let field = bytes
        .get(at..at + 2)
        .and_then(|field| field.try_into().ok());
    u16::from_le_bytes(field.unwrap_or_default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    u32::from_le_bytes(field.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok());
    u64::from_le_bytes(field.unwrap_or_default())
}

/// CRC-32C as the kernel uses it here: started with ones, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

impl<B: Block> Image<B> {
    /// Opens an image and checks its super block.
    ///
    /// # Errors
    /// When it is no EROFS image, or one that is not supported.
    pub fn open(block: B) -> Result<Self, ErofsError> {
        let mut bytes = [0; SUPER_SIZE];
        block
            .read_at(SUPER_OFFSET, &mut bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ErofsError::Foreign("too short"),
                _ => ErofsError::Read(error),
            })?;
        if u32_at(&bytes, 0) != MAGIC {
            return Err(ErofsError::Foreign(
                "expected its magic number at byte 1024",
            ));
        }
        let features = u32_at(&bytes, 80);
        if let Some((_, name)) = FOREIGN.iter().find(|(bit, _)| features & bit != 0) {
            return Err(ErofsError::Unsupported((*name).to_owned()));
        }
        if features & !CHUNKED != 0 {
            return Err(ErofsError::Unsupported(format!("feature {features:#x}")));
        }
        let bits = bytes[12];
        if !(9..=16).contains(&bits) {
            return Err(damaged("super block", "block size out of range"));
        }
        if bytes[90] != 0 {
            return Err(ErofsError::Unsupported("another size of folders".into()));
        }
        let block_size = 1u64 << bits;
        if u32_at(&bytes, 8) & CHECKSUM != 0 {
            // It covers the rest of the super block's block.
            let end = block_size.max(SUPER_OFFSET * 2);
            let length = usize::try_from(end - SUPER_OFFSET).unwrap_or(SUPER_SIZE);
            let mut covered = vec![0; length];
            block
                .read_at(SUPER_OFFSET, &mut covered)
                .map_err(|_| damaged("super block", "cut off"))?;
            covered[4..8].fill(0);
            if crc32c(&covered) != u32_at(&bytes, 4) {
                return Err(damaged("super block", "its checksum is another one"));
            }
        }
        let uuid = hex::encode(&bytes[48..64]);
        let blocks = u64::from(u32_at(&bytes, 36));
        let head = Super {
            block_size,
            blocks,
            inodes: u64_at(&bytes, 16),
            created: u64_at(&bytes, 24),
            uuid: format!(
                "{}-{}-{}-{}-{}",
                &uuid[..8],
                &uuid[8..12],
                &uuid[12..16],
                &uuid[16..20],
                &uuid[20..]
            ),
            root: u64::from(u16_at(&bytes, 14)),
            inode_start: u64::from(u32_at(&bytes, 40)) * block_size,
            attribute_start: u64::from(u32_at(&bytes, 44)) * block_size,
        };
        if blocks * block_size > block.size() {
            return Err(damaged("super block", "the image is cut off"));
        }
        Ok(Self { block, head })
    }

    /// What the super block says.
    pub fn head(&self) -> &Super {
        &self.head
    }

    fn read(&self, offset: u64, length: usize, place: &str) -> Result<Vec<u8>, ErofsError> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.block.size()) {
            return Err(damaged(format!("/{place}"), "lies outside of the image"));
        }
        let mut bytes = vec![0; length];
        self.block
            .read_at(offset, &mut bytes)
            .map_err(ErofsError::Read)?;
        Ok(bytes)
    }

    /// Lists all names, sorted by path. The first is the root directory.
    ///
    /// # Errors
    /// When the image contradicts itself or cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, ErofsError> {
        let mut found = vec![self.entry(String::new(), self.head.root)?];
        if found[0].kind != Kind::Directory {
            return Err(damaged("/", "expected a directory"));
        }
        let mut entered = BTreeSet::from([self.head.root]);
        let mut open = vec![(String::new(), self.head.root)];
        // A name takes twelve bytes and its letters.
        let mut left = self.block.size() / 12;
        while let Some((folder, inode)) = open.pop() {
            for (name, inode) in self.names(&folder, inode, &mut left)? {
                let path = match folder.as_str() {
                    "" => name,
                    folder => format!("{folder}/{name}"),
                };
                if path.len() > MAX_PATH {
                    return Err(damaged(format!("/{folder}"), "path is too long"));
                }
                let entry = self.entry(path, inode)?;
                if entry.kind == Kind::Directory {
                    if !entered.insert(inode) {
                        return Err(damaged(format!("/{}", entry.path), "folder in a circle"));
                    }
                    open.push((entry.path.clone(), inode));
                }
                found.push(entry);
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = found.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(damaged(format!("/{}", pair[0].path), "stands there twice"));
        }
        Ok(found)
    }

    /// Writes the content of a file to `to`.
    ///
    /// # Errors
    /// When it is no file, the image contradicts itself, or reading or writing fails.
    pub fn copy(&self, entry: &Entry, to: &mut impl Write) -> Result<(), ErofsError> {
        if entry.kind != Kind::File {
            return Err(damaged(format!("/{}", entry.path), "expected a file"));
        }
        let inode = self.inode(entry.inode, &entry.path)?;
        self.copy_data(&inode, &entry.path, to)
    }

    /// Returns the content of a file that fits into memory.
    ///
    /// # Errors
    /// As for [`Image::copy`].
    pub fn content(&self, entry: &Entry) -> Result<Vec<u8>, ErofsError> {
        let mut bytes = Vec::new();
        self.copy(entry, &mut bytes)?;
        Ok(bytes)
    }

    /// Returns the SHA-256 of a file's content.
    ///
    /// # Errors
    /// As for [`Image::copy`].
    pub fn digest(&self, entry: &Entry) -> Result<Digest, ErofsError> {
        use sha2::Digest as _;
        struct Hash(sha2::Sha256);
        impl Write for Hash {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut hash = Hash(sha2::Sha256::new());
        self.copy(entry, &mut hash)?;
        Ok(Digest::from(<[u8; 32]>::from(hash.0.finalize())))
    }

    fn inode(&self, number: u64, place: &str) -> Result<Inode, ErofsError> {
        let offset = number
            .checked_mul(32)
            .and_then(|offset| offset.checked_add(self.head.inode_start))
            .filter(|offset| *offset < self.block.size())
            .ok_or_else(|| damaged(format!("/{place}"), "inode lies outside of the image"))?;
        let room = (self.block.size() - offset).min(64);
        let bytes = self.read(offset, usize::try_from(room).unwrap_or(64), place)?;
        let inode =
            Inode::parse(offset, &bytes, self.head.created).map_err(|problem| problem.at(place))?;
        let limit = match inode.layout {
            Layout::Chunks { .. } => MAX_FILE,
            Layout::Plain | Layout::InlineTail => self.block.size(),
        };
        let has_data = matches!(inode.kind_bits(), inode::FILE | inode::FOLDER | inode::LINK);
        if has_data && inode.size > limit {
            return Err(damaged(format!("/{place}"), "larger than the image allows"));
        }
        Ok(inode)
    }

    fn entry(&self, path: String, number: u64) -> Result<Entry, ErofsError> {
        let inode = self.inode(number, &path)?;
        let kind = match inode.kind_bits() {
            inode::FILE => Kind::File,
            inode::FOLDER => Kind::Directory,
            inode::LINK => {
                if inode.size > MAX_PATH as u64 {
                    return Err(damaged(format!("/{path}"), "link is too long"));
                }
                let mut target = Vec::new();
                self.copy_data(&inode, &path, &mut target)?;
                Kind::Link(String::from_utf8_lossy(&target).into_owned())
            }
            inode::CHARACTER => Kind::CharacterDevice,
            inode::BLOCK => Kind::BlockDevice,
            inode::FIFO => Kind::Fifo,
            inode::SOCKET => Kind::Socket,
            _ => return Err(damaged(format!("/{path}"), "of no known kind")),
        };
        Ok(Entry {
            attributes: self.attributes(&inode, &path)?,
            kind,
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            mtime: inode.mtime,
            inode: number,
            path,
        })
    }

    fn attributes(
        &self,
        inode: &Inode,
        path: &str,
    ) -> Result<BTreeMap<String, Vec<u8>>, ErofsError> {
        if inode.attribute_size == 0 {
            return Ok(BTreeMap::new());
        }
        let body = self.read(inode.attributes_at(), inode.attribute_size, path)?;
        let shared = |id: u32| {
            let at = self.head.attribute_start + u64::from(id) * 4;
            // An entry is at most this long; at the end of the image less is there.
            let room = self.block.size().saturating_sub(at).min(xattr::MAX_ENTRY);
            self.read(at, usize::try_from(room).unwrap_or(0), path)
        };
        xattr::parse(&body, shared, path)
    }

    /// Calls `to` with the bytes of a file, block-wise.
    fn copy_data(&self, inode: &Inode, path: &str, to: &mut impl Write) -> Result<(), ErofsError> {
        const STEP: u64 = 1 << 20;
        for piece in inode.pieces(self.head.block_size) {
            let (data, length) = piece.map_err(|problem| problem.at(path))?;
            let mut done = 0;
            while done < length {
                let count = usize::try_from(STEP.min(length - done)).unwrap_or(0);
                let bytes = match self.place(inode, data, path)? {
                    Some(start) => self.read(start.saturating_add(done), count, path)?,
                    None => vec![0; count],
                };
                to.write_all(&bytes).map_err(ErofsError::Write)?;
                done += count as u64;
            }
        }
        Ok(())
    }

    /// Where a piece of a file lies; `None` for a hole.
    fn place(&self, inode: &Inode, data: Data, path: &str) -> Result<Option<u64>, ErofsError> {
        match data {
            Data::At(offset) => Ok(Some(offset)),
            Data::Block(block) => Ok(Some(block.saturating_mul(self.head.block_size))),
            Data::Chunk(number) => {
                let Layout::Chunks { indexes, .. } = inode.layout else {
                    return Err(damaged(format!("/{path}"), "has no chunks"));
                };
                let unit: u64 = if indexes { 8 } else { 4 };
                let table = inode.data_at().next_multiple_of(unit);
                let at = table.saturating_add(number.saturating_mul(unit));
                let field = self.read(at, if indexes { 8 } else { 4 }, path)?;
                if indexes && u16_at(&field, 2) != 0 {
                    return Err(ErofsError::Unsupported(format!(
                        "/{path}: data on another device"
                    )));
                }
                let block = u32_at(&field, field.len() - 4);
                Ok((block != u32::MAX).then(|| u64::from(block) * self.head.block_size))
            }
        }
    }

    /// The names in a folder with their inodes, without `.` and `..`.
    fn names(
        &self,
        folder: &str,
        number: u64,
        left: &mut u64,
    ) -> Result<Vec<(String, u64)>, ErofsError> {
        let inode = self.inode(number, folder)?;
        let mut bytes = Vec::new();
        self.copy_data(&inode, folder, &mut bytes)?;
        let size = usize::try_from(self.head.block_size).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        for block in bytes.chunks(size) {
            let wrong = |problem| damaged(format!("/{folder}"), problem);
            let first = usize::from(u16_at(block, 8));
            if block.len() < 12 || first < 12 || first % 12 != 0 || first > block.len() {
                return Err(wrong("names start at a wrong place"));
            }
            let count = first / 12;
            *left = left
                .checked_sub(count as u64)
                .ok_or_else(|| wrong("more names than fit into the image"))?;
            for index in 0..count {
                let start = usize::from(u16_at(block, index * 12 + 8));
                let end = match index + 1 {
                    next if next < count => usize::from(u16_at(block, next * 12 + 8)),
                    _ => block.len(),
                };
                let name = block
                    .get(start..end)
                    .ok_or_else(|| wrong("a name lies at a wrong place"))?;
                // The last name of a block is filled up with zeros.
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = std::str::from_utf8(name).map_err(|_| wrong("a name is not UTF-8"))?;
                if name.is_empty() || name.contains('/') {
                    return Err(wrong("a name is empty or has a slash"));
                }
                if !matches!(name, "." | "..") {
                    found.push((name.to_owned(), u64_at(block, index * 12)));
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
pub(crate) mod tests;
