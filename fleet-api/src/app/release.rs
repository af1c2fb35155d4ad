//! Releases: their files, and whether all of them are there and right.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use model::release::{Artifact, ReleaseManifest, SegmentedImage, manifest_path};
use model::{Digest, ReleaseVersion, Signed, TrustRoot, Verified};

use crate::blobs::{ReceiveError, Stored};
use crate::error::{Kind, Problem};
use crate::sky::Sky;
use crate::store::NewEvent;

/// The signed manifest's name in the release's folder.
pub const MANIFEST: &str = "manifest.json";

/// Largest manifest in bytes; 8 GiB of segments fit.
const LARGEST_MANIFEST: u64 = 32 << 20;

/// Checks a path inside a release: what it names must lie inside everywhere
/// that copies it to a file system.
///
/// # Errors
/// Invalid.
pub fn check_path(path: &str) -> Result<(), Problem> {
    let part = |part: &str| {
        (1..=100).contains(&part.len())
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
    };
    if path.len() <= 200 && path.split('/').count() <= 4 && path.split('/').all(part) {
        Ok(())
    } else {
        Err(Problem::invalid(format!(
            "path {path:?}: expected at most 4 parts of letters, digits and '._+-', no part beginning with '.'"
        )))
    }
}

/// Receives a body into the blob folder.
pub(super) async fn take<E>(
    sky: &Sky,
    body: impl Stream<Item = Result<Bytes, E>>,
    limit: u64,
) -> Result<Stored, Problem> {
    sky.blobs
        .receive(body, limit)
        .await
        .map_err(|error| match error {
            ReceiveError::Torn { .. } => Problem::bad_request(format!("body: {error}")),
            ReceiveError::TooLarge { .. } => Problem::new(Kind::TooLarge, format!("body: {error}")),
            ReceiveError::Write(_) => Problem::internal(error),
        })
}

