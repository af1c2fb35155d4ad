//! Which revision of the running release is taken: the same root with other components.
//!
//! Here it is decided and remembered; [`crate::replace`] carries it out.

use std::fmt;

use anyhow::Result;
use edge::durable::{self, Mode};
use model::api::RejectedRelease;
use model::release::{Component, ReleaseManifest};
use model::{Digest, ReleaseVersion};
use serde::{Deserialize, Serialize};
use slots::esp;

use crate::site::{Site, read_state};

/// How often a revision may be cut off in its trial before it is given up.
const TRIALS: u8 = 2;

/// A revision, as a channel's pointer names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The release.
    pub release: ReleaseVersion,
    /// Its revision.
    pub revision: u32,
    /// SHA-256 of its manifest.
    pub manifest: Digest,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "release {} revision {}", self.release, self.revision)
    }
}

/// What is known before components are replaced.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What is active.
    pub running: Named,
    /// What the channel offers.
    pub offered: Named,
    /// Whether the health gate has passed in this boot.
    pub proven: bool,
    /// What was tried before.
    pub memory: &'a Memory,
}

/// What is done with the components of an offered revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Images that the running revision does not have.
    pub fetch: Vec<Component>,
    /// Names of the components that are new, other than before, or gone.
    pub changed: Vec<String>,
}

/// Why an offered revision is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to do.
    #[error("{0} is active already")]
    AlreadyActive(Named),
    /// It is of another release: then it is no revision of this one.
    #[error("{offered} is no revision of running {running}")]
    OtherRelease {
        /// What runs.
        running: ReleaseVersion,
        /// What was offered.
        offered: Named,
    },
    /// Older than what is active. It may be signed: a replayed manifest always is.
    #[error("{offered} is older than active revision {running}")]
    Older {
        /// The revision that is active.
        running: u32,
        /// What was offered.
        offered: Named,
    },
    /// Two manifests claim one revision.
    #[error("{0} has another manifest than the active one of this revision")]
    OtherManifest(Named),
    /// It was tried and taken back.
    #[error("{revision} was tried on this unit and given up: {reason}")]
    Rejected {
        /// What was offered.
        revision: Named,
        /// Why it was given up.
        reason: String,
    },
    /// Only on a system that is well can be told whether the new components are.
    #[error("{0} has to wait: the health gate has not passed in this boot")]
    Unproven(Named),
    /// That needs another slot and a restart, and so another version.
    #[error("{revision} has another {part}: a revision replaces components alone")]
    MoreThanComponents {
        /// What was offered.
        revision: Named,
        /// What is not the same.
        part: &'static str,
    },
    /// The old file must stay until the new one has proven itself.
    #[error("{revision}: component {component} takes the file name of another image")]
    InPlace {
        /// What was offered.
        revision: Named,
        /// The component.
        component: String,
    },
    /// Its name or path leads elsewhere, or two have one name.
    #[error("{revision}: component {component:?} has no place of its own")]
    NoPlace {
        /// What was offered.
        revision: Named,
        /// The component.
        component: String,
    },
}

/// Judges an offer by its name alone, before its manifest is fetched.
///
/// # Errors
/// The first reason, see [`Refusal`].
pub fn glance(facts: &Facts<'_>) -> Result<(), Refusal> {
    let Facts {
        running, offered, ..
    } = *facts;
    if offered.release != running.release {
        return Err(Refusal::OtherRelease {
            running: running.release,
            offered,
        });
    }
    if offered.manifest == running.manifest {
        return Err(Refusal::AlreadyActive(offered));
    }
    if offered.revision < running.revision {
        return Err(Refusal::Older {
            running: running.revision,
            offered,
        });
    }
    if offered.revision == running.revision {
        return Err(Refusal::OtherManifest(offered));
    }
    if let Some(reason) = facts.memory.rejection(&offered.manifest) {
        return Err(Refusal::Rejected {
            revision: offered,
            reason: reason.to_owned(),
        });
    }
    if !facts.proven {
        return Err(Refusal::Unproven(offered));
    }
    Ok(())
}

