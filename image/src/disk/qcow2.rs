//! QEMU's qcow2, version 3, written in one pass.
//!
//! Which clusters there are is known from the disk's extents before a byte is
//! read, so that header, reference counts and both levels of tables can stand
//! before the data, and the data follow in the order of the disk.

use std::io::{self, Write};

use slots::extents::Map;

use super::extract::{self, runs};

const BITS: u32 = 16;
const CLUSTER: u64 = 1 << BITS;
/// Entries of 8 bytes in a cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Reference counts of 2 bytes in a cluster.
const COUNTS: u64 = CLUSTER / 2;
/// "There is exactly one reference": nothing has to be copied before a write.
const COPIED: u64 = 1 << 63;
const HEADER: u32 = 104;

/// Where the parts of the file lie, in clusters.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    count_table: u64,
    count_blocks: u64,
    first_level: u64,
    second_levels: u64,
    data: u64,
}

impl Plan {
    fn new(size: u64, runs: &[(u64, u64)]) -> Self {
        let data = runs
            .iter()
            .map(|(from, to)| (to - from).div_ceil(CLUSTER))
            .sum();
        let second_levels = tables(runs).len() as u64;
        let first_level = size.div_ceil(CLUSTER * ENTRIES).div_ceil(ENTRIES).max(1);
        let mut plan = Self {
            count_table: 1,
            count_blocks: 1,
            first_level,
            second_levels,
            data,
        };
        // The counts count themselves.
        loop {
            let blocks = plan.total().div_ceil(COUNTS);
            let table = blocks.div_ceil(ENTRIES);
            if (blocks, table) == (plan.count_blocks, plan.count_table) {
                return plan;
            }
            (plan.count_blocks, plan.count_table) = (blocks, table);
        }
    }

    fn first_level_at(&self) -> u64 {
        1 + self.count_table + self.count_blocks
    }

    fn second_levels_at(&self) -> u64 {
        self.first_level_at() + self.first_level
    }

    fn data_at(&self) -> u64 {
        self.second_levels_at() + self.second_levels
    }

    fn total(&self) -> u64 {
        self.data_at() + self.data
    }
}

/// The numbers of the second-level tables that are needed, rising.
fn tables(runs: &[(u64, u64)]) -> Vec<u64> {
    let mut numbers: Vec<u64> = Vec::new();
    for (from, to) in runs {
        let reach = CLUSTER * ENTRIES;
        for number in from / reach..=(to - 1) / reach {
            if numbers.last() != Some(&number) {
                numbers.push(number);
            }
        }
    }
    numbers
}

/// Writes a disk.
///
/// # Errors
/// Those of the disk's files and of `out`.
pub fn write(disk: &Map, out: &mut impl Write, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let runs = runs(disk, CLUSTER);
    let plan = Plan::new(disk.size(), &runs);
    header(disk.size(), &plan, out)?;
    numbers(
        out,
        (0..plan.count_blocks).map(|block| (1 + plan.count_table + block) * CLUSTER),
        plan.count_table,
    )?;
    let mut block = Vec::with_capacity(1 << BITS);
    for number in 0..plan.count_blocks {
        block.clear();
        for cluster in number * COUNTS..(number + 1) * COUNTS {
            block.extend(u16::from(cluster < plan.total()).to_be_bytes());
        }
        out.write_all(&block)?;
    }
    let needed = tables(&runs);
    let mut first = vec![0; usize::try_from(disk.size().div_ceil(CLUSTER * ENTRIES)).unwrap_or(0)];
    for (place, number) in (plan.second_levels_at()..).zip(&needed) {
        let entry = usize::try_from(*number)
            .ok()
            .and_then(|number| first.get_mut(number));
        *entry.expect("tables lie inside of the disk") = (place * CLUSTER) | COPIED;
    }
    numbers(out, first.into_iter(), plan.first_level)?;
    let mut place = plan.data_at();
    let mut runs_left = runs.iter().copied().peekable();
    for number in needed {
        let reach = CLUSTER * ENTRIES;
        let mut table = vec![0; usize::try_from(ENTRIES).expect("8192")];
        while let Some((from, to)) = runs_left.peek_mut() {
            let end = (number + 1) * reach;
            while *from < *to && *from < end {
                let entry =
                    usize::try_from((*from - number * reach) / CLUSTER).expect("8192 at most");
                table[entry] = (place * CLUSTER) | COPIED;
                place += 1;
                *from += CLUSTER;
            }
            if *from < *to {
                break;
            }
            runs_left.next();
        }
        numbers(out, table.into_iter(), 1)?;
    }
    let mut buffer = Vec::new();
    for (from, to) in runs {
        extract::read(disk, from..to, &mut buffer, &mut |at, bytes| {
            progress(at);
            out.write_all(bytes)
        })?;
        pad(out, to)?;
    }
    progress(disk.size());
    Ok(())
}

/// The last cluster is whole, even where the disk ends inside of it.
fn pad(out: &mut impl Write, end: u64) -> io::Result<()> {
    let rest = usize::try_from(end.next_multiple_of(CLUSTER) - end).expect("less than a cluster");
    out.write_all(&vec![0; rest])
}

fn header(size: u64, plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    let mut head = Vec::with_capacity(1 << BITS);
    let first_entries = u32::try_from(size.div_ceil(CLUSTER * ENTRIES));
    let first_entries = first_entries.map_err(|_| io::Error::other("disk too large for qcow2"))?;
    head.extend(b"QFI\xfb");
    head.extend(3u32.to_be_bytes());
    head.extend([0; 12]); // no backing file
    head.extend(BITS.to_be_bytes());
    head.extend(size.to_be_bytes());
    head.extend(0u32.to_be_bytes()); // not encrypted
    head.extend(first_entries.to_be_bytes());
    head.extend((plan.first_level_at() * CLUSTER).to_be_bytes());
    head.extend(CLUSTER.to_be_bytes()); // the table of counts
    head.extend(
        u32::try_from(plan.count_table)
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    head.extend([0; 12]); // no snapshots
    head.extend([0; 24]); // no features
    head.extend(4u32.to_be_bytes()); // counts of 16 bits
    head.extend(HEADER.to_be_bytes());
    head.resize(1 << BITS, 0);
    out.write_all(&head)
}

/// Writes numbers and fills `clusters` up with zeros.
fn numbers(
    out: &mut impl Write,
    numbers: impl Iterator<Item = u64>,
    clusters: u64,
) -> io::Result<()> {
    let mut bytes: Vec<u8> = numbers.flat_map(u64::to_be_bytes).collect();
    bytes.resize(usize::try_from(clusters * CLUSTER).unwrap_or(usize::MAX), 0);
    out.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_count_themselves_and_nothing_overlaps() {
        for clusters in [
            1,
            COUNTS - 6,
            COUNTS - 5,
            COUNTS - 4,
            COUNTS * 3,
            COUNTS * ENTRIES,
        ] {
            let runs = [(0, clusters * CLUSTER)];
            let plan = Plan::new(clusters * CLUSTER, &runs);
            assert!(plan.count_blocks * COUNTS >= plan.total());
            assert!(plan.count_table * ENTRIES >= plan.count_blocks);
        }
        assert_eq!(
            tables(&[
                (0, 1),
                ((512 << 20) - 1, (512 << 20) + 1),
                (4 << 30, 5 << 30)
            ]),
            [0, 1, 8, 9]
        );
    }
}
