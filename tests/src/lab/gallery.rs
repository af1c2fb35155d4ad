//! The customer's photo gallery: some hundred files that look like photos.
//!
//! The bytes follow from a seed alone, so that every run, and every restore,
//! can be compared with what the gallery must be, not with a copy of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use model::Digest;

/// What a gallery looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gallery {
    /// Seed of all bytes, sizes and names.
    pub seed: u64,
    /// Number of photos.
    pub photos: u32,
    /// Mean size of a photo in bytes. Sizes vary from half of it to one and a half.
    pub mean_size: u32,
}

impl Default for Gallery {
    /// 400 photos of about 100 KiB: 40 MiB.
    fn default() -> Self {
        Self {
            seed: 0x6c65_6170,
            photos: 400,
            mean_size: 100 * 1024,
        }
    }
}

/// One photo of a gallery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Photo {
    /// Path inside the gallery, with `/` between its parts.
    pub path: String,
    /// The photo's bytes.
    pub bytes: Vec<u8>,
}

/// Paths and digests of all files under a folder: what two trees are compared by.
pub type Tree = BTreeMap<String, Digest>;

impl Gallery {
    /// Returns all photos, made one at a time.
    pub fn photos(&self) -> impl Iterator<Item = Photo> + use<> {
        let Self {
            seed,
            photos,
            mean_size,
        } = *self;
        (0..photos).map(move |index| photo(seed, index, mean_size))
    }

    /// Writes the gallery below `folder`, which is made when it is missing.
    /// Returns what the folder must hold.
    ///
    /// # Errors
    /// A file or folder cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<Tree> {
        let mut tree = Tree::new();
        for photo in self.photos() {
            let path = folder.join(&photo.path);
            let parent = path.parent().expect("a photo lies in an album");
            fs::create_dir_all(parent)
                .with_context(|| format!("make album {}", parent.display()))?;
            fs::write(&path, &photo.bytes)
                .with_context(|| format!("write photo {}", path.display()))?;
            tree.insert(photo.path, Digest::of(&photo.bytes));
        }
        Ok(tree)
    }

    /// Returns what a folder with this gallery must hold, without writing it.
    #[must_use]
    pub fn tree(&self) -> Tree {
        self.photos()
            .map(|photo| (photo.path, Digest::of(&photo.bytes)))
            .collect()
    }

    /// Returns the bytes of all photos together.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.photos().map(|photo| photo.bytes.len() as u64).sum()
    }
}

/// Reads a folder into paths and digests. Folders count only through their files.
///
/// # Errors
/// A file or folder cannot be read.
pub fn tree_of(folder: &Path) -> anyhow::Result<Tree> {
    let mut tree = Tree::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(at) = open.pop() {
        let entries = fs::read_dir(&at).with_context(|| format!("list folder {}", at.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("list folder {}", at.display()))?
                .path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = fs::read(&path).with_context(|| format!("read file {}", path.display()))?;
            let name = path.strip_prefix(folder).unwrap_or(&path);
            tree.insert(name.to_string_lossy().into_owned(), Digest::of(&bytes));
        }
    }
    Ok(tree)
}

/// Says in words how two trees differ, or returns nothing when they are the same.
#[must_use]
pub fn difference(expected: &Tree, found: &Tree) -> Option<String> {
    if expected == found {
        return None;
    }
    let missing: Vec<_> = expected
        .keys()
        .filter(|path| !found.contains_key(*path))
        .collect();
    let extra: Vec<_> = found
        .keys()
        .filter(|path| !expected.contains_key(*path))
        .collect();
    let altered: Vec<_> = expected
        .iter()
        .filter(|(path, digest)| found.get(*path).is_some_and(|other| other != *digest))
        .map(|(path, _)| path)
        .collect();
    let part = |word: &str, paths: &[&String]| {
        let first = paths.first().map(|path| format!(" ({path})"));
        format!("{} {word}{}", paths.len(), first.unwrap_or_default())
    };
    Some(format!(
        "of {} files: {}, {}, {}",
        expected.len(),
        part("missing", &missing),
        part("altered", &altered),
        part("too many", &extra)
    ))
}

fn photo(seed: u64, index: u32, mean_size: u32) -> Photo {
    const ALBUMS: [&str; 5] = ["boats", "dockside", "harvest", "people", "plant"];
    let mut noise = Noise(seed ^ (u64::from(index) << 32));
    let album = ALBUMS[index as usize % ALBUMS.len()];
    let year = 2019 + index / 80;
    let spread = noise.next() % u64::from(mean_size.max(64));
    let size = usize::try_from(u64::from(mean_size / 2) + spread).expect("a photo fits memory");
    // Start of image, the JFIF segment, a comment; then the "compressed" body.
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xe0, 0x00, 0x10];
    bytes.extend(b"JFIF\0\x01\x02\0\0\x48\0\x48\0\0");
    let comment = format!("{album} {year} #{index}");
    bytes.extend([0xff, 0xfe]);
    let length = u16::try_from(comment.len() + 2).expect("a comment is short");
    bytes.extend(length.to_be_bytes());
    bytes.extend(comment.as_bytes());
    while bytes.len() < size {
        bytes.extend(noise.next().to_le_bytes());
    }
    bytes.extend([0xff, 0xd9]);
    Photo {
        path: format!("{year}/{album}/IMG_{:04}.JPG", 1000 + index),
        bytes,
    }
}

/// `SplitMix64`: a short generator whose output never changes between releases
/// of a crate, which the comparison across runs rests on.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Gallery = Gallery {
        seed: 7,
        photos: 12,
        mean_size: 2048,
    };

    #[test]
    fn a_written_gallery_reads_back_as_described() {
        let folder = tempfile::tempdir().unwrap();
        let written = SMALL.write(folder.path()).unwrap();
        assert_eq!(written, SMALL.tree());
        assert_eq!(tree_of(folder.path()).unwrap(), written);
        assert_eq!(written.len(), 12);
    }

    #[test]
    fn photos_begin_and_end_as_jpeg_files_do() {
        for photo in SMALL.photos() {
            assert_eq!(photo.bytes[..4], [0xff, 0xd8, 0xff, 0xe0]);
            assert_eq!(&photo.bytes[6..10], b"JFIF");
            assert!(photo.bytes.ends_with(&[0xff, 0xd9]));
        }
    }

    #[test]
    fn the_default_gallery_is_a_few_hundred_files_of_tens_of_megabytes() {
        let gallery = Gallery::default();
        let megabytes = gallery.total_size() / 1_000_000;
        assert!((30..60).contains(&megabytes), "{megabytes} MB");
    }

    #[test]
    fn another_seed_makes_other_photos() {
        let other = Gallery { seed: 8, ..SMALL };
        assert!(difference(&SMALL.tree(), &other.tree()).is_some());
    }

    #[test]
    fn a_difference_counts_and_names_files() {
        let mut found = SMALL.tree();
        let (gone, _) = found.pop_first().unwrap();
        found.insert("new.JPG".to_owned(), Digest::of(b"new"));
        let words = difference(&SMALL.tree(), &found).unwrap();
        assert_eq!(
            words,
            format!("of 12 files: 1 missing ({gone}), 0 altered, 1 too many (new.JPG)")
        );
    }
}
