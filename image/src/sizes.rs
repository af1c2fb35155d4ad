//! How large a release is, and what makes it so.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use model::ReleaseVersion;
use model::release::ReleaseManifest;
use serde::{Deserialize, Serialize};

use crate::contents;
use crate::diff::signed;
use crate::owners::Files;
use crate::release::readable;

/// The name of the document with [`Sizes`].
pub const SIZES: &str = "sizes.json";

/// Sizes of a release in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// What a release consists of, `root`, `uki`, `component backup` …, and
    /// `download`, which is what a unit fetches at birth.
    pub outputs: BTreeMap<String, u64>,
    /// What brings the files of the root, `package bash`, `kernel …`, `program …`.
    pub root: BTreeMap<String, u64>,
}

/// The sizes that the manifest tells.
pub fn outputs(manifest: &ReleaseManifest) -> BTreeMap<String, u64> {
    let mut sizes = crate::build::sizes(manifest);
    sizes.insert("root stored".into(), manifest.root.stored_size);
    sizes.insert("verity".into(), manifest.verity.size);
    sizes.insert("boot loader".into(), manifest.boot_loader.size);
    for component in &manifest.components {
        let name = format!("component {}", component.name);
        sizes.insert(name, component.image.size);
    }
    sizes
}

impl Sizes {
    /// Sums up the files of the root by owner.
    pub fn new(outputs: BTreeMap<String, u64>, files: &Files) -> Self {
        let mut root = BTreeMap::new();
        for (_, owner, size) in files.iter() {
            *root.entry(owner.to_string()).or_default() += size;
        }
        Self { outputs, root }
    }

    /// Reads the sizes of a release; one that does not tell who brings the
    /// files of its root has its outputs only.
    ///
    /// # Errors
    /// When there is no release, or its sizes are damaged.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let manifest = contents::read_manifest(folder)?;
        let text = contents::read_text(folder, SIZES)?;
        let Some(text) = text else {
            return Ok(Self {
                outputs: outputs(&manifest),
                root: BTreeMap::new(),
            });
        };
        serde_json::from_str(&text)
            .with_context(|| format!("{}: expected sizes", folder.join(SIZES).display()))
    }

    /// The table for a person, with what grew and shrank against another release.
    pub fn render(&self, against: Option<&Self>, rows: usize) -> String {
        let mut text = String::new();
        table(
            &mut text,
            "outputs",
            &self.outputs,
            against.map(|other| &other.outputs),
            usize::MAX,
        );
        if self.root.is_empty() {
            text.push_str("\nThis release does not say what brings the files of its root.\n");
            return text;
        }
        text.push('\n');
        let title = format!("root, by what brings its files ({} rows)", self.root.len());
        let other = against.map(|other| &other.root);
        table(&mut text, &title, &self.root, other, rows);
        text
    }
}

/// Lists sizes with the largest first, or with what changed most first.
fn table(
    text: &mut String,
    title: &str,
    sizes: &BTreeMap<String, u64>,
    against: Option<&BTreeMap<String, u64>>,
    rows: usize,
) {
    let _ = writeln!(text, "{title}");
    let mut list: Vec<(&String, u64, u64)> = match against {
        None => sizes.iter().map(|(name, size)| (name, *size, 0)).collect(),
        Some(other) => {
            let mut all: BTreeMap<&String, (u64, u64)> = BTreeMap::new();
            for (name, size) in sizes {
                all.entry(name).or_default().0 = *size;
            }
            for (name, size) in other {
                all.entry(name).or_default().1 = *size;
            }
            let all = all.into_iter();
            all.map(|(name, (now, then))| (name, now, then)).collect()
        }
    };
    // What did not change comes last, the largest first.
    list.sort_by_key(|(name, now, then)| {
        let change = against.map_or(0, |_| now.abs_diff(*then));
        (Reverse(change), Reverse(*now), (*name).clone())
    });
    let left = list.len().saturating_sub(rows);
    for (name, now, then) in list.into_iter().take(rows) {
        let by = match against {
            Some(_) if now != then => format!("  {}", signed(then, now)),
            _ => String::new(),
        };
        let _ = writeln!(text, "  {name:36} {:>10}{by}", readable(now));
    }
    if left > 0 {
        let _ = writeln!(text, "  and {left} more");
    }
}

