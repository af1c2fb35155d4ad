//! `leap-lab timings`: the seconds of the last demo.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edge::exit::{Classify as _, Failure};

use super::Options;
use crate::lab::story::Report;

/// Print the seconds of the last story told, step by step
#[derive(Debug, Args)]
pub(super) struct Timings {}

impl Timings {
    pub(super) fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let path = options.build_dir.join("report.json");
        let text = std::fs::read(&path)
            .with_context(|| format!("read {}", path.display()))
            .invalid_input()?;
        let report: Report = serde_json::from_slice(&text)
            .with_context(|| format!("{}: expected a report", path.display()))
            .invalid_input()?;
        edge::out::line(table(&report).trim_end());
        Ok(ExitCode::SUCCESS)
    }
}

fn table(report: &Report) -> String {
    let mut text = String::from("| what | seconds |\n|---|---|\n");
    for step in &report.steps {
        let _ = writeln!(text, "| **{}** | {:.1} |", step.name, step.seconds);
        for (name, seconds) in &step.timings {
            let _ = writeln!(text, "| {}: {name} | {seconds:.1} |", step.name);
        }
    }
    text
}
