//! The command lines.

pub mod backup;

pub mod vault;
