//! Where two builds of the same release differ, and which step made it so.
//!
//! For `leap-image verify`, which builds a release again and compares. What is
//! the same is told by digests; only what differs is looked into.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use model::release::{Artifact, ReleaseManifest, SegmentedImage};
use serde::Serialize;

use crate::block::{Block, Segmented};
use crate::contents::{self, FileFact, FileTree};
use crate::erofs::{Image, Kind};
use crate::owners::{FILES, Files};
use crate::uki;

/// One place where two releases differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The output: `root`, `uki`, `component backup` …
    pub output: String,
    /// Where in it: a file, a section, a segment.
    pub place: String,
    /// The step of the build that makes this.
    pub step: String,
    /// How it differs.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            output,
            place,
            step,
            detail,
        } = self;
        write!(f, "{output}: {place}: {detail} (step {step})")
    }
}

/// Compares two releases' folders. An empty list means that all bytes that the
/// manifests vouch for are the same.
///
/// # Errors
/// When a folder holds no release, or not the files that its manifest names.
pub fn compare(a: &Path, b: &Path) -> anyhow::Result<Vec<Difference>> {
    let (first, second) = (contents::read_manifest(a)?, contents::read_manifest(b)?);
    let mut found = Vec::new();
    root(a, b, &first, &second, &mut found)?;
    segments(
        "verity",
        "verity",
        &first.verity,
        &second.verity,
        &mut found,
    );
    for (name, system, a_file, b_file) in [
        ("uki", "main", &first.uki, &second.uki),
        (
            "installer",
            "installer",
            &first.installer,
            &second.installer,
        ),
    ] {
        if a_file.sha256 != b_file.sha256 {
            sections(
                name,
                system,
                &read(a, a_file)?,
                &read(b, b_file)?,
                &mut found,
            );
        }
    }
    whole(
        "boot loader",
        "tools",
        &first.boot_loader,
        &second.boot_loader,
        &mut found,
    );
    components(a, b, &first, &second, &mut found)?;
    let documents: BTreeSet<&String> = [&first, &second]
        .into_iter()
        .flat_map(|manifest| manifest.documents.iter().map(|document| &document.path))
        .collect();
    for path in documents {
        let of = |manifest: &ReleaseManifest| {
            let mut documents = manifest.documents.iter();
            documents
                .find(|document| document.path == *path)
                .map(|document| document.sha256)
        };
        if of(&first) != of(&second) {
            found.push(Difference {
                output: "document".into(),
                place: path.clone(),
                step: "release".into(),
                detail: only(of(&first).is_some(), of(&second).is_some())
                    .unwrap_or("another content")
                    .into(),
            });
        }
    }
    for (field, a, b) in [
        (
            "version",
            first.version.to_string(),
            second.version.to_string(),
        ),
        (
            "architecture",
            first.architecture.to_string(),
            second.architecture.to_string(),
        ),
        ("tries", first.tries.to_string(), second.tries.to_string()),
        (
            "root hash",
            first.root_hash.to_string(),
            second.root_hash.to_string(),
        ),
    ] {
        if a != b {
            found.push(Difference {
                output: "manifest".into(),
                place: field.into(),
                step: if field == "root hash" {
                    "verity"
                } else {
                    "release"
                }
                .into(),
                detail: format!("{a} and {b}"),
            });
        }
    }
    Ok(found)
}

fn read(folder: &Path, artifact: &Artifact) -> anyhow::Result<Vec<u8>> {
    let path = folder.join(&artifact.path);
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Says that something is on one side alone.
fn only(first: bool, second: bool) -> Option<&'static str> {
    match (first, second) {
        (true, false) => Some("only in the first"),
        (false, true) => Some("only in the second"),
        _ => None,
    }
}

fn whole(output: &str, step: &str, a: &Artifact, b: &Artifact, found: &mut Vec<Difference>) {
    if a.sha256 != b.sha256 {
        found.push(Difference {
            output: output.into(),
            place: a.path.clone(),
            step: step.into(),
            detail: format!("{} bytes and {} bytes", a.size, b.size),
        });
    }
}

