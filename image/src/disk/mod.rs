//! Composed disks: laid ready, written out in the formats that others read, or served.
//!
//! The crate `slots` decides what lies where on a disk; this is about where the
//! parts come from and about files and streams for hypervisors and sticks.

pub mod extract;

pub mod qcow2;

pub mod vmdk;

pub mod zst;

pub mod shelf;

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use edge::exit::{self, Classify as _, Failure, Kind};
use edge::{clock, durable};
use model::release::{CustomerLayer, ReleaseManifest};
use model::{CustomerName, Signed, TrustRoot, Verified};
use slots::extents::Map;
use slots::stock::{StockError, StoredLayer};

use crate::release::MANIFEST;

/// How a disk is written out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes, with holes where nothing is.
    Raw,
    /// Zstandard: one frame for each mebibyte, with a seek table.
    RawZst,
    /// QEMU's format; zeros take no room.
    Qcow2,
    /// VMware's `monolithicSparse`; zeros take no room.
    Vmdk,
    /// A stick that starts the release's installer.
    Usb,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Raw, Self::RawZst, Self::Qcow2, Self::Vmdk, Self::Usb];

    /// Returns its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawZst => "raw.zst",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Usb => "usb",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| "expected raw, raw.zst, qcow2, vmdk or usb".to_owned())
    }
}

/// Reads and verifies a release's manifest.
///
/// # Errors
/// Kind `InvalidInput` where there is none, `Refused` where it is not signed.
pub fn manifest(
    trust: &TrustRoot,
    release: &Path,
) -> Result<(Verified<ReleaseManifest>, Vec<u8>), Failure> {
    verified(trust, &release.join(MANIFEST))
}

/// Reads and verifies the layer in a folder, and its image.
///
/// # Errors
/// Kind `InvalidInput` where there is none, `Refused` where it is not signed, is
/// another customer's than `customer`, or its image is not the signed one.
pub fn layer(
    trust: &TrustRoot,
    folder: &Path,
    customer: Option<&CustomerName>,
) -> Result<StoredLayer, Failure> {
    let path = folder.join("layer.json");
    let (document, bytes) = verified::<CustomerLayer>(trust, &path)?;
    if let Some(expected) = customer
        && document.customer != *expected
    {
        let found = &document.customer;
        return Err(exit::marked(
            Kind::Refused,
            format!(
                "{}: layer of customer {found}, expected {expected}",
                path.display()
            ),
        )
        .into());
    }
    if document.image.path.contains('/') || document.image.path == ".." {
        let odd = format!(
            "{}: image path {:?}, expected a file beside it",
            path.display(),
            document.image.path
        );
        return Err(exit::marked(Kind::InvalidInput, odd).into());
    }
    let image = folder.join(&document.image.path);
    StoredLayer::open(document, bytes, &image).map_err(classify)
}

/// Gives an error of the stock its exit code.
pub fn classify(error: StockError) -> Failure {
    let kind = match &error {
        StockError::NotAsSigned { .. } => Kind::Refused,
        StockError::Image { source, .. } => match source {
            slots::writer::WriteError::BadSegment { .. } => Kind::Refused,
            slots::writer::WriteError::Target { .. } => Kind::Environment,
            _ => Kind::InvalidInput,
        },
        StockError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Kind::InvalidInput
        }
        StockError::Io { .. } | StockError::Data(_) => Kind::Environment,
        StockError::Compose(_) | StockError::TooLarge { .. } => Kind::InvalidInput,
    };
    let hint = match &error {
        StockError::Data(_) => {
            Some("install e2fsprogs, or name a --recipe whose tools have mke2fs")
        }
        StockError::NotAsSigned { .. } | StockError::Image { .. } => {
            Some("fetch the release or the layer again; its files are not those that were signed")
        }
        StockError::Compose(slots::compose::ComposeError::Layout(_)) => {
            Some("name a larger --size")
        }
        _ => None,
    };
    let error = anyhow::Error::new(error);
    Failure::new(
        kind,
        match hint {
            Some(hint) => exit::hint(error, hint),
            None => error,
        },
    )
}

