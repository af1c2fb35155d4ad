//! A complete disk out of a release and a customer's layer.
//!
//! Everything but the data partition, which is left to the caller: partition
//! table, slot A, boot loader, kernel, components, layer. The same inputs give
//! the same bytes. The steps are public, because the installer does them one
//! by one with its progress between them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use model::release::{CustomerLayer, ReleaseManifest};
use model::{Digest, Verified};

use crate::esp::{self, Birth, Entry, EspError, Fat, Incoming as _};
pub use crate::esp::{EspContent, EspFile};
use crate::gpt::{self, TableError};
use crate::layout::{Layout, LayoutError, Part, Slot};
use crate::target::{Target, Window};
use crate::writer::{Content, Image, WriteError, Writer};

/// Where the files of a release and of a customer's layer come from.
pub trait Source {
    /// Opens a file of the release's folder.
    ///
    /// # Errors
    /// There is no such file, or it cannot be reached.
    fn release(&mut self, path: &str) -> io::Result<Box<dyn Read>>;

    /// Opens the image of the customer's layer.
    ///
    /// # Errors
    /// There is no such file, or it cannot be reached.
    fn layer(&mut self) -> io::Result<Box<dyn Read>>;
}

/// Folders on this machine as a source.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The release's folder.
    pub release: PathBuf,
    /// The customer layer's image.
    pub layer: PathBuf,
}

impl Source for Folders {
    fn release(&mut self, path: &str) -> io::Result<Box<dyn Read>> {
        open(&self.release.join(path))
    }

    fn layer(&mut self) -> io::Result<Box<dyn Read>> {
        open(&self.layer)
    }
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let file = File::open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(Box::new(io::BufReader::with_capacity(1 << 18, file)))
}

/// A verified release and the bytes that were verified.
#[derive(Debug, Clone, Copy)]
pub struct Release<'a> {
    /// The manifest.
    pub manifest: &'a Verified<ReleaseManifest>,
    /// `manifest.json` as it was signed.
    pub bytes: &'a [u8],
}

/// A verified customer layer and the bytes that were verified.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// The document.
    pub document: &'a Verified<CustomerLayer>,
    /// `layer.json` as it was signed.
    pub bytes: &'a [u8],
}

