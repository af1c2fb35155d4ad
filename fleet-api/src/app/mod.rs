//! What the calls do: facts from the store, a pure decision, the change, the answer.

pub mod customer;

pub mod unit;

pub mod configuration;

pub mod incarnation;

pub mod machine;

pub mod ticket;

pub mod pass;

pub mod tpm;

pub mod release;

pub mod channel;

pub mod checkin;

pub mod secrets;

pub mod command;

pub mod fence;

pub mod event;

pub mod stream;

pub mod metrics;

pub mod range;

use crate::error::Problem;

/// Checks the name of a channel or a profile.
fn check_label(kind: &str, text: &str) -> Result<(), Problem> {
    let good = (1..=40).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        Ok(())
    } else {
        Err(Problem::invalid(format!(
            "{kind} {text:?}: expected 1 to 40 of a-z, 0-9 and '-', not at either end"
        )))
    }
}

/// Checks a random id: 32 hexadecimal digits.
fn check_id(kind: &str, text: &str) -> Result<(), Problem> {
    let good = text.len() == 32
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if good {
        Ok(())
    } else {
        Err(Problem::invalid(format!(
            "{kind} id {text:?}: expected 32 lower-case hexadecimal digits"
        )))
    }
}
