//! A revision of a release: the same root, kernel and boot loader, byte for
//! byte, with other components.
//!
//! Facts are the base release and the images of the new components; the plan
//! is the manifest of the revision; then its folder is written, whole or not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind};
use model::release::{Artifact, Component, HashTree, ReleaseManifest};
use model::{Digest, Signer};

use crate::contents;
use crate::recipe::Recipe;
use crate::release::{self, Draft, MANIFEST};
use crate::sbom;
use crate::sizes;
use crate::steps::extension;
use crate::steps::unpack::digest_file;
use crate::steps::verity;
use crate::tools::Tools;

/// Why there is no revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The number does not rise.
    #[error("revision {asked} of release {release}: expected more than the base's {base}")]
    NotHigher {
        /// The release.
        release: String,
        /// What was asked for.
        asked: u32,
        /// What the base has.
        base: u32,
    },
    /// The base has the very same components.
    #[error("release {release}: the components are those that it has")]
    NothingNew {
        /// The release.
        release: String,
    },
    /// Two images would bear one version.
    #[error("component {name}: other content than the base has under version {version}")]
    SameVersion {
        /// The component.
        name: String,
        /// Its version.
        version: String,
    },
    /// A component that is to go is not there.
    #[error("component {name}: not in the base release")]
    Unknown {
        /// The component.
        name: String,
    },
}

/// A component that was made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Size of its image in bytes.
    pub size: u64,
    /// SHA-256 of its image.
    pub sha256: Digest,
    /// The hash tree in its image.
    pub verity: HashTree,
}

/// Plans the manifest of a revision. Pure.
///
/// The images are named by their content: on a unit, old and new lie side by side.
///
/// # Errors
/// See [`Refusal`].
pub fn plan(
    base: &ReleaseManifest,
    revision: Option<u32>,
    made: &[Made],
    removed: &BTreeSet<String>,
) -> Result<ReleaseManifest, Refusal> {
    let release = || base.version.to_string();
    let revision = revision.unwrap_or(base.revision.saturating_add(1));
    if revision <= base.revision {
        return Err(Refusal::NotHigher {
            release: release(),
            asked: revision,
            base: base.revision,
        });
    }
    let mut components: BTreeMap<String, Component> = base
        .components
        .iter()
        .map(|component| (component.name.clone(), component.clone()))
        .collect();
    let before = components.clone();
    for name in removed {
        if components.remove(name).is_none() {
            return Err(Refusal::Unknown { name: name.clone() });
        }
    }
    for new in made {
        let old = before.get(&new.name);
        if old.is_some_and(|old| old.image.sha256 == new.sha256) {
            continue;
        }
        if old.is_some_and(|old| old.version == new.version) {
            return Err(Refusal::SameVersion {
                name: new.name.clone(),
                version: new.version.clone(),
            });
        }
        let digest = new.sha256.to_string();
        let component = Component {
            name: new.name.clone(),
            version: new.version.clone(),
            image: Artifact {
                path: format!("components/{}-{}.raw", new.name, &digest[..16]),
                size: new.size,
                sha256: new.sha256,
            },
            verity: Some(new.verity),
        };
        components.insert(new.name.clone(), component);
    }
    if components == before {
        return Err(Refusal::NothingNew { release: release() });
    }
    // What tells about the former components would tell wrong things.
    let documents = base.documents.iter().filter(|document| {
        let of_components = [sbom::SPDX, sbom::CYCLONE_DX, sizes::SIZES, release::BUILD];
        !of_components.contains(&document.path.as_str())
    });
    Ok(ReleaseManifest {
        revision,
        components: components.into_values().collect(),
        documents: documents.cloned().collect(),
        ..base.clone()
    })
}

/// What a revision is made of.
#[derive(Debug)]
pub struct Order<'a> {
    /// The base release's folder.
    pub base: &'a Path,
    /// Its verified manifest.
    pub manifest: &'a ReleaseManifest,
    /// The number, or the next one.
    pub revision: Option<u32>,
    /// The recipe of the new components.
    pub recipe: &'a Recipe,
    /// Components to make anew.
    pub names: &'a [String],
    /// Components to leave out.
    pub removed: &'a BTreeSet<String>,
    /// Folder of our own programs.
    pub binaries: &'a Path,
    /// Folder of downloaded packages.
    pub packages: &'a Path,
    /// Folder for releases.
    pub out: &'a Path,
    /// The targets role's key.
    pub signer: &'a Signer,
}

