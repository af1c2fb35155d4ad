//! Logs: for people on a terminal, JSON under a service manager, always on standard error.

use std::io::{self, IsTerminal as _, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging. `verbosity` counts the `-v` flags; `RUST_LOG` wins over it.
pub fn init(verbosity: u8) {
    let default = match verbosity {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    start(default);
}

/// Starts logging for a command line tool: only warnings, unless asked for more.
pub fn init_quiet(verbosity: u8) {
    let default = match verbosity {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    start(default);
}

fn start(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    // The service manager sets JOURNAL_STREAM for what it connects to its journal.
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder
            .with_writer(Journal)
            .json()
            .flatten_event(true)
            .try_init()
    } else {
        builder
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .try_init()
    };
    // A second call, as from tests, changes nothing.
    drop(started);
}

/// Standard error as the journal reads it: what begins with a priority in angle brackets
/// is found by that priority (sd-daemon(3)).
struct Journal;

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Prioritised<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Prioritised::new(Level::INFO, io::stderr())
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        Prioritised::new(*event.level(), io::stderr())
    }
}

/// Writes one event, with its priority before it.
struct Prioritised<W> {
    line: Vec<u8>,
    to: W,
}

impl<W> Prioritised<W> {
    fn new(level: Level, to: W) -> Self {
        let priority: &[u8] = match level {
            Level::ERROR => b"<3>",
            Level::WARN => b"<4>",
            Level::INFO => b"<6>",
            _ => b"<7>",
        };
        let line = priority.to_vec();
        Self { line, to }
    }
}

impl<W: Write> Write for Prioritised<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        // One write for each line: other processes write to the same stream.
        if self.line.ends_with(b"\n") {
            self.to.write_all(&self.line)?;
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_with_the_journals_priority() {
        let mut out = Vec::new();
        let mut writer = Prioritised::new(Level::ERROR, &mut out);
        writer.write_all(b"{\"message\":").unwrap();
        writer.write_all(b"\"no disk\"}\n").unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "<3>{\"message\":\"no disk\"}\n"
        );
    }
}
