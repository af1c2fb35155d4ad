//! The way to the chip: the kernel's resource manager, or an emulator's socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The largest command or response (Library part 2: the buffers of common chips).
pub(crate) const LARGEST: usize = 4096;
/// Tag, size and code.
const HEADER: usize = 10;
/// A slow chip makes an RSA key in a minute; we ask for nothing like it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) enum Channel {
    /// `/dev/tpmrm0`: one write is one command, one read is its response.
    Device(File),
    /// An emulator: bytes in both directions.
    Socket(UnixStream),
}

impl Channel {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if std::fs::metadata(path)?.file_type().is_socket() {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            return Ok(Self::Socket(socket));
        }
        let device = File::options().read(true).write(true).open(path)?;
        Ok(Self::Device(device))
    }

    /// Sends a command and returns its response.
    pub(crate) fn transact(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut response = vec![0; LARGEST];
        match self {
            Self::Device(device) => {
                device.write_all(command)?;
                let length = device.read(&mut response)?;
                response.truncate(length);
            }
            Self::Socket(socket) => {
                socket.write_all(command)?;
                socket.read_exact(&mut response[..HEADER])?;
                let size = u32::from_be_bytes([response[2], response[3], response[4], response[5]]);
                let size = usize::try_from(size)
                    .ok()
                    .filter(|size| (HEADER..=LARGEST).contains(size))
                    .ok_or(io::ErrorKind::InvalidData)?;
                socket.read_exact(&mut response[HEADER..size])?;
                response.truncate(size);
            }
        }
        Ok(response)
    }
}
