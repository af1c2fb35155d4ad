//! Network boot: DHCPv4, proxyDHCP and DHCPv6, TFTP and HTTP.
//!
//! A machine asks by DHCP what to boot and fetches it by TFTP or HTTP. This
//! library speaks the protocols; what a machine boots is decided by the program
//! that uses it, through one trait, [`boot::BootSource`], that all protocols ask.
//!
//! ```text
//! datagram ─> packet ─> core (no socket, clock or disk) ─> reply ─> datagram
//!                          │
//!                          └─ BootSource: decide, open, observe
//! ```
//!
//! The cores ([`dhcp::policy`], [`dhcp6::policy`], [`tftp::transfer`]) are driven by sockets here and
//! by simulations in the tests. The library knows no customers, opens no
//! database, holds no secret, writes nothing but the lease journal, and never
//! trusts what a client says of itself.

pub mod boot;
pub mod capture;
pub mod connections;
pub mod dhcp;
pub mod dhcp6;
pub mod http;
pub mod local_boot;
pub mod tftp;

mod content;
mod interface;
