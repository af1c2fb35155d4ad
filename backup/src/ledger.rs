//! The error ledger of one run: everything that was *not* backed up, and why.
//!
//! The repository library drops what it cannot read and still reports
//! success, so the source itself writes down every failure, and
//! [`judge`] decides from the sum whether the snapshot is complete.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// How many single entries a report keeps; counters go on beyond it.
const KEPT: usize = 100;

/// The least number of files that makes a source that is suddenly empty suspicious.
const SUSPICIOUS_FROM: u64 = 10;

/// What went wrong with an entry of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A folder could not be listed.
    List,
    /// A file or link could not be opened.
    Open,
    /// A file ended early or could not be read to its end.
    Read,
    /// The connection to the source was lost.
    Connection,
}

/// One thing that is missing from the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path on the source.
    pub path: String,
    /// What could not be done.
    pub fault: Fault,
    /// The server's or the system's own words.
    pub reason: String,
}

/// The sum of a run, as it is judged and reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Files and links that the listing named.
    pub files_listed: u64,
    /// Files, links and folders that are missing from the snapshot.
    pub errors: u64,
    /// How often the connection was lost.
    pub connections_lost: u64,
    /// Files that changed while they were read; they are in the snapshot.
    pub changed: u64,
    /// Devices, sockets and pipes, which are never backed up.
    pub skipped_special: u64,
    /// The first hundred errors.
    pub entries: Vec<Entry>,
}

/// Collects faults from all the threads of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    files: AtomicU64,
    errors: AtomicU64,
    lost: AtomicU64,
    changed: AtomicU64,
    special: AtomicU64,
    entries: Mutex<Vec<Entry>>,
}

impl Ledger {
    /// Counts a file or link that the listing named.
    pub fn listed(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a file that changed while it was read.
    pub fn changed(&self, path: &str) {
        tracing::debug!(path, "file changed while it was read");
        self.changed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a device, socket or pipe.
    pub fn special(&self, path: &str) {
        tracing::debug!(path, "special file is not backed up");
        self.special.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes down something that is missing from the snapshot.
    pub fn error(&self, path: &str, fault: Fault, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::warn!(path, ?fault, reason, "not backed up");
        self.errors.fetch_add(1, Ordering::Relaxed);
        if fault == Fault::Connection {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        let mut entries = self
            .entries
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if entries.len() < KEPT {
            entries.push(Entry {
                path: path.to_owned(),
                fault,
                reason,
            });
        }
    }

    /// The sum so far.
    pub fn report(&self) -> Report {
        Report {
            files_listed: self.files.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            connections_lost: self.lost.load(Ordering::Relaxed),
            changed: self.changed.load(Ordering::Relaxed),
            skipped_special: self.special.load(Ordering::Relaxed),
            entries: self
                .entries
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone(),
        }
    }
}

/// What the gate decides about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that the source named is in the snapshot.
    Complete,
    /// Something is missing: the snapshot is kept, but counts for nothing.
    Partial {
        /// Why, in one line.
        reason: String,
    },
}

/// Judges a run: complete only when nothing at all is missing.
///
/// `files_saved` is what the engine put into the snapshot, `files_before` what
/// the last complete snapshot of the same source held.
pub fn judge(report: &Report, files_saved: u64, files_before: Option<u64>) -> Verdict {
    let partial = |reason: String| Verdict::Partial { reason };
    if report.connections_lost > 0 {
        return partial("the connection to the source was lost".to_owned());
    }
    if report.errors > 0 {
        return partial(format!("{} entries could not be read", report.errors));
    }
    // A safety net under the ledger: whatever the reason, a file that was
    // listed and is not in the snapshot makes it partial.
    if files_saved < report.files_listed {
        return partial(format!(
            "{} of {} listed files are missing from the snapshot",
            report.files_listed - files_saved,
            report.files_listed
        ));
    }
    // A file server whose disk is not mounted shows an empty folder.
    if let Some(before) = files_before.filter(|n| *n >= SUSPICIOUS_FROM)
        && files_saved == 0
    {
        return partial(format!(
            "the source is empty, the last complete snapshot held {before} files"
        ));
    }
    Verdict::Complete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(files: u64) -> Report {
        Report {
            files_listed: files,
            ..Report::default()
        }
    }

    #[test]
    fn run_without_faults_is_complete() {
        assert_eq!(judge(&report(3), 3, Some(9)), Verdict::Complete);
        assert_eq!(judge(&report(0), 0, None), Verdict::Complete);
    }

    #[test]
    fn one_unreadable_file_makes_the_run_partial() {
        let ledger = Ledger::default();
        ledger.listed();
        ledger.error("/a", Fault::Open, "permission denied");
        let report = ledger.report();
        assert_eq!((report.errors, report.entries.len()), (1, 1));
        assert!(matches!(judge(&report, 1, None), Verdict::Partial { .. }));
    }

    #[test]
    fn file_lost_without_a_trace_makes_the_run_partial() {
        assert!(matches!(
            judge(&report(20_008), 4, None),
            Verdict::Partial { .. }
        ));
    }

    #[test]
    fn source_that_is_suddenly_empty_is_partial() {
        assert!(matches!(
            judge(&report(0), 0, Some(300)),
            Verdict::Partial { .. }
        ));
    }

    #[test]
    fn report_keeps_counting_beyond_its_list() {
        let ledger = Ledger::default();
        for n in 0..250 {
            ledger.error(&format!("/{n}"), Fault::Read, "x");
        }
        let report = ledger.report();
        assert_eq!((report.errors, report.entries.len()), (250, 100));
    }
}
