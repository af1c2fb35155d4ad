//! What is kept: a pure decision over the snapshots of a repository.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use model::configuration::Retention;
use rustic_core::KeepOptions;
use rustic_core::repofile::SnapshotFile;

use crate::repository::Snapshot;

/// So many partial snapshots of a source that has had no complete one since are kept.
const PARTIALS: usize = 10;

/// Chooses the snapshots to forget.
///
/// The rules count complete snapshots of each source alone. A partial
/// snapshot never counts and never displaces a complete one: it goes when a
/// newer complete one of its source exists, or when there are too many. The
/// canary is never touched. The newest complete snapshot of a source is
/// always kept.
///
/// # Errors
/// When the library refuses the rules.
pub fn to_forget(
    snapshots: &[Snapshot],
    rules: &Retention,
    now: Timestamp,
) -> anyhow::Result<Vec<String>> {
    let mut sources: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in snapshots.iter().filter(|snapshot| !snapshot.canary) {
        sources.entry(&snapshot.source).or_default().push(snapshot);
    }
    let mut forget = Vec::new();
    for all in sources.into_values() {
        let (partial, complete): (Vec<&Snapshot>, Vec<&Snapshot>) =
            all.into_iter().partition(|snapshot| snapshot.partial);
        let newest_complete = complete.iter().map(|snapshot| snapshot.time).max();
        forget.extend(expired(&complete, rules, now)?);
        forget.extend(useless(partial, newest_complete));
    }
    Ok(forget)
}

fn expired(
    complete: &[&Snapshot],
    rules: &Retention,
    now: Timestamp,
) -> anyhow::Result<Vec<String>> {
    let count = |n: u32| (n > 0).then(|| i32::try_from(n).unwrap_or(i32::MAX));
    let keep = KeepOptions::default()
        .keep_last(count(rules.last.max(1)))
        .keep_daily(count(rules.daily))
        .keep_weekly(count(rules.weekly))
        .keep_monthly(count(rules.monthly));
    let files = complete
        .iter()
        .map(|snapshot| {
            Ok(SnapshotFile {
                time: snapshot.time.to_zoned(TimeZone::UTC),
                id: snapshot
                    .id
                    .parse::<rustic_core::Id>()
                    .map_err(|error| anyhow::anyhow!("{}", error.display_log()))?
                    .into(),
                ..SnapshotFile::default()
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let judged = keep
        .apply(files, &now.to_zoned(TimeZone::UTC))
        .map_err(|error| anyhow::anyhow!("apply retention: {}", error.display_log()))?;
    Ok(judged
        .into_iter()
        .filter(|snapshot| !snapshot.keep)
        .map(|snapshot| snapshot.snapshot.id.to_hex().to_string())
        .collect())
}

fn useless(mut partial: Vec<&Snapshot>, newest_complete: Option<Timestamp>) -> Vec<String> {
    partial.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.time));
    partial
        .into_iter()
        .enumerate()
        .filter(|(rank, snapshot)| {
            *rank >= PARTIALS || newest_complete.is_some_and(|time| snapshot.time < time)
        })
        .map(|(_, snapshot)| snapshot.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(hours_ago: i64, partial: bool) -> Snapshot {
        let time = Timestamp::from_second(1_800_000_000 - hours_ago * 3600).unwrap();
        Snapshot {
            id: rustic_core::Id::random().to_hex().to_string(),
            source: "gallery".into(),
            root: "/srv".into(),
            time,
            files: 1,
            bytes: 1,
            added: 1,
            partial,
            canary: false,
            description: String::new(),
        }
    }

    fn rules(last: u32) -> Retention {
        Retention {
            last,
            daily: 0,
            weekly: 0,
            monthly: 0,
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn partial_snapshots_never_push_out_a_complete_one() {
        let mut all = vec![snapshot(100, false), snapshot(99, false)];
        all.extend((0..5).map(|hour| snapshot(hour, true)));
        assert_eq!(to_forget(&all, &rules(2), now()).unwrap(), [""; 0]);
    }

    #[test]
    fn partial_goes_when_a_newer_complete_one_exists() {
        let all = [snapshot(5, true), snapshot(4, false), snapshot(3, true)];
        assert_eq!(
            to_forget(&all, &rules(9), now()).unwrap(),
            [all[0].id.clone()]
        );
    }

    #[test]
    fn rules_that_keep_nothing_keep_the_newest() {
        let all = [snapshot(2, false), snapshot(1, false)];
        assert_eq!(
            to_forget(&all, &rules(0), now()).unwrap(),
            [all[0].id.clone()]
        );
    }

    #[test]
    fn sources_are_counted_apart_and_the_canary_stays() {
        let mut other = snapshot(50, false);
        other.source = "books".into();
        let mut canary = snapshot(500, false);
        canary.canary = true;
        let all = [snapshot(1, false), other, canary];
        assert_eq!(to_forget(&all, &rules(1), now()).unwrap(), [""; 0]);
    }

    #[test]
    fn daily_rule_keeps_one_of_each_day() {
        let all: Vec<Snapshot> = (0..72).map(|hour| snapshot(hour, false)).collect();
        let rules = Retention {
            daily: 3,
            ..rules(1)
        };
        let forgotten = to_forget(&all, &rules, now()).unwrap();
        assert_eq!(forgotten.len(), 72 - 3);
    }
}
