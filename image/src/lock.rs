//! The lock: exactly which packages a release is made of.
//!
//! It names package, version, architecture, SHA-256 and suite, never where a
//! package was fetched from: any mirror that has the same bytes will do.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use model::{Architecture, Digest};
use serde::{Deserialize, Serialize};

use crate::control::{IndexEntry, Planned};
use crate::recipe::Recipe;

/// The format that [`Lock::to_json`] writes.
const FORMAT: u32 = 1;

/// What a package is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Part {
    /// Installed into the root.
    Root,
    /// Unpacked into the root.
    Unpacked,
    /// The kernel.
    Kernel,
    /// Firmware for devices.
    Firmware,
    /// Unpacked into the component of this name.
    Component(String),
    /// Tools of the build; the initrds' programs come from them.
    Tools,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Unpacked => f.write_str("unpacked"),
            Self::Kernel => f.write_str("kernel"),
            Self::Firmware => f.write_str("firmware"),
            Self::Component(name) => write!(f, "component-{name}"),
            Self::Tools => f.write_str("tools"),
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "root" => Self::Root,
            "unpacked" => Self::Unpacked,
            "kernel" => Self::Kernel,
            "firmware" => Self::Firmware,
            "tools" => Self::Tools,
            _ => match text.strip_prefix("component-") {
                Some(name) if !name.is_empty() => Self::Component(name.to_owned()),
                _ => return Err(format!("part {text:?}: not one of a release")),
            },
        })
    }
}

impl From<Part> for String {
    fn from(part: Part) -> Self {
        part.to_string()
    }
}

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
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
    /// Format of the file.
    #[serde(default)]
    pub format: u32,
    /// SHA-256 of what the recipe asks for, so that a lock of other wishes is noticed.
    #[serde(default)]
    pub wishes: Option<Digest>,
    /// Debian's suite.
    pub suite: String,
    /// CPU architecture.
    pub architecture: Architecture,
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
    pub fn lock(&self, part: &Part, planned: &[Planned]) -> Result<Vec<LockedPackage>, NotIndexed> {
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
                part: part.clone(),
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

/// Returns a digest of what a recipe asks of Debian: another wish needs another lock.
pub fn wishes(recipe: &Recipe) -> Digest {
    let packages = &recipe.packages;
    let architecture = recipe.architecture.to_string();
    let mut lists: Vec<(String, &[String])> = vec![
        ("suite".into(), std::slice::from_ref(&recipe.suite)),
        ("architecture".into(), std::slice::from_ref(&architecture)),
        ("areas".into(), &packages.areas),
        ("install".into(), &packages.install),
        ("unpack".into(), &packages.unpack),
        ("tools".into(), &packages.tools),
        (
            "kernel".into(),
            std::slice::from_ref(&recipe.kernel.package),
        ),
        ("firmware".into(), &recipe.firmware.packages),
    ];
    for (name, component) in &recipe.components {
        lists.push((format!("component {name}"), &component.packages));
    }
    let mut bytes = Vec::new();
    for (name, list) in lists {
        bytes.extend_from_slice(format!("{name} {}\n", list.len()).as_bytes());
        for item in list {
            bytes.extend_from_slice(format!("{item}\n").as_bytes());
        }
    }
    Digest::of(&bytes)
}

/// Why a lock cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// It was made of a recipe with other wishes.
    #[error("the lock was made for other packages than the recipe names now")]
    OtherWishes,
    /// A newer program has written it.
    #[error("the lock has format {0}, this program knows {FORMAT}")]
    Format(u32),
    /// It is no lock.
    #[error("expected a lock: {0}")]
    Malformed(String),
}

impl Lock {
    /// Puts the packages of a recipe together, sorted.
    pub fn of(recipe: &Recipe, mut packages: Vec<LockedPackage>) -> Self {
        packages.sort();
        packages.dedup();
        Self {
            format: FORMAT,
            wishes: Some(wishes(recipe)),
            suite: recipe.suite.clone(),
            architecture: recipe.architecture,
            packages,
        }
    }

    /// Reads a lock file.
    ///
    /// # Errors
    /// It is none, or of a format that this program does not know.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        let lock: Self =
            serde_json::from_str(text).map_err(|error| LockError::Malformed(error.to_string()))?;
        if lock.format > FORMAT {
            return Err(LockError::Format(lock.format));
        }
        Ok(lock)
    }

    /// Says whether this is a lock of what `recipe` asks for.
    ///
    /// # Errors
    /// [`LockError::OtherWishes`].
    pub fn fits(&self, recipe: &Recipe) -> Result<(), LockError> {
        if self.wishes == Some(wishes(recipe)) {
            Ok(())
        } else {
            Err(LockError::OtherWishes)
        }
    }

    /// Returns the text of the lock file: a line for each package, so that a
    /// difference of two locks reads well.
    pub fn to_json(&self) -> String {
        let head = |text: &str| serde_json::Value::from(text).to_string();
        let mut text = format!("{{\n  \"format\": {},\n", self.format);
        if let Some(wishes) = self.wishes {
            text.push_str(&format!("  \"wishes\": \"{wishes}\",\n"));
        }
        text.push_str(&format!(
            "  \"suite\": {},\n  \"architecture\": {},\n  \"packages\": [",
            head(&self.suite),
            head(self.architecture.name())
        ));
        let mut comma = "";
        for package in &self.packages {
            let line = serde_json::to_string(package).expect("texts can be written as JSON");
            text.push_str(&format!("{comma}\n    {line}"));
            comma = ",";
        }
        text.push_str("\n  ]\n}\n");
        text
    }

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

