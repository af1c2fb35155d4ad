//! Large files, named by their SHA-256: never half there, never changed.

use std::fmt;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use model::Digest;
use sha2::Digest as _;
use tempfile::NamedTempFile;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, BufWriter};

/// Bytes gathered before a write to the disk.
const WRITE_BUFFER: usize = 1 << 20;

/// A whole file in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its digest, which is its name.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The sender stopped or broke the connection.
    #[error("the sender stopped after {received} bytes")]
    Torn {
        /// Bytes that had come.
        received: u64,
    },
    /// More bytes than allowed.
    #[error("more than {limit} bytes")]
    TooLarge {
        /// The most that is allowed.
        limit: u64,
    },
    /// The disk did not take it.
    #[error("write blob")]
    Write(#[source] anyhow::Error),
}

/// The folder.
pub struct Blobs {
    files: PathBuf,
    incoming: PathBuf,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blobs").field(&self.files).finish()
    }
}

impl Blobs {
    /// Opens the folder, making it, and removes what an earlier run left unfinished.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let blobs = Self {
            files: root.join("sha256"),
            incoming: root.join("incoming"),
        };
        let describe = || format!("open blob folder {}", root.display());
        if blobs.incoming.exists() {
            std::fs::remove_dir_all(&blobs.incoming).with_context(describe)?;
        }
        for dir in [&blobs.files, &blobs.incoming] {
            std::fs::create_dir_all(dir).with_context(describe)?;
        }
        edge::durable::sync_dir(root).with_context(describe)?;
        Ok(blobs)
    }

    /// Takes a file whole and durably, or leaves nothing.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub async fn receive<E>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<Stored, ReceiveError> {
        let write = |error: io::Error| ReceiveError::Write(error.into());
        // Unlinked when dropped, also when the call is abandoned half-way.
        let temporary = NamedTempFile::new_in(&self.incoming).map_err(write)?;
        let file = File::from_std(temporary.reopen().map_err(write)?);
        let mut file = BufWriter::with_capacity(WRITE_BUFFER, file);
        let mut hash = sha2::Sha256::new();
        let mut received = 0u64;
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|_| ReceiveError::Torn { received })?;
            received = received.saturating_add(chunk.len() as u64);
            if received > limit {
                return Err(ReceiveError::TooLarge { limit });
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(write)?;
        }
        file.flush().await.map_err(write)?;
        file.get_ref().sync_all().await.map_err(write)?;
        let stored = Stored {
            sha256: <[u8; 32]>::from(hash.finalize()).into(),
            size: received,
        };
        let path = self.path(&stored.sha256);
        let root = self.files.clone();
        tokio::task::spawn_blocking(move || persist(temporary, &path, &root))
            .await
            .map_err(|error| ReceiveError::Write(error.into()))?
            .map_err(ReceiveError::Write)?;
        Ok(stored)
    }

    /// Opens `length` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// The file is gone or unreadable.
    pub async fn read_range(
        &self,
        stored: &Stored,
        offset: u64,
        length: u64,
    ) -> anyhow::Result<impl tokio::io::AsyncRead + Send + Unpin + 'static + use<>> {
        let path = self.path(&stored.sha256);
        let describe = || format!("open blob {}", stored.sha256);
        let mut file = File::open(&path).await.with_context(describe)?;
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))
                .await
                .with_context(describe)?;
        }
        Ok(file.take(length))
    }

    /// Reads a whole file of at most `most` bytes.
    ///
    /// # Errors
    /// It is larger, gone or unreadable.
    pub async fn read(&self, stored: &Stored, most: u64) -> anyhow::Result<Vec<u8>> {
        anyhow::ensure!(
            stored.size <= most,
            "blob {}: {} bytes, expected at most {most}",
            stored.sha256,
            stored.size
        );
        let path = self.path(&stored.sha256);
        tokio::fs::read(path)
            .await
            .with_context(|| format!("read blob {}", stored.sha256))
    }

    /// Where a file lies.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        // A folder for each first byte keeps folders short.
        self.files.join(&name[..2]).join(name)
    }
}

fn persist(temporary: NamedTempFile, path: &Path, root: &Path) -> anyhow::Result<()> {
    let dir = path.parent().expect("a blob has a folder");
    let describe = || format!("store blob {}", path.display());
    std::fs::create_dir_all(dir).with_context(describe)?;
    temporary
        .persist(path)
        .map_err(|error| error.error)
        .with_context(describe)?;
    for dir in [dir, root] {
        edge::durable::sync_dir(dir).with_context(describe)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[Result<&'static str, ()>]) -> impl Stream<Item = Result<Bytes, ()>> + use<> {
        let parts: Vec<_> = parts.iter().map(|part| part.map(Bytes::from)).collect();
        futures::stream::iter(parts)
    }

    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn a_file_comes_back_whole_and_in_ranges() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let stored = blobs
            .receive(chunks(&[Ok("shrimp "), Ok("boat")]), 100)
            .await
            .unwrap();
        assert_eq!(stored.sha256, Digest::of(b"shrimp boat"));
        assert_eq!(blobs.read(&stored, 100).await.unwrap(), b"shrimp boat");
        let mut range = String::new();
        let mut reader = blobs.read_range(&stored, 7, 3).await.unwrap();
        reader.read_to_string(&mut range).await.unwrap();
        assert_eq!(range, "boa");
        assert_eq!(count(&dir.path().join("incoming")), 0);
    }

    #[tokio::test]
    async fn a_torn_or_oversized_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let torn = blobs.receive(chunks(&[Ok("shrimp"), Err(())]), 100).await;
        assert!(matches!(torn, Err(ReceiveError::Torn { received: 6 })));
        let large = blobs.receive(chunks(&[Ok("shrimp"), Ok("boat")]), 9).await;
        assert!(matches!(large, Err(ReceiveError::TooLarge { limit: 9 })));
        assert_eq!(count(&dir.path().join("incoming")), 0);
        assert_eq!(count(&dir.path().join("sha256")), 0);
    }

    #[test]
    fn opening_removes_what_a_power_cut_left() {
        let dir = tempfile::tempdir().unwrap();
        drop(Blobs::open(dir.path()).unwrap());
        std::fs::write(dir.path().join("incoming/half"), b"x").unwrap();
        drop(Blobs::open(dir.path()).unwrap());
        assert_eq!(count(&dir.path().join("incoming")), 0);
    }
}
