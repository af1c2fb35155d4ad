//! Read-only images of trees, and system and configuration extensions.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use model::release::is_unit_of;

use super::{unpack, verity};
use crate::lock::{Lock, Part};
use crate::recipe::Component;
use crate::tools::Tools;
use crate::tree::{Content, Kind, Node, Tree};

/// Writes a tree as the EROFS image `name` into `out`. Times and UUID come
/// from the arguments alone.
///
/// # Errors
/// When a file cannot be read or `mkfs.erofs` fails.
pub fn write_image(
    tree: &Tree,
    identity: &str,
    mtime: u32,
    last: &[String],
    tools: &Tools,
    out: &Path,
    name: &str,
) -> anyhow::Result<()> {
    let archive = tempfile::NamedTempFile::new_in(out).context("make the image's archive")?;
    let file = archive.reopen().context("make the image's archive")?;
    tree.write_tar(
        BufWriter::with_capacity(1 << 20, file),
        u64::from(mtime),
        last,
    )?;
    let image = out.join(name);
    File::create(&image).context("create the image")?;
    tools
        .tool("mkfs.erofs")?
        .args(["--quiet", "--tar=f"])
        .arg(format!("-U{}", verity::uuid(&format!("{identity} {name}"))))
        .arg(format!("-T{mtime}"))
        .arg(&image)
        .arg(archive.path())
        .run()
        .with_context(|| format!("make the file system image {name}"))
}

/// Returns one of our programs without its debugging symbols.
///
/// # Errors
/// When it is no program or cannot be read.
pub fn strip(program: &Path, tools: &Tools, out: &Path) -> anyhow::Result<Vec<u8>> {
    let work = tempfile::tempdir_in(out).context("make a folder to work in")?;
    let stripped = work.path().join("stripped");
    tools
        .tool("strip")?
        .args(["--strip-all", "-o"])
        .arg(&stripped)
        .arg(program)
        .run()
        .with_context(|| format!("strip {}", program.display()))?;
    std::fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))
}

/// Puts one of our programs, without its debugging symbols, into `/usr/bin`.
///
/// # Errors
/// When it is no program or cannot be read.
pub fn add_program(
    tree: &mut Tree,
    name: &str,
    program: &Path,
    tools: &Tools,
    out: &Path,
) -> anyhow::Result<()> {
    let content = Content::Bytes(strip(program, tools, out)?.into());
    tree.put(
        &format!("usr/bin/{name}"),
        Node::of_root(0o755, Kind::File(content)),
    );
    Ok(())
}

/// Writes the paths of a tree's files and links to `paths` in `out`, a line for
/// each: the build compares those of components with those of the root.
///
/// # Errors
/// When it cannot be written.
pub fn write_paths(tree: &Tree, out: &Path) -> anyhow::Result<()> {
    let paths: String = tree
        .iter()
        .filter(|(_, node)| !matches!(node.kind, Kind::Directory))
        .map(|(path, _)| format!("{path}\n"))
        .collect();
    std::fs::write(out.join("paths"), paths).context("write the list of paths")
}

/// Where a component's parts are.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Our programs by name.
    pub binaries: &'a BTreeMap<String, PathBuf>,
    /// The lock.
    pub lock: &'a Lock,
    /// The folder of downloaded packages.
    pub packages: &'a Path,
}

/// Composes a component's system extension with its hash tree as `NAME.raw` into
/// `out`, and writes the paths of its files to `paths`, a line for each.
///
/// # Errors
/// When an input is missing, or the component has files outside `/usr`.
pub fn component(
    name: &str,
    component: &Component,
    identity: &str,
    mtime: u32,
    parts: Parts<'_>,
    tools: &Tools,
    out: &Path,
) -> anyhow::Result<()> {
    let work = tempfile::tempdir_in(out).context("make a folder to work in")?;
    let mut tree = Tree::new();
    for package in parts.lock.part(Part::Component(name.to_owned())) {
        unpack::into_tree(parts.packages, package, work.path(), &mut tree)?;
    }
    // Of packages an extension can bring what lies below /usr, without
    // documentation, as the root.
    tree.remove_matching(&["**".to_owned()], &["usr".to_owned(), "usr/**".to_owned()]);
    for path in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/lintian",
    ] {
        tree.remove(path);
    }
    for overlay in &component.overlays {
        tree.add_folder(overlay)?;
    }
    for binary in &component.binaries {
        let program = parts
            .binaries
            .get(binary)
            .with_context(|| format!("program {binary}: not given"))?;
        add_program(&mut tree, binary, program, tools, out)?;
    }
    if let Some((path, _)) = tree
        .iter()
        .find(|(path, _)| *path != "usr" && !path.starts_with("usr/"))
    {
        anyhow::bail!("component {name}: /{path}: expected files below /usr only");
    }
    write_paths(&tree, out)?;
    let units = "usr/lib/systemd/system/";
    if let Some(unit) = tree
        .iter()
        .filter_map(|(path, _)| path.strip_prefix(units))
        .find(|unit| !unit.contains('/') && !unit.ends_with(".d") && !is_unit_of(unit, name))
    {
        // By their names the updater finds what to restart when it replaces the component.
        anyhow::bail!(
            "component {name}: unit {unit}: expected a name that begins with leap-{name}, \
             as in leap-{name}.service"
        );
    }
    // systemd merges the extension only where these match the host's os-release.
    tree.put_file(
        &format!("usr/lib/extension-release.d/extension-release.leap-{name}"),
        0o644,
        format!(
            "ID={identity}\nSYSEXT_LEVEL=1\nSYSEXT_SCOPE=system\nSYSEXT_ID=leap-{name}\nSYSEXT_VERSION_ID={}\n",
            component.version
        )
        .into_bytes(),
    );
    // Not the root's time: by the time of its unit folders the service manager
    // notices that there are new units, without a reload that costs seconds.
    let mtime = mtime + 1;
    let file = format!("{name}.raw");
    let identity = format!("{identity} component");
    write_image(&tree, &identity, mtime, &[], tools, out, &file)?;
    verity::append(&format!("{identity} {name}"), &out.join(file), tools)
}

/// The configuration extension's name on a unit, `leap-customer.raw`.
pub const CUSTOMER_EXTENSION: &str = "leap-customer";

/// Composes a customer's layer from a folder as `layer.raw` into `out`.
/// The folder's files appear below `/etc`.
///
/// # Errors
/// When the folder cannot be read.
pub fn layer(
    files: &Path,
    identity: &str,
    mtime: u32,
    tools: &Tools,
    out: &Path,
) -> anyhow::Result<()> {
    let mut inner = Tree::new();
    inner.add_folder(files)?;
    let mut tree = Tree::new();
    tree.put_directory("etc");
    for (path, node) in inner.iter() {
        tree.put(&format!("etc/{path}"), node.clone());
    }
    tree.put_file(
        &format!("etc/extension-release.d/extension-release.{CUSTOMER_EXTENSION}"),
        0o644,
        format!("ID={identity}\nCONFEXT_LEVEL=1\n").into_bytes(),
    );
    write_image(
        &tree,
        &format!("{identity} layer"),
        mtime,
        &[],
        tools,
        out,
        "layer.raw",
    )
}
