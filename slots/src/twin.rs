//! The other disk of a mirrored system, brought to what the running disk holds.
//!
//! The slots and the ESP of two disks are no device of the kernel's: a firmware starts
//! from one of them alone, and its boot loader writes there. So one disk leads, the one
//! that the system was started from, and the other follows: [`facts`] tells what both
//! hold, [`decide`] what the other lacks, [`apply`] writes it. The slots come first, then
//! the ESP, which has no head while it is written, so that nothing starts from half of it.
//! Files that lie where they belong are left there: for a new name of a boot entry that
//! takes no longer than a folder and a table.

use std::collections::BTreeMap;
use std::fs::File;

use model::release::{Artifact, ReleaseManifest};
use model::{Digest, ReleaseVersion, Verified};

use crate::compose::{partition, volume_id};
use crate::esp::{Birth, EspContent, EspError, EspFile, Fat, Incoming as _, Mounted};
use crate::gpt::{self, TableError};
use crate::layout::{Layout, Part, Slot};
use crate::target::Target;
use crate::writer::{Content, Image, WriteError, Writer};

/// Files up to this size are compared byte for byte. The large ones are images and
/// kernels: the manifest, which is small, names their digests.
const SMALL: u64 = 1 << 20;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of a small one.
    pub digest: Option<Digest>,
}

/// The files of an ESP by their paths.
pub type Files = BTreeMap<String, FileFacts>;

/// What the two disks hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The releases with a manifest on the leading ESP, each with its root hash.
    pub releases: Vec<(ReleaseVersion, Digest)>,
    /// The table of the leading disk.
    pub leader: Layout,
    /// The table of the other one.
    pub follower: Layout,
    /// The leading ESP.
    pub leader_files: Files,
    /// The other ESP; none where it holds no file system.
    pub follower_files: Option<Files>,
}

/// What the following disk lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The slots to copy, each with the release that it gets.
    pub slots: Vec<(Slot, ReleaseVersion)>,
    /// The files that its ESP is made of anew.
    pub files: Files,
}

