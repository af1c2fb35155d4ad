//! A system on two disks: how its mirror is, and the care that the second disk gets.
//!
//! The data is one device of the kernel's over both disks (RAID 1), put together by the
//! initrd. The slots and the ESP are not: they are kept the same by [`slots::twin`].

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use model::api::HealthCheck;
use model::release::ReleaseManifest;
use model::{Signed, TrustRoot, Verified};
use slots::{Disk, esp, gpt, twin};

use crate::site::Site;
use crate::update::Running;

/// The device over the data partitions.
const DEVICE: &str = "md0";

/// One half of the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Half {
    /// The kernel's name of its disk.
    disk: String,
    /// What the kernel says of it: `in_sync`, `spare`, `faulty` …
    state: String,
}

/// The mirror, as the kernel tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    halves: Vec<Half>,
    /// How many halves are missing.
    degraded: u32,
    /// How far a half is brought up to date, in per cent, while one is.
    rebuilt: Option<u8>,
}

impl Mirror {
    /// Reads how the mirror is; `None` for a system on one disk.
    pub fn read(site: &Site) -> Option<Self> {
        let device = site.at("/sys/class/block").join(DEVICE);
        let md = device.join("md");
        let text = |name: &str| fs::read_to_string(md.join(name)).map(|it| it.trim().to_owned());
        let degraded = text("degraded").ok()?.parse().ok()?;
        let mut halves: Vec<Half> = fs::read_dir(&md)
            .ok()?
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let state = fs::read_to_string(entry.path().join("state")).ok()?;
                Some(Half {
                    disk: disk_of(site, name.strip_prefix("dev-")?),
                    state: state.trim().to_owned(),
                })
            })
            .collect();
        halves.sort_by(|a, b| a.disk.cmp(&b.disk));
        let rebuilt = text("sync_completed").ok().and_then(|told| percent(&told));
        Some(Self {
            halves,
            degraded,
            rebuilt,
        })
    }

    /// Tells it for people, in the check-in. It fails no health gate: another release
    /// mends no disk.
    pub fn check(&self) -> HealthCheck {
        let working = |half: &&Half| half.state.contains("in_sync");
        let names = |halves: Vec<&Half>| {
            let names: Vec<_> = halves.iter().map(|half| half.disk.as_str()).collect();
            names.join(" and ")
        };
        let whole = names(self.halves.iter().filter(working).collect());
        let others = names(self.halves.iter().filter(|half| !working(half)).collect());
        let message = match (self.degraded, self.rebuilt) {
            (0, _) => whole,
            (_, Some(percent)) => format!("{others} gets what {whole} holds, {percent} % done"),
            _ => format!(
                "only {whole} works: the other disk is missing or has failed. \
                 Put in a working one, then leapctl unit replace"
            ),
        };
        HealthCheck {
            name: "mirror".to_owned(),
            ok: self.degraded == 0,
            message,
        }
    }

    /// Returns the disks that are not `leader` and have not failed.
    fn followers(&self, site: &Site, leader: &Path) -> Vec<PathBuf> {
        let halves = self.halves.iter();
        halves
            .filter(|half| !half.state.contains("faulty"))
            .map(|half| site.at("/dev").join(&half.disk))
            .filter(|disk| disk != leader)
            .collect()
    }
}

/// `DONE / TOTAL` in sectors, or a word.
fn percent(told: &str) -> Option<u8> {
    let (done, total) = told.split_once('/')?;
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (done, total) = (number(done)?, number(total)?);
    u8::try_from(done.saturating_mul(100).checked_div(total)?).ok()
}

/// Returns the kernel's name of the disk that a partition lies on.
pub fn disk_of(site: &Site, partition: &str) -> String {
    let place = site.at("/sys/class/block").join(partition);
    let disk = fs::canonicalize(&place)
        .ok()
        .filter(|place| place.join("partition").exists())
        .and_then(|place| Some(place.parent()?.file_name()?.to_str()?.to_owned()));
    disk.unwrap_or_else(|| partition.to_owned())
}

/// Brings the second disk of a mirrored system to what the first one holds. Blocks.
///
/// # Errors
/// A disk failed, or the ESP that the system was started from cannot be read.
pub fn catch_up(site: &Site, trust: &TrustRoot, running: &Running, now: Timestamp) -> Result<()> {
    let Some(mirror) = Mirror::read(site) else {
        return Ok(());
    };
    for disk in mirror.followers(site, &running.disk) {
        let name = disk.display();
        follow(site, trust, running, &disk, now)
            .with_context(|| format!("second disk {name}: not brought up to date"))?;
    }
    Ok(())
}

