//! Logs: for people on a terminal, JSON under a service manager, always on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

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
        .with_writer(std::io::stderr)
        .with_target(false);
    // The service manager sets JOURNAL_STREAM for what it connects to its journal.
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.json().flatten_event(true).try_init()
    } else {
        builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init()
    };
    // A second call, as from tests, changes nothing.
    drop(started);
}
