//! What a file or a release's folder is and holds, recognised by its content.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use edge::exit::{self, Kind as Fault};
use model::release::{Component, ReleaseManifest};
use model::{Architecture, Digest, TrustRoot};
use serde::Serialize;
use slots::esp::{self, Entry, EntryState, Fat};
use slots::{Disk, Layout, Part, Slot, Window, gpt};

use crate::block::{Block, FilePart};
use crate::contents;
use crate::erofs::{self, Image, Kind};
use crate::lock::{Lock, Part as PackagePart};
use crate::partition::{self, Table};
use crate::release::{self, MANIFEST, readable};
use crate::signatures::{self, Signature};
use crate::uki;
use crate::verity;

/// What was found.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Found {
    /// A release's folder.
    Release(Box<ReleaseReport>),
    /// A disk image with partitions.
    Disk(Box<DiskReport>),
    /// An EFI program.
    Efi(EfiReport),
    /// A file system image, also one of a system extension.
    FileSystem(FileSystemReport),
    /// A lock file.
    Lock(LockReport),
    /// A release's manifest by itself.
    Manifest {
        /// Whether its signature was checked.
        signature: Trust,
        /// What it says.
        manifest: Box<ReleaseManifest>,
    },
}

/// Whether a signature was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// It is good.
    Verified,
    /// No trust root was named.
    NotChecked,
}

impl Trust {
    fn text(self) -> &'static str {
        match self {
            Self::Verified => "signed, all files as the manifest says",
            Self::NotChecked => "signature not checked; name a trust root with --trust-root",
        }
    }
}

/// A release.
#[derive(Debug, Serialize)]
pub struct ReleaseReport {
    /// Whether its signature was checked.
    pub signature: Trust,
    /// Its manifest.
    pub manifest: ReleaseManifest,
    /// The sections of its unified kernel image.
    pub uki: Vec<Section>,
    /// The Secure Boot signatures of its unified kernel image.
    pub uki_signatures: Vec<Signature>,
    /// How many packages it has, by part of the lock.
    pub packages: Option<LockReport>,
}

/// A section of an EFI program.
#[derive(Debug, Serialize)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: usize,
    /// Its text, where it is one.
    pub text: Option<String>,
}

/// An EFI program.
#[derive(Debug, Serialize)]
pub struct EfiReport {
    /// Whether it is a unified kernel image.
    pub uki: bool,
    /// Its sections.
    pub sections: Vec<Section>,
    /// Its Secure Boot signatures.
    pub signatures: Vec<Signature>,
}

/// How many packages a lock has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LockReport {
    /// Debian's suite.
    pub suite: String,
    /// CPU architecture.
    pub architecture: Architecture,
    /// Installed or unpacked into the root, the kernel included.
    pub system: usize,
    /// Tools of the build.
    pub tools: usize,
    /// How many of all came from a security suite.
    pub security: usize,
}

/// A file system image.
#[derive(Debug, Serialize)]
pub struct FileSystemReport {
    /// The super block.
    pub head: erofs::Super,
    /// Regular files.
    pub files: usize,
    /// Directories.
    pub directories: usize,
    /// Symbolic links.
    pub links: usize,
    /// The sum of the files' sizes in bytes.
    pub content: u64,
    /// The largest files with their sizes.
    pub largest: Vec<(String, u64)>,
    /// `os-release`, or the `extension-release` of an extension.
    pub identity: Vec<String>,
    /// All of it, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listing: Vec<Listed>,
    /// The partitions that the image lies in, if it is not bare.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Table>,
}

/// A name in a file system image.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// The name with what is known of it.
    #[serde(flatten)]
    pub entry: erofs::Entry,
    /// SHA-256 of a file's content.
    pub sha256: Option<Digest>,
}

/// A slot of a unit's disk.
#[derive(Debug, Serialize)]
pub struct SlotReport {
    /// `a` or `b`.
    pub slot: &'static str,
    /// The root hash that the partitions' GUIDs carry; none in an empty slot.
    pub root_hash: Option<Digest>,
    /// The release with this root hash, by the manifests on the disk.
    pub release: Option<String>,
    /// What `--check` said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
}

/// A boot entry.
#[derive(Debug, Serialize)]
pub struct EntryReport {
    /// Its file name.
    pub file: String,
    /// Where it stands.
    pub state: String,
}

