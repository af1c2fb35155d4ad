//! Secure Boot keys on the ESP: where the boot loader looks for what it shall enrol.
//!
//! Only the installer puts them there, at a birth that a ticket permits. A composed disk
//! image has none: whoever starts one keeps the firmware's keys as they are.

use crate::esp::LOADER_CONF_TEXT;

/// Returns the place of a signed variable: `PK`, `KEK` or `db`.
///
/// `auto` is the one folder from which systemd-boot enrols without a person's choice, and
/// it does so only in a firmware that is in setup mode.
pub fn key(variable: &str) -> String {
    format!("loader/keys/auto/{variable}.auth")
}

/// Returns the boot loader's configuration for a disk with keys to enrol.
pub fn loader_conf() -> String {
    format!("{LOADER_CONF_TEXT}secure-boot-enroll force\n")
}
