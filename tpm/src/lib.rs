//! Keys that live in a machine's TPM 2.0 and nowhere else.
//!
//! [`Tpm`] talks to the chip: it makes the device key, signs with it, keeps a
//! secret that only this chip gives back, and proves that the key is in the
//! chip of a certain endorsement key. [`credential`] is the other side of that
//! proof, in software. "Library" below is the TPM 2.0 Library Specification of
//! the Trusted Computing Group.

mod channel;
mod chip;
pub mod credential;
#[cfg(feature = "emulator")]
pub mod emulator;
mod keyfile;
mod public;
mod template;

pub use chip::{Endorsement, Tpm};
pub use credential::Credential;
pub use keyfile::{Blob, Kind, LABEL};
pub use public::Public;

/// Why the TPM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// There is no such device, or it is somebody else's.
    #[error("TPM {path}")]
    Open {
        /// The device.
        path: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The device does not answer.
    #[error("TPM: {command}")]
    Io {
        /// What was asked.
        command: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The TPM says no.
    #[error("TPM: {command}: refused with {code}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// The response code (Library part 2, 6.6).
        code: String,
    },
    /// What it said or what was read is not of the expected form.
    #[error("TPM: {what}: {problem}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl TpmError {
    fn malformed(what: &'static str, problem: impl ToString) -> Self {
        Self::Malformed {
            what,
            problem: problem.to_string(),
        }
    }
}
