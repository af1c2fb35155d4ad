//! VMware's hosted sparse extent (`monolithicSparse`), written in one pass.

use std::io::{self, Write};

use slots::extents::Map;

use super::extract::{self, runs};

const SECTOR: u64 = 512;
/// Sectors of a grain, the unit of allocation.
const GRAIN: u64 = 128;
/// Grains of a table.
const GRAINS: u64 = 512;
const DESCRIPTOR: u64 = 1;
const DESCRIPTOR_SIZE: u64 = 20;

/// Where the parts of the file lie, in sectors.
struct Plan {
    tables: u64,
    copy: u64,
    directory: u64,
    data: u64,
}

impl Plan {
    fn new(sectors: u64) -> Self {
        let tables = sectors.div_ceil(GRAIN * GRAINS);
        let one = directory_size(tables) + tables * GRAINS * 4 / SECTOR;
        let copy = DESCRIPTOR + DESCRIPTOR_SIZE;
        Self {
            tables,
            copy,
            directory: copy + one,
            data: (copy + 2 * one).next_multiple_of(GRAIN),
        }
    }
}

fn directory_size(tables: u64) -> u64 {
    (tables * 4).div_ceil(SECTOR)
}

/// Writes a disk into a file that will be called `name`.
///
/// # Errors
/// Those of the disk's files and of `out`, and a disk of more than 2 TiB of data.
pub fn write(
    disk: &Map,
    name: &str,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let sectors = disk.size().div_ceil(SECTOR);
    let plan = Plan::new(sectors);
    let runs = runs(disk, GRAIN * SECTOR);
    header(sectors, &plan, out)?;
    let mut text = descriptor(disk, sectors, name).into_bytes();
    let room = usize::try_from(DESCRIPTOR_SIZE * SECTOR).expect("10 KiB");
    if text.len() > room {
        return Err(io::Error::other(
            "the name of the file is too long for a VMDK",
        ));
    }
    text.resize(room, 0);
    out.write_all(&text)?;
    for start in [plan.copy, plan.directory] {
        directory(start, &plan, out)?;
        tables(&runs, &plan, out)?;
    }
    let written = plan.directory + (plan.directory - plan.copy);
    let gap = usize::try_from((plan.data - written) * SECTOR).expect("less than a grain");
    out.write_all(&vec![0; gap])?;
    let mut buffer = Vec::new();
    for (from, to) in runs {
        extract::read(disk, from..to, &mut buffer, &mut |at, bytes| {
            progress(at);
            out.write_all(bytes)
        })?;
        let rest = to.next_multiple_of(GRAIN * SECTOR) - to;
        out.write_all(&vec![0; usize::try_from(rest).expect("less than a grain")])?;
    }
    progress(disk.size());
    Ok(())
}

fn header(sectors: u64, plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    head.extend(b"KDMV");
    head.extend(1u32.to_le_bytes());
    // Line ends can be checked, and there is a second directory.
    head.extend(3u32.to_le_bytes());
    head.extend(sectors.to_le_bytes());
    head.extend(GRAIN.to_le_bytes());
    head.extend(DESCRIPTOR.to_le_bytes());
    head.extend(DESCRIPTOR_SIZE.to_le_bytes());
    head.extend(u32::try_from(GRAINS).expect("512").to_le_bytes());
    head.extend(plan.copy.to_le_bytes());
    head.extend(plan.directory.to_le_bytes());
    head.extend(plan.data.to_le_bytes());
    head.push(0); // closed cleanly
    head.extend(b"\n \r\n");
    head.extend([0, 0]); // not compressed
    head.resize(512, 0);
    out.write_all(&head)
}

fn descriptor(disk: &Map, sectors: u64, name: &str) -> String {
    let id = disk.id();
    let id = id.as_bytes();
    let cid = u32::from_le_bytes([id[0], id[1], id[2], id[3]]);
    let name = name.replace(['"', '\n', '\r'], "_");
    let cylinders = (sectors / (16 * 63)).clamp(1, 16_383);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID=ffffffff\n\
         createType=\"monolithicSparse\"\n\n# Extent description\n\
         RW {sectors} SPARSE \"{name}\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n\
         ddb.adapterType = \"lsilogic\"\n"
    )
}

fn directory(start: u64, plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    let first = start + directory_size(plan.tables);
    let mut bytes = Vec::new();
    for table in 0..plan.tables {
        bytes.extend(sector(first + table * GRAINS * 4 / SECTOR)?.to_le_bytes());
    }
    bytes.resize(
        usize::try_from(directory_size(plan.tables) * SECTOR).unwrap_or(usize::MAX),
        0,
    );
    out.write_all(&bytes)
}

fn tables(runs: &[(u64, u64)], plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    let grain = GRAIN * SECTOR;
    let mut place = plan.data;
    let mut left = runs.iter().copied().peekable();
    for table in 0..plan.tables {
        let mut bytes = Vec::with_capacity(2048);
        for number in table * GRAINS..(table + 1) * GRAINS {
            while left.next_if(|(_, to)| *to <= number * grain).is_some() {}
            let here = left.peek().is_some_and(|(from, _)| *from <= number * grain);
            let entry = if here { sector(place)? } else { 0 };
            if here {
                place += GRAIN;
            }
            bytes.extend(entry.to_le_bytes());
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn sector(number: u64) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| io::Error::other("disk too large for a VMDK: 2 TiB of data"))
}
