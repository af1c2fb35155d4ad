//! The one writer to standard output.

use std::fmt;
use std::io::{self, Write as _};

use serde::Serialize;

/// Writes one line. A reader that has gone away is no error of ours.
pub fn line(text: impl fmt::Display) {
    write(format_args!("{text}\n"));
}

/// Writes a value as JSON, for machines.
pub fn json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("our answers are plain JSON values");
    line(text);
}

fn write(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let written = out.write_fmt(text).and_then(|()| out.flush());
    if let Err(problem) = written {
        tracing::debug!(%problem, "standard output is closed");
    }
}
