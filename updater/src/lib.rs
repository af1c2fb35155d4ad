//! `leap-updater`: the one daemon on a unit.
//!
//! It checks in with the sky, brings configurations into force and takes back
//! those that would cut the unit off, keeps the other slot at what the channel
//! offers, carries out signed commands, and judges at each start whether the
//! release is good on this machine.
//!
//! It trusts no transport: whatever comes from the sky counts only with the
//! signature of the role that may say so. It has no port open. It never
//! touches the slot that runs, and it does not know how backups are made: it
//! tells the backup engine what to do and reports what that says.
//!
//! Flow: [`activate`] once at the start; then [`daemon`], which verifies
//! ([`generation`], [`channel`], [`command`]), decides ([`slots::decide`]) and
//! carries out ([`settings`], [`update`], [`apply`], [`mirror`], [`replace`]); beside it [`health`],
//! the gate without which the boot loader goes back to the release before.

pub mod site;

pub mod config;

pub mod network;

pub mod settings;

pub mod extension;
pub mod generation;

pub mod channel;

pub mod update;

pub mod apply;

pub mod mirror;

pub mod revision;

pub mod replace;

pub mod command;

pub mod secrets;

pub mod keeper;

pub mod health;

pub mod activate;

pub mod sky;

pub mod daemon;

pub mod status;

pub mod plan;

pub mod cli;
