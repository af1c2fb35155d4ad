//! A release on this machine: every file is what the signed manifest says.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use edge::exit::{Classify as _, Failure};
use edge::progress::Bar;
use jiff::Timestamp;
use model::release::{Artifact, ReleaseManifest, SegmentedImage};
use model::{Digest, Signed, TrustRoot};
use sha2::{Digest as _, Sha256};

/// The name of the signed manifest.
pub(crate) const MANIFEST: &str = "manifest.json";

/// A release whose signature and files were found good.
#[derive(Debug)]
pub(crate) struct ReleaseFolder {
    pub(crate) manifest: ReleaseManifest,
    /// The manifest's bytes as signed.
    pub(crate) manifest_bytes: Vec<u8>,
    /// Paths inside the folder with their sizes; the manifest comes last.
    pub(crate) files: Vec<(String, u64)>,
    dir: PathBuf,
}

impl ReleaseFolder {
    /// Verifies the manifest's signature, then size and digest of each file.
    pub(crate) fn verify(dir: &Path, root: &TrustRoot, now: Timestamp) -> Result<Self, Failure> {
        let path = dir.join(MANIFEST);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("read {}", path.display()))
            .map_err(|error| edge::exit::hint(error, "give the folder that leap-image build made"))
            .invalid_input()?;
        let signed: Signed<ReleaseManifest> = serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: expected a signed manifest", path.display()))
            .invalid_input()?;
        let manifest = root
            .verify(&signed, now)
            .with_context(|| format!("{}", path.display()))
            .refused()?
            .into_inner();
        let mut files = Vec::new();
        let whole = whole_files(&manifest);
        let images = [&manifest.root, &manifest.verity];
        let total = whole.iter().map(|file| file.size).sum::<u64>()
            + images.iter().map(|image| image.stored_size).sum::<u64>();
        let bar = Bar::bytes("verify release", total);
        for image in images {
            check_image(dir, image, &bar).invalid_input()?;
            files.push((image.path.clone(), image.stored_size));
        }
        for file in whole {
            check_file(dir, file, &bar).invalid_input()?;
            files.push((file.path.clone(), file.size));
        }
        bar.finish();
        files.push((MANIFEST.to_owned(), bytes.len() as u64));
        Ok(Self {
            manifest,
            manifest_bytes: bytes,
            files,
            dir: dir.to_owned(),
        })
    }

    /// Where a file of the release lies.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

/// The files that are stored as they are.
fn whole_files(manifest: &ReleaseManifest) -> Vec<&Artifact> {
    let fixed = [&manifest.uki, &manifest.boot_loader, &manifest.installer];
    let components = manifest.components.iter().map(|component| &component.image);
    let further = manifest.documents.iter().chain(manifest.enrolment());
    fixed.into_iter().chain(components).chain(further).collect()
}

fn open(dir: &Path, file: &str, size: u64) -> anyhow::Result<File> {
    let inside = file.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !inside {
        bail!("manifest: path {file:?} leads out of the release's folder");
    }
    let path = dir.join(file);
    let input = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let found = input.metadata()?.len();
    if found != size {
        bail!(
            "{}: {found} bytes where {size} are expected",
            path.display()
        );
    }
    Ok(input)
}

fn check_file(dir: &Path, file: &Artifact, bar: &Bar) -> anyhow::Result<()> {
    let mut input = open(dir, &file.path, file.size)?;
    let mut sum = Sha256::new();
    let mut block = vec![0; 256 * 1024];
    loop {
        let length = input
            .read(&mut block)
            .with_context(|| format!("read {}", file.path))?;
        if length == 0 {
            break;
        }
        sum.update(&block[..length]);
        bar.advance(length as u64);
    }
    let found = Digest::from(<[u8; 32]>::from(sum.finalize()));
    if found != file.sha256 {
        bail!(
            "{}: SHA-256 {found} where {} is expected",
            file.path,
            file.sha256
        );
    }
    Ok(())
}

