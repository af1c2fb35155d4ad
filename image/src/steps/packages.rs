//! Packages: apt's indexes, resolving, fetching, and installing with `mmdebstrap`.
//!
//! apt runs with a state of its own in the cache, so it needs no root and
//! touches nothing of the host's. Once the indexes and packages are in the
//! cache, a build needs no network.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind};
use edge::runner::Tool;
use model::Digest;

use super::unpack;
use crate::control::{self, Planned};
use crate::lock::{Index, Lock, LockedPackage, Part};
use crate::recipe::{Recipe, nearest};
use crate::sources::Mirrors;

/// Whether to ask the mirrors for new indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indexes {
    /// Only when the cache has none.
    Cached,
    /// Now.
    Fresh,
}

/// Reads the build host's own package sources.
///
/// # Errors
/// When the host names no Debian mirror.
pub fn host_mirrors() -> anyhow::Result<Mirrors> {
    let mut files = Vec::new();
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        paths.extend(entries.flatten().map(|entry| entry.path()));
    }
    paths.sort();
    for path in paths {
        if let Ok(text) = std::fs::read_to_string(&path) {
            files.push((path.display().to_string(), text));
        }
    }
    let mirrors = Mirrors::from_sources(&files);
    if mirrors.archive.is_empty() {
        let error = exit::marked(
            Kind::Environment,
            "apt's sources on this machine: expected a Debian mirror, found none",
        );
        return Err(exit::hint(error, "name one with --mirror"));
    }
    Ok(mirrors)
}

/// apt with a state of its own.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
    configuration: PathBuf,
    packages: PathBuf,
    suite: String,
    // Held as long as this value lives: two builds would mix up apt's state.
    _lock: File,
}

