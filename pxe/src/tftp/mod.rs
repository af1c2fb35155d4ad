//! TFTP, read-only: RFC 1350 with options (2347), block size (2348), timeout and
//! transfer size (2349) and windows (7440).
//!
//! [`packet`] is the wire, [`transfer`] one transfer without socket and clock,
//! [`server`] the sockets.

pub mod packet;
pub mod server;
pub mod transfer;

mod wire;

pub use server::{Limits, run};
