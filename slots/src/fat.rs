//! A FAT32 file system as a plan: a list of files in, places of bytes out. Pure.
//!
//! Every file and folder lies in one piece, so that its content can stay where
//! it is and be pointed at, and the table can be computed instead of stored.
//! What is of one customer alone comes last: everything before it is the same
//! for all customers of a release.
//!
//! All times are the first day of FAT's calendar. Day 0 of month 0, which would
//! be "no date", is refused by UEFI firmware when a file is renamed; then
//! systemd-boot cannot count its tries.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use model::Digest;

const SECTOR: u64 = 512;
/// Sectors before the first table: boot sector, FSInfo, and a copy of both.
const RESERVED: u64 = 8;
const BACKUP: usize = 6 * 512;
const TABLES: u64 = 2;
const ENTRY: usize = 32;
const LABEL: &[u8; 11] = b"LEAPSERV   ";
/// 1 January 1980.
const FIRST_DAY: u16 = 1 << 5 | 1;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
/// Fewer clusters would make it FAT16.
const MIN_CLUSTERS: u64 = 65_525;
/// More than any folder of ours, and what FAT allows.
const MAX_FOLDER: usize = 65_536 * ENTRY;

const READ_ONLY_AND_HIDDEN_AND_SYSTEM_AND_LABEL: u8 = 0x0f;
const IS_LABEL: u8 = 0x08;
const IS_FOLDER: u8 = 0x10;
const IS_FILE: u8 = 0x20;

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The release's: the same on every disk of it.
    Release,
    /// This disk's.
    Disk,
}

/// A file that shall be in the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path, `/`-separated.
    pub path: String,
    /// Its length in bytes.
    pub length: u64,
    /// Whose it is.
    pub owner: Owner,
}

/// Why files do not make a file system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FatError {
    /// FAT has no such name.
    #[error("{path:?}: no name for a file on FAT")]
    Name {
        /// The path.
        path: String,
    },
    /// Two files have one name; upper and lower case are the same to FAT.
    #[error("{path:?}: is there twice")]
    Twice {
        /// The path.
        path: String,
    },
    /// A file or folder is too long.
    #[error("{path:?}: {length} bytes, more than FAT can hold in one file or folder")]
    TooLong {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: u64,
    },
    /// Everything together does not fit.
    #[error("file system: {need} bytes of files and folders, expected at most {room}")]
    Full {
        /// What is needed.
        need: u64,
        /// What there is.
        room: u64,
    },
    /// No FAT32 has this size.
    #[error("file system: {0} bytes, expected between 33 MiB and 2 TiB")]
    Size(u64),
}

/// Where the parts of a file system lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    sectors: u32,
    cluster: u64,
    table: u64,
    clusters: u64,
}

impl Geometry {
    fn of(size: u64) -> Result<Self, FatError> {
        let bad = FatError::Size(size);
        let sectors = u32::try_from(size / SECTOR).map_err(|_| bad.clone())?;
        // The largest cluster that still leaves enough of them for FAT32.
        let cluster = [8192, 4096, 2048, 1024, 512]
            .into_iter()
            .find(|cluster| size / cluster > 66_600)
            .unwrap_or(512);
        let per_cluster = cluster / SECTOR;
        let rest = u64::from(sectors).saturating_sub(RESERVED);
        let per_table_sector = per_cluster * SECTOR / 4 + TABLES;
        let table_sectors = (rest + 2 * per_cluster).div_ceil(per_table_sector);
        let clusters = rest.saturating_sub(TABLES * table_sectors) / per_cluster;
        if clusters < MIN_CLUSTERS {
            return Err(bad);
        }
        Ok(Self {
            sectors,
            cluster,
            table: table_sectors * SECTOR,
            clusters,
        })
    }

    fn table_start(&self, number: u64) -> u64 {
        RESERVED * SECTOR + number * self.table
    }

    fn place(&self, cluster: u32) -> u64 {
        self.table_start(TABLES) + (u64::from(cluster) - 2) * self.cluster
    }
}

