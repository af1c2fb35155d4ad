//! Which slot an update writes, and what goes to the bin. Pure.
//!
//! The rule that everything here serves: the running system's slot, its boot
//! entry and its files are never touched, and what is about to be overwritten
//! loses its boot entry *first*. So at every moment there is an entry whose
//! slot is whole.

#![warn(clippy::wildcard_enum_match_arm)]

use std::collections::BTreeSet;

use model::{Digest, ReleaseVersion};

use crate::esp::{Entry, EntryState};
use crate::layout::Slot;

/// What is known before a release is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The slot that the running system was started from.
    pub running_slot: Slot,
    /// The running release.
    pub running: ReleaseVersion,
    /// Root hash of the running release.
    pub running_root: Digest,
    /// Whether the running system has passed its health gate.
    pub running_proven: bool,
    /// The boot entries on the ESP.
    pub entries: Vec<Entry>,
    /// The releases with a folder on the ESP.
    pub releases: Vec<ReleaseVersion>,
    /// Releases that were tried and given up.
    pub rejected: BTreeSet<ReleaseVersion>,
    /// The release that is offered.
    pub offered: ReleaseVersion,
    /// Root hash of the offered release.
    pub offered_root: Digest,
}

/// What to do with an offered release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritePlan {
    /// The slot to write.
    pub slot: Slot,
    /// Boot entries to remove before the slot is touched, in this order.
    pub remove_entries: Vec<Entry>,
    /// Folders of releases to remove, after the entries.
    pub remove_releases: Vec<ReleaseVersion>,
}

/// Why an offered release is not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to do.
    #[error("release {0} is running already")]
    AlreadyRunning(ReleaseVersion),
    /// The release is written and waits for the restart.
    #[error("release {0} is written and waits for a restart")]
    AlreadyWritten(ReleaseVersion),
    /// Older than what runs. It may be signed: a replayed manifest always is.
    #[error("release {offered} is older than running {running}")]
    Rollback {
        /// What runs.
        running: ReleaseVersion,
        /// What was offered.
        offered: ReleaseVersion,
    },
    /// It was tried and given up.
    #[error("release {0} was tried on this unit and given up")]
    Rejected(ReleaseVersion),
    /// The running system has not proven itself: the other slot is the way back.
    #[error("release {running} has not passed its health gate yet: the other slot is kept")]
    Unproven {
        /// What runs.
        running: ReleaseVersion,
    },
    /// Two slots with one root hash could not be told apart at boot.
    #[error("release {offered} has the root hash of running {running}")]
    SameRoot {
        /// What runs.
        running: ReleaseVersion,
        /// What was offered.
        offered: ReleaseVersion,
    },
    /// No entry starts the running system again: nothing may be removed.
    #[error("release {running} has no boot entry: nothing else may be given up")]
    NoWayBack {
        /// What runs.
        running: ReleaseVersion,
    },
}

/// Chooses the slot to write and what to remove before, or says why not.
///
/// # Errors
/// The first reason, see [`Refusal`].
pub fn decide(facts: &Facts) -> Result<WritePlan, Refusal> {
    let running = facts.running;
    let offered = facts.offered;
    if offered == running {
        return Err(Refusal::AlreadyRunning(running));
    }
    if offered < running {
        return Err(Refusal::Rollback { running, offered });
    }
    if facts.rejected.contains(&offered) {
        return Err(Refusal::Rejected(offered));
    }
    if facts.offered_root == facts.running_root {
        return Err(Refusal::SameRoot { running, offered });
    }
    // A try that is used up stays refused even when the record of it was lost.
    let written = facts.entries.iter().find(|entry| entry.version == offered);
    match written.map(Entry::state) {
        Some(EntryState::Bad) => return Err(Refusal::Rejected(offered)),
        Some(EntryState::Pending { .. } | EntryState::Good) => {
            return Err(Refusal::AlreadyWritten(offered));
        }
        None => {}
    }
    if !facts.running_proven {
        return Err(Refusal::Unproven { running });
    }
    if !facts.entries.iter().any(|entry| entry.version == running) {
        return Err(Refusal::NoWayBack { running });
    }
    Ok(WritePlan {
        slot: facts.running_slot.other(),
        remove_entries: facts
            .entries
            .iter()
            .filter(|entry| entry.version != running)
            .cloned()
            .collect(),
        remove_releases: facts
            .releases
            .iter()
            .copied()
            .filter(|release| *release != running && *release != offered)
            .collect(),
    })
}

/// Returns the entry by which the running system was started: its release's.
pub fn running_entry(entries: &[Entry], running: ReleaseVersion) -> Option<&Entry> {
    entries.iter().find(|entry| entry.version == running)
}

/// Says whether giving up the running system would lead to another one.
///
/// Without one, a restart only repeats what has just failed.
pub fn has_way_back(entries: &[Entry], running: ReleaseVersion) -> bool {
    entries
        .iter()
        .any(|entry| entry.version != running && entry.state() == EntryState::Good)
}