/// A disk image.
#[derive(Debug, Serialize)]
pub struct DiskReport {
    /// Its partitions.
    pub table: Table,
    /// The slots, where the disk has the layout of units.
    pub slots: Vec<SlotReport>,
    /// The boot entries.
    pub entries: Vec<EntryReport>,
    /// The files of the EFI system partition with their sizes.
    pub esp: Vec<(String, u64)>,
    /// Whether a check found something wrong.
    #[serde(skip)]
    pub damaged: bool,
}

/// What is asked beyond looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only look.
    Look,
    /// List the files of a file system image with their digests.
    Files,
    /// Read the slots of a disk and compare them with their root hashes.
    Check,
}

const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn invalid(problem: impl std::fmt::Display) -> anyhow::Error {
    exit::marked(Fault::InvalidInput, problem)
}

/// Finds out what `path` is and looks into it.
///
/// # Errors
/// Kind `InvalidInput` when it is nothing known or damaged, `Refused` when a
/// signature does not fit the trust root.
pub fn inspect(path: &Path, trust: Option<&TrustRoot>, depth: Depth) -> anyhow::Result<Found> {
    if path.is_dir() {
        return release(path, trust).map(|report| Found::Release(Box::new(report)));
    }
    let place = path.display();
    let whole =
        FilePart::open(path).map_err(|error| invalid(format_args!("open {place}: {error}")))?;
    let mut start = [0; 4];
    if whole.size() >= 4 {
        whole
            .read_at(0, &mut start)
            .with_context(|| format!("read {place}"))?;
    }
    let table =
        partition::read(&whole).map_err(|error| invalid(format_args!("{place}: {error}")))?;
    if let Some(table) = table {
        return partitioned(path, &whole, table, depth);
    }
    if start.starts_with(b"MZ") {
        let bytes = std::fs::read(path).with_context(|| format!("read {place}"))?;
        return efi(&bytes)
            .map(Found::Efi)
            .map_err(|error| invalid(format_args!("{place}: {error:#}")));
    }
    match Image::open(&whole) {
        Ok(image) => {
            return file_system(&image, None, depth)
                .map(Found::FileSystem)
                .map_err(|error| invalid(format_args!("{place}: {error}")));
        }
        Err(erofs::ErofsError::Foreign(_)) => {}
        Err(error) => return Err(invalid(format_args!("{place}: {error}"))),
    }
    if start.starts_with(b"{") {
        return document(path, trust);
    }
    let error = invalid(format_args!(
        "{place}: expected a disk image, an EFI program, an EROFS image, a lock, a manifest or a release's folder"
    ));
    Err(match start == ZSTD {
        true => exit::hint(
            error,
            "these are compressed segments: inspect the release's folder",
        ),
        false => error,
    })
}

fn document(path: &Path, trust: Option<&TrustRoot>) -> anyhow::Result<Found> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    if let Ok(lock) = serde_json::from_slice::<Lock>(&bytes) {
        return Ok(Found::Lock(lock_report(&lock)));
    }
    let (signature, manifest) = manifest(path, trust).map_err(|error| {
        exit::hint(
            error,
            "of JSON files it knows locks and releases' manifests",
        )
    })?;
    Ok(Found::Manifest {
        signature,
        manifest: Box::new(manifest),
    })
}

fn manifest(path: &Path, trust: Option<&TrustRoot>) -> anyhow::Result<(Trust, ReleaseManifest)> {
    if let Some(trust) = trust {
        let signed = release::read_signed::<ReleaseManifest>(path)?;
        let manifest = trust.verify(&signed, edge::clock::now()).map_err(|error| {
            exit::marked(Fault::Refused, format!("{}: {error}", path.display()))
        })?;
        return Ok((Trust::Verified, manifest.into_inner()));
    }
    let bytes = std::fs::read(path)
        .map_err(|error| invalid(format_args!("read {}: {error}", path.display())))?;
    let manifest = contents::parse_manifest(&bytes)
        .map_err(|problem| invalid(format_args!("{}: {problem}", path.display())))?;
    Ok((Trust::NotChecked, manifest))
}

