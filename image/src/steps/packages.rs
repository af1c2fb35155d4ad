//! Packages: apt's indexes, resolving, fetching, and installing with `mmdebstrap`.
//!
//! apt runs with a state of its own in the cache, so it needs no root and
//! touches nothing of the host's. It is asked what a recipe's packages are
//! (once, for the lock) and for package files that the cache lacks. With a
//! lock and these files, a build needs neither index nor network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use edge::exit::{self, Kind};
use edge::runner::Tool;
use model::{Architecture, Digest};

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
        let keyrings = mirrors.keyrings.as_deref();
        let keyrings = keyrings.unwrap_or(Path::new("/usr/share/keyrings"));
        let lines = mirrors.lines(&recipe.suite, recipe.architecture, &recipe.packages.areas);
        let name = Digest::of(lines.as_bytes()).to_string();
        let folder = cache.join(format!("{}-{}", recipe.suite, &name[..12]));
        let making = || format!("prepare {}", folder.display());
        for part in [
            "lists/partial",
            "archives/partial",
            "etc/apt.conf.d",
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
        let text = configuration_text(&folder, recipe.architecture, keyrings, &host?);
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

    /// Returns what apt would install for `names` on an empty system. `places`
    /// says where the recipe names them.
    ///
    /// # Errors
    /// When a package does not exist or dependencies cannot be satisfied.
    pub fn resolve(
        &self,
        names: &[String],
        index: &Index,
        places: &BTreeMap<String, String>,
    ) -> anyhow::Result<Vec<Planned>> {
        let known: BTreeSet<&str> = index.names().collect();
        for name in names.iter().filter(|name| !name.starts_with('?')) {
            if known.contains(name.as_str()) {
                continue;
            }
            let error = exit::marked(
                Kind::InvalidInput,
                at_place(
                    places,
                    name,
                    &format!("package {name:?}: not in suite {}", self.suite),
                ),
            );
            return Err(match nearest(name, known.into_iter()) {
                Some(nearest) => exit::hint(error, format!("did you mean {nearest:?}?")),
                None => error,
            });
        }
        let simulation = self
            .tool("apt-get")
            // Quieter, it would not say which dependencies are not met.
            .args(["install", "--simulate", "-q"])
            .args(names);
        let output = simulation
            .command()
            .output()
            .with_context(|| format!("start {}", simulation.line()))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            return Ok(control::parse_simulation(&stdout));
        }
        let unmet = control::parse_unmet(&stdout);
        let Some((package, _)) = unmet.first() else {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", simulation.line(), words.trim());
        };
        let reasons: Vec<String> = unmet
            .iter()
            .map(|(package, reason)| format!("{package} {reason}"))
            .collect();
        let problem = format!("dependencies cannot be satisfied: {}", reasons.join("; "));
        Err(exit::hint(
            exit::marked(Kind::InvalidInput, at_place(places, package, &problem)),
            "leave the package out, or add the archive's area that has what it needs to packages.areas",
        ))
    }

    /// Makes the lock of a recipe.
    ///
    /// # Errors
    /// As for [`Apt::resolve`].
    pub fn lock(&self, recipe: &Recipe, index: &Index) -> anyhow::Result<Lock> {
        let resolve = |names: &[String]| self.resolve(names, index, &recipe.places);
        let only = |name: &String| -> anyhow::Result<Vec<Planned>> {
            let mut planned = resolve(std::slice::from_ref(name))?;
            planned.retain(|planned| planned.package == *name);
            Ok(planned)
        };
        let mut packages = Vec::new();
        // What every Debian system has, and the scripts of packages rely on.
        let mut install = vec!["?essential".to_owned()];
        install.extend_from_slice(&recipe.packages.install);
        let root = resolve(&install)?;
        packages.extend(index.lock(&Part::Root, &root)?);
        for (part, names) in [
            (Part::Unpacked, &recipe.packages.unpack),
            (Part::Firmware, &recipe.firmware.packages),
        ] {
            for name in names {
                packages.extend(index.lock(&part, &only(name)?)?);
            }
        }
        for (name, component) in &recipe.components {
            if component.packages.is_empty() {
                continue;
            }
            let mut all = install.clone();
            all.extend_from_slice(&component.packages);
            let mut planned = resolve(&all)?;
            planned.retain(|package| !root.contains(package));
            packages.extend(index.lock(&Part::Component(name.clone()), &planned)?);
        }
        let name = &recipe.kernel.package;
        let mut planned = resolve(std::slice::from_ref(name))?;
        // The package that is named may only depend on the one with the kernel.
        planned.retain(|planned| planned.package.starts_with("linux-image-"));
        if planned.len() > 1 {
            planned.retain(|planned| planned.package != *name);
        }
        if planned.len() != 1 {
            let problem = format!("kernel.package {name:?}: expected a package linux-image-…");
            bail!(exit::marked(
                Kind::InvalidInput,
                at_place(&recipe.places, name, &problem),
            ));
        }
        packages.extend(index.lock(&Part::Kernel, &planned)?);
        let planned = resolve(&recipe.packages.tools)?;
        packages.extend(index.lock(&Part::Tools, &planned)?);
        Ok(Lock::of(recipe, packages))
    }

    /// Fetches the locked packages that the cache lacks. Returns how many.
    /// `progress` is told how many bytes have come.
    ///
    /// # Errors
    /// When a package cannot be fetched or is not the locked one; those that
    /// came whole before that stay in the cache.
    pub fn fetch(&self, lock: &Lock, progress: &mut dyn FnMut(u64)) -> anyhow::Result<usize> {
        let missing = missing(&self.packages, lock);
        if missing.is_empty() {
            return Ok(0);
        }
        let known = self.index(Indexes::Cached)?;
        let is_known = |package: &&LockedPackage| {
            let LockedPackage {
                package,
                version,
                architecture,
                ..
            } = package;
            known.get(package, version, architecture).is_some()
        };
        // A lock that was made elsewhere may be newer than the indexes that are here.
        if !missing.iter().all(is_known) {
            self.index(Indexes::Fresh)?;
        }
        let download = tempfile::tempdir_in(&self.folder).context("make a download folder")?;
        let wanted = missing.iter().map(|package| {
            let LockedPackage {
                package, version, ..
            } = package;
            format!("{package}={version}")
        });
        let tool = self
            .tool("apt-get")
            .args(["download", "-qq"])
            .args(wanted)
            .current_dir(download.path());
        let (done, ended) = mpsc::channel();
        let fetched = std::thread::scope(|scope| {
            scope.spawn(|| {
                let result = tool.run();
                // The receiver lives until this has come.
                let _ = done.send(result);
            });
            loop {
                match ended.recv_timeout(Duration::from_millis(250)) {
                    Ok(result) => break result,
                    Err(_) => progress(size_of(download.path())),
                }
            }
        });
        for package in &missing {
            match unpack::checked(download.path(), package) {
                Ok(file) => {
                    edge::durable::rename(&file, &self.packages.join(package.file_name()))?;
                }
                // After a failure the others are not there, or not whole.
                Err(_) if fetched.is_err() => {}
                Err(problem) => return Err(problem),
            }
        }
        fetched.map_err(|error| {
            exit::hint(
                error.context("fetch packages"),
                "check the network and build again: what has come is kept. Where a mirror has \
                 newer versions only, run leap-image lock --update",
            )
        })?;
        Ok(missing.len())
    }
}

