//! What the unit knows of itself, for people and for programs.

use anyhow::Result;
use model::api::{ConfigurationStatus, UpdateStatus};
use model::{DeviceIdentity, ReleaseVersion};
use serde::Serialize;

use crate::activate::active_revision;
use crate::generation::Store;
use crate::health::{GateLog, GateResult, Said};
use crate::site::{Site, read_json};
use crate::update::given_up_rows;

/// The state of the unit.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Who it is.
    pub identity: DeviceIdentity,
    /// The release that runs.
    pub release: ReleaseVersion,
    /// The revision whose components are active.
    pub revision: u32,
    /// The root hash that runs.
    pub root_hash: String,
    /// Boot entries by file name.
    pub entries: Vec<String>,
    /// Generations.
    pub configuration: ConfigurationStatus,
    /// The update.
    pub update: UpdateStatus,
    /// What the daemon says of this boot; `None` before it has said anything.
    pub daemon: Option<Said>,
    /// The last health gate.
    pub gate: Option<GateResult>,
    /// Why the machine is fenced, if it is.
    pub fenced: Option<String>,
}

impl Status {
    /// Gathers it.
    ///
    /// # Errors
    /// The unit has no identity, or a file of it cannot be read.
    pub fn gather(site: &Site) -> Result<Self> {
        let store = Store::open(site, &site.trust_root()?, edge::clock::now())?;
        let entries = site.esp().entries()?;
        let mut update: UpdateStatus = read_json(&site.run("update.json"))?.unwrap_or_default();
        update.rejected = given_up_rows(site);
        Ok(Self {
            identity: site.enrolment()?.identity,
            release: site.release()?,
            revision: active_revision(site)?,
            root_hash: site.root_hash()?.to_string(),
            entries: entries.iter().map(ToString::to_string).collect(),
            configuration: store.status(),
            update,
            daemon: read_json(&site.run("state.json"))?,
            gate: GateLog::read(site).last,
            fenced: std::fs::read_to_string(site.run("fenced")).ok(),
        })
    }

    /// Renders it for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("unit           {}", self.identity.unit),
            format!("incarnation    {}", self.identity.incarnation),
            format!("release        {}", titled(self.release, self.revision)),
            format!("boot entries   {}", self.entries.join(", ")),
            format!("configuration  generation {}", self.configuration.applied),
        ];
        if let Some(rejected) = &self.configuration.rejected {
            lines.push(format!(
                "               {} given up: {}",
                rejected.generation, rejected.reason
            ));
        }
        let state = match self.update.state.as_str() {
            "" => "unknown",
            state => state,
        };
        let target = self.update.target.map(|to| format!(", to {to}"));
        lines.push(format!(
            "update         {state}{}",
            target.unwrap_or_default()
        ));
        for rejected in &self.update.rejected {
            lines.push(format!(
                "               {} given up: {}",
                titled(rejected.release, rejected.revision),
                rejected.reason
            ));
        }
        let sky = match &self.daemon {
            None => "the daemon has not said anything yet".to_owned(),
            Some(said) => match (&said.checked_in, &said.sky_problem) {
                (_, Some(problem)) => problem.clone(),
                (Some(time), None) => format!("reached at {time}"),
                (None, None) => "not reached yet".to_owned(),
            },
        };
        lines.push(format!("sky            {sky}"));
        if let Some(gate) = &self.gate {
            let word = if gate.passed { "passed" } else { "failed" };
            lines.push(format!(
                "health gate    {word} for {} at {}",
                gate.release, gate.time
            ));
            for check in gate.checks.iter().filter(|check| !check.ok) {
                lines.push(format!("               {}: {}", check.name, check.message));
            }
        }
        if let Some(fenced) = &self.fenced {
            lines.push(format!("FENCED         {fenced}"));
        }
        lines
    }
}

fn titled(release: ReleaseVersion, revision: u32) -> String {
    match revision {
        0 => release.to_string(),
        revision => format!("{release} revision {revision}"),
    }
}