/// A revision's folder, `OUT/VERSION-rREVISION`.
#[derive(Debug)]
pub struct Built {
    /// Where it is.
    pub folder: PathBuf,
    /// What it holds.
    pub manifest: ReleaseManifest,
}

/// Makes the components in `work` and puts the revision's folder together.
///
/// # Errors
/// An unknown component, a missing program, a base that is not as signed, or a
/// [`Refusal`]. Nothing is left then.
pub fn build(order: &Order<'_>, tools: &Tools, work: &Path) -> anyhow::Result<Built> {
    let mut made = Vec::new();
    for name in order.names {
        made.push(make(order, name, tools, work)?);
    }
    let manifest =
        plan(order.manifest, order.revision, &made, order.removed).map_err(|refusal| {
            let marked = exit::marked(Kind::InvalidInput, &refusal);
            match refusal {
                Refusal::SameVersion { .. } => {
                    exit::hint(marked, "raise the component's version in the recipe")
                }
                _ => marked,
            }
        })?;
    let name = format!("{}-r{}", manifest.version, manifest.revision);
    let mut draft = Draft::named(order.out, &name)?;
    for (path, from) in inputs(order, &manifest, work)? {
        let copied = draft.copy(&from, &path)?;
        let signed = artifacts(&manifest).find(|artifact| artifact.path == path);
        if let Some(signed) = signed.filter(|signed| **signed != copied) {
            bail!(exit::marked(
                Kind::Refused,
                format!(
                    "{}: SHA-256 is {} where the manifest says {}",
                    from.display(),
                    copied.sha256,
                    signed.sha256
                )
            ));
        }
    }
    let folder = draft.finish(&order.signer.sign(&manifest))?;
    Ok(Built { folder, manifest })
}

fn make(order: &Order<'_>, name: &str, tools: &Tools, work: &Path) -> anyhow::Result<Made> {
    let recipe = order.recipe;
    let component = recipe.components.get(name).ok_or_else(|| {
        let known: Vec<&str> = recipe.components.keys().map(String::as_str).collect();
        let problem = format!("component {name}: not in the recipe");
        let hint = format!("it has {}", known.join(", "));
        exit::hint(exit::marked(Kind::InvalidInput, problem), hint)
    })?;
    let mut binaries = BTreeMap::new();
    for program in &component.binaries {
        let path = order.binaries.join(program);
        if !path.is_file() {
            let problem = format!("program {program}: not in {}", order.binaries.display());
            let hint = "build the workspace first, and name the folder with --bin-dir";
            bail!(exit::hint(exit::marked(Kind::InvalidInput, problem), hint));
        }
        binaries.insert(program.clone(), path);
    }
    let lock = contents::read_lock(order.base)?.context("the base release has no lock")?;
    let parts = extension::Parts {
        binaries: &binaries,
        lock: &lock,
        packages: order.packages,
    };
    extension::component(
        name,
        component,
        &recipe.name,
        recipe.source_date,
        parts,
        tools,
        work,
    )?;
    let image = work.join(format!("{name}.raw"));
    Ok(Made {
        name: name.to_owned(),
        version: component.version.clone(),
        size: std::fs::metadata(&image)
            .context("look at the image")?
            .len(),
        sha256: digest_file(&image)?,
        verity: verity::appended(&image)?,
    })
}

fn artifacts(manifest: &ReleaseManifest) -> impl Iterator<Item = &Artifact> {
    [&manifest.uki, &manifest.boot_loader, &manifest.installer]
        .into_iter()
        .chain(manifest.components.iter().map(|component| &component.image))
        .chain(&manifest.documents)
        .chain(manifest.enrolment())
}

