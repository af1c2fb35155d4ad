//! Boots a disk image in QEMU, as a machine of today would: UEFI, and where it is asked
//! for Secure Boot and a TPM.
//!
//! [`Host`] is what this machine has, [`Wish`] what was asked for, [`command`] makes QEMU's
//! arguments of both and touches nothing. [`run`] starts it with its console here.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind};
use edge::runner::Tool;
use model::Architecture;
use tokio::process::Child;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The disk image.
    pub image: PathBuf,
    /// How it is written.
    pub format: Format,
    /// Whose programs are on it.
    pub architecture: Architecture,
    /// Whether the firmware checks signatures.
    pub firmware: Firmware,
    /// Memory in MiB.
    pub memory: u32,
    /// What shows the screen.
    pub display: Display,
    /// What becomes of changes to the disk.
    pub changes: Changes,
}

/// How a disk image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Byte by byte.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VMware's.
    Vmdk,
}

impl Format {
    /// Tells the format by a file's first bytes.
    pub fn of(head: &[u8]) -> Self {
        match head.get(..4) {
            Some(b"QFI\xfb") => Self::Qcow2,
            Some(b"KDMV") => Self::Vmdk,
            _ => Self::Raw,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

/// Which firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI that starts anything.
    Plain,
    /// UEFI that has Secure Boot: with fresh variables it is in setup mode.
    SecureBoot,
}

/// What shows the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Display {
    /// Nothing: the serial console is all there is.
    None,
    /// A window.
    Gtk,
}

/// What becomes of changes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// They are written to the image.
    Kept,
    /// They are forgotten at the end.
    Forgotten,
}

/// What runs the machine's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// Translation by QEMU.
    Tcg,
}

/// What this machine has for it.
#[derive(Debug, Clone)]
pub struct Host {
    /// The firmware's program.
    pub code: PathBuf,
    /// The firmware's variables, which it changes.
    pub variables: PathBuf,
    /// What runs the processor.
    pub accelerator: Accelerator,
    /// The socket of a software TPM.
    pub tpm: Option<PathBuf>,
}

/// Returns QEMU with its arguments. Pure.
pub fn command(wish: &Wish, host: &Host) -> Tool {
    let machine = match (wish.architecture, wish.firmware) {
        (Architecture::Amd64, Firmware::Plain) => "q35",
        (Architecture::Amd64, Firmware::SecureBoot) => "q35,smm=on",
        (Architecture::Arm64, _) => "virt",
    };
    let mut tool = Tool::new(qemu(wish.architecture).0).args([
        "-name",
        "leap-image",
        "-machine",
        machine,
        "-nodefaults",
    ]);
    tool = tool.args(match host.accelerator {
        Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
        Accelerator::Tcg => [
            "-accel",
            "tcg,tb-size=128",
            "-cpu",
            // Of what `max` offers, much is slower to translate than to do without.
            match wish.architecture {
                Architecture::Amd64 => "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes",
                Architecture::Arm64 => "cortex-a72",
            },
        ],
    });
    let memory = wish.memory.to_string();
    let processors = match host.accelerator {
        Accelerator::Kvm => "2",
        // Several, translated in parallel, race when the guest's kernel patches its own
        // code; and each of the firmware's system management interrupts waits for all.
        Accelerator::Tcg => "1",
    };
    tool = tool.args(["-smp", processors, "-m", &memory]);
    if wish.firmware == Firmware::SecureBoot && wish.architecture == Architecture::Amd64 {
        // Or a program could write the variables behind the firmware's back.
        tool = tool.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        tool = tool.args(["-global", "ICH9-LPC.disable_s3=1"]);
    }
    for (unit, file, readonly) in [(0, &host.code, ",readonly=on"), (1, &host.variables, "")] {
        tool = tool.arg("-drive").arg(format!(
            "if=pflash,unit={unit},format=raw{readonly},file={}",
            comma(file)
        ));
    }
    let snapshot = match wish.changes {
        Changes::Kept => "",
        Changes::Forgotten => ",snapshot=on",
    };
    tool = tool
        .arg("-drive")
        .arg(format!(
            "if=none,id=disk,format={}{snapshot},discard=unmap,file={}",
            wish.format.word(),
            comma(&wish.image)
        ))
        .args(["-device", "virtio-blk-pci,drive=disk,bootindex=1"])
        .args(["-device", "virtio-rng-pci"])
        .args(["-nic", "none"]);
    if let Some(socket) = &host.tpm {
        tool = tool
            .arg("-chardev")
            .arg(format!("socket,id=tpm,path={}", comma(socket)))
            .args(["-tpmdev", "emulator,id=tpm,chardev=tpm"])
            .args([
                "-device",
                match wish.architecture {
                    Architecture::Amd64 => "tpm-crb,tpmdev=tpm",
                    Architecture::Arm64 => "tpm-tis-device,tpmdev=tpm",
                },
            ]);
    }
    tool = tool.args(match wish.display {
        Display::None => &["-display", "none"][..],
        Display::Gtk => match wish.architecture {
            Architecture::Amd64 => &["-display", "gtk", "-device", "VGA"],
            Architecture::Arm64 => &["-display", "gtk", "-device", "virtio-gpu-pci"],
        },
    });
    tool.args([
        "-chardev",
        "stdio,id=console,signal=on",
        "-serial",
        "chardev:console",
    ])
}

