//! DHCPv6 (RFC 8415) for machines that boot by UEFI HTTP boot over IPv6 (RFC 5970), and
//! the router advertisement without which they do not ask.
//!
//! [`packet`] is the wire, [`duid`] is who asks, [`policy`] turns one message into one
//! answer, [`server`] owns the sockets, [`advertisement`] is the router's word, and
//! [`probe()`] asks whether another server answers on a network.
//!
//! There are no leases: an address follows from who asks, so that a restart forgets
//! nothing and a flood uses nothing up (RFC 7943).

pub mod advertisement;
pub mod duid;
pub mod packet;
pub mod policy;
mod probe;
pub mod server;

pub use policy::Config;
pub use probe::probe;
