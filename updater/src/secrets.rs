//! Secrets: sealed to the recovery recipients on their way out, opened with
//! the device's key on their way in. In the clear they stand in one file.

use std::fs;
use std::io::{Read as _, Write as _};
use std::iter;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::x25519::{Identity, Recipient};
use anyhow::{Context as _, Result, anyhow, ensure};
use edge::durable::{self, Mode};
use model::TrustRoot;
use model::secrets::{SealedSecrets, UnitSecrets};
use zeroize::Zeroizing;

use crate::site::Site;

/// Reads the unit's secrets; `None` when it has none yet.
///
/// # Errors
/// The file is there and cannot be read. Its content is never in the message.
pub fn read(site: &Site) -> Result<Option<UnitSecrets>> {
    let path = site.secrets();
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        bytes => Zeroizing::new(bytes.with_context(|| format!("read {}", path.display()))?),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|_| anyhow!("{}: expected the unit's secrets as JSON", path.display()))
}

/// Seals secrets to everyone who may recover them.
///
/// # Errors
/// The trust root names no recovery recipient, or a malformed one.
pub fn seal(secrets: &UnitSecrets, trust: &TrustRoot) -> Result<SealedSecrets> {
    let recipients: Vec<Recipient> = trust
        .recovery
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|problem| anyhow!("recovery recipient {text}: {problem}"))
        })
        .collect::<Result<_>>()?;
    ensure!(
        !recipients.is_empty(),
        "trust root: no recovery recipient, so nobody could open the escrow"
    );
    let plain = Zeroizing::new(serde_json::to_vec(secrets).context("encode secrets")?);
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|one| one as _))
        .context("seal secrets")?;
    let mut armored = Vec::new();
    let sealed = ArmoredWriter::wrap_output(&mut armored, Format::AsciiArmor)
        .and_then(|armor| encryptor.wrap_output(armor))
        .and_then(|mut writer| {
            writer.write_all(&plain)?;
            writer.finish()?.finish().map(drop)
        });
    sealed.context("seal secrets")?;
    Ok(SealedSecrets {
        version: secrets.version,
        age: String::from_utf8(armored).context("seal secrets")?,
    })
}

/// Opens secrets that were sealed to this device.
///
/// # Errors
/// They were sealed to another, or are malformed.
pub fn open(site: &Site, sealed: &SealedSecrets) -> Result<UnitSecrets> {
    let path = site.identity("age.key");
    let text = Zeroizing::new(
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?,
    );
    let text = if tpm::Blob::is_pem(&text) {
        let blob = tpm::Blob::from_pem(&text).context("age key")?;
        let plain = tpm::Tpm::open(&site.tpm())
            .and_then(|mut tpm| tpm.unseal(&blob))
            .context("age key")?;
        let plain = std::str::from_utf8(&plain).context("age key")?;
        Zeroizing::new(plain.to_owned())
    } else {
        text
    };
    let identity: Identity = text
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("AGE-SECRET-KEY-"))
        .ok_or_else(|| anyhow!("{}: no age key", path.display()))?
        .parse()
        .map_err(|_| anyhow!("{}: not an age key", path.display()))?;
    let mut plain = Zeroizing::new(Vec::new());
    age::Decryptor::new(ArmoredReader::new(sealed.age.as_bytes()))
        .and_then(|decryptor| decryptor.decrypt(iter::once(&identity as &dyn age::Identity)))
        .context("open sealed secrets")?
        .read_to_end(&mut plain)
        .context("open sealed secrets")?;
    let secrets: UnitSecrets = serde_json::from_slice(&plain)
        .map_err(|_| anyhow!("sealed secrets: expected the unit's secrets as JSON"))?;
    ensure!(
        secrets.version == sealed.version,
        "sealed secrets: version {} in an envelope that says {}",
        secrets.version,
        sealed.version
    );
    Ok(secrets)
}

/// Stores secrets that came from the escrow, unless the unit holds newer ones.
///
/// Says whether they were stored.
///
/// # Errors
/// They cannot be made durable.
pub fn store(site: &Site, secrets: &UnitSecrets) -> Result<bool> {
    if read(site)?.is_some_and(|mine| mine.version >= secrets.version) {
        return Ok(false);
    }
    durable::write_json(&site.secrets(), secrets, Mode::Secret)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn secrets(version: u64) -> UnitSecrets {
        UnitSecrets {
            version,
            repository_password: "hurricane".into(),
            repository_key: "{}".into(),
            ssh_key: "key".into(),
        }
    }

    fn device() -> (tempfile::TempDir, Site, Identity) {
        use age::secrecy::ExposeSecret as _;
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let identity = Identity::generate();
        let text = format!(
            "# made at birth\n{}\n",
            identity.to_string().expose_secret()
        );
        durable::write(&site.identity("age.key"), text.as_bytes(), Mode::Secret).unwrap();
        (folder, site, identity)
    }

    fn trust(recovery: &[&Identity]) -> TrustRoot {
        TrustRoot {
            version: 1,
            roles: [].into(),
            recovery: recovery
                .iter()
                .map(|one| one.to_public().to_string())
                .collect(),
        }
    }

    #[test]
    fn what_is_sealed_opens_with_any_of_the_recipients_keys_and_no_other() {
        let (_one, site, mine) = device();
        let (_two, other_site, _) = device();
        let sealed = seal(&secrets(3), &trust(&[&Identity::generate(), &mine])).unwrap();
        assert!(sealed.age.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"));
        assert!(!sealed.age.contains("hurricane"));
        assert_eq!(open(&site, &sealed).unwrap(), secrets(3));
        assert!(open(&other_site, &sealed).is_err());
        let relabelled = SealedSecrets {
            version: 4,
            ..sealed
        };
        assert!(open(&site, &relabelled).is_err());
        assert!(seal(&secrets(3), &trust(&[])).is_err());
    }

    #[test]
    fn older_secrets_never_replace_newer_ones() {
        let (_folder, site, _) = device();
        assert!(store(&site, &secrets(2)).unwrap());
        assert!(!store(&site, &secrets(1)).unwrap());
        assert!(!store(&site, &secrets(2)).unwrap());
        assert_eq!(read(&site).unwrap().unwrap().version, 2);
        let mode = fs::metadata(site.secrets()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_message_about_damaged_secrets_quotes_nothing() {
        let (_folder, site, _) = device();
        durable::write(
            &site.secrets(),
            b"{\"repository_password\":\"hurricane\"",
            Mode::Secret,
        )
        .unwrap();
        let message = format!("{:#}", read(&site).unwrap_err());
        assert!(!message.contains("hurricane"), "{message}");
    }
}
