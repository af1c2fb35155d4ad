//! What a build tells while it runs: each step with its seconds.

use std::sync::Mutex;
use std::time::Instant;

use edge::progress::{Bar, Group};
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

/// Tells a person on standard error, and keeps the list for `--json`. Steps may
/// run at the same time.
#[derive(Debug, Default)]
pub struct Report {
    bars: Group,
    done: Mutex<Vec<Done>>,
}

impl Report {
    /// A report without steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// The finished steps in the order in which they ended.
    pub fn steps(&self) -> Vec<Done> {
        self.list().clone()
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Done>> {
        self.done
            .lock()
            .expect("nothing panics while it holds the list")
    }

    /// Runs one step; `work` says whether it made its output or found it.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn step<T>(
        &self,
        name: &str,
        work: impl FnOnce(&Bar) -> anyhow::Result<(T, Origin)>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        let bar = self.bars.spinner(name);
        let result = work(&bar);
        bar.finish();
        let (value, origin) = result?;
        let seconds = start.elapsed().as_secs_f64();
        let end = match origin {
            Origin::Made => format!("{seconds:6.1} s"),
            Origin::Cached => "  cached".to_owned(),
        };
        self.bars.tell(&format!("  {name:22} {end}"));
        self.list().push(Done {
            step: name.to_owned(),
            origin,
            seconds,
        });
        Ok(value)
    }
}