/// Why the following disk was not brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// An ESP cannot be read or written.
    #[error(transparent)]
    Esp(#[from] EspError),
    /// A slot cannot be copied.
    #[error(transparent)]
    Slot(#[from] WriteError),
    /// The table cannot be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A release is to be copied whose manifest was not given.
    #[error("release {0}: no manifest that can be believed")]
    NoManifest(ReleaseVersion),
}

/// Looks at both disks. `releases` are those with a manifest on the leading ESP.
///
/// # Errors
/// The leading ESP cannot be read.
pub fn facts(
    releases: &[Verified<ReleaseManifest>],
    leader: &Layout,
    mounted: &Mounted,
    follower: &Layout,
    follower_disk: &mut impl Target,
) -> Result<Facts, TwinError> {
    let leader_files = listing(mounted.files()?, |path| mounted.read(path))?;
    let esp = partition(follower_disk, follower, Part::Esp);
    // Whatever is wrong with it, it is made anew.
    let follower_files = Fat::open(esp)
        .and_then(|fat| listing(fat.files()?, |path| fat.read(path)))
        .ok();
    let releases = releases.iter().map(|it| (it.version, it.root_hash));
    Ok(Facts {
        releases: releases.collect(),
        leader: leader.clone(),
        follower: follower.clone(),
        leader_files,
        follower_files,
    })
}

fn listing(
    files: Vec<(String, u64)>,
    read: impl Fn(&str) -> Result<Vec<u8>, EspError>,
) -> Result<Files, EspError> {
    let facts = |(path, size): (String, u64)| {
        let digest = match size <= SMALL {
            true => Some(Digest::of(&read(&path)?)),
            false => None,
        };
        Ok((path, FileFacts { size, digest }))
    };
    files.into_iter().map(facts).collect()
}

/// Decides what has to be written; nothing where the disks hold the same. Pure.
pub fn decide(facts: &Facts) -> Option<Plan> {
    let slots: Vec<_> = facts
        .releases
        .iter()
        .filter_map(|(release, root)| Some((facts.leader.slot_of(root)?, *release, root)))
        .filter(|(slot, _, root)| facts.follower.slot_of(root) != Some(*slot))
        .map(|(slot, release, _)| (slot, release))
        .collect();
    let same = facts.follower_files.as_ref() == Some(&facts.leader_files);
    (!slots.is_empty() || !same).then(|| Plan {
        slots,
        files: facts.leader_files.clone(),
    })
}

/// Writes what the following disk lacks. Interrupted, it is begun anew.
///
/// # Errors
/// [`TwinError`]: the leading disk is untouched; the following one may not start.
pub fn apply(
    plan: &Plan,
    releases: &[Verified<ReleaseManifest>],
    leader: (&Layout, &mut impl Target),
    mounted: &Mounted,
    follower: (&Layout, &mut impl Target),
) -> Result<(), TwinError> {
    let (leader, leader_disk) = leader;
    let (follower, follower_disk) = follower;
    for (slot, release) in &plan.slots {
        let manifest = releases
            .iter()
            .find(|manifest| manifest.version == *release)
            .ok_or(TwinError::NoManifest(*release))?;
        for (content, part) in [
            (Content::Root, Part::Root(*slot)),
            (Content::Verity, Part::Verity(*slot)),
        ] {
            let image = Image::of(manifest, content)?;
            let target = partition(follower_disk, follower, part);
            let mut writer = Writer::begin(image, target, None)?;
            writer.copy_from(image, &mut partition(leader_disk, leader, part))?;
            writer.finish()?;
        }
        gpt::set_slot(follower_disk, *slot, &manifest.root_hash)?;
    }
    let mut esp = partition(follower_disk, follower, Part::Esp);
    let files = plan
        .files
        .iter()
        .map(|(path, facts)| esp_file(mounted, path, facts))
        .collect::<Result<Vec<_>, _>>()?;
    let birth = Birth::plan(esp.size(), volume_id(follower), files)?;
    let mut missing = Vec::new();
    for file in birth.files() {
        if !birth.holds(&file.path, &mut esp)? {
            missing.push(file.path.as_str());
        }
    }
    birth.begin(&mut esp)?;
    for path in missing {
        let from = File::open(mounted.path(path));
        let mut from = from.map_err(|source| EspError::Io {
            path: path.to_owned(),
            what: "open",
            source,
        })?;
        birth.place(path, &mut esp)?.copy(&mut from)?;
    }
    Ok(birth.finish(&mut esp)?)
}

/// The file as it lies on the leading ESP now.
fn esp_file(mounted: &Mounted, path: &str, facts: &FileFacts) -> Result<EspFile, EspError> {
    let sha256 = match facts.digest {
        Some(digest) => digest,
        None => mounted.digest(path)?,
    };
    Ok(EspFile {
        path: path.to_owned(),
        content: EspContent::Release(Artifact {
            path: path.to_owned(),
            size: facts.size,
            sha256,
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::compose::tests::Parts;
    use crate::compose::{ComposeError, compose, esp_files, verify};
    use crate::layout::MIN_DISK_SIZE;
    use crate::target::Disk;

    /// A unit on two disks, of which the second has nothing but its table.
    struct Unit {
        parts: Parts,
        leader: Layout,
        leader_disk: Disk,
        follower: Layout,
        follower_disk: Disk,
        esp: Mounted,
    }

    impl Unit {
        fn with_a_new_second_disk() -> Self {
            let parts = Parts::make();
            let folder = parts.folder.path();
            let disk = |name: &str, size| Disk::create(&folder.join(name), size).unwrap();
            let (mut leader_disk, mut follower_disk) = (
                disk("one", MIN_DISK_SIZE),
                disk("two", MIN_DISK_SIZE + (5 << 20)),
            );
            let leader = compose(
                &mut leader_disk,
                &Digest::of(b"one"),
                parts.release(),
                parts.layer(),
                &mut parts.source(),
            )
            .unwrap();
            let architecture = parts.manifest.architecture;
            let size = follower_disk.size();
            let follower = Layout::plan(size, &Digest::of(b"two"), architecture).unwrap();
            gpt::write(&mut follower_disk, &follower).unwrap();
            let esp = mount(&mut leader_disk, &leader, &folder.join("efi"));
            Self {
                parts,
                leader,
                leader_disk,
                follower,
                follower_disk,
                esp,
            }
        }

        fn plan(&mut self) -> Option<Plan> {
            let releases = std::slice::from_ref(&self.parts.manifest);
            self.follower = gpt::read(&mut self.follower_disk).unwrap();
            let facts = facts(
                releases,
                &self.leader,
                &self.esp,
                &self.follower,
                &mut self.follower_disk,
            );
            decide(&facts.unwrap())
        }

        fn follow(&mut self, plan: &Plan) -> Result<(), TwinError> {
            apply(
                plan,
                std::slice::from_ref(&self.parts.manifest),
                (&self.leader, &mut self.leader_disk),
                &self.esp,
                (&self.follower, &mut self.follower_disk),
            )
        }

        fn verify_follower(&mut self) -> Result<(), ComposeError> {
            let files = esp_files(self.parts.release(), self.parts.layer()).unwrap();
            let layout = gpt::read(&mut self.follower_disk).unwrap();
            verify(
                &mut self.follower_disk,
                &layout,
                &self.parts.manifest,
                &files,
            )
        }
    }

    /// The files of an ESP in a folder, as if it were mounted there.
    fn mount(disk: &mut Disk, layout: &Layout, at: &Path) -> Mounted {
        let fat = Fat::open(partition(disk, layout, Part::Esp)).unwrap();
        let mounted = Mounted::new(at);
        for (path, _) in fat.files().unwrap() {
            mounted.write(&path, &fat.read(&path).unwrap()).unwrap();
        }
        mounted
    }

    #[test]
    fn a_second_disk_gets_all_that_the_first_one_starts_from() {
        let mut unit = Unit::with_a_new_second_disk();
        let release = unit.parts.manifest.version;
        let plan = unit.plan().unwrap();
        assert_eq!(plan.slots, [(Slot::A, release)]);
        unit.follow(&plan).unwrap();
        unit.verify_follower().unwrap();
        // Nothing is written twice.
        assert_eq!(unit.plan(), None);
    }

    #[test]
    fn a_blessed_entry_and_a_changed_small_file_follow_without_the_slots() {
        let mut unit = Unit::with_a_new_second_disk();
        let plan = unit.plan().unwrap();
        unit.follow(&plan).unwrap();
        let entry = &unit.esp.entries().unwrap()[0];
        unit.esp
            .rename(&entry.path(), &entry.blessed().path())
            .unwrap();
        // What is half written on the first disk is not wanted on the second.
        std::fs::write(unit.esp.path("EFI/Linux/x.efi.new"), b"half").unwrap();
        let plan = unit.plan().unwrap();
        assert!(plan.slots.is_empty());
        unit.follow(&plan).unwrap();
        assert_eq!(unit.plan(), None);
        let fat = Fat::open(partition(
            &mut unit.follower_disk,
            &unit.follower,
            Part::Esp,
        ));
        assert_eq!(fat.unwrap().entries().unwrap(), [entry.blessed()]);
        // Of the same length.
        unit.esp
            .write("leapserv/customer/layer.json", b"SIGNED LAYER")
            .unwrap();
        assert!(unit.plan().is_some());
    }

    #[test]
    fn a_slot_that_cannot_be_copied_leaves_the_esp_as_it_was() {
        let mut unit = Unit::with_a_new_second_disk();
        let plan = unit.plan().unwrap();
        unit.follow(&plan).unwrap();
        // The other disk takes the release for missing, and the first one is rotten.
        let other = Digest::of(b"another release");
        gpt::set_slot(&mut unit.follower_disk, Slot::A, &other).unwrap();
        let rotten = unit.leader.partition(Part::Root(Slot::A)).start + 77;
        unit.leader_disk.write_at(rotten, b"rot").unwrap();
        let plan = unit.plan().unwrap();
        let error = unit.follow(&plan).unwrap_err();
        assert!(
            matches!(error, TwinError::Slot(WriteError::Incomplete { .. })),
            "{error}"
        );
        let layout = gpt::read(&mut unit.follower_disk).unwrap();
        assert_eq!(layout.slot_of(&unit.parts.manifest.root_hash), None);
        let esp = partition(&mut unit.follower_disk, &unit.follower, Part::Esp);
        assert!(!Fat::open(esp).unwrap().files().unwrap().is_empty());
    }

    #[test]
    fn an_esp_whose_leader_goes_in_the_middle_does_not_start_and_is_made_anew() {
        let mut unit = Unit::with_a_new_second_disk();
        let plan = unit.plan().unwrap();
        let path = "leapserv/customer/layer.raw";
        let layer = unit.esp.read(path).unwrap();
        unit.esp.write(path, b"other").unwrap();
        let error = unit.follow(&plan).unwrap_err();
        assert!(matches!(
            error,
            TwinError::Esp(EspError::NotAsSigned { .. })
        ));
        let esp = partition(&mut unit.follower_disk, &unit.follower, Part::Esp);
        assert!(Fat::open(esp).is_err());
        unit.esp.write(path, &layer).unwrap();
        let plan = unit.plan().unwrap();
        // The slot had been copied before.
        assert!(plan.slots.is_empty());
        unit.follow(&plan).unwrap();
        unit.verify_follower().unwrap();
    }
}
