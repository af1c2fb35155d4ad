//! The unit's secrets: made once on the unit, never printed.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use edge::durable;
use model::secrets::UnitSecrets;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use zeroize::Zeroizing;

use crate::repository::Repository;

/// Reads the secrets; `None` when the unit has none yet.
///
/// # Errors
/// When the file is there and cannot be read. Its content is never in the message.
pub fn read(path: &Path) -> anyhow::Result<Option<UnitSecrets>> {
    let text = match std::fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    // The parser's own message could quote the file.
    serde_json::from_slice(&text)
        .ok()
        .with_context(|| format!("{}: expected the unit's secrets as JSON", path.display()))
        .map(Some)
}

/// Makes new secrets and stores them durably, readable by the owner alone.
///
/// # Errors
/// When the system has no randomness or the disk refuses.
pub fn make(path: &Path, unit: &str) -> anyhow::Result<UnitSecrets> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed)
        .ok()
        .context("ask for randomness")?;
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    let ssh = PrivateKey::new(pair, unit).context("make SSH key")?;
    let mut password = Zeroizing::new([0; 24]);
    getrandom::fill(&mut *password)
        .ok()
        .context("ask for randomness")?;
    let secrets = UnitSecrets {
        version: 1,
        repository_password: hex::encode(*password),
        repository_key: Repository::new_key(),
        ssh_key: ssh
            .to_openssh(LineEnding::LF)
            .context("write SSH key")?
            .to_string(),
    };
    durable::write_json(path, &secrets, durable::Mode::Secret)?;
    Ok(secrets)
}

/// The unit's SSH key.
///
/// # Errors
/// When the secrets hold something else.
pub fn ssh_key(secrets: &UnitSecrets) -> anyhow::Result<Arc<PrivateKey>> {
    PrivateKey::from_openssh(&secrets.ssh_key)
        .ok()
        .context("secrets: expected an SSH key in OpenSSH's format")
        .map(Arc::new)
}

/// The public half, as a line for `authorized_keys`.
///
/// # Errors
/// As for [`ssh_key`].
pub fn ssh_public_key(secrets: &UnitSecrets) -> anyhow::Result<String> {
    ssh_key(secrets)?
        .public_key()
        .to_openssh()
        .context("write public SSH key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_private_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets/backup.json");
        assert!(read(&path).unwrap().is_none());
        let made = make(&path, "motivatit/houma-1").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(read(&path).unwrap().unwrap() == made);
        let line = ssh_public_key(&made).unwrap();
        assert!(line.starts_with("ssh-ed25519 AAAA"), "{line}");
    }

    #[test]
    fn message_about_damaged_secrets_quotes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backup.json");
        std::fs::write(&path, b"{\"repository_password\":\"hurricane\", oops").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(!error.contains("hurricane"), "{error}");
    }
}
