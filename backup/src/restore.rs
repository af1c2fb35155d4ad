//! Bringing files back, in bounded memory.
//!
//! The library's own restorer reads with twenty threads and up to 40 MiB
//! each. This one walks the snapshot and hands each file to one of
//! four threads, which stream it chunk by chunk into the target. A
//! file appears under its name only when it is whole.

use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use jiff::Timestamp;
use rustic_core::repofile::{Node, NodeType};
use serde::{Deserialize, Serialize};

use crate::source::mode_from_format;

/// Files in flight at once; hides the latency of a destination far away.
const WORKERS: usize = 4;

/// What a restored entry gets besides its content.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    /// POSIX permission bits.
    pub mode: Option<u32>,
    /// Modification time.
    pub modified: Option<Timestamp>,
}

impl Attributes {
    fn of(node: &Node) -> Self {
        Self {
            mode: node.meta.mode.map(mode_from_format),
            modified: node.meta.mtime,
        }
    }
}

/// Where restored files go. Paths are absolute; methods may be called from several threads.
pub trait Target: Sync {
    /// Names the target in messages.
    fn describe(&self) -> String;

    /// Makes a folder and its parents, where they are missing.
    ///
    /// # Errors
    /// When the target refuses.
    fn folder(&self, path: &Path) -> anyhow::Result<()>;

    /// Writes a file: `fill` gives the content. On an error an older file of that name stays.
    ///
    /// # Errors
    /// When the target refuses or `fill` fails.
    fn file(
        &self,
        path: &Path,
        attributes: &Attributes,
        fill: &mut dyn FnMut(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()>;

    /// Makes a symbolic link; an equal one that is there already is left.
    ///
    /// # Errors
    /// When the target refuses.
    fn link(&self, path: &Path, target: &Path) -> anyhow::Result<()>;

    /// Gives a folder its attributes, after everything in it is written.
    ///
    /// # Errors
    /// When the target refuses.
    fn finish_folder(&self, path: &Path, attributes: &Attributes) -> anyhow::Result<()>;
}

/// A folder of this machine.
#[derive(Debug, Default)]
pub struct Disk;

impl Target for Disk {
    fn describe(&self) -> String {
        "local".to_owned()
    }

    fn folder(&self, path: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(path).with_context(|| format!("make folder {}", path.display()))
    }

    fn file(
        &self,
        path: &Path,
        attributes: &Attributes,
        fill: &mut dyn FnMut(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = path.parent().context("a file lies in a folder")?;
        let mut file = tempfile::NamedTempFile::new_in(folder)
            .with_context(|| format!("create a file in {}", folder.display()))?;
        fill(&mut file)?;
        let finish = || -> std::io::Result<()> {
            if let Some(mode) = attributes.mode {
                fs::set_permissions(file.path(), fs::Permissions::from_mode(mode))?;
            }
            if let Some(time) = attributes.modified {
                file.as_file().set_modified(time.into())?;
            }
            file.as_file().sync_all()
        };
        finish().with_context(|| format!("finish {}", path.display()))?;
        file.persist(path)
            .map_err(|error| error.error)
            .with_context(|| format!("rename to {}", path.display()))?;
        Ok(())
    }

    fn link(&self, path: &Path, target: &Path) -> anyhow::Result<()> {
        if fs::read_link(path).is_ok_and(|now| now == target) {
            return Ok(());
        }
        std::os::unix::fs::symlink(target, path)
            .with_context(|| format!("make link {}", path.display()))
    }

    fn finish_folder(&self, path: &Path, attributes: &Attributes) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let finish = || -> std::io::Result<()> {
            if let Some(mode) = attributes.mode {
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            }
            let folder = fs::File::open(path)?;
            if let Some(time) = attributes.modified {
                folder.set_modified(time.into())?;
            }
            folder.sync_all()
        };
        finish().with_context(|| format!("finish folder {}", path.display()))
    }
}

/// What a restore has written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Folders.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
}

/// Returns where in a snapshot a path of the operator lies.
///
/// `root` is the folder that was backed up; `path` is relative to it (`.` is
/// all of it) or an absolute path inside it.
///
/// # Errors
/// When the path leaves the folder.
pub fn inside(root: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let relative = match path.strip_prefix(root) {
        Ok(relative) => relative,
        Err(_) if path.is_absolute() => {
            bail!("path {} is not inside {}", path.display(), root.display())
        }
        Err(_) => path,
    };
    let mut result = root.to_path_buf();
    for part in relative.components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::CurDir => {}
            _ => bail!(
                "path {} leaves {}: expected a path without '..'",
                path.display(),
                root.display()
            ),
        }
    }
    Ok(result)
}

/// Where the chosen node lands.
///
/// In place: at its own path. Elsewhere: the content of a folder directly in
/// `elsewhere`, a single file in it under its name.
pub fn landing(own: &Path, is_folder: bool, elsewhere: Option<&Path>) -> PathBuf {
    match elsewhere {
        None => own.to_path_buf(),
        Some(base) if is_folder => base.to_path_buf(),
        Some(base) => base.join(own.file_name().unwrap_or_default()),
    }
}

/// A name in a snapshot may not lead out of the target.
fn checked(relative: &Path) -> anyhow::Result<()> {
    if relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        Ok(())
    } else {
        bail!(
            "snapshot names {}, which leaves the target",
            relative.display()
        )
    }
}

