//! Secure Boot from setup mode to refusal, in firmware that enforces it.
//!
//! A release is built and signed with keys of this test, its disk gets these keys as the
//! installer places them, and the firmware is a fresh one. Then: the boot loader enrols,
//! the machine comes up with signatures enforced, two disks with one altered bit of kernel
//! or root do not come up, and one with an altered bit of a component comes up without it.
//!
//! The programs come from `LEAP_BIN_DIR`, which the Makefile sets after building them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::lab::disk::{DiskImage, flip_bit};
use e2e::lab::log::LogTail;
use e2e::lab::process::{Process, Recipe};
use edge::runner::Tool;
use model::trust::RoleKeys;
use model::{Role, Signer, TrustRoot};
use rustix::process::{Pid, Signal, kill_process_group};

/// For one condition on the serial line; without KVM a boot takes half a minute.
const PATIENCE: Duration = Duration::from_secs(240);
const RELEASE: &str = "2026.11.1";
/// The kernel's own first words: it asks the firmware.
const ENFORCED: &str = "UEFI Secure Boot is enabled";
/// systemd's first words, from the root behind dm-verity.
const UP: &str = "Welcome to LeapServ";

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("the package lies in the workspace")
        .to_path_buf()
}

fn programs() -> PathBuf {
    std::env::var_os("LEAP_BIN_DIR").map_or_else(|| root().join("target/release"), PathBuf::from)
}

/// A folder of this test with everything that it makes.
struct Stage(PathBuf);

