//! Where things lie on a unit, and what the running system says of itself.
//!
//! All paths hang below one root, so that a folder can stand in for a unit.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use edge::runner::Tool;
use model::api::Enrolment;
use model::{Digest, ReleaseVersion, TrustRoot};
use serde::de::DeserializeOwned;
use slots::esp::Mounted;

/// A unit's file system.
#[derive(Debug, Clone)]
pub struct Site {
    root: PathBuf,
}

impl Site {
    /// The unit below `root`; `/` is the running one.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Whether this is the running system and not a folder that stands in for one.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Returns the place of an absolute path.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns a file of the updater's own durable state.
    pub fn state(&self, name: &str) -> PathBuf {
        self.at("/var/lib/leapserv/updater").join(name)
    }

    /// Returns a file of the configuration's durable state.
    pub fn configuration(&self, name: &str) -> PathBuf {
        self.at("/var/lib/leapserv/configuration").join(name)
    }

    /// Returns a file that is gone after a restart.
    pub fn run(&self, name: &str) -> PathBuf {
        self.at("/run/leapserv").join(name)
    }

    /// The unit's backup secrets.
    pub fn secrets(&self) -> PathBuf {
        self.at("/var/lib/leapserv/secrets/backup.json")
    }

    /// What the backup engine is told.
    pub fn backup_config(&self) -> PathBuf {
        self.at("/var/lib/leapserv/backup/config.json")
    }

    /// The mounted EFI system partition.
    pub fn esp(&self) -> Mounted {
        Mounted::new(self.at("/efi"))
    }

    /// Returns the kernel's name of the device that is mounted at a path.
    pub fn mounted_device(&self, mount_point: &str) -> Option<String> {
        let text = fs::read_to_string(self.at("/proc/self/mountinfo")).ok()?;
        mounted_device(&text, mount_point).map(str::to_owned)
    }

    /// A tool of the system.
    pub fn tool(&self, name: &str) -> Tool {
        if self.is_live() {
            Tool::new(name)
        } else {
            Tool::new(self.at("/usr/bin").join(name)).env("LEAP_ROOT", &self.root)
        }
    }

    /// The backup engine, whose paths hang below the same root.
    pub fn backup_tool(&self) -> Tool {
        let tool = self.tool("leap-backup");
        if self.is_live() {
            tool
        } else {
            tool.arg("--root").arg(&self.root)
        }
    }

    /// Whether the backup engine is there.
    pub fn has_backup_tool(&self) -> bool {
        self.at("/usr/bin/leap-backup").exists()
    }

    /// Reads whom to believe.
    ///
    /// # Errors
    /// The file of the image is missing or malformed.
    pub fn trust_root(&self) -> Result<TrustRoot> {
        read_json(&self.at("/usr/lib/leapserv/trust-root.json"))?
            .ok_or_else(|| anyhow!("trust root: missing, expected it in the image"))
    }

    /// Reads who this unit is.
    ///
    /// # Errors
    /// The unit was not born, or its papers are malformed.
    pub fn enrolment(&self) -> Result<Enrolment> {
        let path = self.identity("enrolment.json");
        read_json(&path)?.ok_or_else(|| {
            edge::exit::hint(
                anyhow!("{}: missing", path.display()),
                "only a unit that was born by leap-installer has an identity",
            )
        })
    }

    /// Returns where the machine's TPM is, where it has one.
    pub fn tpm(&self) -> PathBuf {
        self.at("/dev/tpmrm0")
    }

    /// Returns a file of the unit's identity.
    pub fn identity(&self, name: &str) -> PathBuf {
        self.at("/var/lib/leapserv/identity").join(name)
    }

    /// Returns the release that runs.
    ///
    /// # Errors
    /// `os-release` has no readable `IMAGE_VERSION`.
    pub fn release(&self) -> Result<ReleaseVersion> {
        let path = self.at("/usr/lib/os-release");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        os_release_version(&text)
            .ok_or_else(|| anyhow!("{}: no IMAGE_VERSION", path.display()))?
            .parse()
            .with_context(|| path.display().to_string())
    }

    /// Returns the root hash that runs.
    ///
    /// # Errors
    /// The kernel's command line has none.
    pub fn root_hash(&self) -> Result<Digest> {
        let path = self.at("/proc/cmdline");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.split_whitespace()
            .find_map(|word| word.strip_prefix("roothash="))
            .ok_or_else(|| anyhow!("kernel command line: no roothash"))?
            .parse()
            .context("kernel command line: roothash")
    }

    /// Returns the text that is new at each start of the system.
    ///
    /// # Errors
    /// The kernel does not tell it.
    pub fn boot_id(&self) -> Result<String> {
        self.line("/proc/sys/kernel/random/boot_id")
    }

    /// Returns the host name now.
    ///
    /// # Errors
    /// The kernel does not tell it.
    pub fn hostname(&self) -> Result<String> {
        self.line("/proc/sys/kernel/hostname")
    }

    fn line(&self, path: &str) -> Result<String> {
        let path = self.at(path);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// The fields are those of `proc_pid_mountinfo(5)`.
fn mounted_device<'a>(mountinfo: &'a str, mount_point: &str) -> Option<&'a str> {
    // The last one lies above the others.
    mountinfo.lines().rev().find_map(|line| {
        let (place, device) = line.split_once(" - ")?;
        let here = place.split(' ').nth(4) == Some(mount_point);
        let source = device.split(' ').nth(1)?;
        here.then(|| source.strip_prefix("/dev/")).flatten()
    })
}

fn os_release_version(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.strip_prefix("IMAGE_VERSION="))
        .map(|value| value.trim().trim_matches('"'))
}

/// Reads a file of JSON; `None` when it is not there.
///
/// # Errors
/// The file is there and cannot be read, or is malformed.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("read {}", path.display())),
    }
}

/// Reads a file of our own JSON; a damaged one counts as missing, loudly.
///
/// Only for state whose loss costs work and no safety.
pub fn read_state<T: DeserializeOwned>(path: &Path) -> Option<T> {
    read_json(path).unwrap_or_else(|problem| {
        tracing::error!(
            problem = format!("{problem:#}"),
            "state is damaged, begun anew"
        );
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_with_and_without_quotes() {
        let text = "ID=leapserv\nIMAGE_VERSION=\"2026.11.1\"\n";
        assert_eq!(os_release_version(text), Some("2026.11.1"));
        assert_eq!(
            os_release_version("IMAGE_VERSION=2026.11.1"),
            Some("2026.11.1")
        );
        assert_eq!(os_release_version("VERSION=1"), None);
    }

    #[test]
    fn the_device_of_a_mount_is_read() {
        let text = "22 1 253:0 / / ro,relatime - erofs /dev/mapper/root ro\n\
                    24 22 8:6 / /var rw shared:1 - ext4 /dev/md0 rw\n\
                    25 22 8:17 / /efi rw - vfat /dev/sdb1 rw\n\
                    26 22 0:20 / /run rw - tmpfs tmpfs rw\n";
        assert_eq!(mounted_device(text, "/efi"), Some("sdb1"));
        assert_eq!(mounted_device(text, "/run"), None);
        assert_eq!(mounted_device(text, "/ef"), None);
    }

    #[test]
    fn absolute_paths_stay_below_the_root() {
        let site = Site::new("/x");
        assert_eq!(site.at("/efi"), Path::new("/x/efi"));
        assert_eq!(Site::new("/").at("/efi"), Path::new("/efi"));
    }
}