fn release(folder: &Path, trust: Option<&TrustRoot>) -> anyhow::Result<ReleaseReport> {
    let (signature, manifest) = manifest(&folder.join(MANIFEST), trust)?;
    // Paths that lead elsewhere are refused before any of them is opened.
    contents::read_manifest(folder)?;
    if signature == Trust::Verified {
        let images = manifest.components.iter().map(|component| &component.image);
        for artifact in [&manifest.uki, &manifest.boot_loader, &manifest.installer]
            .into_iter()
            .chain(images)
            .chain(&manifest.documents)
        {
            release::check(folder, artifact)?;
        }
        for image in [&manifest.root, &manifest.verity] {
            let file = folder.join(&image.path);
            crate::segment::read(image, &file, &mut std::io::sink())?;
        }
        for component in &manifest.components {
            check_tree(folder, component)?;
        }
    }
    let uki = folder.join(&manifest.uki.path);
    let bytes = std::fs::read(&uki).with_context(|| format!("read {}", uki.display()))?;
    let EfiReport {
        sections,
        signatures,
        ..
    } = efi(&bytes).with_context(|| format!("read {}", uki.display()))?;
    Ok(ReleaseReport {
        signature,
        uki: sections,
        uki_signatures: signatures,
        packages: contents::read_lock(folder)?.as_ref().map(lock_report),
        manifest,
    })
}

/// Checks a component's image against its own hash tree, as a unit's kernel will.
fn check_tree(folder: &Path, component: &Component) -> anyhow::Result<()> {
    let Some(tree) = component.verity else {
        return Ok(());
    };
    let path = folder.join(&component.image.path);
    let place = || format!("component {}: {}", component.name, path.display());
    let whole = FilePart::open(&path).with_context(place)?;
    let behind = whole.size().saturating_sub(tree.offset);
    let data = whole.part(0, tree.offset).with_context(place)?;
    let hashes = whole.part(tree.offset, behind).with_context(place)?;
    verity::check(&data, &hashes, &tree.root_hash).with_context(place)
}

fn lock_report(lock: &Lock) -> LockReport {
    let packages = &lock.packages;
    let tools = packages
        .iter()
        .filter(|package| package.part == PackagePart::Tools)
        .count();
    LockReport {
        suite: lock.suite.clone(),
        architecture: lock.architecture,
        system: packages.len() - tools,
        tools,
        security: packages
            .iter()
            .filter(|package| package.suite.ends_with("-security"))
            .count(),
    }
}

fn efi(bytes: &[u8]) -> anyhow::Result<EfiReport> {
    let sections = uki::sections(bytes)?;
    let signatures = signatures::of(bytes)?;
    let has = |name: &str| sections.iter().any(|(section, _)| section == name);
    Ok(EfiReport {
        uki: has(".linux"),
        signatures,
        sections: sections
            .iter()
            .map(|(name, content)| {
                let text = matches!(name.as_str(), ".osrel" | ".cmdline" | ".uname" | ".sbat");
                let text = text.then(|| String::from_utf8_lossy(content));
                Section {
                    name: name.clone(),
                    size: content.len(),
                    text: text.map(|text| text.trim_end_matches(['\0', '\n', ' ']).to_owned()),
                }
            })
            .collect(),
    })
}

fn file_system<B: Block>(
    image: &Image<B>,
    table: Option<Table>,
    depth: Depth,
) -> Result<FileSystemReport, erofs::ErofsError> {
    const LARGEST: usize = 10;
    let entries = image.entries()?;
    let mut identity = Vec::new();
    for entry in &entries {
        let release = entry.path == "usr/lib/os-release"
            || entry
                .path
                .contains("/extension-release.d/extension-release.");
        if release && entry.kind == Kind::File && entry.size < 1 << 16 {
            let text = image.content(entry)?;
            let text = String::from_utf8_lossy(&text);
            identity.extend(text.lines().map(str::to_owned));
        }
    }
    let count = |is: fn(&Kind) -> bool| entries.iter().filter(|entry| is(&entry.kind)).count();
    let (directories, links) = (
        count(|kind| *kind == Kind::Directory),
        count(|kind| matches!(kind, Kind::Link(_))),
    );
    let files = entries.iter().filter(|entry| entry.kind == Kind::File);
    let mut largest: Vec<(String, u64)> = files
        .map(|entry| (format!("/{}", entry.path), entry.size))
        .collect();
    let files = largest.len();
    let content = largest
        .iter()
        .fold(0u64, |sum, (_, size)| sum.saturating_add(*size));
    largest.sort_by_key(|(path, size)| (std::cmp::Reverse(*size), path.clone()));
    largest.truncate(LARGEST);
    let mut listing = Vec::new();
    if depth == Depth::Files {
        for entry in entries {
            let sha256 = match entry.kind {
                Kind::File => Some(image.digest(&entry)?),
                _ => None,
            };
            listing.push(Listed { entry, sha256 });
        }
    }
    Ok(FileSystemReport {
        head: image.head().clone(),
        files,
        directories,
        links,
        content,
        largest,
        identity,
        table,
        listing,
    })
}

