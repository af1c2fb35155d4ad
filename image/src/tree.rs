//! A file tree in memory: what a file system image or an initrd will hold.
//!
//! The content of large files stays where it lies (in an archive, or in a
//! file) and is copied only when the tree is written, so memory stays small.
//! Iteration is by path, so that what is written does not depend on the order
//! in which it was read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::cpio;
use crate::pattern;

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub enum Content {
    /// Here.
    Bytes(Arc<[u8]>),
    /// In a range of a file.
    Range {
        /// The file.
        file: Arc<PathBuf>,
        /// Where the range starts.
        offset: u64,
        /// How long it is.
        length: u64,
    },
}

impl Content {
    /// The number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Range { length, .. } => *length,
        }
    }

    /// Says whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.to_vec()),
            Self::Range { file, length, .. } => {
                let mut bytes = Vec::with_capacity(usize::try_from(*length).unwrap_or(0));
                self.open()?
                    .read_to_end(&mut bytes)
                    .with_context(|| format!("read {}", file.display()))?;
                if bytes.len() as u64 != *length {
                    bail!("read {}: shorter than it was", file.display());
                }
                Ok(bytes)
            }
        }
    }

    fn open(&self) -> anyhow::Result<Box<dyn Read + '_>> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(io::Cursor::new(&bytes[..]))),
            Self::Range {
                file,
                offset,
                length,
            } => {
                let mut from = File::open(file.as_path())
                    .with_context(|| format!("open {}", file.display()))?;
                from.seek(SeekFrom::Start(*offset))
                    .with_context(|| format!("seek in {}", file.display()))?;
                Ok(Box::new(from.take(*length)))
            }
        }
    }
}

/// What stands at a path.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link with its target.
    Link(String),
}

/// A node of the tree.
#[derive(Debug, Clone)]
pub struct Node {
    /// The lower twelve bits of the mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: Kind,
    /// Extended attributes, as the archive names them.
    pub attributes: Vec<(String, Vec<u8>)>,
}

impl Node {
    /// A node of root's without extended attributes.
    pub fn of_root(mode: u32, kind: Kind) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            kind,
            attributes: Vec::new(),
        }
    }
}

/// A file tree. Paths have no leading slash; the root itself is not stored.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

const XATTR: &str = "SCHILY.xattr.";
const LINKS: usize = 40;

