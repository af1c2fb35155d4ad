//! Telling a story step by step: command, progress, seconds, evidence.
//!
//! A step that fails ends the story: the steps after it stand on it. Whatever
//! happens, the table is shown and the report is written.

use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use edge::runner::Tool;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

/// Names of the steps of the demo's story, in order.
pub const STEPS: [&str; 11] = [
    "sky",
    "release",
    "birth",
    "service",
    "backup",
    "update",
    "component",
    "bad-release",
    "power-cut",
    "death",
    "dead-wake",
];

/// What one step came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Name of the step.
    pub name: String,
    /// Whether the step did what it claims.
    pub ok: bool,
    /// Seconds that the step took.
    pub seconds: f64,
    /// What was seen, a line each. The last line of a failed step is the failure.
    pub evidence: Vec<String>,
    /// Named durations inside the step, in seconds, for the benchmarks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<(String, f64)>,
}

/// What a whole story came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The steps that ran, in order.
    pub steps: Vec<StepReport>,
    /// Whether every step of the story ran and did what it claims.
    pub ok: bool,
}

/// The teller of a story.
#[derive(Debug)]
pub struct Story {
    planned: Vec<String>,
    report: Report,
    output: Output,
}

/// Where a story is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// On a terminal: colours and live progress.
    Terminal,
    /// Into a file or pipe: plain lines.
    Plain,
    /// Not at all: only the report counts.
    Silent,
}

impl Output {
    /// Chooses by what standard output is.
    #[must_use]
    pub fn detect() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Terminal
        } else {
            Self::Plain
        }
    }

    fn line(self, text: &str) {
        if self != Self::Silent {
            edge::out::line(text);
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Terminal => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain | Self::Silent => text.to_owned(),
        }
    }
}

/// One step while it runs: what the story's code talks to.
#[derive(Debug)]
pub struct Step {
    evidence: Vec<String>,
    timings: Vec<(String, f64)>,
    bar: Option<ProgressBar>,
    output: Output,
    begun: Instant,
}

impl Story {
    /// Begins a story of these steps.
    #[must_use]
    pub fn new<S: AsRef<str>>(steps: &[S], output: Output) -> Self {
        let planned = steps.iter().map(|name| name.as_ref().to_owned()).collect();
        Self {
            planned,
            report: Report::default(),
            output,
        }
    }

    /// Says something between the steps.
    pub fn say(&self, text: &str) {
        self.output.line(text);
    }

    /// Runs one step and reports it.
    ///
    /// # Errors
    /// What the step's own code returned. The step stands in the report then too.
    pub async fn step<T>(
        &mut self,
        name: &str,
        title: &str,
        run: impl AsyncFnOnce(&mut Step) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let number = self.report.steps.len() + 1;
        let heading = format!("{number}. {title}");
        self.output.line("");
        self.output.line(&self.output.paint("1", &heading));
        let mut step = Step {
            evidence: Vec::new(),
            timings: Vec::new(),
            bar: None,
            output: self.output,
            begun: Instant::now(),
        };
        let result = run(&mut step).await;
        step.rest();
        let seconds = step.begun.elapsed().as_secs_f64();
        if let Err(error) = &result {
            step.evidence.push(format!("failed: {error:#}"));
        }
        let (mark, colour) = match &result {
            Ok(_) => ("done", "32"),
            Err(_) => ("FAILED", "31"),
        };
        let end = format!("   {} in {seconds:.1} s", self.output.paint(colour, mark));
        self.output.line(&end);
        self.report.steps.push(StepReport {
            name: name.to_owned(),
            ok: result.is_ok(),
            seconds,
            evidence: step.evidence,
            timings: step.timings,
        });
        result
    }

    /// Ends the story: shows the table, writes the report to `path` and returns it.
    ///
    /// The report is not ok unless every planned step ran and is ok.
    ///
    /// # Errors
    /// The report cannot be written.
    pub fn end(mut self, path: &Path) -> anyhow::Result<Report> {
        self.report.ok = complete(&self.planned, &self.report.steps);
        self.output.line("");
        self.output.line(&table(&self.report));
        let mut json = serde_json::to_string_pretty(&self.report).context("write the report")?;
        json.push('\n');
        std::fs::write(path, json)
            .with_context(|| format!("write the report {}", path.display()))?;
        Ok(self.report)
    }
}

impl Step {
    /// Shows a command as an operator would type it.
    pub fn command<S: AsRef<OsStr>>(
        &mut self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) {
        let line = Tool::new(program).args(arguments).line();
        self.above(&format!("   {} {line}", self.output.paint("36", "$")));
    }

    /// Shows a line that is worth seeing, but proves nothing.
    pub fn note(&mut self, text: &str) {
        self.above(&format!("   {}", self.output.paint("2", text)));
    }

    /// Shows and keeps a line of evidence. Several lines become one.
    pub fn evidence(&mut self, text: impl Into<String>) {
        let text = text.into();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let text = lines.join(" ");
        self.above(&format!("   {} {text}", self.output.paint("32", "✓")));
        self.evidence.push(text);
    }

