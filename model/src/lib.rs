//! What two components of LeapServ must agree on.
//!
//! Identifiers, machine facts, the configuration document, the release
//! manifest, birth tickets, the bodies of the HTTP calls, and the signed
//! envelope with the one verifier of the workspace.
//!
//! This crate does no I/O, knows no clock, no environment and no randomness:
//! whoever needs the time or a key passes it in. Every value that comes from
//! outside is parsed once into a type that cannot hold a bad value.
//!
//! Reading order: identifiers, then who is trusted with what, then the
//! documents that are signed, then the calls that carry them.

pub mod id;

pub mod trust;

pub mod machine;

pub mod release;

pub mod configuration;

pub mod ticket;

pub mod pass;

pub mod command;

pub mod secrets;

pub mod backup;

pub mod api;

pub use id::{
    Architecture, CustomerName, DeviceIdentity, Digest, HexBytes, Incarnation, MacAddr,
    ReleaseVersion, UnitName,
};
pub use trust::{Document, Role, Signed, Signer, TrustError, TrustRoot, Verified};
