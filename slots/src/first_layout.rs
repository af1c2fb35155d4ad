//! The first released disk, kept: every later release still updates from it.
//!
//! `tests/first-layout/disk.json` says in words what release 2026.11.1 composed
//! as a disk of 10 GiB; `sectors.zst` has its sectors, each after its place as
//! eight bytes, little-endian: both partition tables, and the ESP without the
//! content of its large files. Neither is ever made anew.

use std::collections::{BTreeMap, BTreeSet};

use model::release::{Component, ReleaseManifest};
use model::{Architecture, Digest, ReleaseVersion, Verified};
use serde::Deserialize;
use uuid::Uuid;

use crate::decide::{Facts, decide, running_entry};
use crate::esp::{self, Entry, EntryState, Fat, Incoming as _, Mounted};
use crate::fault::Machine;
use crate::gpt;
use crate::layout::{Layout, Part, Slot};
use crate::target::{Target as _, Window};
use crate::writer::tests::{artifact, content, manifest, signed, stored};
use crate::writer::{Content, Image, Writer, verify};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstDisk {
    release: ReleaseVersion,
    root_hash: Digest,
    tries: u8,
    disk_size: u64,
    disk_guid: Uuid,
    partitions: Vec<FirstPartition>,
    /// Files and their sizes.
    esp: BTreeMap<String, u64>,
    loader_conf: String,
    /// Names of the fields that the first updater reads; it passes over others.
    manifest: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstPartition {
    number: u32,
    label: String,
    r#type: Uuid,
    guid: Uuid,
    start: u64,
    size: u64,
    attributes: u64,
}

fn first() -> FirstDisk {
    serde_json::from_str(include_str!("../tests/first-layout/disk.json")).unwrap()
}

/// The disk itself.
fn machine() -> Machine {
    let packed = include_bytes!("../tests/first-layout/sectors.zst");
    let sectors = zstd::bulk::decompress(packed, 1 << 20).unwrap();
    let mut disk = Machine::new(first().disk_size);
    for sector in sectors.chunks_exact(8 + 512) {
        let (place, bytes) = sector.split_first_chunk().unwrap();
        disk.write_at(u64::from_le_bytes(*place), bytes).unwrap();
    }
    disk.flush().unwrap();
    disk
}

fn part<'d>(disk: &'d mut Machine, layout: &Layout, part: Part) -> Window<&'d mut Machine> {
    let partition = layout.partition(part);
    Window::new(disk, partition.start, partition.size)
}