/// Reads whose the files of a release's root are; a release may lack it.
///
/// # Errors
/// When it is there and damaged.
pub fn read_files(folder: &Path) -> anyhow::Result<Option<Files>> {
    // Far more than any root needs; a small file cannot fill the memory.
    const LIMIT: usize = 256 << 20;
    let path = folder.join(format!("{FILES}.zst"));
    if !path.exists() {
        return Ok(None);
    }
    let reading = || format!("read {}", path.display());
    let bytes = std::fs::read(&path).with_context(reading)?;
    let mut text = Vec::new();
    let decoder = zstd::Decoder::new(bytes.as_slice()).with_context(reading)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(decoder, LIMIT as u64), &mut text)
        .with_context(reading)?;
    let files = serde_json::from_slice(&text).with_context(reading)?;
    Ok(Some(files))
}

fn root(
    a: &Path,
    b: &Path,
    first: &ReleaseManifest,
    second: &ReleaseManifest,
    found: &mut Vec<Difference>,
) -> anyhow::Result<()> {
    let digests = |image: &SegmentedImage| -> Vec<_> {
        image
            .segments
            .iter()
            .map(|segment| segment.sha256)
            .collect()
    };
    if digests(&first.root) == digests(&second.root) {
        // Only how it is compressed can differ then.
        segments("root", "root", &first.root, &second.root, found);
        return Ok(());
    }
    let one = Segmented::open(a, &first.root)?;
    let other = Segmented::open(b, &second.root)?;
    let open = |block, folder: &Path| {
        Image::open(block).with_context(|| format!("read the root of {}", folder.display()))
    };
    let (one, other) = (open(&one as &dyn Block, a)?, open(&other as &dyn Block, b)?);
    let owners = [read_files(a)?, read_files(b)?];
    let before = found.len();
    trees(
        "root",
        &FileTree::read(&one)?,
        &FileTree::read(&other)?,
        found,
    );
    for difference in &mut found[before..] {
        let path = difference.place.trim_start_matches('/');
        let owner = owners.iter().flatten().find_map(|files| files.owner(path));
        if let Some(owner) = owner {
            difference.step = owner.step().to_owned();
            difference.detail = format!("{}; {owner}", difference.detail);
        } else {
            difference.step = "root".to_owned();
        }
    }
    if found.len() == before {
        let numbers = differing(&first.root, &second.root);
        found.push(Difference {
            output: "root".into(),
            place: "layout of the file system".into(),
            step: "root".into(),
            detail: format!("all files are the same; {numbers}"),
        });
    }
    Ok(())
}

/// Names the segments whose content differs.
fn differing(a: &SegmentedImage, b: &SegmentedImage) -> String {
    const SHOWN: usize = 8;
    let count = a.segments.len().max(b.segments.len());
    let numbers: Vec<String> = (0..count)
        .filter(|number| {
            let digest = |image: &SegmentedImage| image.segments.get(*number).map(|s| s.sha256);
            digest(a) != digest(b)
        })
        .map(|number| number.to_string())
        .collect();
    let more = match numbers.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = numbers.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    format!("segments {}{more} differ", shown.join(", "))
}

fn segments(
    output: &str,
    step: &str,
    a: &SegmentedImage,
    b: &SegmentedImage,
    found: &mut Vec<Difference>,
) {
    let count = a.segments.len().max(b.segments.len());
    for number in 0..count {
        let (first, second) = (a.segments.get(number), b.segments.get(number));
        let (step, detail) = match (first, second) {
            (Some(a), Some(b)) if a.sha256 != b.sha256 => (step, "another content"),
            (Some(a), Some(b)) if a.stored_length != b.stored_length => {
                ("segments", "the same content, compressed to another length")
            }
            (Some(_), Some(_)) => continue,
            (first, second) => {
                let detail = only(first.is_some(), second.is_some());
                (step, detail.unwrap_or_default())
            }
        };
        found.push(Difference {
            output: output.into(),
            place: format!("segment {number}"),
            step: step.into(),
            detail: detail.into(),
        });
    }
}

