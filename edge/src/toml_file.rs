//! Configuration and input files in TOML: one clear message that names the place.

use std::path::Path;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

use crate::exit::{Classify as _, Failure};

/// Reads a file.
///
/// # Errors
/// Kind `InvalidInput`: the file is missing or not UTF-8, or its text does not
/// fit; then the message has file, line, column and the line itself.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read {}", path.display()))
        .invalid_input()?;
    parse(&text, &path.display().to_string())
}

/// Parses a text that came from `name`.
///
/// # Errors
/// As for [`read`].
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Failure> {
    toml::from_str(text)
        .map_err(|error| {
            let place = error.span().map_or_else(String::new, |span| {
                let before = &text[..span.start.min(text.len())];
                let line = before.matches('\n').count() + 1;
                let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                format!(":{line}:{column}")
            });
            anyhow::anyhow!("{name}{place}: {}", error.message())
        })
        .invalid_input()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Kind;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsed")]
    struct Config {
        port: u16,
    }

    #[test]
    fn a_mistake_is_named_with_line_and_column() {
        let failure = parse::<Config>("# ports\nport = 70000\n", "x.toml").unwrap_err();
        assert_eq!(failure.kind(), Kind::InvalidInput);
        assert!(failure.to_string().starts_with("x.toml:2:8: "), "{failure}");
        let failure = parse::<Config>("prot = 1\n", "x.toml").unwrap_err();
        assert!(failure.to_string().contains("expected `port`"), "{failure}");
    }
}
