//! The steps of a build: each turns finished steps into a new folder.

pub mod packages;

pub mod unpack;

pub mod kernel;

pub mod initrd;

pub mod root;

pub mod verity;

pub mod uki;

pub mod extension;

pub mod hook;
