//! A release's folder: written whole or not at all, and read back.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use edge::durable;
use edge::exit::{self, Kind};
use model::release::{Artifact, ReleaseManifest};
use model::{Digest, Document, ReleaseVersion, Signed};
use tempfile::TempDir;

use crate::steps::unpack::digest_file;

/// The manifest's file.
pub const MANIFEST: &str = "manifest.json";

/// A release's folder in the making, beside its final place.
#[derive(Debug)]
pub struct Draft {
    folder: TempDir,
    place: PathBuf,
}

impl Draft {
    /// Starts the folder `OUT/VERSION`.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn new(out: &Path, version: ReleaseVersion) -> anyhow::Result<Self> {
        std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
        let folder = tempfile::Builder::new()
            .prefix(".release-")
            .tempdir_in(out)
            .with_context(|| format!("make a folder in {}", out.display()))?;
        Ok(Self {
            folder,
            place: out.join(version.to_string()),
        })
    }

    /// Copies a file into the folder and returns its description.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy(&mut self, from: &Path, path: &str) -> anyhow::Result<Artifact> {
        let to = self.target(path)?;
        std::fs::copy(from, &to)
            .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        Ok(Artifact {
            path: path.to_owned(),
            size: std::fs::metadata(&to).context("look at the copy")?.len(),
            sha256: digest_file(&to)?,
        })
    }

    /// Writes a file into the folder and returns its description.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, path: &str, bytes: &[u8]) -> anyhow::Result<Artifact> {
        let to = self.target(path)?;
        std::fs::write(&to, bytes).with_context(|| format!("write {}", to.display()))?;
        Ok(Artifact {
            path: path.to_owned(),
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
        })
    }

    fn target(&self, path: &str) -> anyhow::Result<PathBuf> {
        let to = self.folder.path().join(path);
        let parent = to.parent().context("a file has a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        Ok(to)
    }

    /// Adds the signed manifest and puts the folder in its place, instead of
    /// the one that was there.
    ///
    /// # Errors
    /// When it cannot be written or renamed.
    pub fn finish(self, manifest: &Signed<ReleaseManifest>) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.folder.path().join(MANIFEST);
        durable::write_json(&path, manifest, durable::Mode::Public)?;
        // Temporary folders are their owner's alone; a web server reads this one.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.folder.path(), open).context("open the folder")?;
        let old = self.place.exists().then(|| {
            let name = self.place.file_name().unwrap_or_default().to_string_lossy();
            self.place
                .with_file_name(format!(".old-{}-{name}", std::process::id()))
        });
        if let Some(old) = &old {
            durable::rename(&self.place, old)?;
        }
        let folder = self.folder.keep();
        durable::rename(&folder, &self.place)?;
        if let Some(old) = old {
            std::fs::remove_dir_all(&old).with_context(|| format!("remove {}", old.display()))?;
        }
        Ok(self.place)
    }
}

/// Reads a signed document's envelope.
///
/// # Errors
/// Kind `InvalidInput` when there is none.
pub fn read_signed<T: Document>(path: &Path) -> anyhow::Result<Signed<T>> {
    let bytes = std::fs::read(path).map_err(|error| {
        exit::marked(
            Kind::InvalidInput,
            format!("read {}: {error}", path.display()),
        )
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        exit::marked(
            Kind::InvalidInput,
            format!("{}: expected a signed document: {error}", path.display()),
        )
    })
}

/// Checks that a file is the one described.
///
/// # Errors
/// Kind `Refused` when size or SHA-256 differ.
pub fn check(folder: &Path, artifact: &Artifact) -> anyhow::Result<PathBuf> {
    let path = folder.join(&artifact.path);
    let digest = digest_file(&path)?;
    if digest != artifact.sha256 {
        bail!(exit::marked(
            Kind::Refused,
            format!(
                "{}: SHA-256 is {digest} where the manifest says {}",
                path.display(),
                artifact.sha256
            )
        ));
    }
    Ok(path)
}

/// A size for a person.
pub fn readable(bytes: u64) -> String {
    let mib = 1 << 20;
    if bytes >= mib {
        format!("{}.{} MiB", bytes / mib, bytes % mib * 10 / mib)
    } else {
        format!("{} KiB", bytes.div_ceil(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_release_leaves_nothing() {
        let out = tempfile::tempdir().unwrap();
        let mut draft = Draft::new(out.path(), "2026.11.1".parse().unwrap()).unwrap();
        let artifact = draft.write("components/x.raw", b"x").unwrap();
        assert_eq!(artifact.sha256, Digest::of(b"x"));
        drop(draft);
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_altered_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), b"other").unwrap();
        let artifact = Artifact {
            path: "x".into(),
            size: 5,
            sha256: Digest::of(b"first"),
        };
        assert!(check(folder.path(), &artifact).is_err());
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(readable(1536 << 10), "1.5 MiB");
        assert_eq!(readable(1), "1 KiB");
    }
}