/// How one package differs between two locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The package.
    pub package: String,
    /// Its architecture.
    pub architecture: String,
    /// The version before; none when it is new.
    pub from: Option<String>,
    /// The version now; none when it is gone.
    pub to: Option<String>,
    /// Whether the new version comes from a suite of security fixes.
    pub security: bool,
}

/// Returns what changes from lock `a` to lock `b`, by package name.
pub fn changes(a: &Lock, b: &Lock) -> Vec<Change> {
    let packages = |lock: &Lock| -> BTreeMap<(String, String), LockedPackage> {
        let all = lock.packages.iter();
        all.map(|p| ((p.package.clone(), p.architecture.clone()), p.clone()))
            .collect()
    };
    let (before, now) = (packages(a), packages(b));
    let mut keys: Vec<_> = before.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| {
            let of = |all: &BTreeMap<_, LockedPackage>| {
                all.get(*key).map(|p| (p.version.clone(), p.sha256))
            };
            of(&before) != of(&now)
        })
        .map(|key| Change {
            package: key.0.clone(),
            architecture: key.1.clone(),
            from: before.get(key).map(|p| p.version.clone()),
            to: now.get(key).map(|p| p.version.clone()),
            security: now.get(key).is_some_and(|p| p.suite.ends_with("-security")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::parse_index;

    const INDEX: &str = "Package: udev\nVersion: 257\nArchitecture: amd64\nFilename: pool/udev.deb\nHomepage: https://mirror.example/x\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";

    fn recipe(more: &str) -> Recipe {
        let text = format!(
            "name = \"x\"\narchitecture = \"amd64\"\nsuite = \"trixie\"\nsource-date = \"2026-11-01T00:00:00Z\"\n[kernel]\npackage = \"linux\"\n[packages]\ntools = [\"kmod\"]\ninstall = [\"udev\"{more}]\n"
        );
        crate::recipe::load(std::path::Path::new("r"), &[], &|_| Ok(text.clone())).unwrap()
    }

    fn package(name: &str, version: &str, suite: &str) -> LockedPackage {
        LockedPackage {
            part: Part::Component("backup".into()),
            package: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
            sha256: Digest::of(version.as_bytes()),
            suite: suite.into(),
        }
    }

    #[test]
    fn a_lock_of_other_wishes_or_of_a_newer_format_is_refused() {
        let mut lock = Lock::of(&recipe(""), Vec::new());
        assert_eq!(lock.fits(&recipe("")), Ok(()));
        assert_eq!(
            lock.fits(&recipe(", \"dbus\"")),
            Err(LockError::OtherWishes)
        );
        lock.format = 9;
        assert_eq!(Lock::parse(&lock.to_json()), Err(LockError::Format(9)));
        assert!(matches!(Lock::parse("{"), Err(LockError::Malformed(_))));
    }

    #[test]
    fn changes_name_both_versions_and_mark_security_fixes() {
        let lock = |packages: &[LockedPackage]| Lock::of(&recipe(""), packages.to_vec());
        let a = lock(&[
            package("gone", "1", "trixie"),
            package("same", "1", "trixie"),
            package("udev", "1", "trixie"),
        ]);
        let b = lock(&[
            package("new", "1", "trixie"),
            package("same", "1", "trixie-updates"),
            package("udev", "2", "trixie-security"),
        ]);
        let told: Vec<String> = changes(&a, &b)
            .iter()
            .map(|c| format!("{} {:?} {:?} {}", c.package, c.from, c.to, c.security))
            .collect();
        assert_eq!(
            told,
            [
                "gone Some(\"1\") None false",
                "new None Some(\"1\") false",
                "udev Some(\"1\") Some(\"2\") true",
            ]
        );
        assert!(changes(&a, &a).is_empty());
    }

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
        let packages = index.lock(&Part::Root, &[planned("257")]).unwrap();
        let lock = Lock::of(&recipe(""), packages);
        let json = lock.to_json();
        assert!(json.contains("trixie-security"), "{json}");
        for word in ["http", "example", "pool", "://", ".deb"] {
            assert!(!json.contains(word), "{word} in {json}");
        }
        assert_eq!(Lock::parse(&json).unwrap(), lock);
    }

    #[test]
    fn a_version_that_no_index_has_is_named() {
        let error = Index::default()
            .lock(&Part::Root, &[planned("258")])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "package udev 258 (amd64): in no package index"
        );
    }
}
