//! What a release adds, loses and changes against another one.
//!
//! Pure: the contents of both come in, the difference and its text go out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use crate::contents::{Contents, FileFact, FileTree, ROOT};
use crate::erofs::Kind;
use crate::lock::{LockedPackage, Part};
use crate::release::readable;
use crate::system;

/// What was added, removed and changed, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes<T> {
    /// Only in the second.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub added: BTreeMap<String, T>,
    /// Only in the first.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub removed: BTreeMap<String, T>,
    /// In both, and not the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<String, (T, T)>,
}

impl<T: Clone + PartialEq> Changes<T> {
    fn between(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> Self {
        let only = |a: &BTreeMap<String, T>, b: &BTreeMap<String, T>| {
            let names = a.iter().filter(|(name, _)| !b.contains_key(*name));
            names.map(|(name, it)| (name.clone(), it.clone())).collect()
        };
        let both = a
            .iter()
            .filter_map(|(name, a)| Some((name, a, b.get(name)?)));
        Self {
            added: only(b, a),
            removed: only(a, b),
            changed: both
                .filter(|(_, a, b)| a != b)
                .map(|(name, a, b)| (name.clone(), (a.clone(), b.clone())))
                .collect(),
        }
    }
}

impl<T> Changes<T> {
    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// A package of a release, as far as a person compares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Package {
    /// Its version.
    pub version: String,
    /// Whether it came from a security suite.
    pub security: bool,
    /// SHA-256 of the `.deb`, which can change under a version.
    #[serde(skip)]
    sha256: model::Digest,
}

/// A file, as far as a person compares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Size in bytes.
    pub size: u64,
    /// Mode, owner and group: `0755 0:0`.
    pub rights: String,
    /// A link's target, or the kind where it is neither file nor link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    #[serde(skip)]
    fact: FileFact,
}

/// How two releases differ. A field that is empty does not differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Version of the first.
    pub from: String,
    /// Version of the second.
    pub to: String,
    /// Sizes of the outputs in bytes.
    pub sizes: Changes<u64>,
    /// Packages of the system.
    pub packages: Changes<Package>,
    /// Packages that the build used.
    pub build_tools: Changes<Package>,
    /// Components with their versions.
    pub components: Changes<String>,
    /// Versions of the kernel and its command line.
    pub kernel: Changes<String>,
    /// The kernel's options.
    pub kernel_config: Changes<String>,
    /// Kernel modules.
    pub modules: Changes<String>,
    /// Units that start.
    pub units: Changes<String>,
    /// Units that must not start.
    pub masked: Changes<String>,
    /// Sockets of the service manager.
    pub sockets: Changes<String>,
    /// Files with setuid, setgid or capabilities.
    pub privileged: Changes<String>,
    /// Users.
    pub users: Changes<String>,
    /// Files of the root and of each component.
    pub files: BTreeMap<String, Changes<File>>,
    /// What could not be compared, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

impl Difference {
    /// Says whether the releases differ in nothing but the version.
    pub fn is_empty(&self) -> bool {
        let texts = [
            &self.components,
            &self.kernel,
            &self.kernel_config,
            &self.modules,
            &self.units,
            &self.masked,
            &self.sockets,
            &self.privileged,
            &self.users,
        ];
        texts.into_iter().all(Changes::is_empty)
            && self.sizes.is_empty()
            && self.packages.is_empty()
            && self.build_tools.is_empty()
            && self.files.values().all(Changes::is_empty)
    }
}