impl Apt {
    /// Prepares apt's folder, waiting for another build that uses it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn open(
        cache: &Path,
        packages: &Path,
        recipe: &Recipe,
        mirrors: &Mirrors,
    ) -> anyhow::Result<Self> {
        let lines = mirrors.lines(&recipe.suite, &recipe.architecture);
        let name = Digest::of(lines.as_bytes()).to_string();
        let folder = cache.join(format!("{}-{}", recipe.suite, &name[..12]));
        let making = || format!("prepare {}", folder.display());
        for part in [
            "lists/partial",
            "archives/partial",
            "etc/preferences.d",
            "etc/sources.list.d",
        ] {
            std::fs::create_dir_all(folder.join(part)).with_context(making)?;
        }
        let lock = File::create(folder.join("lock")).with_context(making)?;
        lock.lock().with_context(making)?;
        std::fs::write(folder.join("etc/sources.list"), lines).with_context(making)?;
        std::fs::write(folder.join("status"), "").with_context(making)?;
        let configuration = folder.join("apt.conf");
        let host = Tool::new("apt-config").arg("dump").text();
        let text = configuration_text(&folder, &recipe.architecture, &host?);
        std::fs::write(&configuration, text).with_context(making)?;
        Ok(Self {
            folder,
            configuration,
            packages: packages.to_owned(),
            suite: recipe.suite.clone(),
            _lock: lock,
        })
    }

    fn tool(&self, program: &str) -> Tool {
        Tool::new(program)
            .env("APT_CONFIG", &self.configuration)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
    }

    /// Fetches the package indexes, if needed, and reads them.
    ///
    /// # Errors
    /// When no mirror answers or an index is damaged.
    pub fn index(&self, indexes: Indexes) -> anyhow::Result<Index> {
        let complete = self.folder.join("complete");
        if indexes == Indexes::Fresh || !complete.exists() {
            let _ = std::fs::remove_file(&complete);
            self.tool("apt-get")
                .args(["update", "--error-on=any", "-qq"])
                .run()
                .map_err(|error| {
                    exit::hint(
                        error.context("fetch the package indexes"),
                        "check the network and apt's sources, or name a mirror with --mirror",
                    )
                })?;
            std::fs::write(&complete, "").context("mark the package indexes as complete")?;
        }
        let mut index = Index::default();
        let lists = self.folder.join("lists");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&lists).context("read the package indexes")? {
            let path = entry.context("read the package indexes")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(suite) = suite_of(&name, &self.suite) {
                found.push((suite, path.clone()));
            }
        }
        // `trixie-security` before `trixie-updates` before `trixie`: what two
        // of them have is recorded as a security update.
        found.sort_by(|a, b| {
            let rank = |suite: &str| !suite.ends_with("-security");
            (rank(&a.0), b.0.len(), &a.1).cmp(&(rank(&b.0), a.0.len(), &b.1))
        });
        for (suite, path) in found {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            index.add(control::parse_index(&text, &suite));
        }
        Ok(index)
    }

    /// Returns what apt would install for `names` on an empty system.
    ///
    /// # Errors
    /// When a package does not exist or dependencies cannot be satisfied.
    pub fn resolve(&self, names: &[String], index: &Index) -> anyhow::Result<Vec<Planned>> {
        let known: BTreeSet<&str> = index.names().collect();
        for name in names.iter().filter(|name| !name.starts_with('?')) {
            if known.contains(name.as_str()) {
                continue;
            }
            let error = exit::marked(
                Kind::InvalidInput,
                format!("package {name:?}: not in suite {}", self.suite),
            );
            return Err(match nearest(name, known.into_iter()) {
                Some(nearest) => exit::hint(error, format!("did you mean {nearest:?}?")),
                None => error,
            });
        }
        let simulation = self
            .tool("apt-get")
            .args(["install", "--simulate", "-qq"])
            .args(names)
            .text()
            .context("resolve the packages")?;
        Ok(control::parse_simulation(&simulation))
    }

    /// Makes the lock of a recipe.
    ///
    /// # Errors
    /// As for [`Apt::resolve`].
    pub fn lock(&self, recipe: &Recipe, index: &Index) -> anyhow::Result<Lock> {
        let mut packages = Vec::new();
        // What every Debian system has, and the scripts of packages rely on.
        let mut install = vec!["?essential".to_owned()];
        install.extend_from_slice(&recipe.packages.install);
        let planned = self.resolve(&install, index)?;
        packages.extend(index.lock(Part::Root, &planned)?);
        for name in &recipe.packages.unpack {
            let mut planned = self.resolve(std::slice::from_ref(name), index)?;
            planned.retain(|planned| planned.package == *name);
            packages.extend(index.lock(Part::Unpacked, &planned)?);
        }
        let name = &recipe.kernel.package;
        let mut planned = self.resolve(std::slice::from_ref(name), index)?;
        // The package that is named may only depend on the one with the kernel.
        planned.retain(|planned| planned.package.starts_with("linux-image-"));
        if planned.len() > 1 {
            planned.retain(|planned| planned.package != *name);
        }
        if planned.len() != 1 {
            bail!(exit::marked(
                Kind::InvalidInput,
                format!("kernel.package {name:?}: expected a package linux-image-…"),
            ));
        }
        packages.extend(index.lock(Part::Kernel, &planned)?);
        let planned = self.resolve(&recipe.packages.tools, index)?;
        packages.extend(index.lock(Part::Tools, &planned)?);
        packages.sort();
        packages.dedup();
        Ok(Lock {
            suite: recipe.suite.clone(),
            architecture: recipe.architecture.clone(),
            packages,
        })
    }

    /// Fetches the locked packages that the cache lacks. Returns how many.
    ///
    /// # Errors
    /// When a package cannot be fetched or is not the locked one.
    pub fn fetch(&self, lock: &Lock) -> anyhow::Result<usize> {
        let mut missing: Vec<&LockedPackage> = lock
            .packages
            .iter()
            .filter(|package| !self.packages.join(package.file_name()).exists())
            .collect();
        missing.sort_by_key(|package| package.file_name());
        missing.dedup_by_key(|package| package.file_name());
        if missing.is_empty() {
            return Ok(0);
        }
        let download = tempfile::tempdir_in(&self.folder).context("make a download folder")?;
        let wanted = missing.iter().map(|package| {
            let LockedPackage {
                package, version, ..
            } = package;
            format!("{package}={version}")
        });
        self.tool("apt-get")
            .args(["download", "-qq"])
            .args(wanted)
            .current_dir(download.path())
            .run()
            .map_err(|error| {
                exit::hint(
                    error.context("fetch packages"),
                    "check the network; if the mirror has newer versions now, add --refresh",
                )
            })?;
        for package in &missing {
            let file = unpack::checked(download.path(), package)?;
            edge::durable::rename(&file, &self.packages.join(package.file_name()))?;
        }
        Ok(missing.len())
    }

    /// Writes a package repository of exactly the locked packages to `folder`.
    ///
    /// # Errors
    /// When a package is damaged or the folder cannot be written.
    pub fn write_repository(
        &self,
        folder: &Path,
        lock: &Lock,
        index: &Index,
    ) -> anyhow::Result<()> {
        let mut text = String::new();
        for package in lock.part(Part::Root) {
            let file = unpack::checked(&self.packages, package)?;
            let name = package.file_name();
            let place = folder.join(&name);
            if std::fs::hard_link(&file, &place).is_err() {
                std::fs::copy(&file, &place).with_context(|| format!("copy {name}"))?;
            }
            let entry = index
                .get(&package.package, &package.version, &package.architecture)
                .with_context(|| format!("package {}: in no index", package.package))?;
            text.push_str(&entry.stanza_with_path(&format!("./{name}")));
            text.push('\n');
        }
        // mmdebstrap picks the essential packages of the suite by this name.
        let release = format!(
            "Suite: {suite}\nCodename: {suite}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {} {} Packages\n",
            Digest::of(text.as_bytes()),
            text.len(),
            suite = lock.suite
        );
        std::fs::write(folder.join("Packages"), text).context("write the package index")?;
        std::fs::write(folder.join("Release"), release).context("write the release file")
    }
}

