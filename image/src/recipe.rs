//! Recipes: what a release consists of, as TOML files that extend each other.
//!
//! A recipe that `extends` another one starts from it: single values replace
//! the base's, lists are appended to the base's lists. Unknown keys are
//! refused, and every message names file, line and column. Profiles are
//! variants in the same files, laid over the recipe when they are asked for.

mod load;
mod raw;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use model::{Architecture, ReleaseVersion};
use schemars::JsonSchema;
use serde::Deserialize;

pub use load::{ReadFile, load};

/// Where and why a recipe is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{place}: {problem}")]
pub struct RecipeError {
    file: String,
    place: Place,
    problem: String,
    hint: Option<String>,
}

impl RecipeError {
    /// The next step, where one is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(Option<(usize, usize)>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// A complete recipe with all that it extends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The file that was asked for.
    pub file: PathBuf,
    /// The profiles that were laid over it.
    pub asked: Vec<String>,
    /// The operating system's identifier, `leapserv`.
    pub name: String,
    /// What a person reads at boot.
    pub title: String,
    /// The release's version, where the recipe has one.
    pub version: Option<ReleaseVersion>,
    /// CPU architecture.
    pub architecture: Architecture,
    /// Debian's suite.
    pub suite: String,
    /// The time that every file of the release carries, in Unix seconds.
    pub source_date: u32,
    /// How often a new release may try to boot.
    pub tries: u8,
    /// Debian packages.
    pub packages: Packages,
    /// Firmware for devices.
    pub firmware: Firmware,
    /// The root file system.
    pub root: Root,
    /// Single files of the root.
    pub files: Vec<FileSpec>,
    /// Users of the root.
    pub users: Vec<User>,
    /// systemd units of the root.
    pub units: Units,
    /// Programs of the build host that make files of the root.
    pub hooks: Vec<Hook>,
    /// The kernel.
    pub kernel: Kernel,
    /// The operating system's initrd.
    pub initrd: Initrd,
    /// The installer's initrd.
    pub installer: Initrd,
    /// Components by name.
    pub components: BTreeMap<String, Component>,
    /// Size limits in bytes by output: `root`, `uki`, `installer`, `download`.
    pub budget: BTreeMap<String, u64>,
    /// Where the recipe names each package, `FILE:LINE:COLUMN`: for messages
    /// about what only the package indexes know.
    pub places: BTreeMap<String, String>,
}

/// Debian packages of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packages {
    /// Areas of Debian's archive besides `main`.
    pub areas: Vec<String>,
    /// Installed into the root with their dependencies.
    pub install: Vec<String>,
    /// Unpacked into the root without dependencies and without running their scripts.
    pub unpack: Vec<String>,
    /// Needed to install the others, but their files do not reach the root.
    pub drop: Vec<String>,
    /// Tools of the build, and the source of the initrds' programs.
    pub tools: Vec<String>,
}

/// Firmware of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firmware {
    /// Packages that hold it.
    pub packages: Vec<String>,
    /// Patterns of paths below `/usr/lib/firmware` to keep.
    pub files: Vec<String>,
}

/// A program of the build host that makes files of the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its name in messages.
    pub name: String,
    /// The program.
    pub run: PathBuf,
    /// What it reads besides.
    pub inputs: Vec<PathBuf>,
}

/// The root file system of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Root {
    /// Folders that are laid over the root, in order.
    pub overlays: Vec<PathBuf>,
    /// Our own programs, put into `/usr/bin`.
    pub binaries: Vec<String>,
    /// Patterns of paths to leave out.
    pub remove: Vec<String>,
    /// Patterns of paths that `remove` does not take.
    pub keep: Vec<String>,
    /// Patterns of files to lay at the end of the image, because they change with every release.
    pub last: Vec<String>,
}

/// A file, link or directory that a recipe puts somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSpec {
    /// Absolute path in the image.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// What it is.
    pub content: FileContent,
}

/// The content of a [`FileSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// This text.
    Text(String),
    /// A file of the build host.
    Source(PathBuf),
    /// A symbolic link to this target.
    Link(String),
    /// A directory.
    Directory,
}

/// A user of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    /// Name.
    pub name: String,
    /// User and group number.
    pub id: u32,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// systemd units of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Units {
    /// Units to start at boot, as their `[Install]` sections say. All others
    /// that packages have enabled are disabled.
    pub enable: Vec<String>,
    /// Units that must never start.
    pub mask: Vec<String>,
}

/// The kernel of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// The package, which may be one that only depends on the real one.
    pub package: String,
    /// Names or path patterns of modules; what they depend on comes with them.
    pub modules: Vec<String>,
    /// The kernel's command line, without the root hash.
    pub command_line: String,
}

