//! What `unit show --wait` can wait for.
//!
//! Pure: polling is the caller's job.

use std::fmt;
use std::str::FromStr;

use model::ReleaseVersion;
use model::api::{RejectedRelease, UnitState, UnitView, UpdateStatus};

/// A condition of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It is in this state.
    State(UnitState),
    /// It has applied this generation, or the newest that was signed.
    Configuration(Option<u64>),
    /// It has refused or taken back this generation, or the newest that was signed.
    ConfigurationRejected(Option<u64>),
    /// The newest snapshot of the source, or of every source, is complete and
    /// lies at every destination.
    Backup(Option<String>),
    /// It runs this release and the health gate has passed.
    Release(ReleaseVersion),
    /// It has given this release up.
    ReleaseRejected(ReleaseVersion),
    /// A fenced incarnation has tried something.
    Fenced,
}

/// What can be waited for, as help and messages spell it.
pub(crate) const SPELLING: &str = "unborn, birth, in-service, unhealthy, rebirth, \
     configuration[=GENERATION], configuration-rejected[=GENERATION], backup[=SOURCE], \
     release=VERSION, release-rejected=VERSION or fenced";

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?}: expected {SPELLING}");
        let (word, value) = match text.split_once(['=', ' ']) {
            Some((word, value)) => (word, Some(value.trim())),
            None => (text, None),
        };
        let number = |value: Option<&str>| {
            value
                .map(|value| value.parse().map_err(|_| bad()))
                .transpose()
        };
        let release = |value: Option<&str>| {
            value
                .ok_or_else(bad)?
                .parse()
                .map_err(|error| format!("{text:?}: {error}"))
        };
        match (word, value) {
            ("configuration", value) => Ok(Self::Configuration(number(value)?)),
            ("configuration-rejected", value) => Ok(Self::ConfigurationRejected(number(value)?)),
            ("backup", value) => Ok(Self::Backup(value.map(str::to_owned))),
            ("release", value) => Ok(Self::Release(release(value)?)),
            ("release-rejected", value) => Ok(Self::ReleaseRejected(release(value)?)),
            ("fenced", None) => Ok(Self::Fenced),
            (state, None) => serde_json::from_value(state.into())
                .map(Self::State)
                .map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => f.write_str(crate::view::state_word(*state)),
            Self::Configuration(Some(number)) => write!(f, "configuration {number}"),
            Self::Configuration(None) => f.write_str("the newest configuration"),
            Self::ConfigurationRejected(Some(number)) => {
                write!(f, "the rejection of configuration {number}")
            }
            Self::ConfigurationRejected(None) => {
                f.write_str("the rejection of the newest configuration")
            }
            Self::Backup(Some(source)) => write!(f, "a backup of {source} at every destination"),
            Self::Backup(None) => f.write_str("backups at every destination"),
            Self::Release(release) => write!(f, "release {release}"),
            Self::ReleaseRejected(release) => write!(f, "the rejection of release {release}"),
            Self::Fenced => f.write_str("an attempt of a fenced incarnation"),
        }
    }
}

/// What a look at the unit says about a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It holds.
    Met,
    /// Not yet: how things stand.
    NotYet(String),
    /// It will not hold by waiting: why.
    Never(String),
}

impl Condition {
    /// Judges the unit as the sky shows it.
    pub(crate) fn judge(&self, unit: &UnitView) -> Judgement {
        use Judgement::{Met, Never, NotYet};
        let Some(last) = &unit.last_check_in else {
            return match self {
                Self::State(state) if unit.state == *state => Met,
                Self::Fenced if !unit.fenced_attempts.is_empty() => Met,
                _ => NotYet(format!(
                    "{}, no check-in yet",
                    crate::view::state_word(unit.state)
                )),
            };
        };
        let rejected = |number: u64| {
            let rejected = last.configuration.rejected.as_ref();
            rejected.filter(|rejected| rejected.generation == number)
        };
        match self {
            Self::State(state) if unit.state == *state => Met,
            Self::State(_) => {
                let word = crate::view::state_word(unit.state);
                NotYet(match last.healthy {
                    true => word.to_owned(),
                    false => format!("{word}, {}", crate::view::gate_words(last)),
                })
            }
            Self::Configuration(wanted) => {
                let wanted = wanted.unwrap_or(unit.configuration_generation);
                let applied = last.configuration.applied;
                match rejected(wanted) {
                    _ if wanted == 0 => Never("no configuration has been signed".into()),
                    _ if applied >= wanted => Met,
                    Some(rejected) => Never(format!(
                        "the unit has rejected generation {wanted}: {}",
                        rejected.reason
                    )),
                    None => NotYet(format!("generation {applied} applied, {wanted} wanted")),
                }
            }
            Self::ConfigurationRejected(wanted) => {
                let wanted = wanted.unwrap_or(unit.configuration_generation);
                let applied = last.configuration.applied;
                match rejected(wanted) {
                    Some(_) => Met,
                    // Applied now can still be taken back: the unit tries it first.
                    None => NotYet(format!(
                        "generation {applied} applied, {wanted} not rejected"
                    )),
                }
            }
            Self::Backup(source) => backup(unit, source.as_deref()),
            Self::Release(wanted) => {
                let given_up = given_up(&last.update, *wanted);
                match given_up {
                    _ if last.release == *wanted && last.healthy => Met,
                    Some(rejected) if last.release != *wanted => Never(format!(
                        "the unit has given up release {wanted}: {}",
                        rejected.reason
                    )),
                    _ if last.release == *wanted => {
                        NotYet(format!("runs it, {}", crate::view::gate_words(last)))
                    }
                    _ => NotYet(format!(
                        "runs {}, {}",
                        last.release,
                        crate::view::update_words(&last.update)
                    )),
                }
            }
            Self::ReleaseRejected(wanted) => {
                if given_up(&last.update, *wanted).is_some() {
                    Met
                } else {
                    NotYet(format!(
                        "runs {}, {}",
                        last.release,
                        crate::view::update_words(&last.update)
                    ))
                }
            }
            Self::Fenced if !unit.fenced_attempts.is_empty() => Met,
            Self::Fenced => NotYet("no attempt so far".into()),
        }
    }
}

