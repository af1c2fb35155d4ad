//! How QEMU runs a machine's processor: by KVM where it works, else by translation.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use edge::runner::Tool;

use super::log::LogTail;
use super::machine::ovmf;
use super::process::Recipe;

/// What runs a machine's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// Translation by QEMU: about ten times slower, and works everywhere.
    Tcg,
}

/// The firmware's first line comes within a second under KVM.
const TRIAL: Duration = Duration::from_secs(8);

impl Accelerator {
    /// Chooses by trying: a `/dev/kvm` that opens may still crash every guest, as in
    /// some nested virtual machines. `folder` receives the trial's log.
    ///
    /// # Errors
    /// The firmware is missing, or QEMU cannot be started at all.
    pub async fn detect(folder: &Path) -> anyhow::Result<Self> {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        if kvm.is_err() {
            return Ok(Self::Tcg);
        }
        let serial = folder.join("kvm-trial.serial.log");
        let log = folder.join("kvm-trial.log");
        let _ = std::fs::remove_file(&serial);
        let firmware = ovmf()?;
        let tool = Tool::new("qemu-system-x86_64")
            .args([
                "-machine", "q35", "-m", "128", "-accel", "kvm", "-cpu", "host",
            ])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-net",
                "none",
                "-snapshot",
            ])
            .arg("-drive")
            .arg(format!(
                "if=pflash,unit=0,format=raw,readonly=on,file={}",
                firmware.code.display()
            ))
            .arg("-drive")
            .arg(format!(
                "if=pflash,unit=1,format=raw,file={}",
                firmware.variables.display()
            ))
            .arg("-serial")
            .arg(format!("file:{}", serial.display()));
        let mut trial = Recipe::new("the trial of KVM", tool, &log).start()?;
        let seen = LogTail::from_start(&serial)
            .wait_for(&["BdsDxe"], TRIAL, || trial.alive())
            .await;
        trial.kill().await?;
        Ok(match seen {
            Ok(_) => Self::Kvm,
            Err(error) => {
                tracing::debug!(%error, "KVM is there and does not work");
                Self::Tcg
            }
        })
    }

    /// QEMU's arguments.
    #[must_use]
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Of what `max` offers, much is slower to translate than to do without.
            Self::Tcg => [
                "-accel",
                // With the usual gigabyte of translated code, what an earlier start left
                // makes the firmware of the next one minutes slow: every page that it
                // clears is looked up in all of it.
                "tcg,thread=multi,tb-size=128",
                "-cpu",
                "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes",
            ],
        }
    }

    /// The word for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "translation (no KVM that works)",
        }
    }
}
