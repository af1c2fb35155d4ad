//! The one writer of slots.
//!
//! A slot's image comes as independently compressed segments. Each is
//! decompressed into a buffer of bounded size and compared with its signed
//! digest *before* it is written. A segment counts as done only after the
//! data is durable, and what counts as done is kept in a journal, so that a
//! power cut costs at most [`BATCH`] bytes of work. When an interrupted write
//! goes on, every segment of the journal is read back and compared again: the
//! journal saves downloads and is never believed.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use edge::durable::{self, Mode};
use model::release::{ReleaseManifest, SEGMENT_SIZE, SegmentedImage};
use model::{Digest, Verified};
use serde::{Deserialize, Serialize};

use crate::target::Target;

/// Bytes that are written between two flushes.
pub const BATCH: u64 = 16 << 20;
/// The longest stored form of a segment that is accepted, in bytes.
pub const MAX_STORED: u32 = 2 << 20;

/// Which image of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The root file system.
    Root,
    /// Its dm-verity hash tree.
    Verity,
}

/// An image whose segments are signed and cover it without gaps.
///
/// There is no way to make one but from a verified manifest.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a>(&'a SegmentedImage);

impl<'a> Image<'a> {
    /// Takes an image out of a verified manifest.
    ///
    /// # Errors
    /// The manifest is signed, but its segments do not add up.
    pub fn of(
        manifest: &'a Verified<ReleaseManifest>,
        content: Content,
    ) -> Result<Self, WriteError> {
        let image = match content {
            Content::Root => &manifest.root,
            Content::Verity => &manifest.verity,
        };
        image.check().map_err(WriteError::Index)?;
        if let Some(segment) = image.segments.iter().find(|s| s.stored_length > MAX_STORED) {
            return Err(WriteError::Index(format!(
                "{}: a segment of {} stored bytes, expected at most {MAX_STORED}",
                image.path, segment.stored_length
            )));
        }
        Ok(Self(image))
    }

    /// Path of the stored form inside the release's folder.
    pub fn path(&self) -> &'a str {
        &self.0.path
    }

    /// Size of the content in bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Size of the stored form in bytes.
    pub fn stored_size(&self) -> u64 {
        self.0.stored_size
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.0.segments.len()
    }

    /// Says what the image is: equal identities mean equal content.
    pub fn identity(&self) -> Digest {
        let mut bytes = Vec::with_capacity(self.0.segments.len() * 32 + 8);
        bytes.extend_from_slice(&self.0.size.to_le_bytes());
        for segment in &self.0.segments {
            bytes.extend_from_slice(segment.sha256.as_bytes());
        }
        Digest::of(&bytes)
    }
}

/// Why a slot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The signed index does not add up.
    #[error("segment index: {0}")]
    Index(String),
    /// The image is larger than the slot.
    #[error("image {path}: {size} bytes, expected at most {room}")]
    TooLarge {
        /// The image.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// Size of the slot in bytes.
        room: u64,
    },
    /// A segment does not decompress to what the index says. It was not written.
    #[error("image {path}: segment {index}: {problem}")]
    BadSegment {
        /// The image.
        path: String,
        /// Which segment, from 0.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// The slot cannot be read or written.
    #[error("image {path}: slot failed")]
    Target {
        /// The image.
        path: String,
        /// The device's error.
        source: io::Error,
    },
    /// The stored form ended early or could not be read.
    #[error("image {path}: source failed")]
    Source {
        /// The image.
        path: String,
        /// The reader's error.
        source: io::Error,
    },
    /// The journal cannot be written.
    #[error("journal {path}: not written")]
    Journal {
        /// The file.
        path: PathBuf,
        /// Why.
        source: anyhow::Error,
    },
    /// The write was ended before all segments were there.
    #[error("image {path}: {missing} segments are missing")]
    Incomplete {
        /// The image.
        path: String,
        /// How many.
        missing: usize,
    },
}