fn partitioned(path: &Path, whole: &FilePart, table: Table, depth: Depth) -> anyhow::Result<Found> {
    let place = path.display();
    let mut disk = Disk::open_read_only(path).with_context(|| format!("open {place}"))?;
    if let Ok(layout) = gpt::read(&mut disk) {
        return unit_disk(whole, disk, &layout, table, depth)
            .map(|report| Found::Disk(Box::new(report)))
            .with_context(|| format!("look into {place}"));
    }
    // A system extension with verity and signature has one file system.
    for entry in &table.partitions {
        let part = whole
            .part(entry.start, entry.size)
            .with_context(|| format!("read {place}"))?;
        match Image::open(&part) {
            Ok(image) => {
                return file_system(&image, Some(table.clone()), depth)
                    .map(Found::FileSystem)
                    .map_err(|error| invalid(format_args!("{place}: {error}")));
            }
            Err(erofs::ErofsError::Foreign(_)) => {}
            Err(error) => return Err(invalid(format_args!("{place}: {error}"))),
        }
    }
    Ok(Found::Disk(Box::new(DiskReport {
        table,
        slots: Vec::new(),
        entries: Vec::new(),
        esp: Vec::new(),
        damaged: false,
    })))
}

fn unit_disk(
    whole: &FilePart,
    disk: Disk,
    layout: &Layout,
    table: Table,
    depth: Depth,
) -> anyhow::Result<DiskReport> {
    let partition = layout.partition(Part::Esp);
    let fat = Fat::open(Window::new(disk, partition.start, partition.size))?;
    let files = fat.files()?;
    let manifests = files.iter().filter_map(|(file, _)| {
        let inner = file.strip_prefix(esp::RELEASES)?;
        inner.ends_with("/manifest.json").then_some(file)
    });
    let mut releases = Vec::new();
    for file in manifests {
        // A damaged manifest only means that its release stays unnamed.
        if let Ok(manifest) = contents::parse_manifest(&fat.read(file)?) {
            releases.push(manifest);
        }
    }
    let mut damaged = false;
    let mut slots = Vec::new();
    for slot in [Slot::A, Slot::B] {
        let part = |part: Part| {
            let partition = layout.partition(part);
            whole.part(partition.start, partition.size)
        };
        let (root, tree) = (part(Part::Root(slot))?, part(Part::Verity(slot))?);
        let root_hash = Image::open(&root).ok().map(|_| root_hash(layout, slot));
        let release = root_hash.and_then(|hash| {
            let known = releases.iter().find(|release| release.root_hash == hash);
            known.map(|release| release.version.to_string())
        });
        let check = match root_hash {
            Some(hash) if depth == Depth::Check => Some(match verity::check(&root, &tree, &hash) {
                Ok(()) => "every block is as the root hash says".to_owned(),
                Err(verity::VerityError::Read(error)) => return Err(error.into()),
                Err(error) => {
                    damaged = true;
                    error.to_string()
                }
            }),
            _ => None,
        };
        slots.push(SlotReport {
            slot: slot.as_str(),
            root_hash,
            release,
            check,
        });
    }
    let entries = fat.entries()?;
    Ok(DiskReport {
        table,
        slots,
        entries: entries.iter().map(entry_report).collect(),
        esp: files,
        damaged,
    })
}

/// The root hash whose halves are the GUIDs of a slot's partitions.
fn root_hash(layout: &Layout, slot: Slot) -> Digest {
    let mut bytes = [0; 32];
    for (half, part) in bytes
        .chunks_exact_mut(16)
        .zip([Part::Root(slot), Part::Verity(slot)])
    {
        half.copy_from_slice(layout.partition(part).guid.as_bytes());
    }
    Digest::from(bytes)
}