/// Compares two releases.
pub fn difference(a: &Contents, b: &Contents) -> Difference {
    let empty = FileTree::default();
    let root = |contents: &Contents| contents.trees.get(ROOT).unwrap_or(&empty).clone();
    let (root_a, root_b) = (root(a), root(b));
    let system = |facts: fn(&FileTree) -> BTreeMap<String, String>| {
        Changes::between(&facts(&root_a), &facts(&root_b))
    };
    let kernel = |contents: &Contents| {
        BTreeMap::from([
            ("version".to_owned(), contents.kernel.clone()),
            ("command line".to_owned(), contents.command_line.clone()),
        ])
    };
    let mut unknown = Vec::new();
    let kernel_config = match (&a.kernel_config, &b.kernel_config) {
        (Some(a), Some(b)) => Changes::between(a, b),
        (first, _) => {
            let lacks = if first.is_none() { a } else { b };
            unknown.push(format!(
                "kernel configuration: release {} does not hold it",
                lacks.version
            ));
            Changes::between(&BTreeMap::new(), &BTreeMap::new())
        }
    };
    for contents in [a, b]
        .into_iter()
        .filter(|contents| contents.lock.is_none())
    {
        unknown.push(format!(
            "packages: release {} has no lock",
            contents.version
        ));
    }
    let trees: BTreeSet<&String> = a.trees.keys().chain(b.trees.keys()).collect();
    let files = trees.into_iter().map(|name| {
        let of = |contents: &Contents| files(contents.trees.get(name).unwrap_or(&empty));
        (name.clone(), Changes::between(&of(a), &of(b)))
    });
    Difference {
        from: a.version.clone(),
        to: b.version.clone(),
        sizes: Changes::between(&a.outputs, &b.outputs),
        packages: Changes::between(&packages(a, false), &packages(b, false)),
        build_tools: Changes::between(&packages(a, true), &packages(b, true)),
        components: Changes::between(&a.components, &b.components),
        kernel: Changes::between(&kernel(a), &kernel(b)),
        kernel_config,
        modules: system(system::modules),
        units: system(system::enabled),
        masked: system(system::masked),
        sockets: system(system::sockets),
        privileged: system(system::privileged),
        users: system(system::users),
        files: files.collect(),
        unknown,
    }
}

fn packages(contents: &Contents, tools: bool) -> BTreeMap<String, Package> {
    let packages = contents.lock.iter().flat_map(|lock| &lock.packages);
    packages
        .filter(|package| (package.part == Part::Tools) == tools)
        .map(|package: &LockedPackage| {
            let entry = Package {
                version: package.version.clone(),
                security: package.suite.ends_with("-security"),
                sha256: package.sha256,
            };
            (package.package.clone(), entry)
        })
        .collect()
}

fn files(tree: &FileTree) -> BTreeMap<String, File> {
    let file = |fact: &FileFact| File {
        size: fact.size,
        rights: format!("{:04o} {}:{}", fact.mode, fact.uid, fact.gid),
        what: match &fact.kind {
            Kind::File => None,
            Kind::Link(target) => Some(format!("-> {target}")),
            Kind::Directory => Some("directory".into()),
            Kind::CharacterDevice | Kind::BlockDevice => Some("device".into()),
            Kind::Fifo => Some("named pipe".into()),
            Kind::Socket => Some("socket".into()),
        },
        fact: fact.clone(),
    };
    let files = tree.files.iter().filter(|(path, _)| !path.is_empty());
    files
        .map(|(path, fact)| (path.clone(), file(fact)))
        .collect()
}

/// How much of the files the text tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Files {
    /// A line for each folder.
    Folders,
    /// A line for each file.
    All,
    /// Nothing.
    None,
}

/// The difference for a person: grouped, and only what differs.
pub fn render(difference: &Difference, detail: Files) -> String {
    let mut text = format!("{} -> {}\n", difference.from, difference.to);
    if difference.is_empty() {
        text.push_str("no difference\n");
    }
    let out = &mut text;
    sizes(out, &difference.sizes);
    let package = |package: &Package| {
        let mark = if package.security { "  security" } else { "" };
        format!("{}{mark}", package.version)
    };
    let update = |a: &Package, b: &Package| match a.version == b.version {
        true => format!("{} rebuilt", b.version),
        false => format!("{} -> {}", a.version, package(b)),
    };
    section(out, "packages", &difference.packages, package, update);
    section(out, "build tools", &difference.build_tools, package, update);
    let plain = |value: &String| value.clone();
    let arrow = |a: &String, b: &String| format!("{a} -> {b}");
    for (title, changes) in [
        ("components", &difference.components),
        ("kernel", &difference.kernel),
        ("kernel configuration", &difference.kernel_config),
        ("kernel modules", &difference.modules),
        ("units that start", &difference.units),
        ("units masked", &difference.masked),
        ("listening sockets", &difference.sockets),
        ("setuid, setgid, capabilities", &difference.privileged),
        ("users", &difference.users),
    ] {
        section(out, title, changes, plain, arrow);
    }
    for (name, changes) in &difference.files {
        if detail != Files::None {
            files_section(out, name, changes, detail);
        }
    }
    for unknown in &difference.unknown {
        let _ = writeln!(out, "not compared: {unknown}");
    }
    text
}