fn verified<T: model::Document>(
    trust: &TrustRoot,
    path: &Path,
) -> Result<(Verified<T>, Vec<u8>), Failure> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("read {}", path.display()))
        .invalid_input()?;
    let signed: Signed<T> = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: expected a signed document", path.display()))
        .invalid_input()?;
    let document = trust
        .verify(&signed, clock::now())
        .with_context(|| path.display().to_string())
        .refused()?;
    Ok((document, bytes))
}

/// A file in the making beside its place: half a disk is never taken for one.
#[derive(Debug)]
pub struct Draft {
    file: tempfile::NamedTempFile,
    place: PathBuf,
}

impl Draft {
    /// Begins the file.
    ///
    /// # Errors
    /// Kind `Environment` where its folder is missing or cannot be written.
    pub fn new(place: &Path) -> Result<Self, Failure> {
        let folder = match place.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".disk-")
            .tempfile_in(folder)
            .with_context(|| format!("make a file in {}", folder.display()))
            .map_err(|error| {
                exit::hint(
                    error,
                    "the folder of --out has to be there, writable, with room",
                )
            })
            .environment()?;
        Ok(Self {
            file,
            place: place.to_owned(),
        })
    }

    /// Writes a disk into it, durably, and gives it its name. Returns the bytes that it
    /// takes on the medium.
    ///
    /// # Errors
    /// Kind `Environment`; nothing is left behind.
    pub fn write(
        self,
        disk: &Map,
        format: Format,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, Failure> {
        let write = || -> anyhow::Result<u64> {
            write(disk, format, self.file.as_file(), &self.place, progress)?;
            self.file.as_file().sync_all()?;
            use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
            let open = std::fs::Permissions::from_mode(0o644);
            self.file.as_file().set_permissions(open)?;
            let taken = self.file.as_file().metadata()?.blocks() * 512;
            let folder = self.file.path().parent().map(Path::to_owned);
            self.file.persist(&self.place)?;
            durable::sync_dir(&folder.context("a file has a folder")?)?;
            Ok(taken)
        };
        let place = self.place.display().to_string();
        write()
            .with_context(|| format!("write {place}"))
            .environment()
    }
}

