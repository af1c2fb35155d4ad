//! A unit's secrets. They are made on the unit and leave it only sealed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a unit must know to get at its backups, in the clear.
///
/// Stands in `/var/lib/leapserv/secrets/backup.json` (mode 0600) on the unit,
/// and sealed with `age` to the recovery recipients in the escrow.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitSecrets {
    /// Rises with every change, so that an older escrow never replaces a newer one.
    pub version: u64,
    /// The password that opens the repository with stock `restic`.
    pub repository_password: String,
    /// The repository's master key as the engine's JSON, to open it without key derivation.
    pub repository_key: String,
    /// The unit's own SSH key (OpenSSH private key format), with which it logs in at its sources.
    pub ssh_key: String,
}

impl fmt::Debug for UnitSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitSecrets")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Secrets as ciphertext: an ASCII-armored `age` file of [`UnitSecrets`] as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSecrets {
    /// [`UnitSecrets::version`] of what is sealed.
    pub version: u64,
    /// The armored `age` file.
    pub age: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_logs() {
        let secrets = UnitSecrets {
            version: 1,
            repository_password: "hurricane".into(),
            repository_key: "hurricane".into(),
            ssh_key: "hurricane".into(),
        };
        assert!(!format!("{secrets:?}").contains("hurricane"));
    }
}
