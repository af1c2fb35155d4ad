//! The operator at the keyboard: runs `leapctl`, and shows what is typed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::runner::Tool;
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
    pub(crate) fn new(programs: &Path, sky: &str, keys: &Path, ca: &Path, token: &Path) -> Self {
        let text = |path: &Path| path.display().to_string();
        let environment = [
            ("LEAPCTL_SKY", sky.to_owned()),
            ("LEAPCTL_KEYS", text(keys)),
            ("LEAPCTL_CA", text(ca)),
            ("LEAPCTL_TOKEN_FILE", text(token)),
        ];
        Self {
            program: programs.join("leapctl"),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        }
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

    /// Runs a command without showing it, and returns its answer.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let text = self.tool(&all).text_async().await?;
        serde_json::from_str(&text)
            .with_context(|| format!("leapctl {}: expected JSON: {text}", arguments.join(" ")))
    }
}
