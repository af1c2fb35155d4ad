//! A unit on two disks, of which the second is kept like the first.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use model::Digest;
use slots::esp::Fat;
use slots::writer::{self, Content, Image};
use slots::{Disk, Layout, Part, Slot, Target as _, Window, gpt};

use super::lab::{Release, Sky, Unit, eventually, release, settings};
use super::{bless, configuration, last};

/// Adds a second disk with nothing but its table, and the kernel's word of a mirror.
fn add_a_second_disk(unit: &Unit) -> PathBuf {
    let path = unit.at("/dev/sdb");
    fs::create_dir_all(unit.at("/dev")).unwrap();
    let size = Disk::open(&unit.disk).unwrap().size() + (7 << 20);
    let mut disk = Disk::create(&path, size).unwrap();
    let seed = Digest::of(b"the second disk");
    let layout = Layout::plan(size, &seed, model::Architecture::OURS).unwrap();
    gpt::write(&mut disk, &layout).unwrap();

    let write = |place: &str, text: &str| {
        let place = unit.at(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    };
    write("/sys/class/block/md0/md/degraded", "0\n");
    write("/sys/class/block/md0/md/dev-sdb6/state", "in_sync\n");
    write("/sys/devices/sdb/sdb6/partition", "6\n");
    let device = unit.at("/sys/devices/sdb/sdb6");
    symlink(device, unit.at("/sys/class/block/sdb6")).unwrap();
    path
}

fn esp(disk: &mut Disk) -> Option<Vec<String>> {
    let layout = gpt::read(disk).ok()?;
    let place = layout.partition(Part::Esp);
    let fat = Fat::open(Window::new(disk, place.start, place.size)).ok()?;
    let entries = fat.entries().ok()?;
    let mut names: Vec<_> = entries.iter().map(ToString::to_string).collect();
    names.sort();
    Some(names)
}

fn verify(disk: &mut Disk, slot: Slot, release: &Release, sky: &Sky) {
    let layout = gpt::read(disk).unwrap();
    assert_eq!(layout.slot_of(&release.manifest.root_hash), Some(slot));
    let manifest = release.verified(&sky.trust);
    for (part, content) in [
        (Part::Root(slot), Content::Root),
        (Part::Verity(slot), Content::Verity),
    ] {
        let place = layout.partition(part);
        let mut window = Window::new(&mut *disk, place.start, place.size);
        writer::verify(Image::of(&manifest, content).unwrap(), &mut window).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_disk_of_a_mirror_starts_whatever_the_first_one_does() {
    let sky = Sky::start().await;
    let (one, two) = (release(1), release(2));
    let unit = Unit::born(&sky, &one);
    let second = add_a_second_disk(&unit);
    bless(&unit);
    unit.pass_gate();
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, settings("houma-1"))));
    let daemon = unit.start();
    let entries = || esp(&mut Disk::open(&second).unwrap());
    eventually("what runs is on both disks", || {
        entries() == Some(vec!["leapserv_2026.11.1.efi".to_owned()])
    })
    .await;
    verify(&mut Disk::open(&second).unwrap(), Slot::A, &one, &sky);
    eventually("the mirror in a check-in", || {
        sky.seen(|said| {
            let mirror = said.checks.iter().find(|check| check.name == "mirror");
            mirror.is_some_and(|check| check.ok && check.message == "sdb")
        })
    })
    .await;

    // Before the restart into an update both disks have it.
    sky.publish(&two, 7);
    eventually("restart", || {
        unit.log("systemctl").contains(&"reboot".to_owned())
    })
    .await;
    daemon.stop().await;
    assert_eq!(last(&sky).update.problem, None);
    let mut disk = Disk::open(&second).unwrap();
    verify(&mut disk, Slot::A, &one, &sky);
    verify(&mut disk, Slot::B, &two, &sky);
    let mut expected = unit.entries();
    expected.sort();
    assert_eq!(esp(&mut disk), Some(expected));
}
