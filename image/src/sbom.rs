//! Bills of materials: what a release consists of, for scanners and auditors.
//!
//! Pure: the [`Bill`] is gathered from the lock, the manifest and the finished
//! images; [`spdx`] and [`cyclonedx`] write it down. The same release gives the
//! same bytes: the time is the recipe's, the identifiers are derived.

pub mod cyclonedx;
pub mod spdx;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use jiff::Timestamp;
use model::Digest;
use model::release::ReleaseManifest;
use serde::Deserialize;

use crate::block::Block;
use crate::control;
use crate::erofs::{ErofsError, Image};
use crate::lock::{Lock, LockedPackage, Part};
use crate::owners::{Files, Owner};
use crate::recipe::Recipe;

/// The document in SPDX 2.3.
pub const SPDX: &str = "sbom.spdx.json";
/// The document in CycloneDX 1.6.
pub const CYCLONE_DX: &str = "sbom.cdx.json";

/// What a release consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// The operating system's identifier.
    pub name: String,
    /// The release's version.
    pub version: String,
    /// The root hash.
    pub root_hash: Digest,
    /// The recipe's source date.
    pub created: Timestamp,
    /// Debian's suite.
    pub suite: String,
    /// Debian packages, sorted.
    pub packages: Vec<DebianPackage>,
    /// Our components.
    pub components: Vec<Component>,
    /// Our programs.
    pub programs: Vec<Program>,
    /// Crates that our programs were built from.
    pub crates: Vec<Crate>,
}

/// A Debian package of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianPackage {
    /// As locked.
    pub locked: LockedPackage,
    /// Name and version of the source package, where they are known.
    pub source: Option<(String, String)>,
    /// What it is to the release.
    pub role: Role,
}

/// What a package is to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Files of it are in the release.
    Content,
    /// It was installed for the sake of others, and all its files were removed.
    Dependency,
    /// The build ran it or copied programs out of it.
    Tool,
}

/// A component of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256 of its image.
    pub sha256: Digest,
}

/// One of our own programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Name.
    pub name: String,
    /// The component that it is in, or the root.
    pub component: Option<String>,
    /// Its component's version, or the release's.
    pub version: String,
    /// SHA-256 of the program as it lies in the image.
    pub sha256: Digest,
}

/// A crate of our programs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the crate's archive.
    pub sha256: Option<Digest>,
}

impl Bill {
    /// Starts the bill with what lock and manifest tell. `status` is dpkg's, and
    /// `files` says which packages have files in the finished root.
    ///
    /// # Errors
    /// When the source date is out of range.
    pub fn new(
        recipe: &Recipe,
        lock: &Lock,
        manifest: &ReleaseManifest,
        status: &str,
        files: &Files,
    ) -> anyhow::Result<Self> {
        let sources = sources(status);
        let owners: BTreeSet<&Owner> = files.iter().map(|(_, owner, _)| owner).collect();
        let has_files = |package: &str| owners.contains(&Owner::Package(package.to_owned()));
        let packages = lock.packages.iter().map(|locked| DebianPackage {
            source: match locked.part {
                Part::Root => sources.get(&locked.package).cloned(),
                _ => None,
            },
            role: match locked.part {
                Part::Tools => Role::Tool,
                Part::Kernel | Part::Component(_) => Role::Content,
                Part::Root | Part::Unpacked | Part::Firmware if has_files(&locked.package) => {
                    Role::Content
                }
                Part::Root | Part::Unpacked | Part::Firmware => Role::Dependency,
            },
            locked: locked.clone(),
        });
        let mut packages: Vec<DebianPackage> = packages.collect();
        packages.sort_by(|a, b| a.locked.cmp(&b.locked));
        let components = manifest.components.iter().map(|component| Component {
            name: component.name.clone(),
            version: component.version.clone(),
            sha256: component.image.sha256,
        });
        Ok(Self {
            name: recipe.name.clone(),
            version: manifest.version.to_string(),
            root_hash: manifest.root_hash,
            created: Timestamp::from_second(i64::from(recipe.source_date))
                .context("source date")?,
            suite: lock.suite.clone(),
            packages,
            components: components.collect(),
            programs: Vec::new(),
            crates: Vec::new(),
        })
    }

    /// Adds our programs that are in an image, with the digests that they have there.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn add_programs<B: Block>(
        &mut self,
        component: Option<&str>,
        names: &[String],
        image: &Image<B>,
    ) -> Result<(), ErofsError> {
        let of_component = self
            .components
            .iter()
            .find(|known| Some(known.name.as_str()) == component);
        let version = of_component.map_or(&self.version, |component| &component.version);
        let version = version.clone();
        for entry in image.entries()? {
            let Some(name) = entry.path.strip_prefix("usr/bin/") else {
                continue;
            };
            if names.iter().any(|wanted| wanted == name) {
                self.programs.push(Program {
                    name: name.to_owned(),
                    component: component.map(str::to_owned),
                    version: version.clone(),
                    sha256: image.digest(&entry)?,
                });
            }
        }
        Ok(())
    }

    /// A UUID that depends on the release and `format` alone.
    fn uuid(&self, format: &str) -> String {
        let Self {
            name,
            version,
            root_hash,
            ..
        } = self;
        crate::steps::verity::uuid(&format!("{name} {version} {root_hash} {format}"))
    }
}

