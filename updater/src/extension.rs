//! Extension images, mounted so that what is read from them is what was signed.
//!
//! A component's image lies on the ESP, where anyone with the disk in hand can
//! change it at any time; so the kernel checks every block of it when it is
//! read, by the root hash in the signed manifest. A customer's layer is so small
//! that its verified bytes are kept in memory.
//!
//! Mount points are named by content: old and new stand side by side while
//! components are replaced. systemd is given links to them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use edge::durable::{self, Mode};
use model::Digest;
use model::release::{Artifact, HashTree};

use crate::site::Site;

/// Mounts a component's image and returns where.
///
/// # Errors
/// The image or its hash tree is not what `tree` says, or not a file system.
pub fn mount_verified(site: &Site, name: &str, image: &Path, tree: &HashTree) -> Result<PathBuf> {
    let identity = identity(name, &tree.root_hash);
    let device = site.at("/dev/mapper").join(&identity);
    if !device.exists() {
        // Read-only: veritysetup's own loop device would keep the ESP open for writing,
        // which then could not be put away cleanly at the end.
        let looped = site
            .tool("losetup")
            .args(["--find", "--show", "--read-only"])
            .arg(image)
            .text()?;
        // Nothing in the system waits for device-mapper's udev events.
        let opened = site
            .tool("veritysetup")
            .env("DM_DISABLE_UDEV", "1")
            .args(["open", &looped, &identity, &looped])
            .arg(tree.root_hash.to_string())
            .arg(format!("--hash-offset={}", tree.offset))
            .run();
        // From now on it goes with its last user.
        let released = site.tool("losetup").args(["--detach", &looped]).run();
        opened.and(released)?;
    }
    mount(site, &identity, &device, "ro,nodev")
}

/// Verifies a small image, keeps its bytes in memory, mounts them and returns where.
///
/// # Errors
/// The bytes are not those that were signed, or not a file system.
pub fn mount_copy(site: &Site, name: &str, bytes: &[u8], signed: &Artifact) -> Result<PathBuf> {
    let found = Digest::of(bytes);
    ensure!(found == signed.sha256, "not as signed: SHA-256 {found}");
    let identity = identity(name, &found);
    let file = copy(site, &identity);
    fs::create_dir_all(folder(site)).context("make the folder of mounts")?;
    if !file.exists() {
        durable::write(&file, bytes, Mode::Public)?;
    }
    mount(site, &identity, &file, "ro,nodev,loop")
}

/// Unmounts what no link for systemd leads to. What is still read from an old
/// image goes when its last reader has ended.
///
/// # Errors
/// A folder cannot be read, or an image does not go away.
pub fn sweep(site: &Site) -> Result<()> {
    let mut used = Vec::new();
    for links in LINKS {
        let links = site.at(links);
        let names = entries(&links)?;
        used.extend(
            names
                .iter()
                .flat_map(|name| fs::read_link(links.join(name))),
        );
    }
    for identity in entries(&folder(site))? {
        let point = folder(site).join(&identity);
        if !point.is_dir() || used.contains(&point) {
            continue;
        }
        if is_mounted(&point)? {
            site.tool("umount").arg(&point).run()?;
        }
        if site.at("/dev/mapper").join(&identity).exists() {
            site.tool("veritysetup")
                .env("DM_DISABLE_UDEV", "1")
                .args(["close", "--deferred", &identity])
                .run()?;
        }
        let copy = copy(site, &identity);
        if copy.exists() {
            fs::remove_file(&copy).with_context(|| format!("remove {}", copy.display()))?;
        }
        fs::remove_dir(&point).with_context(|| format!("remove {}", point.display()))?;
    }
    Ok(())
}

/// Where systemd looks for system and for configuration extensions.
pub const LINKS: [&str; 2] = ["/run/extensions", "/run/confexts"];

/// So many digits of a hash are in a name.
const SHORT: usize = 16;

fn identity(name: &str, hash: &Digest) -> String {
    format!("{name}-{}", &hash.to_string()[..SHORT])
}

fn folder(site: &Site) -> PathBuf {
    site.run("extensions")
}

fn copy(site: &Site, identity: &str) -> PathBuf {
    folder(site).join(format!("{identity}.raw"))
}

fn mount(site: &Site, identity: &str, source: &Path, options: &str) -> Result<PathBuf> {
    let point = folder(site).join(identity);
    fs::create_dir_all(&point).with_context(|| format!("make {}", point.display()))?;
    if !is_mounted(&point)? {
        site.tool("mount")
            .args(["-t", "erofs", "-o", options])
            .args([source, &point])
            .run()?;
    }
    Ok(point)
}

/// An extension has files; a folder that nothing is mounted on has none.
fn is_mounted(point: &Path) -> Result<bool> {
    Ok(!entries(point)?.is_empty())
}

/// Returns the names in a folder; none when there is no such folder.
///
/// # Errors
/// It cannot be read.
pub fn entries(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", folder.display()))?,
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .with_context(|| format!("read {}", folder.display()))
}
