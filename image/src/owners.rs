//! Whose each file of the root is: a package's, the kernel's, ours.
//!
//! The lists of packages are not in the finished root, so whose a file is must
//! be written down while the root is composed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lock::{Lock, Part};
use crate::recipe::Recipe;
use crate::tree::{Kind, Tree};

/// The file of the root step, and of a release as compressed document, with [`Files`].
pub const FILES: &str = "files.json";

/// Who brings a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// A Debian package.
    Package(String),
    /// Made or changed while packages were installed, and in none of them.
    Installing,
    /// The kernel's package.
    Kernel(String),
    /// One of our own programs.
    Program(String),
    /// A folder that the recipe lays over the root.
    Overlay,
    /// A hook of the recipe.
    Hook(String),
    /// A file of the recipe itself, or what it says about users and units.
    Recipe,
}

impl Owner {
    /// The step of the build that puts the file into the root.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Package(_) | Self::Installing => "packages",
            Self::Kernel(_) => "kernel",
            Self::Program(_) | Self::Overlay | Self::Hook(_) | Self::Recipe => "root",
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Package(name) => write!(f, "package {name}"),
            Self::Installing => f.write_str("made at installation"),
            Self::Kernel(name) => write!(f, "kernel {name}"),
            Self::Program(name) => write!(f, "program {name}"),
            Self::Overlay => f.write_str("overlays"),
            Self::Hook(name) => write!(f, "hook {name}"),
            Self::Recipe => f.write_str("recipe"),
        }
    }
}

/// Whose the files are, while a root is composed.
#[derive(Debug, Default)]
pub struct Owners {
    claims: BTreeMap<String, Owner>,
}

impl Owners {
    /// Reads the lists of the packages that are installed in `tree`.
    ///
    /// # Errors
    /// When a list cannot be read.
    pub fn of_packages(tree: &Tree) -> anyhow::Result<Self> {
        let mut owners = Self::default();
        for (path, _) in tree.iter() {
            let list = path.strip_prefix("var/lib/dpkg/info/");
            let Some(name) = list.and_then(|list| list.strip_suffix(".list")) else {
                continue;
            };
            let package = name.split(':').next().unwrap_or(name);
            let list = tree.read(path)?;
            for file in String::from_utf8_lossy(&list).lines() {
                let owner = Owner::Package(package.to_owned());
                owners.claims.insert(tree.place(file), owner);
            }
        }
        Ok(owners)
    }

    /// Gives the files of `part`, which was laid into `tree`, to `owner`.
    pub fn claim(&mut self, tree: &Tree, part: &Tree, owner: &Owner) {
        for (path, node) in part.iter() {
            if !matches!(node.kind, Kind::Directory) {
                self.claims.insert(tree.place(path), owner.clone());
            }
        }
    }

    /// Gives what the recipe brings to it, to its programs and to the kernel.
    pub fn claim_recipe(&mut self, tree: &Tree, recipe: &Recipe, lock: &Lock) {
        let kernel = lock.part(Part::Kernel).next();
        let kernel = kernel.map_or(&recipe.kernel.package, |package| &package.package);
        for (path, _) in tree.iter() {
            if path.starts_with("usr/lib/modules/") {
                let owner = Owner::Kernel(kernel.clone());
                self.claims.insert(path.to_owned(), owner);
            } else if path.starts_with("etc/systemd/system/") {
                // Only the recipe's links are left here.
                self.claims.entry(path.to_owned()).or_insert(Owner::Recipe);
            }
        }
        for name in &recipe.root.binaries {
            let owner = Owner::Program(name.clone());
            self.claims
                .insert(tree.place(&format!("usr/bin/{name}")), owner);
        }
        let own = [
            "usr/lib/leapserv/trust-root.json",
            "usr/lib/os-release",
            "etc/os-release",
        ];
        let files = recipe.files.iter().map(|file| file.path.as_str());
        for path in own.into_iter().chain(files) {
            self.claims.insert(tree.place(path), Owner::Recipe);
        }
    }

    /// Returns the owners of the files and links that are in the finished tree.
    pub fn finish(self, tree: &Tree) -> Files {
        let mut files = Files::default();
        for (path, node) in tree.iter() {
            let size = match &node.kind {
                Kind::Directory => continue,
                Kind::Link(_) => 0,
                Kind::File(content) => content.len(),
            };
            let owner = self.claims.get(path).unwrap_or(&Owner::Installing);
            files.push(path, owner, size);
        }
        files
    }
}

/// Whose each file of a root is, and how large it is: compact, for a release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    owners: Vec<Owner>,
    // Path, place in the list of owners, size.
    files: Vec<(String, usize, u64)>,
}

impl Files {
    fn push(&mut self, path: &str, owner: &Owner, size: u64) {
        let known = self.owners.iter().position(|known| known == owner);
        let place = known.unwrap_or_else(|| {
            self.owners.push(owner.clone());
            self.owners.len() - 1
        });
        self.files.push((path.to_owned(), place, size));
    }

    /// All files with owner and size, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Owner, u64)> {
        self.files.iter().filter_map(|(path, place, size)| {
            Some((path.as_str(), self.owners.get(*place)?, *size))
        })
    }

    /// Whose a file is.
    pub fn owner(&self, path: &str) -> Option<&Owner> {
        let place = self
            .files
            .binary_search_by(|(known, _, _)| known.as_str().cmp(path));
        place
            .ok()
            .and_then(|place| self.owners.get(self.files[place].1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_the_owner_who_brought_it_last() {
        let mut tree = Tree::new();
        tree.put_link("lib", "usr/lib");
        tree.put_file("usr/bin/bash", 0o755, *b"bash");
        tree.put_file("usr/lib/libc.so.6", 0o644, *b"libc");
        tree.put_file("etc/ld.so.cache", 0o644, *b"made");
        tree.put_file("usr/lib/gone", 0o644, *b"x");
        let list = |tree: &mut Tree, name: &str, files: &str| {
            let path = format!("var/lib/dpkg/info/{name}.list");
            tree.put_file(&path, 0o644, files.as_bytes());
        };
        list(&mut tree, "bash", "/.\n/usr\n/usr/bin\n/usr/bin/bash\n");
        // By its old place, which is a link now.
        list(&mut tree, "libc6:amd64", "/lib/libc.so.6\n/usr/lib/gone\n");
        let mut owners = Owners::of_packages(&tree).unwrap();
        let mut overlay = Tree::new();
        overlay.put_file("usr/bin/tool", 0o755, *b"tool!");
        tree.put_file("usr/bin/tool", 0o755, *b"tool!");
        owners.claim(&tree, &overlay, &Owner::Overlay);
        tree.remove("usr/lib/gone");
        tree.remove("var");
        let files = owners.finish(&tree);
        let found: Vec<String> = files
            .iter()
            .map(|(path, owner, size)| format!("{path} {owner} {size}"))
            .collect();
        assert_eq!(
            found,
            [
                "etc/ld.so.cache made at installation 4",
                "lib made at installation 0",
                "usr/bin/bash package bash 4",
                "usr/bin/tool overlays 5",
                "usr/lib/libc.so.6 package libc6 4",
            ]
        );
        let bytes = serde_json::to_vec(&files).unwrap();
        let back: Files = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(back, files);
        assert_eq!(
            back.owner("usr/bin/bash"),
            Some(&Owner::Package("bash".into()))
        );
        assert_eq!(back.owner("usr/bin/none"), None);
    }
}
