//! Read-only images of trees, and system and configuration extensions.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::verity;
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

/// Composes a component's system extension as `NAME.raw` into `out`.
///
/// # Errors
/// When an input is missing, or the component has files outside `/usr`.
pub fn component(
    name: &str,
    component: &Component,
    identity: &str,
    mtime: u32,
    binaries: &BTreeMap<String, PathBuf>,
    tools: &Tools,
    out: &Path,
) -> anyhow::Result<()> {
    let mut tree = Tree::new();
    for overlay in &component.overlays {
        tree.add_folder(overlay)?;
    }
    for binary in &component.binaries {
        let program = binaries
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
    write_image(
        &tree,
        &format!("{identity} component"),
        mtime,
        &[],
        tools,
        out,
        &format!("{name}.raw"),
    )
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