    /// Keeps a named duration for the benchmarks.
    pub fn timing(&mut self, name: &str, took: Duration) {
        self.timings.push((name.to_owned(), took.as_secs_f64()));
    }

    /// Seconds since the step began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Shows that something is being waited for, with the seconds running, until
    /// the next call of `waiting`, `progress` or `rest`.
    pub fn waiting(&mut self, what: &str) {
        self.rest();
        match self.output {
            Output::Terminal => {
                let bar = ProgressBar::new_spinner().with_style(spinner_style());
                bar.set_message(what.to_owned());
                bar.enable_steady_tick(Duration::from_millis(120));
                self.bar = Some(bar);
            }
            Output::Plain => self.output.line(&format!("   … {what}")),
            Output::Silent => {}
        }
    }

    /// Replaces the words of what is being waited for.
    pub fn update(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// Shows a bar of bytes. The caller moves it; on anything but a terminal it is hidden.
    pub fn progress(&mut self, what: &str, bytes: u64) -> ProgressBar {
        self.rest();
        let bar = match self.output {
            Output::Terminal => ProgressBar::new(bytes).with_style(bar_style()),
            Output::Plain | Output::Silent => ProgressBar::hidden(),
        };
        bar.set_message(what.to_owned());
        self.bar = Some(bar.clone());
        bar
    }

    /// Takes the spinner or bar away.
    pub fn rest(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn above(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.line(text)),
            None => self.output.line(text),
        }
    }
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("   {spinner} {msg} {elapsed:.dim}")
        .expect("the template is fixed")
}

fn bar_style() -> ProgressStyle {
    let template = "   {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    ProgressStyle::with_template(template).expect("the template is fixed")
}

fn complete(planned: &[String], ran: &[StepReport]) -> bool {
    planned.len() == ran.len()
        && planned
            .iter()
            .zip(ran)
            .all(|(name, step)| step.ok && step.name == *name)
}

/// Lays a report out as a table: step, result, seconds, evidence.
#[must_use]
pub fn table(report: &Report) -> String {
    let width = report.steps.iter().map(|step| step.name.len()).max();
    let width = width.unwrap_or(0).max("step".len());
    let mut lines = vec![format!(
        "{:width$}  {:6}  {:>8}  evidence",
        "step", "result", "seconds"
    )];
    for step in &report.steps {
        let result = if step.ok { "ok" } else { "FAILED" };
        let mut evidence = step.evidence.iter();
        // A failure stands last: it is what a reader of the table looks for.
        let first = if step.ok {
            evidence.next()
        } else {
            step.evidence.last()
        };
        lines.push(format!(
            "{:width$}  {result:6}  {:>8.1}  {}",
            step.name,
            step.seconds,
            first.map_or("", String::as_str)
        ));
        if step.ok {
            for more in evidence {
                lines.push(format!("{:width$}  {:6}  {:>8}  {more}", "", "", ""));
            }
        }
    }
    let total: f64 = report.steps.iter().map(|step| step.seconds).sum();
    let result = if report.ok { "ok" } else { "FAILED" };
    lines.push(format!("{:width$}  {result:6}  {total:>8.1}", "all"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tell(fail: bool) -> (anyhow::Result<()>, Report, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let mut story = Story::new(&["sky", "release"], Output::Silent);
        story
            .step("sky", "The sky starts", async |step: &mut Step| {
                step.command("leap-fleet", ["run"]);
                step.evidence("answers on 443");
                Ok(())
            })
            .await
            .unwrap();
        let result = story
            .step("release", "A release is built", async |step: &mut Step| {
                step.waiting("leap-image build");
                anyhow::ensure!(!fail, "leap-image build: exit code 1");
                Ok(())
            })
            .await;
        let report = story.end(&path).unwrap();
        (result, report, std::fs::read_to_string(&path).unwrap())
    }

    #[tokio::test]
    async fn a_story_whose_steps_all_succeed_is_ok() {
        let (result, report, json) = tell(false).await;
        result.unwrap();
        assert!(report.ok);
        let read: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(read, report);
        assert_eq!(read.steps[0].evidence, ["answers on 443"]);
    }

    #[tokio::test]
    async fn a_failed_step_is_reported_with_its_reason_and_spoils_the_story() {
        let (result, report, json) = tell(true).await;
        assert!(result.is_err());
        assert!(!report.ok);
        assert!(json.contains("failed: leap-image build: exit code 1"));
        assert!(table(&report).contains("FAILED"));
    }

    #[test]
    fn a_story_that_stopped_early_is_not_ok() {
        let step = StepReport {
            name: "sky".to_owned(),
            ok: true,
            seconds: 1.0,
            evidence: Vec::new(),
            timings: Vec::new(),
        };
        let planned = ["sky".to_owned(), "release".to_owned()];
        assert!(!complete(&planned, std::slice::from_ref(&step)));
        assert!(complete(&planned[..1], &[step]));
    }
}