/// How far a write is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Segments that are durable.
    pub done: u64,
    /// Segments in all.
    pub total: u64,
    /// Segments found done when the write began.
    pub resumed: u64,
    /// Segments copied from the old slot.
    pub copied: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    image: Digest,
    /// One bit for each segment, least significant first, hexadecimal.
    done: String,
}

/// Writes one image to one target.
#[derive(Debug)]
pub struct Writer<'a, T> {
    image: Image<'a>,
    target: T,
    journal: Option<PathBuf>,
    batch: u64,
    done: Vec<bool>,
    /// Written and not yet durable.
    pending: Vec<usize>,
    pending_bytes: u64,
    progress: Progress,
    buffer: Vec<u8>,
}

impl<'a, T: Target> Writer<'a, T> {
    /// Begins a write, or goes on with one that a journal knows of.
    ///
    /// Without a journal nothing survives a restart of the program.
    ///
    /// # Errors
    /// The image does not fit, or the target cannot be read.
    pub fn begin(image: Image<'a>, target: T, journal: Option<&Path>) -> Result<Self, WriteError> {
        if image.size() > target.size() {
            return Err(WriteError::TooLarge {
                path: image.path().to_owned(),
                size: image.size(),
                room: target.size(),
            });
        }
        let mut writer = Self {
            image,
            target,
            journal: journal.map(Path::to_owned),
            batch: BATCH,
            done: vec![false; image.segments()],
            pending: Vec::new(),
            pending_bytes: 0,
            progress: Progress {
                total: image.segments() as u64,
                ..Progress::default()
            },
            buffer: vec![0; segment_size()],
        };
        writer.resume()?;
        Ok(writer)
    }

    /// Flushes after so many bytes instead of [`BATCH`].
    #[must_use]
    pub fn with_batch(mut self, bytes: u64) -> Self {
        self.batch = bytes;
        self
    }