/// A file allocation table of files that all lie in one piece, one after another.
#[derive(Debug, PartialEq, Eq)]
pub struct Chains {
    /// The last cluster of each, rising.
    ends: Vec<u32>,
}

impl Chains {
    /// A table whose chains end with these clusters; the first begins with cluster 2.
    pub fn new(ends: Vec<u32>) -> Self {
        debug_assert!(ends.is_sorted(), "chains come one after another");
        Self { ends }
    }

    /// Returns the length of what is not zero, in bytes.
    pub fn length(&self) -> u64 {
        4 * (u64::from(self.ends.last().copied().unwrap_or(1)) + 1)
    }

    fn entry(&self, cluster: u32) -> u32 {
        match cluster {
            0 => 0x0fff_fff8,
            1 => END_OF_CHAIN,
            _ if self.ends.last().is_none_or(|last| cluster > *last) => 0,
            _ if self.ends.binary_search(&cluster).is_ok() => END_OF_CHAIN,
            _ => cluster + 1,
        }
    }

    /// Fills `buffer` with the table's bytes from `offset` on.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let cluster = u32::try_from(at / 4).unwrap_or(u32::MAX);
            let entry = self.entry(cluster).to_le_bytes();
            let within = usize::try_from(at % 4).expect("less than 4");
            let count = rest.len().min(4 - within);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&entry[within..within + count]);
            at += u64::try_from(count).expect("at most 4");
            rest = later;
        }
    }

    /// Returns what identifies its bytes.
    pub(crate) fn id(&self) -> Digest {
        let bytes: Vec<u8> = self.ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        Digest::of(&bytes)
    }

    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.ends.capacity() * size_of::<u32>()
    }
}

/// A file system that is decided.
#[derive(Debug)]
pub struct Plan {
    geometry: Geometry,
    places: Vec<u64>,
    folders: Vec<(u64, Vec<u8>)>,
    boot: Vec<u8>,
    chains: Chains,
}

struct Folder {
    path: String,
    owner: Owner,
    children: Vec<Child>,
    cluster: u32,
    parent: usize,
}

struct Child {
    name: String,
    node: Node,
}

#[derive(Clone, Copy)]
enum Node {
    File(usize),
    Folder(usize),
}

impl Plan {
    /// Plans a file system over `size` bytes with these files.
    ///
    /// # Errors
    /// [`FatError`].
    pub fn new(size: u64, volume_id: u32, files: &[File]) -> Result<Self, FatError> {
        let geometry = Geometry::of(size)?;
        let mut folders = arrange(files)?;
        let mut next = 2u64;
        let mut ends = Vec::new();
        let mut take = |length: u64| -> u32 {
            let count = length.div_ceil(geometry.cluster);
            if count == 0 {
                return 0;
            }
            // A number that is too large is refused below, with all that is needed.
            let first = u32::try_from(next).unwrap_or(u32::MAX);
            next += count;
            ends.push(u32::try_from(next - 1).unwrap_or(u32::MAX));
            first
        };
        let mut firsts = vec![0; files.len()];
        for owner in [Owner::Release, Owner::Disk] {
            for (index, folder) in folders.iter_mut().enumerate() {
                if folder.owner == owner {
                    let length = folder_length(folder, index == 0)?;
                    folder.cluster = take(length);
                }
            }
            for (first, file) in firsts.iter_mut().zip(files) {
                if file.owner == owner {
                    *first = take(file.length);
                }
            }
        }
        let used = next - 2;
        if used > geometry.clusters {
            return Err(FatError::Full {
                need: used * geometry.cluster,
                room: geometry.clusters * geometry.cluster,
            });
        }
        let mut written = Vec::with_capacity(folders.len());
        for index in 0..folders.len() {
            let bytes = write_folder(&folders, index, files, &firsts, geometry.cluster)?;
            written.push((geometry.place(folders[index].cluster), bytes));
        }
        let places = firsts
            .iter()
            .map(|first| match first {
                0 => geometry.place(2),
                first => geometry.place(*first),
            })
            .collect();
        Ok(Self {
            geometry,
            places,
            folders: written,
            boot: boot_area(&geometry, volume_id, used),
            chains: Chains::new(ends),
        })
    }

