//! Partition tables (GPT) of images that may be anybody's, for looking at them.
//!
//! Disks of units have a layout of their own, which the crate `slots` reads
//! and writes; this reads any table, as components with signatures have one.

use std::io;

use serde::Serialize;
use uuid::Uuid;

use crate::block::Block;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its label.
    pub label: String,
    /// Its type.
    pub kind: Uuid,
    /// Its own GUID.
    pub guid: Uuid,
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub size: u64,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// The disk's GUID.
    pub guid: Uuid,
    /// The partitions in use, by number.
    pub partitions: Vec<Partition>,
}

const SIGNATURE: &[u8] = b"EFI PART";
/// More entries than any disk has, and few enough to read at once.
const MAX_ENTRIES: u32 = 1024;

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    u32::from_le_bytes(field.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok());
    u64::from_le_bytes(field.unwrap_or_default())
}

fn guid_at(bytes: &[u8], at: usize) -> Uuid {
    let field = bytes
        .get(at..at + 16)
        .and_then(|field| field.try_into().ok());
    Uuid::from_bytes_le(field.unwrap_or_default())
}

/// Reads the primary table of 512 or 4096 byte sectors; `None` where there is none.
///
/// # Errors
/// `InvalidData` when there is one that contradicts itself, and those of the medium.
pub fn read(block: &impl Block) -> io::Result<Option<Table>> {
    for sector in [512, 4096] {
        let mut header = [0; 92];
        if block.size() < sector * 2 {
            continue;
        }
        block.read_at(sector, &mut header)?;
        if header.starts_with(SIGNATURE) {
            return parse(block, sector, &header).map(Some);
        }
    }
    Ok(None)
}

fn parse(block: &impl Block, sector: u64, header: &[u8; 92]) -> io::Result<Table> {
    let wrong = |problem: String| {
        let text = format!("partition table: {problem}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let mut covered = *header;
    covered[16..20].fill(0);
    if u32_at(header, 12) != 92 || crc32(&covered) != u32_at(header, 16) {
        return Err(wrong("the header's checksum is another one".into()));
    }
    let (count, length) = (u32_at(header, 80), u32_at(header, 84));
    if count > MAX_ENTRIES || !(128..=1024).contains(&length) {
        return Err(wrong(format!("{count} entries of {length} bytes")));
    }
    let mut bytes = vec![0; count as usize * length as usize];
    let at = u64_at(header, 72).checked_mul(sector);
    let at = at.ok_or_else(|| wrong("its entries lie outside of the disk".into()))?;
    block
        .read_at(at, &mut bytes)
        .map_err(|_| wrong("its entries lie outside of the disk".into()))?;
    if crc32(&bytes) != u32_at(header, 88) {
        return Err(wrong("the entries' checksum is another one".into()));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(bytes.chunks_exact(length as usize)) {
        let kind = guid_at(entry, 0);
        if kind.is_nil() {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let place = last
            .checked_add(1)
            .filter(|end| *end > first && *end <= block.size() / sector)
            .map(|end| (first * sector, (end - first) * sector));
        let (start, size) =
            place.ok_or_else(|| wrong(format!("partition {number} lies outside of the disk")))?;
        let label: Vec<u16> = entry[56..128]
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
            .take_while(|unit| *unit != 0)
            .collect();
        partitions.push(Partition {
            number,
            label: String::from_utf16_lossy(&label),
            kind,
            guid: guid_at(entry, 16),
            start,
            size,
        });
    }
    Ok(Table {
        guid: guid_at(header, 56),
        partitions,
    })
}

/// What a type GUID of the Discoverable Partitions Specification means.
pub fn kind_name(kind: &Uuid) -> Option<&'static str> {
    Some(match kind.to_string().as_str() {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "EFI system partition",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "root (x86-64)",
        "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5" => "root verity (x86-64)",
        "41092b05-9fc8-4523-994f-2def0408b176" => "root verity signature (x86-64)",
        "b921b045-1df0-41c3-af44-4c6f280d3fae" => "root (arm64)",
        "df3300ce-d69f-4c92-978c-9bfb0f38d820" => "root verity (arm64)",
        "6db69de6-29f4-4758-a7a5-962190f00ce3" => "root verity signature (arm64)",
        "8484680c-9521-48c6-9c11-b0720656f69e" => "usr (x86-64)",
        "77ff5f63-e7b6-4633-acf4-1565b864c0e6" => "usr verity (x86-64)",
        "e7bb33fb-06cf-4e81-8273-e543b413e2e2" => "usr verity signature (x86-64)",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "Linux data",
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A table of one partition around `content`, which starts at byte 4096.
    pub(crate) fn disk(content: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; 128];
        entry[..16]
            .copy_from_slice(&uuid::uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709").to_bytes_le());
        entry[16] = 7;
        entry[32..40].copy_from_slice(&8_u64.to_le_bytes());
        let last = 8 + content.len().div_ceil(512) as u64 - 1;
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        entry[56] = b'x';
        let mut header = [0; 92];
        header[..8].copy_from_slice(SIGNATURE);
        header[12] = 92;
        header[72] = 2;
        header[80] = 1;
        header[84] = 128;
        header[88..92].copy_from_slice(&crc32(&entry).to_le_bytes());
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        let mut disk = vec![0; 4096];
        disk[512..604].copy_from_slice(&header);
        disk[1024..1152].copy_from_slice(&entry);
        disk.extend_from_slice(content);
        disk.resize(disk.len().next_multiple_of(512) + 512, 0);
        disk
    }

    #[test]
    fn a_table_is_read_and_a_damaged_one_refused() {
        let mut disk = disk(&[1; 1000]);
        let table = read(&disk.as_slice()).unwrap().unwrap();
        assert_eq!(table.partitions.len(), 1);
        let partition = &table.partitions[0];
        assert_eq!((partition.start, partition.size), (4096, 1024));
        assert_eq!(partition.label, "x");
        assert_eq!(kind_name(&partition.kind), Some("root (x86-64)"));
        disk[1024 + 40] ^= 1;
        let refused = read(&disk.as_slice()).unwrap_err();
        assert!(
            refused.to_string().contains("entries' checksum"),
            "{refused}"
        );
        assert_eq!(read(&[0_u8; 9000].as_slice()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(at in 512usize..1152, value in any::<u8>(), cut in 0usize..5000) {
            let mut disk = disk(&[1; 1000]);
            disk[at] = value;
            // With the right sum of a wrong header, reading gets further.
            let mut header = disk[512..604].to_vec();
            header[16..20].fill(0);
            let sum = crc32(&header);
            disk[528..532].copy_from_slice(&sum.to_le_bytes());
            disk.truncate(disk.len() - cut.min(disk.len()));
            let _ = read(&disk.as_slice());
        }
    }
}
