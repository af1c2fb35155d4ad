//! The backup engine of a unit (`leap-backup`) and the offsite server (`leap-vault`).
//!
//! A run pulls a source over SFTP into the local repository (restic's format,
//! by `rustic_core`), and copies that repository, encrypted as it is, to
//! vaults:
//!
//! ```text
//! source --ledger--> gate --> local repository --replicate--> vault, vault …
//! ```
//!
//! The library drops what it cannot read and says that all is well. So every
//! source keeps a [`ledger`], and the [`gate`] holds the snapshot back until
//! the ledger is judged: a run that misses anything is kept as `partial` and
//! counts neither for retention nor for health.
//!
//! It deliberately has no chunker, cipher, pack format or SSH protocol of its
//! own, and no catalogue of files: the repository is the catalogue. Any copy
//! opens with stock `restic` and the escrowed password.

pub mod ledger;

pub mod gate;

pub mod local;

pub mod source;

pub mod repository;

pub mod restore;

pub mod retention;

pub mod rest;

pub mod rate;

pub mod replicate;

pub mod overlay;

pub mod site;

pub mod secrets;

pub mod state;

pub mod schedule;

pub mod report;

pub mod engine;

pub mod serve;

pub mod cli;

pub mod vault;