/// Writes a disk into an empty file.
fn write(
    disk: &Map,
    format: Format,
    file: &File,
    place: &Path,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<()> {
    match format {
        Format::Raw | Format::Usb => raw(disk, file, progress)?,
        Format::RawZst => {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            zst::write(disk, &mut out, progress)?;
            out.flush()?;
        }
        Format::Qcow2 => {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            qcow2::write(disk, &mut out, progress)?;
            out.flush()?;
        }
        Format::Vmdk => {
            let name = place.file_name().unwrap_or_default().to_string_lossy();
            let mut out = BufWriter::with_capacity(1 << 20, file);
            vmdk::write(disk, &name, &mut out, progress)?;
            out.flush()?;
        }
    }
    Ok(())
}

fn raw(disk: &Map, file: &File, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    file.set_len(disk.size())?;
    let mut buffer = Vec::new();
    for (start, end) in extract::runs(disk, 512) {
        extract::read(disk, start..end, &mut buffer, &mut |at, bytes| {
            progress(at);
            file.write_all_at(bytes, at)
        })?;
    }
    progress(disk.size());
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use edge::runner::Tool;
    use model::Digest;
    use slots::extents::{Backing, Builder};
    use std::sync::Arc;

    /// A disk of 600 MiB and a bit with data in many places.
    pub(crate) fn disk(folder: &Path) -> Map {
        let content: Vec<u8> = (0..3_000_000u32)
            .flat_map(|at| (at / 7).to_le_bytes())
            .collect();
        let path = folder.join("content");
        std::fs::write(&path, &content).unwrap();
        let file = Arc::new(Backing::open(&path, Digest::of(&content)).unwrap());
        let size = (600 << 20) + 512 * 3;
        let mut disk = Builder::new(size);
        disk.bytes(0, &[1; 512]);
        disk.file(65_000, 12_000_000, Arc::clone(&file), 0);
        disk.file(100 << 20, 512, Arc::clone(&file), 1024);
        disk.file((512 << 20) - 5, 100_000, file, 77);
        disk.bytes(size - 512, &[7; 512]);
        disk.build()
    }

    fn written(folder: &Path, disk: &Map, format: Format, name: &str) -> PathBuf {
        let place = folder.join(name);
        let draft = Draft::new(&place).unwrap();
        let mut told = 0;
        draft.write(disk, format, &mut |at| told = at).unwrap();
        assert_eq!(told, disk.size());
        place
    }

    fn qemu_img(words: &[&str], files: &[&Path]) -> String {
        Tool::new("qemu-img")
            .args(words)
            .args(files)
            .text()
            .unwrap()
    }

    #[test]
    fn each_format_reads_back_as_the_raw_disk_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let raw = written(folder.path(), &disk, Format::Raw, "raw");
        let mut buffer = vec![0; 1 << 20];
        let file = File::open(&raw).unwrap();
        let mut at = 0;
        while at < disk.size() {
            use std::os::unix::fs::FileExt as _;
            let now = usize::try_from((disk.size() - at).min(1 << 20)).unwrap();
            let mut expected = vec![0; now];
            disk.read_at(at, &mut expected).unwrap();
            file.read_exact_at(&mut buffer[..now], at).unwrap();
            assert!(buffer[..now] == expected, "at {at}");
            at += now as u64;
        }
        use std::os::unix::fs::MetadataExt as _;
        assert!(
            file.metadata().unwrap().blocks() * 512 < 14 << 20,
            "not sparse"
        );

        let qcow2 = written(folder.path(), &disk, Format::Qcow2, "qcow2");
        let said = qemu_img(&["check"], &[&qcow2]);
        assert!(said.contains("No errors"), "{said}");
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2"], &[&raw, &qcow2]);
        let vmdk = written(folder.path(), &disk, Format::Vmdk, "a.vmdk");
        let said = qemu_img(&["check"], &[&vmdk]);
        assert!(said.contains("No errors"), "{said}");
        qemu_img(&["compare", "-f", "raw", "-F", "vmdk"], &[&raw, &vmdk]);
        for (format, file) in [("qcow2", &qcow2), ("vmdk", &vmdk)] {
            assert!(
                std::fs::metadata(file).unwrap().len() < 14 << 20,
                "{format}"
            );
            let back = folder.path().join("back");
            qemu_img(&["convert", "-f", format, "-O", "raw"], &[file, &back]);
            Tool::new("cmp").args([&raw, &back]).run().unwrap();
        }
        let zst = written(folder.path(), &disk, Format::RawZst, "raw.zst");
        let back = folder.path().join("back");
        Tool::new("zstd")
            .args(["-dqf", "-o"])
            .arg(&back)
            .arg(&zst)
            .run()
            .unwrap();
        Tool::new("cmp").args([&raw, &back]).run().unwrap();
        assert!(std::fs::metadata(&zst).unwrap().len() < 4 << 20);
        for format in Format::ALL {
            let [one, two] = ["1", "2"].map(|sub| {
                std::fs::create_dir_all(folder.path().join(sub)).unwrap();
                written(&folder.path().join(sub), &disk, format, "same")
            });
            Tool::new("cmp").args([&one, &two]).run().unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_said_and_a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let failure = Draft::new(&folder.path().join("none/disk")).unwrap_err();
        assert_eq!(failure.kind(), Kind::Environment);
        assert!(exit::render(failure.error()).contains("hint: the folder of --out"));
        let disk = disk(folder.path());
        std::fs::write(folder.path().join("content"), b"gone").unwrap();
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        for format in Format::ALL {
            let draft = Draft::new(&out.join("disk")).unwrap();
            let failure = draft.write(&disk, format, &mut |_| ()).unwrap_err();
            assert!(
                failure.to_string().contains("content: read at"),
                "{failure}"
            );
            assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
        }
    }

    /// A medium with room for so many bytes.
    pub(crate) struct Full(pub(crate) usize);

    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.len() > self.0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_medium_is_an_error_wherever_it_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        for room in [0, 500, 5_000] {
            for write in [
                |disk: &Map, out: &mut Full| qcow2::write(disk, out, &mut |_| ()),
                |disk: &Map, out: &mut Full| vmdk::write(disk, "x", out, &mut |_| ()),
                |disk: &Map, out: &mut Full| zst::write(disk, out, &mut |_| ()),
            ] {
                let error = write(&disk, &mut Full(room)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            }
        }
    }
}
