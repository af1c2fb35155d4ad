//! An operator's TOML file becomes a unit's settings, or one clear message.

use edge::exit::{Failure, Kind};
use model::configuration::Settings;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Parses and checks the text of the file `name`.
///
/// Pure: reading the file is the caller's job.
///
/// # Errors
/// Kind `InvalidInput`, with file, line and column where the place is known.
pub(crate) fn parse(text: &str, name: &str) -> Result<Settings, Failure> {
    let settings: Settings = edge::toml_file::parse(text, name)?;
    settings.check().map_err(|wrong| {
        let place = locate(text, &wrong.key)
            .map(|offset| place(text, offset))
            .unwrap_or_default();
        Failure::new(
            Kind::InvalidInput,
            anyhow::anyhow!("{name}{place}: {wrong}"),
        )
    })?;
    Ok(settings)
}

/// Returns the keys whose values differ, as `key: old -> new`.
pub(crate) fn changes(old: &Settings, new: &Settings) -> Vec<String> {
    let value = |settings| serde_json::to_value(settings).expect("settings are plain JSON values");
    let mut lines = Vec::new();
    compare(String::new(), &value(old), &value(new), &mut lines);
    lines
}

fn compare(key: String, old: &serde_json::Value, new: &serde_json::Value, lines: &mut Vec<String>) {
    use serde_json::Value;
    let none = Value::Null;
    match (old, new) {
        (old, new) if old == new => {}
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let inner = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                let (a, b) = (a.get(name).unwrap_or(&none), b.get(name).unwrap_or(&none));
                compare(inner, a, b, lines);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                let (a, b) = (a.get(index).unwrap_or(&none), b.get(index).unwrap_or(&none));
                compare(format!("{key}[{index}]"), a, b, lines);
            }
        }
        (old, new) => {
            let show = |value: &Value| match value {
                Value::Null => "nothing".to_owned(),
                value => value.to_string(),
            };
            lines.push(format!("{key}: {} -> {}", show(old), show(new)));
        }
    }
}

/// Finds where the value of a dotted key stands, or the nearest table around it.
fn locate(text: &str, key: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut offset = None;
    let mut steps = key
        .split('.')
        .flat_map(|part| part.split('[').map(|step| step.trim_end_matches(']')));
    let first = steps.next()?;
    let mut value: &Spanned<DeValue<'_>> = table.get_ref().get(first)?;
    loop {
        // A table that other tables made has no place of its own.
        if !value.span().is_empty() {
            offset = Some(value.span().start);
        }
        let Some(step) = steps.next() else { break };
        let inner = match value.get_ref() {
            DeValue::Table(table) => table.get(step),
            DeValue::Array(array) => step
                .parse::<usize>()
                .ok()
                .and_then(|index| array.get(index)),
            _ => None,
        };
        match inner {
            Some(inner) => value = inner,
            None => break,
        }
    }
    offset
}

fn place(text: &str, offset: usize) -> String {
    let before = &text[..offset];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!(":{line}:{column}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const GOOD: &str = r#"
hostname = "houma-1"
time_zone = "America/Chicago"
operators = ["ssh-ed25519 AAAA joe"]

[network]
mode = "dhcp"

[maintenance]
from = "22:00"
to = "04:00"

[[backup.sources]]
kind = "sftp"
name = "gallery"
host = "10.77.0.20"
user = "backup"
path = "/srv/gallery"
host_key = "ssh-ed25519 AAAA"

[[backup.destinations]]
name = "vault-1"
url = "https://10.77.0.31:8443"
"#;

    fn message(text: &str) -> String {
        let failure = parse(text, "houma-1.toml").unwrap_err();
        assert_eq!(failure.kind(), Kind::InvalidInput);
        failure.to_string()
    }

    #[test]
    fn a_good_file_is_read() {
        let settings = parse(GOOD, "houma-1.toml").unwrap();
        assert_eq!(settings.hostname, "houma-1");
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(parse(&text, "again").unwrap(), settings);
    }

    #[test]
    fn a_value_that_does_not_hold_is_named_with_its_place() {
        assert_eq!(
            message(&GOOD.replace("/srv/gallery", "gallery")),
            "houma-1.toml:18:8: backup.sources[0].path: expected an absolute path"
        );
        assert_eq!(
            message(&GOOD.replace("22:00", "22h")),
            "houma-1.toml:10:8: maintenance.from: expected HH:MM"
        );
        // The key that is wrong does not stand in the file: its table does.
        let text = message(&GOOD.replace("[[backup.destinations]]", "[[elsewhere]]"));
        assert!(
            text.starts_with("houma-1.toml:21:3: unknown field"),
            "{text}"
        );
        let (start, _) = GOOD.split_once("[[backup.destinations]]").unwrap();
        let text = message(start);
        assert!(
            text.contains("backup.copies_required: 1 are required"),
            "{text}"
        );
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_place() {
        let text = message(&GOOD.replace("time_zone", "timezone"));
        assert!(
            text.starts_with("houma-1.toml:3:1: unknown field `timezone`"),
            "{text}"
        );
        let text = message(&GOOD.replace("host_key", "hostkey"));
        assert!(text.contains("unknown field `hostkey`"), "{text}");
    }

    #[test]
    fn changes_name_their_keys() {
        let old = parse(GOOD, "a").unwrap();
        let text = GOOD
            .replace("\"houma-1\"", "\"houma-2\"")
            .replace("vault-1", "vault-2");
        let new = parse(&text, "b").unwrap();
        assert_eq!(
            changes(&old, &new),
            [
                "backup.destinations[0].name: \"vault-1\" -> \"vault-2\"",
                "hostname: \"houma-1\" -> \"houma-2\"",
            ]
        );
    }
}
