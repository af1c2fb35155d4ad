//! What the laboratory needs of this machine, what is missing, and how it gets here.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::exit::{self, Kind};
use edge::runner::Tool;
use serde::Serialize;

/// One thing that must be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// A program to find in the search path, or a file by its whole path.
    pub thing: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

const fn need(thing: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need {
        thing,
        package,
        purpose,
    }
}

/// Everything that demo, laboratory and end-to-end tests need, beside the Rust toolchain.
pub const NEEDS: &[Need] = &[
    need("unshare", "util-linux", "namespaces of the laboratory"),
    need(
        "setpriv",
        "util-linux",
        "no process outlives the laboratory",
    ),
    need("ip", "iproute2", "network of the laboratory"),
    need("tcpdump", "tcpdump", "packet captures"),
    need("qemu-system-x86_64", "qemu-system-x86", "machines"),
    need(
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "ovmf",
        "firmware of the machines",
    ),
    need("socat", "socat", "consoles of the machines"),
    need("ethtool", "ethtool", "network without TAP devices"),
    need(
        "ssh-keygen",
        "openssh-client",
        "keys of the customer's file server",
    ),
    need(
        "sftp",
        "openssh-client",
        "trial of the customer's file server",
    ),
    need(
        "restic",
        "restic",
        "an outsider's look into the backup repositories",
    ),
    need("sgdisk", "gdisk", "an outsider's look at partition tables"),
    need("mdir", "mtools", "system partitions"),
    need("veritysetup", "cryptsetup-bin", "verity trees"),
    need(
        "debugfs",
        "e2fsprogs",
        "an outsider's look at data partitions",
    ),
    need("mkfs.vfat", "dosfstools", "system partitions"),
    need(
        "qemu-img",
        "qemu-utils",
        "an outsider's look at composed disks",
    ),
    need("zstd", "zstd", "an outsider's look at composed disks"),
    need("mmdebstrap", "mmdebstrap", "releases"),
    need("dpkg-deb", "dpkg", "releases"),
    need("xz", "xz-utils", "kernel modules of releases"),
    need(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "the signatures of Debian's packages",
    ),
    need("cpio", "cpio", "the installer's first file system"),
    need("openssl", "openssl", "new keys for Secure Boot"),
    need(
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "ovmf",
        "firmware that enforces Secure Boot",
    ),
    need("swtpm", "swtpm", "TPMs of the machines"),
    need("dnsmasq", "dnsmasq-base", "the DHCP server of others"),
];

/// Needed only by an ordinary user: root needs no mapping of users.
const ORDINARY: &[Need] = &[need("newuidmap", "uidmap", "namespaces without root")];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What was looked for.
    #[serde(flatten)]
    pub need: Need,
    /// Where it is, or nothing.
    pub path: Option<PathBuf>,
}

/// Looks for everything that is needed here by this user.
#[must_use]
pub fn survey() -> Vec<Found> {
    let root = rustix::process::geteuid().is_root();
    let more = if root { &[] } else { ORDINARY };
    let path = std::env::var("PATH").unwrap_or_default();
    let look = |need: &Need| Found {
        need: *need,
        path: find(need.thing, &path),
    };
    NEEDS.iter().chain(more).map(look).collect()
}

/// Returns the packages of what is missing, each once, in order.
#[must_use]
pub fn missing_packages(found: &[Found]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for found in found.iter().filter(|found| found.path.is_none()) {
        if !packages.contains(&found.need.package) {
            packages.push(found.need.package);
        }
    }
    packages
}

/// Installs packages through apt, with sudo when this user is not root. Says the command
/// through `say` before it runs.
///
/// # Errors
/// There is no sudo, or apt failed; the error names the command to run by hand.
pub async fn install(packages: &[&str], mut say: impl FnMut(&str)) -> anyhow::Result<()> {
    let root = rustix::process::geteuid().is_root();
    let path = std::env::var("PATH").unwrap_or_default();
    let by_hand = format!("as root, run: apt-get install {}", packages.join(" "));
    if !root && find("sudo", &path).is_none() {
        let missing = format!("missing packages: {}", packages.join(" "));
        return Err(exit::hint(
            exit::marked(Kind::Environment, missing),
            by_hand,
        ));
    }
    let apt = |arguments: &[&str]| {
        let words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"];
        let tool = if root {
            Tool::new(words[0]).args(&words[1..])
        } else {
            Tool::new("sudo").args(words)
        };
        tool.args(arguments)
    };
    let install = apt(&["install", "-y", "--no-install-recommends"]).args(packages);
    // Lists that are old or were never fetched are the usual reason for a failure.
    for tool in [apt(&["update"]), install] {
        say(&tool.line());
        // sudo may ask for a password on the terminal, so input stays as it is.
        let status = tool
            .tokio_command()
            .status()
            .await
            .context("start apt-get")?;
        if !status.success() {
            let failed = exit::marked(Kind::Environment, format!("{}: {status}", tool.line()));
            return Err(exit::hint(failed, by_hand));
        }
    }
    Ok(())
}

