//! A machine: QEMU with real firmware, network first in its boot order for its whole life.
//!
//! A machine is hardware. It keeps its disks, its firmware's variables and its serial
//! log over power cuts, and can be moved, copied and thrown away as a box can.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use edge::exit::{self, Kind};
use edge::runner::Tool;
use model::MacAddr;
use serde_json::json;

use super::accelerator::Accelerator;
use super::isolation::RUN;
use super::log::LogTail;
use super::network::Port;
use super::process::{Process, Recipe};
use super::qmp::{DiskUse, Qmp};
use super::wait;

/// How long a software TPM may take to start.
const TPM_PATIENCE: Duration = Duration::from_secs(20);

/// What a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// Name in the laboratory, for files and messages: at most 10 letters, digits and `-`.
    pub name: String,
    /// Serial number in the firmware's tables.
    pub serial: String,
    /// UUID in the firmware's tables.
    pub uuid: String,
    /// One network card for each address.
    pub macs: Vec<MacAddr>,
    /// Memory in MiB.
    pub memory: u32,
    /// Number of processors.
    pub processors: u32,
    /// The disks, in order.
    pub disks: Vec<Disk>,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// What starts it.
    pub firmware: Firmware,
}

/// The firmware of a machine. Each boots the network first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// OVMF, which begins with PXE over IPv4.
    Ovmf,
    /// OVMF without PXE, which begins with UEFI HTTP boot over IPv4.
    OvmfHttp,
    /// OVMF that enforces Secure Boot once its variables hold keys.
    OvmfSecureBoot,
    /// SeaBIOS with the boot ROM that QEMU's network card brings: iPXE.
    SeaBios,
    /// AAVMF: the same as OVMF on an arm64 machine, which is always translated.
    Aavmf,
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Serial number: at most 20 letters and digits.
    pub serial: String,
    /// Size in bytes. The image is sparse.
    pub size: u64,
    /// How it is connected, and how it is.
    pub kind: DiskKind,
}

/// The kinds of disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// A virtual disk, which says nothing of its health.
    Virtio,
    /// An NVMe disk that says that it is not reliable any more.
    FailingNvme,
    /// A SCSI disk, which can be pulled out of a machine that runs.
    Scsi,
}

impl DiskKind {
    /// QEMU's device.
    fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-blk-pci",
            // NVM Express, SMART log, critical warning: bit 2.
            Self::FailingNvme => "nvme,smart_critical_warning=4",
            Self::Scsi => "scsi-hd,bus=scsi.0",
        }
    }
}

/// A machine in the laboratory, on or off.
#[derive(Debug)]
pub struct Machine {
    hardware: Hardware,
    folder: PathBuf,
    /// The image of a stick in its USB port, which the firmware tries first.
    stick: Option<PathBuf>,
    /// Disks that lie beside it.
    pulled: BTreeSet<usize>,
    /// Resets in the lives before this power-on.
    earlier_resets: usize,
    power: Option<Power>,
}

#[derive(Debug)]
struct Power {
    qemu: Process,
    tpm: Option<Process>,
    qmp: Qmp,
    since: Instant,
}

/// The files of a firmware in flash memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flash {
    /// The program, read-only.
    pub code: PathBuf,
    /// The template of the variables, copied for each machine.
    pub variables: PathBuf,
}

/// Finds the firmware of Debian's package `ovmf`, without Secure Boot.
///
/// # Errors
/// It is not installed.
pub fn ovmf() -> anyhow::Result<Flash> {
    flash("OVMF_CODE_4M.fd")
}

fn flash(code: &str) -> anyhow::Result<Flash> {
    let found = files("/usr/share/OVMF", code, "OVMF_VARS_4M.fd");
    found.ok_or_else(|| {
        let missing = exit::marked(Kind::Environment, "no OVMF firmware in /usr/share/OVMF");
        exit::hint(missing, "apt-get install ovmf, or run make setup")
    })
}

