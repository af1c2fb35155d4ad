//! The operator's command line for all of LeapServ.
//!
//! Every step in a unit's life is a command here: customers and units are
//! created, configurations and birth tickets signed, releases published,
//! backups run and restored, dead hardware replaced.
//!
//! Private keys stay on the operator's machine: this program signs here and
//! sends signatures, and when hardware is replaced it opens the escrow here
//! and sends ciphertext for the newcomer. It believes the sky nothing that
//! a signature could prove: channels and configurations are verified with the
//! trust root in the key folder, and a machine's code is computed from its
//! keys again before anything is signed for it.
//!
//! It does not keep state of its own, touch a disk or speak to units: the sky
//! carries all. A command that was interrupted can be typed again.
//!
//! Flow of a command: resolve the operator's settings → ask the sky for the
//! facts → decide (pure: `birth`, `bench`, `replacement`,
//! `condition`, `settings`) → sign and send → show (`view`).

mod cli;

mod operator;

mod client;

mod stream;

mod keys;

mod settings;

mod birth;

mod rules;

mod bench;

mod replacement;

mod escrow;

mod condition;

mod release_folder;

mod follow;

mod view;

mod label;

mod commands;

#[cfg(test)]
mod golden;

pub use cli::{Cli, run};