/// QEMU's program for an architecture, and Debian's package that has it.
fn qemu(architecture: Architecture) -> (&'static str, &'static str) {
    match architecture {
        Architecture::Amd64 => ("qemu-system-x86_64", "qemu-system-x86"),
        Architecture::Arm64 => ("qemu-system-aarch64", "qemu-system-arm"),
    }
}

/// In QEMU's options a comma in a value is doubled.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The firmware's program and the template of its variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FirmwareFiles {
    code: &'static str,
    variables: &'static str,
}

/// Finds the firmware: in Debian's places first, then in those of other distributions.
///
/// # Errors
/// Kind `Environment` when there is none.
fn firmware(architecture: Architecture, firmware: Firmware) -> anyhow::Result<FirmwareFiles> {
    let places: &[FirmwareFiles] = match (architecture, firmware) {
        // Not without Secure Boot: with fresh variables it is in setup mode either way.
        (Architecture::Arm64, _) => &[
            FirmwareFiles {
                code: "/usr/share/AAVMF/AAVMF_CODE.fd",
                variables: "/usr/share/AAVMF/AAVMF_VARS.fd",
            },
            FirmwareFiles {
                code: "/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
                variables: "/usr/share/edk2/aarch64/vars-template-pflash.raw",
            },
        ],
        (Architecture::Amd64, Firmware::Plain) => &[
            FirmwareFiles {
                code: "/usr/share/OVMF/OVMF_CODE_4M.fd",
                variables: "/usr/share/OVMF/OVMF_VARS_4M.fd",
            },
            FirmwareFiles {
                code: "/usr/share/edk2/ovmf/OVMF_CODE.fd",
                variables: "/usr/share/edk2/ovmf/OVMF_VARS.fd",
            },
        ],
        (Architecture::Amd64, Firmware::SecureBoot) => &[
            FirmwareFiles {
                code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                variables: "/usr/share/OVMF/OVMF_VARS_4M.fd",
            },
            FirmwareFiles {
                code: "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd",
                variables: "/usr/share/edk2/ovmf/OVMF_VARS.fd",
            },
        ],
    };
    let exists = |files: &&FirmwareFiles| {
        Path::new(files.code).exists() && Path::new(files.variables).exists()
    };
    places.iter().find(exists).copied().ok_or_else(|| {
        let looked = places[0].code;
        exit::hint(
            exit::marked(
                Kind::Environment,
                format!("no UEFI firmware, like {looked}"),
            ),
            match architecture {
                Architecture::Amd64 => "apt-get install ovmf",
                Architecture::Arm64 => "apt-get install qemu-efi-aarch64",
            },
        )
    })
}

/// Where the firmware keeps its variables.
#[derive(Debug, Clone)]
pub enum Variables {
    /// In this file, from one boot to the next.
    File(PathBuf),
    /// Nowhere: they begin anew with each boot.
    Fresh,
}

/// What is there for a boot beside the image, until the end of it.
#[derive(Debug)]
struct Stage {
    host: Host,
    /// Ends when QEMU closes its connection, and is killed when this is dropped.
    _tpm: Option<Child>,
    _scratch: tempfile::TempDir,
}

/// The firmware's first line comes within a second under KVM.
const TRIAL: Duration = Duration::from_secs(8);
const MOMENT: Duration = Duration::from_millis(20);
const TPM_START: Duration = Duration::from_secs(5);

