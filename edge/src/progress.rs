//! Progress on standard error: bars on a terminal, silence elsewhere.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Several lines of progress below each other, for things that run at the same time.
#[derive(Debug, Clone)]
pub struct Group(MultiProgress);

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

impl Group {
    /// A group without lines.
    pub fn new() -> Self {
        Self(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    }

    /// Adds something of unknown length.
    pub fn spinner(&self, label: &str) -> Bar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let bar = self.0.add(bar);
        Bar::styled(bar, label, "{spinner} {msg} {elapsed}")
    }

    /// Prints a line that stays, above the lines of progress.
    pub fn tell(&self, line: &str) {
        if self.0.is_hidden() || self.0.println(line).is_err() {
            // A closed standard error is no reason to stop.
            let _ =
                std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
        }
    }
}

/// One line of progress. Dropped, it is removed from the screen.
#[derive(Debug, Clone)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Bytes of a known total.
    pub fn bytes(label: &str, total: u64) -> Self {
        let style = "{msg:24} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
        Self::new(label, Some(total), style)
    }

    /// Countable things of a known total.
    pub fn steps(label: &str, total: u64) -> Self {
        Self::new(
            label,
            Some(total),
            "{msg:24} {bar:30} {pos:>5}/{len:5} {elapsed:>4}",
        )
    }

    /// Something of unknown length.
    pub fn spinner(label: &str) -> Self {
        Self::new(label, None, "{spinner} {msg} {elapsed}")
    }

    fn new(label: &str, total: Option<u64>, style: &str) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        Self::styled(bar, label, style)
    }

    fn styled(bar: ProgressBar, label: &str, style: &str) -> Self {
        bar.set_style(ProgressStyle::with_template(style).expect("our templates are valid"));
        bar.set_message(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// So much more is done.
    pub fn advance(&self, amount: u64) {
        self.0.inc(amount);
    }

    /// So much is done in all.
    pub fn set(&self, position: u64) {
        self.0.set_position(position);
    }

    /// So much there is in all.
    pub fn total(&self, total: u64) {
        self.0.set_length(total);
    }

    /// Another text.
    pub fn label(&self, label: impl Into<String>) {
        self.0.set_message(label.into());
    }

    /// Removes the line.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
