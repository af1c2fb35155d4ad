//! Facts of the machine: read from `/sys` and `/proc`, told as they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::MacAddr;
use model::machine::{DiskContent, DiskFacts, MachineFacts, NicFacts};
use slots::{Disk, Target as _};

/// How much of each end of a disk is looked at, in bytes.
const END: u64 = 1 << 20;

/// Gathers the facts below `root`, which is `/` on a machine.
pub fn gather(root: &Path) -> MachineFacts {
    let dmi = |name: &str| text(&root.join("sys/class/dmi/id").join(name));
    let product = [dmi("sys_vendor"), dmi("product_name")];
    let cpuinfo = text(&root.join("proc/cpuinfo"));
    let cpus = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    MachineFacts {
        serial: serial(&dmi("product_serial")),
        uuid: dmi("product_uuid").to_lowercase(),
        product: product.join(" ").trim().to_owned(),
        cpu: cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map(|(_, model)| model.trim().to_owned())
            .unwrap_or_default(),
        cpus: u32::try_from(cpus.max(1)).unwrap_or(u32::MAX),
        memory: memory(&text(&root.join("proc/meminfo")), "MemTotal:"),
        disks: disks(root),
        nics: nics(root),
        firmware: if root.join("sys/firmware/efi").is_dir() {
            "uefi".into()
        } else {
            "bios".into()
        },
        secure_boot: secure_boot(root),
        tpm: text(&root.join("sys/class/tpm/tpm0/tpm_version_major")) == "2",
        findings: vec![],
    }
}

fn text(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
        .unwrap_or_default()
}

/// What vendors write where they have no serial number is none.
fn serial(text: &str) -> String {
    let none = [
        "none",
        "not specified",
        "to be filled by o.e.m.",
        "default string",
        "system serial number",
        "0",
        "0123456789",
    ];
    if none.contains(&text.to_lowercase().as_str()) {
        return String::new();
    }
    text.to_owned()
}

/// Returns how much memory a program may still take, in bytes.
pub fn free_memory(root: &Path) -> u64 {
    memory(&text(&root.join("proc/meminfo")), "MemAvailable:")
}