/// Returns releases whose tries are used up and that do not run: those that were rolled back.
pub fn rolled_back(entries: &[Entry], running: ReleaseVersion) -> Vec<ReleaseVersion> {
    entries
        .iter()
        .filter(|entry| entry.version != running && entry.state() == EntryState::Bad)
        .map(|entry| entry.version)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(number: u32) -> ReleaseVersion {
        format!("2026.11.{number}").parse().unwrap()
    }

    fn root(number: u32) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn entry(name: &str) -> Entry {
        name.parse().unwrap()
    }

    fn facts() -> Facts {
        Facts {
            running_slot: Slot::A,
            running: version(43),
            running_root: root(43),
            running_proven: true,
            entries: vec![
                entry("leapserv_2026.11.43.efi"),
                entry("leapserv_2026.11.41.efi"),
            ],
            releases: vec![version(43), version(41)],
            rejected: BTreeSet::new(),
            offered: version(44),
            offered_root: root(44),
        }
    }

    #[test]
    fn a_newer_release_goes_to_the_other_slot_and_takes_its_entry_first() {
        assert_eq!(
            decide(&facts()),
            Ok(WritePlan {
                slot: Slot::B,
                remove_entries: vec![entry("leapserv_2026.11.41.efi")],
                remove_releases: vec![version(41)],
            })
        );
    }

    #[test]
    fn a_replayed_older_release_is_refused() {
        let facts = Facts {
            offered: version(41),
            ..facts()
        };
        assert_eq!(
            decide(&facts),
            Err(Refusal::Rollback {
                running: version(43),
                offered: version(41)
            })
        );
    }

    #[test]
    fn a_release_that_was_given_up_is_not_tried_again() {
        let recorded = Facts {
            rejected: [version(44)].into(),
            ..facts()
        };
        assert_eq!(decide(&recorded), Err(Refusal::Rejected(version(44))));
        let mut seen = facts();
        seen.entries.push(entry("leapserv_2026.11.44+0-3.efi"));
        assert_eq!(decide(&seen), Err(Refusal::Rejected(version(44))));
        assert_eq!(rolled_back(&seen.entries, version(43)), [version(44)]);
        assert_eq!(rolled_back(&seen.entries, version(44)), []);
    }

    #[test]
    fn the_way_back_is_kept_until_the_running_release_has_proven_itself() {
        let unproven = Facts {
            running_proven: false,
            ..facts()
        };
        assert!(matches!(decide(&unproven), Err(Refusal::Unproven { .. })));
        let lost = Facts {
            entries: vec![entry("leapserv_2026.11.41.efi")],
            ..facts()
        };
        assert!(matches!(decide(&lost), Err(Refusal::NoWayBack { .. })));
    }

    #[test]
    fn a_release_that_is_written_is_not_written_again() {
        let mut written = facts();
        written.entries.push(entry("leapserv_2026.11.44+3.efi"));
        assert_eq!(decide(&written), Err(Refusal::AlreadyWritten(version(44))));
        let same = Facts {
            offered_root: root(43),
            ..facts()
        };
        assert!(matches!(decide(&same), Err(Refusal::SameRoot { .. })));
    }

    #[test]
    fn giving_up_needs_a_good_entry_of_another_release() {
        let entries = facts().entries;
        assert!(has_way_back(&entries, version(43)));
        assert!(!has_way_back(&entries[..1], version(43)));
        let bad = [entry("leapserv_2026.11.41+0-3.efi")];
        assert!(!has_way_back(&bad, version(43)));
    }

    /// A unit as far as slots and entries go.
    #[derive(Debug, Clone)]
    struct Unit {
        /// What each slot holds whole; `None` while it is being written.
        slots: [Option<ReleaseVersion>; 2],
        entries: Vec<Entry>,
        releases: Vec<ReleaseVersion>,
        running: ReleaseVersion,
        proven: bool,
        rejected: BTreeSet<ReleaseVersion>,
        /// What is left to do of a write: each step can be the last before a power cut.
        steps: Vec<Step>,
        newest: u32,
    }

    #[derive(Debug, Clone)]
    enum Step {
        RemoveEntry(Entry),
        RemoveRelease(ReleaseVersion),
        Tear(Slot),
        Fill(Slot, ReleaseVersion),
        AddEntry(ReleaseVersion),
    }

    #[derive(Debug, Clone)]
    enum Happening {
        Offer { newer: u32, fails: bool },
        Replay { older: u32 },
        Steps(usize),
        PowerCut,
        Gate { passes: bool },
    }

    impl Unit {
        fn born() -> Self {
            Self {
                slots: [Some(version(1)), None],
                entries: vec![Entry::new(version(1), 3)],
                releases: vec![version(1)],
                running: version(1),
                proven: false,
                rejected: BTreeSet::new(),
                steps: vec![],
                newest: 1,
            }
        }

        fn slot(&self) -> Slot {
            if self.slots[0] == Some(self.running) {
                Slot::A
            } else {
                Slot::B
            }
        }

        fn offer(&mut self, number: u32) {
            let facts = Facts {
                running_slot: self.slot(),
                running: self.running,
                running_root: Digest::of(self.running.to_string().as_bytes()),
                running_proven: self.proven,
                entries: self.entries.clone(),
                releases: self.releases.clone(),
                rejected: self.rejected.clone(),
                offered: version(number),
                offered_root: Digest::of(version(number).to_string().as_bytes()),
            };
            let Ok(plan) = decide(&facts) else { return };
            self.steps = plan
                .remove_entries
                .into_iter()
                .map(Step::RemoveEntry)
                .chain(plan.remove_releases.into_iter().map(Step::RemoveRelease))
                .chain([
                    Step::Tear(plan.slot),
                    Step::Fill(plan.slot, version(number)),
                    Step::AddEntry(version(number)),
                ])
                .collect();
        }

        fn step(&mut self) {
            if self.steps.is_empty() {
                return;
            }
            let index = |slot| usize::from(slot == Slot::B);
            match self.steps.remove(0) {
                Step::RemoveEntry(entry) => self.entries.retain(|one| *one != entry),
                Step::RemoveRelease(release) => self.releases.retain(|one| *one != release),
                Step::Tear(slot) => self.slots[index(slot)] = None,
                Step::Fill(slot, release) => {
                    self.slots[index(slot)] = Some(release);
                    self.releases.push(release);
                }
                Step::AddEntry(release) => self.entries.push(Entry::new(release, 2)),
            }
        }

        /// The boot loader: the newest that is not bad, else the newest; it counts down.
        fn boot(&mut self) {
            self.steps.clear();
            let chosen = self
                .entries
                .iter_mut()
                .max_by_key(|entry| (entry.state() != EntryState::Bad, entry.version))
                .expect("no entry is left");
            if let Some((left, done)) = &mut chosen.tries
                && *left > 0
            {
                *left -= 1;
                *done += 1;
            }
            self.running = chosen.version;
            self.proven = chosen.tries.is_none();
            let given_up = rolled_back(&self.entries, self.running);
            self.rejected.extend(given_up);
        }

        fn gate(&mut self, passes: bool) {
            if passes {
                self.proven = true;
                for entry in &mut self.entries {
                    if entry.version == self.running {
                        entry.tries = None;
                    }
                }
            } else if !self.proven && has_way_back(&self.entries, self.running) {
                self.boot();
            }
        }

        fn bootable(&self) -> usize {
            self.entries
                .iter()
                .filter(|entry| {
                    self.slots.contains(&Some(entry.version))
                        && self.releases.contains(&entry.version)
                })
                .count()
        }
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (1u32..3, any::<bool>()).prop_map(|(newer, fails)| Happening::Offer { newer, fails }),
            (0u32..4).prop_map(|older| Happening::Replay { older }),
            (1usize..8).prop_map(Happening::Steps),
            Just(Happening::PowerCut),
            any::<bool>().prop_map(|passes| Happening::Gate { passes }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_sequence_of_events_leaves_zero_bootable_entries(
            happenings in proptest::collection::vec(happening(), 0..60)
        ) {
            let mut unit = Unit::born();
            let mut doomed = BTreeSet::new();
            for happening in happenings {
                match happening {
                    Happening::Offer { newer, fails } => {
                        unit.newest += newer;
                        if fails {
                            doomed.insert(version(unit.newest));
                        }
                        unit.offer(unit.newest);
                    }
                    Happening::Replay { older } => unit.offer(unit.newest.saturating_sub(older).max(1)),
                    Happening::Steps(count) => for _ in 0..count {
                        unit.step();
                        prop_assert!(unit.bootable() > 0, "{unit:?}");
                    },
                    Happening::PowerCut => unit.boot(),
                    Happening::Gate { passes } => {
                        let passes = passes && !doomed.contains(&unit.running);
                        unit.gate(passes);
                    }
                }
                prop_assert!(unit.bootable() > 0, "{unit:?}");
                // Whatever runs is whole and keeps its entry.
                prop_assert!(unit.slots.contains(&Some(unit.running)), "{unit:?}");
                prop_assert!(unit.entries.iter().any(|e| e.version == unit.running), "{unit:?}");
            }
            // In the end a unit comes to rest on something that starts: with a
            // gate that passes for all but the doomed, it is proven.
            for _ in 0..12 {
                unit.boot();
                let passes = !doomed.contains(&unit.running);
                unit.gate(passes);
            }
            prop_assert!(unit.proven, "{unit:?}");
        }
    }
}
