//! An open boot file: its length, and reads at any place with read-ahead.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::boot::{BootFile, BootSource, NotServed};
use crate::local_boot;

/// Bytes read from disk at once: enough to hide a disk behind a network, and few
/// enough that a thousand transfers do not fill the memory.
pub(crate) const CHUNK: usize = 128 << 10;

/// A chunk of a file as it was when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Spot {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    offset: u64,
}

/// Chunks that some transfer holds just now. Machines that are switched on
/// together read the same file at about the same place: they share its bytes.
static HELD: LazyLock<Mutex<HashMap<Spot, Weak<Vec<u8>>>>> = LazyLock::new(Mutex::default);
/// So many entries are kept before those are looked for that nobody holds.
const SWEEP: usize = 4096;

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Returns a chunk: another transfer's, or from the disk.
fn chunk(file: &File, spot: Spot, count: usize) -> io::Result<Bytes> {
    let held = || HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let known = held().get(&spot).and_then(Weak::upgrade);
    let bytes = match known.filter(|bytes| bytes.len() == count) {
        Some(bytes) => bytes,
        None => {
            let mut bytes = vec![0; count];
            // Fails if the file became shorter than it was.
            file.read_exact_at(&mut bytes, spot.offset)?;
            let bytes = Arc::new(bytes);
            let mut held = held();
            if held.len() >= SWEEP {
                held.retain(|_, chunk| chunk.strong_count() > 0);
            }
            held.insert(spot, Arc::downgrade(&bytes));
            bytes
        }
    };
    Ok(Bytes::from_owner(Shared(bytes)))
}

/// Opens the file of a path for a peer: the source's, else the built-in one.
pub(crate) async fn open(
    source: &dyn BootSource,
    peer: IpAddr,
    path: &str,
) -> Result<Content, NotServed> {
    let found = match source.open(peer, path) {
        Ok(file) => Content::open(file).await,
        Err(error) => return built_in(path).ok_or(error),
    };
    match found {
        Ok(content) => Ok(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            built_in(path).ok_or(NotServed::NotFound)
        }
        Err(error) => {
            tracing::error!(path, %error, "boot file cannot be opened");
            Err(NotServed::Failed("cannot open the file".into()))
        }
    }
}

/// A source that refuses machines everything must still let them boot their disk.
fn built_in(path: &str) -> Option<Content> {
    (path == local_boot::PATH).then(|| Content::bytes(Bytes::from_static(local_boot::PROGRAM)))
}

/// The content of one transfer.
pub(crate) struct Content {
    length: u64,
    kind: Kind,
}

enum Kind {
    Bytes(Bytes),
    File {
        file: Arc<File>,
        start: Spot,
        chunks: [Option<(u64, Bytes)>; 2],
        ahead: Option<Ahead>,
    },
}

struct Ahead {
    offset: u64,
    task: JoinHandle<io::Result<Bytes>>,
}

impl Content {
    fn bytes(bytes: Bytes) -> Self {
        let length = u64::try_from(bytes.len()).expect("a length in memory fits 64 bits");
        Self {
            length,
            kind: Kind::Bytes(bytes),
        }
    }

    async fn open(file: BootFile) -> io::Result<Self> {
        let path = match file {
            BootFile::Bytes(bytes) => return Ok(Self::bytes(bytes)),
            BootFile::Path(path) => path,
        };
        let opened = blocking(move || {
            let file = File::open(path)?;
            let facts = file.metadata()?;
            // A folder opens, and would read as an error later.
            if !facts.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let start = Spot {
                device: facts.dev(),
                inode: facts.ino(),
                changed: (facts.ctime(), facts.ctime_nsec()),
                offset: 0,
            };
            Ok((file, start, facts.len()))
        });
        let (file, start, length) = opened.await?;
        let file = Arc::new(file);
        Ok(Self {
            length,
            kind: Kind::File {
                file,
                start,
                chunks: [None, None],
                ahead: None,
            },
        })
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Appends up to `count` bytes from `offset`, fewer at the end of the file.
    pub(crate) async fn append(
        &mut self,
        mut offset: u64,
        count: usize,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut wanted = left(self.length, offset, count);
        while wanted > 0 {
            let piece = self.piece(offset).await?;
            let taken = piece.len().min(wanted);
            out.extend_from_slice(&piece[..taken]);
            wanted -= taken;
            offset += u64::try_from(taken).expect("at most a chunk");
        }
        Ok(())
    }

    /// Returns bytes from `offset`, at least one and at most up to the next chunk.
    /// `offset` lies inside the file.
    pub(crate) async fn piece(&mut self, offset: u64) -> io::Result<Bytes> {
        let length = self.length;
        match &mut self.kind {
            Kind::Bytes(bytes) => {
                let at = usize::try_from(offset).expect("inside a buffer in memory");
                Ok(bytes.slice(at..))
            }
            Kind::File {
                file,
                start: spot,
                chunks,
                ahead,
            } => {
                let size = u64::try_from(CHUNK).expect("a constant");
                let start = offset - offset % size;
                let at = usize::try_from(offset % size).expect("less than a chunk");
                if let Some((_, bytes)) = chunks.iter().flatten().find(|(at, _)| *at == start) {
                    return Ok(bytes.slice(at..));
                }
                let read = |offset: u64| {
                    let (file, count) = (Arc::clone(file), left(length, offset, CHUNK));
                    let spot = Spot { offset, ..*spot };
                    move || chunk(&file, spot, count)
                };
                let bytes = match ahead.take() {
                    Some(ready) if ready.offset == start => {
                        ready.task.await.map_err(io::Error::other)??
                    }
                    _ => blocking(read(start)).await?,
                };
                let next = start + size;
                if next < length {
                    let task = tokio::task::spawn_blocking(read(next));
                    *ahead = Some(Ahead { offset: next, task });
                }
                // The one before stays: a lost window may begin there.
                chunks.swap(0, 1);
                chunks[0] = Some((start, bytes.clone()));
                Ok(bytes.slice(at..))
            }
        }
    }
}

fn left(length: u64, offset: u64, most: usize) -> usize {
    usize::try_from(length.saturating_sub(offset))
        .unwrap_or(usize::MAX)
        .min(most)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn at(path: &std::path::Path, offset: u64) -> Bytes {
        let file = BootFile::Path(path.to_owned());
        let mut content = Content::open(file).await.unwrap();
        content.piece(offset).await.unwrap()
    }

    #[tokio::test]
    async fn transfers_at_one_place_of_a_file_share_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; CHUNK + 5]).unwrap();
        let (one, other) = (at(&path, 3).await, at(&path, 3).await);
        assert_eq!(one.as_ptr(), other.as_ptr());
        assert_eq!(at(&path, u64::try_from(CHUNK).unwrap()).await.len(), 5);
        // A new file by the same name has bytes of its own.
        let new = folder.path().join("new");
        std::fs::write(&new, vec![8; CHUNK]).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(at(&path, 3).await[0], 8);
        assert_eq!(one[0], 7);
    }
}
