//! The operator at the keyboard: runs `leapctl`, and shows what is typed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::runner::Tool;
use model::api::UnitView;
use serde_json::Value;

use crate::lab::story::Step;

/// The operator's `leapctl` with its settings in the environment.
#[derive(Debug, Clone)]
pub(crate) struct Operator {
    program: PathBuf,
    environment: BTreeMap<String, String>,
}

impl Operator {
    /// An operator whose keys lie in `keys`.
    ///
    /// # Errors
    /// The folder that we run in has no name.
    pub(crate) fn new(
        programs: &Path,
        sky: &str,
        keys: &Path,
        ca: &Path,
        token: &Path,
    ) -> anyhow::Result<Self> {
        // The same paths serve in a shell that stands elsewhere.
        let absolute = |path: &Path| {
            let path = std::path::absolute(path).context("name the operator's files")?;
            anyhow::Ok(path.display().to_string())
        };
        let environment = [
            ("LEAPCTL_SKY", sky.to_owned()),
            ("LEAPCTL_KEYS", absolute(keys)?),
            ("LEAPCTL_CA", absolute(ca)?),
            ("LEAPCTL_TOKEN_FILE", absolute(token)?),
        ];
        Ok(Self {
            program: programs.join("leapctl"),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        })
    }

    /// The environment that makes `leapctl` work in a shell of the laboratory.
    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// The command, not yet run.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Tool {
        self.environment.iter().fold(
            Tool::new(&self.program).args(arguments),
            |tool, (name, value)| tool.env(name, value),
        )
    }

    /// Shows a command, runs it, and returns its answer.
    pub(crate) async fn run(&self, step: &mut Step, arguments: &[&str]) -> anyhow::Result<Value> {
        step.command("leapctl", arguments);
        step.waiting(&format!("leapctl {} {}", arguments[0], arguments[1]));
        let answer = self.ask(arguments).await;
        step.rest();
        answer
    }

    /// Waits for conditions of a unit, and returns the unit.
    pub(crate) async fn wait_for(
        &self,
        step: &mut Step,
        unit: &str,
        conditions: &[&str],
        seconds: u32,
    ) -> anyhow::Result<UnitView> {
        let timeout = seconds.to_string();
        let mut arguments = vec!["unit", "show", unit];
        for condition in conditions {
            arguments.extend(["--wait", condition]);
        }
        arguments.extend(["--timeout", &timeout]);
        let answer = self.run(step, &arguments).await?;
        serde_json::from_value(answer).context("unit show: expected a unit")
    }

    /// Runs a command without showing it, and returns its answer.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let text = self.tool(&all).text_async().await?;
        serde_json::from_str(&text)
            .with_context(|| format!("leapctl {}: expected JSON: {text}", arguments.join(" ")))
    }
}