/// Streams the content of one file of the snapshot.
pub(crate) trait Content: Sync {
    /// Writes the whole file.
    fn dump(&self, node: &Node, into: &mut dyn Write) -> anyhow::Result<()>;
}

/// Writes `entries`, which come in depth-first order with paths relative to `base`.
///
/// # Errors
/// The first failure; what was written until then stays, each file whole.
pub(crate) fn restore(
    content: &dyn Content,
    entries: impl Iterator<Item = anyhow::Result<(PathBuf, Node)>> + Send,
    base: &Path,
    target: &dyn Target,
) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut folders: Vec<(PathBuf, Attributes)> = Vec::new();
    let files = AtomicU64::new(0);
    let bytes = AtomicU64::new(0);
    let failure: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let failed = || failure.lock().map_or(true, |failure| failure.is_some());
    let (send, receive) = std::sync::mpsc::sync_channel::<(PathBuf, Node)>(WORKERS);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let next = match receive.lock() {
                        Ok(receive) => receive.recv(),
                        Err(_) => return,
                    };
                    let Ok((path, node)) = next else { return };
                    // After a failure the queue is only emptied.
                    if failed() {
                        continue;
                    }
                    match one_file(content, &path, &node, target) {
                        Ok(()) => {
                            files.fetch_add(1, Ordering::Relaxed);
                            bytes.fetch_add(node.meta.size, Ordering::Relaxed);
                        }
                        Err(error) => {
                            if let Ok(mut failure) = failure.lock() {
                                failure.get_or_insert(error);
                            }
                        }
                    }
                }
            });
        }
        // Dropped at the end of this closure, which ends the workers.
        let send = send;
        for entry in entries {
            if failed() {
                break;
            }
            let (relative, node) = entry?;
            checked(&relative)?;
            let path = base.join(&relative);
            match &node.node_type {
                NodeType::Dir => {
                    target.folder(&path)?;
                    report.folders += 1;
                    folders.push((path, Attributes::of(&node)));
                }
                NodeType::File => {
                    let _ = send.send((path, node));
                }
                kind @ NodeType::Symlink { .. } => {
                    target.link(&path, kind.to_link())?;
                    report.links += 1;
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    if let Some(error) = failure.into_inner().unwrap_or_default() {
        return Err(error);
    }
    // Inner folders first: writing into one changes the time of its parent.
    for (path, attributes) in folders.iter().rev() {
        // Folders above the source's root are in the snapshot by name only.
        if attributes.modified.is_some() {
            target.finish_folder(path, attributes)?;
        }
    }
    report.files = files.into_inner();
    report.bytes = bytes.into_inner();
    Ok(report)
}

fn one_file(
    content: &dyn Content,
    path: &Path,
    node: &Node,
    target: &dyn Target,
) -> anyhow::Result<()> {
    let mut written = 0;
    target
        .file(path, &Attributes::of(node), &mut |into| {
            let mut counted = Counted { into, written: 0 };
            content.dump(node, &mut counted)?;
            written = counted.written;
            // Grown or torn content would have been found by its hash; this
            // finds a file whose list of chunks is not whole.
            if written != node.meta.size {
                bail!(
                    "repository gives {written} bytes, expected {}",
                    node.meta.size
                );
            }
            Ok(())
        })
        .with_context(|| format!("restore {} to {}", path.display(), target.describe()))
}

struct Counted<'a> {
    into: &'a mut dyn Write,
    written: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.into.write(buffer)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.into.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_found_relative_and_absolute_and_never_outside() {
        let root = Path::new("/srv/gallery");
        for (path, expected) in [
            (".", "/srv/gallery"),
            ("2024/a.jpg", "/srv/gallery/2024/a.jpg"),
            ("/srv/gallery/2024", "/srv/gallery/2024"),
        ] {
            assert_eq!(
                inside(root, Path::new(path)).unwrap(),
                Path::new(expected),
                "{path}"
            );
        }
        for path in [
            "../etc",
            "/etc/passwd",
            "/srv/gallery/../../etc",
            "a/../../b",
        ] {
            assert!(inside(root, Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn file_lands_in_place_or_in_the_other_folder() {
        let own = Path::new("/srv/a/b.jpg");
        assert_eq!(landing(own, false, None), own);
        assert_eq!(
            landing(own, false, Some(Path::new("/t"))),
            Path::new("/t/b.jpg")
        );
        assert_eq!(landing(own, true, Some(Path::new("/t"))), Path::new("/t"));
    }

    struct Broken;

    impl Content for Broken {
        fn dump(&self, _node: &Node, into: &mut dyn Write) -> anyhow::Result<()> {
            into.write_all(b"half")?;
            bail!("pack is missing")
        }
    }

    #[test]
    fn failed_restore_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("a");
        fs::write(&old, b"old").unwrap();
        let node = Node::new_node("a".as_ref(), NodeType::File, Default::default());
        let entries = std::iter::once(Ok((PathBuf::from("a"), node)));
        let error = restore(&Broken, entries, folder.path(), &Disk).unwrap_err();
        assert!(format!("{error:#}").contains("pack is missing"));
        assert_eq!(fs::read(&old).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn snapshot_cannot_write_outside_of_the_target() {
        let node = Node::new_node("x".as_ref(), NodeType::File, Default::default());
        let entries = std::iter::once(Ok((PathBuf::from("../x"), node)));
        assert!(restore(&Broken, entries, Path::new("/nowhere"), &Disk).is_err());
    }
}