    /// Returns how far the write is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Returns the segments that are still to be pushed.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.done.len())
            .filter(|index| !self.done[*index] && !self.pending.contains(index))
            .collect()
    }

    /// Pushes the stored form of a segment: decompresses, compares, writes.
    ///
    /// # Errors
    /// `BadSegment`: nothing was written, and the segment may be pushed again.
    /// Others end the write.
    pub fn push(&mut self, index: usize, stored: &[u8]) -> Result<(), WriteError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self
            .decompress(index, stored, &mut buffer)
            .and_then(|length| self.push_content(index, &buffer[..length]));
        self.buffer = buffer;
        result
    }

    /// Pushes the content of a segment: compares and writes.
    ///
    /// # Errors
    /// As for [`Writer::push`].
    pub fn push_content(&mut self, index: usize, content: &[u8]) -> Result<(), WriteError> {
        let segment = self.segment(index)?;
        if Digest::of(content) != segment.sha256 {
            return Err(self.bad(index, "content has another SHA-256 than the signed one"));
        }
        if self.done[index] || self.pending.contains(&index) {
            return Ok(());
        }
        self.target
            .write_at(offset(index), content)
            .map_err(|source| self.target_error(source))?;
        self.pending.push(index);
        self.pending_bytes += content.len() as u64;
        if self.pending_bytes >= self.batch {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Copies segments that another image, read through `source`, has too.
    ///
    /// A segment that does not read back as its index says is left out: it is
    /// fetched like any other. Returns how many were copied.
    ///
    /// # Errors
    /// Those of the target.
    pub fn copy_from(
        &mut self,
        old: Image<'_>,
        source: &mut impl Target,
    ) -> Result<usize, WriteError> {
        let places: std::collections::HashMap<Digest, usize> = old
            .0
            .segments
            .iter()
            .enumerate()
            .map(|(index, segment)| (segment.sha256, index))
            .collect();
        let mut copied = 0;
        for index in self.missing() {
            let segment = self.segment(index)?;
            let Some(place) = places.get(&segment.sha256) else {
                continue;
            };
            let mut content = vec![0; to_usize(segment.length)];
            if source.read_at(offset(*place), &mut content).is_err()
                || Digest::of(&content) != segment.sha256
            {
                continue;
            }
            self.push_content(index, &content)?;
            copied += 1;
        }
        self.progress.copied += copied as u64;
        Ok(copied)
    }

    /// Pushes every missing segment from a reader of the whole stored form.
    ///
    /// # Errors
    /// As for [`Writer::push`], and those of the reader.
    pub fn push_all(&mut self, stored: &mut impl Read) -> Result<(), WriteError> {
        let mut frame = Vec::new();
        for index in 0..self.image.segments() {
            let segment = self.segment(index)?;
            frame.resize(to_usize(segment.stored_length), 0);
            stored
                .read_exact(&mut frame)
                .map_err(|source| WriteError::Source {
                    path: self.image.path().to_owned(),
                    source,
                })?;
            if !self.done[index] {
                self.push(index, &frame)?;
            }
        }
        Ok(())
    }

    /// Takes the bytes of a fetched range in pieces as they come.
    pub fn feed<'w>(&'w mut self, range: &FetchRange) -> Feed<'w, 'a, T> {
        Feed {
            next: range.segments.start,
            range: range.clone(),
            writer: self,
            frame: Vec::new(),
        }
    }

    /// Makes what was pushed durable, then says so in the journal.
    ///
    /// # Errors
    /// The target or the journal failed: nothing since the last one counts.
    pub fn checkpoint(&mut self) -> Result<(), WriteError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.target
            .flush()
            .map_err(|source| self.target_error(source))?;
        for index in self.pending.drain(..) {
            self.done[index] = true;
            self.progress.done += 1;
        }
        self.pending_bytes = 0;
        self.write_journal()
    }

    /// Ends the write; the journal stays until [`forget`].
    ///
    /// # Errors
    /// Segments are missing, or the last checkpoint failed.
    pub fn finish(mut self) -> Result<Progress, WriteError> {
        self.checkpoint()?;
        let missing = self.done.iter().filter(|done| !**done).count();
        if missing > 0 {
            return Err(WriteError::Incomplete {
                path: self.image.path().to_owned(),
                missing,
            });
        }
        Ok(self.progress)
    }

    fn decompress(
        &self,
        index: usize,
        stored: &[u8],
        buffer: &mut [u8],
    ) -> Result<usize, WriteError> {
        let segment = self.segment(index)?;
        // The buffer is as long as the content may be: a frame that wants
        // more fails instead of eating memory.
        let room = &mut buffer[..to_usize(segment.length)];
        let length = zstd::bulk::decompress_to_buffer(stored, room)
            .map_err(|error| self.bad(index, &format!("not decompressible: {error}")))?;
        if length != room.len() {
            return Err(self.bad(
                index,
                &format!("decompresses to {length} bytes, expected {}", room.len()),
            ));
        }
        Ok(length)
    }

    fn segment(&self, index: usize) -> Result<&'a model::release::Segment, WriteError> {
        self.image
            .0
            .segments
            .get(index)
            .ok_or_else(|| self.bad(index, "no such segment"))
    }

    fn resume(&mut self) -> Result<(), WriteError> {
        let Some(path) = &self.journal else {
            return Ok(());
        };
        // A journal that cannot be read costs a download and nothing else.
        let known = fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Journal>(&bytes).ok())
            .filter(|journal| journal.image == self.image.identity())
            .and_then(|journal| hex::decode(journal.done).ok())
            .unwrap_or_default();
        for index in 0..self.image.segments() {
            let claimed = known
                .get(index / 8)
                .is_some_and(|byte| byte >> (index % 8) & 1 == 1);
            if claimed && holds(&mut self.target, self.image, index, &mut self.buffer) {
                self.done[index] = true;
                self.progress.done += 1;
                self.progress.resumed += 1;
            }
        }
        Ok(())
    }

    fn write_journal(&self) -> Result<(), WriteError> {
        let Some(path) = &self.journal else {
            return Ok(());
        };
        let mut bits = vec![0u8; self.done.len().div_ceil(8)];
        for (index, _) in self.done.iter().enumerate().filter(|(_, done)| **done) {
            bits[index / 8] |= 1 << (index % 8);
        }
        let journal = Journal {
            image: self.image.identity(),
            done: hex::encode(bits),
        };
        durable::write_json(path, &journal, Mode::Public).map_err(|source| WriteError::Journal {
            path: path.clone(),
            source,
        })
    }

    fn bad(&self, index: usize, problem: &str) -> WriteError {
        WriteError::BadSegment {
            path: self.image.path().to_owned(),
            index,
            problem: problem.to_owned(),
        }
    }

    fn target_error(&self, source: io::Error) -> WriteError {
        WriteError::Target {
            path: self.image.path().to_owned(),
            source,
        }
    }
}

