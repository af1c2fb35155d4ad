//! The next start from a certain disk, whatever the firmware would try first.
//!
//! A stick that stays in its port is started again and again. `BootNext` (UEFI
//! specification, 3.3) leads past it once: to the unit that was just written, or to the
//! one that is there when nobody wants anything of the installer. The firmware's own
//! order is not touched.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use slots::gpt;
use slots::layout::{Layout, Part};
use slots::{Disk, Target as _};

/// The number of our boot option. It stands in no order of the firmware's.
const NUMBER: u16 = 0x1ea5;
/// Where the kernel shows the firmware's global variables.
const VARIABLES: &str = "sys/firmware/efi/efivars";
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Kept without power, seen by boot services and by us.
const ATTRIBUTES: u32 = 7;
/// `LOAD_OPTION_ACTIVE`.
const ACTIVE: u32 = 1;

/// Makes the firmware's next start begin with the boot loader on this disk.
///
/// # Errors
/// The disk holds no unit, or the firmware takes no variable.
pub fn from_disk(root: &Path, disk: &Path) -> Result<()> {
    let mut disk =
        Disk::open_read_only(disk).with_context(|| format!("open {}", disk.display()))?;
    let layout = gpt::read(&mut disk).context("read the partition table")?;
    let option = load_option(&layout, disk.sector_size());
    set(root, &format!("Boot{NUMBER:04X}"), &option)?;
    set(root, "BootNext", &NUMBER.to_le_bytes())
}

/// The kernel takes a variable in one write: its attributes, then its value.
fn set(root: &Path, name: &str, value: &[u8]) -> Result<()> {
    let path = root.join(VARIABLES).join(format!("{name}-{GLOBAL}"));
    let bytes = [&ATTRIBUTES.to_le_bytes(), value].concat();
    fs::write(&path, bytes).with_context(|| format!("set the firmware's variable {name}"))
}

/// `EFI_LOAD_OPTION` (UEFI specification, 3.1.3) with the device path of a file on a
/// partition (10.3.5.1 and 10.3.5.4).
fn load_option(layout: &Layout, sector: u64) -> Vec<u8> {
    let esp = layout.partition(Part::Esp);
    let loader = slots::esp::boot_loader(layout.architecture).replace('/', "\\");
    let node = |kind: u8, sub_kind: u8, content: &[u8]| {
        let length = u16::try_from(4 + content.len()).expect("a node of some bytes");
        [&[kind, sub_kind][..], &length.to_le_bytes(), content].concat()
    };
    let partition = [
        &esp.part.number().to_le_bytes()[..],
        &(esp.start / sector).to_le_bytes(),
        &(esp.size / sector).to_le_bytes(),
        // As it stands in the partition table.
        &esp.guid.to_bytes_le(),
        // A GUID partition table, and a GUID as signature.
        &[2, 2],
    ]
    .concat();
    let path = [
        node(4, 1, &partition),
        node(4, 4, &ucs2(&format!("\\{loader}"))),
        node(0x7f, 0xff, &[]),
    ]
    .concat();
    let length = u16::try_from(path.len()).expect("a path of some bytes");
    [
        &ACTIVE.to_le_bytes()[..],
        &length.to_le_bytes(),
        &ucs2("LeapServ"),
        &path,
    ]
    .concat()
}

/// Text with its end, as firmware has it.
fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Architecture, Digest};

    const SIZE: u64 = 16 << 30;

    fn layout() -> Layout {
        Layout::plan(SIZE, &Digest::of(b"unit"), Architecture::Amd64).unwrap()
    }

    #[test]
    fn a_boot_option_names_the_partition_and_the_boot_loader() {
        let layout = layout();
        let esp = layout.partition(Part::Esp);
        let option = load_option(&layout, 512);
        // Attributes, length of the path, "LeapServ" and its end.
        let (head, path) = option.split_at(4 + 2 + 2 * 9);
        assert_eq!(head[..4], [1, 0, 0, 0]);
        assert_eq!(
            usize::from(u16::from_le_bytes([head[4], head[5]])),
            path.len()
        );
        // Media, hard drive, 42 bytes; the partition's number.
        assert_eq!(path[..8], [4, 1, 42, 0, 1, 0, 0, 0]);
        assert_eq!(path[8..16], (esp.start / 512).to_le_bytes());
        assert_eq!(path[24..40], esp.guid.to_bytes_le());
        assert_eq!(path[40..42], [2, 2]);
        let file = "\\EFI\\BOOT\\BOOTX64.EFI";
        assert_eq!(path[42..46], [4, 4, 4 + 2 * 22, 0]);
        assert_eq!(path[46..], [ucs2(file), vec![0x7f, 0xff, 4, 0]].concat());
        // A disk of large sectors counts in them.
        let large = load_option(&layout, 4096);
        assert_eq!(large[32..40], (esp.start / 4096).to_le_bytes());
    }

    #[test]
    fn the_firmware_is_told_in_two_variables_and_only_of_a_unit() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(VARIABLES)).unwrap();
        let path = root.path().join("disk");
        let mut disk = Disk::create(&path, SIZE).unwrap();
        assert!(from_disk(root.path(), &path).is_err(), "an empty disk");
        gpt::write(&mut disk, &layout()).unwrap();
        from_disk(root.path(), &path).unwrap();
        let read = |name: &str| {
            let path = root.path().join(VARIABLES).join(format!("{name}-{GLOBAL}"));
            fs::read(path).unwrap()
        };
        assert_eq!(read("BootNext"), [7, 0, 0, 0, 0xa5, 0x1e]);
        assert_eq!(read("Boot1EA5")[4..], load_option(&layout(), 512));
    }
}
