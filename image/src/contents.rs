//! What is in a release: the facts that a comparison or an inspection starts from.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use edge::exit::{self, Kind as Fault};
use model::release::{Artifact, ReleaseManifest};
use model::{Digest, Document as _};

use crate::block::{Block, FilePart, Segmented};
use crate::erofs::{self, Entry, Image, Kind};
use crate::lock::Lock;
use crate::partition;
use crate::release::MANIFEST;
use crate::uki;

/// The name of the document with the kernel's configuration.
pub const KERNEL_CONFIG: &str = "kernel.config";
/// The name of the lock.
pub const LOCK: &str = "lock.json";

/// A file, directory or link of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFact {
    /// What it is; a link has its target here.
    pub kind: Kind,
    /// The lower twelve bits of the mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of a regular file.
    pub sha256: Option<Digest>,
    /// Extended attributes.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

/// The files of an image by path, and the text of those that say what the
/// system does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTree {
    /// All of them.
    pub files: BTreeMap<String, FileFact>,
    /// Units, users, `os-release`.
    pub texts: BTreeMap<String, String>,
}

/// Whether a file's text is among the facts.
fn is_telling(path: &str) -> bool {
    const FOLDERS: [&str; 2] = ["etc/systemd/system/", "usr/lib/systemd/system/"];
    let unit = FOLDERS.iter().any(|folder| path.starts_with(folder))
        && (path.ends_with(".socket") || path.ends_with(".conf"));
    unit || matches!(path, "etc/passwd" | "usr/lib/os-release")
        || path.contains("/extension-release.d/extension-release.")
}

impl FileTree {
    /// Reads all of an image, every file's content included.
    ///
    /// # Errors
    /// When the image is damaged or not supported.
    pub fn read<B: Block>(image: &Image<B>) -> Result<Self, erofs::ErofsError> {
        let mut tree = Self::default();
        for entry in image.entries()? {
            let sha256 = match entry.kind {
                Kind::File => Some(image.digest(&entry)?),
                _ => None,
            };
            if entry.kind == Kind::File && is_telling(&entry.path) {
                let text = image.content(&entry)?;
                let text = String::from_utf8_lossy(&text).into_owned();
                tree.texts.insert(entry.path.clone(), text);
            }
            let Entry {
                path,
                kind,
                mode,
                uid,
                gid,
                size,
                attributes,
                ..
            } = entry;
            let fact = FileFact {
                // How large a folder is says how it is stored, not what it is.
                size: if sha256.is_some() { size } else { 0 },
                kind,
                mode,
                uid,
                gid,
                sha256,
                attributes,
            };
            tree.files.insert(path, fact);
        }
        Ok(tree)
    }
}

/// What is in a release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The version.
    pub version: String,
    /// Sizes in bytes by output.
    pub outputs: BTreeMap<String, u64>,
    /// The packages.
    pub lock: Option<Lock>,
    /// Versions of the components.
    pub components: BTreeMap<String, String>,
    /// `root` and each `component NAME`.
    pub trees: BTreeMap<String, FileTree>,
    /// The kernel's options that are set, where the release tells them.
    pub kernel_config: Option<BTreeMap<String, String>>,
    /// The kernel's version.
    pub kernel: String,
    /// The command line of the unified kernel image, without the root hash.
    pub command_line: String,
}

/// The root file system among [`Contents::trees`].
pub const ROOT: &str = "root";

impl Contents {
    /// Reads a release's folder. Segments are checked against the manifest;
    /// whether the manifest may be believed is the caller's question.
    ///
    /// # Errors
    /// When a file is missing, damaged, or of a form that is not supported.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let manifest = read_manifest(folder)?;
        let mut contents = Self {
            version: manifest.version.to_string(),
            outputs: crate::sizes::outputs(&manifest),
            lock: read_lock(folder)?,
            kernel_config: read_text(folder, KERNEL_CONFIG)?.map(|text| parse_config(&text)),
            ..Self::default()
        };
        let image =
            Image::open(Segmented::open(folder, &manifest.root)?).context("read the root image")?;
        let tree = FileTree::read(&image).context("read the root image")?;
        contents.trees.insert(ROOT.to_owned(), tree);
        for component in &manifest.components {
            let name = &component.name;
            let path = folder.join(&component.image.path);
            let image = extension(&path)?;
            let tree = FileTree::read(&image)
                .with_context(|| format!("read the component {}", path.display()))?;
            contents.trees.insert(format!("component {name}"), tree);
            contents
                .components
                .insert(name.clone(), component.version.clone());
        }
        let path = folder.join(&manifest.uki.path);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let sections = uki::sections(&bytes).with_context(|| format!("read {}", path.display()))?;
        let text = |name: &str| {
            let found = sections.iter().find(|(section, _)| section == name);
            found.map(|(_, content)| String::from_utf8_lossy(content).trim().to_owned())
        };
        contents.kernel = text(".uname").unwrap_or_default();
        let line = text(".cmdline").unwrap_or_default();
        let words = line.split_whitespace();
        let words: Vec<&str> = words
            .filter(|word| !word.starts_with("roothash="))
            .collect();
        contents.command_line = words.join(" ");
        Ok(contents)
    }
}

