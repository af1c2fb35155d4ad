//! Zstandard, one frame for each mebibyte of the disk, with a table to seek by.
//!
//! `zstd -d` reads it as it is. The table at its end is that of zstd's own
//! seekable format (`contrib/seekable_format`): a frame that others skip.

use std::io::{self, Write};

use slots::extents::{Map, Source};

/// Bytes of the disk in a frame.
const SEGMENT: u64 = 1 << 20;
const LEVEL: i32 = 3;
const SKIPPED: u32 = 0x184d_2a5e;
const SEEKABLE: u32 = 0x8f92_eab1;

/// Writes a disk.
///
/// # Errors
/// Those of the disk's files and of `out`.
pub fn write(disk: &Map, out: &mut impl Write, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    let width = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    let empty = zstd::bulk::compress(&vec![0; 1 << 20], LEVEL)?;
    let mut table: Vec<(u32, u32)> = Vec::new();
    let mut at = 0;
    while at < disk.size() {
        let mut batch = Vec::new();
        while batch.len() < width && at < disk.size() {
            let end = (at + SEGMENT).min(disk.size());
            batch.push(at..end);
            at = end;
        }
        let zeros = |range: &std::ops::Range<u64>| {
            range.end - range.start == SEGMENT
                && disk
                    .pieces(range.clone())
                    .all(|piece| matches!(piece.source, Source::Zeros))
        };
        let compress = |range: &std::ops::Range<u64>| -> io::Result<Option<Vec<u8>>> {
            if zeros(range) {
                return Ok(None);
            }
            let length = usize::try_from(range.end - range.start).expect("at most a segment");
            let mut content = vec![0; length];
            disk.read_at(range.start, &mut content)?;
            zstd::bulk::compress(&content, LEVEL).map(Some)
        };
        let frames: Vec<io::Result<Option<Vec<u8>>>> = if batch.iter().all(zeros) {
            batch.iter().map(|_| Ok(None)).collect()
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> = batch
                    .iter()
                    .map(|range| scope.spawn(|| compress(range)))
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("compressing does not panic"))
                    .collect()
            })
        };
        for (range, frame) in batch.iter().zip(frames) {
            let frame = frame?;
            let frame = frame.as_ref().unwrap_or(&empty);
            out.write_all(frame)?;
            let number = |bytes: u64| u32::try_from(bytes).map_err(io::Error::other);
            table.push((
                number(frame.len() as u64)?,
                number(range.end - range.start)?,
            ));
        }
        progress(at);
    }
    let count = u32::try_from(table.len()).map_err(io::Error::other)?;
    let mut tail = Vec::with_capacity(table.len() * 8 + 17);
    tail.extend(SKIPPED.to_le_bytes());
    tail.extend((count * 8 + 9).to_le_bytes());
    for (stored, length) in table {
        tail.extend(stored.to_le_bytes());
        tail.extend(length.to_le_bytes());
    }
    tail.extend(count.to_le_bytes());
    tail.push(0); // no checksums
    tail.extend(SEEKABLE.to_le_bytes());
    out.write_all(&tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_alone_gives_its_mebibyte() {
        let folder = tempfile::tempdir().unwrap();
        let disk = crate::disk::tests::disk(folder.path());
        let mut out = Vec::new();
        write(&disk, &mut out, &mut |_| ()).unwrap();
        let word = |from: usize| u32::from_le_bytes(out[from..from + 4].try_into().unwrap());
        let end = out.len();
        assert_eq!(word(end - 4), SEEKABLE);
        let count = usize::try_from(word(end - 9)).unwrap();
        assert_eq!(count, 601);
        let table = end - 9 - count * 8;
        let start: usize = (0..512)
            .map(|n| usize::try_from(word(table + n * 8)).unwrap())
            .sum();
        let length = usize::try_from(word(table + 512 * 8)).unwrap();
        let frame = zstd::bulk::decompress(&out[start..start + length], 1 << 20).unwrap();
        let mut expected = vec![0; 1 << 20];
        disk.read_at(512 << 20, &mut expected).unwrap();
        assert!(frame == expected);
    }
}
