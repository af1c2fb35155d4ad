//! Recipes: what a release consists of, as TOML files that extend each other.
//!
//! A recipe that `extends` another one starts from it: single values replace
//! the base's, lists are appended to the base's lists. Unknown keys are
//! refused, and every message names file, line and column.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::ReleaseVersion;
use serde::Deserialize;
use toml::Spanned;

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
    /// The operating system's identifier, `leapserv`.
    pub name: String,
    /// What a person reads at boot.
    pub title: String,
    /// The release's version, where the recipe has one.
    pub version: Option<ReleaseVersion>,
    /// CPU architecture in Debian's word.
    pub architecture: String,
    /// Debian's suite.
    pub suite: String,
    /// The time that every file of the release carries, in Unix seconds.
    pub source_date: u32,
    /// How often a new release may try to boot.
    pub tries: u8,
    /// Debian packages.
    pub packages: Packages,
    /// The root file system.
    pub root: Root,
    /// Single files of the root.
    pub files: Vec<FileSpec>,
    /// Users of the root.
    pub users: Vec<User>,
    /// systemd units of the root.
    pub units: Units,
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
}

/// Debian packages of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packages {
    /// Installed into the root with their dependencies.
    pub install: Vec<String>,
    /// Unpacked into the root without dependencies and without running their scripts.
    pub unpack: Vec<String>,
    /// Needed to install the others, but their files do not reach the root.
    pub drop: Vec<String>,
    /// Tools of the build, and the source of the initrds' programs.
    pub tools: Vec<String>,
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
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
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    extends: Option<Spanned<String>>,
    name: Option<String>,
    title: Option<String>,
    version: Option<Spanned<String>>,
    architecture: Option<Spanned<String>>,
    suite: Option<String>,
    source_date: Option<Spanned<String>>,
    tries: Option<u8>,
    #[serde(default)]
    packages: RawPackages,
    #[serde(default)]
    root: RawRoot,
    #[serde(default)]
    file: Vec<Spanned<RawFile>>,
    #[serde(default)]
    user: Vec<User>,
    #[serde(default)]
    units: Units,
    #[serde(default)]
    kernel: RawKernel,
    #[serde(default)]
    initrd: RawInitrd,
    #[serde(default)]
    installer: RawInitrd,
    #[serde(default)]
    component: BTreeMap<String, RawComponent>,
    #[serde(default)]
    budget: BTreeMap<String, Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawPackages {
    install: Vec<Spanned<String>>,
    unpack: Vec<Spanned<String>>,
    drop: Vec<Spanned<String>>,
    tools: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawRoot {
    overlays: Vec<Spanned<String>>,
    binaries: Vec<String>,
    remove: Vec<String>,
    keep: Vec<String>,
    last: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawFile {
    path: String,
    mode: Option<String>,
    text: Option<String>,
    source: Option<String>,
    link: Option<String>,
    directory: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawKernel {
    package: Option<String>,
    modules: Vec<String>,
    command_line: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawInitrd {
    overlays: Vec<Spanned<String>>,
    programs: Vec<String>,
    init: Option<String>,
    modules: Vec<String>,
    load: Vec<String>,
    command_line: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawComponent {
    version: Option<String>,
    binaries: Vec<String>,
    overlays: Vec<Spanned<String>>,
}

/// Architectures that recipes may name.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// Outputs that a budget may limit.
const BUDGETS: [&str; 4] = ["root", "uki", "installer", "download"];

/// Reads files for [`load`]; a test reads them from memory.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> Result<String, String>;

/// Loads a recipe and all that it extends.
///
/// # Errors
/// The first mistake that is found, with its place.
pub fn load(path: &Path, read: ReadFile<'_>) -> Result<Recipe, RecipeError> {
    let mut recipe = Recipe::empty();
    let mut chain = vec![parse(path, read)?];
    while let Some(extends) = chain.last().and_then(Source::extends) {
        let (source, base) = (chain.last().expect("it is not empty"), extends);
        let path = source.folder.join(base.get_ref());
        if let Some(round) = chain.iter().position(|source| source.path == path) {
            let names: Vec<String> = chain[round..].iter().map(|s| s.name.clone()).collect();
            return Err(source.error(
                base.span().start,
                format!(
                    "extends: goes round in a circle through {}",
                    names.join(", ")
                ),
                None,
            ));
        }
        let base = match read(&path) {
            Ok(_) => parse(&path, read)?,
            Err(problem) => {
                return Err(source.error(
                    base.span().start,
                    format!("extends: {}: {problem}", path.display()),
                    None,
                ));
            }
        };
        chain.push(base);
    }
    let path = chain[0].name.clone();
    for source in chain.into_iter().rev() {
        source.apply(&mut recipe)?;
    }
    recipe.complete(&path)?;
    Ok(recipe)
}

struct Source {
    path: PathBuf,
    name: String,
    folder: PathBuf,
    text: String,
    raw: Raw,
}

fn parse(path: &Path, read: ReadFile<'_>) -> Result<Source, RecipeError> {
    let name = path.display().to_string();
    let text = read(path).map_err(|problem| RecipeError {
        file: name.clone(),
        place: Place(None),
        problem,
        hint: None,
    })?;
    let raw: Raw = toml::from_str(&text).map_err(|error| {
        let (problem, hint) = explain(error.message());
        RecipeError {
            file: name.clone(),
            place: Place(error.span().map(|span| place(&text, span.start))),
            problem,
            hint,
        }
    })?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok(Source {
        path: path.to_owned(),
        name,
        folder,
        text,
        raw,
    })
}

fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// Turns the parser's message into ours: an unknown key gets the nearest known one.
fn explain(message: &str) -> (String, Option<String>) {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if let (true, Some(key)) = (message.starts_with("unknown field"), quoted.next()) {
        let known: Vec<&str> = quoted.collect();
        let hint = match nearest(key, known.iter().copied()) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => format!("expected one of {}", known.join(", ")),
        };
        return (format!("unknown key {key:?}"), Some(hint));
    }
    (message.trim_end_matches('\n').replace('\n', "; "), None)
}

/// Returns the word that is most like `word`, if one is like it at all.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(word.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

impl Source {
    fn extends(&self) -> Option<&Spanned<String>> {
        self.raw.extends.as_ref()
    }

    fn error(&self, at: usize, problem: String, hint: Option<String>) -> RecipeError {
        RecipeError {
            file: self.name.clone(),
            place: Place(Some(place(&self.text, at))),
            problem,
            hint,
        }
    }

    /// Lays this file's values over `recipe`.
    fn apply(self, recipe: &mut Recipe) -> Result<(), RecipeError> {
        let set = |to: &mut String, from: &Option<String>| {
            if let Some(value) = from {
                to.clone_from(value);
            }
        };
        let raw = &self.raw;
        set(&mut recipe.name, &raw.name);
        set(&mut recipe.title, &raw.title);
        set(&mut recipe.suite, &raw.suite);
        if let Some(version) = &raw.version {
            let parsed = version.get_ref().parse().map_err(|error| {
                self.error(version.span().start, format!("version: {error}"), None)
            })?;
            recipe.version = Some(parsed);
        }
        if let Some(architecture) = &raw.architecture {
            if !ARCHITECTURES.contains(&architecture.get_ref().as_str()) {
                return Err(self.error(
                    architecture.span().start,
                    format!("architecture: {:?}", architecture.get_ref()),
                    Some(format!("expected one of {}", ARCHITECTURES.join(", "))),
                ));
            }
            recipe.architecture.clone_from(architecture.get_ref());
        }
        if let Some(date) = &raw.source_date {
            recipe.source_date = self.source_date(date)?;
        }
        recipe.tries = raw.tries.unwrap_or(recipe.tries);
        let lists = [
            (&mut recipe.packages.install, &raw.packages.install),
            (&mut recipe.packages.unpack, &raw.packages.unpack),
            (&mut recipe.packages.drop, &raw.packages.drop),
            (&mut recipe.packages.tools, &raw.packages.tools),
        ];
        for (to, from) in lists {
            for package in from {
                self.check_package(package)?;
                to.push(package.get_ref().clone());
            }
        }
        let overlays = |list: &[Spanned<String>]| -> Vec<PathBuf> {
            let paths = list.iter().map(|path| self.folder.join(path.get_ref()));
            paths.collect()
        };
        let Root {
            overlays: root_overlays,
            binaries,
            remove,
            keep,
            last,
        } = &mut recipe.root;
        root_overlays.extend(overlays(&raw.root.overlays));
        binaries.extend_from_slice(&raw.root.binaries);
        remove.extend_from_slice(&raw.root.remove);
        keep.extend_from_slice(&raw.root.keep);
        last.extend_from_slice(&raw.root.last);
        for file in &raw.file {
            recipe.files.push(self.file(file)?);
        }
        recipe.users.extend_from_slice(&raw.user);
        recipe.units.enable.extend_from_slice(&raw.units.enable);
        recipe.units.mask.extend_from_slice(&raw.units.mask);
        set(&mut recipe.kernel.package, &raw.kernel.package);
        set(&mut recipe.kernel.command_line, &raw.kernel.command_line);
        recipe.kernel.modules.extend_from_slice(&raw.kernel.modules);
        for (to, from) in [
            (&mut recipe.initrd, &raw.initrd),
            (&mut recipe.installer, &raw.installer),
        ] {
            to.overlays.extend(overlays(&from.overlays));
            to.programs.extend_from_slice(&from.programs);
            to.modules.extend_from_slice(&from.modules);
            to.load.extend_from_slice(&from.load);
            to.init = from.init.clone().or(to.init.take());
            set(&mut to.command_line, &from.command_line);
        }
        for (name, from) in &raw.component {
            let to = recipe.components.entry(name.clone()).or_default();
            set(&mut to.version, &from.version);
            to.binaries.extend_from_slice(&from.binaries);
            to.overlays.extend(overlays(&from.overlays));
        }
        for (output, limit) in &raw.budget {
            let at = limit.span().start;
            if !BUDGETS.contains(&output.as_str()) {
                let hint = nearest(output, BUDGETS.into_iter())
                    .map(|known| format!("did you mean {known:?}?"));
                return Err(self.error(at, format!("budget: unknown output {output:?}"), hint));
            }
            let Some(bytes) = parse_size(limit.get_ref()) else {
                let problem = format!("budget.{output}: {:?} is not a size", limit.get_ref());
                return Err(self.error(at, problem, Some("write it like \"250M\"".to_owned())));
            };
            recipe.budget.insert(output.clone(), bytes);
        }
        Ok(())
    }

    fn source_date(&self, date: &Spanned<String>) -> Result<u32, RecipeError> {
        let bad = |problem: String| {
            self.error(
                date.span().start,
                format!("source-date: {problem}"),
                Some("write it like \"2026-11-01T00:00:00Z\"".to_owned()),
            )
        };
        let time: Timestamp = date
            .get_ref()
            .parse()
            .map_err(|error: jiff::Error| bad(error.to_string()))?;
        u32::try_from(time.as_second()).map_err(|_| bad("expected a time after 1970".to_owned()))
    }

    fn check_package(&self, package: &Spanned<String>) -> Result<(), RecipeError> {
        let name = package.get_ref();
        let fits = name.len() > 1
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
        if fits {
            return Ok(());
        }
        Err(self.error(
            package.span().start,
            format!("package {name:?}: expected a Debian package's name"),
            None,
        ))
    }

    fn file(&self, file: &Spanned<RawFile>) -> Result<FileSpec, RecipeError> {
        let at = file.span().start;
        let bad = |problem: &str| self.error(at, format!("file: {problem}"), None);
        let RawFile {
            path,
            mode,
            text,
            source,
            link,
            directory,
        } = file.get_ref();
        if !path.starts_with('/') || path.ends_with('/') || path.split('/').any(|p| p == "..") {
            return Err(bad(&format!(
                "path {path:?}: expected an absolute path of a file"
            )));
        }
        let content = match (text, source, link, directory) {
            (Some(text), None, None, false) => FileContent::Text(text.clone()),
            (None, Some(source), None, false) => FileContent::Source(self.folder.join(source)),
            (None, None, Some(link), false) => FileContent::Link(link.clone()),
            (None, None, None, true) => FileContent::Directory,
            _ => return Err(bad("expected exactly one of text, source, link, directory")),
        };
        let default = if *directory { 0o755 } else { 0o644 };
        let mode = match mode {
            None => default,
            Some(mode) => u32::from_str_radix(mode, 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| bad(&format!("mode {mode:?}: expected it like \"0755\"")))?,
        };
        Ok(FileSpec {
            path: path.clone(),
            mode,
            content,
        })
    }
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

impl Recipe {
    fn empty() -> Self {
        Self {
            name: String::new(),
            title: String::new(),
            version: None,
            architecture: String::new(),
            suite: String::new(),
            source_date: 0,
            tries: 3,
            packages: Packages::default(),
            root: Root::default(),
            files: Vec::new(),
            users: Vec::new(),
            units: Units::default(),
            kernel: Kernel::default(),
            initrd: Initrd::default(),
            installer: Initrd::default(),
            components: BTreeMap::new(),
            budget: BTreeMap::new(),
        }
    }

    /// Checks that nothing is missing.
    fn complete(&self, file: &str) -> Result<(), RecipeError> {
        let required = [
            ("name", self.name.is_empty()),
            ("architecture", self.architecture.is_empty()),
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
        load(Path::new(files[0].0), &read)
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
        let recipe = load(&folder.join("leapserv.toml"), &read).unwrap();
        for overlay in recipe.root.overlays.iter().chain(&recipe.initrd.overlays) {
            assert!(overlay.is_dir(), "{}", overlay.display());
        }
        assert_eq!(recipe.installer.init.as_deref(), Some("leap-installer"));
        let refusing = load(&folder.join("refusing.toml"), &read).unwrap();
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
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(parse_size("8G"), Some(8 << 30));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("8 G"), None);
        assert_eq!(parse_size("99999999999T"), None);
    }
}
