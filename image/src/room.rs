//! What a full disk is called: which one it is, and what to do.

use std::io::ErrorKind;
use std::path::Path;

use edge::exit::{self, Kind};

use crate::release::readable;

/// What tools say of a full disk and of an exhausted quota (`strerror`, in the C locale
/// that they are run in).
const WORDS: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
/// With less than this a disk is full, whatever a tool says of why it failed.
const NOTHING: u64 = 4096;

/// Says of an error of writing to `folder` that the disk is full, where it is, and what
/// to do: `remedy`. Other errors stay as they are.
///
/// Asked while what was written is still there: once it is removed, there is room again.
pub fn explain(error: anyhow::Error, folder: &Path, remedy: &str) -> anyhow::Error {
    let free = free(folder);
    let full = error.chain().any(|cause| {
        let kind = cause
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind);
        let text = cause.to_string();
        matches!(
            kind,
            Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        ) || WORDS.iter().any(|words| text.contains(words))
    });
    if !full && free.is_none_or(|free| free >= NOTHING) {
        return error;
    }
    let left = free.map(|free| format!(" ({} left)", readable(free)));
    exit::hint(
        exit::marked(
            Kind::Environment,
            format!(
                "{}: no room on the disk{}: {error:#}",
                folder.display(),
                left.unwrap_or_default()
            ),
        ),
        remedy,
    )
}

/// The bytes that an ordinary user can still write.
fn free(folder: &Path) -> Option<u64> {
    let state = rustix::fs::statvfs(folder).ok()?;
    Some(state.f_bavail.saturating_mul(state.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn a_full_disk_is_named_and_other_errors_stay() {
        let folder = tempfile::tempdir().unwrap();
        let said = |error| exit::render(&explain(error, folder.path(), "make room"));
        let full = std::io::Error::from(ErrorKind::StorageFull);
        let tool = anyhow!("mkfs.x: exit status: 1:\n    write: No space left on device");
        for error in [Err::<(), _>(full).context("write x").unwrap_err(), tool] {
            let text = said(error);
            assert!(text.contains("no room on the disk"), "{text}");
            assert!(
                text.contains(&folder.path().display().to_string()),
                "{text}"
            );
            assert!(text.contains("hint: make room"), "{text}");
        }
        assert_eq!(said(anyhow!("other")), "error: other");
    }
}