/// Opens the image and tells its format.
///
/// # Errors
/// Kind `InvalidInput` when it cannot be opened as it has to be.
pub fn look(image: &Path, changes: Changes) -> anyhow::Result<Format> {
    let unfit = |problem: &dyn std::fmt::Display| {
        let place = image.display();
        exit::marked(Kind::InvalidInput, format!("disk image {place}: {problem}"))
    };
    let write = changes == Changes::Kept;
    let opened = OpenOptions::new().read(true).write(write).open(image);
    let mut file = opened.map_err(|error| {
        let error_kind = error.kind();
        let error = unfit(&error);
        match error_kind {
            std::io::ErrorKind::PermissionDenied => exit::hint(
                error,
                "--snapshot leaves the image as it is and needs no right to write",
            ),
            _ => error,
        }
    })?;
    let mut head = Vec::new();
    let read = file.by_ref().take(512).read_to_end(&mut head);
    read.map_err(|error| unfit(&error))?;
    if head.is_empty() {
        return Err(unfit(&"is empty"));
    }
    Ok(Format::of(&head))
}

/// Boots an image with its serial console on this terminal, until the machine goes off or
/// Ctrl-C ends it.
///
/// # Errors
/// Kind `Environment` when something of the host is missing; or QEMU failed.
pub async fn run(wish: &Wish, variables: &Variables, tpm: bool) -> anyhow::Result<()> {
    let stage = prepare(wish, variables, tpm).await?;
    let tool = command(wish, &stage.host);
    let line = tool.line();
    tracing::info!(command = %line, "boot");
    let (program, package) = qemu(wish.architecture);
    let mut machine = tool
        .tokio_command()
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| missing(error, program, package))?;
    let status = tokio::select! {
        status = machine.wait() => status.context("wait for QEMU")?,
        () = edge::shutdown::requested() => {
            // Ctrl-C reaches QEMU by itself; a signal to us alone does not.
            let id = machine.id().and_then(|id| i32::try_from(id).ok());
            if let Some(id) = id.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
            }
            machine.wait().await.context("wait for QEMU")?;
            return Ok(());
        }
    };
    // QEMU takes Ctrl-C for a wish to end, and so do we.
    if !status.success() {
        bail!("QEMU: {status}; its command was: {line}");
    }
    Ok(())
}

async fn prepare(wish: &Wish, variables: &Variables, tpm: bool) -> anyhow::Result<Stage> {
    let files = firmware(wish.architecture, wish.firmware)?;
    let scratch = tempfile::Builder::new()
        .prefix("leap-image-boot-")
        .tempdir()
        .context("make a folder for the machine")?;
    let (place, state) = match variables {
        Variables::Fresh => (
            scratch.path().join("variables.fd"),
            scratch.path().join("tpm"),
        ),
        Variables::File(path) => (path.clone(), path.with_added_extension("tpm")),
    };
    if !place.exists() {
        let template =
            std::fs::read(files.variables).with_context(|| format!("read {}", files.variables))?;
        edge::durable::write(&place, &template, edge::durable::Mode::Secret)?;
    }
    let accelerator = accelerator(wish.architecture, scratch.path()).await?;
    let (tpm, socket) = if tpm {
        let socket = scratch.path().join("tpm.socket");
        (Some(start_tpm(&state, &socket).await?), Some(socket))
    } else {
        (None, None)
    };
    Ok(Stage {
        host: Host {
            code: files.code.into(),
            variables: place,
            accelerator,
            tpm: socket,
        },
        _tpm: tpm,
        _scratch: scratch,
    })
}

fn missing(error: std::io::Error, program: &str, package: &str) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        let missing = exit::marked(Kind::Environment, format!("{program} is missing"));
        return exit::hint(missing, format!("apt-get install {package}"));
    }
    anyhow::Error::new(error).context(format!("start {program}"))
}

