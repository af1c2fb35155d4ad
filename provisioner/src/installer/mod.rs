//! `leap-installer`: what runs on the bare machine.

pub mod facts;

pub mod keys;

pub mod health;

pub mod preflight;

pub mod memory;

pub mod permit;

pub mod plan;

pub mod console;

pub mod link;

pub mod install;

pub mod birth;

pub mod mirror;

pub mod network;

pub mod stick;

pub mod shelf;

pub mod keyboard;

pub mod visit;

pub mod boot_next;

pub mod init;

pub mod hotplug;

pub mod cli;
