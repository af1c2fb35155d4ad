//! `leap-provisioner`: network boot, the ledger of machines, the cache of
//! releases, and the installer's way to the sky.

pub mod birth;

pub mod ledger;

pub mod story;

pub mod config;

pub mod sky;

pub mod cache;

pub mod source;

pub mod metrics;

pub mod disks;

pub mod routes;

pub mod daemon;

pub mod cli;