/// A number of bytes with its sign.
pub fn signed(from: u64, to: u64) -> String {
    match to >= from {
        true => format!("+{}", readable(to - from)),
        false => format!("-{}", readable(from - to)),
    }
}

fn sizes(out: &mut String, changes: &Changes<u64>) {
    if changes.is_empty() {
        return;
    }
    out.push_str("\nsizes\n");
    let mut rows: BTreeMap<&String, (Option<u64>, Option<u64>)> = BTreeMap::new();
    rows.extend(
        changes
            .added
            .iter()
            .map(|(name, b)| (name, (None, Some(*b)))),
    );
    rows.extend(
        changes
            .removed
            .iter()
            .map(|(name, a)| (name, (Some(*a), None))),
    );
    let changed = changes.changed.iter();
    rows.extend(changed.map(|(name, (a, b))| (name, (Some(*a), Some(*b)))));
    for (name, (a, b)) in rows {
        let show = |size: Option<u64>| size.map_or("-".to_owned(), readable);
        let by = signed(a.unwrap_or(0), b.unwrap_or(0));
        let _ = writeln!(out, "  {name:20} {:>10} -> {:>10}  {by}", show(a), show(b));
    }
}

fn section<T>(
    out: &mut String,
    title: &str,
    changes: &Changes<T>,
    one: impl Fn(&T) -> String,
    two: impl Fn(&T, &T) -> String,
) {
    if changes.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}");
    let mut rows: BTreeMap<&String, String> = BTreeMap::new();
    let row = |sign: char, name: &str, text: String| {
        let line = format!("  {sign} {name}  {text}");
        line.trim_end().to_owned()
    };
    rows.extend(
        changes
            .added
            .iter()
            .map(|(name, b)| (name, row('+', name, one(b)))),
    );
    rows.extend(
        changes
            .removed
            .iter()
            .map(|(name, a)| (name, row('-', name, one(a)))),
    );
    let changed = changes.changed.iter();
    rows.extend(changed.map(|(name, (a, b))| (name, row('~', name, two(a, b)))));
    for line in rows.values() {
        let _ = writeln!(out, "{line}");
    }
}

#[derive(Default)]
struct Folder {
    added: usize,
    removed: usize,
    changed: usize,
    before: u64,
    after: u64,
}