/// The locked packages whose files are not in the folder `packages`.
pub fn missing<'a>(packages: &Path, lock: &'a Lock) -> Vec<&'a LockedPackage> {
    let mut missing: Vec<&LockedPackage> = lock
        .packages
        .iter()
        .filter(|package| !packages.join(package.file_name()).exists())
        .collect();
    missing.sort_by_key(|package| package.file_name());
    missing.dedup_by_key(|package| package.file_name());
    missing
}

/// The bytes in a folder that is being filled.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

fn at_place(places: &BTreeMap<String, String>, package: &str, problem: &str) -> String {
    match places.get(package) {
        Some(place) => format!("{place}: {problem}"),
        None => problem.to_owned(),
    }
}

/// Writes a package repository of exactly the packages that are installed into
/// the root. Its index comes out of the packages themselves.
///
/// # Errors
/// When a package is damaged or the folder cannot be written.
pub fn write_repository(packages: &Path, folder: &Path, lock: &Lock) -> anyhow::Result<()> {
    let root: Vec<&LockedPackage> = lock.part(Part::Root).collect();
    let width = std::thread::available_parallelism().map_or(1, usize::from);
    let stanzas: Vec<anyhow::Result<Vec<String>>> = std::thread::scope(|scope| {
        let parts = root.chunks(root.len().div_ceil(width).max(1));
        let threads: Vec<_> = parts
            .map(|part| {
                scope.spawn(move || {
                    let stanzas = part.iter().map(|package| add(packages, folder, package));
                    stanzas.collect()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("reading packages failed")))
            })
            .collect()
    });
    let mut text = String::new();
    for part in stanzas {
        text.push_str(&part?.concat());
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

/// Puts one package into the repository and returns its stanza.
fn add(packages: &Path, folder: &Path, package: &LockedPackage) -> anyhow::Result<String> {
    let file = unpack::checked(packages, package)?;
    let name = package.file_name();
    let place = folder.join(&name);
    if std::fs::hard_link(&file, &place).is_err() {
        std::fs::copy(&file, &place).with_context(|| format!("copy {name}"))?;
    }
    let fields = Tool::new("dpkg-deb").arg("--field").arg(&file).text()?;
    let size = std::fs::metadata(&file)
        .with_context(|| format!("look at {name}"))?
        .len();
    Ok(format!(
        "{}\nFilename: ./{name}\nSize: {size}\nSHA256: {}\n\n",
        fields.trim_end(),
        package.sha256
    ))
}

/// Installs the locked packages into a new root and writes it as `rootfs.tar`
/// into `out`. Runs as root, or as an ordinary user in a user namespace.
///
/// # Errors
/// When `mmdebstrap` fails.
pub fn install(packages: &Path, recipe: &Recipe, lock: &Lock, out: &Path) -> anyhow::Result<()> {
    let repository = out.join("repository");
    std::fs::create_dir(&repository).context("make the repository's folder")?;
    write_repository(packages, &repository, lock)?;
    let include: Vec<&str> = lock
        .part(Part::Root)
        .map(|package| package.package.as_str())
        .collect();
    let source = format!("deb [trusted=yes] copy:{} ./", quoted(&repository)?);
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

/// A path as a word of apt's list of sources, which takes `%xx` for any byte
/// (sources.list(5), apt's `ParseQuoteWord`).
fn quoted(path: &Path) -> anyhow::Result<String> {
    use std::fmt::Write as _;
    let mut word = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                word.push(char::from(*byte));
            }
            other => write!(word, "%{other:02x}").context("quote a path")?,
        }
    }
    Ok(word)
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
fn configuration_text(
    folder: &Path,
    architecture: Architecture,
    keyrings: &Path,
    dump: &str,
) -> String {
    let network: String = dump
        .lines()
        .filter(|line| {
            let key = line.split(' ').next().unwrap_or_default().to_lowercase();
            key.starts_with("acquire::")
                && (key.contains("proxy") || key.starts_with("acquire::https::"))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let (folder, keyrings) = (folder.display(), keyrings.display());
    format!(
        r#"{network}Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Etc "{folder}/etc";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::Etc::trustedparts "{keyrings}";
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
    fn a_path_with_blanks_is_one_word_of_apts_list() {
        let path = Path::new("/home/me/first folder/[x]%");
        assert_eq!(quoted(path).unwrap(), "/home/me/first%20folder/%5bx%5d%25");
    }

    #[test]
    fn of_the_hosts_apt_only_its_way_to_the_network_counts() {
        let dump = "Acquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::GzipIndexes \"true\";\nAPT::Install-Recommends \"1\";\nDPkg::Post-Invoke:: \"rm x\";\nAcquire::https::CaInfo \"/etc/ca.pem\";\n";
        let text = configuration_text(
            Path::new("/cache"),
            Architecture::Amd64,
            Path::new("/keys"),
            dump,
        );
        assert!(text.contains("proxy.example") && text.contains("/etc/ca.pem"));
        assert!(!text.contains("rm x") && !text.contains("Recommends \"1\""));
        assert!(text.contains("Dir::Etc \"/cache/etc\";"));
        assert!(text.contains("trustedparts \"/keys\";"));
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
