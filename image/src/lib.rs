//! `leap-image`: from a recipe to a signed release, and from a release and a
//! customer's layer to a bootable disk image.
//!
//! The flow is facts, plan, steps, release: a [`recipe`] says what is wanted,
//! apt's answer becomes the [`lock`], the [`plan`] names the steps with the
//! keys of their inputs, the [`steps`] turn each into a folder of the
//! [`cache`], and the [`build`] puts these together as a [`release`] folder.
//! Steps that do not need each other run at the same time, and a step whose
//! key is in the cache is not run.
//!
//! What it deliberately does not do: it names no package mirror (the build
//! host's apt knows its own), needs no root, mounts nothing, runs no loop
//! device, and puts no secret into any image. It writes disk images through
//! the crate `slots` alone.

pub mod recipe;

pub mod sources;

pub mod control;

pub mod changelog;

pub mod lock;

pub mod plan;

pub mod schedule;

pub mod draft;

pub mod cache;

pub mod pattern;

pub mod tree;

pub mod cpio;

pub mod elf;

pub mod tools;

pub mod uki;

pub mod segment;

pub mod signing;

pub mod block;

pub mod erofs;

pub mod partition;

pub mod verity;

pub mod contents;

pub mod system;

pub mod diff;

pub mod owners;

pub mod sizes;

pub mod compare;

pub mod signatures;

pub mod inspect;

pub mod which;

pub mod sbom;

pub mod documents;

pub mod steps;

pub mod release;

pub mod room;

pub mod build;

pub mod revision;

pub mod disk;

pub mod report;

pub mod boot;

pub mod cli;
