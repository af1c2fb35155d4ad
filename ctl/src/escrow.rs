//! Opening and sealing a unit's secrets, on the operator's machine only.

use std::str::FromStr as _;

use model::secrets::{SealedSecrets, UnitSecrets};
use zeroize::Zeroizing;

/// Why secrets could not be opened or sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EscrowError {
    /// Sealed to other keys, or altered.
    #[error("escrow version {version}: the recovery identity does not open it")]
    Closed {
        version: u64,
        #[source]
        source: age::DecryptError,
    },
    /// Opened, and not what it should be.
    #[error("escrow version {version}: opened, but not a unit's secrets")]
    Malformed { version: u64 },
    /// Opened, and the version inside is another than the sky says.
    #[error("escrow: the sky says version {said}, the sealed secrets are version {found}")]
    Version { said: u64, found: u64 },
    /// The newcomer's recipient is no age recipient.
    #[error("recipient {0:?}: expected age1…")]
    Recipient(String),
    /// The cipher failed.
    #[error("seal secrets")]
    Seal(#[source] age::EncryptError),
}

/// Opens sealed secrets.
pub(crate) fn open(
    sealed: &SealedSecrets,
    identity: &age::x25519::Identity,
) -> Result<UnitSecrets, EscrowError> {
    let version = sealed.version;
    let plain = age::decrypt(identity, sealed.age.as_bytes())
        .map_err(|source| EscrowError::Closed { version, source })?;
    let plain = Zeroizing::new(plain);
    // The parser's own message could quote a secret: it is dropped.
    let secrets: UnitSecrets =
        serde_json::from_slice(&plain).map_err(|_| EscrowError::Malformed { version })?;
    if secrets.version != version {
        return Err(EscrowError::Version {
            said: version,
            found: secrets.version,
        });
    }
    Ok(secrets)
}

/// Seals secrets to one recipient.
pub(crate) fn seal(secrets: &UnitSecrets, recipient: &str) -> Result<SealedSecrets, EscrowError> {
    let to = age::x25519::Recipient::from_str(recipient)
        .map_err(|_| EscrowError::Recipient(recipient.to_owned()))?;
    let plain = serde_json::to_vec(secrets).expect("secrets are plain JSON values");
    let plain = Zeroizing::new(plain);
    let age = age::encrypt_and_armor(&to, &plain).map_err(EscrowError::Seal)?;
    Ok(SealedSecrets {
        version: secrets.version,
        age,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> UnitSecrets {
        UnitSecrets {
            version: 3,
            repository_password: "hurricane".into(),
            repository_key: "{}".into(),
            ssh_key: "key".into(),
        }
    }

    #[test]
    fn secrets_pass_from_the_recovery_key_to_the_newcomer() {
        let recovery = age::x25519::Identity::generate();
        let newcomer = age::x25519::Identity::generate();
        let escrow = seal(&secrets(), &recovery.to_public().to_string()).unwrap();
        let opened = open(&escrow, &recovery).unwrap();
        let rewrapped = seal(&opened, &newcomer.to_public().to_string()).unwrap();
        assert!(open(&rewrapped, &newcomer).unwrap() == secrets());
        assert!(matches!(
            open(&rewrapped, &recovery),
            Err(EscrowError::Closed { .. })
        ));
        assert!(!rewrapped.age.contains("hurricane"));
    }

    #[test]
    fn an_older_escrow_under_a_newer_number_is_noticed() {
        let recovery = age::x25519::Identity::generate();
        let mut escrow = seal(&secrets(), &recovery.to_public().to_string()).unwrap();
        escrow.version = 4;
        assert!(matches!(
            open(&escrow, &recovery),
            Err(EscrowError::Version { said: 4, found: 3 })
        ));
    }
}
