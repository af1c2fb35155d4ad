//! Which release a root hash belongs to.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use model::{Digest, ReleaseVersion};
use serde::Serialize;

use crate::contents::{self, LOCK};
use crate::release::MANIFEST;

/// The fewest digits that name a root hash.
pub const MIN_DIGITS: usize = 8;

/// A release and where what tells about it lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Known {
    /// Its version.
    pub release: ReleaseVersion,
    /// Its root hash.
    pub root_hash: Digest,
    /// Its folder.
    pub folder: PathBuf,
    /// Its lock.
    pub lock: Option<PathBuf>,
    /// Its bills of materials.
    pub sbom: Vec<PathBuf>,
}

/// Why a root hash leads to no release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// It cannot be the beginning of one.
    #[error("root hash {0:?}: expected 8 to 64 hexadecimal digits")]
    Form(String),
    /// None has it.
    #[error("root hash {prefix}: none of {count} releases has it")]
    Nobody {
        /// What was asked for.
        prefix: String,
        /// How many were looked at.
        count: usize,
    },
    /// More than one has it.
    #[error("root hash {prefix}: {} have it", names(.releases))]
    Several {
        /// What was asked for.
        prefix: String,
        /// Those that have it.
        releases: Vec<Known>,
    },
}

fn names(releases: &[Known]) -> String {
    let names = releases.iter().map(|known| known.release.to_string());
    format!("releases {}", names.collect::<Vec<_>>().join(", "))
}

/// Lists the releases in a folder, by version. Folders without a manifest are
/// no releases.
///
/// # Errors
/// When the folder cannot be read, or a manifest in it.
pub fn known(releases: &Path) -> anyhow::Result<Vec<Known>> {
    let reading = || format!("read the releases in {}", releases.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(releases).with_context(reading)? {
        let folder = entry.with_context(reading)?.path();
        if !folder.join(MANIFEST).is_file() {
            continue;
        }
        let manifest = contents::read_manifest(&folder)?;
        let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        found.push(Known {
            release: manifest.version,
            root_hash: manifest.root_hash,
            lock: there(LOCK),
            sbom: [crate::sbom::SPDX, crate::sbom::CYCLONE_DX]
                .into_iter()
                .filter_map(there)
                .collect(),
            folder,
        });
    }
    found.sort_by_key(|known| known.release);
    Ok(found)
}

/// Chooses the release whose root hash begins with `prefix`.
///
/// # Errors
/// See [`Unknown`].
pub fn choose(prefix: &str, known: &[Known]) -> Result<Known, Unknown> {
    let prefix = prefix.trim().to_ascii_lowercase();
    let good = (MIN_DIGITS..=64).contains(&prefix.len())
        && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !good {
        return Err(Unknown::Form(prefix));
    }
    let hits = known
        .iter()
        .filter(|known| known.root_hash.to_string().starts_with(&prefix));
    let mut hits: Vec<Known> = hits.cloned().collect();
    match hits.len() {
        0 => Err(Unknown::Nobody {
            prefix,
            count: known.len(),
        }),
        1 => Ok(hits.remove(0)),
        _ => Err(Unknown::Several {
            prefix,
            releases: hits,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(version: &str, hash: [u8; 32]) -> Known {
        Known {
            release: version.parse().unwrap(),
            root_hash: Digest::from(hash),
            folder: PathBuf::from(version),
            lock: None,
            sbom: Vec::new(),
        }
    }

    #[test]
    fn a_beginning_leads_to_its_release_and_nothing_else_does() {
        let mut other = [0xab; 32];
        other[10] = 0;
        let known = [
            release("2026.11.1", [0xab; 32]),
            release("2026.11.2", other),
            release("2026.11.3", [0xcd; 32]),
        ];
        let found = choose("CDCDCDCD", &known).unwrap();
        assert_eq!(found.release.to_string(), "2026.11.3");
        let all = "ab".repeat(32);
        assert_eq!(
            choose(&all, &known).unwrap().release.to_string(),
            "2026.11.1"
        );
        let several = choose("abababab", &known).unwrap_err().to_string();
        assert!(several.contains("2026.11.1, 2026.11.2"), "{several}");
        let nobody = choose("00000000", &known).unwrap_err().to_string();
        assert!(nobody.contains("none of 3 releases"), "{nobody}");
        for bad in ["cdcdcdc", "cdcdcdcg", &"a".repeat(65), ""] {
            assert!(
                matches!(choose(bad, &known), Err(Unknown::Form(_))),
                "{bad}"
            );
        }
    }
}