#[test]
fn the_table_of_the_first_disk_is_read_and_a_disk_of_today_has_the_same() {
    let first = first();
    let found = gpt::read(&mut machine()).unwrap();
    assert_eq!(found.disk_guid, first.disk_guid);
    assert_eq!(found.architecture, Architecture::Amd64);
    assert_eq!(found.slot_of(&first.root_hash), Some(Slot::A));
    let today = Layout::plan(
        first.disk_size,
        &Digest::of(b"another disk"),
        Architecture::Amd64,
    )
    .unwrap();
    assert_eq!(found.partitions.len(), first.partitions.len());
    for then in &first.partitions {
        let part: Part = then.label.parse().unwrap();
        assert_eq!(part.number(), then.number, "{part}");
        assert_eq!(part.type_guid(found.architecture), then.r#type, "{part}");
        assert_eq!(part.attributes(), then.attributes, "{part}");
        assert_eq!(found.partition(part).guid, then.guid, "{part}");
        for layout in [&found, &today] {
            let now = layout.partition(part);
            assert_eq!((now.start, now.size), (then.start, then.size), "{part}");
        }
    }
}

#[test]
fn what_lies_on_the_first_esp_is_where_it_is_looked_for_today() {
    let first = first();
    let mut disk = machine();
    let layout = gpt::read(&mut disk).unwrap();
    let fat = Fat::open(part(&mut disk, &layout, Part::Esp)).unwrap();
    let entry = Entry::new(first.release, first.tries);
    assert_eq!(fat.entries().unwrap(), std::slice::from_ref(&entry));
    assert_eq!(
        fat.read(esp::LOADER_CONF).unwrap(),
        first.loader_conf.as_bytes()
    );
    assert_eq!(esp::LOADER_CONF_TEXT, first.loader_conf);
    let backup = Component {
        name: "backup".into(),
        version: "0.1.0".into(),
        image: artifact("components/backup.raw", b""),
        verity: None,
    };
    let today = [
        esp::boot_loader(Architecture::Amd64).to_owned(),
        esp::LOADER_CONF.to_owned(),
        esp::LAYER_JSON.to_owned(),
        esp::LAYER_RAW.to_owned(),
        esp::manifest(first.release),
        esp::component(first.release, &backup).unwrap(),
        entry.path(),
    ];
    let then: Vec<_> = first.esp.keys().cloned().collect();
    assert_eq!(BTreeSet::from(today), then.into_iter().collect());
    for (path, size) in &first.esp {
        assert_eq!(fat.read(path).unwrap().len() as u64, *size, "{path}");
    }
}

#[test]
fn a_release_of_today_has_every_field_that_the_first_updater_reads() {
    let known = first().manifest;
    let mut release = newer();
    release.components = vec![Component {
        name: "backup".into(),
        version: "1".into(),
        image: artifact("components/backup.raw", b""),
        verity: None,
    }];
    let value = serde_json::to_value(&release).unwrap();
    let fields = |value: &serde_json::Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    for (name, part) in [
        ("release", &value),
        ("image", &value["root"]),
        ("segment", &value["root"]["segments"][0]),
        ("artifact", &value["uki"]),
        ("component", &value["components"][0]),
    ] {
        let today = fields(part);
        let gone: Vec<&String> = known[name].difference(&today).collect();
        assert!(gone.is_empty(), "{name}: {gone:?}");
    }
}

/// A release of today, small.
fn newer() -> ReleaseManifest {
    let (root, _) = stored("root.seg", &content(5 << 19, 7));
    let (verity, _) = stored("verity.seg", &content(40_000, 8));
    let mut release = manifest(root, verity);
    release.version = "2031.1.1".parse().unwrap();
    release.root_hash = Digest::of(b"the root hash of a later release");
    release
}

/// The first disk in service: its slot A has a content, its ESP is mounted,
/// and its entry is blessed.
struct Unit {
    disk: Machine,
    folder: tempfile::TempDir,
    running: Vec<u8>,
}

/// Something on the ESP happened, or the power went before it could.
type Done = Result<(), Box<dyn std::error::Error>>;

impl Unit {
    fn in_service() -> Self {
        let first = first();
        let folder = tempfile::tempdir().unwrap();
        let mut disk = machine();
        let layout = gpt::read(&mut disk).unwrap();
        let running = content(1 << 20, 1);
        let mut slot = part(&mut disk, &layout, Part::Root(Slot::A));
        slot.write_at(0, &running).unwrap();
        slot.flush().unwrap();
        let unit = Self {
            disk,
            folder,
            running,
        };
        let esp = unit.esp();
        for path in first.esp.keys() {
            esp.write(path, b"as it was").unwrap();
        }
        let entry = Entry::new(first.release, first.tries);
        esp.rename(&entry.path(), &entry.blessed().path()).unwrap();
        unit
    }

    fn esp(&self) -> Mounted {
        Mounted::new(self.folder.path().join("esp"))
    }

    /// As the updater writes a release. Power goes before the step `cut` of
    /// those on the ESP; the disk counts its own.
    fn update(&mut self, new: &Verified<ReleaseManifest>, files: [&[u8]; 2], cut: usize) -> Done {
        let first = first();
        let esp = self.esp();
        let mut steps = 0;
        let mut esp_step = || -> Done {
            steps += 1;
            if steps > cut {
                return Err("power cut".into());
            }
            Ok(())
        };
        let layout = gpt::read(&mut self.disk)?;
        let entries = esp.entries()?;
        let running = running_entry(&entries, first.release).unwrap();
        let plan = decide(&Facts {
            running_slot: layout.slot_of(&first.root_hash).unwrap(),
            running: first.release,
            running_root: first.root_hash,
            running_proven: running.state() == EntryState::Good,
            releases: esp.releases()?,
            entries: entries.clone(),
            rejected: BTreeSet::new(),
            offered: new.version,
            offered_root: new.root_hash,
        })?;
        assert_eq!(plan.slot, Slot::B);
        assert_eq!(
            (&plan.remove_entries, &plan.remove_releases),
            (&vec![], &vec![])
        );
        for (what, place, file) in [
            (Content::Root, Part::Root(plan.slot), files[0]),
            (Content::Verity, Part::Verity(plan.slot), files[1]),
        ] {
            let journal = self.folder.path().join(place.label());
            let image = Image::of(new, what)?;
            let target = part(&mut self.disk, &layout, place);
            let mut writer = Writer::begin(image, target, Some(&journal))?.with_batch(1 << 20);
            writer.push_all(&mut &*file)?;
            writer.finish()?;
        }
        esp_step()?;
        esp.write(&esp::manifest(new.version), b"signed")?;
        esp_step()?;
        esp.begin(esp::boot_loader(new.architecture), &new.boot_loader)?
            .copy(&mut &b"loader"[..])?;
        gpt::set_slot(&mut self.disk, plan.slot, &new.root_hash)?;
        esp_step()?;
        esp.begin(&Entry::new(new.version, new.tries).path(), &new.uki)?
            .copy(&mut &b"uki"[..])?;
        Ok(())
    }

    /// The release that the boot loader starts now, if all of it is there.
    fn boots(&mut self, new: &Verified<ReleaseManifest>) -> Option<ReleaseVersion> {
        let first = first();
        let esp = self.esp();
        let entries = esp.entries().unwrap();
        let entry = entries.iter().find(|one| one.state() != EntryState::Bad)?;
        let layout = gpt::read(&mut self.disk).ok()?;
        let whole = if entry.version == first.release {
            let slot = layout.slot_of(&first.root_hash)?;
            let mut found = vec![0; self.running.len()];
            part(&mut self.disk, &layout, Part::Root(slot))
                .read_at(0, &mut found)
                .ok()?;
            found == self.running
        } else {
            let slot = layout.slot_of(&new.root_hash)?;
            [
                (Content::Root, Part::Root(slot)),
                (Content::Verity, Part::Verity(slot)),
            ]
            .into_iter()
            .all(|(what, place)| {
                let image = Image::of(new, what).unwrap();
                verify(image, &mut part(&mut self.disk, &layout, place)).is_ok()
            })
        };
        let beside = esp.path(&esp::manifest(entry.version)).exists();
        (whole && beside).then_some(entry.version)
    }
}

#[test]
fn an_update_of_the_first_disk_survives_a_power_cut_at_every_write() {
    let first = first();
    let release = newer();
    let (_, root_file) = stored("root.seg", &content(5 << 19, 7));
    let (_, verity_file) = stored("verity.seg", &content(40_000, 8));
    let files = [&root_file[..], &verity_file[..]];
    let new = signed(&release);

    let mut whole = Unit::in_service();
    assert_eq!(whole.boots(&new), Some(first.release));
    let before = whole.disk.steps();
    whole.update(&new, files, usize::MAX).unwrap();
    let writes = whole.disk.steps() - before;
    assert_eq!(whole.boots(&new), Some(new.version));
    // Three segments with their flushes, one with its own, two tables of two parts.
    assert_eq!(writes, 6 + 2 + 8);

    let on_disk = (0..writes).map(|cut| (Some(cut), usize::MAX));
    let on_esp = (0..3).map(|cut| (None, cut));
    for (disk_cut, esp_cut) in on_disk.chain(on_esp) {
        for seed in 1..4 {
            let mut unit = Unit::in_service();
            if let Some(cut) = disk_cut {
                unit.disk.cut_after(cut);
            }
            assert!(unit.update(&new, files, esp_cut).is_err());
            unit.disk.power_on(seed);
            let cut = format!("cut at {disk_cut:?} of the disk, {esp_cut} of the ESP");
            assert_eq!(unit.boots(&new), Some(first.release), "{cut}");
            // It is gone on with, and ends in the new release; the old one is still there.
            unit.update(&new, files, usize::MAX).unwrap();
            assert_eq!(unit.boots(&new), Some(new.version), "{cut}");
            let esp = unit.esp();
            for entry in esp.entries().unwrap() {
                if entry.version == new.version {
                    esp.remove(&entry.path()).unwrap();
                }
            }
            assert_eq!(unit.boots(&new), Some(first.release), "{cut}");
        }
    }
}