/// Opens a system extension: a bare EROFS image, or one with partitions, of
/// which the first with an EROFS image counts.
///
/// # Errors
/// When there is no such image.
pub fn extension(path: &Path) -> anyhow::Result<Image<FilePart>> {
    let opening = || format!("open {}", path.display());
    let whole = FilePart::open(path).with_context(opening)?;
    if let Some(table) = partition::read(&whole).with_context(opening)? {
        for entry in &table.partitions {
            let part = whole.part(entry.start, entry.size).with_context(opening)?;
            match Image::open(part) {
                Err(erofs::ErofsError::Foreign(_)) => {}
                found => return found.with_context(opening),
            }
        }
    }
    Image::open(whole).with_context(opening)
}

/// Reads the manifest of a release without checking its signature: for those
/// who look at a release, never for those who install one.
///
/// # Errors
/// Kind `InvalidInput` when there is none.
pub fn read_manifest(folder: &Path) -> anyhow::Result<ReleaseManifest> {
    let path = folder.join(MANIFEST);
    let wrong = |problem: String| {
        let error = exit::marked(
            Fault::InvalidInput,
            format!("{}: {problem}", path.display()),
        );
        exit::hint(error, "name the folder that leap-image build made")
    };
    let bytes = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let manifest = parse_manifest(&bytes).map_err(wrong)?;
    let artifacts = [&manifest.uki, &manifest.boot_loader, &manifest.installer];
    let paths = artifacts
        .into_iter()
        .chain(manifest.components.iter().map(|component| &component.image))
        .chain(&manifest.documents)
        .map(|artifact: &Artifact| &artifact.path)
        .chain([&manifest.root.path, &manifest.verity.path]);
    for inner in paths {
        if inner.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(exit::marked(
                Fault::InvalidInput,
                format!(
                    "{}: path {inner:?} leads out of the release",
                    path.display()
                ),
            ));
        }
    }
    Ok(manifest)
}

/// Reads the manifest in an envelope whose signatures nobody has checked.
///
/// # Errors
/// Says what was expected.
pub fn parse_manifest(bytes: &[u8]) -> Result<ReleaseManifest, String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        payload_type: String,
        payload: String,
    }
    let expected =
        |error: &dyn std::fmt::Display| format!("expected a release's manifest: {error}");
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|error| expected(&error))?;
    if envelope.payload_type != ReleaseManifest::TYPE {
        return Err(expected(&format_args!("it is {}", envelope.payload_type)));
    }
    let payload = base64::engine::general_purpose::STANDARD
        .decode(&envelope.payload)
        .map_err(|error| expected(&error))?;
    serde_json::from_slice(&payload).map_err(|error| expected(&error))
}

/// Reads a text of a release that older ones lack.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read_text(folder: &Path, name: &str) -> anyhow::Result<Option<String>> {
    let path = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Reads a release's lock.
///
/// # Errors
/// When it is there and is none.
pub fn read_lock(folder: &Path) -> anyhow::Result<Option<Lock>> {
    let text = read_text(folder, LOCK)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .with_context(|| format!("{}: expected a lock", folder.join(LOCK).display()))
}

/// The options that a kernel configuration sets.
pub fn parse_config(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(option, value)| (option.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_kernel_are_those_that_are_set() {
        let config = parse_config("# x\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"a=b\"\n");
        let options: Vec<_> = config.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(options, ["CONFIG_A=y", "CONFIG_C=\"a=b\""]);
    }
}
