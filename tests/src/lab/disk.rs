//! Reading a machine's disk from outside, without mounting it and without our own code.
//!
//! The partition table is parsed here; the rest is asked of Debian's tools: `mtools` for
//! the system partition, `veritysetup` for the verity trees, `debugfs` for ext4. The disk
//! itself is never written.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use edge::runner::Tool;
use rustix::fs::SeekFrom as Extent;

const SECTOR: u64 = 512;

/// Why a disk's partition table cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableError {
    /// No GPT header stands in sector 1: the disk may be empty.
    #[error("no partition table: expected a GPT header in sector 1")]
    Missing,
    /// The header is there and makes no sense.
    #[error("partition table: {0}")]
    Damaged(&'static str),
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Number, from 1.
    pub number: u32,
    /// Name in the table.
    pub name: String,
    /// Type GUID, lower case.
    pub kind: String,
    /// The partition's own GUID, lower case.
    pub id: String,
    /// Attribute bits.
    pub attributes: u64,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// A disk image with its partition table.
#[derive(Debug, Clone)]
pub struct DiskImage {
    path: PathBuf,
    partitions: Vec<Partition>,
}

/// A file on the system partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspFile {
    /// Path with a leading `/`.
    pub path: String,
}

/// A copy of an ext4 partition, its journal replayed.
#[derive(Debug)]
pub struct Ext4 {
    image: PathBuf,
}

