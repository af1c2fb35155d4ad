//! Configuration and input files in TOML: one clear message that names the place.

use std::ops::Range;
use std::path::Path;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

use crate::exit::{Classify as _, Failure, Kind, hint};

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
/// As for [`read`]; an unknown key is answered with the nearest known one.
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Failure> {
    toml::from_str(text).map_err(|error| {
        let place = error
            .span()
            .map_or_else(String::new, |span| place(text, span.start));
        let problem = anyhow::anyhow!("{name}{place}: {}", error.message());
        Failure::new(
            Kind::InvalidInput,
            match nearest_key(error.message()) {
                Some(key) => hint(problem, format!("did you mean {key:?}?")),
                None => problem,
            },
        )
    })
}

/// A value that parses and still cannot be meant, at its place in the file `name`.
pub fn wrong(text: &str, name: &str, at: &Range<usize>, problem: &str, next: &str) -> Failure {
    let place = place(text, at.start);
    let problem = anyhow::anyhow!("{name}{place}: {problem}");
    Failure::new(Kind::InvalidInput, hint(problem, next))
}

/// Returns `:LINE:COLUMN`, both from 1.
fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!(":{line}:{column}")
}

/// Returns the known key that is nearest to the unknown one of the parser's message.
fn nearest_key(message: &str) -> Option<&str> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted
        .next()
        .filter(|_| message.starts_with("unknown field"))?;
    quoted
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len().max(unknown.len()) / 4)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::render;

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
        let text = render(failure.error());
        assert!(text.contains("x.toml:1:1: unknown field `prot`"), "{text}");
        assert!(text.ends_with("hint: did you mean \"port\"?"), "{text}");
        let failure = parse::<Config>("speed = 1\n", "x.toml").unwrap_err();
        let text = render(failure.error());
        assert!(!text.contains("did you mean"), "{text}");
    }
}