impl Tree {
    /// Returns an empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an uncompressed tar archive. Device nodes are left out: `/dev`
    /// is made at boot. A hard link becomes a file with the same content.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn from_tar(archive: &Path) -> anyhow::Result<Self> {
        let mut tree = Self::new();
        tree.add_tar(archive)?;
        Ok(tree)
    }

    /// Adds the entries of an uncompressed tar archive over those that are here.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn add_tar(&mut self, archive: &Path) -> anyhow::Result<()> {
        let reading = || format!("read {}", archive.display());
        let source = Arc::new(archive.to_owned());
        let file = File::open(archive).with_context(reading)?;
        let mut tar = tar::Archive::new(io::BufReader::new(file));
        for entry in tar.entries().with_context(reading)? {
            let mut entry = entry.with_context(reading)?;
            let path = clean(&String::from_utf8_lossy(&entry.path_bytes()));
            if path.is_empty() {
                continue;
            }
            let mut attributes = Vec::new();
            if let Some(extensions) = entry.pax_extensions().with_context(reading)? {
                for extension in extensions {
                    let extension = extension.with_context(reading)?;
                    let key = extension.key().unwrap_or_default();
                    if key.starts_with(XATTR) {
                        attributes.push((key.to_owned(), extension.value_bytes().to_vec()));
                    }
                }
            }
            attributes.sort();
            let header = entry.header();
            let target = entry.link_name_bytes();
            let target = target.map(|name| String::from_utf8_lossy(&name).into_owned());
            let kind = match header.entry_type() {
                tar::EntryType::Directory => Kind::Directory,
                tar::EntryType::Symlink => Kind::Link(target.unwrap_or_default()),
                tar::EntryType::Link => {
                    let target = clean(&target.unwrap_or_default());
                    let Some(node) = self.nodes.get(&self.resolve_parent(&target)) else {
                        bail!(
                            "{}: {path}: hard link to {target}, which is not there",
                            reading()
                        );
                    };
                    node.kind.clone()
                }
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    Kind::File(Content::Range {
                        file: Arc::clone(&source),
                        offset: entry.raw_file_position(),
                        length: entry.size(),
                    })
                }
                _ => continue,
            };
            let number = |value: io::Result<u64>| -> anyhow::Result<u32> {
                Ok(u32::try_from(value.with_context(reading)?)?)
            };
            let node = Node {
                mode: header.mode().with_context(reading)? & 0o7777,
                uid: number(header.uid())?,
                gid: number(header.gid())?,
                kind,
                attributes,
            };
            // A directory over a link to one stays the link (`/lib`).
            let path = self.resolve_parent(&path);
            let keeps = matches!(node.kind, Kind::Directory)
                && self
                    .nodes
                    .get(&path)
                    .is_some_and(|old| !matches!(old.kind, Kind::File(_)));
            if keeps {
                continue;
            }
            self.nodes.insert(path, node);
        }
        Ok(())
    }

    /// Adds what lies in a folder of the build host, as root's, with modes
    /// 0755 and 0644 by the executable bit: the builder's umask is not ours.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn add_folder(&mut self, folder: &Path) -> anyhow::Result<()> {
        for (path, file) in list(folder)? {
            let meta = std::fs::symlink_metadata(&file)
                .with_context(|| format!("look at {}", file.display()))?;
            let node = if meta.is_dir() {
                Node::of_root(0o755, Kind::Directory)
            } else if meta.is_symlink() {
                let target = std::fs::read_link(&file)
                    .with_context(|| format!("read the link {}", file.display()))?;
                Node::of_root(0o777, Kind::Link(target.to_string_lossy().into_owned()))
            } else if meta.is_file() {
                let (mode, content) = host_file(&file, &meta);
                Node::of_root(mode, Kind::File(content))
            } else {
                bail!("{}: expected a file, folder or link", file.display());
            };
            let path = self.resolve_parent(&path);
            let over_directory =
                matches!(node.kind, Kind::Directory) && self.nodes.contains_key(&path);
            if !over_directory {
                self.nodes.insert(path, node);
            }
        }
        Ok(())
    }

    /// Puts a node at `path`, with the directories above it.
    pub fn put(&mut self, path: &str, node: Node) {
        let path = self.resolve_parent(&clean(path));
        let mut parent = String::new();
        for part in parts(&path).iter().rev().skip(1).rev() {
            if !parent.is_empty() {
                parent.push('/');
            }
            parent.push_str(part);
            self.nodes
                .entry(parent.clone())
                .or_insert_with(|| Node::of_root(0o755, Kind::Directory));
        }
        self.nodes.insert(path, node);
    }

    /// Puts a file of root's with these bytes at `path`.
    pub fn put_file(&mut self, path: &str, mode: u32, bytes: impl Into<Arc<[u8]>>) {
        let content = Content::Bytes(bytes.into());
        self.put(path, Node::of_root(mode, Kind::File(content)));
    }

    /// Puts a symbolic link at `path`.
    pub fn put_link(&mut self, path: &str, target: &str) {
        self.put(path, Node::of_root(0o777, Kind::Link(target.to_owned())));
    }

    /// Puts a directory of root's at `path`, if there is none.
    pub fn put_directory(&mut self, path: &str) {
        if self.get(path).is_none() {
            self.put(path, Node::of_root(0o755, Kind::Directory));
        }
    }

    /// Returns the path under which the tree keeps what is at `path`, whether
    /// or not there is anything.
    pub fn place(&self, path: &str) -> String {
        self.resolve_parent(&clean(path))
    }

    /// Returns the node at `path`, which may lead through links to directories.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.resolve_parent(&clean(path)))
    }

    /// Returns the path that `path` leads to when all links are followed.
    pub fn resolve(&self, path: &str) -> Option<String> {
        let mut path = self.resolve_parent(&clean(path));
        for _ in 0..LINKS {
            match &self.nodes.get(&path)?.kind {
                Kind::Link(target) => {
                    path = self.resolve_parent(&join(parent(&path), target));
                }
                _ => return Some(path),
            }
        }
        None
    }

    /// Reads the file that `path` leads to.
    ///
    /// # Errors
    /// When there is no file or it cannot be read.
    pub fn read(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let resolved = self.resolve(path);
        match resolved.and_then(|path| self.nodes.get(&path)) {
            Some(Node {
                kind: Kind::File(content),
                ..
            }) => content.read(),
            _ => bail!("/{path}: no such file in the tree"),
        }
    }

    /// Takes everything at and below `path` out of the tree.
    pub fn remove(&mut self, path: &str) {
        let path = self.resolve_parent(&clean(path));
        let below = format!("{path}/");
        self.nodes
            .retain(|at, _| *at != path && !at.starts_with(&below));
    }

    /// Takes out what matches one of `patterns` and none of `keep`, then
    /// the directories that this left empty. Returns how many nodes went.
    pub fn remove_matching(&mut self, patterns: &[String], keep: &[String]) -> usize {
        let before = self.nodes.len();
        let hit =
            |path: &str, list: &[String]| list.iter().any(|entry| pattern::matches(entry, path));
        let gone: Vec<String> = self
            .nodes
            .keys()
            .filter(|path| hit(path, patterns) && !hit(path, keep))
            .cloned()
            .collect();
        for path in gone {
            let below = format!("{path}/");
            let holds_more = self
                .nodes
                .range(below.clone()..)
                .next()
                .is_some_and(|(at, _)| at.starts_with(&below) && hit(at, keep));
            if !holds_more {
                self.nodes.remove(&path);
            }
        }
        // What lay below a removed directory goes with it.
        let orphans: Vec<String> = self
            .nodes
            .keys()
            .filter(|path| {
                let parent = parent(path);
                !parent.is_empty() && !self.nodes.contains_key(parent)
            })
            .cloned()
            .collect();
        for path in orphans {
            self.remove(&path);
        }
        before - self.nodes.len()
    }

    /// All nodes, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The sum of the files' sizes in bytes.
    pub fn size(&self) -> u64 {
        self.iter()
            .map(|(_, node)| match &node.kind {
                Kind::File(content) => content.len(),
                _ => 0,
            })
            .sum()
    }

    /// Writes the tree as a tar archive. Paths that `last` names come at the
    /// end: what changes with every release then moves no other file.
    ///
    /// # Errors
    /// When a file cannot be read or the writer fails.
    pub fn write_tar(&self, to: impl Write, mtime: u64, last: &[String]) -> anyhow::Result<()> {
        let mut tar = tar::Builder::new(to);
        let late = |path: &str| last.iter().any(|entry| pattern::matches(entry, path));
        let is_file = |node: &Node| matches!(node.kind, Kind::File(_));
        let order = self
            .nodes
            .iter()
            .filter(|(path, node)| !(is_file(node) && late(path)))
            .chain(
                self.nodes
                    .iter()
                    .filter(|(path, node)| is_file(node) && late(path)),
            );
        // The archive's first entry gives the root directory its mode.
        let mut root = tar::Header::new_gnu();
        root.set_entry_type(tar::EntryType::Directory);
        root.set_mode(0o755);
        root.set_uid(0);
        root.set_gid(0);
        root.set_mtime(mtime);
        root.set_size(0);
        tar.append_data(&mut root, "./", io::empty())?;
        for (path, node) in order {
            let writing = || format!("write /{path} to the archive");
            if !node.attributes.is_empty() {
                let attributes = node.attributes.iter();
                tar.append_pax_extensions(
                    attributes.map(|(key, value)| (key.as_str(), value.as_slice())),
                )
                .with_context(writing)?;
            }
            let mut header = tar::Header::new_gnu();
            header.set_mode(node.mode);
            header.set_uid(u64::from(node.uid));
            header.set_gid(u64::from(node.gid));
            header.set_mtime(mtime);
            header.set_size(0);
            match &node.kind {
                Kind::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, format!("{path}/"), io::empty())
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, target)
                }
                Kind::File(content) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(content.len());
                    tar.append_data(&mut header, path, content.open()?)
                }
            }
            .with_context(writing)?;
        }
        tar.into_inner()
            .and_then(|mut to| to.flush())
            .context("end the archive")
    }

    /// Writes the tree as a kernel initramfs archive.
    ///
    /// # Errors
    /// When a file cannot be read or the writer fails.
    pub fn write_cpio<W: Write>(&self, to: W, mtime: u32) -> anyhow::Result<W> {
        let mut writer = cpio::Writer::new(to, mtime);
        for (path, node) in self.iter() {
            let bytes;
            let entry = match &node.kind {
                Kind::Directory => cpio::Entry::Directory,
                Kind::Link(target) => cpio::Entry::Link(target),
                Kind::File(content) => {
                    bytes = content.read()?;
                    cpio::Entry::File(&bytes)
                }
            };
            writer
                .entry(path, node.mode, entry)
                .with_context(|| format!("write /{path} to the initrd"))?;
        }
        // The kernel opens the console before anything could make it.
        writer
            .entry("dev/console", 0o600, cpio::Entry::Device(5, 1))
            .context("write /dev/console to the initrd")?;
        writer.finish().context("end the initrd")
    }

    /// Follows links in all parts of `path` but the last.
    fn resolve_parent(&self, path: &str) -> String {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let mut at = 0;
            let mut changed = None;
            while let Some(slash) = path[at..].find('/') {
                let end = at + slash;
                if let Some(Node {
                    kind: Kind::Link(target),
                    ..
                }) = self.nodes.get(&path[..end])
                {
                    let base = join(parent(&path[..end]), target);
                    changed = Some(join(&base, &path[end + 1..]));
                    break;
                }
                at = end + 1;
            }
            match changed {
                Some(next) => path = next,
                None => return path,
            }
        }
        path
    }
}

