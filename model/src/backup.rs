//! What the backup engine tells of itself: the catalogue's rows.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// State of a unit's backups, as `leap-backup status --json` prints it and the
/// check-in carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupStatus {
    /// Newest first, at most the newest 20 of each source.
    pub snapshots: Vec<SnapshotRow>,
    /// Each destination's state.
    pub copies: Vec<CopyState>,
    /// When the canary was last restored from the local repository and found good.
    pub canary_proven: Option<Timestamp>,
    /// The unit's public SSH key, to be allowed at its sources.
    pub ssh_public_key: Option<String>,
    /// Why the last run failed, if it did.
    pub problem: Option<String>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// Full id.
    pub id: String,
    /// The source's name.
    pub source: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Files in it.
    pub files: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub added: u64,
    /// Incomplete: never counts for retention or health.
    pub partial: bool,
    /// Where it lies: `local` and names of destinations.
    pub copies: Vec<String>,
}

/// State of one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyState {
    /// The destination's name.
    pub destination: String,
    /// When it last held everything that the local repository holds.
    pub complete: Option<Timestamp>,
    /// Files sent in the last run.
    pub files_sent: u64,
    /// Bytes sent in the last run.
    pub bytes_sent: u64,
    /// Why the last run failed, if it did.
    pub problem: Option<String>,
}
