//! Initrds, composed from programs, modules and overlay folders.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::Context as _;
use model::Architecture;

use super::{extension, kernel};
use crate::recipe::Initrd;
use crate::tools::{self, Tools};
use crate::tree::{self, Kind, Node, Tree};

/// Our own program that becomes `/init`, and whom it trusts.
#[derive(Debug, Clone, Copy)]
pub struct Init<'a> {
    /// The program, on the build host.
    pub program: &'a Path,
    /// The trust root's bytes.
    pub trust_root: &'a [u8],
}

/// For what the initrd is.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// CPU architecture.
    pub architecture: Architecture,
    /// The time that all files carry, in Unix seconds.
    pub mtime: u32,
}

/// The best level gains a tenth of the size for seven times the time.
const LEVEL: i32 = 12;

/// Composes an initrd as `initrd` into `out`.
///
/// # Errors
/// When a program, a library or a module is not there.
pub fn compose(
    initrd: &Initrd,
    init: Option<Init<'_>>,
    modules: &Path,
    tools: &Tools,
    target: &Target,
    out: &Path,
) -> anyhow::Result<()> {
    let Target {
        architecture,
        mtime,
    } = *target;
    let mut tree = Tree::new();
    for path in [
        "dev", "proc", "sys", "run", "tmp", "etc", "usr/bin", "sysroot",
    ] {
        tree.put_directory(path);
    }
    tree.put_link("bin", "usr/bin");
    // No /sbin: the kernel's own calls of /sbin/modprobe, for cryptography that
    // is built in, would cost seconds before anything of ours runs.
    tree.put_link("usr/sbin", "bin");
    tree.put_link("lib", "usr/lib");
    for program in &initrd.programs {
        tools::copy_program(tools.tree(), &mut tree, program, architecture)?;
    }
    add_modules(initrd, modules, tools, &mut tree, out)?;
    for overlay in &initrd.overlays {
        tree.add_folder(overlay)?;
    }
    if let Some(init) = init {
        let bytes = extension::strip(init.program, tools, out)?;
        tools::copy_libraries(tools.tree(), &mut tree, &bytes, architecture)?;
        let content = tree::Content::Bytes(bytes.into());
        tree.put("init", Node::of_root(0o755, Kind::File(content)));
        tree.put_file("etc/leapserv/trust-root.json", 0o644, init.trust_root);
    }
    let load: String = initrd.load.iter().map(|name| format!("{name}\n")).collect();
    tree.put_file("etc/leapserv/modules", 0o644, load.into_bytes());
    anyhow::ensure!(
        tree.get("init").is_some(),
        "initrd: has no /init; name a program with init, or put one into an overlay"
    );

    let file = File::create(out.join("initrd")).context("create the initrd")?;
    let mut to = zstd::Encoder::new(BufWriter::new(file), LEVEL).context("compress the initrd")?;
    // The kernel refuses frames whose window is larger than 8 MiB.
    to.window_log(23).context("compress the initrd")?;
    let to = tree.write_cpio(to, mtime)?;
    let buffer = to.finish().context("compress the initrd")?;
    buffer.into_inner().context("write the initrd")?;
    Ok(())
}

/// Adds the modules that the initrd names with their indexes.
fn add_modules(
    initrd: &Initrd,
    modules: &Path,
    tools: &Tools,
    tree: &mut Tree,
    out: &Path,
) -> anyhow::Result<()> {
    let release =
        std::fs::read_to_string(modules.join("release")).context("read the kernel's version")?;
    let folder = format!("usr/lib/modules/{release}");
    let all = modules.join("modules").join(&folder);
    let read = |name: &str| {
        std::fs::read_to_string(all.join(name)).with_context(|| format!("read {name}"))
    };
    let dependencies = kernel::read_dependencies(&all)?;
    let chosen = kernel::choose(&initrd.modules, &dependencies, &read("modules.builtin")?)
        .map_err(|unknown| anyhow::anyhow!("module {:?}: not there", unknown.pattern))?;
    let base = out.join("modules");
    let place = base.join(&folder);
    for path in chosen.iter().map(String::as_str).chain([
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ]) {
        let to = place.join(path);
        std::fs::create_dir_all(to.parent().context("a module has a folder")?)
            .context("copy the modules")?;
        std::fs::copy(all.join(path), &to).with_context(|| format!("copy {path}"))?;
    }
    std::os::unix::fs::symlink("usr/lib", base.join("lib")).context("copy the modules")?;
    tools
        .tool("depmod")?
        .arg("--basedir")
        .arg(&base)
        .arg(&release)
        .run()
        .context("index the modules")?;
    // The tree keeps the paths and reads the files when it is written, so
    // this folder is removed by the caller along with the work folder.
    let mut copied = Tree::new();
    copied.add_folder(&base)?;
    for (path, node) in copied.iter() {
        let needless = [
            "modules.builtin.modinfo",
            "modules.order",
            "modules.symbols",
            "modules.symbols.bin",
            "modules.devname",
            "modules.builtin.alias.bin",
            "modules.dep",
            "modules.alias",
            "modules.builtin",
        ];
        let name = path.rsplit('/').next().unwrap_or(path);
        if path != "lib" && !needless.contains(&name) {
            tree.put(path, node.clone());
        }
    }
    Ok(())
}
