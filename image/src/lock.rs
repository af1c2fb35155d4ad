//! The lock: exactly which packages a release is made of.
//!
//! It names package, version, architecture, SHA-256 and suite, never where a
//! package was fetched from: any mirror that has the same bytes will do.

use std::collections::BTreeMap;

use model::Digest;
use serde::{Deserialize, Serialize};

use crate::control::{IndexEntry, Planned};

/// What a package is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Installed into the root.
    Root,
    /// Unpacked into the root.
    Unpacked,
    /// The kernel.
    Kernel,
    /// Tools of the build; the initrds' programs come from them.
    Tools,
}

/// One package of a release.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// What it is for.
    pub part: Part,
    /// Name.
    pub package: String,
    /// Version.
    pub version: String,
    /// Architecture, or `all`.
    pub architecture: String,
    /// SHA-256 of the `.deb`.
    pub sha256: Digest,
    /// The suite that it came from.
    pub suite: String,
}

impl LockedPackage {
    /// The name of its file in the cache.
    pub fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.package, self.architecture)
    }
}

/// The packages of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Debian's suite.
    pub suite: String,
    /// CPU architecture.
    pub architecture: String,
    /// The packages, sorted.
    pub packages: Vec<LockedPackage>,
}

/// A package that no index has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("package {package} {version} ({architecture}): in no package index")]
pub struct NotIndexed {
    package: String,
    version: String,
    architecture: String,
}

/// The package indexes, for looking packages up.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<(String, String, String), IndexEntry>,
}

impl Index {
    /// Adds the entries of one suite; an entry that is there already stays,
    /// so suites are added with the most telling one (security) first.
    pub fn add(&mut self, entries: Vec<IndexEntry>) {
        for entry in entries {
            let key = (
                entry.package.clone(),
                entry.version.clone(),
                entry.architecture.clone(),
            );
            self.entries.entry(key).or_insert(entry);
        }
    }

    /// Returns the entry of a package version.
    pub fn get(&self, package: &str, version: &str, architecture: &str) -> Option<&IndexEntry> {
        let key = (package.into(), version.into(), architecture.into());
        self.entries.get(&key)
    }

    /// Returns a digest of what the indexes offer.
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        for ((package, version, architecture), entry) in &self.entries {
            for field in [package, version, architecture, &entry.suite] {
                bytes.extend_from_slice(field.as_bytes());
                bytes.push(0);
            }
            bytes.extend_from_slice(entry.sha256.as_bytes());
        }
        Digest::of(&bytes)
    }

    /// Returns all package names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(|(package, _, _)| package.as_str())
    }

    /// Locks planned packages for `part`.
    ///
    /// # Errors
    /// [`NotIndexed`] for the first one that no index has.
    pub fn lock(&self, part: Part, planned: &[Planned]) -> Result<Vec<LockedPackage>, NotIndexed> {
        let locked = planned.iter().map(|planned| {
            let Planned {
                package,
                version,
                architecture,
            } = planned;
            let entry = self
                .get(package, version, architecture)
                .or_else(|| self.get(package, version, "all"))
                .ok_or_else(|| NotIndexed {
                    package: package.clone(),
                    version: version.clone(),
                    architecture: architecture.clone(),
                })?;
            Ok(LockedPackage {
                part,
                package: package.clone(),
                version: version.clone(),
                architecture: entry.architecture.clone(),
                sha256: entry.sha256,
                suite: entry.suite.clone(),
            })
        });
        locked.collect()
    }
}

impl Lock {
    /// Returns the packages of one part.
    pub fn part(&self, part: Part) -> impl Iterator<Item = &LockedPackage> {
        self.packages.iter().filter(move |p| p.part == part)
    }

    /// Returns the list for people: name, version and what it is for.
    pub fn text(&self) -> String {
        self.packages
            .iter()
            .filter(|package| package.part != Part::Tools)
            .map(|package| format!("{} {}\n", package.package, package.version))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::parse_index;

    const INDEX: &str = "Package: udev\nVersion: 257\nArchitecture: amd64\nFilename: pool/udev.deb\nHomepage: https://mirror.example/x\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";

    fn planned(version: &str) -> Planned {
        Planned {
            package: "udev".into(),
            version: version.into(),
            architecture: "amd64".into(),
        }
    }

    #[test]
    fn the_lock_names_no_host_and_no_path() {
        let mut index = Index::default();
        index.add(parse_index(INDEX, "trixie-security"));
        index.add(parse_index(INDEX, "trixie"));
        let lock = Lock {
            suite: "trixie".into(),
            architecture: "amd64".into(),
            packages: index.lock(Part::Root, &[planned("257")]).unwrap(),
        };
        let json = serde_json::to_string(&lock).unwrap();
        assert!(json.contains("trixie-security"), "{json}");
        for word in ["http", "example", "pool", "://", ".deb"] {
            assert!(!json.contains(word), "{word} in {json}");
        }
        assert_eq!(serde_json::from_str::<Lock>(&json).unwrap(), lock);
    }

    #[test]
    fn a_version_that_no_index_has_is_named() {
        let error = Index::default()
            .lock(Part::Root, &[planned("258")])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "package udev 258 (amd64): in no package index"
        );
    }
}
