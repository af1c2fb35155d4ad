//! What a build tells while it runs: each step with its seconds.

use std::io::Write as _;
use std::time::Instant;

use edge::progress::Bar;
use serde::Serialize;

/// How a step came to its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It ran.
    Made,
    /// The cache had it.
    Cached,
}

/// A finished step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Done {
    /// Its name.
    pub step: String,
    /// How it came to its output.
    pub origin: Origin,
    /// How long it took.
    pub seconds: f64,
}

/// Tells a person on standard error, and keeps the list for `--json`.
#[derive(Debug, Default)]
pub struct Report {
    done: Vec<Done>,
}

impl Report {
    /// A report without steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// The finished steps in order.
    pub fn steps(&self) -> &[Done] {
        &self.done
    }

    /// Runs one step; `work` says whether it made its output or found it.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&Bar) -> anyhow::Result<(T, Origin)>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        let bar = Bar::spinner(name);
        let result = work(&bar);
        bar.finish();
        let (value, origin) = result?;
        let seconds = start.elapsed().as_secs_f64();
        let end = match origin {
            Origin::Made => format!("{seconds:6.1} s"),
            Origin::Cached => "  cached".to_owned(),
        };
        self.tell(&format!("  {name:22} {end}"));
        self.done.push(Done {
            step: name.to_owned(),
            origin,
            seconds,
        });
        Ok(value)
    }

    /// Prints a line for a person.
    pub fn tell(&self, line: &str) {
        // A closed standard error is no reason to stop a build.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