/// Returns OpenSSH's server: the host's, or one that is unpacked below `cache`, fetched
/// first where it is not there yet.
///
/// The package is not installed, because installing it would start a service on the host.
///
/// # Errors
/// It is not here and cannot be fetched.
pub async fn sshd(cache: &Path) -> anyhow::Result<PathBuf> {
    let host = Path::new("/usr/sbin/sshd");
    if host.exists() {
        return Ok(host.to_owned());
    }
    unpacked_sshd(cache).await
}

async fn unpacked_sshd(cache: &Path) -> anyhow::Result<PathBuf> {
    let root = std::path::absolute(cache.join("openssh-server"))
        .with_context(|| format!("make {} absolute", cache.display()))?;
    let program = root.join("usr/sbin/sshd");
    if program.exists() {
        return Ok(program);
    }
    std::fs::create_dir_all(cache).with_context(|| format!("make folder {}", cache.display()))?;
    let fetching = tempfile::tempdir_in(cache).context("make a folder to fetch into")?;
    // libwrap0 is what a host with OpenSSH's client alone lacks.
    for package in ["openssh-server", "libwrap0"] {
        Tool::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(fetching.path())
            .run_async()
            .await
            .with_context(|| format!("fetch package {package}"))?;
    }
    let tree = fetching.path().join("tree");
    for entry in std::fs::read_dir(fetching.path()).context("list what was fetched")? {
        let file = entry.context("list what was fetched")?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            Tool::new("dpkg-deb")
                .arg("-x")
                .args([&file, &tree])
                .run_async()
                .await?;
        }
    }
    std::fs::rename(&tree, &root)
        .with_context(|| format!("put the file server into {}", root.display()))?;
    Ok(program)
}

/// Says what to install where a program of a single case is missing.
///
/// # Errors
/// It is missing.
pub fn require(program: &str, package: &str) -> anyhow::Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    if find(program, &path).is_some() {
        return Ok(());
    }
    let missing = exit::marked(Kind::Environment, format!("no program {program}"));
    let next = format!("apt-get install {package}, or run make setup");
    Err(exit::hint(missing, next))
}

/// Finds a file by its whole path, or a program in the search path and in the folders of
/// the system's programs, which an ordinary user's path lacks.
fn find(thing: &str, path: &str) -> Option<PathBuf> {
    if thing.starts_with('/') {
        return Some(PathBuf::from(thing)).filter(|file| file.exists());
    }
    path.split(':')
        .filter(|folder| !folder.is_empty())
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"])
        .map(|folder| Path::new(folder).join(thing))
        .find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_lacks_twice_is_named_once() {
        let found: Vec<_> = NEEDS
            .iter()
            .map(|need| Found {
                need: *need,
                path: (need.package != "util-linux").then(PathBuf::new),
            })
            .collect();
        assert_eq!(missing_packages(&found), ["util-linux"]);
    }

    #[test]
    fn the_script_for_a_machine_with_nothing_built_installs_all_of_it() {
        let script = include_str!("../../setup.sh");
        let start = script.find("packages=(").unwrap();
        let end = start + script[start..].find("\n)").unwrap();
        let installs: Vec<_> = script[start..end]
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(str::split_whitespace)
            .collect();
        for need in NEEDS.iter().chain(ORDINARY) {
            assert!(installs.contains(&need.package), "{}", need.package);
        }
    }

    #[test]
    fn programs_outside_an_ordinary_search_path_are_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tool"), "").unwrap();
        let path = format!("/nowhere:{}", folder.path().display());
        assert_eq!(find("tool", &path), Some(folder.path().join("tool")));
        assert!(find("ip", "/nowhere").is_some() || find("ip", "/usr/bin:/bin").is_some());
        assert_eq!(find("no-such-tool", &path), None);
    }
}
