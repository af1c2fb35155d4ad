//! The sky's folder: which file holds what.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use edge::exit::{Classify as _, Failure, Kind, hint};
use model::{Role, Signer, TrustRoot};
use tls::ca::Authority;

/// The folder that `leap-fleet init` makes.
#[derive(Debug, Clone)]
pub struct Place(PathBuf);

impl Place {
    /// The folder at `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The SQLite database.
    pub fn database(&self) -> PathBuf {
        self.0.join("fleet.db")
    }

    /// Held by the daemon that serves this folder.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Large files.
    pub fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    /// The fleet CA's certificate.
    pub fn ca_certificate(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    /// The fleet CA's key.
    pub fn ca_key(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    /// The sky's own certificate.
    pub fn server_certificate(&self) -> PathBuf {
        self.0.join("server.crt")
    }

    /// The sky's own key.
    pub fn server_key(&self) -> PathBuf {
        self.0.join("server.key")
    }

    /// The key that signs channel pointers.
    pub fn timestamp_key_file(&self) -> PathBuf {
        self.0.join("timestamp.key")
    }

    /// Whom the sky believes; put there by `leap-fleet set-trust`.
    pub fn trust_root_file(&self) -> PathBuf {
        self.0.join("trust-root.json")
    }

    /// What `leapctl keys init` needs of the sky.
    pub fn introduction(&self) -> PathBuf {
        self.0.join("sky.json")
    }

    /// The daemon's configuration.
    pub fn config(&self) -> PathBuf {
        self.0.join("fleet.toml")
    }

    /// A bearer token for its holder, mode 0600.
    pub fn token(&self, holder: &str) -> PathBuf {
        self.0.join("tokens").join(holder)
    }

    /// Reads the trust root.
    ///
    /// # Errors
    /// Kind `InvalidInput`; the hint says how to get one.
    pub fn trust_root(&self) -> Result<TrustRoot, Failure> {
        let path = self.trust_root_file();
        let next = format!(
            "make one with `leapctl keys init --sky {}`, then `leap-fleet set-trust {} trust-root.json`",
            self.introduction().display(),
            self.0.display()
        );
        read_trust_root(&path).map_err(|failure| {
            let kind = failure.kind();
            Failure::new(kind, hint(anyhow!("{failure}"), next))
        })
    }

    /// Reads the timestamp key.
    ///
    /// # Errors
    /// Kind `InvalidInput`.
    pub fn timestamp_key(&self) -> Result<Signer, Failure> {
        let path = self.timestamp_key_file();
        Signer::from_pem(&self.text(&path)?)
            .with_context(|| format!("read {}", path.display()))
            .invalid_input()
    }

    /// Reads the fleet CA.
    ///
    /// # Errors
    /// Kind `InvalidInput`.
    pub fn authority(&self) -> Result<Authority, Failure> {
        let certificate = self.text(&self.ca_certificate())?;
        let key = self.text(&self.ca_key())?;
        Authority::from_pem(&certificate, &key)
            .with_context(|| format!("read the CA in {}", self.0.display()))
            .invalid_input()
    }

    /// Reads a file of the folder.
    ///
    /// # Errors
    /// Kind `InvalidInput`.
    pub fn text(&self, path: &Path) -> Result<String, Failure> {
        std::fs::read_to_string(path)
            .with_context(|| format!("read {}", path.display()))
            .map_err(|error| hint(error, "make the folder with `leap-fleet init`"))
            .invalid_input()
    }

    /// Checks that the sky's key is trusted with freshness and with nothing else.
    ///
    /// # Errors
    /// Kind `Refused`.
    pub fn check_trust(&self, trust: &TrustRoot, timestamp: &Signer) -> Result<(), Failure> {
        check_trust(trust, timestamp)
            .map_err(|problem| Failure::new(Kind::Refused, anyhow!("trust root: {problem}")))
    }
}

/// Reads a trust root from anywhere.
///
/// # Errors
/// Kind `InvalidInput`.
pub fn read_trust_root(path: &Path) -> Result<TrustRoot, Failure> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read {}", path.display()))
        .invalid_input()?;
    serde_json::from_str(&text)
        .with_context(|| format!("{}: expected a trust root", path.display()))
        .invalid_input()
}

fn check_trust(trust: &TrustRoot, timestamp: &Signer) -> Result<(), String> {
    let ours = timestamp.public();
    for (role, keys) in &trust.roles {
        let listed = keys.keys.contains(&ours);
        match (role, listed) {
            (Role::Timestamp, false) => {
                return Err("the timestamp role does not have this sky's key".into());
            }
            // With it, a stolen sky could ship what only people may sign.
            (role, true) if *role != Role::Timestamp => {
                return Err(format!("the {role} role has this sky's key; it must not"));
            }
            _ => {}
        }
    }
    for role in [Role::Targets, Role::Timestamp, Role::Configuration] {
        match trust.roles.get(&role) {
            None => return Err(format!("the {role} role is missing")),
            Some(keys) if keys.threshold == 0 => {
                return Err(format!("the {role} role has threshold 0"));
            }
            Some(keys)
                if keys.keys.len() < usize::try_from(keys.threshold).unwrap_or(usize::MAX) =>
            {
                return Err(format!("the {role} role has fewer keys than its threshold"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::trust::RoleKeys;

    fn trust(configuration: &Signer, timestamp: &Signer) -> TrustRoot {
        let keys = |signer: &Signer| RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        TrustRoot {
            version: 1,
            roles: [
                (Role::Targets, keys(configuration)),
                (Role::Timestamp, keys(timestamp)),
                (Role::Configuration, keys(configuration)),
            ]
            .into(),
            recovery: vec![],
        }
    }

    #[test]
    fn the_skys_key_counts_for_freshness_only() {
        let (people, sky) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
        assert_eq!(check_trust(&trust(&people, &sky), &sky), Ok(()));
        let stolen = check_trust(&trust(&sky, &sky), &sky).unwrap_err();
        assert!(stolen.contains("it must not"), "{stolen}");
        let foreign = check_trust(&trust(&people, &people), &sky).unwrap_err();
        assert!(foreign.contains("does not have"), "{foreign}");
        let mut incomplete = trust(&people, &sky);
        incomplete.roles.remove(&Role::Configuration);
        assert!(check_trust(&incomplete, &sky).is_err());
    }
}
