//! The release that a stick brings along, so that a customer's line does not have to.
//!
//! Nothing on it is believed: what comes from here is verified segment by segment, as what
//! comes over the network. Where the stick has another release, ends or fails, the network
//! goes on; what it has altered is fetched from the network alone.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use model::ReleaseVersion;
use slots::Disk;
use slots::esp::{EspError, Fat, release_dir};

/// The releases on a partition.
#[derive(Debug)]
pub struct Shelf {
    partition: PathBuf,
    distrusted: AtomicBool,
}

impl Shelf {
    /// The releases on this partition. It is looked at when something is wanted.
    pub fn new(partition: PathBuf) -> Self {
        Self {
            partition,
            distrusted: AtomicBool::new(false),
        }
    }

    /// Takes nothing from it any more.
    pub fn distrust(&self) {
        self.distrusted.store(true, Ordering::Relaxed);
    }

    /// Reads a release's file from `from` up to `to`, and gives `each` the pieces until it
    /// wants no more. Returns how far it came: `from` where there is nothing.
    pub fn read(
        &self,
        version: ReleaseVersion,
        path: &str,
        (from, to): (u64, u64),
        mut each: impl FnMut(Bytes) -> bool,
    ) -> u64 {
        if self.distrusted.load(Ordering::Relaxed) {
            return from;
        }
        let mut next = from;
        let mut read = || -> Result<(), EspError> {
            let disk = Disk::open_read_only(&self.partition).map_err(|source| EspError::Io {
                path: self.partition.display().to_string(),
                what: "open",
                source,
            })?;
            let path = format!("{}/{path}", release_dir(version));
            Fat::open(disk)?.read_part(&path, from, to - from, |piece| {
                next += u64::try_from(piece.len()).expect("a piece in memory");
                each(Bytes::from(piece))
            })
        };
        if let Err(problem) = read() {
            tracing::debug!(%problem, path, "not from the stick");
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::super::stick;
    use super::*;

    #[test]
    fn a_stick_gives_what_it_has_and_nothing_once_it_is_distrusted() {
        let version: ReleaseVersion = "2026.11.1".parse().unwrap();
        let file = format!("{}/root.seg", release_dir(version));
        let content: String = (0..200_000).map(|number| number.to_string()).collect();
        let root = stick::tests::machine(&[(&file, &content)]);
        let shelf = Shelf::new(root.path().join("dev/sdb1"));
        let read = |version, path, (from, to)| {
            let mut bytes = Vec::new();
            let end = shelf.read(version, path, (from, to), |piece| {
                bytes.extend_from_slice(&piece);
                true
            });
            (end, bytes)
        };
        let (end, bytes) = read(version, "root.seg", (1000, 900_000));
        assert_eq!(end, 900_000);
        assert_eq!(bytes, content.as_bytes()[1000..900_000]);
        // More than there is: the network goes on behind its end.
        let all = u64::try_from(content.len()).unwrap();
        assert_eq!(read(version, "root.seg", (0, all + 10)).0, all);
        assert_eq!(read(version, "verity.seg", (7, 10)), (7, vec![]));
        let other = "2026.11.2".parse().unwrap();
        assert_eq!(read(other, "root.seg", (7, 10)), (7, vec![]));
        let mut pieces = 0;
        let stopped = shelf.read(version, "root.seg", (0, all), |_| {
            pieces += 1;
            false
        });
        assert!(pieces == 1 && stopped < all, "nobody wants the rest");
        shelf.distrust();
        assert_eq!(shelf.read(version, "root.seg", (7, 10), |_| true), 7);
    }
}
