//! A release's folder: written whole or not at all, and read back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use edge::durable;
use edge::exit::{self, Kind};
use model::release::{Artifact, ReleaseManifest};
use model::{Digest, Document, ReleaseVersion, Signed};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::draft::{self, DraftFolder};
use crate::steps::unpack::digest_file;

/// The manifest's file.
pub const MANIFEST: &str = "manifest.json";

/// The record of what a release was built from.
pub const BUILD: &str = "build.json";

/// What a release was built from, besides its lock: enough to tell, before it
/// is built again, whether the same can come out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BuildRecord {
    /// The recipe's file, without its folder.
    pub recipe: String,
    /// The profiles that were asked for.
    pub profiles: Vec<String>,
    /// Compression level of the segments.
    pub level: i32,
    /// SHA-256 of our programs, by name.
    pub programs: BTreeMap<String, Digest>,
    /// SHA-256 of overlays and other files beside the recipe, by their paths from there.
    pub sources: BTreeMap<String, Digest>,
    /// SHA-256 of the trust root.
    pub trust_root: Digest,
    /// SHA-256 of the certificate that signed what the firmware starts.
    pub secure_boot: Option<Digest>,
}

impl BuildRecord {
    /// Reads the record in a release's folder; none where there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(release: &Path) -> anyhow::Result<Option<Self>> {
        let path = release.join(BUILD);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{}: expected a build record", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// What differs from another record, in words.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut add = |same: bool, what: &str| {
            if !same {
                found.push(what.to_owned());
            }
        };
        add(self.recipe == other.recipe, "the recipe's file");
        add(self.profiles == other.profiles, "the profiles");
        add(self.level == other.level, "the compression level");
        add(self.trust_root == other.trust_root, "the trust root");
        add(
            self.secure_boot == other.secure_boot,
            "the Secure Boot certificate",
        );
        for (what, a, b) in [
            ("program", &self.programs, &other.programs),
            ("source", &self.sources, &other.sources),
        ] {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                add(a.get(name) == b.get(name), &format!("{what} {name}"));
            }
        }
        found
    }
}

/// How folders in the making are called.
const DRAFT: &str = ".release-";

/// A release's folder in the making, beside its final place.
#[derive(Debug)]
pub struct Draft {
    folder: DraftFolder,
    place: PathBuf,
    record: Option<Artifact>,
}

impl Draft {
    /// Starts the folder `OUT/VERSION`, with the record of what it is built from.
    ///
    /// # Errors
    /// When `out` cannot be written, or a release of this version is there that
    /// was built from another recipe.
    pub fn new(out: &Path, version: ReleaseVersion, record: &BuildRecord) -> anyhow::Result<Self> {
        let place = out.join(version.to_string());
        if let Some(there) = BuildRecord::read(&place)?
            && (&there.recipe, &there.profiles) != (&record.recipe, &record.profiles)
        {
            let of = |record: &BuildRecord| {
                let profiles = record.profiles.iter().map(|name| format!(" with {name}"));
                format!("{}{}", record.recipe, profiles.collect::<String>())
            };
            bail!(exit::hint(
                exit::marked(
                    Kind::InvalidInput,
                    format!(
                        "{}: is a release of {}, this one is of {}",
                        place.display(),
                        of(&there),
                        of(record)
                    ),
                ),
                "name another --out or --version, or remove that release",
            ));
        }
        let mut draft = Self::named(out, &version.to_string())?;
        let text = serde_json::to_vec_pretty(record).context("write the build record")?;
        draft.record = Some(draft.write(BUILD, &text)?);
        Ok(draft)
    }