fn memory(meminfo: &str, name: &str) -> u64 {
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn secure_boot(root: &Path) -> bool {
    let dir = root.join("sys/firmware/efi/efivars");
    let variable = dir.join("SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    // Four bytes of attributes, then the value.
    fs::read(variable).is_ok_and(|bytes| bytes.get(4) == Some(&1))
}

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn disks(root: &Path) -> Vec<DiskFacts> {
    sorted(&root.join("sys/block"))
        .iter()
        .filter(|dir| is_disk(&name_of(dir), &text(&dir.join("size"))))
        .map(|dir| {
            let name = name_of(dir);
            let path = root.join("dev").join(&name);
            let device = dir.join("device");
            let serials = [
                text(&dir.join("serial")),
                text(&device.join("serial")),
                scsi_serial(&fs::read(device.join("vpd_pg80")).unwrap_or_default()),
                text(&device.join("wwid")),
            ];
            let sectors: u64 = text(&dir.join("size")).parse().unwrap_or(0);
            DiskFacts {
                path: path.display().to_string(),
                serial: serials
                    .into_iter()
                    .find(|serial| !serial.is_empty())
                    .unwrap_or_default(),
                model: [text(&device.join("vendor")), text(&device.join("model"))]
                    .join(" ")
                    .trim()
                    .to_owned(),
                // The kernel counts in 512 bytes whatever the disk's sectors are.
                size: sectors * 512,
                removable: text(&dir.join("removable")) == "1" || is_usb(dir),
                content: content_of(&path),
                health: None,
            }
        })
        .collect()
}

/// The serial number that stands on the label of a SCSI or SATA disk: SPC-4, 7.8.15,
/// "Unit Serial Number VPD page".
fn scsi_serial(page: &[u8]) -> String {
    let [_, 0x80, high, low, rest @ ..] = page else {
        return String::new();
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let serial = rest.get(..length).unwrap_or(rest);
    let printable = serial
        .iter()
        .filter(|byte| byte.is_ascii_graphic() || **byte == b' ');
    let serial: String = printable.map(|byte| char::from(*byte)).collect();
    serial.trim().to_owned()
}

/// Real disks by their drivers' names; no optical drives, loops, RAM disks,
/// mappings, or boot areas of eMMC. A card reader without a card has no size.
fn is_disk(name: &str, size: &str) -> bool {
    let kinds = ["sd", "vd", "nvme", "mmcblk", "xvd", "hd", "pmem"];
    kinds.iter().any(|kind| name.starts_with(kind))
        && !name.contains("boot")
        && !name.contains("rpmb")
        && !matches!(size, "" | "0")
}

/// A stick that says it is fixed is a stick all the same.
fn is_usb(dir: &Path) -> bool {
    fs::canonicalize(dir).is_ok_and(|path| {
        path.components()
            .any(|part| part.as_os_str().to_string_lossy().starts_with("usb"))
    })
}

/// Says what a disk holds. One that cannot be read holds something foreign: it
/// is erased only when an operator says so.
pub fn content_of(path: &Path) -> DiskContent {
    look(path).unwrap_or_else(|problem| {
        tracing::warn!(disk = %path.display(), %problem, "disk not readable");
        DiskContent::Foreign
    })
}

fn look(path: &Path) -> io::Result<DiskContent> {
    let mut disk = Disk::open_read_only(path)?;
    let size = disk.size();
    let mut empty = true;
    for offset in [0, size.saturating_sub(END)] {
        let length = usize::try_from(END.min(size)).unwrap_or(0);
        let mut end = vec![0; length];
        disk.read_at(offset, &mut end)?;
        empty &= end.iter().all(|byte| *byte == 0);
    }
    if empty {
        return Ok(DiskContent::Empty);
    }
    match slots::gpt::read(&mut disk) {
        Ok(_) => Ok(DiskContent::Leapserv),
        Err(_) => Ok(DiskContent::Foreign),
    }
}

fn nics(root: &Path) -> Vec<NicFacts> {
    sorted(&root.join("sys/class/net"))
        .iter()
        .filter(|dir| is_ethernet(dir))
        .filter_map(|dir| {
            Some(NicFacts {
                name: name_of(dir),
                mac: text(&dir.join("address")).parse::<MacAddr>().ok()?,
                link: text(&dir.join("carrier")) == "1",
            })
        })
        .collect()
}

/// A wired port of real hardware: type 1 is Ethernet, and bridges, tunnels and
/// the like have no device behind them.
fn is_ethernet(dir: &Path) -> bool {
    text(&dir.join("type")) == "1" && dir.join("device").exists() && !dir.join("wireless").exists()
}

/// Names of the Ethernet ports that are there now.
pub fn ports(root: &Path) -> Vec<String> {
    nics(root).into_iter().map(|nic| nic.name).collect()
}

/// Whether a disk is there that could be installed to.
pub fn any_disk(root: &Path) -> bool {
    sorted(&root.join("sys/block"))
        .iter()
        .any(|dir| is_disk(&name_of(dir), &text(&dir.join("size"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn machine() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (path, text) in [
            ("sys/class/dmi/id/product_serial", "LAB-0001\n"),
            (
                "sys/class/dmi/id/product_uuid",
                "AABBCCDD-0000-1111-2222-333344445555\n",
            ),
            ("sys/class/dmi/id/sys_vendor", "QEMU\n"),
            ("sys/class/dmi/id/product_name", "Standard PC\n"),
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: A CPU\nprocessor\t: 1\n",
            ),
            ("proc/meminfo", "MemTotal:        2048 kB\n"),
            ("sys/block/vda/size", "24576\n"),
            ("sys/block/vda/serial", "disk-1\n"),
            ("sys/block/vda/removable", "0\n"),
            ("sys/block/sr0/size", "100\n"),
            ("sys/block/sdb/size", "8\n"),
            ("sys/block/sdb/removable", "1\n"),
            ("sys/block/sdc/size", "0\n"),
            ("sys/class/net/eth0/type", "1\n"),
            ("sys/class/net/eth0/address", "52:54:00:00:00:01\n"),
            ("sys/class/net/eth0/carrier", "1\n"),
            ("sys/class/net/eth0/device/x", ""),
            ("sys/class/net/lo/type", "772\n"),
            ("sys/class/net/br0/type", "1\n"),
            ("sys/firmware/efi/fw_platform_size", "64\n"),
            ("sys/class/tpm/tpm0/tpm_version_major", "2\n"),
        ] {
            put(root, path, text);
        }
        dir
    }

    #[test]
    fn a_machine_is_told_as_it_is() {
        let dir = machine();
        let root = dir.path();
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::write(root.join("dev/vda"), vec![0; 24576 * 512]).unwrap();
        let facts = gather(root);
        assert_eq!(facts.serial, "LAB-0001");
        assert_eq!(facts.uuid, "aabbccdd-0000-1111-2222-333344445555");
        assert_eq!(facts.product, "QEMU Standard PC");
        assert_eq!((facts.cpu.as_str(), facts.cpus), ("A CPU", 2));
        assert_eq!(facts.memory, 2 << 20);
        assert_eq!(facts.firmware, "uefi");
        assert!(facts.tpm && !facts.secure_boot);
        let disks: Vec<_> = facts
            .disks
            .iter()
            .map(|disk| name_of(disk.path.as_ref()))
            .collect();
        assert_eq!(disks, ["sdb", "vda"]);
        assert!(facts.disks[0].removable);
        assert_eq!(facts.disks[0].content, DiskContent::Foreign, "not readable");
        assert_eq!(facts.disks[1].serial, "disk-1");
        assert_eq!(facts.disks[1].size, 24576 * 512);
        assert_eq!(facts.disks[1].content, DiskContent::Empty);
        assert_eq!(facts.nics.len(), 1);
        assert!(facts.nics[0].link);
    }

    #[test]
    fn a_machine_that_tells_nothing_breaks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let facts = gather(dir.path());
        assert_eq!(facts.firmware, "bios");
        assert!(facts.disks.is_empty() && facts.nics.is_empty());
    }

    #[test]
    fn what_is_on_a_disk_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let size = slots::layout::MIN_DISK_SIZE;
        let mut disk = Disk::create(&path, size).unwrap();
        assert_eq!(content_of(&path), DiskContent::Empty);
        disk.write_at(size - 512, b"x").unwrap();
        assert_eq!(content_of(&path), DiskContent::Foreign);
        let layout =
            slots::Layout::plan(size, &model::Digest::of(b"seed"), model::Architecture::OURS)
                .unwrap();
        slots::gpt::write(&mut disk, &layout).unwrap();
        assert_eq!(content_of(&path), DiskContent::Leapserv);
    }

    #[test]
    fn the_serial_on_the_label_of_a_sata_disk_is_read() {
        let page = b"\0\x80\0\x14     S3Z9NB0K123456X";
        assert_eq!(scsi_serial(page), "S3Z9NB0K123456X");
        // Of any length, as a foreign device may send it.
        for length in 0..page.len() {
            assert!(scsi_serial(&page[..length]).len() <= 15);
        }
        assert_eq!(scsi_serial(b"\0\x83\0\x02ab"), "");
        assert_eq!(scsi_serial(b"\0\x80\xff\xff\x1bab\0"), "ab");
    }

    #[test]
    fn what_a_vendor_writes_without_a_serial_number_is_none() {
        for text in ["None", "To be filled by O.E.M.", "Default string", ""] {
            assert_eq!(serial(text), "");
        }
        assert_eq!(serial("7X21"), "7X21");
    }
}
