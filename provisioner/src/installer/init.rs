//! What the first process of a machine has to do that no other does.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use edge::runner::Tool;
use jiff::Timestamp;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::time::{ClockId, Timespec, clock_settime};

use super::console::Console;
use super::facts;
use super::hotplug;
use super::install::PATH;

/// Modules that the image wants to be loaded, one a line.
const MODULES: &str = "/etc/leapserv/modules";
/// How long disks may take to appear.
const DISKS: Duration = Duration::from_secs(10);

/// Mounts what the kernel offers.
///
/// # Errors
/// Nothing works without `/proc`, `/sys`, `/dev` and `/run`.
pub fn mount_all() -> Result<()> {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let device = MountFlags::NOSUID;
    for (kind, place, flags) in [
        ("proc", "/proc", plain),
        ("sysfs", "/sys", plain),
        ("devtmpfs", "/dev", device),
        ("tmpfs", "/run", plain),
    ] {
        mount_one(kind, place, flags)?;
    }
    // Only what matters may stand between our lines on a serial console.
    drop(fs::write("/proc/sys/kernel/printk", "3"));
    fs::create_dir_all("/run/leapserv").context("make /run/leapserv")
}

fn mount_one(kind: &str, place: &str, flags: MountFlags) -> Result<()> {
    if is_mounted(place) {
        return Ok(());
    }
    drop(fs::create_dir_all(place));
    mount(kind, place, kind, flags, None).with_context(|| format!("mount {kind} on {place}"))
}

fn is_mounted(place: &str) -> bool {
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(place))
    })
}

/// Mounts the firmware's variables, for which a module of the list has to be loaded first.
/// They are not there on a machine that was not started by UEFI.
pub fn mount_variables() {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    if let Err(problem) = mount_one("efivarfs", "/sys/firmware/efi/efivars", plain) {
        tracing::debug!(
            problem = format!("{problem:#}"),
            "no variables of the firmware"
        );
    }
}

/// Loads the drivers: those of the image's list, then what the hardware asks for.
pub fn load_modules(console: &Console) {
    let listed = fs::read_to_string(MODULES).unwrap_or_default();
    let listed: Vec<&str> = listed
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    // Buses show devices only after their drivers are there, and some take seconds.
    let own = console.clone();
    if let Err(problem) = hotplug::follow(move |aliases| modprobe(&own, aliases)) {
        console.line(&format!("devices that appear later stay unseen: {problem}"));
    }
    modprobe(console, &listed);
    let there = aliases(Path::new("/sys/devices"));
    let there: Vec<&str> = there.iter().map(String::as_str).collect();
    modprobe(console, &there);
}

fn modprobe(console: &Console, names: &[&str]) {
    if names.is_empty() {
        return;
    }
    let run = Tool::new("modprobe")
        .args(["-a", "-q"])
        .args(names)
        .env("PATH", PATH)
        .run();
    // Some of the names have no driver, which is no error for a machine that
    // does not need them; a machine that does says so by having no disk.
    if let Err(problem) = run {
        tracing::debug!(problem = format!("{problem:#}"), "modprobe");
        if edge::exit::Failure::from(problem).kind() == edge::exit::Kind::Environment {
            console.line("modprobe is missing");
        }
    }
}

fn aliases(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            // Links lead in circles here.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            } else if entry.file_name() == "modalias"
                && let Ok(text) = fs::read_to_string(entry.path())
            {
                found.extend(Some(text.trim().to_owned()).filter(|alias| !alias.is_empty()));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Waits until a disk is there, within bounds.
pub async fn wait_for_disk() {
    let began = Instant::now();
    while !facts::any_disk(Path::new("/")) && began.elapsed() < DISKS {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sets the system's clock.
///
/// # Errors
/// The kernel refuses.
pub fn set_clock(now: Timestamp) -> Result<()> {
    let time = Timespec {
        tv_sec: now.as_second(),
        tv_nsec: 0,
    };
    clock_settime(ClockId::Realtime, time).context("set the clock")
}

/// Restarts the machine.
///
/// # Errors
/// The kernel refuses.
pub fn restart() -> Result<()> {
    rustix::fs::sync();
    reboot(RebootCommand::Restart).context("restart")
}
