//! DHCPv4: the server of a network, and proxyDHCP beside another server.
//!
//! [`packet`] and [`options`] are the wire, [`lease`] is who has which address,
//! [`policy`] turns one message into one answer, [`server`] owns the sockets,
//! and [`probe()`] asks whether another server answers on a network.

mod arp;
pub mod lease;
pub mod options;
pub mod packet;
pub mod policy;
mod probe;
pub mod server;

pub use lease::{FileStore, LeaseRecord, LeaseState, LeaseStore, NoStore};
pub use policy::{Config, ConfigError, ConflictCheck, LocalDiskReply, Mode, Place, Subnet};
pub use probe::{PROBE_TIMEOUT, ProbeError, probe};