/// Installs the locked packages into a new root and writes it as `rootfs.tar`
/// into `out`. Runs as root, or as an ordinary user in a user namespace.
///
/// # Errors
/// When `mmdebstrap` fails.
pub fn install(
    apt: &Apt,
    recipe: &Recipe,
    lock: &Lock,
    index: &Index,
    out: &Path,
) -> anyhow::Result<()> {
    let repository = out.join("repository");
    std::fs::create_dir(&repository).context("make the repository's folder")?;
    apt.write_repository(&repository, lock, index)?;
    let include: Vec<&str> = lock
        .part(Part::Root)
        .map(|package| package.package.as_str())
        .collect();
    let source = format!("deb [trusted=yes] copy:{} ./", repository.display());
    let root = rustix_is_root();
    let tool = if root {
        Tool::new("mmdebstrap")
    } else {
        // The user's own files stay readable for the namespace's root, which
        // mmdebstrap's own namespace does not give.
        Tool::new("unshare").args([
            "--user",
            "--map-root-user",
            "--map-auto",
            "--mount",
            "mmdebstrap",
        ])
    };
    tool.args(["--mode=root", "--variant=essential", "--format=tar"])
        .args(["--quiet", "--skip=output/dev,chroot/mount/sys"])
        .args(["--aptopt=APT::Install-Recommends \"false\""])
        .args(["--aptopt=Acquire::Languages \"none\""])
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/man/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*"])
        .arg(format!("--architectures={}", lock.architecture))
        .arg(format!("--include={}", include.join(",")))
        .arg(&recipe.suite)
        .arg(out.join("rootfs.tar"))
        .arg(source)
        .env("SOURCE_DATE_EPOCH", recipe.source_date.to_string())
        .env("LC_ALL", "C.UTF-8")
        .env("TMPDIR", out)
        .run()
        .map_err(|error| {
            let error = error.context("install the packages");
            if root {
                return error;
            }
            exit::hint(
                error,
                "an ordinary user needs the package uidmap and lines in /etc/subuid and /etc/subgid",
            )
        })?;
    std::fs::remove_dir_all(&repository).context("remove the repository's folder")
}

fn rustix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The suite of an index file's name, for the suites that belong to `base`.
fn suite_of(name: &str, base: &str) -> Option<String> {
    let (_, rest) = name.split_once("_dists_")?;
    let (suite, rest) = rest.split_once('_')?;
    let ours = suite == base || suite.strip_prefix(base).is_some_and(|s| s.starts_with('-'));
    (ours && rest.ends_with("_Packages")).then(|| suite.to_owned())
}

/// apt's whole configuration. Of the host's own, `dump`, only how to reach the
/// network counts: its hooks and preferences are not for us.
fn configuration_text(folder: &Path, architecture: &str, dump: &str) -> String {
    let network: String = dump
        .lines()
        .filter(|line| {
            let key = line.split(' ').next().unwrap_or_default().to_lowercase();
            key.starts_with("acquire::")
                && (key.contains("proxy") || key.starts_with("acquire::https::"))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let folder = folder.display();
    format!(
        r#"{network}Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Etc "{folder}/etc";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::Etc::trustedparts "/usr/share/keyrings";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::GzipIndexes "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Debug::NoLocking "true";
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_hosts_apt_only_its_way_to_the_network_counts() {
        let dump = "Acquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::GzipIndexes \"true\";\nAPT::Install-Recommends \"1\";\nDPkg::Post-Invoke:: \"rm x\";\nAcquire::https::CaInfo \"/etc/ca.pem\";\n";
        let text = configuration_text(Path::new("/cache"), "amd64", dump);
        assert!(text.contains("proxy.example") && text.contains("/etc/ca.pem"));
        assert!(!text.contains("rm x") && !text.contains("Recommends \"1\""));
        assert!(text.contains("Dir::Etc \"/cache/etc\";"));
    }

    #[test]
    fn an_index_files_name_gives_its_suite() {
        let name =
            |suite: &str| format!("mirror.example_debian_dists_{suite}_main_binary-amd64_Packages");
        assert_eq!(suite_of(&name("trixie"), "trixie"), Some("trixie".into()));
        assert_eq!(
            suite_of(&name("trixie-security"), "trixie"),
            Some("trixie-security".into())
        );
        assert_eq!(suite_of(&name("bookworm"), "trixie"), None);
        assert_eq!(
            suite_of("mirror.example_debian_dists_trixie_InRelease", "trixie"),
            None
        );
    }
}
