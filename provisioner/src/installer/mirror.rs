//! The data of a mirrored system: one device over the data partitions of both disks.
//!
//! It is Linux's own RAID 1, made by `mdadm`, with its record at the start of each
//! partition (version 1.2), so that nothing takes one half for a file system. The slots
//! need no such thing: they are written to both disks, and checked by what was signed.

use std::path::Path;

use anyhow::Result;
use edge::runner::Tool;
use slots::Part;

use super::install::PATH;
use super::plan::PlannedDisk;

/// The device over the data partitions.
pub const DEVICE: &str = "/dev/md0";

/// Joins the data partitions of disks whose tables have just been written.
///
/// # Errors
/// The kernel or `mdadm` refused.
pub fn create(disks: &[PlannedDisk]) -> Result<()> {
    // A try before this one may have left it.
    if Path::new(DEVICE).exists() {
        stop()?;
    }
    tool("modprobe").args(["-b", "raid1"]).run()?;
    for disk in disks {
        tool("busybox")
            .args(["blockdev", "--rereadpt", &disk.path])
            .run()?;
    }
    let halves = disks.iter().map(|disk| partition(&disk.path, Part::Data));
    tool("mdadm")
        .args(["--create", DEVICE, "--run", "--quiet"])
        .args(["--level=1", "--metadata=1.2", "--bitmap=internal"])
        .args(["--homehost=any", "--name=data"])
        // What differs was never written, so nobody reads it.
        .arg("--assume-clean")
        .arg(format!("--raid-devices={}", disks.len()))
        .args(halves)
        .run()
}

/// Takes the device apart again.
///
/// # Errors
/// Somebody uses it.
pub fn stop() -> Result<()> {
    tool("mdadm").args(["--quiet", "--stop", DEVICE]).run()
}

fn tool(name: &str) -> Tool {
    // Nobody but the kernel makes device nodes here.
    Tool::new(name).env("PATH", PATH).env("MDADM_NO_UDEV", "1")
}

/// Returns the kernel's name of a partition.
fn partition(disk: &str, part: Part) -> String {
    let between = match disk.ends_with(|last: char| last.is_ascii_digit()) {
        true => "p",
        false => "",
    };
    format!("{disk}{between}{}", part.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_the_kernels_names() {
        assert_eq!(partition("/dev/sda", Part::Data), "/dev/sda6");
        assert_eq!(partition("/dev/nvme0n1", Part::Esp), "/dev/nvme0n1p1");
    }
}