/// How many rows a message about a budget has.
const ROWS: usize = 8;

/// Says which outputs are larger than their budget, and what made them so:
/// what grew most against `before`, or what is largest where there is none.
///
/// # Errors
/// The message, when a budget is exceeded.
pub fn check_budget(
    budget: &BTreeMap<String, u64>,
    sizes: &Sizes,
    before: Option<&(ReleaseVersion, Sizes)>,
) -> Result<(), String> {
    let mut message = String::new();
    for (output, limit) in budget {
        let size = sizes.outputs.get(output).copied().unwrap_or(0);
        if size > *limit {
            let separator = if message.is_empty() { "" } else { "\n" };
            let _ = write!(
                message,
                "{separator}budget.{output}: {} where at most {} is allowed",
                readable(size),
                readable(*limit)
            );
        }
    }
    if message.is_empty() {
        return Ok(());
    }
    message.push('\n');
    let other = before.map(|(_, other)| other);
    let against = match before {
        Some((version, _)) => format!("what changed most against release {version}"),
        None => "what is largest".to_owned(),
    };
    let outputs = other.map(|other| &other.outputs);
    table(
        &mut message,
        &format!("outputs, {against}"),
        &sizes.outputs,
        outputs,
        ROWS,
    );
    let root = other.map(|other| &other.root);
    // Sizes of a release that does not tell would all look like growth.
    let root = root.filter(|root| !root.is_empty());
    let title = match root {
        Some(_) => format!("root, {against}"),
        None => "root, what is largest".to_owned(),
    };
    table(&mut message, &title, &sizes.root, root, ROWS);
    Err(message.trim_end().to_owned())
}

/// The newest release in `folder` that is older than `version`.
pub fn newest_before(folder: &Path, version: ReleaseVersion) -> Option<(ReleaseVersion, Sizes)> {
    let entries = std::fs::read_dir(folder).ok()?;
    let versions = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.parse::<ReleaseVersion>().ok()
    });
    let newest = versions.filter(|found| *found < version).max()?;
    // One that cannot be read is no reason to fail a build; it compares with nothing.
    let sizes = Sizes::read(&folder.join(newest.to_string())).ok()?;
    Some((newest, sizes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(root: u64, kernel: u64, bash: u64) -> Sizes {
        Sizes {
            outputs: BTreeMap::from([("root".into(), root << 20), ("uki".into(), 5 << 20)]),
            root: BTreeMap::from([
                ("kernel linux".into(), kernel << 20),
                ("package bash".into(), bash << 20),
            ]),
        }
    }

    #[test]
    fn a_budget_that_is_kept_is_silent() {
        let budget = BTreeMap::from([("root".to_owned(), 100 << 20)]);
        assert_eq!(check_budget(&budget, &sizes(100, 1, 1), None), Ok(()));
    }

    #[test]
    fn a_budget_that_is_exceeded_names_what_grew_most_first() {
        let budget = BTreeMap::from([("root".to_owned(), 100 << 20)]);
        let before = ("2026.11.1".parse().unwrap(), sizes(90, 80, 1));
        let message = check_budget(&budget, &sizes(101, 81, 11), Some(&before)).unwrap_err();
        assert!(
            message.starts_with("budget.root: 101.0 MiB where at most 100.0 MiB is allowed"),
            "{message}"
        );
        let at = |text: &str| {
            message
                .find(text)
                .unwrap_or_else(|| panic!("{text}: {message}"))
        };
        assert!(at("against release 2026.11.1") < at("package bash"));
        assert!(at("package bash") < at("kernel linux"), "{message}");
        assert!(message.contains("+10.0 MiB"), "{message}");
    }

    #[test]
    fn without_a_release_before_the_largest_are_named() {
        let budget = BTreeMap::from([("root".to_owned(), 1)]);
        let message = check_budget(&budget, &sizes(101, 81, 11), None).unwrap_err();
        let at = |text: &str| message.find(text).unwrap();
        assert!(at("kernel linux") < at("package bash"), "{message}");
        assert!(!message.contains('+'), "{message}");
    }
}