/// Starts a software TPM and waits until it listens.
async fn start_tpm(state: &Path, socket: &Path) -> anyhow::Result<Child> {
    std::fs::create_dir_all(state).with_context(|| format!("make {}", state.display()))?;
    let mut tpm = Tool::new("swtpm")
        .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
        .arg(format!("dir={}", state.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", socket.display()))
        .tokio_command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Ctrl-C is for QEMU: the TPM ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| missing(error, "swtpm", "swtpm"))?;
    let listening = async {
        loop {
            if socket.exists() {
                return Ok(());
            }
            if let Some(status) = tpm.try_wait().context("look at swtpm")? {
                bail!("swtpm: {status}");
            }
            tokio::time::sleep(MOMENT).await;
        }
    };
    let started = tokio::time::timeout(TPM_START, listening).await;
    started.context("swtpm: does not listen")??;
    Ok(tpm)
}

/// Chooses by trying: a `/dev/kvm` that opens may still crash every guest, as in some
/// nested virtual machines.
async fn accelerator(architecture: Architecture, scratch: &Path) -> anyhow::Result<Accelerator> {
    // Only its own kind of processor can lend itself.
    if architecture != Architecture::OURS {
        return Ok(Accelerator::Tcg);
    }
    if OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(Accelerator::Tcg);
    }
    let files = firmware(architecture, Firmware::Plain)?;
    let serial = scratch.join("trial.log");
    File::create(&serial).context("make the trial's log")?;
    let machine = match architecture {
        Architecture::Amd64 => "q35",
        Architecture::Arm64 => "virt",
    };
    let (program, package) = qemu(architecture);
    let mut trial = Tool::new(program)
        .args([
            "-machine", machine, "-m", "128", "-accel", "kvm", "-cpu", "host",
        ])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-nic",
            "none",
            "-snapshot",
        ])
        .arg("-drive")
        .arg(format!(
            "if=pflash,unit=0,format=raw,readonly=on,file={}",
            files.code
        ))
        .arg("-drive")
        .arg(format!(
            "if=pflash,unit=1,format=raw,file={}",
            files.variables
        ))
        .arg("-serial")
        .arg(format!("file:{}", comma(&serial)))
        .tokio_command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| missing(error, program, package))?;
    let boots = async {
        loop {
            let log = std::fs::read(&serial).unwrap_or_default();
            if log.windows(6).any(|words| words == b"BdsDxe") {
                return true;
            }
            if !matches!(trial.try_wait(), Ok(None)) {
                return false;
            }
            tokio::time::sleep(MOMENT).await;
        }
    };
    let works = tokio::time::timeout(TRIAL, boots).await.unwrap_or(false);
    trial.kill().await.context("end the trial of KVM")?;
    Ok(match works {
        true => Accelerator::Kvm,
        false => Accelerator::Tcg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(firmware: Firmware) -> Wish {
        Wish {
            image: "/images/a,b.img".into(),
            format: Format::Raw,
            architecture: Architecture::Amd64,
            firmware,
            memory: 1024,
            display: Display::None,
            changes: Changes::Kept,
        }
    }

    fn host(tpm: Option<&str>) -> Host {
        Host {
            code: "/code.fd".into(),
            variables: "/vars.fd".into(),
            accelerator: Accelerator::Tcg,
            tpm: tpm.map(PathBuf::from),
        }
    }

    #[test]
    fn the_arguments_are_the_golden_ones() {
        let all = Wish {
            format: Format::Qcow2,
            changes: Changes::Forgotten,
            display: Display::Gtk,
            ..wish(Firmware::SecureBoot)
        };
        let kvm = Host {
            accelerator: Accelerator::Kvm,
            ..host(Some("/tpm.socket"))
        };
        let arm = Wish {
            architecture: Architecture::Arm64,
            ..all.clone()
        };
        let text = [
            command(&wish(Firmware::Plain), &host(None)).line(),
            command(&all, &kvm).line(),
            command(&arm, &host(Some("/tpm.socket"))).line(),
        ]
        .map(|line| line.replace(" -", "\n  -") + "\n")
        .concat();
        assert_eq!(text, include_str!("boot.golden"), "\n{text}");
    }

    #[test]
    fn an_image_is_known_by_its_first_bytes() {
        assert_eq!(Format::of(b"QFI\xfb\0\0\0\x03"), Format::Qcow2);
        assert_eq!(Format::of(b"KDMV\x01"), Format::Vmdk);
        assert_eq!(Format::of(b"\xeb\x3c"), Format::Raw);
        assert_eq!(Format::of(b""), Format::Raw);
    }

    #[test]
    fn an_image_that_is_not_there_or_empty_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let error = look(&path, Changes::Kept).unwrap_err().to_string();
        assert!(error.contains("disk.img: No such file"), "{error}");
        std::fs::write(&path, b"").unwrap();
        let error = look(&path, Changes::Kept).unwrap_err().to_string();
        assert!(error.contains("is empty"), "{error}");
        std::fs::write(&path, b"QFI\xfb").unwrap();
        assert_eq!(look(&path, Changes::Forgotten).unwrap(), Format::Qcow2);
    }

    #[tokio::test]
    async fn a_software_tpm_listens_before_the_machine_starts() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let mut tpm = start_tpm(&folder.path().join("state"), &socket)
            .await
            .unwrap();
        drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
        tpm.kill().await.unwrap();
    }
}
