//! What is written to: a disk, a partition of it, or a file that stands in.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;

/// A range of bytes that can be written durably.
///
/// Nothing is durable before [`Target::flush`] has returned.
pub trait Target {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Any of the device's, and `UnexpectedEof` past the end.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Any of the device's.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything written so far is on the medium.
    ///
    /// # Errors
    /// Any of the device's: then nothing since the last flush may be believed.
    fn flush(&mut self) -> io::Result<()>;

    /// Returns the size in bytes.
    fn size(&self) -> u64;

    /// Returns the size of a logical sector in bytes.
    fn sector_size(&self) -> u64 {
        512
    }
}

impl<T: Target + ?Sized> Target for &mut T {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (**self).flush()
    }

    fn size(&self) -> u64 {
        (**self).size()
    }

    fn sector_size(&self) -> u64 {
        (**self).sector_size()
    }
}

/// A whole disk or partition: a block device, or a file that stands in for one.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
    sector_size: u64,
}

impl Disk {
    /// Opens a device or a file for reading and writing.
    ///
    /// # Errors
    /// Any of the system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::options().read(true).write(true).open(path)?)
    }

    /// Opens a device or a file for reading; writes fail.
    ///
    /// # Errors
    /// Any of the system's.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?)
    }

    /// Creates an empty, sparse file of `size` bytes. An existing file is replaced.
    ///
    /// # Errors
    /// Any of the system's.
    pub fn create(path: &Path, size: u64) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        file.set_len(size)?;
        Self::of(file)
    }

    fn of(mut file: File) -> io::Result<Self> {
        let size = file.seek(SeekFrom::End(0))?;
        let sector_size = if file.metadata()?.file_type().is_block_device() {
            u64::from(rustix::fs::ioctl_blksszget(&file)?)
        } else {
            512
        };
        Ok(Self {
            file,
            size,
            sector_size,
        })
    }

    /// Returns the open file, for those who have to ask the kernel something.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Target for Disk {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // A file would grow where a device would not.
        check_range(self.size, offset, bytes.len())?;
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u64 {
        self.sector_size
    }
}

/// Disks that are given the same bytes. What is read comes from the first one: the
/// others are compared by reading each for itself.
#[derive(Debug)]
pub struct Mirror<T> {
    legs: Vec<T>,
}

impl<T: Target> Mirror<T> {
    /// Writes to all of `legs`.
    ///
    /// # Panics
    /// There is none.
    pub fn new(legs: Vec<T>) -> Self {
        assert!(!legs.is_empty(), "a mirror has a disk");
        Self { legs }
    }
}

impl<T: Target + Send> Target for Mirror<T> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.legs[0].read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut legs = self.legs.iter_mut();
        legs.try_for_each(|leg| leg.write_at(offset, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        let (first, others) = self.legs.split_first_mut().expect("a mirror has a disk");
        // The media write at the same time.
        std::thread::scope(|scope| {
            let running: Vec<_> = others
                .iter_mut()
                .map(|leg| scope.spawn(|| leg.flush()))
                .collect();
            let first = first.flush();
            running
                .into_iter()
                .map(|leg| leg.join().expect("a flush does not panic"))
                .fold(first, io::Result::and)
        })
    }

    fn size(&self) -> u64 {
        self.legs.iter().map(T::size).min().unwrap_or(0)
    }

    fn sector_size(&self) -> u64 {
        self.legs.iter().map(T::sector_size).max().unwrap_or(512)
    }
}

/// A part of another target, such as one partition of a disk.
#[derive(Debug)]
pub struct Window<T> {
    inner: T,
    start: u64,
    size: u64,
}

impl<T: Target> Window<T> {
    /// Looks at `size` bytes from `start`.
    pub fn new(inner: T, start: u64, size: u64) -> Self {
        Self { inner, start, size }
    }
}

impl<T: Target> Target for Window<T> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buffer.len())?;
        self.inner.read_at(self.start + offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, bytes.len())?;
        self.inner.write_at(self.start + offset, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u64 {
        self.inner.sector_size()
    }
}

fn check_range(size: u64, offset: u64, length: usize) -> io::Result<()> {
    let end = u64::try_from(length)
        .ok()
        .and_then(|length| offset.checked_add(length));
    match end {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{length} bytes at {offset} lie outside of {size} bytes"),
        )),
    }
}

/// A target as a stream, for libraries that seek.
pub(crate) struct Stream<T> {
    target: T,
    position: u64,
}

impl<T> fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl<T: Target> Stream<T> {
    pub(crate) fn new(target: T) -> Self {
        Self {
            target,
            position: 0,
        }
    }

    fn left(&self, length: usize) -> usize {
        let left = self.target.size().saturating_sub(self.position);
        usize::try_from(left).unwrap_or(usize::MAX).min(length)
    }
}

impl<T: Target> Read for Stream<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.left(buffer.len());
        self.target.read_at(self.position, &mut buffer[..length])?;
        self.position += length as u64;
        Ok(length)
    }
}

impl<T: Target> Write for Stream<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.left(bytes.len());
        self.target.write_at(self.position, &bytes[..length])?;
        self.position += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Durability is asked for once at the end, by the caller: the FAT
        // library flushes after each directory entry.
        Ok(())
    }
}

impl<T: Target> Seek for Stream<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.target.size().checked_add_signed(by),
        };
        self.position = position
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_reads_and_writes_nothing_outside_of_itself() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Disk::create(&folder.path().join("disk"), 4096).unwrap();
        let mut window = Window::new(&mut disk, 1024, 512);
        window.write_at(0, &[1; 512]).unwrap();
        assert!(window.write_at(1, &[1; 512]).is_err());
        assert!(window.read_at(512, &mut [0; 1]).is_err());
        assert!(window.write_at(u64::MAX, &[1]).is_err());
        let mut all = [0; 4096];
        disk.read_at(0, &mut all).unwrap();
        assert_eq!(all.iter().filter(|byte| **byte == 1).count(), 512);
        assert!(disk.write_at(4096, &[1]).is_err());
    }

    #[test]
    fn all_disks_of_a_mirror_get_the_same_and_the_smallest_bounds_it() {
        let folder = tempfile::tempdir().unwrap();
        let disk = |name: &str, size| Disk::create(&folder.path().join(name), size).unwrap();
        let (mut a, mut b) = (disk("a", 4096), disk("b", 8192));
        let mut mirror = Mirror::new(vec![&mut a, &mut b]);
        assert_eq!(mirror.size(), 4096);
        mirror.write_at(512, &[7; 512]).unwrap();
        assert!(mirror.write_at(4096, &[7]).is_err());
        mirror.flush().unwrap();
        for disk in [&mut a, &mut b] {
            let mut found = [0; 512];
            disk.read_at(512, &mut found).unwrap();
            assert_eq!(found, [7; 512]);
        }
    }
}
