//! What of a disk is not zeros, and its bytes in pieces of bounded size.

use std::io;
use std::ops::Range;

use slots::extents::{Map, Source};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Returns the ranges that hold data, widened to multiples of `grain`, in order and apart.
pub fn runs(disk: &Map, grain: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    for piece in disk.pieces(0..disk.size()) {
        let end = at + piece.length;
        if !matches!(piece.source, Source::Zeros) {
            let from = at / grain * grain;
            let to = end.next_multiple_of(grain).min(disk.size());
            match runs.last_mut() {
                Some((_, last)) if from <= *last => *last = to.max(*last),
                _ => runs.push((from, to)),
            }
        }
        at = end;
    }
    runs
}

/// Reads a range in pieces and gives each with its place to `take`.
///
/// # Errors
/// Those of the disk's files and of `take`.
pub fn read(
    disk: &Map,
    range: Range<u64>,
    buffer: &mut Vec<u8>,
    take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        buffer.resize(left.min(PIECE), 0);
        disk.read_at(at, buffer)?;
        take(at, buffer)?;
        at += buffer.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_whole_grains_apart_and_hold_everything() {
        let folder = tempfile::tempdir().unwrap();
        let disk = crate::disk::tests::disk(folder.path());
        let runs = runs(&disk, 65_536);
        let mut end = 0;
        for (from, to) in &runs {
            assert!(*from >= end && from % 65_536 == 0 && (to % 65_536 == 0 || *to == disk.size()));
            end = *to;
        }
        assert_eq!(end, disk.size());
        let zeros = |range: Range<u64>| {
            disk.pieces(range)
                .all(|p| matches!(p.source, Source::Zeros))
        };
        for pair in runs.windows(2) {
            assert!(zeros(pair[0].1..pair[1].0));
        }
    }
}
