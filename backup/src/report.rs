//! What the commands print for machines (`--json`).

use jiff::Timestamp;
use model::backup::CopyState;
use serde::{Deserialize, Serialize};

use crate::ledger;
use crate::restore;

/// `leap-backup init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Whether secrets were made now.
    pub secrets_made: bool,
    /// Version of the secrets.
    pub secrets_version: u64,
    /// Whether the repository was made now.
    pub repository_made: bool,
    /// The unit's public SSH key, a line for `authorized_keys` at its sources.
    pub ssh_public_key: String,
}

/// `leap-backup run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// All sources are complete and enough destinations hold everything.
    pub ok: bool,
    /// One for each source.
    pub sources: Vec<SourceRun>,
    /// Snapshots that the retention let go.
    pub forgotten: usize,
    /// One for each destination.
    pub copies: Vec<CopyState>,
    /// How many destinations hold everything now.
    pub copies_complete: usize,
    /// How many must.
    pub copies_required: u32,
    /// Seconds that the run took.
    pub seconds: f64,
}

/// One source's part of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceRun {
    /// The source's name.
    pub source: String,
    /// The snapshot, when there is one.
    pub snapshot: Option<String>,
    /// When the run began.
    pub time: Timestamp,
    /// Files and links in the snapshot.
    pub files: u64,
    /// Bytes in the snapshot.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub added: u64,
    /// Something is missing.
    pub partial: bool,
    /// What, in one line.
    pub reason: Option<String>,
    /// Everything that is missing.
    pub ledger: ledger::Report,
    /// Why there is no snapshot at all.
    pub error: Option<String>,
    /// Seconds that the source took.
    pub seconds: f64,
}

/// `leap-backup replicate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicate {
    /// Enough destinations hold everything.
    pub ok: bool,
    /// One for each destination.
    pub copies: Vec<CopyState>,
    /// How many destinations hold everything now.
    pub copies_complete: usize,
    /// How many must.
    pub copies_required: u32,
}

/// `leap-backup restore`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restore {
    /// The snapshot.
    pub snapshot: String,
    /// Its source.
    pub source: String,
    /// `local` or the destination that it was read from.
    pub from: String,
    /// The path in the snapshot.
    pub path: String,
    /// Where the files went.
    pub to: String,
    /// What was written.
    #[serde(flatten)]
    pub written: restore::Report,
    /// Seconds that it took.
    pub seconds: f64,
}

/// `leap-backup attach`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// The destination that the repository came from; none when it was here already.
    pub from: Option<String>,
    /// Snapshots in the repository.
    pub snapshots: usize,
    /// Files fetched.
    pub files: u64,
    /// Whether the packs are here too. If not, the daemon fetches them.
    pub complete: bool,
    /// Seconds that it took.
    pub seconds: f64,
}

/// `leap-backup canary`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// The canary was restored and has the digest that it should have.
    pub ok: bool,
    /// `local` or the destination that it was read from.
    pub from: String,
    /// The snapshot that holds it.
    pub snapshot: String,
    /// When it was proven.
    pub proven: Timestamp,
}
