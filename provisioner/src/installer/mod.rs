//! `leap-installer`: what runs on the bare machine.

pub mod facts;

pub mod keys;

pub mod permit;

pub mod plan;

pub mod console;

pub mod link;

pub mod install;

pub mod birth;

pub mod network;

pub mod init;

pub mod cli;
