//! The edge of a program: what every binary of the workspace does in the same way.
//!
//! Exit codes and the printing of errors, logs, the one writer to standard
//! output, running tools, durable files, configuration files, progress, metrics, the
//! clock and the signals to stop. Nothing here knows what LeapServ is about,
//! and nothing here decides.

pub mod exit;

pub mod log;

pub mod out;

pub mod clock;

pub mod runner;

pub mod durable;

pub mod toml_file;

pub mod progress;

pub mod metrics;

pub mod shutdown;