fn aavmf() -> anyhow::Result<Flash> {
    let found = files("/usr/share/AAVMF", "AAVMF_CODE.fd", "AAVMF_VARS.fd");
    found.ok_or_else(|| {
        let missing = exit::marked(Kind::Environment, "no AAVMF firmware in /usr/share/AAVMF");
        exit::hint(missing, "apt-get install qemu-efi-aarch64")
    })
}

fn files(folder: &str, code: &str, variables: &str) -> Option<Flash> {
    let folder = Path::new(folder);
    let found = Flash {
        code: folder.join(code),
        variables: folder.join(variables),
    };
    (found.code.exists() && found.variables.exists()).then_some(found)
}

impl Firmware {
    /// Finds its files; there are none where QEMU brings the firmware itself.
    ///
    /// # Errors
    /// They are not installed.
    pub fn flash(self) -> anyhow::Result<Option<Flash>> {
        match self {
            Self::Ovmf | Self::OvmfHttp => ovmf().map(Some),
            Self::OvmfSecureBoot => flash("OVMF_CODE_4M.secboot.fd").map(Some),
            Self::SeaBios => Ok(None),
            Self::Aavmf => aavmf().map(Some),
        }
    }

    /// The program that plays the machine.
    fn emulator(self) -> &'static str {
        match self {
            Self::Aavmf => "qemu-system-aarch64",
            Self::Ovmf | Self::OvmfHttp | Self::OvmfSecureBoot | Self::SeaBios => {
                "qemu-system-x86_64"
            }
        }
    }

    /// QEMU's arguments for the processor, where `accelerator` runs those of the host's kind.
    fn processor(self, accelerator: Accelerator) -> [&'static str; 4] {
        match self {
            Self::Aavmf => [
                "-accel",
                "tcg,thread=multi,tb-size=128",
                "-cpu",
                "cortex-a57",
            ],
            Self::Ovmf | Self::OvmfHttp | Self::OvmfSecureBoot | Self::SeaBios => {
                accelerator.arguments()
            }
        }
    }

    /// QEMU's arguments, beside the flash memory.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Ovmf => &["-machine", "q35"],
            // Each other way is a minute of waiting for an answer that does not come.
            Self::OvmfHttp => &[
                "-machine",
                "q35",
                "-fw_cfg",
                "name=opt/org.tianocore/IPv4PXESupport,string=n",
                "-fw_cfg",
                "name=opt/org.tianocore/IPv6PXESupport,string=n",
            ],
            // Or a program could write the variables behind the firmware's back.
            Self::OvmfSecureBoot => &[
                "-machine",
                "q35,smm=on",
                "-global",
                "driver=cfi.pflash01,property=secure,value=on",
                "-global",
                "ICH9-LPC.disable_s3=1",
            ],
            // Without a screen SeaBIOS shows what a screen would on the serial line.
            Self::SeaBios => &["-machine", "q35,graphics=off"],
            Self::Aavmf => &["-machine", "virt"],
        }
    }

    /// What becomes of the boot ROM of a network card.
    fn rom(self) -> &'static str {
        match self {
            // Without a ROM the firmware's own network boot is what runs.
            Self::Ovmf | Self::OvmfHttp | Self::OvmfSecureBoot | Self::Aavmf => ",romfile=",
            Self::SeaBios => "",
        }
    }
}