/// Why a disk could not be composed.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The disk does not fit.
    #[error("layout: refused")]
    Layout(#[source] LayoutError),
    /// The partition table could not be written.
    #[error("partition table: not written")]
    Table(#[source] TableError),
    /// A slot could not be written.
    #[error("slot: not written")]
    Slot(#[source] WriteError),
    /// The ESP could not be written.
    #[error("ESP: not written")]
    Esp(#[source] EspError),
    /// A file of the release or the layer cannot be opened.
    #[error("{path}: not opened")]
    Source {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A component's path leads out of the release's folder.
    #[error("component {name}: path {path:?} leads out of the release")]
    Path {
        /// The component.
        name: String,
        /// Its path.
        path: String,
    },
}

/// Lists the files of a newborn's ESP in the order in which they are written. Pure.
///
/// # Errors
/// A component's path leads out of the release's folder.
pub fn esp_files(release: Release<'_>, layer: Layer<'_>) -> Result<Vec<EspFile>, ComposeError> {
    let manifest = release.manifest;
    let version = manifest.version;
    let file = |path: String, content| EspFile { path, content };
    let mut files = vec![
        file(
            esp::boot_loader(manifest.architecture).to_owned(),
            EspContent::Release(manifest.boot_loader.clone()),
        ),
        file(
            esp::LOADER_CONF.to_owned(),
            EspContent::Bytes(esp::LOADER_CONF_TEXT.as_bytes().to_vec()),
        ),
        file(
            esp::manifest(version),
            EspContent::Bytes(release.bytes.to_vec()),
        ),
    ];
    for component in &manifest.components {
        let path = esp::component(version, component).ok_or_else(|| ComposeError::Path {
            name: component.name.clone(),
            path: component.image.path.clone(),
        })?;
        files.push(file(path, EspContent::Release(component.image.clone())));
    }
    files.push(file(
        esp::LAYER_JSON.to_owned(),
        EspContent::Bytes(layer.bytes.to_vec()),
    ));
    files.push(file(
        esp::LAYER_RAW.to_owned(),
        EspContent::Layer(layer.document.image.clone()),
    ));
    // The kernel last: with it the disk boots, and everything is there.
    files.push(file(
        Entry::new(version, manifest.tries).path(),
        EspContent::Release(manifest.uki.clone()),
    ));
    Ok(files)
}

/// Returns the volume id of an ESP for a layout's seed.
pub fn volume_id(layout: &Layout) -> u32 {
    let bytes = layout.disk_guid.as_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Looks at one partition of a whole disk.
pub fn partition<'t, T: Target>(disk: &'t mut T, layout: &Layout, part: Part) -> Window<&'t mut T> {
    let partition = layout.partition(part);
    Window::new(disk, partition.start, partition.size)
}

/// Composes a whole disk and returns its layout.
///
/// The data partition is not touched.
///
/// # Errors
/// See [`ComposeError`]; the disk is unusable then.
pub fn compose(
    disk: &mut impl Target,
    seed: &Digest,
    release: Release<'_>,
    layer: Layer<'_>,
    source: &mut impl Source,
) -> Result<Layout, ComposeError> {
    let architecture = release.manifest.architecture;
    let mut layout = Layout::plan(disk.size(), seed, architecture).map_err(ComposeError::Layout)?;
    layout.set_slot(Slot::A, &release.manifest.root_hash);
    let files = esp_files(release, layer)?;
    write_slot(disk, &layout, release.manifest, source)?;
    write_esp(disk, &layout, &files, source)?;
    // The table last: without it nothing boots half a disk.
    gpt::write(disk, &layout).map_err(ComposeError::Table)?;
    Ok(layout)
}

/// Writes root and verity of slot A.
///
/// # Errors
/// See [`ComposeError`].
pub fn write_slot(
    disk: &mut impl Target,
    layout: &Layout,
    manifest: &Verified<ReleaseManifest>,
    source: &mut impl Source,
) -> Result<(), ComposeError> {
    for (content, part) in [
        (Content::Root, Part::Root(Slot::A)),
        (Content::Verity, Part::Verity(Slot::A)),
    ] {
        let image = Image::of(manifest, content).map_err(ComposeError::Slot)?;
        let mut stored = opened(image.path(), source.release(image.path()))?;
        let target = partition(disk, layout, part);
        let mut writer = Writer::begin(image, target, None).map_err(ComposeError::Slot)?;
        writer.push_all(&mut stored).map_err(ComposeError::Slot)?;
        writer.finish().map_err(ComposeError::Slot)?;
    }
    Ok(())
}

/// Makes the ESP with its files.
///
/// # Errors
/// See [`ComposeError`].
pub fn write_esp(
    disk: &mut impl Target,
    layout: &Layout,
    files: &[EspFile],
    source: &mut impl Source,
) -> Result<(), ComposeError> {
    let size = layout.partition(Part::Esp).size;
    let birth = Birth::plan(size, volume_id(layout), files.to_vec()).map_err(ComposeError::Esp)?;
    let mut target = partition(disk, layout, Part::Esp);
    birth.begin(&mut target).map_err(ComposeError::Esp)?;
    for EspFile { path, content } in files {
        let mut reader = match content {
            EspContent::Bytes(_) => {
                birth
                    .place_bytes(path, &mut target)
                    .map_err(ComposeError::Esp)?;
                continue;
            }
            EspContent::Release(artifact) => {
                opened(&artifact.path, source.release(&artifact.path))?
            }
            EspContent::Layer(artifact) => opened(&artifact.path, source.layer())?,
        };
        birth
            .place(path, &mut target)
            .and_then(|file| file.copy(&mut reader))
            .map_err(ComposeError::Esp)?;
    }
    birth.finish(&mut target).map_err(ComposeError::Esp)
}

/// Reads slot A, the ESP and the table back and compares them with what was signed.
///
/// # Errors
/// The first thing that is not as signed.
pub fn verify(
    disk: &mut impl Target,
    layout: &Layout,
    manifest: &Verified<ReleaseManifest>,
    files: &[EspFile],
) -> Result<(), ComposeError> {
    let found = gpt::read(disk).map_err(ComposeError::Table)?;
    if found != *layout {
        return Err(ComposeError::Table(TableError::Foreign {
            problem: "reads back differently".to_owned(),
        }));
    }
    for (content, part) in [
        (Content::Root, Part::Root(Slot::A)),
        (Content::Verity, Part::Verity(Slot::A)),
    ] {
        let image = Image::of(manifest, content).map_err(ComposeError::Slot)?;
        crate::writer::verify(image, &mut partition(disk, layout, part))
            .map_err(ComposeError::Slot)?;
    }
    let fat = Fat::open(partition(disk, layout, Part::Esp)).map_err(ComposeError::Esp)?;
    for EspFile { path, content } in files {
        let bytes = fat.read(path).map_err(ComposeError::Esp)?;
        let good = match content {
            EspContent::Bytes(expected) => bytes == *expected,
            EspContent::Release(artifact) | EspContent::Layer(artifact) => {
                bytes.len() as u64 == artifact.size && Digest::of(&bytes) == artifact.sha256
            }
        };
        if !good {
            return Err(ComposeError::Esp(EspError::NotAsSigned {
                path: path.clone(),
                problem: "reads back differently".to_owned(),
            }));
        }
    }
    Ok(())
}

fn opened(path: &str, file: io::Result<Box<dyn Read>>) -> Result<Box<dyn Read>, ComposeError> {
    file.map_err(|source| ComposeError::Source {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Disk;
    use crate::layout::MIN_DISK_SIZE;
    use crate::writer::tests::{artifact, content, manifest, signed, stored};
    use model::release::Component;
    use model::trust::RoleKeys;
    use model::{Architecture, Role, Signer, TrustRoot};
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    pub(crate) struct Parts {
        pub(crate) folder: tempfile::TempDir,
        pub(crate) manifest: Verified<ReleaseManifest>,
        pub(crate) layer: Verified<CustomerLayer>,
    }

    impl Parts {
        pub(crate) fn make() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let place = |path: &str, bytes: &[u8]| {
                let path = folder.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            };
            let (root, root_file) = stored("root.seg", &content(5 << 20, 1));
            let (verity, verity_file) = stored("verity.seg", &content(40_000, 2));
            let mut release = manifest(root, verity);
            let backup = content(100_000, 3);
            release.components = vec![Component {
                name: "backup".into(),
                version: "0.1.0".into(),
                image: artifact("components/backup.raw", &backup),
                verity: None,
            }];
            place("root.seg", &root_file);
            place("verity.seg", &verity_file);
            place("leapserv.efi", b"uki");
            place("systemd-bootx64.efi", b"loader");
            place("components/backup.raw", &backup);
            place("layer.raw", b"layer");
            Self {
                folder,
                manifest: signed(&release),
                layer: layer(),
            }
        }

        pub(crate) fn source(&self) -> Folders {
            Folders {
                release: self.folder.path().to_owned(),
                layer: self.folder.path().join("layer.raw"),
            }
        }

        pub(crate) fn release(&self) -> Release<'_> {
            Release {
                manifest: &self.manifest,
                bytes: b"signed manifest",
            }
        }

        pub(crate) fn layer(&self) -> Layer<'_> {
            Layer {
                document: &self.layer,
                bytes: b"signed layer",
            }
        }

        fn compose(&self, name: &str) -> Result<(PathBuf, Layout), ComposeError> {
            let path = self.folder.path().join(name);
            let mut disk = Disk::create(&path, MIN_DISK_SIZE).unwrap();
            let layout = compose(
                &mut disk,
                &Digest::of(b"seed"),
                self.release(),
                self.layer(),
                &mut self.source(),
            )?;
            Ok((path, layout))
        }
    }

    fn layer() -> Verified<CustomerLayer> {
        let signer = Signer::from_seed(&[2; 32]);
        let keys = RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        let root = TrustRoot {
            version: 1,
            roles: [(Role::Configuration, keys)].into(),
            recovery: vec![],
        };
        let layer = CustomerLayer {
            customer: "motivatit".parse().unwrap(),
            version: 1,
            components: None,
            image: artifact("layer.raw", b"layer"),
        };
        root.verify(
            &signer.sign(&layer),
            "2026-11-22T00:00:00Z".parse().unwrap(),
        )
        .unwrap()
    }

    /// What is not a hole, with its place: a sparse disk is compared in no time.
    fn extents(path: &Path) -> Vec<(u64, Vec<u8>)> {
        use rustix::fs::{SeekFrom, seek};
        use std::os::unix::fs::FileExt as _;
        let file = File::open(path).unwrap();
        let mut extents = Vec::new();
        let mut end = 0;
        while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
            end = seek(&file, SeekFrom::Hole(start)).unwrap();
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            file.read_exact_at(&mut bytes, start).unwrap();
            extents.push((start, bytes));
        }
        assert!(extents.len() > 3);
        extents
    }

    #[test]
    fn a_composed_disk_verifies_is_sparse_and_is_the_same_each_time() {
        let parts = Parts::make();
        let (one, layout) = parts.compose("one").unwrap();
        let files = esp_files(parts.release(), parts.layer()).unwrap();
        let mut disk = Disk::open(&one).unwrap();
        verify(&mut disk, &layout, &parts.manifest, &files).unwrap();
        assert_eq!(
            gpt::read(&mut disk)
                .unwrap()
                .slot_of(&parts.manifest.root_hash),
            Some(Slot::A)
        );
        assert!(fs::metadata(&one).unwrap().blocks() * 512 < 32 << 20);
        let (two, _) = parts.compose("two").unwrap();
        assert!(extents(&one) == extents(&two));

        disk.write_at(layout.partition(Part::Root(Slot::A)).start + 77, b"rot")
            .unwrap();
        let error = verify(&mut disk, &layout, &parts.manifest, &files).unwrap_err();
        assert!(matches!(error, ComposeError::Slot(_)));
    }

    #[test]
    fn the_kernel_gets_its_name_last() {
        let parts = Parts::make();
        let files = esp_files(parts.release(), parts.layer()).unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "EFI/BOOT/BOOTX64.EFI",
                "loader/loader.conf",
                "leapserv/releases/2026.11.1/manifest.json",
                "leapserv/releases/2026.11.1/components/backup.raw",
                "leapserv/customer/layer.json",
                "leapserv/customer/layer.raw",
                "EFI/Linux/leapserv_2026.11.1+3.efi",
            ]
        );
    }

    #[test]
    fn an_arm64_release_gets_the_name_and_the_types_that_its_machines_look_for() {
        let mut parts = Parts::make();
        let mut release = parts.manifest.clone().into_inner();
        release.architecture = Architecture::Arm64;
        parts.manifest = signed(&release);
        let (disk, layout) = parts.compose("disk").unwrap();
        let files = esp_files(parts.release(), parts.layer()).unwrap();
        assert_eq!(files[0].path, "EFI/BOOT/BOOTAA64.EFI");
        let mut disk = Disk::open(&disk).unwrap();
        let found = gpt::read(&mut disk).unwrap();
        assert_eq!(found, layout);
        assert_eq!(found.architecture, Architecture::Arm64);
        // Another slot is filled in the same table.
        gpt::set_slot(&mut disk, Slot::B, &parts.manifest.root_hash).unwrap();
        assert_eq!(
            gpt::read(&mut disk).unwrap().architecture,
            Architecture::Arm64
        );
    }

    #[test]
    fn a_file_that_is_not_as_signed_leaves_no_partition_table() {
        let parts = Parts::make();
        fs::write(parts.folder.path().join("components/backup.raw"), b"evil").unwrap();
        let error = parts.compose("disk").unwrap_err();
        assert!(matches!(
            error,
            ComposeError::Esp(EspError::NotAsSigned { .. })
        ));
        let mut disk = Disk::open(&parts.folder.path().join("disk")).unwrap();
        assert!(matches!(gpt::read(&mut disk), Err(TableError::NoTable(_))));
    }
}
