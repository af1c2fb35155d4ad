//! The vault's configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use edge::exit::{Classify, Failure};
use serde::Deserialize;
use zeroize::Zeroizing;

/// The file as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// The vault's name, as it stands in reports of fenced attempts.
    pub name: String,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Folder for the units' files.
    pub data: PathBuf,
    /// The server's certificate chain (PEM).
    pub certificate: PathBuf,
    /// The server's private key (PEM).
    pub key: PathBuf,
    /// The CA that signs the units' device certificates (PEM).
    pub device_ca: PathBuf,
    /// What one unit may store, in MiB; 0 is unbounded.
    #[serde(default)]
    pub quota_mib: u64,
    /// The largest single file, in MiB.
    #[serde(default = "default_max_file_mib")]
    pub max_file_mib: u32,
    /// Where fences come from. Without it only the highest incarnation seen counts.
    pub sky: Option<RawSky>,
}

fn default_max_file_mib() -> u32 {
    128
}

/// The sky, as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSky {
    /// `https://HOST:PORT`.
    pub url: String,
    /// The CA that signs the sky's certificate (PEM).
    pub ca: PathBuf,
    /// File that holds the bearer token.
    pub token_file: PathBuf,
    /// Seconds between two polls.
    #[serde(default = "default_poll_seconds")]
    pub poll_seconds: u32,
}

fn default_poll_seconds() -> u32 {
    1
}

/// The configuration, with everything read that it names.
pub struct Config {
    /// The vault's name.
    pub name: String,
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Folder for the units' files.
    pub data: PathBuf,
    /// The server's certificate and key.
    pub identity: tls::server::Identity,
    /// The CA of device certificates (PEM).
    pub device_ca: String,
    /// What one unit may store, in bytes.
    pub quota: Option<u64>,
    /// The largest single file, in bytes.
    pub max_file: u64,
    /// Where fences come from.
    pub sky: Option<Sky>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("name", &self.name)
            .field("listen", &self.listen)
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// The sky, ready to be asked.
pub struct Sky {
    /// `https://HOST:PORT`, without a slash at the end.
    pub url: String,
    /// Trusts the sky's CA alone.
    pub client: reqwest::Client,
    /// The bearer token.
    pub token: Zeroizing<String>,
    /// Time between two polls.
    pub poll: Duration,
}

impl std::fmt::Debug for Sky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sky")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Reads and checks the configuration and every file that it names.
///
/// # Errors
/// Kind `InvalidInput`, naming the file, the place and what was expected.
pub fn load(path: &Path) -> Result<Config, Failure> {
    let raw: Raw = edge::toml_file::read(path)?;
    check(raw).map_err(|failure| failure.context(path.display().to_string()))
}

fn text(key: &str, path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .with_context(|| format!("{key}: read {}", path.display()))
        .invalid_input()
}

fn check(raw: Raw) -> Result<Config, Failure> {
    let wrong = |problem: String| -> Failure {
        Failure::new(edge::exit::Kind::InvalidInput, anyhow::anyhow!(problem))
    };
    if raw.name.is_empty() {
        return Err(wrong("name: expected a name".to_owned()));
    }
    if !raw.data.is_absolute() {
        return Err(wrong("data: expected an absolute path".to_owned()));
    }
    if raw.max_file_mib == 0 {
        return Err(wrong("max_file_mib: expected at least 1".to_owned()));
    }
    let identity = tls::server::Identity::from_pem(
        &text("certificate", &raw.certificate)?,
        &text("key", &raw.key)?,
    )
    .context("certificate and key")
    .invalid_input()?;
    Ok(Config {
        device_ca: text("device_ca", &raw.device_ca)?,
        identity,
        name: raw.name,
        listen: raw.listen,
        data: raw.data,
        quota: (raw.quota_mib > 0).then(|| raw.quota_mib.saturating_mul(1024 * 1024)),
        max_file: u64::from(raw.max_file_mib) * 1024 * 1024,
        sky: raw.sky.map(check_sky).transpose()?,
    })
}

fn check_sky(raw: RawSky) -> Result<Sky, Failure> {
    let wrong = |problem: &str| -> Failure {
        Failure::new(edge::exit::Kind::InvalidInput, anyhow::anyhow!("{problem}"))
    };
    if !raw.url.starts_with("https://") {
        return Err(wrong("sky.url: expected https://HOST:PORT"));
    }
    if raw.poll_seconds == 0 {
        return Err(wrong("sky.poll_seconds: expected at least 1"));
    }
    let token = Zeroizing::new(text("sky.token_file", &raw.token_file)?);
    let token = Zeroizing::new(token.trim().to_owned());
    if token.is_empty() {
        return Err(wrong("sky.token_file: the file is empty, expected a token"));
    }
    let client = tls::client::builder(&text("sky.ca", &raw.ca)?)
        .and_then(|builder| {
            builder
                .timeout(Duration::from_secs(15))
                .build()
                .context("make a client")
        })
        .context("sky.ca")
        .invalid_input()?;
    Ok(Sky {
        url: raw.url.trim_end_matches('/').to_owned(),
        client,
        token,
        poll: Duration::from_secs(u64::from(raw.poll_seconds)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_key_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.toml");
        std::fs::write(&path, "name = \"a\"\nlisten = \"[::]:1\"\nquota = 3\n").unwrap();
        let failure = load(&path).unwrap_err();
        assert_eq!(failure.kind(), edge::exit::Kind::InvalidInput);
        let text = failure.to_string();
        assert!(text.contains("vault.toml:3:1"), "{text}");
    }

    #[test]
    fn missing_certificate_is_named_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.toml");
        let content = "name = \"a\"\nlisten = \"[::]:1\"\ndata = \"/d\"\n\
                       certificate = \"/nowhere/c\"\nkey = \"/nowhere/k\"\ndevice_ca = \"/nowhere/a\"\n";
        std::fs::write(&path, content).unwrap();
        let text = load(&path).unwrap_err().to_string();
        assert!(text.contains("certificate: read /nowhere/c"), "{text}");
    }
}