    /// Starts the folder `OUT/NAME`, and removes what interrupted builds have left.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn named(out: &Path, name: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
        draft::remove_abandoned(out, DRAFT)?;
        let folder = DraftFolder::new(out, DRAFT)?;
        Ok(Self {
            folder,
            place: out.join(name),
            record: None,
        })
    }

    /// The description of the record of what the release is built from.
    pub fn record(&self) -> Option<&Artifact> {
        self.record.as_ref()
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

    /// Where a file of the folder lies until the folder is in its place.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn target(&self, path: &str) -> anyhow::Result<PathBuf> {
        let to = self.folder.path().join(path);
        let parent = to.parent().context("a file has a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        Ok(to)
    }

    /// Adds the signed manifest and puts the folder in its place, instead of
    /// the one that was there: at any time there is the whole old or the whole
    /// new one. Of two builds at once the last one to end wins.
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
        let parent = self.place.parent().context("a release is in a folder")?;
        let describe = || format!("put the release to {}", self.place.display());
        let _guard = draft::lock(parent).with_context(describe)?;
        let (from, to) = (self.folder.path(), &self.place);
        if to.exists() {
            // The old one gets the draft's name, and goes with it.
            match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
                Err(Errno::INVAL | Errno::NOSYS) => {
                    // A file system that cannot exchange: for a moment there is none.
                    let old = DraftFolder::new(parent, DRAFT)?;
                    std::fs::rename(to, old.path()).with_context(describe)?;
                    std::fs::rename(from, to).with_context(describe)?;
                    drop(self.folder.keep());
                }
                exchanged => exchanged.with_context(describe)?,
            }
        } else {
            std::fs::rename(from, to).with_context(describe)?;
            drop(self.folder.keep());
        }
        durable::sync_dir(parent).with_context(describe)?;
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
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(recipe: &str) -> BuildRecord {
        BuildRecord {
            recipe: recipe.into(),
            profiles: Vec::new(),
            level: 9,
            programs: BTreeMap::from([("leap-updater".into(), Digest::of(b"x"))]),
            sources: BTreeMap::new(),
            trust_root: Digest::of(b"root"),
            secure_boot: None,
        }
    }

    #[test]
    fn two_recipes_do_not_write_the_same_release() {
        let out = tempfile::tempdir().unwrap();
        let version = "2026.11.1".parse().unwrap();
        let draft = Draft::new(out.path(), version, &record("one.toml")).unwrap();
        std::fs::rename(draft.folder.path(), out.path().join("2026.11.1")).unwrap();
        Draft::new(out.path(), version, &record("one.toml")).unwrap();
        let refused = Draft::new(out.path(), version, &record("two.toml")).unwrap_err();
        let text = edge::exit::render(&refused);
        assert!(
            text.contains("is a release of one.toml, this one is of two.toml"),
            "{text}"
        );
        assert!(text.contains("--out"), "{text}");
    }

    #[test]
    fn records_name_what_differs() {
        let mut other = record("one.toml");
        assert!(record("one.toml").differences(&other).is_empty());
        other
            .programs
            .insert("leap-backup".into(), Digest::of(b"y"));
        other.level = 3;
        assert_eq!(
            record("one.toml").differences(&other),
            ["the compression level", "program leap-backup"]
        );
    }

    #[test]
    fn an_unfinished_release_leaves_nothing() {
        let out = tempfile::tempdir().unwrap();
        let version = "2026.11.1".parse().unwrap();
        let mut draft = Draft::new(out.path(), version, &record("one.toml")).unwrap();
        let artifact = draft.write("components/x.raw", b"x").unwrap();
        assert_eq!(artifact.sha256, Digest::of(b"x"));
        drop(draft);
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_an_interrupted_build_has_left_goes_with_the_next() {
        let out = tempfile::tempdir().unwrap();
        let left = out.path().join(".release-left/components");
        std::fs::create_dir_all(&left).unwrap();
        let running = Draft::named(out.path(), "x").unwrap();
        assert!(!left.exists());
        drop(Draft::named(out.path(), "y").unwrap());
        assert!(running.path("").exists());
    }

    #[test]
    fn builds_that_end_at_once_leave_one_whole_release() {
        use std::sync::Barrier;
        let out = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"x");
        let artifact = |path| Artifact {
            path: String::from(path),
            size: 1,
            sha256: digest,
        };
        let image = || model::release::SegmentedImage {
            path: "root.zst".into(),
            size: 0,
            stored_size: 0,
            segments: Vec::new(),
        };
        let manifest = model::Signer::from_seed(&[7; 32]).sign(&ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: digest,
            root: image(),
            verity: image(),
            uki: artifact("leapserv.efi"),
            boot_loader: artifact("boot.efi"),
            installer: artifact("installer.efi"),
            components: Vec::new(),
            documents: Vec::new(),
            tries: 3,
            secure_boot: None,
        });
        // Each name twice: when there is no release yet, and when there is one.
        for round in 0..40 {
            let name = format!("x{}", round / 2);
            let together = Barrier::new(4);
            std::thread::scope(|scope| {
                for number in 0..4u8 {
                    let (out, together, manifest) = (out.path(), &together, &manifest);
                    let name = &name;
                    scope.spawn(move || {
                        let mut draft = Draft::named(out, name).unwrap();
                        draft.write("a", &[number]).unwrap();
                        draft.write("b", &[number]).unwrap();
                        together.wait();
                        draft.finish(manifest).unwrap();
                    });
                }
            });
            let read = |file: &str| std::fs::read(out.path().join(&name).join(file)).unwrap();
            assert_eq!(read("a"), read("b"));
            assert!(!read(MANIFEST).is_empty());
            let releases = std::fs::read_dir(out.path()).unwrap().count();
            assert_eq!(releases, round / 2 + 1);
        }
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