fn follow(
    site: &Site,
    trust: &TrustRoot,
    running: &Running,
    disk: &Path,
    now: Timestamp,
) -> Result<()> {
    let mounted = site.esp();
    let releases = releases(&mounted, trust, now)?;
    let mut follower_disk = Disk::open(disk).with_context(|| format!("open {}", disk.display()))?;
    let follower = gpt::read(&mut follower_disk)?;
    let facts = twin::facts(
        &releases,
        &running.layout,
        &mounted,
        &follower,
        &mut follower_disk,
    )?;
    let Some(plan) = twin::decide(&facts) else {
        return Ok(());
    };
    let path = &running.disk;
    let mut leader = Disk::open(path).with_context(|| format!("open {}", path.display()))?;
    twin::apply(
        &plan,
        &releases,
        (&running.layout, &mut leader),
        &mounted,
        (&follower, &mut follower_disk),
    )?;
    tracing::info!(
        disk = %disk.display(),
        slots = plan.slots.len(),
        files = plan.files.len(),
        "second disk brought up to date"
    );
    Ok(())
}

/// The releases on the ESP whose manifests can be believed.
fn releases(
    mounted: &esp::Mounted,
    trust: &TrustRoot,
    now: Timestamp,
) -> Result<Vec<Verified<ReleaseManifest>>> {
    let mut releases = Vec::new();
    for version in mounted.releases()? {
        let manifest = mounted
            .read(&esp::manifest(version))
            .map_err(anyhow::Error::new)
            .and_then(|bytes| Ok(serde_json::from_slice::<Signed<ReleaseManifest>>(&bytes)?))
            .and_then(|signed| Ok(trust.verify(&signed, now)?));
        match manifest {
            Ok(manifest) => releases.push(manifest),
            // It has no entry, or one that does not start.
            Err(problem) => {
                let problem = format!("{problem:#}");
                tracing::warn!(release = %version, problem, "not copied to the second disk");
            }
        }
    }
    Ok(releases)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The kernel's folders for a mirror over partition 6 of these disks.
    fn sys(halves: &[(&str, &str)], degraded: u32, completed: &str) -> (tempfile::TempDir, Site) {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let md = site.at("/sys/class/block/md0/md");
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(md.join("degraded"), &format!("{degraded}\n"));
        write(md.join("sync_completed"), &format!("{completed}\n"));
        for (disk, state) in halves {
            let partition = format!("{disk}6");
            let device = site.at(&format!("/sys/devices/{disk}/{partition}"));
            write(device.join("partition"), "6\n");
            symlink(&device, site.at("/sys/class/block").join(&partition)).unwrap();
            write(
                md.join(format!("dev-{partition}/state")),
                &format!("{state}\n"),
            );
        }
        (folder, site)
    }

    fn told(halves: &[(&str, &str)], degraded: u32, completed: &str) -> (bool, String) {
        let (_folder, site) = sys(halves, degraded, completed);
        let check = Mirror::read(&site).unwrap().check();
        (check.ok, check.message)
    }

    #[test]
    fn a_mirror_is_told_whole_degraded_or_on_its_way() {
        let both = [("sdb", "in_sync"), ("sda", "in_sync")];
        assert_eq!(told(&both, 0, "none"), (true, "sda and sdb".into()));
        let (ok, one) = told(&both[..1], 1, "none");
        assert!(!ok && one.starts_with("only sdb works"), "{one}");
        let failed = [("sda", "faulty"), ("sdb", "in_sync")];
        assert!(told(&failed, 1, "none").1.starts_with("only sdb works"));
        let back = [("sda", "spare"), ("sdb", "in_sync")];
        let (ok, on_its_way) = told(&back, 1, "512 / 2048");
        assert!(!ok);
        assert_eq!(on_its_way, "sda gets what sdb holds, 25 % done");
    }

    #[test]
    fn a_system_on_one_disk_has_no_mirror() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Mirror::read(&Site::new(folder.path())), None);
    }

    #[test]
    fn what_has_failed_is_not_written_to() {
        let halves = [("sda", "in_sync"), ("sdb", "faulty"), ("sdc", "spare")];
        let (_folder, site) = sys(&halves, 1, "none");
        let mirror = Mirror::read(&site).unwrap();
        let leader = site.at("/dev/sda");
        assert_eq!(mirror.followers(&site, &leader), [site.at("/dev/sdc")]);
    }
}
