//! The partition table on the disk: written whole at birth, changed for one
//! slot by an update.
//!
//! The backup table is made durable before the primary one is touched, and a
//! table that is found broken is restored from the other before anything is
//! changed. So at every moment one of the two is whole, which is what firmware
//! and kernel need.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use ::gpt::disk::LogicalBlockSize;
use ::gpt::partition::Partition as Entry;
use ::gpt::partition_types::{OperatingSystem, Type};
use ::gpt::{GptConfig, mbr};
use model::{Architecture, Digest};

use crate::layout::{Layout, Part, Partition, Slot};
use crate::target::{Stream, Target};

/// Why a partition table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk cannot be read or written.
    #[error("partition table: disk failed")]
    Disk(#[source] io::Error),
    /// Neither table is whole.
    #[error("partition table: neither the primary nor the backup table is valid")]
    NoTable(#[source] ::gpt::GptError),
    /// The table is valid and is not ours.
    #[error("partition table: {problem}, expected the six partitions of LeapServ")]
    Foreign {
        /// What is different.
        problem: String,
    },
    /// The sectors of the disk have a size for which there is no table.
    #[error("partition table: sectors of {0} bytes, expected 512 or 4096")]
    SectorSize(u64),
    /// The table could not be encoded.
    #[error("partition table: not encodable")]
    Encode(#[source] ::gpt::GptError),
}

/// Writes the whole table, durably.
///
/// Nothing else on the disk is touched.
///
/// # Errors
/// The disk failed, or the layout does not fit its sectors.
pub fn write(disk: &mut impl Target, layout: &Layout) -> Result<(), TableError> {
    write_encoded(disk, &encode(block_size(disk)?, layout)?)
}

/// Reads the table: the primary one, or the backup where that is broken.
///
/// # Errors
/// No valid table, or not one of ours.
pub fn read(disk: &mut impl Target) -> Result<Layout, TableError> {
    read_either(disk).map(|(layout, _)| layout)
}

/// Names the release of a slot in the table: its partitions get the GUIDs of `root_hash`.
///
/// Durable when it returns. A power cut in between leaves the old or the new table.
///
/// # Errors
/// As for [`read`] and [`write()`].
pub fn set_slot(disk: &mut impl Target, slot: Slot, root_hash: &Digest) -> Result<(), TableError> {
    let (mut layout, health) = read_either(disk)?;
    if health == Health::PrimaryBroken {
        // The backup is the only whole table: it must not be touched first.
        let restored = encode(block_size(disk)?, &layout)?;
        write_half(disk, &restored.primary)?;
    }
    layout.set_slot(slot, root_hash);
    write_encoded(disk, &encode(block_size(disk)?, &layout)?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    PrimaryGood,
    PrimaryBroken,
}

/// Returns the table as bytes with their places, for a disk with sectors of 512 bytes.
///
/// # Errors
/// The layout does not fit its sectors.
pub fn pieces(layout: &Layout) -> Result<[(u64, Vec<u8>); 4], TableError> {
    let Encoded { primary, backup } = encode(LogicalBlockSize::Lb512, layout)?;
    Ok([
        primary.header,
        primary.entries,
        backup.entries,
        backup.header,
    ])
}

/// One of the two tables as bytes: its entries, and the header that makes them count.
struct Half {
    entries: (u64, Vec<u8>),
    header: (u64, Vec<u8>),
}

struct Encoded {
    primary: Half,
    backup: Half,
}

fn write_encoded(disk: &mut impl Target, table: &Encoded) -> Result<(), TableError> {
    write_half(disk, &table.backup)?;
    write_half(disk, &table.primary)
}

fn write_half(disk: &mut impl Target, half: &Half) -> Result<(), TableError> {
    for (offset, bytes) in [&half.entries, &half.header] {
        disk.write_at(*offset, bytes).map_err(TableError::Disk)?;
        disk.flush().map_err(TableError::Disk)?;
    }
    Ok(())
}

fn block_size(disk: &impl Target) -> Result<LogicalBlockSize, TableError> {
    LogicalBlockSize::try_from(disk.sector_size())
        .map_err(|_| TableError::SectorSize(disk.sector_size()))
}

/// Lets the library write into memory, so that the order on the disk is ours.
fn encode(block: LogicalBlockSize, layout: &Layout) -> Result<Encoded, TableError> {
    let size = block.as_u64();
    let sectors = layout.disk_size / size;
    let mut memory = Overlay::new(layout.disk_size);
    let protective =
        mbr::ProtectiveMBR::with_lb_size(u32::try_from(sectors - 1).unwrap_or(u32::MAX));
    let encode_error = |error: io::Error| TableError::Encode(error.into());
    memory
        .seek(SeekFrom::Start(0))
        .and_then(|_| memory.write_all(&protective.to_bytes()))
        .map_err(encode_error)?;
    let mut table = GptConfig::new()
        .writable(true)
        .logical_block_size(block)
        .create_from_device(&mut memory, Some(layout.disk_guid))
        .map_err(TableError::Encode)?;
    let entries: BTreeMap<u32, Entry> = layout
        .partitions
        .iter()
        .map(|partition| {
            let entry = Entry {
                part_type_guid: Type {
                    guid: partition.part.type_guid(layout.architecture),
                    os: OperatingSystem::None,
                },
                part_guid: partition.guid,
                first_lba: partition.start / size,
                last_lba: (partition.start + partition.size) / size - 1,
                flags: partition.part.attributes(),
                name: partition.part.label().to_owned(),
            };
            (partition.part.number(), entry)
        })
        .collect();
    table
        .update_partitions(entries)
        .map_err(TableError::Encode)?;
    table.write_inplace().map_err(TableError::Encode)?;
    let backup_start = table
        .backup_header()
        .map_err(|error| TableError::Encode(error.into()))?
        .part_start
        * size;
    drop(table);

    let last = (sectors - 1) * size;
    let entries_size = 128 * 128;
    Ok(Encoded {
        primary: Half {
            entries: (2 * size, memory.cut_out(2 * size, entries_size)),
            // The protective MBR goes with the primary header: one without the other is no disk of ours.
            header: (0, memory.cut_out(0, 2 * size)),
        },
        backup: Half {
            entries: (backup_start, memory.cut_out(backup_start, entries_size)),
            header: (last, memory.cut_out(last, size)),
        },
    })
}

fn read_either(disk: &mut impl Target) -> Result<(Layout, Health), TableError> {
    let block = block_size(disk)?;
    let size = disk.size();
    let sector = block.as_u64();
    let open = |stream: &mut dyn Device| {
        GptConfig::new()
            .logical_block_size(block)
            .open_from_device(stream)
            .map(|table| {
                (
                    table.partitions().clone(),
                    *table.guid(),
                    table.primary_header().is_ok(),
                )
            })
    };
    let headers = [sector, size.saturating_sub(sector)];
    // The library panics where entries are of another size than the usual: a header that
    // says so is hidden, as it is not one of ours.
    let mut hidden: Vec<_> = headers
        .into_iter()
        .filter(|at| has_unusual_entries(disk, *at))
        .map(|at| at..at.saturating_add(sector))
        .collect();
    let first = open(&mut Hidden {
        stream: Stream::new(&mut *disk),
        ranges: hidden.clone(),
    });
    let (entries, guid, health) = match first {
        Ok((entries, guid, true)) => (entries, guid, Health::PrimaryGood),
        Ok((entries, guid, false)) => (entries, guid, Health::PrimaryBroken),
        Err(::gpt::GptError::Io(error)) if error.kind() != io::ErrorKind::Other => {
            return Err(TableError::Disk(error));
        }
        // The library takes a primary header whose entries fail their
        // checksum for the only table there is: hide it.
        Err(_) => {
            hidden.push(sector..2 * sector);
            let mut without_primary = Hidden {
                stream: Stream::new(&mut *disk),
                ranges: hidden,
            };
            let (entries, guid, _) = open(&mut without_primary).map_err(TableError::NoTable)?;
            (entries, guid, Health::PrimaryBroken)
        }
    };
    let is = |part: Part, architecture| {
        let entry = entries.get(&part.number());
        entry.filter(|entry| {
            entry.name == part.label() && entry.part_type_guid.guid == part.type_guid(architecture)
        })
    };
    let not = |part: Part| TableError::Foreign {
        problem: format!("partition {} is not {part}", part.number()),
    };
    let root = Part::Root(Slot::A);
    let architecture = Architecture::ALL
        .into_iter()
        .find(|architecture| is(root, *architecture).is_some())
        .ok_or_else(|| not(root))?;
    let partitions = Part::ALL
        .into_iter()
        .map(|part| {
            let entry = is(part, architecture).ok_or_else(|| not(part))?;
            let bytes = entry
                .sectors_len()
                .ok()
                .and_then(|sectors| sectors.checked_mul(sector))
                .filter(|_| entry.last_lba < size / sector)
                .ok_or_else(|| TableError::Foreign {
                    problem: format!("partition {part} lies outside of the disk"),
                })?;
            Ok(Partition {
                part,
                start: entry.first_lba * sector,
                size: bytes,
                guid: entry.part_guid,
            })
        })
        .collect::<Result<_, TableError>>()?;
    if entries.len() != Part::ALL.len() {
        return Err(TableError::Foreign {
            problem: format!("{} partitions", entries.len()),
        });
    }
    let layout = Layout {
        disk_size: size,
        disk_guid: guid,
        architecture,
        partitions,
    };
    Ok((layout, health))
}

/// Whether a table's header tells of entries that have not 128 bytes each.
fn has_unusual_entries(disk: &mut impl Target, header: u64) -> bool {
    let mut bytes = [0; 92];
    // What cannot be read is told when it is wanted.
    if disk.read_at(header, &mut bytes).is_err() || !bytes.starts_with(b"EFI PART") {
        return false;
    }
    bytes[84..88] != 128u32.to_le_bytes()
}

trait Device: Read + Write + Seek + std::fmt::Debug {}
impl<T: Read + Write + Seek + std::fmt::Debug> Device for T {}

/// A stream in which some ranges read as zero.
struct Hidden<T> {
    stream: Stream<T>,
    ranges: Vec<Range<u64>>,
}

impl<T> std::fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hidden").finish_non_exhaustive()
    }
}

impl<T: Target> Read for Hidden<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = self.stream.stream_position()?;
        let length = self.stream.read(buffer)?;
        for (byte, offset) in buffer[..length].iter_mut().zip(start..) {
            if self.ranges.iter().any(|range| range.contains(&offset)) {
                *byte = 0;
            }
        }
        Ok(length)
    }
}