/// Takes a file of a release, or leaves nothing. The same bytes again change nothing.
///
/// # Errors
/// A malformed path, a torn or too large body, conflict with other bytes of this name.
pub async fn put_file<E>(
    sky: &Sky,
    release: &ReleaseVersion,
    path: &str,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<(), Problem> {
    check_path(path)?;
    let file = take(sky, body, sky.largest_file).await?;
    let mut session = sky.store.change().await?;
    match session.release_file(release, path).await? {
        Some(known) if known == file => return Ok(()),
        Some(known) => {
            return Err(Problem::conflict(format!(
                "release {release}: {path} is stored with SHA-256 {}, sent with {}",
                known.sha256, file.sha256
            ))
            .hint("a release never changes: give the new files a new version"));
        }
        None => {}
    }
    session
        .insert_release_file(release, path, &file, sky.now())
        .await?;
    session.commit().await?;
    tracing::info!(%release, path, bytes = file.size, "file of a release stored");
    Ok(())
}

/// Returns a file of a release.
///
/// # Errors
/// Not found.
pub async fn file(sky: &Sky, release: &ReleaseVersion, path: &str) -> Result<Stored, Problem> {
    let file = sky.store.read().await?.release_file(release, path).await?;
    file.ok_or_else(|| Problem::not_found(format!("release {release}: no file {path:?}")))
}

/// A release that may be offered.
#[derive(Debug)]
pub(super) struct Checked {
    /// SHA-256 of the manifest's bytes.
    pub(super) manifest: Digest,
}

/// Compares a release's files with the signed manifest of a revision, once for
/// each manifest.
///
/// # Errors
/// A manifest that is missing, badly signed or of another release; files that
/// are missing or other than the manifest says.
pub(super) async fn check(
    sky: &Sky,
    release: &ReleaseVersion,
    revision: u32,
) -> Result<Checked, Problem> {
    let now = sky.now();
    let mut session = sky.store.read().await?;
    let files = session.release_files(release).await?;
    let checked = session.checked_release(release).await?;
    drop(session);
    let (manifest, digest) = manifest(sky, release, revision, &files, now).await?;
    if revision > 0 {
        let (first, _) = self::manifest(sky, release, 0, &files, now).await?;
        if let Some(part) = first.first_difference(&manifest) {
            return Err(Problem::conflict(format!(
                "release {release}: revision {revision} has another {part} than the release"
            ))
            .hint("a revision replaces components alone: give the rest a new version"));
        }
    }
    let differences = compare(&manifest, &files);
    if !differences.is_empty() {
        let list = differences.join("; ");
        return Err(Problem::conflict(format!(
            "release {release}: not all of its files are here: {list}"
        )));
    }
    if checked != Some(digest) {
        check_contents(sky, release, manifest, &files).await?;
        let mut session = sky.store.change().await?;
        session.save_checked_release(release, &digest, now).await?;
        let message = match revision {
            0 => format!("release {release} is stored and verified"),
            revision => format!("release {release} revision {revision} is stored and verified"),
        };
        session
            .append_event(NewEvent::new("release-stored", message), now)
            .await?;
        session.commit().await?;
    }
    Ok(Checked { manifest: digest })
}

/// Reads and verifies the manifest of a revision.
async fn manifest(
    sky: &Sky,
    release: &ReleaseVersion,
    revision: u32,
    files: &BTreeMap<String, Stored>,
    now: Timestamp,
) -> Result<(Verified<ReleaseManifest>, Digest), Problem> {
    let path = manifest_path(revision);
    let stored = files.get(&path).ok_or_else(|| {
        Problem::conflict(format!("release {release}: {path} is not stored here"))
            .hint("upload the release's files first")
    })?;
    let bytes = sky
        .blobs
        .read(stored, LARGEST_MANIFEST)
        .await
        .map_err(Problem::internal)?;
    let manifest = believe(&sky.trust, release, &path, &bytes, now)?;
    if manifest.revision != revision {
        return Err(Problem::conflict(format!(
            "release {release}: {path} is of revision {}",
            manifest.revision
        )));
    }
    Ok((manifest, stored.sha256))
}

fn believe(
    trust: &TrustRoot,
    release: &ReleaseVersion,
    path: &str,
    bytes: &[u8],
    now: Timestamp,
) -> Result<Verified<ReleaseManifest>, Problem> {
    let signed: Signed<ReleaseManifest> = serde_json::from_slice(bytes)
        .map_err(|error| Problem::invalid(format!("release {release}: {path}: {error}")))?;
    let manifest = trust.verify(&signed, now)?;
    if manifest.version != *release {
        return Err(Problem::conflict(format!(
            "release {release}: its manifest is of release {}",
            manifest.version
        )));
    }
    Ok(manifest)
}

/// Returns what is missing or other than the manifest says, a line each, at most 5.
fn compare(manifest: &ReleaseManifest, files: &BTreeMap<String, Stored>) -> Vec<String> {
    let whole = |artifact: &Artifact| match files.get(&artifact.path) {
        None => Some(format!("{} is missing", artifact.path)),
        Some(found) if found.size != artifact.size || found.sha256 != artifact.sha256 => {
            Some(format!(
                "{} has {} bytes of SHA-256 {}, the manifest says {} of {}",
                artifact.path, found.size, found.sha256, artifact.size, artifact.sha256
            ))
        }
        Some(_) => None,
    };
    let segmented = |image: &SegmentedImage| {
        if let Err(problem) = image.check() {
            return Some(problem);
        }
        match files.get(&image.path) {
            None => Some(format!("{} is missing", image.path)),
            Some(found) if found.size != image.stored_size => Some(format!(
                "{} has {} bytes, the manifest says {}",
                image.path, found.size, image.stored_size
            )),
            Some(_) => None,
        }
    };
    let components = manifest.components.iter().map(|part| &part.image);
    [&manifest.root, &manifest.verity]
        .into_iter()
        .filter_map(segmented)
        .chain(
            [&manifest.uki, &manifest.boot_loader, &manifest.installer]
                .into_iter()
                .chain(components)
                .chain(manifest.enrolment())
                .chain(&manifest.documents)
                .filter_map(whole),
        )
        .take(5)
        .collect()
}

/// Unpacks every segment and compares its digest: the whole file has none in the manifest.
async fn check_contents(
    sky: &Sky,
    release: &ReleaseVersion,
    manifest: Verified<ReleaseManifest>,
    files: &BTreeMap<String, Stored>,
) -> Result<(), Problem> {
    let manifest = manifest.into_inner();
    let images: Vec<_> = [manifest.root, manifest.verity]
        .into_iter()
        .filter_map(|image| {
            let stored = files.get(&image.path)?;
            Some((sky.blobs.path(&stored.sha256), image))
        })
        .collect();
    let result = tokio::task::spawn_blocking(move || {
        images
            .iter()
            .try_for_each(|(path, image)| check_image(path, image))
    })
    .await
    .map_err(Problem::internal)?;
    result.map_err(|problem| Problem::conflict(format!("release {release}: {problem:#}")))
}

fn check_image(path: &Path, image: &SegmentedImage) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", image.path))?;
    let mut unpacker = zstd::bulk::Decompressor::new().context("start zstd")?;
    let mut packed = Vec::new();
    for (index, segment) in image.segments.iter().enumerate() {
        let describe = || format!("{}: segment {index}", image.path);
        packed.resize(usize::try_from(segment.stored_length)?, 0);
        file.read_exact(&mut packed).with_context(describe)?;
        let content = unpacker
            .decompress(&packed, usize::try_from(segment.length)?)
            .with_context(describe)?;
        ensure!(
            content.len() == usize::try_from(segment.length)?
                && Digest::of(&content) == segment.sha256,
            "{}: is not what the manifest says",
            describe()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::release::Component;

    #[test]
    fn paths_stay_inside() {
        for good in [
            "manifest.json",
            "components/leap-backup_1.0+2.raw",
            "a/b/c/d",
        ] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "../x",
            "a/../b",
            "a//b",
            "/etc/passwd",
            "a/",
            ".hidden",
            "a/.b",
            "a\\b",
            "a b",
            "a\0b",
            "a/b/c/d/e",
            "ä",
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        assert!(check_path(&"x".repeat(101)).is_err());
    }

    fn artifact(path: &str) -> Artifact {
        Artifact {
            path: path.into(),
            size: 3,
            sha256: Digest::of(path.as_bytes()),
        }
    }

    fn image(path: &str) -> SegmentedImage {
        SegmentedImage {
            path: path.into(),
            stored_size: 0,
            size: 0,
            segments: vec![],
        }
    }

    #[test]
    fn a_missing_or_other_file_is_named() {
        let manifest = ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b""),
            root: image("root.zst"),
            verity: image("verity.zst"),
            uki: artifact("uki.efi"),
            boot_loader: artifact("boot.efi"),
            installer: artifact("installer.efi"),
            components: vec![Component {
                name: "backup".into(),
                version: "1".into(),
                image: artifact("leap-backup.raw"),
                verity: None,
            }],
            documents: vec![artifact("lock.json")],
            tries: 3,
            secure_boot: None,
        };
        let whole = [
            "uki.efi",
            "boot.efi",
            "installer.efi",
            "leap-backup.raw",
            "lock.json",
        ]
        .map(|path| {
            let sha256 = Digest::of(path.as_bytes());
            (path.to_owned(), Stored { sha256, size: 3 })
        });
        let empty = ["root.zst", "verity.zst"].map(|path| {
            let sha256 = Digest::of(b"");
            (path.to_owned(), Stored { sha256, size: 0 })
        });
        let files: BTreeMap<_, _> = whole.into_iter().chain(empty).collect();
        assert_eq!(compare(&manifest, &files), Vec::<String>::new());
        for path in files.keys() {
            let mut missing = files.clone();
            missing.remove(path);
            assert_eq!(compare(&manifest, &missing), [format!("{path} is missing")]);
            let mut longer = files.clone();
            longer.get_mut(path).unwrap().size += 1;
            assert_eq!(compare(&manifest, &longer).len(), 1);
        }
        let mut other = files;
        other.get_mut("uki.efi").unwrap().sha256 = Digest::of(b"other");
        assert!(compare(&manifest, &other)[0].starts_with("uki.efi has 3 bytes"));
    }
}