fn sections(output: &str, system: &str, a: &[u8], b: &[u8], found: &mut Vec<Difference>) {
    let difference = |place: &str, step: String, detail: &str| Difference {
        output: output.to_owned(),
        place: place.to_owned(),
        step,
        detail: detail.to_owned(),
    };
    let uki = format!("uki-{system}");
    let (Ok(first), Ok(second)) = (uki::sections(a), uki::sections(b)) else {
        found.push(difference("headers", uki, "no unified kernel image"));
        return;
    };
    let before = found.len();
    let first: BTreeMap<String, &[u8]> = first.into_iter().collect();
    let second: BTreeMap<String, &[u8]> = second.into_iter().collect();
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    for name in names {
        let (a, b) = (first.get(name), second.get(name));
        if a == b {
            continue;
        }
        let step = match name.as_str() {
            ".initrd" => format!("initrd-{system}"),
            ".linux" | ".uname" => "kernel".to_owned(),
            ".osrel" | ".cmdline" => uki.clone(),
            // The stub's own.
            _ => "tools".to_owned(),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().replace('\n', " ");
        let detail = match (a, b) {
            (Some(a), Some(b)) if matches!(name.as_str(), ".cmdline" | ".uname") => {
                format!("{:?} and {:?}", text(a), text(b))
            }
            (Some(a), Some(b)) => {
                let same = a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count();
                format!(
                    "{} bytes and {} bytes, the first difference at byte {same}",
                    a.len(),
                    b.len()
                )
            }
            (a, b) => only(a.is_some(), b.is_some())
                .unwrap_or_default()
                .to_owned(),
        };
        found.push(difference(&format!("section {name}"), step, &detail));
    }
    if found.len() == before {
        let detail = "all sections are the same";
        found.push(difference("headers and signature", uki, detail));
    }
}

fn components(
    a: &Path,
    b: &Path,
    first: &ReleaseManifest,
    second: &ReleaseManifest,
    found: &mut Vec<Difference>,
) -> anyhow::Result<()> {
    let map = |manifest: &ReleaseManifest| -> BTreeMap<String, (String, Artifact)> {
        let components = manifest.components.iter();
        components
            .map(|c| (c.name.clone(), (c.version.clone(), c.image.clone())))
            .collect()
    };
    let (first, second) = (map(first), map(second));
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    for name in names {
        let output = format!("component {name}");
        let step = format!("component-{name}");
        let mut note = |place: &str, detail: String| {
            found.push(Difference {
                output: output.clone(),
                place: place.to_owned(),
                step: step.clone(),
                detail,
            });
        };
        let (one, other) = match (first.get(name), second.get(name)) {
            (Some(one), Some(other)) => (one, other),
            (one, other) => {
                let detail = only(one.is_some(), other.is_some()).unwrap_or_default();
                note("image", detail.to_owned());
                continue;
            }
        };
        if one.0 != other.0 {
            note("version", format!("{} and {}", one.0, other.0));
        }
        if one.1.sha256 == other.1.sha256 {
            continue;
        }
        let tree = |folder: &Path, artifact: &Artifact| -> anyhow::Result<FileTree> {
            let path = folder.join(&artifact.path);
            let image = contents::extension(&path)?;
            FileTree::read(&image).with_context(|| format!("read {}", path.display()))
        };
        let mut inside = Vec::new();
        trees(&output, &tree(a, &one.1)?, &tree(b, &other.1)?, &mut inside);
        if inside.is_empty() {
            let detail = "all files are the same; partitions, signature or layout differ";
            note("layout of the image", detail.to_owned());
        }
        for difference in inside {
            note(&difference.place, difference.detail);
        }
    }
    Ok(())
}

/// Names the files that differ.
fn trees(output: &str, a: &FileTree, b: &FileTree, found: &mut Vec<Difference>) {
    let paths: BTreeSet<&String> = a.files.keys().chain(b.files.keys()).collect();
    for path in paths {
        let detail = match (a.files.get(path), b.files.get(path)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => aspects(a, b),
            (a, b) => only(a.is_some(), b.is_some())
                .unwrap_or_default()
                .to_owned(),
        };
        found.push(Difference {
            output: output.to_owned(),
            place: format!("/{path}"),
            step: String::new(),
            detail,
        });
    }
}

/// Says in what two files at the same path differ.
fn aspects(a: &FileFact, b: &FileFact) -> String {
    let mut parts = Vec::new();
    if a.kind != b.kind {
        let kind = |fact: &FileFact| match &fact.kind {
            Kind::Link(target) => format!("link to {target}"),
            kind => format!("{kind:?}").to_lowercase(),
        };
        parts.push(format!("{} and {}", kind(a), kind(b)));
    } else if a.sha256 != b.sha256 {
        parts.push(format!("content ({} and {} bytes)", a.size, b.size));
    }
    if a.mode != b.mode {
        parts.push(format!("mode {:04o} and {:04o}", a.mode, b.mode));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        parts.push(format!("owner {}:{} and {}:{}", a.uid, a.gid, b.uid, b.gid));
    }
    let names: BTreeSet<&String> = a.attributes.keys().chain(b.attributes.keys()).collect();
    for name in names {
        if a.attributes.get(name) != b.attributes.get(name) {
            parts.push(format!("attribute {name}"));
        }
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::erofs::tests::sample;
    use crate::owners::Owners;
    use crate::release::{self, Draft};
    use crate::segment::{NoStore, write};
    use crate::signatures;
    use crate::tree::Tree;
    use crate::uki::Section;
    use model::release::Component;
    use model::{Digest, Signer};

    /// What a release is made of here.
    #[derive(Clone)]
    struct Parts {
        root: Vec<u8>,
        initrd: Vec<u8>,
        component: Vec<u8>,
        level: i32,
    }

    fn parts() -> Parts {
        // Without checksums of the super blocks, so that tests can change what they cover.
        let image = |name: &str| {
            let mut bytes = sample(name);
            bytes[1024 + 8] &= !1;
            bytes
        };
        Parts {
            root: image("sample"),
            initrd: b"initrd".to_vec(),
            component: image("chunks"),
            level: 1,
        }
    }

    fn release(out: &Path, parts: &Parts) -> PathBuf {
        let version = "2026.11.1".parse().unwrap();
        let mut draft = Draft::new(out, version, &release::tests::record("r.toml")).unwrap();
        let image = |draft: &mut Draft, name: &str, bytes: &[u8]| {
            let from = out.join("image");
            std::fs::write(&from, bytes).unwrap();
            let file = format!("{name}.zst");
            let to = draft.path(&file);
            write(&from, &to, &file, parts.level, &NoStore, &mut |_, _| ()).unwrap()
        };
        let section = |name, content| Section { name, content };
        let sections = [
            section(".cmdline", b"quiet".as_slice()),
            section(".initrd", &parts.initrd),
        ];
        let uki = uki::assemble(&signatures::tests::signed(), &sections).unwrap();
        let root = image(&mut draft, "root", &parts.root);
        let manifest = ReleaseManifest {
            version,
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b"root hash"),
            root,
            verity: image(&mut draft, "verity", b"verity"),
            uki: draft.write("leapserv.efi", &uki).unwrap(),
            boot_loader: draft.write("boot.efi", b"boot").unwrap(),
            installer: draft.write("installer.efi", b"installer").unwrap(),
            components: vec![Component {
                name: "backup".into(),
                version: "1".into(),
                image: draft
                    .write("components/backup.raw", &parts.component)
                    .unwrap(),
                verity: None,
            }],
            documents: vec![draft.write("lock.json", b"{}").unwrap()],
            tries: 3,
            secure_boot: None,
        };
        let mut tree = Tree::new();
        for (package, program) in [("iputils-ping", "ping"), ("cron", "crontab")] {
            tree.put_file(&format!("usr/bin/{program}"), 0o755, *b"x");
            let list = format!("/usr/bin/{program}\n");
            let path = format!("var/lib/dpkg/info/{package}.list");
            tree.put_file(&path, 0o644, list.into_bytes());
        }
        let files = Owners::of_packages(&tree).unwrap().finish(&tree);
        let files = serde_json::to_vec(&files).unwrap();
        let packed = zstd::bulk::compress(&files, 1).unwrap();
        draft.write("files.json.zst", &packed).unwrap();
        draft
            .finish(&Signer::from_seed(&[1; 32]).sign(&manifest))
            .unwrap()
    }

    /// The differences between a release and the same one with a change.
    fn after(change: impl FnOnce(&mut Parts)) -> Vec<String> {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut other = parts();
        change(&mut other);
        let a = release(first.path(), &parts());
        let b = release(second.path(), &other);
        let found = compare(&a, &b).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    /// Replaces the only place where `from` stands.
    fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
        let at = bytes.windows(from.len()).position(|at| at == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
    }

    #[test]
    fn the_same_release_has_no_difference() {
        assert_eq!(after(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn a_changed_content_is_named_with_its_package_and_step() {
        let found = after(|parts| replace(&mut parts.root, b"#!cr", b"#!rc"));
        assert_eq!(
            found,
            ["root: /usr/bin/crontab: content (4 and 4 bytes); package cron (step packages)"]
        );
    }

    #[test]
    fn a_changed_mode_is_named_and_a_file_without_a_package_is_the_root_steps() {
        // The inode of `su`: its mode, and one link.
        let mode = |mode: u16| [&(mode | 0o100_000).to_le_bytes()[..], &[1, 0]].concat();
        let found = after(|parts| replace(&mut parts.root, &mode(0o4755), &mode(0o755)));
        assert_eq!(found, ["root: /usr/bin/su: mode 4755 and 0755 (step root)"]);
    }

    #[test]
    fn a_changed_attribute_is_named() {
        // The version of the capability's format.
        let (from, to) = ([1, 0, 0, 2, 0, 0x20], [1, 0, 0, 2, 0, 0x30]);
        let found = after(|parts| replace(&mut parts.root, &from, &to));
        assert_eq!(
            found,
            [
                "root: /usr/bin/ping: attribute security.capability; package iputils-ping (step packages)"
            ]
        );
    }

    #[test]
    fn another_layout_with_the_same_files_is_called_that() {
        let found = after(|parts| parts.root[0] ^= 1);
        assert_eq!(
            found,
            [
                "root: layout of the file system: all files are the same; segments 0 differ (step root)"
            ]
        );
    }

    #[test]
    fn another_compression_is_the_segment_steps() {
        let found = after(|parts| parts.level = 19);
        assert!(!found.is_empty());
        assert!(
            found.iter().all(|line| line.contains("(step segments)")),
            "{found:?}"
        );
    }

    #[test]
    fn a_section_of_the_kernel_image_is_named_with_the_step_that_makes_it() {
        let found = after(|parts| parts.initrd = b"inItrd".to_vec());
        assert_eq!(
            found,
            [
                "uki: section .initrd: 6 bytes and 6 bytes, the first difference at byte 2 (step initrd-main)"
            ]
        );
    }

    #[test]
    fn a_file_of_a_component_is_named() {
        let found = after(|parts| replace(&mut parts.component, b"#!cr", b"#!rc"));
        assert_eq!(
            found,
            ["component backup: /usr/bin/crontab: content (4 and 4 bytes) (step component-backup)"]
        );
        let found = after(|parts| parts.component[0] ^= 1);
        assert!(found[0].contains("layout of the image"), "{found:?}");
    }
}
