//! Cutting an image into segments, each compressed on its own.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context as _;
use model::Digest;
use model::release::{SEGMENT_SIZE, Segment, SegmentedImage};

/// Finds the compressed form of a segment that was compressed before.
pub trait FrameStore: Sync {
    /// Returns the frame of the content with this digest, if there is one.
    fn get(&self, content: &Digest) -> Option<Vec<u8>>;
    /// Keeps a frame. A failure only costs time later, so it is not reported.
    fn put(&self, content: &Digest, frame: &[u8]);
}

/// A store that keeps nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoStore;

impl FrameStore for NoStore {
    fn get(&self, _: &Digest) -> Option<Vec<u8>> {
        None
    }

    fn put(&self, _: &Digest, _: &[u8]) {}
}

/// Writes the content of `image` to `to` as one zstd frame for each segment
/// and returns the index. `name` is the path that the index gives the file.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write(
    image: &Path,
    to: &Path,
    name: &str,
    level: i32,
    store: &dyn FrameStore,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<SegmentedImage> {
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let size = file.metadata().context("read the image's size")?.len();
    let mut from = BufReader::with_capacity(1 << 20, file);
    let out = File::create(to).with_context(|| format!("create {}", to.display()))?;
    let mut out = BufWriter::new(out);
    let mut segments = Vec::new();
    let mut stored = 0u64;
    let mut done = 0u64;
    // A few segments at a time, one thread for each: memory stays bounded and
    // the order of the output does not depend on the threads.
    let width = std::thread::available_parallelism().map_or(1, usize::from);
    loop {
        let batch =
            read_batch(&mut from, width).with_context(|| format!("read {}", image.display()))?;
        if batch.is_empty() {
            break;
        }
        let frames = compress_batch(&batch, level, store)?;
        for (content, (sha256, frame)) in batch.iter().zip(frames) {
            out.write_all(&frame)
                .with_context(|| format!("write {}", to.display()))?;
            let length = u32::try_from(content.len()).context("segment length")?;
            let stored_length = u32::try_from(frame.len()).context("frame length")?;
            segments.push(Segment {
                stored_offset: stored,
                stored_length,
                length,
                sha256,
            });
            stored += u64::from(stored_length);
            done += u64::from(length);
        }
        progress(done, size);
    }
    out.flush()
        .with_context(|| format!("write {}", to.display()))?;
    let index = SegmentedImage {
        path: name.to_owned(),
        stored_size: stored,
        size,
        segments,
    };
    index.check().map_err(anyhow::Error::msg)?;
    Ok(index)
}

fn read_batch(from: &mut impl Read, width: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut batch = Vec::new();
    while batch.len() < width {
        let mut segment = Vec::new();
        from.by_ref().take(SEGMENT_SIZE).read_to_end(&mut segment)?;
        if segment.is_empty() {
            break;
        }
        batch.push(segment);
    }
    Ok(batch)
}

fn compress_batch(
    batch: &[Vec<u8>],
    level: i32,
    store: &dyn FrameStore,
) -> anyhow::Result<Vec<(Digest, Vec<u8>)>> {
    let one = |content: &[u8]| -> anyhow::Result<(Digest, Vec<u8>)> {
        let digest = Digest::of(content);
        if let Some(frame) = store.get(&digest) {
            return Ok((digest, frame));
        }
        let frame = zstd::bulk::compress(content, level).context("compress a segment")?;
        store.put(&digest, &frame);
        Ok((digest, frame))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = batch
            .iter()
            .map(|content| scope.spawn(move || one(content)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("compressing does not panic"))
            .collect()
    })
}

/// Writes the content that the segments of `stored` hold to `to`, each
/// segment checked before it is written.
///
/// # Errors
/// When a file cannot be read or written, or a segment is not what the index says.
pub fn read(index: &SegmentedImage, stored: &Path, to: &mut impl Write) -> anyhow::Result<()> {
    index.check().map_err(anyhow::Error::msg)?;
    let file = File::open(stored).with_context(|| format!("open {}", stored.display()))?;
    let mut from = BufReader::with_capacity(1 << 20, file);
    for (number, segment) in index.segments.iter().enumerate() {
        let mut frame = vec![0; segment.stored_length as usize];
        from.read_exact(&mut frame)
            .with_context(|| format!("{}: segment {number}: read", stored.display()))?;
        let content = zstd::bulk::decompress(&frame, segment.length as usize)
            .with_context(|| format!("{}: segment {number}: decompress", stored.display()))?;
        anyhow::ensure!(
            Digest::of(&content) == segment.sha256 && content.len() == segment.length as usize,
            "{}: segment {number}: expected the content with SHA-256 {}",
            stored.display(),
            segment.sha256
        );
        to.write_all(&content).context("write the image")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Vec<u8> {
        (0..(SEGMENT_SIZE * 3 + 4096))
            .map(|i| u8::try_from(i * 7 / 1000 % 251).unwrap())
            .collect()
    }

    #[test]
    fn an_image_survives_its_segments_and_every_frame_stands_alone() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("root");
        let out = folder.path().join("root.zst");
        std::fs::write(&image, content()).unwrap();
        let index = write(&image, &out, "root.zst", 3, &NoStore, &mut |_, _| ()).unwrap();
        assert_eq!(index.segments.len(), 4);
        assert_eq!(index.segments[3].length, 4096);
        let mut back = Vec::new();
        read(&index, &out, &mut back).unwrap();
        assert_eq!(back, content());
        // The third frame alone, as an updater with HTTP ranges reads it.
        let stored = std::fs::read(&out).unwrap();
        let third = &index.segments[2];
        let start = usize::try_from(third.stored_offset).unwrap();
        let frame = &stored[start..start + third.stored_length as usize];
        let alone = zstd::bulk::decompress(frame, third.length as usize).unwrap();
        assert_eq!(Digest::of(&alone), third.sha256);
    }

    #[test]
    fn an_altered_frame_is_refused_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("root");
        let out = folder.path().join("root.zst");
        std::fs::write(&image, content()).unwrap();
        let mut index = write(&image, &out, "root.zst", 1, &NoStore, &mut |_, _| ()).unwrap();
        index.segments[1].sha256 = Digest::of(b"other");
        let refused = read(&index, &out, &mut Vec::new()).unwrap_err();
        assert!(refused.to_string().contains("segment 1"), "{refused}");
    }
}
