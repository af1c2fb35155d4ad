//! Unified kernel images from finished steps.

use std::path::Path;

use anyhow::Context as _;
use model::Architecture;

use crate::tools::Tools;
use crate::uki::{Section, assemble};

/// What goes into a unified kernel image.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The kernel step's folder.
    pub kernel: &'a Path,
    /// The initrd.
    pub initrd: &'a Path,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The text of `os-release`: systemd-boot sorts and names entries by it.
    pub os_release: &'a str,
    /// CPU architecture.
    pub architecture: Architecture,
}

/// Joins a unified kernel image as `uki.efi` into `out`.
///
/// # Errors
/// When an input cannot be read or does not fit.
pub fn join(inputs: &Inputs<'_>, tools: &Tools, out: &Path) -> anyhow::Result<()> {
    let stub = format!(
        "usr/lib/systemd/boot/efi/linux{}.efi.stub",
        firmware_name(inputs.architecture)
    );
    let stub = tools.tree().read(&stub)?;
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let linux = read(&inputs.kernel.join("vmlinuz"))?;
    let release = read(&inputs.kernel.join("release"))?;
    let initrd = read(inputs.initrd)?;
    let section = |name, content| Section { name, content };
    let image = assemble(
        &stub,
        &[
            section(".osrel", inputs.os_release.as_bytes()),
            section(".cmdline", inputs.command_line.as_bytes()),
            section(".uname", &release),
            section(".initrd", &initrd),
            section(".linux", &linux),
        ],
    )?;
    std::fs::write(out.join("uki.efi"), image).context("write the unified kernel image")
}

/// UEFI's word for an architecture, as in `BOOTX64.EFI`.
pub fn firmware_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "x64",
        Architecture::Arm64 => "aa64",
    }
}