    /// Returns where the content of a file lies, by its number in the list of files.
    pub fn place(&self, file: usize) -> u64 {
        self.places[file]
    }

    #[cfg(test)]
    fn place_of_root(&self) -> u64 {
        self.geometry.place(2)
    }

    /// Returns the folders: whole clusters with their places.
    pub fn folders(&self) -> &[(u64, Vec<u8>)] {
        &self.folders
    }

    /// Returns where the two tables lie.
    pub fn tables(&self) -> [Range<u64>; 2] {
        [0, 1].map(|number| {
            let start = self.geometry.table_start(number);
            start..start + self.geometry.table
        })
    }

    /// Returns the head: boot sector, FSInfo and their copies, from byte 0.
    ///
    /// Without it there is no file system, so whoever writes one writes it last.
    pub fn boot(&self) -> &[u8] {
        &self.boot
    }

    /// Returns what the tables hold.
    pub fn chains(&self) -> &Chains {
        &self.chains
    }

    /// Gives away what the tables hold.
    pub fn into_chains(self) -> Chains {
        self.chains
    }
}

/// Puts the files into folders. The first one is the root.
fn arrange(files: &[File]) -> Result<Vec<Folder>, FatError> {
    let mut folders = vec![Folder {
        path: String::new(),
        owner: Owner::Release,
        children: Vec::new(),
        cluster: 0,
        parent: 0,
    }];
    let mut known: BTreeMap<String, usize> = [(String::new(), 0)].into();
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (number, file) in files.iter().enumerate() {
        let twice = || FatError::Twice {
            path: file.path.clone(),
        };
        if u32::try_from(file.length).is_err() {
            return Err(FatError::TooLong {
                path: file.path.clone(),
                length: file.length,
            });
        }
        let mut at = 0;
        let mut rest = file.path.as_str();
        while let Some((name, more)) = rest.split_once('/') {
            check_name(name, &file.path)?;
            let path = format!("{}/{name}", folders[at].path);
            let key = fold(&path);
            let next = match known.get(&key) {
                Some(index) => *index,
                None => {
                    if !names.insert(key.clone()) {
                        return Err(twice());
                    }
                    let index = folders.len();
                    folders.push(Folder {
                        path,
                        owner: Owner::Disk,
                        children: Vec::new(),
                        cluster: 0,
                        parent: at,
                    });
                    folders[at].children.push(Child {
                        name: name.to_owned(),
                        node: Node::Folder(index),
                    });
                    known.insert(key, index);
                    index
                }
            };
            at = next;
            rest = more;
        }
        check_name(rest, &file.path)?;
        let key = fold(&format!("{}/{rest}", folders[at].path));
        if known.contains_key(&key) || !names.insert(key) {
            return Err(twice());
        }
        folders[at].children.push(Child {
            name: rest.to_owned(),
            node: Node::File(number),
        });
    }
    share(&mut folders, files);
    Ok(folders)
}

/// A folder is the release's unless a file of the disk lies right in it. What it says of
/// a folder of the disk below is where that begins, which depends on the release alone.
fn share(folders: &mut [Folder], files: &[File]) {
    for folder in folders {
        let own = folder.children.iter().any(
            |child| matches!(child.node, Node::File(file) if files[file].owner == Owner::Disk),
        );
        folder.owner = if own { Owner::Disk } else { Owner::Release };
    }
}

fn fold(path: &str) -> String {
    path.to_uppercase()
}

fn check_name(name: &str, path: &str) -> Result<(), FatError> {
    let good = !name.is_empty()
        && name.encode_utf16().count() <= 255
        && !name.ends_with(['.', ' '])
        && !name.starts_with(' ')
        && !name
            .chars()
            .any(|c| c.is_control() || "\"*/:<>?\\|".contains(c));
    if good {
        Ok(())
    } else {
        Err(FatError::Name {
            path: path.to_owned(),
        })
    }
}

/// The number of entries of a name: the short one, and long ones where it needs them.
fn entries(name: &str) -> usize {
    match short_name(name) {
        Some(_) => 1,
        None => 1 + name.encode_utf16().count().div_ceil(13),
    }
}