/// An initrd of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Initrd {
    /// Folders that are laid into the initrd.
    pub overlays: Vec<PathBuf>,
    /// Programs of the tools' packages, with the libraries that they need.
    pub programs: Vec<String>,
    /// Our own program that becomes `/init`; without one an overlay has `/init`.
    pub init: Option<String>,
    /// Names or path patterns of kernel modules.
    pub modules: Vec<String>,
    /// Names of modules to load at once, written to `/etc/leapserv/modules`.
    pub load: Vec<String>,
    /// The kernel's command line. The operating system's root hash is added to its own.
    pub command_line: String,
}

/// A component: a system extension with a version of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Component {
    /// Its version.
    pub version: String,
    /// Our own programs, put into `/usr/bin`.
    pub binaries: Vec<String>,
    /// Folders laid into it.
    pub overlays: Vec<PathBuf>,
    /// Debian packages whose files below `/usr` it brings, with all that they
    /// need and the root has not.
    pub packages: Vec<String>,
    /// Only in releases of one of these profiles, or in all when there is none.
    profiles: Vec<String>,
}

/// Returns the word that is most like `word`, if one is like it at all.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(word.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Reads a size like `250M` or `8G` in powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// The JSON Schema of a recipe's file.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(raw::Raw).to_value()
}

impl Recipe {
    fn empty() -> Self {
        Self {
            file: PathBuf::new(),
            asked: Vec::new(),
            name: String::new(),
            title: String::new(),
            version: None,
            // Until `complete` has seen that the recipe names one.
            architecture: Architecture::OURS,
            suite: String::new(),
            source_date: 0,
            tries: 3,
            packages: Packages::default(),
            firmware: Firmware::default(),
            root: Root::default(),
            files: Vec::new(),
            users: Vec::new(),
            units: Units::default(),
            hooks: Vec::new(),
            kernel: Kernel::default(),
            initrd: Initrd::default(),
            installer: Initrd::default(),
            components: BTreeMap::new(),
            budget: BTreeMap::new(),
            places: BTreeMap::new(),
        }
    }

