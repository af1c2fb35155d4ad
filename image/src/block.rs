//! What is looked into: bytes at any place, of a file, a part of one, or an
//! image that lies in compressed segments.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context as _;
use model::Digest;
use model::release::{SEGMENT_SIZE, SegmentedImage};

/// Bytes that can be read at any place.
pub trait Block {
    /// The number of bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Those of the medium, and `UnexpectedEof` past the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl<T: Block + ?Sized> Block for &T {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

impl<T: Block + ?Sized> Block for Box<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

impl Block for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A part of a file.
#[derive(Debug)]
pub struct FilePart {
    file: File,
    start: u64,
    size: u64,
}

impl FilePart {
    /// Opens all of a file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        Ok(Self {
            file,
            start: 0,
            size,
        })
    }

    /// Returns `size` bytes of it from `start`.
    ///
    /// # Errors
    /// `UnexpectedEof` when they reach past the end.
    pub fn part(&self, start: u64, size: u64) -> io::Result<Self> {
        if start.checked_add(size).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self {
            file: self.file.try_clone()?,
            start: self.start + start,
            size,
        })
    }
}

impl Block for FilePart {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.start + offset)
    }
}

/// How many segments are kept decompressed.
const KEPT: usize = 8;

/// An image in compressed segments. Each segment is checked against its
/// digest before a byte of it is believed.
#[derive(Debug)]
pub struct Segmented<'a> {
    index: &'a SegmentedImage,
    file: File,
    // The segment that was used last comes last.
    kept: RefCell<Vec<(usize, Vec<u8>)>>,
}

impl<'a> Segmented<'a> {
    /// Opens the image that `index` describes in a release's folder.
    ///
    /// # Errors
    /// When the index has gaps or the file cannot be opened.
    pub fn open(folder: &Path, index: &'a SegmentedImage) -> anyhow::Result<Self> {
        index.check().map_err(anyhow::Error::msg)?;
        let path = folder.join(&index.path);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            index,
            file,
            kept: RefCell::default(),
        })
    }

    fn segment(&self, number: usize) -> io::Result<Vec<u8>> {
        let wrong = |problem: &str| {
            let place = format!("{}: segment {number}: {problem}", self.index.path);
            io::Error::new(io::ErrorKind::InvalidData, place)
        };
        let segment = self
            .index
            .segments
            .get(number)
            .ok_or_else(|| wrong("not there"))?;
        let mut frame = vec![0; segment.stored_length as usize];
        self.file
            .read_exact_at(&mut frame, segment.stored_offset)
            .map_err(|_| wrong("cut off"))?;
        let content = zstd::bulk::decompress(&frame, segment.length as usize)
            .map_err(|_| wrong("cannot be decompressed"))?;
        if content.len() != segment.length as usize || Digest::of(&content) != segment.sha256 {
            return Err(wrong("is not what the manifest says"));
        }
        Ok(content)
    }
}

impl Block for Segmented<'_> {
    fn size(&self) -> u64 {
        self.index.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.index.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut kept = self.kept.borrow_mut();
        let (mut offset, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let number = usize::try_from(offset / SEGMENT_SIZE).map_err(io::Error::other)?;
            let inside = usize::try_from(offset % SEGMENT_SIZE).map_err(io::Error::other)?;
            let segment = match kept.iter().position(|(at, _)| *at == number) {
                Some(place) => kept.remove(place),
                None => (number, self.segment(number)?),
            };
            let from = segment.1.get(inside..).unwrap_or_default();
            let count = from.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&from[..count]);
            (offset, rest) = (offset + count as u64, later);
            if kept.len() == KEPT {
                kept.remove(0);
            }
            kept.push(segment);
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{NoStore, write};

    #[test]
    fn segments_read_like_the_image_across_their_borders() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..SEGMENT_SIZE * 2 + 100)
            .map(|i| u8::try_from(i * 31 / 700 % 251).unwrap())
            .collect();
        let image = folder.path().join("root");
        std::fs::write(&image, &content).unwrap();
        let stored = folder.path().join("root.zst");
        let mut index = write(&image, &stored, "root.zst", 1, &NoStore, &mut |_, _| ()).unwrap();
        let border = usize::try_from(SEGMENT_SIZE).unwrap();
        {
            let block = Segmented::open(folder.path(), &index).unwrap();
            let mut buffer = vec![0; 300];
            block.read_at(SEGMENT_SIZE - 150, &mut buffer).unwrap();
            assert_eq!(buffer, content[border - 150..border + 150]);
            assert!(block.read_at(block.size() - 299, &mut buffer).is_err());
            assert!(block.read_at(u64::MAX, &mut buffer).is_err());
        }
        index.segments[1].sha256 = Digest::of(b"other");
        let block = Segmented::open(folder.path(), &index).unwrap();
        let refused = block.read_at(SEGMENT_SIZE, &mut [0; 4]).unwrap_err();
        assert!(refused.to_string().contains("segment 1"), "{refused}");
    }
}
