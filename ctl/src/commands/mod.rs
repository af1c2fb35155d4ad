//! The subcommands: each holds its arguments and what it does.

pub(crate) mod keys;

pub(crate) mod customer;

pub(crate) mod unit;

pub(crate) mod machine;

pub(crate) mod release;

pub(crate) mod channel;

pub(crate) mod backup;

pub(crate) mod birth;

pub(crate) mod events;

pub(crate) mod explain;

pub(crate) mod debug;

pub(crate) mod secrets;

use std::time::Duration;

use anyhow::Context as _;
use edge::exit::{Failure, Kind};
use jiff::{SignedDuration, Timestamp};
use model::trust::Document;
use model::{Signed, TrustRoot};

/// Returns 32 random hexadecimal digits.
fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("ask the system for randomness")?;
    Ok(hex::encode(bytes))
}

/// Parses `1h`, `90 min` or `45s` for the command line.
pub(crate) fn duration(text: &str) -> Result<SignedDuration, String> {
    match text.parse::<SignedDuration>() {
        Ok(duration) if duration > SignedDuration::ZERO => Ok(duration),
        _ => Err("expected a time span like 1h, 90m or 45s".into()),
    }
}

/// Returns the moment `span` after `now`.
fn after(now: Timestamp, span: SignedDuration) -> Result<Timestamp, Failure> {
    now.checked_add(span)
        .context("time span: leads beyond the calendar")
        .map_err(|error| Failure::new(Kind::Usage, error))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Believes a document of the sky's, or says whose signature is missing.
fn believe<T: Document>(root: &TrustRoot, signed: &Signed<T>, what: &str) -> Result<T, Failure> {
    root.verify(signed, edge::clock::now())
        .map(model::Verified::into_inner)
        .with_context(|| format!("{what} from the sky"))
        .map_err(|error| Failure::new(Kind::Refused, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_are_read_as_people_write_them() {
        assert_eq!(duration("1h"), Ok(SignedDuration::from_hours(1)));
        assert_eq!(duration("90m"), Ok(SignedDuration::from_mins(90)));
        for bad in ["", "1", "-1h", "0s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_32_digits_and_never_the_same() {
        let (a, b) = (random_id().unwrap(), random_id().unwrap());
        assert_eq!(a.len(), 32);
        assert_ne!(a, b);
    }
}
