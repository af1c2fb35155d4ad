//! The clock, read at the edge and passed on as an argument.

use jiff::Timestamp;

/// Returns the time now.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place where the clock is read"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}
