//! The engine against what we did not write: Debian's own `sshd` and `restic`.
//!
//! Both must be installed (packages `openssh-server` and `restic`); a test
//! fails without them.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy.toml's exception does not reach"
)]

mod faults;
mod lab;
mod life;
mod vault;
