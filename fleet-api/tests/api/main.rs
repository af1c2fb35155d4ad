//! The sky over loopback: a real database, real TLS, real certificates.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod attend;
mod birth;
mod channel;
mod command_line;
mod durability;
mod fence;
mod life;
mod pass;
mod release;
mod sky;
mod stream;
mod tpm;