fn backup(unit: &UnitView, source: Option<&str>) -> Judgement {
    use Judgement::{Met, NotYet};
    let last = unit.last_check_in.as_ref();
    let Some(status) = last.and_then(|last| last.backup.as_ref()) else {
        return NotYet("the unit has told nothing of backups".into());
    };
    let mut newest: Vec<&model::backup::SnapshotRow> = Vec::new();
    for row in &status.snapshots {
        let wanted = source.is_none_or(|source| source == row.source);
        match newest.iter_mut().find(|seen| seen.source == row.source) {
            _ if !wanted => {}
            Some(seen) if seen.time < row.time => *seen = row,
            Some(_) => {}
            None => newest.push(row),
        }
    }
    if newest.is_empty() {
        return NotYet(match (&status.problem, source) {
            (Some(problem), _) => format!("no snapshot: {problem}"),
            (None, Some(source)) => format!("no snapshot of {source}"),
            (None, None) => "no snapshot".into(),
        });
    }
    for row in newest {
        if row.partial {
            return NotYet(format!("the newest snapshot of {} is partial", row.source));
        }
        let mut places = status.copies.iter().map(|copy| &copy.destination);
        if let Some(missing) = places.find(|place| !row.copies.contains(place)) {
            return NotYet(format!(
                "the newest snapshot of {} is not at {missing} yet",
                row.source
            ));
        }
    }
    Met
}

/// Finds a release among those given up; a revision of components is none.
fn given_up(update: &UpdateStatus, release: ReleaseVersion) -> Option<&RejectedRelease> {
    let mut rejected = update.rejected.iter();
    rejected.find(|one| one.release == release && one.revision == 0)
}

#[cfg(test)]
mod tests {
    use model::api::RejectedGeneration;

    use super::*;
    use crate::view::tests::living_unit;

    fn judge(condition: &str, unit: &UnitView) -> Judgement {
        condition.parse::<Condition>().unwrap().judge(unit)
    }

    #[test]
    fn conditions_are_spelt_in_one_way() {
        let release: ReleaseVersion = "2026.11.2".parse().unwrap();
        assert_eq!("release=2026.11.2".parse(), Ok(Condition::Release(release)));
        assert_eq!("release 2026.11.2".parse(), Ok(Condition::Release(release)));
        assert_eq!("backup".parse(), Ok(Condition::Backup(None)));
        assert_eq!(
            "in-service".parse(),
            Ok(Condition::State(UnitState::InService))
        );
        for bad in [
            "release",
            "release=x",
            "configuration=x",
            "in-service=1",
            "asleep",
        ] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_release_that_was_given_up_is_not_waited_for() {
        let mut unit = living_unit();
        assert_eq!(judge("release=2026.11.1", &unit), Judgement::Met);
        assert!(matches!(
            judge("release=2026.11.2", &unit),
            Judgement::NotYet(_)
        ));
        let last = unit.last_check_in.as_mut().unwrap();
        last.update.rejected = vec![RejectedRelease {
            release: "2026.11.2".parse().unwrap(),
            revision: 0,
            reason: "the gate failed".into(),
        }];
        assert!(matches!(
            judge("release=2026.11.2", &unit),
            Judgement::Never(_)
        ));
        assert_eq!(judge("release-rejected=2026.11.2", &unit), Judgement::Met);
        // A trial boot does not count.
        unit.last_check_in.as_mut().unwrap().healthy = false;
        assert!(matches!(
            judge("release=2026.11.1", &unit),
            Judgement::NotYet(_)
        ));
    }

    #[test]
    fn a_rejected_configuration_is_not_waited_for() {
        let mut unit = living_unit();
        assert_eq!(judge("configuration", &unit), Judgement::Met);
        unit.configuration_generation = 3;
        assert!(matches!(
            judge("configuration", &unit),
            Judgement::NotYet(_)
        ));
        let last = unit.last_check_in.as_mut().unwrap();
        last.configuration.rejected = Some(RejectedGeneration {
            generation: 3,
            reason: "the sky could not be reached with it".into(),
        });
        assert!(matches!(judge("configuration", &unit), Judgement::Never(_)));
        assert_eq!(judge("configuration-rejected", &unit), Judgement::Met);
        assert_eq!(judge("configuration=2", &unit), Judgement::Met);
    }

    #[test]
    fn a_backup_counts_when_every_destination_has_it() {
        let mut unit = living_unit();
        assert_eq!(judge("backup", &unit), Judgement::Met);
        assert_eq!(judge("backup=gallery", &unit), Judgement::Met);
        assert!(matches!(
            judge("backup=office", &unit),
            Judgement::NotYet(_)
        ));
        let last = unit.last_check_in.as_mut().unwrap();
        last.backup.as_mut().unwrap().snapshots[0].copies.pop();
        assert_eq!(
            judge("backup", &unit),
            Judgement::NotYet("the newest snapshot of gallery is not at vault-2 yet".into())
        );
    }
}