/// Lists what lies below `folder` as pairs of relative path and file, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub fn list(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    fn walk(at: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> anyhow::Result<()> {
        let reading = || format!("read the folder {}", at.display());
        for entry in std::fs::read_dir(at).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                bail!("{}: expected names in UTF-8", reading());
            };
            let path = if prefix.is_empty() {
                name.to_owned()
            } else {
                format!("{prefix}/{name}")
            };
            let is_folder = entry.file_type().with_context(reading)?.is_dir();
            found.push((path.clone(), entry.path()));
            if is_folder {
                walk(&entry.path(), &path, found)?;
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found)?;
    found.sort();
    Ok(found)
}

/// Returns mode and content of a file on the build host.
pub fn host_file(file: &Path, meta: &std::fs::Metadata) -> (u32, Content) {
    use std::os::unix::fs::PermissionsExt as _;
    let executable = meta.permissions().mode() & 0o100 != 0;
    let content = Content::Range {
        file: Arc::new(file.to_owned()),
        offset: 0,
        length: meta.len(),
    };
    (if executable { 0o755 } else { 0o644 }, content)
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Joins and removes `.`, `..` and empty parts.
fn join(base: &str, path: &str) -> String {
    let mut out: Vec<&str> = if path.starts_with('/') {
        Vec::new()
    } else {
        parts(base)
    };
    for part in parts(path) {
        match part {
            "." => {}
            ".." => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out.join("/")
}

fn clean(path: &str) -> String {
    join("", path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::new();
        tree.put_link("lib", "usr/lib");
        tree.put_file("usr/lib/libc.so.6", 0o644, *b"elf");
        tree.put_link("usr/lib/libc.so", "libc.so.6");
        tree.put_file("etc/os-release", 0o644, *b"ID=x\n");
        tree.put_file("usr/share/doc/a/copyright", 0o644, *b"c");
        tree
    }

    #[test]
    fn paths_lead_through_links_to_directories() {
        let tree = sample();
        assert_eq!(
            tree.resolve("lib/libc.so"),
            Some("usr/lib/libc.so.6".into())
        );
        assert_eq!(tree.read("/lib/libc.so").unwrap(), b"elf");
        assert!(tree.read("lib/none").is_err());
    }

    #[test]
    fn a_link_to_itself_ends() {
        let mut tree = Tree::new();
        tree.put_link("a", "a");
        assert_eq!(tree.resolve("a"), None);
        assert_eq!(tree.resolve("a/b"), None);
    }

    #[test]
    fn the_same_tree_gives_the_same_archive_in_whatever_order_it_was_made() {
        let mut other = Tree::new();
        let tree = sample();
        let nodes: Vec<_> = tree.iter().collect();
        for (path, node) in nodes.into_iter().rev() {
            other.put(path, node.clone());
        }
        let archive = |tree: &Tree| {
            let mut bytes = Vec::new();
            tree.write_tar(&mut bytes, 1, &["etc/os-release".into()])
                .unwrap();
            bytes
        };
        assert_eq!(archive(&tree), archive(&other));
    }

    #[test]
    fn an_archive_is_read_back_with_late_files_last() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.tar");
        let mut tree = sample();
        tree.put(
            "usr/bin/ping",
            Node {
                mode: 0o755,
                uid: 3,
                gid: 4,
                kind: Kind::File(Content::Bytes(Arc::from(*b"ping"))),
                attributes: vec![(format!("{XATTR}security.capability"), vec![0, 1, 0xff])],
            },
        );
        tree.write_tar(File::create(&file).unwrap(), 5, &["etc/os-release".into()])
            .unwrap();
        let back = Tree::from_tar(&file).unwrap();
        assert_eq!(
            tree.iter().map(|(path, _)| path).collect::<Vec<_>>(),
            back.iter().map(|(path, _)| path).collect::<Vec<_>>()
        );
        let ping = back.get("usr/bin/ping").unwrap();
        assert_eq!((ping.uid, ping.gid, ping.mode), (3, 4, 0o755));
        assert_eq!(ping.attributes[0].1, [0, 1, 0xff]);
        let bytes = std::fs::read(&file).unwrap();
        let at = |needle: &[u8]| {
            bytes
                .windows(needle.len())
                .position(|w| w == needle)
                .unwrap()
        };
        assert!(at(b"etc/os-release") > at(b"usr/share/doc/a/copyright"));
    }

    #[test]
    fn removing_keeps_what_is_to_be_kept_and_takes_what_lies_below() {
        let mut tree = sample();
        tree.put_file("usr/share/doc/b/x", 0o644, *b"x");
        tree.remove_matching(&["usr/share/doc/**".into()], &["usr/share/doc/a/**".into()]);
        assert!(tree.get("usr/share/doc/a/copyright").is_some());
        assert!(tree.get("usr/share/doc/b").is_none());
        tree.remove_matching(&["usr/share".into()], &[]);
        assert!(tree.get("usr/share/doc/a/copyright").is_none());
        assert!(tree.get("usr/lib/libc.so.6").is_some());
    }
}