impl Machine {
    /// Puts a machine together: empty disks and fresh firmware variables below `folder`,
    /// unless they are there already.
    ///
    /// # Errors
    /// A file cannot be made, or the description does not fit QEMU.
    pub fn build(hardware: Hardware, folder: &Path) -> anyhow::Result<Self> {
        let name = &hardware.name;
        let fits = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        ensure!(
            !name.is_empty() && name.len() <= 10 && fits,
            "machine {name}: expected a name of at most 10 letters, digits and hyphens"
        );
        for text in [&hardware.serial, &hardware.uuid] {
            ensure!(!text.contains(','), "machine {name}: a comma in {text}");
        }
        std::fs::create_dir_all(folder)
            .with_context(|| format!("make folder {}", folder.display()))?;
        let machine = Self {
            folder: std::path::absolute(folder)
                .with_context(|| format!("make {} absolute", folder.display()))?,
            hardware,
            stick: None,
            pulled: BTreeSet::new(),
            earlier_resets: 0,
            power: None,
        };
        for (index, disk) in machine.hardware.disks.iter().enumerate() {
            let path = machine.disk(index);
            if !path.exists() {
                std::fs::File::create(&path)
                    .and_then(|file| file.set_len(disk.size))
                    .with_context(|| format!("make disk {}", path.display()))?;
            }
        }
        let variables = machine.variables();
        let flash = machine.hardware.firmware.flash()?;
        if let Some(flash) = flash.filter(|_| !variables.exists()) {
            std::fs::copy(flash.variables, &variables)
                .with_context(|| format!("make firmware variables {}", variables.display()))?;
        }
        Ok(machine)
    }

    /// Puts a stick into its USB port, to be chosen in the firmware's boot menu at each
    /// power-on. The machine has to be off.
    ///
    /// # Errors
    /// The machine is on, or the path has no absolute form.
    pub fn plug_stick(&mut self, image: &Path) -> anyhow::Result<()> {
        let name = &self.hardware.name;
        ensure!(self.power.is_none(), "machine {name} is on");
        let image = std::path::absolute(image);
        self.stick = Some(image.context("name the stick's image")?);
        Ok(())
    }

    /// Pulls a disk out, while the machine runs.
    ///
    /// # Errors
    /// The machine is off, or the disk is of a kind that cannot be pulled.
    pub async fn pull_disk(&mut self, index: usize) -> anyhow::Result<()> {
        let name = &self.hardware.name;
        let power = self.power.as_mut();
        let power = power.with_context(|| format!("machine {name} is off"))?;
        let id = json!({ "id": format!("disk{index}") });
        power.qmp.execute("device_del", id).await?;
        self.pulled.insert(index);
        Ok(())
    }

    /// Puts a pulled disk back. The machine has to be off.
    ///
    /// # Errors
    /// The machine is on.
    pub fn return_disk(&mut self, index: usize) -> anyhow::Result<()> {
        let name = &self.hardware.name;
        ensure!(self.power.is_none(), "machine {name} is on");
        self.pulled.remove(&index);
        Ok(())
    }

    /// What the machine is made of.
    #[must_use]
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// The machine's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The image of a disk, raw and sparse.
    #[must_use]
    pub fn disk(&self, index: usize) -> PathBuf {
        self.folder.join(format!("disk{index}.img"))
    }

    /// The firmware's variables.
    #[must_use]
    pub fn variables(&self) -> PathBuf {
        self.folder.join("firmware-variables.fd")
    }