fn entry_report(entry: &Entry) -> EntryReport {
    EntryReport {
        file: entry.to_string(),
        state: match entry.state() {
            EntryState::Good => "good".into(),
            EntryState::Pending { left } => format!("to be proved, {left} tries left"),
            EntryState::Bad => "bad, no try left".into(),
        },
    }
}

impl Found {
    /// The report for a person.
    pub fn render(&self) -> String {
        let mut text = String::new();
        match self {
            Self::Release(report) => release_text(&mut text, report),
            Self::Disk(report) => disk_text(&mut text, report),
            Self::Efi(report) => {
                let what = if report.uki {
                    "unified kernel image"
                } else {
                    "EFI program"
                };
                let _ = writeln!(text, "{what}");
                sections_text(&mut text, &report.sections);
                signatures_text(&mut text, &report.signatures);
            }
            Self::FileSystem(report) => file_system_text(&mut text, report),
            Self::Lock(report) => {
                let _ = writeln!(text, "lock of {} ({})", report.suite, report.architecture);
                lock_text(&mut text, report);
            }
            Self::Manifest {
                signature,
                manifest,
            } => {
                let note = match signature {
                    Trust::Verified => "signed; the files beside it were not looked at",
                    Trust::NotChecked => signature.text(),
                };
                let _ = writeln!(
                    text,
                    "manifest of release {} ({}), {note}",
                    manifest.version, manifest.architecture
                );
                manifest_text(&mut text, manifest);
            }
        }
        text
    }
}

fn release_text(text: &mut String, report: &ReleaseReport) {
    let ReleaseReport {
        signature,
        manifest,
        ..
    } = report;
    let _ = writeln!(
        text,
        "release {} ({}), {}",
        manifest.version,
        manifest.architecture,
        signature.text()
    );
    manifest_text(text, manifest);
    if let Some(packages) = &report.packages {
        lock_text(text, packages);
    }
    sections_text(text, &report.uki);
    signatures_text(text, &report.uki_signatures);
}

fn manifest_text(text: &mut String, manifest: &ReleaseManifest) {
    let _ = writeln!(text, "root hash {}", manifest.root_hash);
    for (name, image) in [("root", &manifest.root), ("verity", &manifest.verity)] {
        let _ = writeln!(
            text,
            "{name:10} {:>10}, {} stored in {} segments",
            readable(image.size),
            readable(image.stored_size),
            image.segments.len()
        );
    }
    for (name, artifact) in [
        ("uki", &manifest.uki),
        ("loader", &manifest.boot_loader),
        ("installer", &manifest.installer),
    ] {
        let _ = writeln!(text, "{name:10} {:>10}", readable(artifact.size));
    }
    for component in &manifest.components {
        let _ = writeln!(
            text,
            "component  {:>10}  {} {}",
            readable(component.image.size),
            component.name,
            component.version
        );
        if let Some(tree) = component.verity {
            let _ = writeln!(
                text,
                "  hash tree from byte {}, root hash {}",
                tree.offset, tree.root_hash
            );
        }
    }
    for document in &manifest.documents {
        let size = readable(document.size);
        let _ = writeln!(text, "document   {size:>10}  {}", document.path);
    }
}

fn lock_text(text: &mut String, report: &LockReport) {
    let _ = writeln!(
        text,
        "packages   {} of the system, {} of the build, {} from security suites",
        report.system, report.tools, report.security
    );
}

