//! A recipe's file as it is written: the keys, their types and what they mean.
//!
//! `leap-image schema` prints these types as a JSON Schema, so the comments
//! here are what an editor shows to the author of a recipe.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Units, User};

/// A text with its place in the file.
pub(super) type Text = Spanned<String>;

/// A recipe of a LeapServ release
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(title = "Recipe")]
pub(super) struct Raw {
    /// Another recipe to start from, as a path beside this file: values here
    /// replace its values, lists are appended to its lists.
    #[schemars(with = "Option<String>")]
    pub(super) extends: Option<Text>,
    /// Identifier of the operating system, ID of os-release: `leapserv`.
    pub(super) name: Option<String>,
    /// What a person reads at boot: `LeapServ`.
    pub(super) title: Option<String>,
    /// Version of the release, like `2026.11.1`; `--version` replaces it.
    #[schemars(with = "Option<String>")]
    pub(super) version: Option<Text>,
    /// CPU architecture in Debian's word: `amd64` or `arm64`.
    #[schemars(with = "Option<String>")]
    pub(super) architecture: Option<Text>,
    /// Debian's suite: `trixie`. Its updates and security fixes belong to it.
    pub(super) suite: Option<String>,
    /// The time that every file of the release carries, like `2026-11-01T00:00:00Z`.
    #[schemars(with = "Option<String>")]
    pub(super) source_date: Option<Text>,
    /// How often a new release may try to boot before the unit returns to the one before.
    pub(super) tries: Option<u8>,
    /// Debian packages.
    pub(super) packages: RawPackages,
    /// Firmware that the kernel loads into devices.
    pub(super) firmware: RawFirmware,
    /// The root file system.
    pub(super) root: RawRoot,
    /// Single files, links and directories of the root.
    #[schemars(with = "Vec<RawFile>")]
    pub(super) file: Vec<Spanned<RawFile>>,
    /// Users of the root.
    pub(super) user: Vec<User>,
    /// systemd units of the root.
    pub(super) units: Units,
    /// Programs of the build host that make files of the root.
    #[schemars(with = "Vec<RawHook>")]
    pub(super) hook: Vec<Spanned<RawHook>>,
    /// The kernel.
    pub(super) kernel: RawKernel,
    /// The operating system's initrd.
    pub(super) initrd: RawInitrd,
    /// The installer's initrd.
    pub(super) installer: RawInitrd,
    /// Components by name: system extensions with a version of their own.
    pub(super) component: BTreeMap<String, RawComponent>,
    /// Size limits by output (`root`, `uki`, `installer`, `download`), like `250M`.
    #[schemars(with = "BTreeMap<String, String>")]
    pub(super) budget: BTreeMap<String, Text>,
    /// Variants by name: the same keys, laid over the recipe when
    /// `--profile NAME` asks for it.
    pub(super) profile: BTreeMap<String, Raw>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "Packages")]
pub(super) struct RawPackages {
    /// Areas of Debian's archive besides `main`: `contrib`, `non-free`, `non-free-firmware`.
    #[schemars(with = "Vec<String>")]
    pub(super) areas: Vec<Text>,
    /// Installed into the root with their dependencies.
    #[schemars(with = "Vec<String>")]
    pub(super) install: Vec<Text>,
    /// Unpacked into the root without dependencies and without running their scripts.
    #[schemars(with = "Vec<String>")]
    pub(super) unpack: Vec<Text>,
    /// Needed to install the others, but their files do not reach the root.
    #[schemars(with = "Vec<String>")]
    pub(super) drop: Vec<Text>,
    /// Tools of the build, and the source of the initrds' programs.
    #[schemars(with = "Vec<String>")]
    pub(super) tools: Vec<Text>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "Firmware")]
pub(super) struct RawFirmware {
    /// Packages that hold it; nothing else of them reaches the root.
    #[schemars(with = "Vec<String>")]
    pub(super) packages: Vec<Text>,
    /// Patterns of paths below `/usr/lib/firmware` to keep, like `tigon/*`.
    pub(super) files: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "Root")]
pub(super) struct RawRoot {
    /// Folders beside the recipe that are laid over the root, in order.
    #[schemars(with = "Vec<String>")]
    pub(super) overlays: Vec<Text>,
    /// Our own programs, put into `/usr/bin`.
    pub(super) binaries: Vec<String>,
    /// Patterns of paths to leave out.
    pub(super) remove: Vec<String>,
    /// Patterns of paths that `remove` does not take.
    pub(super) keep: Vec<String>,
    /// Patterns of files to lay at the end of the image, because they change with every release.
    pub(super) last: Vec<String>,
}

/// Exactly one of `text`, `source`, `link` and `directory`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "File")]
pub(super) struct RawFile {
    /// Absolute path in the root.
    pub(super) path: String,
    /// Permissions, like `0755`.
    pub(super) mode: Option<String>,
    /// The file's text.
    pub(super) text: Option<String>,
    /// A file beside the recipe.
    pub(super) source: Option<String>,
    /// Target of a symbolic link.
    pub(super) link: Option<String>,
    /// An empty directory.
    pub(super) directory: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "Hook")]
pub(super) struct RawHook {
    /// Its name in messages.
    pub(super) name: String,
    /// Program beside the recipe. What it writes into the folder `$LEAP_OUT`
    /// is laid over the root, which it finds as an archive at `$LEAP_ROOT`.
    pub(super) run: String,
    /// Files and folders beside the recipe that it reads; a change runs it again.
    pub(super) inputs: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "Kernel")]
pub(super) struct RawKernel {
    /// The package, which may be one that only depends on the real one.
    #[schemars(with = "Option<String>")]
    pub(super) package: Option<Text>,
    /// Names or path patterns of modules; what they depend on comes with them.
    pub(super) modules: Vec<String>,
    /// The kernel's command line, without the root hash.
    pub(super) command_line: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "Initrd")]
pub(super) struct RawInitrd {
    /// Folders beside the recipe that are laid into the initrd.
    #[schemars(with = "Vec<String>")]
    pub(super) overlays: Vec<Text>,
    /// Programs of the tools' packages, with the libraries that they need.
    pub(super) programs: Vec<String>,
    /// Our own program that becomes `/init`; without one an overlay has `/init`.
    pub(super) init: Option<String>,
    /// Names or path patterns of kernel modules.
    pub(super) modules: Vec<String>,
    /// Names of modules to load at once.
    pub(super) load: Vec<String>,
    /// The kernel's command line.
    pub(super) command_line: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(rename = "Component")]
pub(super) struct RawComponent {
    /// Its version.
    pub(super) version: Option<String>,
    /// Our own programs, put into `/usr/bin`.
    pub(super) binaries: Vec<String>,
    /// Folders beside the recipe that are laid into it; files below `/usr` only.
    #[schemars(with = "Vec<String>")]
    pub(super) overlays: Vec<Text>,
    /// Debian packages whose files below `/usr` it brings, with all that they need
    /// and the root has not.
    #[schemars(with = "Vec<String>")]
    pub(super) packages: Vec<Text>,
    /// Only in releases that are built with one of these profiles; in all when there is none.
    #[schemars(with = "Vec<String>")]
    pub(super) profiles: Vec<Text>,
}