impl Stage {
    fn place(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn leap_image(&self) -> Tool {
        Tool::new(programs().join("leap-image")).current_dir(root())
    }

    /// Builds a signed release and composes a customer's disk of it.
    async fn build(&self) -> anyhow::Result<()> {
        let signer = |seed| Signer::from_seed(&[seed; 32]);
        let roles = [
            Role::Root,
            Role::Targets,
            Role::Configuration,
            Role::Timestamp,
        ];
        let roles = roles.into_iter().zip(1..);
        let trust = TrustRoot {
            version: 1,
            roles: roles
                .clone()
                .map(|(role, seed)| {
                    let keys = vec![signer(seed).public()];
                    (role, RoleKeys { keys, threshold: 1 })
                })
                .collect(),
            recovery: Vec::new(),
        };
        let write = |name: &str, text: &[u8]| std::fs::write(self.place(name), text);
        write("trust-root.json", &serde_json::to_vec(&trust)?)?;
        write("targets.pem", signer(2).to_pem().as_bytes())?;
        write("configuration.pem", signer(3).to_pem().as_bytes())?;
        std::fs::create_dir(self.place("etc"))?;
        std::fs::write(self.place("etc/motd"), "Secure Boot\n")?;

        let recipe = root().join("image/recipes/leapserv.toml");
        let cache = root().join(".cache/image");
        let keys = self.leap_image().args(["keys", "--out"]);
        keys.arg(self.place("keys")).run_async().await?;
        let lock = self.leap_image().arg("lock").arg(&recipe);
        lock.arg("--lock")
            .arg(self.place("leapserv.lock"))
            .arg("--cache")
            .arg(&cache)
            .run_async()
            .await?;
        let build = self.leap_image().arg("build").arg(&recipe);
        build
            .args(["--version", RELEASE])
            .arg("--lock")
            .arg(self.place("leapserv.lock"))
            .arg("--bin-dir")
            .arg(programs())
            .arg("--out")
            .arg(self.place("releases"))
            .arg("--cache")
            .arg(&cache)
            .arg("--key")
            .arg(self.place("targets.pem"))
            .arg("--trust-root")
            .arg(self.place("trust-root.json"))
            .arg("--secure-boot")
            .arg(self.place("keys"))
            .run_async()
            .await?;
        let layer = self.leap_image().args(["layer", "--customer", "motivatit"]);
        layer
            .arg("--files")
            .arg(self.place("etc"))
            .arg("--out")
            .arg(self.place("layer"))
            .arg("--recipe")
            .arg(&recipe)
            .arg("--cache")
            .arg(&cache)
            .arg("--key")
            .arg(self.place("configuration.pem"))
            .run_async()
            .await?;
        let compose = self.leap_image().arg("compose").arg(self.release());
        compose
            .arg("--layer")
            .arg(self.place("layer"))
            .arg("--trust-root")
            .arg(self.place("trust-root.json"))
            .arg("--recipe")
            .arg(&recipe)
            .arg("--cache")
            .arg(&cache)
            .args(["--size", "12G", "--out"])
            .arg(self.place("disk.img"))
            .run_async()
            .await
    }

    fn release(&self) -> PathBuf {
        self.place("releases").join(RELEASE)
    }

    /// Puts the keys of the release onto a disk, where the installer puts them at birth.
    async fn place_keys(&self, disk: &Path) -> anyhow::Result<()> {
        let conf = self.place("loader.conf");
        std::fs::write(&conf, "timeout 0\neditor no\nsecure-boot-enroll force\n")?;
        let folders = ["::/loader/keys", "::/loader/keys/auto"];
        on_esp("mmd", disk)?.args(folders).run_async().await?;
        let keys = ["PK", "KEK", "db"].map(|name| {
            let name = format!("{name}.auth");
            self.release().join("keys").join(name)
        });
        let copy = on_esp("mcopy", disk)?
            .args(keys)
            .arg("::/loader/keys/auto/");
        copy.run_async().await?;
        let copy = on_esp("mcopy", disk)?.arg("-o").arg(conf);
        let copy = copy.arg("::/loader/loader.conf");
        copy.run_async().await
    }

    /// Copies the disk, sparse as it is.
    async fn copy(&self, name: &str) -> anyhow::Result<PathBuf> {
        let copy = self.place(name);
        Tool::new("cp")
            .args(["--sparse=always", "--reflink=auto", "--"])
            .args([&self.place("disk.img"), &copy])
            .run_async()
            .await?;
        Ok(copy)
    }

    /// Powers a machine with this disk on: its firmware has the same variables each time.
    fn power_on(&self, disk: &Path) -> anyhow::Result<Machine> {
        let log = disk.with_extension("serial.log");
        let boot = self.leap_image().arg("boot").arg(disk);
        let boot = boot
            .args(["--secure-boot", "--tpm", "--snapshot", "--vars"])
            .arg(self.place("variables.fd"));
        let process = Recipe::new("leap-image boot", boot, &log).start()?;
        Ok(Machine {
            process,
            console: LogTail::from_start(&log),
        })
    }
}

/// A tool of mtools for a disk's system partition.
fn on_esp(tool: &str, disk: &Path) -> anyhow::Result<Tool> {
    let esp = DiskImage::open(disk)?;
    let offset = esp.partition("esp")?.offset;
    let image = format!("{}@@{offset}", disk.display());
    Ok(Tool::new(tool).arg("-i").arg(image))
}

/// A machine that is on. Dropped, it is gone, with all that belongs to it.
struct Machine {
    process: Process,
    console: LogTail,
}

impl Machine {
    /// Waits for the first of these on the serial line, and returns it.
    async fn says<'t>(&mut self, texts: &[&'t str]) -> anyhow::Result<&'t str> {
        let Self { process, console } = self;
        let found = console.wait_for(texts, PATIENCE, || process.alive()).await;
        Ok(texts[found?])
    }

    /// Ends it as Ctrl-C does.
    async fn off(mut self) -> anyhow::Result<()> {
        let ended = self.process.stop(Duration::from_secs(20)).await?;
        assert!(ended.success(), "{ended}");
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[tokio::test]
async fn firmware_that_enrolled_our_keys_starts_our_release_and_no_altered_one()
-> anyhow::Result<()> {
    let stage = Stage(root().join("build/e2e-secure-boot"));
    let _ = std::fs::remove_dir_all(&stage.0);
    std::fs::create_dir_all(&stage.0)?;
    stage.build().await?;
    let disk = stage.place("disk.img");
    stage.place_keys(&disk).await?;

    // Setup mode: the keys are enrolled, and the next start is already a checked one.
    let mut machine = stage.power_on(&disk)?;
    let enrolled = "Secure Boot keys successfully enrolled";
    assert_eq!(machine.says(&[enrolled, UP]).await?, enrolled);
    assert_eq!(machine.says(&[ENFORCED, UP]).await?, ENFORCED);
    machine.says(&[UP]).await?;
    // In service: the kernel, locked down by Secure Boot, has loaded all it needs.
    machine
        .says(&["Started leap-updater.service", "leapserv login:"])
        .await?;
    machine.off().await?;

    // One bit of the kernel's section.
    let altered = stage.copy("altered-kernel.img").await?;
    let entry = format!("::/EFI/Linux/leapserv_{RELEASE}+3.efi");
    let uki = stage.place("altered.efi");
    let size = std::fs::copy(stage.release().join("leapserv.efi"), &uki)?;
    flip_bit(&uki, size / 2)?;
    let copy = on_esp("mcopy", &altered)?.arg("-o").arg(&uki).arg(entry);
    copy.run_async().await?;
    let mut machine = stage.power_on(&altered)?;
    let refused = "Access denied";
    assert_eq!(machine.says(&[refused, ENFORCED, UP]).await?, refused);
    machine.off().await?;

    // One bit of the root's first block, in the part that its file system does not use:
    // nothing but dm-verity minds.
    let altered = stage.copy("altered-root.img").await?;
    let partitions = DiskImage::open(&altered)?;
    let start = partitions.partition("root-a")?.offset;
    flip_bit(&altered, start + 100)?;
    let mut machine = stage.power_on(&altered)?;
    assert_eq!(machine.says(&[ENFORCED, UP]).await?, ENFORCED);
    let refused = "data block 0 is corrupted";
    assert_eq!(machine.says(&[refused, UP]).await?, refused);
    // It gives up and starts over, instead of going on without its root.
    let over = "BdsDxe: starting";
    assert_eq!(machine.says(&[over, UP]).await?, over);
    machine.off().await?;

    // One bit of a component: the unit starts all the same, because a unit that starts can
    // be helped, and says on its console which component it left out.
    let altered = stage.copy("altered-component.img").await?;
    let component = "components/backup.raw";
    let image = stage.place("altered.raw");
    let size = std::fs::copy(stage.release().join(component), &image)?;
    flip_bit(&image, size / 2)?;
    let copy = on_esp("mcopy", &altered)?.arg("-o").arg(&image);
    let copy = copy.arg(format!("::/leapserv/releases/{RELEASE}/{component}"));
    copy.run_async().await?;
    let mut machine = stage.power_on(&altered)?;
    assert_eq!(machine.says(&[ENFORCED, UP]).await?, ENFORCED);
    let left_out = "backup: missing or not as signed";
    let up = "Started leap-updater.service";
    assert_eq!(machine.says(&[left_out, up]).await?, left_out);
    machine.says(&[up]).await?;
    machine.off().await?;
    Ok(())
}