/// Decides what is replaced, or says why nothing is. Pure.
///
/// # Errors
/// The first reason, see [`Refusal`].
pub fn decide(
    facts: &Facts<'_>,
    running: &ReleaseManifest,
    offered: &ReleaseManifest,
) -> Result<Plan, Refusal> {
    glance(facts)?;
    let revision = facts.offered;
    if let Some(part) = running.first_difference(offered) {
        return Err(Refusal::MoreThanComponents { revision, part });
    }
    for (index, component) in offered.components.iter().enumerate() {
        let twice = offered.components[..index]
            .iter()
            .any(|other| other.name == component.name);
        if twice
            || !is_plain(&component.name)
            || esp::component(offered.version, component).is_none()
        {
            return Err(Refusal::NoPlace {
                revision,
                component: component.name.clone(),
            });
        }
        // FAT does not tell upper case from lower case.
        let taken = running
            .components
            .iter()
            .chain(&offered.components[..index]);
        let mut taken = taken.filter(|other| {
            let (one, two) = (&other.image.path, &component.image.path);
            one.eq_ignore_ascii_case(two)
        });
        if taken.any(|other| other.image != component.image) {
            return Err(Refusal::InPlace {
                revision,
                component: component.name.clone(),
            });
        }
    }
    let image = |manifest: &ReleaseManifest, name: &str| {
        let mut components = manifest.components.iter();
        components
            .find(|component| component.name == name)
            .map(|component| component.image.clone())
    };
    let names = offered.components.iter().chain(&running.components);
    let mut changed: Vec<String> = Vec::new();
    for name in names.map(|component| &component.name) {
        if image(running, name) != image(offered, name) && !changed.contains(name) {
            changed.push(name.clone());
        }
    }
    Ok(Plan {
        fetch: offered
            .components
            .iter()
            .filter(|component| changed.contains(&component.name))
            .cloned()
            .collect(),
        changed,
    })
}