impl<T: Target> Write for Hidden<T> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<T: Target> Seek for Hidden<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.stream.seek(to)
    }
}

/// A disk of zeros in memory that remembers what was written to it.
#[derive(Debug)]
struct Overlay {
    size: u64,
    position: u64,
    pieces: BTreeMap<u64, [u8; 512]>,
}

impl Overlay {
    fn new(size: u64) -> Self {
        Self {
            size,
            position: 0,
            pieces: BTreeMap::new(),
        }
    }

    fn cut_out(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.position = offset;
        Read::take(&mut *self, length)
            .read_to_end(&mut bytes)
            .expect("memory is always readable");
        bytes
    }

    /// The piece at the position, and where in it the position lies.
    fn place(&self, length: usize) -> (u64, usize, usize) {
        let start = self.position / 512 * 512;
        let within = usize::try_from(self.position - start).expect("less than 512");
        let left = usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX);
        (start, within, length.min(512 - within).min(left))
    }
}

impl Read for Overlay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (start, within, length) = self.place(buffer.len());
        match self.pieces.get(&start) {
            Some(piece) => buffer[..length].copy_from_slice(&piece[within..within + length]),
            None => buffer[..length].fill(0),
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl Write for Overlay {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (start, within, length) = self.place(bytes.len());
        self.pieces.entry(start).or_insert([0; 512])[within..within + length]
            .copy_from_slice(&bytes[..length]);
        self.position += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Overlay {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.position = position
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fault::Machine;
    use crate::layout::MIN_DISK_SIZE;

    fn layout() -> Layout {
        Layout::plan(MIN_DISK_SIZE, &Digest::of(b"seed"), Architecture::Amd64).unwrap()
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        for sector in [512, 4096] {
            let mut disk = Machine::new(MIN_DISK_SIZE).with_sector_size(sector);
            assert!(matches!(read(&mut disk), Err(TableError::NoTable(_))));
            write(&mut disk, &layout()).unwrap();
            assert_eq!(read(&mut disk).unwrap(), layout());
        }
    }

    #[test]
    fn a_table_that_is_not_ours_is_said_to_be_foreign() {
        let mut disk = Machine::new(MIN_DISK_SIZE);
        let mut other = layout();
        other.partitions.pop();
        write(&mut disk, &other).unwrap();
        assert!(matches!(read(&mut disk), Err(TableError::Foreign { .. })));
    }

    #[test]
    fn a_power_cut_while_a_slot_is_named_leaves_the_old_or_the_new_table() {
        let mut start = Machine::new(MIN_DISK_SIZE);
        write(&mut start, &layout()).unwrap();
        let mut new = layout();
        let hash = Digest::of(b"root");
        new.set_slot(Slot::B, &hash);

        let steps = {
            let mut disk = start.clone();
            set_slot(&mut disk, Slot::B, &hash).unwrap();
            assert_eq!(read(&mut disk).unwrap(), new);
            disk.steps() - start.steps()
        };
        let (mut olds, mut news) = (0, 0);
        for cut in 0..=steps {
            for seed in 0..8 {
                let mut disk = start.clone();
                disk.cut_after(cut);
                let done = set_slot(&mut disk, Slot::B, &hash).is_ok();
                disk.power_on(seed);
                let found = read(&mut disk).unwrap();
                assert!(found == layout() || found == new, "cut at {cut}");
                assert!(!done || found == new, "acknowledged and lost at {cut}");
                if found == new {
                    news += 1;
                } else {
                    olds += 1;
                }
                // A second cut during the repair must not hurt either.
                for second in 0..=steps + 2 {
                    let mut disk = disk.clone();
                    disk.cut_after(second);
                    drop(set_slot(&mut disk, Slot::B, &hash));
                    disk.power_on(seed + 1);
                    let found = read(&mut disk).unwrap();
                    assert!(found == layout() || found == new, "cuts at {cut}, {second}");
                }
                set_slot(&mut disk, Slot::B, &hash).unwrap();
                assert_eq!(read(&mut disk).unwrap(), new);
            }
        }
        assert!(olds > 0 && news > 0);
    }

    proptest! {
        /// Headers have checksums: half of the damage gets new ones, or nothing behind
        /// them would be read.
        #[test]
        fn no_damage_makes_the_reader_panic(
            flips in proptest::collection::vec((0..34u64 * 512, 1..=255u8), 1..8),
            mended in any::<bool>(),
        ) {
            let mut disk = Machine::new(MIN_DISK_SIZE);
            write(&mut disk, &layout()).unwrap();
            for (at, by) in flips {
                let mut byte = [0];
                disk.read_at(at, &mut byte).unwrap();
                disk.write_at(at, &[byte[0] ^ by]).unwrap();
            }
            if mended {
                let mut entries = vec![0; 128 * 128];
                disk.read_at(1024, &mut entries).unwrap();
                let mut header = [0; 512];
                disk.read_at(512, &mut header).unwrap();
                header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
                header[16..20].fill(0);
                let sum = crc32(&header[..92]);
                header[16..20].copy_from_slice(&sum.to_le_bytes());
                disk.write_at(512, &header).unwrap();
            }
            let _ = read(&mut disk);
        }
    }

    #[test]
    fn a_whole_header_with_entries_of_another_size_is_not_believed() {
        for at in [512, MIN_DISK_SIZE - 512] {
            let mut disk = Machine::new(MIN_DISK_SIZE);
            write(&mut disk, &layout()).unwrap();
            let mut header = [0; 512];
            disk.read_at(at, &mut header).unwrap();
            header[84..88].copy_from_slice(&170u32.to_le_bytes());
            header[16..20].fill(0);
            let sum = crc32(&header[..92]);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            disk.write_at(at, &header).unwrap();
            assert_eq!(read(&mut disk).unwrap(), layout(), "header at {at}");
            // And with the other one damaged there is no table.
            disk.write_at(MIN_DISK_SIZE - at, b"damaged!").unwrap();
            assert!(matches!(read(&mut disk), Err(TableError::NoTable(_))));
        }
    }

    /// The checksum of the UEFI specification's tables (5.3.2).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
            })
        })
    }

    #[test]
    fn other_tools_find_the_table_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let mut disk = crate::Disk::create(&path, MIN_DISK_SIZE).unwrap();
        let mut named = layout();
        write(&mut disk, &named).unwrap();
        set_slot(&mut disk, Slot::A, &Digest::of(b"root")).unwrap();
        named.set_slot(Slot::A, &Digest::of(b"root"));
        let said = edge::runner::Tool::new("sgdisk")
            .arg("--verify")
            .arg(&path)
            .text()
            .unwrap();
        assert!(said.contains("No problems found"), "{said}");
        let said = edge::runner::Tool::new("sgdisk")
            .args(["--info=2", "--print"])
            .arg(&path)
            .text()
            .unwrap()
            .to_lowercase();
        let guid = named.partition(Part::Root(Slot::A)).guid.to_string();
        assert!(said.contains(&guid), "{said}");
        assert!(
            said.contains("root-a") && said.contains("4.0 gib"),
            "{said}"
        );
    }
}
