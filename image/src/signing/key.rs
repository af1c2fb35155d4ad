//! RSA keys that sign: the trait, keys in files, and where a key is.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, anyhow};
use edge::exit::{self, Kind};
use edge::runner::Tool;
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use super::token::{Token, TokenUri};

/// Length of the keys that are made here. All firmware takes it; not all takes more.
pub const BITS: u32 = 2048;

/// A private RSA key that signs, wherever it lies.
pub trait Key: fmt::Debug + Send + Sync {
    /// The public half: `RSAPublicKey` of PKCS #1 in DER.
    fn public(&self) -> &[u8];

    /// Signs a message: RSASSA-PKCS1-v1_5 with SHA-256.
    ///
    /// # Errors
    /// The key cannot be used.
    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>>;
}

/// A key in a file.
#[derive(Debug)]
pub struct FileKey(KeyPair);

impl FileKey {
    /// Reads a key from PKCS #8 PEM.
    ///
    /// # Errors
    /// It is none, or one of less than 2048 or more than 4096 bits.
    pub fn from_pem(pem: &str) -> anyhow::Result<Self> {
        let blocks = Pem::iter_from_buffer(pem.as_bytes());
        let block = blocks
            .filter_map(Result::ok)
            .find(|block| block.label == "PRIVATE KEY")
            .context("expected a PKCS #8 private key in PEM (BEGIN PRIVATE KEY)")?;
        let der = Zeroizing::new(block.contents);
        KeyPair::from_pkcs8(&der)
            .map(Self)
            .map_err(|error| anyhow!("expected an RSA key of 2048 to 4096 bits: {error}"))
    }

    /// Reads a key from a file that is its owner's alone.
    ///
    /// # Errors
    /// Kind `InvalidInput`: it cannot be read, others may read it, or it holds no key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let invalid = |problem: String| {
            let place = path.display();
            exit::marked(Kind::InvalidInput, format!("key {place}: {problem}"))
        };
        let facts = std::fs::metadata(path).map_err(|error| invalid(error.to_string()))?;
        let mode = facts.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let error = invalid(format!("mode {mode:o}: others may use this private key"));
            return Err(exit::hint(error, format!("chmod 600 {}", path.display())));
        }
        let pem = std::fs::read_to_string(path).map(Zeroizing::new);
        let pem = pem.map_err(|error| invalid(error.to_string()))?;
        Self::from_pem(&pem).map_err(|error| invalid(format!("{error:#}")))
    }
}

impl Key for FileKey {
    fn public(&self) -> &[u8] {
        self.0.public().as_ref()
    }

    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        // The randomness blinds the computation; the signature does not depend on it.
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .map_err(|_| anyhow!("the RSA key does not sign"))?;
        Ok(signature)
    }
}

/// Makes a new key and returns it as PKCS #8 PEM. It goes through a pipe, never a file.
///
/// # Errors
/// Kind `Environment` where the host has no `openssl`.
pub fn generate() -> anyhow::Result<Zeroizing<String>> {
    Tool::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt"])
        .arg(format!("rsa_keygen_bits:{BITS}"))
        .text()
        .map(|pem| Zeroizing::new(pem + "\n"))
        .context("make an RSA key")
}

/// Where a private key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// In a file, PKCS #8 PEM.
    File(PathBuf),
    /// On a PKCS #11 token.
    Token(TokenUri),
}

impl KeyPlace {
    /// Opens the key.
    ///
    /// # Errors
    /// It is not there, or cannot be used.
    pub fn open(&self) -> anyhow::Result<Box<dyn Key>> {
        Ok(match self {
            Self::File(path) => Box::new(FileKey::read(path)?),
            Self::Token(uri) => Box::new(Token::open(uri)?),
        })
    }
}

impl FromStr for KeyPlace {
    type Err = super::token::BadUri;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with(super::token::SCHEME) {
            return text.parse().map(Self::Token);
        }
        Ok(Self::File(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::tests::key;

    #[test]
    fn signatures_have_no_randomness() {
        assert_eq!(key().sign(b"text").unwrap(), key().sign(b"text").unwrap());
        assert_ne!(key().sign(b"text").unwrap(), key().sign(b"texT").unwrap());
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.key");
        std::fs::write(&path, generate().unwrap().as_bytes()).unwrap();
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        let error = FileKey::read(&path).unwrap_err();
        let text = exit::render(&error);
        assert!(text.contains("mode 640"), "{text}");
        assert!(text.contains("hint: chmod 600"), "{text}");
        mode(0o600);
        FileKey::read(&path).unwrap();
    }

    #[test]
    fn what_is_no_rsa_key_is_refused_with_what_was_expected() {
        let error = |pem: &str| FileKey::from_pem(pem).unwrap_err().to_string();
        assert!(error("").contains("PKCS #8"));
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(error(certificate).contains("PKCS #8"));
        let rubbish = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(error(rubbish).contains("expected an RSA key"));
    }
}
