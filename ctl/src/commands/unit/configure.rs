//! `leapctl unit configure`.

use std::path::PathBuf;

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure};
use model::configuration::{Configuration, Settings};
use model::{Role, UnitName};
use serde::Serialize;

use crate::client::Sky;
use crate::commands::{believe, seconds};
use crate::condition::Condition;
use crate::follow;
use crate::keys::KeyFolder;
use crate::operator::Operator;
use crate::settings;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME
    unit: UnitName,
    /// The settings as TOML
    file: PathBuf,
    /// Check the file and show what would change; sign and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until the unit has applied or rejected it
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

/// What became of it.
#[derive(Debug, Serialize)]
struct Outcome {
    unit: UnitName,
    generation: u64,
    /// `planned`, `unchanged`, `signed` or `applied`.
    state: &'static str,
    changes: Vec<String>,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let name = self.file.display().to_string();
        let text = std::fs::read_to_string(&self.file)
            .with_context(|| format!("read {name}"))
            .invalid_input()?;
        let settings = settings::parse(&text, &name)?;
        let (sky, keys) = (operator.sky()?, operator.keys()?);
        let unit = sky.unit(&self.unit).await?;
        let current = current(&sky, &keys, &self.unit).await?;
        let changes = match &current {
            Some(current) => settings::changes(&current.settings, &settings),
            None => vec!["first configuration".into()],
        };
        // A generation that was rejected may be sent again: the cause may be gone.
        let rejected = unit.last_check_in.as_ref().is_some_and(|last| {
            let rejected = last.configuration.rejected.as_ref();
            rejected.is_some_and(|r| r.generation == unit.configuration_generation)
        });
        let mut outcome = Outcome {
            unit: self.unit.clone(),
            generation: unit.configuration_generation + 1,
            state: "planned",
            changes,
        };
        if current.is_some() && outcome.changes.is_empty() && !rejected {
            outcome.generation = unit.configuration_generation;
            outcome.state = "unchanged";
        }
        if !self.dry_run && outcome.state != "unchanged" {
            let signer = keys.signer(Role::Configuration)?;
            let configuration = Configuration {
                unit: self.unit.clone(),
                generation: outcome.generation,
                settings,
            };
            sky.configure(&self.unit, &signer.sign(&configuration))
                .await?;
            outcome.state = "signed";
        }
        if self.wait {
            self.await_applied(&sky, outcome.generation).await?;
            outcome.state = "applied";
        }
        operator.show(&outcome, human);
        Ok(())
    }

    async fn await_applied(&self, sky: &Sky, generation: u64) -> Result<(), Failure> {
        let condition = Condition::Configuration(Some(generation));
        follow::until(
            &format!("{}: wait for {condition}", self.unit),
            seconds(self.timeout),
            async || sky.unit(&self.unit).await,
            |unit| condition.judge(unit),
        )
        .await?;
        Ok(())
    }
}

/// Returns the newest signed configuration, verified.
pub(crate) async fn current(
    sky: &Sky,
    keys: &KeyFolder,
    unit: &UnitName,
) -> Result<Option<Configuration>, Failure> {
    let signed = match sky.configuration(unit).await {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    believe(&keys.trust_root()?, &signed, "configuration").map(Some)
}

/// Writes settings as the TOML that an operator would write.
pub(crate) fn to_toml(settings: &Settings) -> anyhow::Result<String> {
    toml::to_string(settings).context("write settings as TOML")
}

fn human(outcome: &Outcome) -> String {
    let mut text = outcome.changes.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    let (unit, generation) = (&outcome.unit, outcome.generation);
    text.push_str(&match outcome.state {
        "planned" => format!("{unit}: would become generation {generation}"),
        "unchanged" => format!("{unit}: unchanged, generation {generation}"),
        state => format!("{unit}: generation {generation} {state}"),
    });
    text
}