/// The bytes of one fetched range on their way into a [`Writer`].
#[derive(Debug)]
pub struct Feed<'w, 'a, T> {
    writer: &'w mut Writer<'a, T>,
    range: FetchRange,
    next: usize,
    frame: Vec<u8>,
}

impl<T: Target> Feed<'_, '_, T> {
    /// Takes the next bytes; segments that are complete are written.
    ///
    /// # Errors
    /// As for [`Writer::push`].
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() && self.next < self.range.segments.end {
            let length = to_usize(self.writer.segment(self.next)?.stored_length);
            let take = (length - self.frame.len()).min(bytes.len());
            self.frame.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.frame.len() == length {
                // Segments that lie between missing ones were fetched along.
                if !self.writer.done[self.next] {
                    self.writer.push(self.next, &self.frame)?;
                }
                self.frame.clear();
                self.next += 1;
            }
        }
        Ok(())
    }

    /// Says whether every segment of the range has come.
    pub fn complete(&self) -> bool {
        self.next == self.range.segments.end
    }

    /// Returns how far the write is.
    pub fn progress(&self) -> Progress {
        self.writer.progress
    }
}

/// Neighbouring segments that are fetched with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRange {
    /// First byte in the stored form.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// The segments in it.
    pub segments: Range<usize>,
}

/// Puts missing segments together to few requests.
///
/// Two missing segments with at most `gap` bytes between them go together;
/// a request has at most `most` bytes unless one segment alone has more.
/// `missing` must rise.
pub fn fetch_ranges(image: Image<'_>, missing: &[usize], gap: u64, most: u64) -> Vec<FetchRange> {
    let mut ranges: Vec<FetchRange> = Vec::new();
    for index in missing {
        let Some(segment) = image.0.segments.get(*index) else {
            continue;
        };
        let end = segment.stored_offset + u64::from(segment.stored_length);
        if let Some(last) = ranges.last_mut() {
            let last_end = last.offset + last.length;
            if segment.stored_offset - last_end <= gap && end - last.offset <= most {
                last.length = end - last.offset;
                last.segments.end = index + 1;
                continue;
            }
        }
        ranges.push(FetchRange {
            offset: segment.stored_offset,
            length: u64::from(segment.stored_length),
            segments: *index..index + 1,
        });
    }
    ranges
}

/// Reads everything back and compares it with the signed index.
///
/// # Errors
/// The first segment that is not as signed, or that cannot be read.
pub fn verify(image: Image<'_>, target: &mut impl Target) -> Result<(), WriteError> {
    let mut buffer = vec![0; segment_size()];
    for index in 0..image.segments() {
        if !holds(target, image, index, &mut buffer) {
            return Err(WriteError::BadSegment {
                path: image.path().to_owned(),
                index,
                problem: "does not read back as signed".to_owned(),
            });
        }
    }
    Ok(())
}

