//! What Debian's maintainers say about a new version of a package.

use std::path::Path;

use anyhow::Context as _;
use edge::runner::Tool;

use crate::lock::LockedPackage;
use crate::steps::unpack;

/// So many lines of a changelog are shown: the rest is a click away for whom they move.
const SHOWN: usize = 8;

/// Returns the heads of the changelog's entries that are newer than `version`,
/// from the package's own file. Empty where the package has none, as those
/// have that share the documentation of another package.
///
/// # Errors
/// When the package is damaged.
pub fn since(
    packages: &Path,
    package: &LockedPackage,
    version: &str,
) -> anyhow::Result<Vec<String>> {
    let file = unpack::checked(packages, package)?;
    let reading = || format!("changelog of {}", package.package);
    let archive = Tool::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&file)
        .output()
        .with_context(reading)?;
    let folder = format!("./usr/share/doc/{}", package.package);
    for name in ["changelog.Debian.gz", "changelog.gz"] {
        let extract = Tool::new("tar")
            .args(["--extract", "--to-stdout"])
            .arg(format!("{folder}/{name}"))
            .stdin_bytes(archive.clone());
        let Ok(compressed) = extract.output() else {
            continue;
        };
        // A link to another package's file has no content of its own.
        if compressed.is_empty() {
            continue;
        }
        let text = Tool::new("gzip")
            .args(["--decompress", "--stdout"])
            .stdin_bytes(compressed)
            .output()
            .with_context(reading)?;
        return Ok(heads(&String::from_utf8_lossy(&text), version));
    }
    Ok(Vec::new())
}

/// The points of the entries above the one of `version`: each entry's version,
/// then the first line of each point.
fn heads(changelog: &str, version: &str) -> Vec<String> {
    let mut shown = Vec::new();
    for line in changelog.lines() {
        if !line.starts_with(char::is_whitespace) && !line.is_empty() {
            // `package (version) suite; urgency=…`
            let found = line
                .split_once('(')
                .and_then(|(_, rest)| rest.split_once(')'));
            match found {
                Some((found, _)) if found == version => break,
                Some((found, _)) => shown.push(found.to_owned()),
                None => break,
            }
        } else if let Some(point) = line.trim_start().strip_prefix("* ") {
            shown.push(format!("* {point}"));
        }
        if shown.len() > SHOWN {
            shown.truncate(SHOWN);
            shown.push("…".to_owned());
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "udev (3) trixie; urgency=medium\n\n  * Fix a hole. (CVE-2026-1)\n    More about it.\n  * Another point.\n\n -- A <a@example.org>  Mon, 01 Jan 2026 00:00:00 +0000\n\nudev (2) trixie; urgency=low\n\n  * Old.\n\n -- A <a@example.org>  Mon, 01 Jan 2025 00:00:00 +0000\n\nudev (1) trixie; urgency=low\n\n  * Oldest.\n";

    #[test]
    fn the_entries_above_the_old_version_are_shown() {
        assert_eq!(
            heads(TEXT, "2"),
            ["3", "* Fix a hole. (CVE-2026-1)", "* Another point."]
        );
        assert_eq!(heads(TEXT, "1").len(), 5);
        assert!(heads(TEXT, "3").is_empty());
    }

    #[test]
    fn a_long_history_is_cut() {
        let long: String = (0..40)
            .map(|n| format!("udev ({n}) x; y\n\n  * p\n"))
            .collect();
        let shown = heads(&long, "none");
        assert_eq!(shown.len(), SHOWN + 1);
        assert_eq!(shown.last().unwrap(), "…");
    }
}