fn folder_length(folder: &Folder, is_root: bool) -> Result<u64, FatError> {
    // The label in the root; the folder itself and the one above elsewhere.
    let head = if is_root { 1 } else { 2 };
    let children: usize = folder.children.iter().map(|c| entries(&c.name)).sum();
    let length = (head + children) * ENTRY;
    let bytes = u64::try_from(length).unwrap_or(u64::MAX);
    if length > MAX_FOLDER {
        return Err(FatError::TooLong {
            path: folder.path.clone(),
            length: bytes,
        });
    }
    Ok(bytes)
}

fn write_folder(
    folders: &[Folder],
    index: usize,
    files: &[File],
    firsts: &[u32],
    cluster: u64,
) -> Result<Vec<u8>, FatError> {
    let folder = &folders[index];
    let mut bytes = Vec::new();
    if index == 0 {
        entry(&mut bytes, *LABEL, IS_LABEL, 0, 0);
    } else {
        // Off-spec would be the root's own cluster: above a folder of the root stands 0.
        let above = match folder.parent {
            0 => 0,
            parent => folders[parent].cluster,
        };
        entry(&mut bytes, *b".          ", IS_FOLDER, folder.cluster, 0);
        entry(&mut bytes, *b"..         ", IS_FOLDER, above, 0);
    }
    let mut taken: BTreeSet<[u8; 11]> = folder
        .children
        .iter()
        .filter_map(|child| short_name(&child.name))
        .collect();
    for child in &folder.children {
        let (attributes, first, length) = match child.node {
            Node::File(number) => (IS_FILE, firsts[number], files[number].length),
            Node::Folder(number) => (IS_FOLDER, folders[number].cluster, 0),
        };
        let short = match short_name(&child.name) {
            Some(short) => short,
            None => {
                let short = alias(&child.name, &taken).ok_or_else(|| FatError::Name {
                    path: format!("{}/{}", folder.path, child.name),
                })?;
                taken.insert(short);
                long_name(&mut bytes, &child.name, &short);
                short
            }
        };
        let length = u32::try_from(length).expect("longer files are refused");
        entry(&mut bytes, short, attributes, first, length);
    }
    let cluster = usize::try_from(cluster).expect("at most 8192");
    bytes.resize(bytes.len().div_ceil(cluster).max(1) * cluster, 0);
    Ok(bytes)
}

fn entry(bytes: &mut Vec<u8>, name: [u8; 11], attributes: u8, first: u32, length: u32) {
    let first = first.to_le_bytes();
    let day = FIRST_DAY.to_le_bytes();
    bytes.extend(name);
    bytes.extend([attributes, 0, 0, 0, 0]);
    bytes.extend(day); // made
    bytes.extend(day); // read
    bytes.extend([first[2], first[3]]);
    bytes.extend([0, 0]);
    bytes.extend(day); // written
    bytes.extend([first[0], first[1]]);
    bytes.extend(length.to_le_bytes());
}

fn is_short(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'()-@^_`{}~".contains(&byte)
}

/// The name as it stands in an entry, where it needs no long one.
fn short_name(name: &str) -> Option<[u8; 11]> {
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let good = (1..=8).contains(&base.len())
        && extension.len() <= 3
        && (extension.is_empty() != name.contains('.'))
        && base.bytes().chain(extension.bytes()).all(is_short);
    good.then(|| padded(base.as_bytes(), extension.as_bytes()))
}

fn padded(base: &[u8], extension: &[u8]) -> [u8; 11] {
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(base);
    short[8..8 + extension.len()].copy_from_slice(extension);
    short
}

/// A short name for a long one that no other has yet.
fn alias(name: &str, taken: &BTreeSet<[u8; 11]>) -> Option<[u8; 11]> {
    let plain = |text: &str, most: usize| -> Vec<u8> {
        text.chars()
            .filter(|c| !matches!(c, ' ' | '.'))
            .map(|c| u8::try_from(c.to_ascii_uppercase()).unwrap_or(b'_'))
            .map(|byte| if is_short(byte) { byte } else { b'_' })
            .take(most)
            .collect()
    };
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let (base, extension) = (plain(base, 8), plain(extension, 3));
    (1..1_000_000u32).find_map(|number| {
        let tail = format!("~{number}");
        let mut numbered = base[..base.len().min(8 - tail.len())].to_vec();
        numbered.extend(tail.bytes());
        let short = padded(&numbered, &extension);
        (!taken.contains(&short)).then_some(short)
    })
}

