//! When the daemon does what: a pure decision.

use jiff::{SignedDuration, Timestamp};
use model::configuration::Backup;

use crate::state::State;

/// A copy that failed is tried again after this time.
const RETRY_COPIES: SignedDuration = SignedDuration::from_mins(5);

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Back up these sources, then replicate.
    Run(Vec<String>),
    /// Bring the destinations up.
    Replicate,
    /// Nothing before this time; `None`: nothing until the configuration changes.
    Nothing(Option<Timestamp>),
}

/// Decides what is due now.
///
/// A source that never ran is due at once. One whose last run lies in the
/// future, since the clock was set back, is due too.
pub fn due(config: &Backup, state: &State, now: Timestamp) -> Due {
    let every = SignedDuration::from_mins(i64::from(config.schedule.every_minutes));
    let mut next: Option<Timestamp> = None;
    let mut sooner = |time: Timestamp| next = Some(next.map_or(time, |next| next.min(time)));
    if config.schedule.every_minutes > 0 {
        let mut names = Vec::new();
        for source in &config.sources {
            let begun = state.sources.get(source.name()).and_then(|s| s.begun);
            match begun {
                Some(begun) if begun <= now && begun + every > now => sooner(begun + every),
                _ => names.push(source.name().to_owned()),
            }
        }
        if !names.is_empty() {
            return Due::Run(names);
        }
    }
    let behind = config.destinations.iter().any(|destination| {
        state
            .copies
            .get(&destination.name)
            .is_some_and(|copy| copy.state.problem.is_some())
    });
    if behind {
        match state.replicated {
            Some(tried) if tried <= now && tried + RETRY_COPIES > now => {
                sooner(tried + RETRY_COPIES);
            }
            _ => return Due::Replicate,
        }
    }
    Due::Nothing(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Copy, SourceState};
    use model::backup::CopyState;

    fn config(every_minutes: u32) -> Backup {
        serde_json::from_value(serde_json::json!({
            "sources": [{"name": "gallery", "kind": "sftp", "host": "h", "user": "u",
                         "path": "/srv", "host_key": "ssh-ed25519 AAAA"}],
            "schedule": {"every_minutes": every_minutes},
            "destinations": [{"name": "north", "url": "https://north:8443"}],
        }))
        .unwrap()
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + minutes * 60).unwrap()
    }

    fn ran(minutes: i64) -> State {
        let mut state = State::default();
        let source = SourceState {
            begun: Some(at(minutes)),
            ..SourceState::default()
        };
        state.sources.insert("gallery".into(), source);
        state
    }

    #[test]
    fn source_is_due_at_first_and_after_its_interval() {
        let run = Due::Run(vec!["gallery".into()]);
        assert_eq!(due(&config(60), &State::default(), at(0)), run);
        assert_eq!(
            due(&config(60), &ran(0), at(59)),
            Due::Nothing(Some(at(60)))
        );
        assert_eq!(due(&config(60), &ran(0), at(60)), run);
    }

    #[test]
    fn clock_that_was_set_back_does_not_stop_backups() {
        let run = Due::Run(vec!["gallery".into()]);
        assert_eq!(due(&config(60), &ran(500_000), at(0)), run);
    }

    #[test]
    fn schedule_of_zero_runs_only_on_command() {
        assert_eq!(
            due(&config(0), &State::default(), at(0)),
            Due::Nothing(None)
        );
    }

    #[test]
    fn failed_copy_is_tried_again_after_a_while() {
        let mut state = ran(0);
        state.replicated = Some(at(0));
        let copy = Copy {
            state: CopyState {
                destination: "north".into(),
                complete: None,
                files_sent: 0,
                bytes_sent: 0,
                problem: Some("unreachable".into()),
            },
            snapshots: Default::default(),
        };
        state.copies.insert("north".into(), copy);
        assert_eq!(due(&config(60), &state, at(2)), Due::Nothing(Some(at(5))));
        assert_eq!(due(&config(60), &state, at(5)), Due::Replicate);
    }
}