fn sections_text(text: &mut String, sections: &[Section]) {
    for section in sections {
        let inner = section.text.as_deref().unwrap_or_default();
        let line = format!(
            "section    {:>10}  {} {}",
            readable(section.size as u64),
            section.name,
            inner.replace('\n', " ")
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn signatures_text(text: &mut String, signatures: &[Signature]) {
    if signatures.is_empty() {
        text.push_str("signature  none for Secure Boot\n");
    }
    for signature in signatures {
        let of = match signature.of_this_file {
            true => "of this file",
            false => "OF ANOTHER FILE",
        };
        let _ = writeln!(text, "signature  {of}, {}", signature.subjects.join("; "));
    }
}

fn table_text(text: &mut String, table: &Table) {
    for partition in &table.partitions {
        let kind = partition::kind_name(&partition.kind)
            .map_or_else(|| partition.kind.to_string(), str::to_owned);
        let _ = writeln!(
            text,
            "partition {:2} {:>10}  {:10} {} {kind}",
            partition.number,
            readable(partition.size),
            partition.label,
            partition.guid
        );
    }
}

fn disk_text(text: &mut String, report: &DiskReport) {
    let _ = writeln!(text, "disk image {}", report.table.guid);
    table_text(text, &report.table);
    for slot in &report.slots {
        let what = match (&slot.root_hash, &slot.release) {
            (None, _) => "empty".to_owned(),
            (Some(hash), Some(release)) => format!("release {release}, root hash {hash}"),
            (Some(hash), None) => format!("root hash {hash}, of no release on this disk"),
        };
        let _ = writeln!(text, "slot {}       {what}", slot.slot);
        if let Some(check) = &slot.check {
            let _ = writeln!(text, "  checked: {check}");
        }
    }
    for entry in &report.entries {
        let _ = writeln!(text, "boot entry   {}, {}", entry.file, entry.state);
    }
    for (path, size) in &report.esp {
        let _ = writeln!(text, "ESP {:>10}  {path}", readable(*size));
    }
}

fn listing_text(text: &mut String, listing: &[Listed]) {
    for Listed { entry, sha256 } in listing {
        let what = match (&entry.kind, sha256) {
            (Kind::Link(target), _) => format!("-> {target}"),
            (_, Some(digest)) => format!("{} {digest}", entry.size),
            (kind, None) => format!("{kind:?}").to_lowercase(),
        };
        let _ = write!(
            text,
            "{:04o} {}:{} /{} {what}",
            entry.mode, entry.uid, entry.gid, entry.path
        );
        for (name, value) in &entry.attributes {
            let _ = write!(text, " {name}={}", hex::encode(value));
        }
        text.push('\n');
    }
}

fn file_system_text(text: &mut String, report: &FileSystemReport) {
    let get = |name: &str| {
        let lines = report.identity.iter();
        let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        values.next()
    };
    let _ = match (get("SYSEXT_ID"), get("SYSEXT_VERSION_ID")) {
        (Some(name), Some(version)) => writeln!(text, "system extension {name} {version}"),
        _ => writeln!(text, "EROFS image"),
    };
    if let Some(table) = &report.table {
        table_text(text, table);
    }
    let head = &report.head;
    let _ = writeln!(
        text,
        "{} blocks of {} bytes, UUID {}, made at {}",
        head.blocks, head.block_size, head.uuid, head.created
    );
    let _ = writeln!(
        text,
        "{} files with {}, {} directories, {} links",
        report.files,
        readable(report.content),
        report.directories,
        report.links
    );
    for line in &report.identity {
        let _ = writeln!(text, "  {line}");
    }
    if !report.listing.is_empty() {
        listing_text(text, &report.listing);
        return;
    }
    text.push_str("largest files\n");
    for (path, size) in &report.largest {
        let _ = writeln!(text, "  {:>10}  {path}", readable(*size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::tests::sample;

    fn look(bytes: &[u8]) -> anyhow::Result<Found> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        inspect(file.path(), None, Depth::Look)
    }

    #[test]
    fn files_are_known_by_their_content() {
        let bare = look(&sample("sample")).unwrap();
        let text = bare.render();
        assert!(text.starts_with("EROFS image"), "{text}");
        assert!(text.contains("ID=sample"), "{text}");
        // The same image in a partition.
        let disk = crate::partition::tests::disk(&sample("sample"));
        let text = look(&disk).unwrap().render();
        assert!(text.contains("partition  1"), "{text}");
        assert!(text.contains("ID=sample"), "{text}");
        let lock = br#"{"suite":"trixie","architecture":"amd64","packages":[]}"#;
        assert!(matches!(look(lock).unwrap(), Found::Lock(_)));
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_would_be() {
        for bytes in [&b""[..], b"x", b"{}", b"{", b"MZ", &[0; 9000]] {
            let refused = look(bytes).unwrap_err();
            assert!(refused.to_string().contains("expected"), "{refused:#}");
        }
        let segments = look(&zstd::bulk::compress(b"x", 1).unwrap()).unwrap_err();
        let text = exit::render(&segments);
        assert!(text.contains("inspect the release's folder"), "{text}");
    }
}
