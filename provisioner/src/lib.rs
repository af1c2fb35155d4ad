//! Birth: from a machine with an empty disk to a unit.
//!
//! Two programs that meet at the wire. [`factory`] is `leap-provisioner`, the
//! server of the bench: what a machine boots, the ledger of machines, a cache of
//! signed releases, and the installer's way to the sky. [`installer`] is
//! `leap-installer`, the first process of a bare machine:
//!
//! ```text
//! facts ─> announce ─> wait ─ ticket ─> permit ─> plan ─> write, verify ─> done ─> restart
//! ```
//!
//! Neither decides who may be born: an operator signs a ticket. The factory
//! keeps a machine that has its disk from the installer; the installer erases
//! nothing without a ticket that it has verified itself. No secret is on the
//! way between the two: the keys of a unit are made on its machine and stay there.

pub mod factory;

pub mod installer;

/// What an installer broadcasts to the factory's port, by UDP, where DHCP does
/// not lead to the factory. The answer is the factory's URL.
pub const WHO_IS_FACTORY: &[u8] = b"leapserv-factory?";
