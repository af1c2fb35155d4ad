//! What the engine remembers between runs, beside the repository itself.
//!
//! Losing it loses no backup: what is in it steers the schedule and tells the
//! operator what happened.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use edge::durable;
use jiff::Timestamp;
use model::backup::CopyState;
use serde::{Deserialize, Serialize};

use crate::site::Site;

/// Everything that is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Each source's last runs.
    pub sources: BTreeMap<String, SourceState>,
    /// Each destination's state.
    pub copies: BTreeMap<String, Copy>,
    /// Why the last run failed.
    pub problem: Option<String>,
    /// When data that nothing needs was last removed.
    pub pruned: Option<Timestamp>,
    /// The destination from which the local repository is still being filled.
    pub attaching: Option<String>,
    /// When the last replication was tried.
    pub replicated: Option<Timestamp>,
}

/// The last runs of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceState {
    /// When the last run began, however it ended.
    pub begun: Option<Timestamp>,
    /// When the last complete run began.
    pub complete: Option<Timestamp>,
}

/// What is known of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// As it is reported.
    pub state: CopyState,
    /// Snapshots that it holds.
    #[serde(default)]
    pub snapshots: BTreeSet<String>,
}

impl State {
    /// Reads the state; a missing or damaged file is an empty one.
    pub fn read(site: &Site) -> Self {
        let path = site.state().join("state.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "state is damaged; beginning anew");
                Self::default()
            }),
            Err(_) => Self::default(),
        }
    }

    /// Stores the state durably.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, site: &Site) -> anyhow::Result<()> {
        durable::write_json(
            &site.state().join("state.json"),
            self,
            durable::Mode::Public,
        )
        .context("remember state")
    }
}
