//! The updater's own settings: `/etc/leapserv/updater.toml`, if there is one.

use std::path::PathBuf;
use std::time::Duration;

use edge::exit::{Classify as _, Failure};
use serde::{Deserialize, Serialize};

use crate::site::Site;

/// What a customer layer may change about the updater.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seconds within which the sky must be reached with a new configuration.
    pub confirm_seconds: u32,
    /// Seconds within which the health gate must have passed.
    pub gate_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            confirm_seconds: 30,
            gate_seconds: 120,
        }
    }
}

impl Config {
    /// Where it stands.
    pub fn path(site: &Site) -> PathBuf {
        site.at("/etc/leapserv/updater.toml")
    }

    /// Reads the file; without one, the defaults count.
    ///
    /// # Errors
    /// Kind `InvalidInput`, with file, line and column.
    pub fn read(site: &Site) -> Result<Self, Failure> {
        let path = Self::path(site);
        if !path.exists() {
            return Ok(Self::default());
        }
        let config: Self = edge::toml_file::read(&path)?;
        for (key, seconds) in [
            ("confirm_seconds", config.confirm_seconds),
            ("gate_seconds", config.gate_seconds),
        ] {
            if !(5..=3600).contains(&seconds) {
                return Err(anyhow::anyhow!(
                    "{}: {key}: {seconds}, expected 5 to 3600",
                    path.display()
                ))
                .invalid_input();
            }
        }
        Ok(config)
    }

    /// How long a new configuration is on trial.
    pub fn confirm(&self) -> Duration {
        Duration::from_secs(self.confirm_seconds.into())
    }

    /// How long the health gate waits.
    pub fn gate(&self) -> Duration {
        Duration::from_secs(self.gate_seconds.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_names_file_line_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        assert_eq!(Config::read(&site).unwrap(), Config::default());
        std::fs::create_dir_all(site.at("/etc/leapserv")).unwrap();
        std::fs::write(Config::path(&site), "gate_secs = 3\n").unwrap();
        let problem = Config::read(&site).unwrap_err().to_string();
        assert!(
            problem.contains("updater.toml:1:1") && problem.contains("gate_seconds"),
            "{problem}"
        );
        std::fs::write(Config::path(&site), "gate_seconds = 1\n").unwrap();
        let problem = Config::read(&site).unwrap_err().to_string();
        assert!(
            problem.contains("gate_seconds: 1, expected 5 to 3600"),
            "{problem}"
        );
    }
}