    /// Checks that nothing is missing. `architecture` is what the recipe names.
    fn complete(&self, file: &str, architecture: Option<Architecture>) -> Result<(), RecipeError> {
        let required = [
            ("name", self.name.is_empty()),
            ("architecture", architecture.is_none()),
            ("suite", self.suite.is_empty()),
            ("source-date", self.source_date == 0),
            ("packages.install", self.packages.install.is_empty()),
            ("packages.tools", self.packages.tools.is_empty()),
            ("kernel.package", self.kernel.package.is_empty()),
        ];
        for (key, missing) in required {
            if missing {
                return Err(RecipeError {
                    file: file.to_owned(),
                    place: Place(None),
                    problem: format!("{key} is missing here and in all that it extends"),
                    hint: Some("extends = \"base.toml\" brings the usual values".to_owned()),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BASE: &str = r#"
name = "leapserv"
architecture = "amd64"
suite = "trixie"
source-date = "2026-11-01T00:00:00Z"
[packages]
install = ["systemd"]
tools = ["erofs-utils"]
[kernel]
package = "linux-image-amd64"
modules = ["erofs"]
"#;

    fn load_all(files: &[(&str, &str)]) -> Result<Recipe, RecipeError> {
        let read = |path: &Path| {
            files
                .iter()
                .find(|(name, _)| Path::new(name) == path)
                .map(|(_, text)| (*text).to_owned())
                .ok_or_else(|| "no such file".to_owned())
        };
        load(Path::new(files[0].0), &[], &read)
    }

    fn refused(text: &str) -> String {
        let error = load_all(&[("x.toml", text), ("base.toml", BASE)]).unwrap_err();
        format!("{error} | {}", error.hint().unwrap_or_default())
    }

    #[test]
    fn a_recipe_extends_another_with_lists_appended_and_values_replaced() {
        let top = "extends = \"base.toml\"\nversion = \"2026.11.3\"\nname = \"other\"\n[packages]\ninstall = [\"dbus\"]\n[[file]]\npath = \"/usr/lib/leapserv/health.d/90-refuse\"\nmode = \"0755\"\ntext = \"#!/bin/sh\\nexit 1\\n\"\n[budget]\nroot = \"250M\"\n";
        let recipe = load_all(&[("r/x.toml", top), ("r/base.toml", BASE)]).unwrap();
        assert_eq!(recipe.name, "other");
        assert_eq!(recipe.packages.install, ["systemd", "dbus"]);
        assert_eq!(recipe.files[0].mode, 0o755);
        assert_eq!(recipe.budget["root"], 250 << 20);
        assert_eq!(recipe.version.unwrap().to_string(), "2026.11.3");
        assert_eq!(recipe.source_date, 1_793_491_200);
    }

    #[test]
    fn our_own_recipes_are_right_and_name_no_host() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
            assert!(!text.contains("://"), "{}", path.display());
            Ok(text)
        };
        let recipe = load(&folder.join("leapserv.toml"), &["debug".to_owned()], &read).unwrap();
        for overlay in recipe.root.overlays.iter().chain(&recipe.initrd.overlays) {
            assert!(overlay.is_dir(), "{}", overlay.display());
        }
        assert_eq!(recipe.installer.init.as_deref(), Some("leap-installer"));
        let refusing = load(&folder.join("refusing.toml"), &[], &read).unwrap();
        assert_eq!(refusing.files.last().unwrap().mode, 0o755);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_key() {
        let message = refused("extends = \"base.toml\"\n[packages]\ninstal = [\"a\"]\n");
        assert_eq!(
            message,
            "x.toml:3:1: unknown key \"instal\" | did you mean \"install\"?"
        );
        let message = refused("frobnicate = 1\n");
        assert!(
            message.contains("expected one of extends, name"),
            "{message}"
        );
    }

    #[test]
    fn values_that_do_not_fit_are_named_with_their_place() {
        let cases = [
            ("version = \"2026.13.1\"", "x.toml:1:11: version:"),
            ("architecture = \"amd46\"", "expected one of amd64, arm64"),
            (
                "[packages]\ninstall = [\"Bad Name\"]",
                "x.toml:2:12: package \"Bad Name\"",
            ),
            ("[budget]\nroot = \"many\"", "x.toml:2:8: budget.root"),
            ("[budget]\nroof = \"1M\"", "did you mean \"root\"?"),
            (
                "[[file]]\npath = \"etc/x\"\ntext = \"\"",
                "expected an absolute path",
            ),
            (
                "[[file]]\npath = \"/etc/x\"",
                "exactly one of text, source, link",
            ),
            (
                "[[file]]\npath = \"/x\"\ntext = \"\"\nmode = \"999\"",
                "mode \"999\"",
            ),
            ("source-date = \"yesterday\"", "x.toml:1:15: source-date:"),
            ("tries = \"3\"", "x.toml:1:9:"),
            ("name = ", "x.toml:1:8"),
            ("name = \"x\"", "architecture is missing"),
        ];
        for (text, expected) in cases {
            let message = refused(text);
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn a_circle_and_a_missing_base_are_refused() {
        let error = load_all(&[
            ("a.toml", "extends = \"b.toml\"\n"),
            ("b.toml", "extends = \"a.toml\"\n"),
        ])
        .unwrap_err();
        assert!(
            error.to_string().contains("circle through a.toml, b.toml"),
            "{error}"
        );
        let message = refused("extends = \"bse.toml\"\n");
        assert!(
            message.starts_with("x.toml:1:11: extends: bse.toml"),
            "{message}"
        );
    }

    #[test]
    fn a_profile_is_laid_over_the_recipe_and_chooses_components() {
        let top = "extends = \"base.toml\"\n[component.backup]\nversion = \"1\"\nprofiles = [\"backup\"]\n[profile.debug]\ntitle = \"Debug\"\n[profile.debug.packages]\ninstall = [\"strace\"]\n";
        let load = |profiles: &[&str]| {
            let profiles: Vec<String> = profiles.iter().map(|p| (*p).to_owned()).collect();
            let read = |path: &Path| {
                Ok(if path == Path::new("x.toml") {
                    top.to_owned()
                } else {
                    BASE.to_owned()
                })
            };
            super::load(Path::new("x.toml"), &profiles, &read)
        };
        let plain = load(&[]).unwrap();
        assert_eq!(plain.packages.install, ["systemd"]);
        assert!(plain.components.is_empty());
        let both = load(&["debug", "backup"]).unwrap();
        assert_eq!(both.packages.install, ["systemd", "strace"]);
        assert_eq!(both.title, "Debug");
        assert_eq!(both.places["strace"], "x.toml:8:12");
        assert_eq!(both.places["systemd"], "base.toml:7:12");
        assert!(both.components.contains_key("backup"));
        let error = load(&["debag"]).unwrap_err();
        assert_eq!(error.hint(), Some("did you mean \"debug\"?"));
    }

    #[test]
    fn a_profile_extends_nothing_and_has_no_profiles() {
        let message = refused("[profile.x]\nextends = \"base.toml\"\n");
        assert!(message.starts_with("x.toml:2:11: profile.x:"), "{message}");
        let message = refused("[profile.x.profile.y]\nname = \"z\"\n");
        assert!(message.contains("no profiles of its own"), "{message}");
    }

    #[test]
    fn the_schema_knows_every_key_with_its_meaning() {
        let schema = schema();
        let properties = &schema["properties"];
        for key in [
            "extends",
            "source-date",
            "packages",
            "component",
            "profile",
            "hook",
        ] {
            let description = &properties[key]["description"];
            assert!(description.is_string(), "{key}: {}", properties[key]);
        }
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(parse_size("8G"), Some(8 << 30));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("8 G"), None);
        assert_eq!(parse_size("99999999999T"), None);
    }
}