/// Lists the files of the revision's folder, and where each comes from: the
/// base, but for new images, and without images that are left out.
fn inputs(
    order: &Order<'_>,
    manifest: &ReleaseManifest,
    work: &Path,
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let base = order.manifest;
    let images = base.components.iter().map(|component| &component.image);
    let of_base: BTreeSet<&str> = images
        .chain(&base.documents)
        .map(|artifact| artifact.path.as_str())
        .collect();
    let mut inputs = BTreeMap::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let place = order.base.join(&folder);
        let describe = || format!("read {}", place.display());
        for entry in std::fs::read_dir(&place).with_context(describe)? {
            let entry = entry.with_context(describe)?;
            let path = format!("{folder}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push(format!("{path}/"));
            } else if path != MANIFEST && !of_base.contains(path.as_str()) {
                inputs.insert(path, entry.path());
            }
        }
    }
    for document in &manifest.documents {
        let from = release::check(order.base, document)?;
        inputs.insert(document.path.clone(), from);
    }
    for component in &manifest.components {
        let path = &component.image.path;
        let from = match of_base.contains(path.as_str()) {
            true => release::check(order.base, &component.image)?,
            false => work.join(format!("{}.raw", component.name)),
        };
        inputs.insert(path.clone(), from);
    }
    for path in [&manifest.root.path, &manifest.verity.path]
        .into_iter()
        .chain(artifacts(manifest).map(|artifact| &artifact.path))
    {
        if !inputs.contains_key(path) {
            bail!(exit::marked(
                Kind::InvalidInput,
                format!("{}: missing", order.base.join(path).display())
            ));
        }
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::release::SegmentedImage;

    fn artifact(path: &str) -> Artifact {
        Artifact {
            path: path.into(),
            size: 3,
            sha256: Digest::of(path.as_bytes()),
        }
    }

    fn image(path: &str) -> SegmentedImage {
        SegmentedImage {
            path: path.into(),
            stored_size: 0,
            size: 0,
            segments: vec![],
        }
    }

    fn base() -> ReleaseManifest {
        let component = |name: &str| Component {
            name: name.into(),
            version: "1".into(),
            image: artifact(&format!("components/{name}.raw")),
            verity: None,
        };
        ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 4,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b"root"),
            root: image("root.zst"),
            verity: image("verity.zst"),
            uki: artifact("leapserv.efi"),
            boot_loader: artifact("boot.efi"),
            installer: artifact("installer.efi"),
            components: vec![component("backup"), component("pump")],
            documents: vec![artifact("lock.json"), artifact(sizes::SIZES)],
            tries: 3,
            secure_boot: None,
        }
    }

    fn made(name: &str, version: &str, content: &[u8]) -> Made {
        Made {
            name: name.into(),
            version: version.into(),
            size: content.len() as u64,
            sha256: Digest::of(content),
            verity: HashTree {
                root_hash: Digest::of(content),
                offset: 4096,
            },
        }
    }

    fn planned(revision: Option<u32>, made: &[Made]) -> Result<ReleaseManifest, Refusal> {
        plan(&base(), revision, made, &BTreeSet::new())
    }

    #[test]
    fn a_revision_changes_components_and_nothing_else() {
        let new = made("backup", "2", b"new");
        let manifest = planned(None, std::slice::from_ref(&new)).unwrap();
        assert_eq!(manifest.revision, 5);
        assert_eq!(base().first_difference(&manifest), None);
        assert_eq!(manifest.components[1], base().components[1]);
        let image = &manifest.components[0].image;
        assert_eq!(image.sha256, new.sha256);
        assert_eq!(manifest.components[0].verity, Some(new.verity));
        let prefix = &new.sha256.to_string()[..16];
        assert_eq!(image.path, format!("components/backup-{prefix}.raw"));
        let documents: Vec<&str> = manifest.documents.iter().map(|d| d.path.as_str()).collect();
        assert_eq!(documents, ["lock.json"]);
        let added = planned(Some(9), &[made("siren", "1", b"siren")]).unwrap();
        assert_eq!((added.revision, added.components.len()), (9, 3));
        let removed = plan(&base(), None, &[], &["pump".to_owned()].into()).unwrap();
        assert_eq!(removed.components.len(), 1);
    }

    #[test]
    fn a_revision_that_could_be_mistaken_for_another_is_refused() {
        let new = [made("backup", "2", b"new")];
        for asked in [0, 4] {
            let refused = planned(Some(asked), &new).unwrap_err();
            assert!(matches!(refused, Refusal::NotHigher { base: 4, .. }));
        }
        let same = [made("backup", "1", b"components/backup.raw")];
        let refused = planned(None, &same).unwrap_err();
        assert!(matches!(refused, Refusal::NothingNew { .. }));
        let refused = planned(None, &[made("backup", "1", b"new")]).unwrap_err();
        assert!(matches!(refused, Refusal::SameVersion { .. }));
        let refused = plan(&base(), None, &new, &["siren".to_owned()].into()).unwrap_err();
        assert!(matches!(refused, Refusal::Unknown { .. }));
    }
}