impl DiskImage {
    /// Reads the partition table of a disk image.
    ///
    /// # Errors
    /// The image cannot be read, or has no partition table (a [`TableError`]).
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("open disk {}", path.display()))?;
        // Header and entries lie in the first 34 sectors of every disk of 128 entries.
        let mut head = Vec::new();
        file.take(34 * SECTOR)
            .read_to_end(&mut head)
            .with_context(|| format!("read disk {}", path.display()))?;
        let partitions = partitions(&head).with_context(|| format!("disk {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            partitions,
        })
    }

    /// All partitions in the table's order.
    #[must_use]
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// The partition of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn partition(&self, name: &str) -> anyhow::Result<&Partition> {
        let found = self
            .partitions
            .iter()
            .find(|partition| partition.name == name);
        found.with_context(|| {
            let names: Vec<_> = self
                .partitions
                .iter()
                .map(|part| part.name.as_str())
                .collect();
            format!(
                "disk {}: no partition {name}, only {}",
                self.path.display(),
                names.join(", ")
            )
        })
    }

    /// Lets `sgdisk` judge the table, backup copy and checksums included.
    ///
    /// # Errors
    /// It found a problem.
    pub async fn verify_table(&self) -> anyhow::Result<()> {
        let said = Tool::new("sgdisk")
            .arg("--verify")
            .arg(&self.path)
            .text_async()
            .await?;
        ensure!(
            said.contains("No problems found"),
            "disk {}: sgdisk says:\n{said}",
            self.path.display()
        );
        Ok(())
    }

    /// Lists all files of the FAT partition `name`.
    ///
    /// # Errors
    /// There is no such partition, or `mdir` failed.
    pub async fn fat_files(&self, name: &str) -> anyhow::Result<Vec<EspFile>> {
        let listed = Tool::new("mdir")
            .args(["-/", "-b", "-i", &self.mtools(name)?, "::"])
            .env("MTOOLS_SKIP_CHECK", "1")
            .text_async()
            .await?;
        let files = listed.lines().filter(|line| !line.ends_with('/'));
        Ok(files
            .map(|line| EspFile {
                path: line.trim_start_matches("::").to_owned(),
            })
            .collect())
    }

    /// Reads one file of the FAT partition `name`.
    ///
    /// # Errors
    /// There is no such partition or file.
    pub async fn fat_read(&self, name: &str, path: &str) -> anyhow::Result<Vec<u8>> {
        Tool::new("mtype")
            .args(["-i", &self.mtools(name)?, &format!("::{path}")])
            .env("MTOOLS_SKIP_CHECK", "1")
            .output_async()
            .await
    }

    fn mtools(&self, name: &str) -> anyhow::Result<String> {
        Ok(format!(
            "{}@@{}",
            self.path.display(),
            self.partition(name)?.offset
        ))
    }

    /// Copies a partition into a sparse file.
    ///
    /// # Errors
    /// There is no such partition, or the copy fails.
    pub fn extract(&self, name: &str, to: &Path) -> anyhow::Result<()> {
        let partition = self.partition(name)?;
        let out = File::create(to).with_context(|| format!("make {}", to.display()))?;
        out.set_len(partition.length)
            .with_context(|| format!("size {}", to.display()))?;
        self.each_block(partition.offset, partition.length, |at, block| {
            if block.iter().any(|byte| *byte != 0) {
                out.write_all_at(block, at - partition.offset)
                    .with_context(|| format!("write {}", to.display()))?;
            }
            Ok(true)
        })
    }

    /// Returns the root hash that the table promises for a root and its verity
    /// partition: their two GUIDs, one after the other.
    ///
    /// # Errors
    /// There are no such partitions.
    pub fn root_hash(&self, root: &str, verity: &str) -> anyhow::Result<String> {
        let halves = [self.partition(root)?, self.partition(verity)?];
        Ok(halves.map(|half| half.id.replace('-', "")).concat())
    }

    /// Lets `veritysetup` check every block of a root partition against the root hash
    /// that the table promises, and returns that hash. `work` receives two copies.
    ///
    /// # Errors
    /// A block does not fit.
    pub async fn verify_root(
        &self,
        root: &str,
        verity: &str,
        work: &Path,
    ) -> anyhow::Result<String> {
        let hash = self.root_hash(root, verity)?;
        std::fs::create_dir_all(work).with_context(|| format!("make folder {}", work.display()))?;
        let files = [root, verity].map(|name| work.join(format!("{name}.partition")));
        for (name, file) in [root, verity].into_iter().zip(&files) {
            self.extract(name, file)?;
        }
        let [data, tree] = &files;
        let verified = Tool::new("veritysetup")
            .arg("verify")
            .args([data, tree])
            .arg(&hash)
            .run_async()
            .await;
        for file in &files {
            let _ = std::fs::remove_file(file);
        }
        verified.with_context(|| format!("{root}: root hash {hash}"))?;
        Ok(hash)
    }

    /// Copies an ext4 partition and replays its journal on the copy: after a power cut,
    /// what a file system holds is only known after that.
    ///
    /// # Errors
    /// There is no such partition, or `e2fsck` cannot mend it.
    pub async fn ext4(&self, name: &str, work: &Path) -> anyhow::Result<Ext4> {
        std::fs::create_dir_all(work).with_context(|| format!("make folder {}", work.display()))?;
        let image = work.join(format!("{name}.ext4"));
        self.extract(name, &image)?;
        let status = Tool::new("e2fsck")
            .args(["-f", "-y"])
            .arg(&image)
            .tokio_command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await
            .context("start e2fsck")?;
        // 1 says that errors were corrected: a replayed journal among them.
        let mended = status.code().is_some_and(|code| code <= 1);
        ensure!(mended, "{name}: e2fsck ended with {status}");
        Ok(Ext4 { image })
    }

    /// Looks for these bytes anywhere on the disk, and returns where they first stand:
    /// how a test asks that a planted secret is not there.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn find(&self, needle: &[u8]) -> anyhow::Result<Option<u64>> {
        ensure!(!needle.is_empty(), "nothing to look for");
        let length = std::fs::metadata(&self.path)
            .with_context(|| format!("read disk {}", self.path.display()))?
            .len();
        let mut carry: Vec<u8> = Vec::new();
        let mut carried_to = 0;
        let mut found = None;
        self.each_block(0, length, |at, block| {
            if at != carried_to {
                carry.clear();
            }
            let begin = at - carry.len() as u64;
            carry.extend_from_slice(block);
            let hit = carry.windows(needle.len()).position(|part| part == needle);
            found = hit.map(|hit| begin + hit as u64);
            let keep = carry.len().min(needle.len() - 1);
            carry.drain(..carry.len() - keep);
            carried_to = at + block.len() as u64;
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Hands over what is not a hole, in pieces of at most 1 MiB, until told to stop.
    fn each_block(
        &self,
        from: u64,
        length: u64,
        mut piece: impl FnMut(u64, &[u8]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let reading = || format!("read disk {}", self.path.display());
        let mut file = File::open(&self.path).with_context(reading)?;
        let end = from + length;
        let mut buffer = vec![0; 1 << 20];
        let mut at = from;
        while at < end {
            at = match rustix::fs::seek(&file, Extent::Data(at)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error).with_context(reading),
            };
            let hole = rustix::fs::seek(&file, Extent::Hole(at)).with_context(reading)?;
            let stop = hole.min(end);
            file.seek(SeekFrom::Start(at)).with_context(reading)?;
            while at < stop {
                let part =
                    usize::try_from(stop - at).map_or(buffer.len(), |left| left.min(buffer.len()));
                file.read_exact(&mut buffer[..part]).with_context(reading)?;
                if !piece(at, &buffer[..part])? {
                    return Ok(());
                }
                at += part as u64;
            }
        }
        Ok(())
    }
}

impl Ext4 {
    /// Lists a folder: names without `.` and `..`. A folder that is not there has none.
    ///
    /// # Errors
    /// `debugfs` failed.
    pub async fn list(&self, folder: &str) -> anyhow::Result<Vec<String>> {
        let listed = self.debugfs(&format!("ls -p {}", quoted(folder)?)).await?;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        // A line is /inode/mode/user/group/name/size/.
        let names = listed.lines().filter_map(|line| line.split('/').nth(5));
        Ok(names
            .filter(|name| !matches!(*name, "" | "." | ".."))
            .map(str::to_owned)
            .collect())
    }

    /// Says whether a path exists.
    ///
    /// # Errors
    /// `debugfs` failed.
    pub async fn exists(&self, path: &str) -> anyhow::Result<bool> {
        let said = self.debugfs(&format!("stat {}", quoted(path)?)).await?;
        Ok(said.starts_with(b"Inode:"))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// There is no such file.
    pub async fn read(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        ensure!(
            self.exists(path).await?,
            "{path}: no such file on the partition"
        );
        self.debugfs(&format!("cat {}", quoted(path)?)).await
    }

    /// Copies a folder with all below it into `to`, which must exist: the copy stands in
    /// it under the folder's own name.
    ///
    /// # Errors
    /// There is no such folder, or it cannot be copied.
    pub async fn copy_out(&self, folder: &str, to: &Path) -> anyhow::Result<PathBuf> {
        ensure!(
            self.exists(folder).await?,
            "{folder}: no such folder on the partition"
        );
        let to_text = to.to_str().context("copy to a path that is text")?;
        self.debugfs(&format!("rdump {} {}", quoted(folder)?, quoted(to_text)?))
            .await?;
        let name = folder.rsplit('/').next().unwrap_or_default();
        Ok(to.join(name))
    }

    async fn debugfs(&self, request: &str) -> anyhow::Result<Vec<u8>> {
        Tool::new("debugfs")
            .args(["-R", request])
            .arg(&self.image)
            .output_async()
            .await
    }
}

fn quoted(path: &str) -> anyhow::Result<String> {
    if path.contains(['"', '\n']) {
        bail!("path {path:?}: debugfs cannot take it");
    }
    Ok(format!("\"{path}\""))
}

/// Parses the primary partition table from the first sectors of a disk.
fn partitions(head: &[u8]) -> Result<Vec<Partition>, TableError> {
    const ENTRY: usize = 128;
    let sector = usize::try_from(SECTOR).expect("a sector is small");
    let header = head.get(sector..2 * sector).ok_or(TableError::Missing)?;
    if &header[..8] != b"EFI PART" {
        return Err(TableError::Missing);
    }
    if u64_at(header, 72) != 2 || u32_at(header, 84) as usize != ENTRY {
        return Err(TableError::Damaged(
            "expected entries of 128 bytes from sector 2",
        ));
    }
    let count = u32_at(header, 80);
    let mut found = Vec::new();
    for number in 1..=count {
        let begin = 2 * sector + (number as usize - 1) * ENTRY;
        let Some(entry) = head.get(begin..begin + ENTRY) else {
            break;
        };
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let sectors = last.checked_sub(first).and_then(|more| more.checked_add(1));
        let extent = sectors
            .and_then(|sectors| Some((first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?)));
        let (offset, length) = extent.ok_or(TableError::Damaged(
            "a partition that ends before it begins",
        ))?;
        found.push(Partition {
            number,
            name: name_of(&entry[56..]),
            kind: guid(&entry[..16]),
            id: guid(&entry[16..32]),
            attributes: u64_at(entry, 48),
            offset,
            length,
        });
    }
    Ok(found)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes[at..at + 4].try_into();
    u32::from_le_bytes(field.expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes[at..at + 8].try_into();
    u64::from_le_bytes(field.expect("eight bytes"))
}

fn name_of(field: &[u8]) -> String {
    let units: Vec<u16> = field
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

/// A GUID as text. Its first three fields are little-endian on disk.
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (place, from) in ORDER.into_iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[from]));
    }
    text
}

