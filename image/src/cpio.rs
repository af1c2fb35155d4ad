//! The kernel's initramfs archive (`newc`), written so that the same tree
//! always gives the same bytes.

use std::io::{self, Write};

/// Writes entries of a `newc` archive; [`Writer::finish`] ends it.
///
/// Inode numbers count up from 1, every link count is 1 and times are the
/// caller's: nothing of the machine that builds gets into the archive.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    inode: u32,
    mtime: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// A directory.
    Directory,
    /// A file with its bytes.
    File(&'a [u8]),
    /// A symbolic link with its target.
    Link(&'a str),
    /// A character device: major and minor.
    Device(u32, u32),
}

impl<W: Write> Writer<W> {
    /// Starts an archive whose entries all carry `mtime`, in Unix seconds.
    pub fn new(to: W, mtime: u32) -> Self {
        Self {
            to,
            inode: 0,
            mtime,
        }
    }

    /// Writes one entry owned by root. `path` has no leading slash;
    /// `permissions` are the lower twelve bits of the mode.
    ///
    /// # Errors
    /// When the writer fails, or a file is 4 GiB or larger.
    pub fn entry(&mut self, path: &str, permissions: u32, entry: Entry<'_>) -> io::Result<()> {
        self.inode += 1;
        let (kind, data, device): (u32, &[u8], (u32, u32)) = match entry {
            Entry::Directory => (0o040_000, &[], (0, 0)),
            Entry::File(bytes) => (0o100_000, bytes, (0, 0)),
            Entry::Link(target) => (0o120_000, target.as_bytes(), (0, 0)),
            Entry::Device(major, minor) => (0o020_000, &[], (major, minor)),
        };
        let mode = kind | (permissions & 0o7777);
        self.record(self.inode, mode, self.mtime, data, device, path)
    }

    fn record(
        &mut self,
        inode: u32,
        mode: u32,
        mtime: u32,
        data: &[u8],
        device: (u32, u32),
        path: &str,
    ) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{path}: larger than an initrd can hold"));
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name = u32::try_from(path.len() + 1).map_err(too_large)?;
        let (major, minor) = device;
        let header = [
            inode, mode, 0, 0, 1, mtime, size, 0, 0, major, minor, name, 0,
        ];
        let mut head = String::from("070701");
        for field in header {
            use std::fmt::Write as _;
            let _ = write!(head, "{field:08x}");
        }
        head.push_str(path);
        head.push('\0');
        self.to.write_all(head.as_bytes())?;
        self.pad(head.len())?;
        self.to.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..length.wrapping_neg() % 4])
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.record(0, 0, 0, &[], (0, 0), "TRAILER!!!")?;
        Ok(self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_aligned_to_four_bytes_and_end_with_the_trailer() {
        let mut writer = Writer::new(Vec::new(), 7);
        writer.entry("etc", 0o755, Entry::Directory).unwrap();
        writer.entry("etc/a", 0o644, Entry::File(b"hello")).unwrap();
        writer.entry("init", 0o777, Entry::Link("etc/a")).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        // Walks the archive as the kernel does.
        let field = |at: usize, index: usize| {
            let start = at + 6 + index * 8;
            usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16)
                .unwrap()
        };
        let mut at = 0;
        let mut names = Vec::new();
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name) = (field(at, 6), field(at, 11));
            names.push(String::from_utf8(bytes[at + 110..at + 110 + name - 1].to_vec()).unwrap());
            let data = (at + 110 + name).next_multiple_of(4);
            if names.last().unwrap() == "etc/a" {
                assert_eq!(&bytes[data..data + size], b"hello");
                assert_eq!(field(at, 1), 0o100_644);
                assert_eq!(field(at, 5), 7);
            }
            at = (data + size).next_multiple_of(4);
        }
        assert_eq!(names, ["etc", "etc/a", "init", "TRAILER!!!"]);
    }

    #[test]
    fn a_device_has_its_numbers_and_no_content() {
        let mut writer = Writer::new(Vec::new(), 0);
        let console = Entry::Device(5, 1);
        writer.entry("dev/console", 0o600, console).unwrap();
        let bytes = writer.finish().unwrap();
        let field = |index: usize| &bytes[6 + index * 8..14 + index * 8];
        assert_eq!(field(1), b"00002180");
        assert_eq!(
            (field(6), field(9), field(10)),
            (&b"00000000"[..], &b"00000005"[..], &b"00000001"[..])
        );
    }
}