/// Removes the journal of a write that is over.
///
/// # Errors
/// The file is there and cannot be removed.
pub fn forget(journal: &Path) -> io::Result<()> {
    match fs::remove_file(journal) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn holds(target: &mut impl Target, image: Image<'_>, index: usize, buffer: &mut [u8]) -> bool {
    let segment = &image.0.segments[index];
    let content = &mut buffer[..to_usize(segment.length)];
    target.read_at(offset(index), content).is_ok() && Digest::of(content) == segment.sha256
}

fn offset(index: usize) -> u64 {
    index as u64 * SEGMENT_SIZE
}

fn segment_size() -> usize {
    usize::try_from(SEGMENT_SIZE).expect("a segment fits into memory")
}

fn to_usize(length: u32) -> usize {
    usize::try_from(length).expect("a usize has 32 bits at least")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fault::Machine;
    use model::release::{Artifact, Segment};
    use model::trust::RoleKeys;
    use model::{Role, Signer, TrustRoot};

    pub(crate) fn content(size: usize, seed: u8) -> Vec<u8> {
        (0..size)
            .map(|at| u8::try_from((at / 512 * 7 + at % 251) % 256).unwrap() ^ seed)
            .collect()
    }

    /// An image and its stored form.
    pub(crate) fn stored(path: &str, content: &[u8]) -> (SegmentedImage, Vec<u8>) {
        let mut file = Vec::new();
        let segments = content
            .chunks(segment_size())
            .map(|chunk| {
                let frame = zstd::bulk::compress(chunk, 1).unwrap();
                let segment = Segment {
                    stored_offset: file.len() as u64,
                    stored_length: u32::try_from(frame.len()).unwrap(),
                    length: u32::try_from(chunk.len()).unwrap(),
                    sha256: Digest::of(chunk),
                };
                file.extend_from_slice(&frame);
                segment
            })
            .collect();
        let image = SegmentedImage {
            path: path.to_owned(),
            stored_size: file.len() as u64,
            size: content.len() as u64,
            segments,
        };
        (image, file)
    }

    pub(crate) fn artifact(path: &str, bytes: &[u8]) -> Artifact {
        Artifact {
            path: path.to_owned(),
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
        }
    }

    pub(crate) fn signed(manifest: &ReleaseManifest) -> Verified<ReleaseManifest> {
        let signer = Signer::from_seed(&[1; 32]);
        let keys = RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        let root = TrustRoot {
            version: 1,
            roles: [(Role::Targets, keys)].into(),
            recovery: vec![],
        };
        let signed = signer.sign(manifest);
        root.verify(&signed, "2026-11-22T00:00:00Z".parse().unwrap())
            .unwrap()
    }

    pub(crate) fn manifest(root: SegmentedImage, verity: SegmentedImage) -> ReleaseManifest {
        ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b"root hash"),
            root,
            verity,
            uki: artifact("leapserv.efi", b"uki"),
            boot_loader: artifact("systemd-bootx64.efi", b"loader"),
            installer: artifact("installer.efi", b"installer"),
            components: vec![],
            documents: Vec::new(),
            tries: 3,
            secure_boot: None,
        }
    }

    fn release(content: &[u8]) -> (Verified<ReleaseManifest>, Vec<u8>) {
        let (root, file) = stored("root.seg", content);
        let (verity, _) = stored("verity.seg", b"tree");
        (signed(&manifest(root, verity)), file)
    }

    const MIB: usize = 1 << 20;

    #[test]
    fn an_image_is_written_as_signed_and_reads_back() {
        let content = content(5 * MIB / 2, 1);
        let (release, file) = release(&content);
        let image = Image::of(&release, Content::Root).unwrap();
        let mut disk = Machine::new(4 << 20);
        let mut writer = Writer::begin(image, &mut disk, None).unwrap();
        writer.push_all(&mut file.as_slice()).unwrap();
        assert_eq!(writer.finish().unwrap().done, 3);
        verify(image, &mut disk).unwrap();
        let mut read = vec![0; content.len()];
        disk.read_at(0, &mut read).unwrap();
        assert!(read == content);
        disk.rot(2 << 20);
        let error = verify(image, &mut disk).unwrap_err();
        assert!(matches!(error, WriteError::BadSegment { index: 2, .. }));
    }

    #[test]
    fn a_segment_that_is_not_as_signed_is_never_written() {
        let (release, file) = release(&content(2 * MIB, 1));
        let image = Image::of(&release, Content::Root).unwrap();
        let mut disk = Machine::new(4 << 20);
        let mut writer = Writer::begin(image, &mut disk, None).unwrap();
        let first = usize::try_from(image.0.segments[1].stored_offset).unwrap();
        let other = zstd::bulk::compress(&content(MIB, 2), 1).unwrap();
        let bomb = zstd::bulk::compress(&vec![0; 64 * MIB], 1).unwrap();
        let short = zstd::bulk::compress(&content(MIB - 1, 1), 1).unwrap();
        for bad in [&other[..], &bomb, &short, &file[..first - 1], b"", b"junk"] {
            let refused = writer.push(0, bad).unwrap_err();
            assert!(matches!(refused, WriteError::BadSegment { index: 0, .. }));
        }
        // The second segment in the first one's place is signed, but not there.
        assert!(writer.push(0, &file[first..]).is_err());
        assert!(writer.push(7, &file[first..]).is_err());
        assert!(writer.checkpoint().is_ok());
        assert_eq!(disk.steps(), 0, "something was written");
    }

    #[test]
    fn an_image_that_does_not_fit_is_refused() {
        let (release, _) = release(&content(2 * MIB, 1));
        let image = Image::of(&release, Content::Root).unwrap();
        let refused = Writer::begin(image, Machine::new(1 << 20), None).unwrap_err();
        assert!(matches!(refused, WriteError::TooLarge { .. }));
    }

    #[test]
    fn an_index_with_a_gap_is_refused_even_when_signed() {
        let (mut root, _) = stored("root.seg", &content(2 * MIB, 1));
        root.segments[1].stored_offset += 1;
        let (verity, _) = stored("verity.seg", b"tree");
        let release = signed(&manifest(root, verity));
        assert!(matches!(
            Image::of(&release, Content::Root),
            Err(WriteError::Index(_))
        ));
    }

    #[test]
    fn a_power_cut_at_any_write_or_flush_loses_only_what_was_not_acknowledged() {
        let content = content(6 * MIB, 3);
        let (release, file) = release(&content);
        let image = Image::of(&release, Content::Root).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let run = |disk: &mut Machine, journal: &Path| -> Result<Progress, WriteError> {
            let mut writer = Writer::begin(image, disk, Some(journal))?.with_batch(2 << 20);
            writer.push_all(&mut file.as_slice())?;
            writer.finish()
        };
        let whole = {
            let mut disk = Machine::new(8 << 20);
            run(&mut disk, &folder.path().join("whole")).unwrap();
            disk.steps()
        };
        assert_eq!(whole, 6 + 3);
        let mut resumed = 0;
        for cut in 0..whole {
            let journal = folder.path().join(format!("cut-{cut}"));
            let mut disk = Machine::new(8 << 20);
            disk.cut_after(cut);
            assert!(run(&mut disk, &journal).is_err());
            disk.power_on(cut + 1);
            let before = disk.steps();
            let progress = run(&mut disk, &journal).unwrap();
            assert_eq!(progress.done, 6);
            // A batch is written again, or it was acknowledged and is not.
            assert_eq!(progress.resumed, cut / 3 * 2, "cut at {cut}");
            assert!(disk.steps() - before <= whole - cut / 3 * 3);
            resumed += progress.resumed;
            verify(image, &mut disk).unwrap();
        }
        assert!(resumed > 0);
    }

    #[test]
    fn a_journal_is_not_believed() {
        let (release, file) = release(&content(3 * MIB, 3));
        let image = Image::of(&release, Content::Root).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("journal");
        let mut disk = Machine::new(4 << 20);
        let mut writer = Writer::begin(image, &mut disk, Some(&journal)).unwrap();
        writer.push_all(&mut file.as_slice()).unwrap();
        writer.finish().unwrap();
        disk.rot(1 << 20);
        let writer = Writer::begin(image, &mut disk, Some(&journal)).unwrap();
        assert_eq!(writer.missing(), [1]);
        // Another disk has nothing of it, and another image has another journal.
        let writer = Writer::begin(image, Machine::new(4 << 20), Some(&journal)).unwrap();
        assert_eq!(writer.missing(), [0, 1, 2]);
        fs::write(&journal, b"{").unwrap();
        let writer = Writer::begin(image, &mut disk, Some(&journal)).unwrap();
        assert_eq!(writer.missing(), [0, 1, 2]);
        forget(&journal).unwrap();
        forget(&journal).unwrap();
    }

    #[test]
    fn what_the_old_slot_has_is_copied_and_checked() {
        let old_content = content(4 * MIB, 5);
        let mut new_content = old_content.clone();
        // Segment 1 changes, and 0 and 3 change places.
        new_content[MIB..2 * MIB].fill(9);
        new_content[..MIB].copy_from_slice(&old_content[3 * MIB..]);
        new_content[3 * MIB..].copy_from_slice(&old_content[..MIB]);
        let (old, old_file) = release(&old_content);
        let (new, _) = release(&new_content);
        let old = Image::of(&old, Content::Root).unwrap();
        let new = Image::of(&new, Content::Root).unwrap();
        let mut source = Machine::new(4 << 20);
        let mut writer = Writer::begin(old, &mut source, None).unwrap();
        writer.push_all(&mut old_file.as_slice()).unwrap();
        writer.finish().unwrap();
        source.rot(2 << 20);

        let mut disk = Machine::new(4 << 20);
        let mut writer = Writer::begin(new, &mut disk, None).unwrap();
        assert_eq!(writer.copy_from(old, &mut source).unwrap(), 2);
        assert_eq!(writer.missing(), [1, 2]);
        assert!(matches!(
            writer.finish(),
            Err(WriteError::Incomplete { missing: 2, .. })
        ));
    }

    #[test]
    fn neighbours_are_fetched_together_and_fed_in_any_pieces() {
        let content = content(5 * MIB, 3);
        let (release, file) = release(&content);
        let image = Image::of(&release, Content::Root).unwrap();
        let ranges = fetch_ranges(image, &[0, 1, 3], 0, u64::MAX);
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].segments, 0..2);
        assert_eq!(ranges[1].segments, 3..4);
        assert_eq!(fetch_ranges(image, &[0, 1, 3], u64::MAX, u64::MAX).len(), 1);
        assert_eq!(fetch_ranges(image, &[0, 1, 3], u64::MAX, 1).len(), 3);
        assert_eq!(fetch_ranges(image, &[], 0, 1), []);

        let mut disk = Machine::new(8 << 20);
        let mut writer = Writer::begin(image, &mut disk, None).unwrap();
        for range in fetch_ranges(image, &[0, 1, 3], u64::MAX, u64::MAX) {
            let start = usize::try_from(range.offset).unwrap();
            let end = start + usize::try_from(range.length).unwrap();
            let mut feed = writer.feed(&range);
            for piece in file[start..end].chunks(777) {
                assert!(!feed.complete());
                feed.push(piece).unwrap();
            }
            assert!(feed.complete());
        }
        assert_eq!(writer.missing(), [4]);
    }
}
