//! The daemon's configuration, `fleet.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use edge::exit::{Failure, Kind};
use serde::Deserialize;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where units find the sky, `https://HOST:PORT`, without a slash at its end.
    pub url: String,
    /// The folder that `leap-fleet init` made.
    pub data: PathBuf,
    /// Largest file of a release in bytes.
    pub largest_file: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: SocketAddr,
    url: String,
    data: PathBuf,
    #[serde(default = "default_largest_file_mib")]
    largest_file_mib: u64,
}

fn default_largest_file_mib() -> u64 {
    8192
}

impl Config {
    /// Reads and checks a configuration. A relative `data` counts from the file's folder.
    ///
    /// # Errors
    /// Kind `InvalidInput`; the message names the file and the key.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let raw: Raw = edge::toml_file::read(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        raw.check(base).map_err(|problem| {
            Failure::new(Kind::InvalidInput, anyhow!("{}: {problem}", path.display()))
        })
    }
}

/// Checks where units are to find the sky.
///
/// # Errors
/// Says what was expected.
pub(crate) fn check_url(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("https://").unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if rest.is_empty() || !rest.chars().all(good) {
        return Err(format!(
            "{url:?}: expected https://HOST:PORT without a path"
        ));
    }
    Ok(url.to_owned())
}

impl Raw {
    fn check(self, base: &Path) -> Result<Config, String> {
        let url = check_url(&self.url).map_err(|problem| format!("url: {problem}"))?;
        if self.largest_file_mib == 0 || self.largest_file_mib > 1 << 20 {
            return Err(format!(
                "largest_file_mib {}: expected 1 to {}",
                self.largest_file_mib,
                1 << 20
            ));
        }
        Ok(Config {
            listen: self.listen,
            url,
            // Without the dots: the path stands in messages.
            data: base.join(self.data).components().collect(),
            largest_file: self.largest_file_mib << 20,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
            .map(|config| Config {
                data: config.data.strip_prefix(dir.path()).unwrap().to_owned(),
                ..config
            })
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn data_counts_from_the_files_folder() {
        let text = "listen = '0.0.0.0:8443'\nurl = 'https://sky.example:8443'\ndata = 'sky'\n";
        let config = config(text).unwrap();
        assert_eq!(config.data, Path::new("sky"));
        assert_eq!(config.largest_file, 8 << 30);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_file() {
        let text = "listen = '0.0.0.0:8443'\nurl = 'http://sky'\ndata = '.'\n";
        let problem = config(text).unwrap_err();
        assert!(
            problem.contains("fleet.toml: url: \"http://sky\": expected https"),
            "{problem}"
        );
        let problem = config("listen = 'x'\n").unwrap_err();
        assert!(problem.contains("fleet.toml:1:10"), "{problem}");
    }
}
