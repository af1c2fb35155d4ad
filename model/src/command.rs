//! Commands that an operator signs and a unit carries out once.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::UnitName;
use crate::trust::{Document, Role};

/// One command to one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitCommand {
    /// Random, 32 hexadecimal digits; a unit carries out each id once.
    pub id: String,
    /// The unit that it is for.
    pub unit: UnitName,
    /// What to do.
    pub action: Action,
    /// When it was signed.
    pub issued: Timestamp,
    /// After this it is not begun any more.
    pub expires: Timestamp,
}

impl Document for UnitCommand {
    const TYPE: &'static str = "application/vnd.leapserv.command+json";
    const ROLE: Role = Role::Configuration;

    fn expires(&self) -> Option<Timestamp> {
        Some(self.expires)
    }
}

/// What a unit can be told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Back up now: every source, or one.
    BackUp {
        /// Name of the one source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// Restore from a snapshot.
    Restore {
        /// The source whose snapshot it is.
        source: String,
        /// Snapshot id, or `latest`.
        snapshot: String,
        /// `local`, or the name of a destination.
        from: String,
        /// Path inside the source, relative, `.` for all of it.
        path: String,
        /// Where the files go.
        to: RestoreTarget,
    },
}

/// Where restored files go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "kebab-case")]
pub enum RestoreTarget {
    /// Back to the source, in place or under another absolute path there.
    Source {
        /// The other path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    /// A folder on the unit.
    Unit {
        /// Absolute path.
        path: String,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandReport {
    /// The command.
    pub id: String,
    /// Its end.
    pub outcome: CommandOutcome,
    /// One line for people.
    pub message: String,
    /// What the component printed as JSON, for machines.
    pub detail: serde_json::Value,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandOutcome {
    /// As asked.
    Done,
    /// Tried, and it did not work.
    Failed,
    /// Not tried: signature, unit, age or repetition.
    Refused,
}