fn files_section(out: &mut String, name: &str, changes: &Changes<File>, detail: Files) {
    if changes.is_empty() {
        return;
    }
    let mut folders: BTreeMap<String, Folder> = BTreeMap::new();
    let mut total = Folder::default();
    let mut count = |path: &str, a: Option<&File>, b: Option<&File>| {
        for folder in [folders.entry(folder_of(path)).or_default(), &mut total] {
            folder.added += usize::from(a.is_none());
            folder.removed += usize::from(b.is_none());
            folder.changed += usize::from(a.is_some() && b.is_some());
            folder.before += a.map_or(0, |file| file.size);
            folder.after += b.map_or(0, |file| file.size);
        }
    };
    let mut rows: BTreeMap<&String, String> = BTreeMap::new();
    for (path, b) in &changes.added {
        count(path, None, Some(b));
        rows.insert(path, format!("  + /{path}  {}", describe(b)));
    }
    for (path, a) in &changes.removed {
        count(path, Some(a), None);
        rows.insert(path, format!("  - /{path}  {}", describe(a)));
    }
    for (path, (a, b)) in &changes.changed {
        count(path, Some(a), Some(b));
        rows.insert(path, format!("  ~ /{path}  {}", what_changed(a, b)));
    }
    let numbers = |folder: &Folder| {
        let parts = [
            (folder.added, "added"),
            (folder.removed, "removed"),
            (folder.changed, "changed"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}"))
            .collect();
        let by = match folder.before == folder.after {
            true => String::new(),
            false => format!(", {}", signed(folder.before, folder.after)),
        };
        format!("{}{by}", parts.join(", "))
    };
    let _ = writeln!(out, "\nfiles of the {name}: {}", numbers(&total));
    if detail == Files::All {
        for row in rows.values() {
            let _ = writeln!(out, "{row}");
        }
    } else {
        for (path, folder) in &folders {
            let _ = writeln!(out, "  {:40} {}", format!("/{path}"), numbers(folder));
        }
    }
}

/// The folder that a file is counted in: at most three levels deep.
fn folder_of(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let depth = parts.len().saturating_sub(1).min(3);
    parts[..depth].join("/")
}

fn describe(file: &File) -> String {
    match &file.what {
        Some(what) => what.clone(),
        None => format!("{} {}", readable(file.size), file.rights),
    }
}

fn what_changed(a: &File, b: &File) -> String {
    let mut parts = Vec::new();
    let kind = |file: &File| file.what.clone().unwrap_or_else(|| "file".to_owned());
    if a.fact.kind != b.fact.kind {
        parts.push(format!("{} now {}", kind(a), kind(b)));
    }
    if a.rights != b.rights {
        parts.push(format!("{} now {}", a.rights, b.rights));
    }
    if a.fact.attributes != b.fact.attributes {
        parts.push("attributes".to_owned());
    }
    if a.size != b.size {
        parts.push(signed(a.size, b.size));
    } else if a.fact.sha256 != b.fact.sha256 {
        parts.push("content".to_owned());
    }
    parts.join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lock::Lock;
    use model::Digest;

    fn fact(kind: Kind, mode: u32, content: &[u8]) -> FileFact {
        FileFact {
            sha256: (kind == Kind::File).then(|| Digest::of(content)),
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            attributes: BTreeMap::new(),
        }
    }

    /// A small root: users, a socket, an alias, a masked unit, privileges, modules.
    pub(crate) fn tree() -> FileTree {
        let mut tree = FileTree::default();
        let link = |target: &str| fact(Kind::Link(target.into()), 0o777, b"");
        let mut capable = fact(Kind::File, 0o755, b"ping");
        let value = [
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        capable
            .attributes
            .insert("security.capability".into(), value.to_vec());
        for (path, fact) in [
            ("", fact(Kind::Directory, 0o755, b"")),
            (
                "etc/systemd/system/sockets.target.wants/ssh.socket",
                link("/x"),
            ),
            (
                "etc/systemd/system/dbus.service",
                link("/usr/lib/systemd/system/dbus-broker.service"),
            ),
            ("etc/systemd/system/getty@tty1.service", link("/dev/null")),
            (
                "usr/lib/systemd/system/getty.target.wants/getty@tty1.service",
                link("../getty@.service"),
            ),
            ("usr/bin/su", fact(Kind::File, 0o4755, b"su")),
            ("usr/bin/ping", capable),
            ("usr/bin/bash", fact(Kind::File, 0o755, b"bash")),
            (
                "usr/lib/modules/6.12.1/kernel/fs/ext4.ko",
                fact(Kind::File, 0o644, b"m"),
            ),
        ] {
            tree.files.insert(path.into(), fact);
        }
        for (path, text) in [
            (
                "usr/lib/systemd/system/ssh.socket",
                "[Socket]\nListenStream=22\n[Install]\n",
            ),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
        ] {
            tree.texts.insert(path.into(), text.into());
        }
        tree
    }

    fn package(part: Part, name: &str, version: &str, suite: &str) -> LockedPackage {
        LockedPackage {
            part,
            package: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
            sha256: Digest::of(version.as_bytes()),
            suite: suite.into(),
        }
    }

    fn contents(version: &str, packages: Vec<LockedPackage>, tree: FileTree) -> Contents {
        let config = "CONFIG_EXT4_FS=y\nCONFIG_KEXEC=y\n";
        Contents {
            version: version.into(),
            outputs: BTreeMap::from([("root".into(), 1 << 20), ("uki".into(), 1 << 20)]),
            lock: Some(Lock {
                format: 1,
                wishes: None,
                suite: "trixie".into(),
                architecture: model::Architecture::Amd64,
                packages,
            }),
            components: BTreeMap::from([("backup".into(), "0.1.0".into())]),
            trees: BTreeMap::from([(ROOT.into(), tree)]),
            kernel_config: Some(crate::contents::parse_config(config)),
            kernel: "6.12.1".into(),
            command_line: "quiet".into(),
        }
    }

    fn pair() -> (Contents, Contents) {
        let a = contents(
            "2026.11.1",
            vec![
                package(Part::Root, "bash", "5.2-1", "trixie"),
                package(Part::Root, "less", "668-1", "trixie"),
                package(Part::Root, "openssl", "3.5.1-1", "trixie"),
                package(Part::Tools, "binutils", "2.44-3", "trixie"),
            ],
            tree(),
        );
        let mut other = tree();
        other.files.remove("usr/bin/ping");
        other
            .files
            .remove("usr/lib/modules/6.12.1/kernel/fs/ext4.ko");
        other.files.remove("etc/systemd/system/getty@tty1.service");
        other.files.get_mut("usr/bin/su").unwrap().mode = 0o755;
        other.files.insert(
            "usr/bin/bash".into(),
            fact(Kind::File, 0o755, &[b'x'; 5000]),
        );
        for name in ["ext4", "xfs"] {
            let path = format!("usr/lib/modules/6.12.2/kernel/fs/{name}.ko");
            other.files.insert(path, fact(Kind::File, 0o644, b"m2"));
        }
        let socket = "[Socket]\nListenStream=22\nListenDatagram=[::]:53\n";
        let path = "usr/lib/systemd/system/ssh.socket";
        other.texts.insert(path.into(), socket.into());
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnew:x:900:900::/:/bin/sh\n";
        other.texts.insert("etc/passwd".into(), passwd.into());
        let mut b = contents(
            "2026.11.2",
            vec![
                package(Part::Root, "bash", "5.3-1", "trixie"),
                package(Part::Root, "nano", "8.4-1", "trixie"),
                package(Part::Root, "openssl", "3.5.4-1", "trixie-security"),
                package(Part::Tools, "binutils", "2.44-3", "trixie"),
            ],
            other,
        );
        b.outputs.insert("root".into(), 3 << 19);
        b.components.insert("backup".into(), "0.2.0".into());
        b.kernel = "6.12.2".into();
        let config = "CONFIG_EXT4_FS=m\nCONFIG_XFS_FS=m\n";
        b.kernel_config = Some(crate::contents::parse_config(config));
        (a, b)
    }

    #[test]
    fn the_difference_of_two_small_releases_is_the_golden_one() {
        let (a, b) = pair();
        let text = render(&difference(&a, &b), Files::All);
        assert_eq!(text, include_str!("diff.golden"), "{text}");
    }

    #[test]
    fn a_release_does_not_differ_from_itself() {
        let (a, _) = pair();
        let same = difference(&a, &a);
        assert!(same.is_empty());
        assert!(render(&same, Files::All).contains("no difference"));
    }

    #[test]
    fn what_only_one_release_tells_is_not_taken_for_a_change() {
        let (a, mut b) = pair();
        b.kernel_config = None;
        let difference = difference(&a, &b);
        assert!(difference.kernel_config.is_empty());
        assert!(difference.unknown[0].contains("2026.11.2"));
    }

    #[test]
    fn folders_sum_up_what_is_below_them() {
        let (a, b) = pair();
        let text = render(&difference(&a, &b), Files::Folders);
        assert!(text.contains("/usr/bin "), "{text}");
        assert!(text.contains("1 removed, 2 changed"), "{text}");
        assert!(text.contains("/usr/lib/modules "), "{text}");
        assert!(!text.contains("/usr/bin/bash"), "{text}");
    }
}