    /// All that the machine ever said on its serial line.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.folder.join("serial.log")
    }

    /// The machine's console, for `socat` or `leap-lab console`, while it is on.
    #[must_use]
    pub fn console_socket(&self) -> PathBuf {
        Path::new(RUN).join(format!("{}.console", self.hardware.name))
    }

    fn tpm_socket(&self) -> PathBuf {
        Path::new(RUN).join(format!("{}.tpm", self.hardware.name))
    }

    /// Switches the TPM on. Its state is the machine's for its whole life.
    async fn start_tpm(&self) -> anyhow::Result<Process> {
        let (state, socket) = (self.folder.join("tpm"), self.tpm_socket());
        std::fs::create_dir_all(&state).context("make the folder of the TPM")?;
        let _ = std::fs::remove_file(&socket);
        let tool = Tool::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={}", state.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()));
        let name = format!("TPM of {}", self.hardware.name);
        let mut process = Recipe::new(&name, tool, self.folder.join("tpm.log")).start()?;
        wait::until("the TPM to listen", TPM_PATIENCE, || {
            let listens = process.alive().map(|()| socket.exists().then_some(()));
            async move { listens }
        })
        .await?;
        Ok(process)
    }

    /// A tail of the serial line, from now on.
    #[must_use]
    pub fn console(&self) -> LogTail {
        LogTail::from_end(&self.serial_log())
    }

    /// Powers the machine on, with one port for each network card.
    ///
    /// # Errors
    /// It is on already, the ports do not fit, or QEMU does not start.
    pub async fn power_on(
        &mut self,
        accelerator: Accelerator,
        ports: &mut [Port],
    ) -> anyhow::Result<()> {
        let name = &self.hardware.name;
        ensure!(self.power.is_none(), "machine {name} is on already");
        ensure!(
            ports.len() == self.hardware.macs.len(),
            "machine {name}: {} network cards and {} ports",
            self.hardware.macs.len(),
            ports.len()
        );
        let socket = Path::new(RUN).join(format!("{name}.qmp"));
        for stale in [&socket, &self.console_socket()] {
            let _ = std::fs::remove_file(stale);
        }
        for port in &mut *ports {
            port.release();
        }
        let netdevs: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(index, port)| port.netdev(&format!("net{index}")))
            .collect();
        let tpm = match self.hardware.tpm {
            true => Some(self.start_tpm().await?),
            false => None,
        };
        let flash = self.hardware.firmware.flash()?;
        let tool = self.qemu(accelerator, flash.as_ref(), &netdevs, &socket);
        let recipe = Recipe::new(
            &format!("machine {name}"),
            tool,
            self.folder.join("qemu.log"),
        );
        let since = Instant::now();
        let mut qemu = recipe.start()?;
        let qmp = Qmp::connect(&socket, || qemu.alive()).await?;
        for port in ports {
            port.join()?;
        }
        self.power = Some(Power {
            qemu,
            tpm,
            qmp,
            since,
        });
        Ok(())
    }

    /// Cuts the power: QEMU is killed in whatever it does.
    ///
    /// # Errors
    /// The system did not let us.
    pub async fn power_cut(&mut self) -> anyhow::Result<()> {
        if let Some(mut power) = self.power.take() {
            self.earlier_resets += power.qmp.count("RESET");
            power.qemu.kill().await?;
            // Or its state would still be in use when the machine is powered on again.
            if let Some(tpm) = &mut power.tpm {
                tpm.kill().await?;
            }
        }
        Ok(())
    }

    /// Presses the power button and waits until the machine is off.
    ///
    /// # Errors
    /// It did not go off in time; then its power is cut.
    pub async fn power_button(&mut self, deadline: Duration) -> anyhow::Result<()> {
        let Some(power) = &mut self.power else {
            return Ok(());
        };
        power.qmp.execute("system_powerdown", json!({})).await?;
        let ended = power.qemu.wait(deadline).await;
        self.power_cut().await?;
        ended.map(drop)
    }

    /// Succeeds while the machine is on.
    ///
    /// # Errors
    /// It is off, or QEMU ended by itself.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        let name = &self.hardware.name;
        let power = self.power.as_mut();
        power
            .with_context(|| format!("machine {name} is off"))?
            .qemu
            .alive()
    }

    /// How often the machine has started over by itself (reset), in its whole life in
    /// this laboratory. Powering on does not count.
    #[must_use]
    pub fn resets(&self) -> usize {
        let now = self
            .power
            .as_ref()
            .map_or(0, |power| power.qmp.count("RESET"));
        self.earlier_resets + now
    }

    /// Time since power-on; zero while it is off.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        let power = self.power.as_ref();
        power.map_or(Duration::ZERO, |power| power.since.elapsed())
    }

    /// What a disk has done since power-on.
    ///
    /// # Errors
    /// The machine is off, or has no such disk.
    pub async fn disk_use(&mut self, index: usize) -> anyhow::Result<DiskUse> {
        let name = &self.hardware.name;
        let power = self.power.as_mut();
        let power = power.with_context(|| format!("machine {name} is off"))?;
        power.qmp.disk_use(&format!("disk{index}")).await
    }

    /// Waits for one of these texts on the serial line and returns which. `console` says
    /// from where on.
    ///
    /// # Errors
    /// The deadline passed or the machine went off. The error shows its last lines.
    pub async fn says(
        &mut self,
        console: &mut LogTail,
        texts: &[&str],
        deadline: Duration,
    ) -> anyhow::Result<usize> {
        console.wait_for(texts, deadline, || self.alive()).await
    }

    /// Takes a copy of the machine as it lies there: its disks and firmware variables,
    /// in another folder. The copy is off, and is the same hardware.
    ///
    /// # Errors
    /// The machine is on, or the copy cannot be made.
    pub async fn copy(&self, folder: &Path) -> anyhow::Result<Self> {
        let name = &self.hardware.name;
        ensure!(
            self.power.is_none(),
            "machine {name} is on: its disks cannot be copied"
        );
        std::fs::create_dir_all(folder)
            .with_context(|| format!("make folder {}", folder.display()))?;
        let count = self.hardware.disks.len();
        let variables = Some(self.variables()).filter(|file| file.exists());
        let files = (0..count).map(|index| self.disk(index)).chain(variables);
        for file in files {
            Tool::new("cp")
                .args(["--sparse=always", "--reflink=auto", "--"])
                .args([file.as_path(), folder])
                .run_async()
                .await?;
        }
        Self::build(self.hardware.clone(), folder)
    }

    /// Deletes the machine's disks: the hardware is dead.
    ///
    /// # Errors
    /// The machine is on, or a disk cannot be deleted.
    pub fn destroy_disks(&self) -> anyhow::Result<()> {
        let name = &self.hardware.name;
        ensure!(self.power.is_none(), "machine {name} is on");
        for index in 0..self.hardware.disks.len() {
            let disk = self.disk(index);
            std::fs::remove_file(&disk)
                .with_context(|| format!("delete disk {}", disk.display()))?;
        }
        Ok(())
    }

    fn qemu(
        &self,
        accelerator: Accelerator,
        flash: Option<&Flash>,
        netdevs: &[String],
        qmp: &Path,
    ) -> Tool {
        let Hardware {
            name,
            serial,
            uuid,
            macs,
            memory,
            processors,
            disks,
            tpm,
            firmware,
        } = &self.hardware;
        let mut tool = Tool::new(firmware.emulator())
            .args(["-name", name, "-nodefaults", "-display", "none"])
            .args(firmware.arguments())
            .args(firmware.processor(accelerator))
            .args(["-smp", &processors.to_string(), "-m", &memory.to_string()])
            .args(["-uuid", uuid])
            .arg("-smbios")
            .arg(format!(
                "type=1,manufacturer=LeapServ,product=Laboratory,serial={serial},uuid={uuid}"
            ))
            // Firmware since 2024 has no network boot without a source of randomness.
            .args(["-device", "virtio-rng-pci"])
            .arg("-chardev")
            .arg(format!(
                "socket,id=console,path={},server=on,wait=off,logfile={},logappend=on",
                comma(&self.console_socket()),
                comma(&self.serial_log())
            ))
            .args(["-serial", "chardev:console"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", comma(qmp)));
        if let Some(flash) = flash {
            tool = tool
                .arg("-drive")
                .arg(format!(
                    "if=pflash,unit=0,format=raw,readonly=on,file={}",
                    comma(&flash.code)
                ))
                .arg("-drive")
                .arg(format!(
                    "if=pflash,unit=1,format=raw,file={}",
                    comma(&self.variables())
                ));
        }
        if *tpm {
            tool = tool
                .arg("-chardev")
                .arg(format!("socket,id=tpm,path={}", comma(&self.tpm_socket())))
                .args(["-tpmdev", "emulator,id=tpm,chardev=tpm"])
                .args(["-device", "tpm-crb,tpmdev=tpm"]);
        }
        if let Some(stick) = &self.stick {
            tool = tool
                .args(["-device", "qemu-xhci,id=usb", "-drive"])
                .arg(format!(
                    "if=none,id=stick,format=raw,readonly=on,file={}",
                    comma(stick)
                ))
                .arg("-device")
                .arg("usb-storage,bus=usb.0,drive=stick,removable=on,bootindex=0");
        }
        for (index, (mac, netdev)) in macs.iter().zip(netdevs).enumerate() {
            let (order, rom) = (index + 1, firmware.rom());
            tool = tool.args(["-netdev", netdev]).arg("-device").arg(format!(
                "virtio-net-pci,netdev=net{index},mac={mac},bootindex={order}{rom}"
            ));
        }
        if disks.iter().any(|disk| disk.kind == DiskKind::Scsi) {
            tool = tool.args(["-device", "virtio-scsi-pci,id=scsi"]);
        }
        let present = disks.iter().enumerate();
        for (index, disk) in present.filter(|(index, _)| !self.pulled.contains(index)) {
            let order = macs.len() + index + 1;
            tool = tool
                .arg("-drive")
                .arg(format!(
                    "if=none,id=drive{index},format=raw,cache=writeback,discard=unmap,\
                     detect-zeroes=unmap,file={}",
                    comma(&self.disk(index))
                ))
                .arg("-device")
                .arg(format!(
                    "{},id=disk{index},drive=drive{index},serial={},bootindex={order}",
                    disk.kind.device(),
                    disk.serial
                ));
        }
        tool
    }
}

/// In QEMU's options a comma in a value is doubled.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A machine's address in the laboratory's own range, which no hardware has.
#[must_use]
pub fn mac(number: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0x00, 0x1e, 0xab, number])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        Hardware {
            name: "box-1".to_owned(),
            serial: "LS-0001".to_owned(),
            uuid: "6c656170-0000-4000-8000-000000000001".to_owned(),
            macs: vec![mac(1)],
            memory: 1024,
            processors: 2,
            disks: vec![Disk {
                serial: "DISK0001".to_owned(),
                size: 1 << 30,
                kind: DiskKind::Virtio,
            }],
            tpm: true,
            firmware: Firmware::Ovmf,
        }
    }

    #[test]
    fn a_machine_boots_the_network_first_and_has_no_boot_rom() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine {
            hardware: hardware(),
            folder: folder.path().join("a,b"),
            stick: Some("/stick.img".into()),
            pulled: BTreeSet::new(),
            earlier_resets: 0,
            power: None,
        };
        let flash = Flash {
            code: "/code.fd".into(),
            variables: "/vars.fd".into(),
        };
        let qmp = Path::new("/run/leap-lab/box-1.qmp");
        let line = machine
            .qemu(
                Accelerator::Tcg,
                Some(&flash),
                &["tap,id=net0".to_owned()],
                qmp,
            )
            .line();
        assert!(line.contains("bootindex=1,romfile="), "{line}");
        assert!(line.contains("serial=DISK0001,bootindex=2"), "{line}");
        assert!(line.contains("a,,b/disk0.img"), "{line}");
        assert!(line.contains("type=1,manufacturer=LeapServ,product=Laboratory,serial=LS-0001"));
        assert!(line.contains("-device tpm-crb,tpmdev=tpm"), "{line}");
        assert!(
            line.contains("drive=stick,removable=on,bootindex=0"),
            "{line}"
        );
        assert!(!line.contains("-kernel"));
    }

    #[test]
    fn a_name_that_makes_no_socket_path_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "a/b", "much-too-long-a-name"] {
            let hardware = Hardware {
                name: name.to_owned(),
                ..hardware()
            };
            assert!(Machine::build(hardware, folder.path()).is_err(), "{name}");
        }
    }
}
