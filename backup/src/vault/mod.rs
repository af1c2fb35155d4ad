//! The offsite server: restic's REST protocol, append-only.
//!
//! It trusts no unit. A device certificate opens one unit's place and no
//! other; what a unit has stored it can neither overwrite nor delete, and a
//! file is only taken when its content has the hash that is its name. The
//! vault holds no key and can read nothing.

pub mod config;

pub mod fences;

pub mod places;

pub mod routes;

pub mod server;