/// Says whether a text can be the name of a component: it becomes part of file names.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// What was tried on this unit, durable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The manifest that was last put on trial, until it is confirmed or given up.
    tried: Option<Tried>,
    rejected: Vec<Rejected>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tried {
    manifest: Digest,
    trials: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rejected {
    manifest: Digest,
    #[serde(flatten)]
    row: RejectedRelease,
}

impl Memory {
    /// Reads what was tried.
    pub fn read(site: &Site) -> Self {
        read_state(&site.state("revisions.json")).unwrap_or_default()
    }

    fn write(&self, site: &Site) -> Result<()> {
        durable::write_json(&site.state("revisions.json"), self, Mode::Public)
    }

    /// Returns the rows for the sky.
    pub fn rows(&self) -> Vec<RejectedRelease> {
        self.rejected.iter().map(|one| one.row.clone()).collect()
    }

    fn rejection(&self, manifest: &Digest) -> Option<&str> {
        self.rejected
            .iter()
            .find(|one| one.manifest == *manifest)
            .map(|one| one.row.reason.as_str())
    }

    /// Notes that a revision is put on trial now; says whether it may be.
    ///
    /// One whose trials were cut off is given up: perhaps it was it that cut them off.
    ///
    /// # Errors
    /// It cannot be made durable.
    pub fn begin(&mut self, site: &Site, offered: &Named) -> Result<bool> {
        let before = self
            .tried
            .as_ref()
            .filter(|tried| tried.manifest == offered.manifest)
            .map_or(0, |tried| tried.trials);
        if before >= TRIALS {
            let reason = format!("its trial was cut off {before} times");
            self.reject(site, offered, reason)?;
            return Ok(false);
        }
        self.tried = Some(Tried {
            manifest: offered.manifest,
            trials: before + 1,
        });
        self.write(site)?;
        Ok(true)
    }

    /// Notes that the revision on trial is good.
    ///
    /// # Errors
    /// It cannot be made durable.
    pub fn confirm(&mut self, site: &Site) -> Result<()> {
        self.tried = None;
        self.write(site)
    }

    /// Gives a revision up. Revisions of other releases are forgotten.
    ///
    /// # Errors
    /// It cannot be made durable.
    pub fn reject(&mut self, site: &Site, offered: &Named, reason: String) -> Result<()> {
        tracing::error!(release = %offered.release, revision = offered.revision, reason, "components given up");
        self.tried = None;
        self.rejected
            .retain(|one| one.row.release == offered.release && one.manifest != offered.manifest);
        self.rejected.push(Rejected {
            manifest: offered.manifest,
            row: RejectedRelease {
                release: offered.release,
                revision: offered.revision,
                reason,
            },
        });
        self.write(site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::release::{Artifact, SegmentedImage};

    fn artifact(path: &str, content: &str) -> Artifact {
        Artifact {
            path: path.into(),
            size: content.len() as u64,
            sha256: Digest::of(content.as_bytes()),
        }
    }

    fn image() -> SegmentedImage {
        SegmentedImage {
            path: "root.zst".into(),
            stored_size: 0,
            size: 0,
            segments: vec![],
        }
    }

    fn component(name: &str, path: &str, content: &str) -> Component {
        Component {
            name: name.into(),
            version: content.into(),
            image: artifact(path, content),
            verity: None,
        }
    }

    fn manifest(revision: u32, components: Vec<Component>) -> ReleaseManifest {
        ReleaseManifest {
            version: "2026.11.3".parse().unwrap(),
            revision,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b"root"),
            root: image(),
            verity: image(),
            uki: artifact("leapserv.efi", "uki"),
            boot_loader: artifact("loader.efi", "loader"),
            installer: artifact("installer.efi", "installer"),
            components,
            documents: vec![],
            tries: 3,
            secure_boot: None,
        }
    }

    fn named(manifest: &ReleaseManifest) -> Named {
        Named {
            release: manifest.version,
            revision: manifest.revision,
            manifest: Digest::of(&serde_json::to_vec(manifest).unwrap()),
        }
    }

    fn running() -> ReleaseManifest {
        manifest(
            1,
            vec![
                component("backup", "components/backup.raw", "old"),
                component("pump", "components/pump.raw", "pump"),
            ],
        )
    }

    fn newer() -> ReleaseManifest {
        manifest(
            2,
            vec![
                component("backup", "components/backup-2.raw", "new"),
                component("pump", "components/pump.raw", "pump"),
            ],
        )
    }

    fn judge(offered: &ReleaseManifest, proven: bool, memory: &Memory) -> Result<Plan, Refusal> {
        let running = running();
        let facts = Facts {
            running: named(&running),
            offered: named(offered),
            proven,
            memory,
        };
        decide(&facts, &running, offered)
    }

    fn refused(change: impl FnOnce(&mut ReleaseManifest)) -> Refusal {
        let mut offered = newer();
        change(&mut offered);
        judge(&offered, true, &Memory::default()).unwrap_err()
    }

    #[test]
    fn only_components_that_changed_are_fetched_and_restarted() {
        let mut offered = newer();
        offered
            .components
            .push(component("siren", "components/siren.raw", "siren"));
        let plan = judge(&offered, true, &Memory::default()).unwrap();
        assert_eq!(plan.changed, ["backup", "siren"]);
        let fetched: Vec<_> = plan.fetch.iter().map(|c| c.image.path.as_str()).collect();
        assert_eq!(fetched, ["components/backup-2.raw", "components/siren.raw"]);
        let mut fewer = newer();
        fewer.components.remove(1);
        let plan = judge(&fewer, true, &Memory::default()).unwrap();
        assert_eq!(plan.changed, ["backup", "pump"]);
        assert_eq!(plan.fetch.len(), 1);
    }

    #[test]
    fn only_a_higher_revision_of_the_running_release_is_taken() {
        let offered = |revision| judge(&manifest(revision, vec![]), true, &Memory::default());
        assert!(matches!(offered(0), Err(Refusal::Older { running: 1, .. })));
        assert!(matches!(offered(1), Err(Refusal::OtherManifest(_))));
        assert!(offered(2).is_ok() && offered(u32::MAX).is_ok());
        let same = judge(&running(), true, &Memory::default());
        assert!(matches!(same, Err(Refusal::AlreadyActive(_))));
        let other = refused(|manifest| manifest.version = "2026.11.4".parse().unwrap());
        assert!(matches!(other, Refusal::OtherRelease { .. }));
    }

    #[test]
    fn a_revision_that_changes_more_than_components_is_refused_by_name() {
        type Change = fn(&mut ReleaseManifest);
        let changes: [(&str, Change); 8] = [
            ("root hash", |m| m.root_hash = Digest::of(b"other")),
            ("root image", |m| m.root.size = 1),
            ("verity image", |m| m.verity.size = 1),
            ("kernel", |m| m.uki.size = 1),
            ("boot loader", |m| m.boot_loader.size = 1),
            ("installer", |m| m.installer.size = 1),
            ("number of tries", |m| m.tries = 9),
            ("architecture", |m| {
                m.architecture = model::Architecture::Arm64
            }),
        ];
        for (expected, change) in changes {
            let Refusal::MoreThanComponents { part, .. } = refused(change) else {
                panic!("{expected} was taken");
            };
            assert_eq!(part, expected);
        }
    }

    #[test]
    fn the_files_of_the_running_revision_are_never_overwritten() {
        for path in ["components/backup.raw", "Components/BACKUP.raw"] {
            let refusal = refused(|m| m.components[0].image.path = path.into());
            assert!(matches!(refusal, Refusal::InPlace { .. }), "{refusal}");
        }
        // Two new components with one file.
        let refusal = refused(|m| {
            m.components
                .push(component("siren", "components/backup-2.raw", "siren"));
        });
        assert!(matches!(refusal, Refusal::InPlace { .. }), "{refusal}");
    }

    #[test]
    fn a_component_without_a_place_of_its_own_is_refused() {
        for name in ["", "../backup", "a b", "a.b"] {
            let refusal = refused(|m| m.components[0].name = name.into());
            assert!(matches!(refusal, Refusal::NoPlace { .. }), "{refusal}");
        }
        for path in ["../backup.raw", "/backup.raw", "a//b", ""] {
            let refusal = refused(|m| m.components[0].image.path = path.into());
            assert!(matches!(refusal, Refusal::NoPlace { .. }), "{refusal}");
        }
        let twice = refused(|m| m.components[1].name = "backup".into());
        assert!(matches!(twice, Refusal::NoPlace { .. }), "{twice}");
    }

    #[test]
    fn a_unit_that_is_not_well_keeps_what_it_has() {
        let refusal = judge(&newer(), false, &Memory::default()).unwrap_err();
        assert!(matches!(refusal, Refusal::Unproven(_)));
    }

    #[test]
    fn what_was_given_up_or_cut_off_twice_is_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let offered = named(&newer());
        let mut memory = Memory::read(&site);
        assert!(memory.begin(&site, &offered).unwrap());
        let mut memory = Memory::read(&site);
        assert!(memory.begin(&site, &offered).unwrap());
        assert!(!memory.begin(&site, &offered).unwrap());
        let refusal = judge(&newer(), true, &Memory::read(&site)).unwrap_err();
        assert!(refusal.to_string().contains("cut off 2 times"), "{refusal}");
        assert_eq!(memory.rows()[0].revision, 2);
        // Another revision has trials of its own, and a good one ends the count.
        let other = named(&manifest(3, vec![]));
        assert!(memory.begin(&site, &other).unwrap());
        memory.confirm(&site).unwrap();
        assert!(memory.begin(&site, &other).unwrap());
        memory.reject(&site, &other, "canary".into()).unwrap();
        assert_eq!(Memory::read(&site).rows().len(), 2);
        // A new release begins with a clean sheet.
        let next = Named {
            release: "2026.11.4".parse().unwrap(),
            ..other
        };
        memory.reject(&site, &next, "canary".into()).unwrap();
        assert_eq!(Memory::read(&site).rows().len(), 1);
    }
}