/// Flips one bit of a file: damage as a disk or a wire may do it.
///
/// # Errors
/// The file cannot be read or written, or is shorter.
pub fn flip_bit(path: &Path, at: u64) -> anyhow::Result<()> {
    let damaging = || format!("damage {} at byte {at}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(damaging)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).with_context(damaging)?;
    file.seek(SeekFrom::Start(at)).with_context(damaging)?;
    file.write_all(&[byte[0] ^ 1]).with_context(damaging)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT_ID: &str = "00112233-4455-6677-8899-aabbccddeeff";
    const TREE_ID: &str = "ffeeddcc-bbaa-9988-7766-554433221100";

    async fn disk(folder: &Path) -> PathBuf {
        let path = folder.join("disk.img");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        Tool::new("sgdisk")
            .args(["-n", "1:2048:+8M", "-t", "1:ef00", "-c", "1:esp"])
            .args(["-n", "2:0:+16M", "-t", "2:8304", "-c", "2:root-a"])
            .args(["-u", &format!("2:{ROOT_ID}")])
            .args([
                "-n",
                "3:0:+1M",
                "-c",
                "3:verity-a",
                "-u",
                &format!("3:{TREE_ID}"),
            ])
            .args(["-n", "4:0:0", "-c", "4:data"])
            .arg(&path)
            .run_async()
            .await
            .unwrap();
        path
    }

    fn write_at(disk: &Path, offset: u64, file: &Path) {
        let bytes = std::fs::read(file).unwrap();
        let disk = File::options().write(true).open(disk).unwrap();
        disk.write_all_at(&bytes, offset).unwrap();
    }

    #[tokio::test]
    async fn the_table_that_sgdisk_wrote_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let image = DiskImage::open(&disk(folder.path()).await).unwrap();
        image.verify_table().await.unwrap();
        let esp = image.partition("esp").unwrap();
        assert_eq!((esp.offset, esp.length), (1 << 20, 8 << 20));
        assert_eq!(esp.kind, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(image.partition("root-a").unwrap().id, ROOT_ID);
        assert_eq!(
            image.root_hash("root-a", "verity-a").unwrap(),
            "00112233445566778899aabbccddeeffffeeddccbbaa99887766554433221100"
        );
        let error = image.partition("root-b").unwrap_err().to_string();
        assert!(
            error.contains("only esp, root-a, verity-a, data"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_disk_has_no_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let error = DiskImage::open(&path).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&TableError::Missing));
    }

    #[tokio::test]
    async fn files_of_the_system_partition_are_listed_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = disk(folder.path()).await;
        let image = DiskImage::open(&path).unwrap();
        let fat = image.mtools("esp").unwrap();
        let entry = folder.path().join("entry");
        std::fs::write(&entry, "a unified kernel").unwrap();
        let sectors = (8_u32 << 20) / 512;
        let format = Tool::new("mformat").args(["-i", &fat, "-T", &sectors.to_string(), "::"]);
        format.run_async().await.unwrap();
        let make = Tool::new("mmd").args(["-i", &fat, "::/EFI", "::/EFI/Linux"]);
        make.run_async().await.unwrap();
        Tool::new("mcopy")
            .args(["-i", &fat])
            .arg(&entry)
            .arg("::/EFI/Linux/leapserv_1+3.efi")
            .run_async()
            .await
            .unwrap();
        let files = image.fat_files("esp").await.unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["/EFI/Linux/leapserv_1+3.efi"]);
        let read = image
            .fat_read("esp", "/EFI/Linux/leapserv_1+3.efi")
            .await
            .unwrap();
        assert_eq!(read, b"a unified kernel");
        assert!(image.fat_read("esp", "/missing").await.is_err());
    }

    #[tokio::test]
    async fn one_flipped_bit_of_the_root_fails_verity() {
        let folder = tempfile::tempdir().unwrap();
        let path = disk(folder.path()).await;
        let image = DiskImage::open(&path).unwrap();
        let (data, tree) = (folder.path().join("data"), folder.path().join("tree"));
        std::fs::write(&data, vec![7; 16 << 20]).unwrap();
        let said = Tool::new("veritysetup")
            .args(["format", "--salt=00"])
            .args([&data, &tree])
            .text_async()
            .await
            .unwrap();
        let hash = said
            .lines()
            .find(|line| line.starts_with("Root hash:"))
            .unwrap();
        let hash = hash.rsplit([' ', '\t']).next().unwrap();
        for (name, file) in [("root-a", &data), ("verity-a", &tree)] {
            write_at(&path, image.partition(name).unwrap().offset, file);
        }
        let id = |half: &str| {
            let parts = [
                &half[..8],
                &half[8..12],
                &half[12..16],
                &half[16..20],
                &half[20..],
            ];
            parts.join("-")
        };
        Tool::new("sgdisk")
            .args(["-u", &format!("2:{}", id(&hash[..32]))])
            .args(["-u", &format!("3:{}", id(&hash[32..]))])
            .arg(&path)
            .run_async()
            .await
            .unwrap();
        let image = DiskImage::open(&path).unwrap();
        let work = folder.path().join("work");
        assert_eq!(
            image
                .verify_root("root-a", "verity-a", &work)
                .await
                .unwrap(),
            hash
        );
        flip_bit(&path, image.partition("root-a").unwrap().offset + 5_000_000).unwrap();
        assert!(
            image
                .verify_root("root-a", "verity-a", &work)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn files_of_an_ext4_partition_are_read_without_mounting() {
        let folder = tempfile::tempdir().unwrap();
        let path = disk(folder.path()).await;
        let image = DiskImage::open(&path).unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir_all(tree.join("lib/leapserv")).unwrap();
        std::fs::write(tree.join("lib/leapserv/state file"), "generation 4").unwrap();
        let data = image.partition("data").unwrap();
        Tool::new("mke2fs")
            .args(["-q", "-t", "ext4", "-E"])
            .arg(format!("offset={}", data.offset))
            .arg("-d")
            .args([&tree, &path])
            .arg(format!("{}k", data.length / 1024))
            .run_async()
            .await
            .unwrap();
        let ext4 = image
            .ext4("data", &folder.path().join("work"))
            .await
            .unwrap();
        assert_eq!(ext4.list("/lib/leapserv").await.unwrap(), ["state file"]);
        assert_eq!(
            ext4.read("/lib/leapserv/state file").await.unwrap(),
            b"generation 4"
        );
        assert!(ext4.read("/lib/other").await.is_err());
        assert!(ext4.list("/missing").await.unwrap().is_empty());
        let out = ext4
            .copy_out("/lib", folder.path().join("work").as_path())
            .await
            .unwrap();
        assert_eq!(
            std::fs::read(out.join("leapserv/state file")).unwrap(),
            b"generation 4"
        );
    }

    #[tokio::test]
    async fn bytes_are_found_across_the_pieces_of_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = disk(folder.path()).await;
        let image = DiskImage::open(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let at = (30 << 20) - 4;
        file.write_all_at(b"AGE-SECRET-KEY", at).unwrap();
        assert_eq!(image.find(b"AGE-SECRET-KEY").unwrap(), Some(at));
        assert_eq!(image.find(b"AGE-SECRET-KEX").unwrap(), None);
    }
}