/// Source packages by binary package, from dpkg's status.
fn sources(status: &str) -> BTreeMap<String, (String, String)> {
    let found = control::stanzas(status).filter_map(|stanza| {
        let package = control::field(stanza, "Package")?;
        let version = control::field(stanza, "Version")?;
        // `Source: glibc` or `Source: glibc (2.41-12)`; without it both are the package's.
        let source = control::field(stanza, "Source").unwrap_or(package);
        let (name, other) = source.split_once(' ').unwrap_or((source, ""));
        let other = other.trim().trim_matches(['(', ')']);
        let version = if other.is_empty() { version } else { other };
        Some((package.to_owned(), (name.to_owned(), version.to_owned())))
    });
    found.collect()
}

/// Reads the crates of a `Cargo.lock` that are not of its own workspace.
///
/// # Errors
/// Says what was expected.
pub fn parse_cargo_lock(text: &str) -> Result<Vec<Crate>, String> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        package: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        version: String,
        source: Option<String>,
        checksum: Option<String>,
    }
    let file: File =
        toml::from_str(text).map_err(|error| format!("expected a Cargo.lock: {error}"))?;
    if file.package.is_empty() {
        return Err("expected a Cargo.lock with packages".into());
    }
    let foreign = file
        .package
        .into_iter()
        .filter(|entry| entry.source.is_some());
    let mut crates: Vec<Crate> = foreign
        .map(|entry| Crate {
            sha256: entry.checksum.and_then(|sum| sum.parse().ok()),
            name: entry.name,
            version: entry.version,
        })
        .collect();
    crates.sort();
    Ok(crates)
}

/// Percent-encodes a part of a package URL.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                out.push(char::from(byte));
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The package URL of a Debian package.
pub fn deb_url(package: &LockedPackage, suite: &str) -> String {
    format!(
        "pkg:deb/debian/{}@{}?arch={}&distro={}",
        encode(&package.package),
        encode(&package.version),
        encode(&package.architecture),
        encode(suite)
    )
}

/// The package URL of a crate.
pub fn crate_url(one: &Crate) -> String {
    format!("pkg:cargo/{}@{}", encode(&one.name), encode(&one.version))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn bill() -> Bill {
        let package = |part: Part, name: &str, version: &str| DebianPackage {
            locked: LockedPackage {
                part: part.clone(),
                package: name.into(),
                version: version.into(),
                architecture: "amd64".into(),
                sha256: Digest::of(name.as_bytes()),
                suite: "trixie-security".into(),
            },
            source: Some((format!("{name}-source"), version.into())),
            role: match (&part, name) {
                (Part::Tools, _) => Role::Tool,
                (_, "debconf") => Role::Dependency,
                _ => Role::Content,
            },
        };
        Bill {
            name: "leapserv".into(),
            version: "2026.11.1".into(),
            root_hash: Digest::of(b"root"),
            created: "2026-11-01T00:00:00Z".parse().unwrap(),
            suite: "trixie".into(),
            packages: vec![
                package(Part::Root, "libstdc++6", "1:14.2.0-19+b1"),
                package(Part::Root, "debconf", "1.5.91"),
                package(Part::Kernel, "linux-image", "6.12.1"),
                // The same package serves as a tool too.
                package(Part::Tools, "libstdc++6", "1:14.2.0-19+b1"),
            ],
            components: vec![Component {
                name: "backup".into(),
                version: "0.1.0".into(),
                sha256: Digest::of(b"backup.raw"),
            }],
            programs: vec![
                Program {
                    name: "leap-updater".into(),
                    component: None,
                    version: "2026.11.1".into(),
                    sha256: Digest::of(b"updater"),
                },
                Program {
                    name: "leap-backup".into(),
                    component: Some("backup".into()),
                    version: "0.1.0".into(),
                    sha256: Digest::of(b"backup"),
                },
            ],
            crates: vec![Crate {
                name: "serde".into(),
                version: "1.0.0+x".into(),
                sha256: None,
            }],
        }
    }

    #[test]
    fn package_urls_are_encoded() {
        let bill = bill();
        assert_eq!(
            deb_url(&bill.packages[0].locked, &bill.suite),
            "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19%2Bb1?arch=amd64&distro=trixie"
        );
        assert_eq!(crate_url(&bill.crates[0]), "pkg:cargo/serde@1.0.0%2Bx");
    }

    #[test]
    fn sources_are_those_that_dpkg_names() {
        let status = "Package: libc6\nSource: glibc\nVersion: 2.41-12\n\n\
                      Package: zlib1g\nSource: zlib (1:1.3)\nVersion: 1:1.3+b1\n\n\
                      Package: bash\nVersion: 5.2\n";
        let sources = sources(status);
        let of = |name: &str| {
            let (source, version) = &sources[name];
            format!("{source} {version}")
        };
        assert_eq!(of("libc6"), "glibc 2.41-12");
        assert_eq!(of("zlib1g"), "zlib 1:1.3");
        assert_eq!(of("bash"), "bash 5.2");
    }

    #[test]
    fn crates_of_the_workspace_itself_are_not_listed() {
        let text = "version = 4\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n\
                    [[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nsource = \"registry\"\n\
                    checksum = \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"\n";
        let crates = parse_cargo_lock(text).unwrap();
        assert_eq!(crates.len(), 1);
        assert_eq!(crates[0].sha256, Some(Digest::of(b"")));
        assert!(parse_cargo_lock("x = 1").is_err());
        assert!(parse_cargo_lock("[[").is_err());
    }
}
