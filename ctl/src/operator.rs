//! Who operates: where the sky is, and which token and keys are used.
//!
//! Flags win over the environment, the environment over
//! `~/.config/leapserv/ctl.toml`.

use std::path::{Path, PathBuf};

use clap::Args;
use edge::exit::{Classify as _, Failure, Kind, hint};
use serde::{Deserialize, Serialize};

use crate::client::Sky;
use crate::keys::KeyFolder;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// The sky's address, https://HOST:PORT
    #[arg(
        long,
        global = true,
        env = "LEAPCTL_SKY",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub(crate) sky: Option<String>,
    /// The fleet CA's certificate (PEM); without it, ca.crt in the key folder
    #[arg(
        long,
        global = true,
        env = "LEAPCTL_CA",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) ca: Option<PathBuf>,
    /// File with the operator's bearer token
    #[arg(
        long,
        global = true,
        env = "LEAPCTL_TOKEN_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Folder with the private keys and trust-root.json
    #[arg(
        long,
        global = true,
        env = "LEAPCTL_KEYS",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) keys: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Tell more on standard error; repeat for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// `ctl.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sky: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    keys: Option<PathBuf>,
}

/// The settings that count.
#[derive(Debug)]
pub(crate) struct Operator {
    sky: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    keys: Option<PathBuf>,
    json: bool,
}

impl Operator {
    /// Only what the command line says.
    pub(crate) fn bare(globals: &Globals) -> Self {
        merge(globals.clone(), File::default(), Path::new(""))
    }

    /// Command line, environment and file together.
    pub(crate) fn resolve(globals: Globals) -> Result<Self, Failure> {
        let path = settings_file();
        let file = match &path {
            Some(path) if path.exists() => edge::toml_file::read(path)?,
            _ => File::default(),
        };
        let base = path.as_deref().and_then(Path::parent);
        Ok(merge(globals, file, base.unwrap_or(Path::new(""))))
    }

    /// Connects to nothing yet; says what is missing.
    pub(crate) fn sky(&self) -> Result<Sky, Failure> {
        let url = self
            .sky
            .as_deref()
            .ok_or_else(|| missing("the sky's address", "give --sky URL or set LEAPCTL_SKY"))?;
        let in_keys = self.keys.as_ref().map(|dir| dir.join("ca.crt"));
        let ca = self
            .ca
            .as_deref()
            .or(in_keys.as_deref().filter(|path| path.exists()))
            .ok_or_else(|| {
                missing(
                    "the fleet CA's certificate",
                    "give --ca FILE or set LEAPCTL_CA",
                )
            })?;
        let token_file = self.token_file.as_deref().ok_or_else(|| {
            missing(
                "the operator's token",
                "give --token-file FILE or set LEAPCTL_TOKEN_FILE",
            )
        })?;
        let ca = read(ca, "the fleet CA's certificate")?;
        let token = read(token_file, "the operator's token")?;
        Sky::new(url, &ca, token.trim())
    }

    /// The key folder.
    pub(crate) fn keys(&self) -> Result<KeyFolder, Failure> {
        let dir = self
            .keys
            .as_deref()
            .ok_or_else(|| missing("the key folder", "give --keys DIR or set LEAPCTL_KEYS"))?;
        Ok(KeyFolder::new(dir))
    }

    /// Whether the result is for a machine.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Writes the result: as JSON, or as a person reads it.
    pub(crate) fn show<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) {
        if self.json {
            edge::out::json(value);
        } else {
            edge::out::line(human(value).trim_end());
        }
    }
}

fn merge(globals: Globals, file: File, base: &Path) -> Operator {
    // A path in the file is meant from where the file is.
    let beside = |path: PathBuf| base.join(path);
    Operator {
        sky: globals.sky.or(file.sky),
        ca: globals.ca.or(file.ca.map(beside)),
        token_file: globals.token_file.or(file.token_file.map(beside)),
        keys: globals.keys.or(file.keys.map(beside)),
        json: globals.json,
    }
}

fn settings_file() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(config.join("leapserv").join("ctl.toml"))
}

fn read(path: &Path, what: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| {
            anyhow::Error::new(error).context(format!("read {what} {}", path.display()))
        })
        .environment()
}

fn missing(what: &str, next: &str) -> Failure {
    Failure::new(
        Kind::Usage,
        hint(
            anyhow::anyhow!("{what} is not given"),
            format!("{next}, or write it to ~/.config/leapserv/ctl.toml"),
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file: File = toml::from_str("sky = 'https://file'\nkeys = 'keys'").unwrap();
        let globals = Globals {
            sky: Some("https://flag".into()),
            ..Globals::default()
        };
        let operator = merge(globals, file, Path::new("/home/joe/.config/leapserv"));
        assert_eq!(operator.sky.as_deref(), Some("https://flag"));
        let keys = operator.keys.as_deref();
        assert_eq!(keys, Some(Path::new("/home/joe/.config/leapserv/keys")));
    }

    #[test]
    fn what_is_missing_is_named_with_the_next_step() {
        let operator = Operator::bare(&Globals::default());
        let failure = operator.sky().unwrap_err();
        assert_eq!(failure.kind(), Kind::Usage);
        let text = edge::exit::render(failure.error());
        assert!(text.contains("hint: give --sky URL"), "{text}");
    }
}