fn check_image(dir: &Path, image: &SegmentedImage, bar: &Bar) -> anyhow::Result<()> {
    image.check().map_err(|problem| anyhow!(problem))?;
    let mut input = BufReader::with_capacity(1 << 20, open(dir, &image.path, image.stored_size)?);
    let mut stored = Vec::new();
    for (index, segment) in image.segments.iter().enumerate() {
        let describe = || format!("{}: segment {index}", image.path);
        stored.resize(segment.stored_length as usize, 0);
        input.read_exact(&mut stored).with_context(describe)?;
        let content =
            zstd::bulk::decompress(&stored, segment.length as usize).with_context(describe)?;
        if content.len() != segment.length as usize || Digest::of(&content) != segment.sha256 {
            bail!("{}: content is not what the manifest says", describe());
        }
        bar.advance(segment.stored_length.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use edge::exit::Kind;
    use model::release::{Component, SEGMENT_SIZE, Segment};
    use model::trust::RoleKeys;
    use model::{Role, Signer};

    use super::*;

    fn image(dir: &Path, name: &str, size: u64) -> SegmentedImage {
        let content: Vec<u8> = (0..size).map(|n| (n / 4096 % 251) as u8).collect();
        let mut file = Vec::new();
        let mut segments = Vec::new();
        for chunk in content.chunks(usize::try_from(SEGMENT_SIZE).unwrap()) {
            let stored = zstd::bulk::compress(chunk, 1).unwrap();
            segments.push(Segment {
                stored_offset: file.len() as u64,
                stored_length: u32::try_from(stored.len()).unwrap(),
                length: u32::try_from(chunk.len()).unwrap(),
                sha256: Digest::of(chunk),
            });
            file.extend(stored);
        }
        std::fs::write(dir.join(name), &file).unwrap();
        SegmentedImage {
            path: name.into(),
            stored_size: file.len() as u64,
            size,
            segments,
        }
    }

    fn artifact(dir: &Path, path: &str) -> Artifact {
        std::fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        std::fs::write(dir.join(path), path).unwrap();
        Artifact {
            path: path.into(),
            size: path.len() as u64,
            sha256: Digest::of(path.as_bytes()),
        }
    }

    fn release(dir: &Path) -> TrustRoot {
        let signer = Signer::from_seed(&[1; 32]);
        let manifest = ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b"root"),
            root: image(dir, "root.zst", SEGMENT_SIZE + 4096),
            verity: image(dir, "verity.zst", 8192),
            uki: artifact(dir, "leapserv.efi"),
            boot_loader: artifact(dir, "systemd-bootx64.efi"),
            installer: artifact(dir, "installer.efi"),
            components: vec![Component {
                name: "backup".into(),
                version: "1".into(),
                image: artifact(dir, "components/backup.raw"),
                verity: None,
            }],
            documents: vec![artifact(dir, "lock.json")],
            tries: 3,
            secure_boot: None,
        };
        let bytes = serde_json::to_vec(&signer.sign(&manifest)).unwrap();
        std::fs::write(dir.join(MANIFEST), bytes).unwrap();
        TrustRoot {
            version: 1,
            roles: BTreeMap::from([(
                Role::Targets,
                RoleKeys {
                    keys: vec![signer.public()],
                    threshold: 1,
                },
            )]),
            recovery: vec![],
        }
    }

    fn verify(dir: &Path, root: &TrustRoot) -> Result<ReleaseFolder, Failure> {
        ReleaseFolder::verify(dir, root, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_whole_release_is_accepted_with_the_manifest_last() {
        let dir = tempfile::tempdir().unwrap();
        let root = release(dir.path());
        let folder = verify(dir.path(), &root).unwrap();
        let names: Vec<&str> = folder.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "root.zst",
                "verity.zst",
                "leapserv.efi",
                "systemd-bootx64.efi",
                "installer.efi",
                "components/backup.raw",
                "lock.json",
                "manifest.json"
            ]
        );
    }

    #[test]
    fn one_altered_byte_is_found_and_its_place_named() {
        for (file, place) in [
            ("leapserv.efi", "leapserv.efi: SHA-256"),
            ("verity.zst", "verity.zst: segment 0"),
            ("components/backup.raw", "components/backup.raw: SHA-256"),
            ("lock.json", "lock.json: SHA-256"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let root = release(dir.path());
            let path = dir.path().join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let failure = verify(dir.path(), &root).unwrap_err();
            assert_eq!(failure.kind(), Kind::InvalidInput);
            assert!(failure.to_string().contains(place), "{failure}");
        }
    }

    #[test]
    fn a_manifest_that_nobody_trusted_signed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut root = release(dir.path());
        root.roles.clear();
        assert_eq!(verify(dir.path(), &root).unwrap_err().kind(), Kind::Refused);
    }
}
