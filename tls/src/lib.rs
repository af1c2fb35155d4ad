//! Mutual TLS for everything that speaks HTTPS here.
//!
//! A listener that tells each handler which device called, clients that trust
//! the fleet's own CA and nothing else, and that CA. The device's name stands
//! in its certificate as a URI ([`model::DeviceIdentity`]).
//!
//! This crate does not decide what a caller may do, knows no fences, and keeps
//! no files: PEM texts come in and go out.

use std::sync::Once;

pub mod ca;

pub mod client;

pub mod server;

/// Makes `ring` the process's provider of cryptography. May be called again.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that one is installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}