fn long_name(bytes: &mut Vec<u8>, name: &str, short: &[u8; 11]) {
    let sum = short
        .iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(13) {
        units.push(0);
        units.resize(units.len().div_ceil(13) * 13, 0xffff);
    }
    let count = units.len() / 13;
    for (number, part) in units.chunks(13).enumerate().rev() {
        let last = if number + 1 == count { 0x40 } else { 0 };
        let order = u8::try_from(number + 1).expect("a name has at most 20 parts");
        let text: Vec<u8> = part.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        bytes.push(order | last);
        bytes.extend(&text[..10]);
        bytes.extend([READ_ONLY_AND_HIDDEN_AND_SYSTEM_AND_LABEL, 0, sum]);
        bytes.extend(&text[10..22]);
        bytes.extend([0, 0]);
        bytes.extend(&text[22..]);
    }
}

fn boot_area(geometry: &Geometry, volume_id: u32, used: u64) -> Vec<u8> {
    let mut area = vec![0; usize::try_from(RESERVED * SECTOR).expect("4 KiB")];
    let mut put = |at: usize, bytes: &[u8]| {
        area[at..at + bytes.len()].copy_from_slice(bytes);
        area[BACKUP + at..BACKUP + at + bytes.len()].copy_from_slice(bytes);
    };
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).expect("less than 2 TiB");
    put(0, &[0xeb, 0x58, 0x90]);
    put(3, b"LEAPSERV");
    put(11, &512u16.to_le_bytes());
    put(13, &[sectors(geometry.cluster).to_le_bytes()[0]]);
    put(14, &[8, 0]);
    put(16, &[2]);
    let (small, large) = match u16::try_from(geometry.sectors) {
        Ok(small) => (small, 0),
        Err(_) => (0, geometry.sectors),
    };
    put(19, &small.to_le_bytes());
    put(21, &[0xf8]);
    put(24, &32u16.to_le_bytes());
    put(26, &64u16.to_le_bytes());
    put(32, &large.to_le_bytes());
    put(36, &sectors(geometry.table).to_le_bytes());
    put(44, &2u32.to_le_bytes());
    put(48, &1u16.to_le_bytes());
    put(50, &6u16.to_le_bytes());
    put(64, &[0x80, 0, 0x29]);
    put(67, &volume_id.to_le_bytes());
    put(71, LABEL);
    put(82, b"FAT32   ");
    // Should a BIOS start it: stop.
    put(90, &[0xfa, 0xf4, 0xeb, 0xfd]);
    put(510, &[0x55, 0xaa]);

    put(512, b"RRaA");
    put(512 + 484, b"rrAa");
    let free = u32::try_from(geometry.clusters - used).expect("clusters are numbered in 32 bits");
    let next = u32::try_from(used + 2).expect("clusters are numbered in 32 bits");
    put(512 + 488, &free.to_le_bytes());
    put(512 + 492, &next.to_le_bytes());
    put(512 + 510, &[0x55, 0xaa]);
    area
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::Fat;
    use crate::target::{Disk, Target as _};
    use edge::runner::Tool;
    use proptest::prelude::*;
    use std::path::Path;

    fn file(path: &str, length: u64, owner: Owner) -> File {
        File {
            path: path.to_owned(),
            length,
            owner,
        }
    }

    fn content(number: usize, length: u64) -> Vec<u8> {
        (0..length)
            .map(|at| u8::try_from((at + number as u64 * 31) % 251).unwrap())
            .collect()
    }

    /// Writes a planned file system with content into a file.
    fn write(path: &Path, size: u64, files: &[File]) -> Plan {
        let plan = Plan::new(size, 0x1234_abcd, files).unwrap();
        let mut disk = Disk::create(path, size).unwrap();
        for range in plan.tables() {
            let length = plan.chains().length();
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            plan.chains().read(0, &mut bytes);
            disk.write_at(range.start, &bytes).unwrap();
        }
        for (place, bytes) in plan.folders() {
            disk.write_at(*place, bytes).unwrap();
        }
        for (number, file) in files.iter().enumerate() {
            disk.write_at(plan.place(number), &content(number, file.length))
                .unwrap();
        }
        disk.write_at(0, plan.boot()).unwrap();
        plan
    }

    fn usual() -> Vec<File> {
        let mut files = vec![
            file("EFI/BOOT/BOOTX64.EFI", 124_416, Owner::Release),
            file(
                "EFI/Linux/leapserv_2026.11.1+3.efi",
                3_000_001,
                Owner::Release,
            ),
            file("loader/loader.conf", 21, Owner::Release),
            file("leapserv/customer/layer.json", 462, Owner::Disk),
            file("leapserv/customer/layer.raw", 4096, Owner::Disk),
            file("leapserv/empty", 0, Owner::Release),
            file("a name of exactly 26 lette", 5, Owner::Release),
            file("Gr\u{fc}\u{df}e \u{1f600}.txt", 9, Owner::Release),
            file("LEAPSE~1", 1, Owner::Release),
        ];
        for number in 0..400 {
            files.push(file(
                &format!("leapserv/many/component-{number}.raw"),
                1,
                Owner::Release,
            ));
        }
        files
    }

    fn fsck(path: &Path) {
        let said = Tool::new("fsck.fat").arg("-nv").arg(path).text().unwrap();
        assert!(
            !said.contains("differ") && !said.contains("wrong"),
            "{said}"
        );
    }

    #[test]
    fn fsck_mtools_and_another_library_read_it_back() {
        let folder = tempfile::tempdir().unwrap();
        for size in [40 << 20, 1 << 30] {
            let path = folder.path().join("esp");
            let files = usual();
            write(&path, size, &files);
            fsck(&path);
            let fat = Fat::open(Disk::open_read_only(&path).unwrap()).unwrap();
            for (number, file) in files.iter().enumerate() {
                assert!(
                    fat.read(&file.path).unwrap() == content(number, file.length),
                    "{file:?}"
                );
            }
            let image = |tool: &str| Tool::new(tool).arg("-i").arg(&path);
            let said = image("mdir").args(["-/", "-b", "::/EFI"]).text().unwrap();
            assert!(
                said.contains("::/EFI/Linux/leapserv_2026.11.1+3.efi"),
                "{said}"
            );
            // Firmware refuses to rename a file of day 0 in month 0.
            let said = image("mdir").arg("::/EFI/Linux").text().unwrap();
            assert!(said.contains("1980-01-01"), "{said}");
            // What the boot loader does when it counts a try, and what an update does.
            let old = "::/EFI/Linux/leapserv_2026.11.1+3.efi";
            let new = "::/EFI/Linux/leapserv_2026.11.1+2-1.efi";
            image("mren").args([old, new]).run().unwrap();
            image("mdel")
                .arg("::/leapserv/many/component-7.raw")
                .run()
                .unwrap();
            fsck(&path);
            let fat = Fat::open(Disk::open_read_only(&path).unwrap()).unwrap();
            assert!(
                fat.read("EFI/Linux/leapserv_2026.11.1+2-1.efi").unwrap() == content(1, 3_000_001)
            );
        }
    }

    #[test]
    fn its_geometry_is_that_of_the_disks_that_are_out_there() {
        // Disks were formatted with `fatfs` before; an ESP is never formatted again.
        for size in [40u64 << 20, 300 << 20, 1 << 30] {
            let mut bytes = std::io::Cursor::new(vec![0; usize::try_from(size).unwrap()]);
            let cluster = u32::try_from(Geometry::of(size).unwrap().cluster).unwrap();
            let options = fatfs::FormatVolumeOptions::new()
                .fat_type(fatfs::FatType::Fat32)
                .bytes_per_cluster(cluster)
                .volume_id(7)
                .volume_label(*LABEL);
            fatfs::format_volume(&mut bytes, options).unwrap();
            let plan = Plan::new(size, 7, &[]).unwrap();
            let theirs = bytes.into_inner();
            // All of the parameter block.
            assert_eq!(plan.boot()[11..90], theirs[11..90]);
            assert_eq!(plan.boot()[BACKUP..BACKUP + 512], plan.boot()[..512]);
            assert_eq!(
                plan.folders()[0].1[..12],
                theirs[usize::try_from(plan.place_of_root()).unwrap()..][..12]
            );
        }
        assert_eq!(Geometry::of(1 << 30).unwrap().cluster, 8192);
    }

    #[test]
    fn what_is_of_the_disk_changes_nothing_before_it() {
        let files = |layer| {
            vec![
                file("leapserv/customer/layer.raw", layer, Owner::Disk),
                file("EFI/BOOT/BOOTX64.EFI", 124_416, Owner::Release),
                file("leapserv/releases/1/manifest.json", 20_000, Owner::Release),
            ]
        };
        let [small, large] =
            [1, 900_000].map(|layer| Plan::new(1 << 30, 1, &files(layer)).unwrap());
        assert_eq!(small.places[1..], large.places[1..]);
        assert!(small.place(0) > small.place(1) && small.place(0) > small.place(2));
        let different: Vec<_> = small
            .folders()
            .iter()
            .zip(large.folders())
            .filter(|(one, other)| one != other)
            .collect();
        assert_eq!(different.len(), 1, "only the customer's folder");
    }

    #[test]
    fn what_fat_cannot_hold_is_refused_by_name() {
        let plan = |files: &[File]| Plan::new(1 << 30, 1, files).unwrap_err();
        for path in [
            "",
            "/a",
            "a//b",
            "a/",
            "a:b",
            "a\\b",
            "x/..",
            "a.",
            "a ",
            "\u{7}",
            &"x".repeat(256),
        ] {
            let refused = plan(&[file(path, 1, Owner::Release)]);
            assert_eq!(
                refused,
                FatError::Name {
                    path: path.to_owned()
                }
            );
        }
        for two in [["a/b", "A/B"], ["a", "a/b"], ["a/b", "a"]] {
            let refused = plan(&two.map(|path| file(path, 1, Owner::Release)));
            assert!(matches!(refused, FatError::Twice { .. }), "{two:?}");
        }
        let refused = plan(&[file("a", 4 << 30, Owner::Release)]);
        assert!(matches!(refused, FatError::TooLong { .. }));
        let refused = plan(&[file("a", 1 << 30, Owner::Release)]);
        assert!(matches!(refused, FatError::Full { .. }));
        for size in [0, 1 << 20, 32 << 20, 3 << 40, u64::MAX] {
            assert_eq!(Plan::new(size, 1, &[]).unwrap_err(), FatError::Size(size));
        }
    }

    proptest! {
        #[test]
        fn no_two_files_share_a_cluster(
            files in proptest::collection::vec(("[a-zA-Z~.0-9]{1,12}(/[a-z.A-Z0-9]{1,30}){0,3}", 0u64..100_000, any::<bool>()), 0..40)
        ) {
            let files: Vec<File> = files
                .iter()
                .map(|(path, length, own)| file(path, *length, if *own { Owner::Disk } else { Owner::Release }))
                .collect();
            if let Ok(plan) = Plan::new(64 << 20, 1, &files) {
                let mut places: Vec<_> = files
                    .iter()
                    .enumerate()
                    .filter(|(_, file)| file.length > 0)
                    .map(|(number, file)| (plan.place(number), file.length))
                    .chain(plan.folders().iter().map(|(place, bytes)| (*place, bytes.len() as u64)))
                    .collect();
                places.sort_unstable();
                let mut end = plan.tables()[1].end;
                for (place, length) in places {
                    prop_assert_eq!(place, end, "one after another");
                    end = place + length.next_multiple_of(plan.geometry.cluster);
                }
                prop_assert!(end <= 64 << 20);
            }
        }
    }
}
