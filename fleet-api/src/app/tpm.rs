//! Keys in a TPM: what a machine says of its own, and the proof that it is true.
//!
//! Who has copied a machine's serial, UUID, addresses and everything that it has
//! ever sent can say the same, and cannot open the credential.

use ::tpm::{Public, credential};
use model::api::Credential;
use model::machine::{DeviceKeys, TpmKeys};
use model::{Digest, HexBytes};
use tls::ca::Authority;

use crate::error::Problem;

/// Checks that what a machine says of its TPM fits its other keys.
///
/// # Errors
/// The public areas are malformed, or the device key may leave its TPM or is another
/// than that of the request.
pub fn check(keys: &DeviceKeys) -> Result<(), Problem> {
    let Some(tpm) = &keys.tpm else { return Ok(()) };
    let (_, device) = areas(tpm)?;
    let found = Digest::of(&device.subject_public_key_info());
    if found != keys.public_key {
        return Err(Problem::invalid(format!(
            "keys: the TPM's key is {found}, expected {}",
            keys.public_key
        )));
    }
    Ok(())
}

fn areas(tpm: &TpmKeys) -> Result<(Public, Public), Problem> {
    let parse = |what: &str, bytes: &HexBytes| {
        Public::parse(&bytes.0)
            .map_err(|problem| Problem::invalid(format!("keys: {what} key: {problem}")))
    };
    let endorsement = parse("endorsement", &tpm.endorsement_key)?;
    let device = parse("device", &tpm.device_key)?;
    if !endorsement.is_endorsement_key() {
        return Err(Problem::invalid(
            "keys: endorsement key: not one of the usual template (TCG EK Credential Profile, L-2)",
        ));
    }
    if !device.is_device_key() {
        return Err(Problem::invalid(
            "keys: device key: expected one that was made in its TPM and cannot leave it",
        ));
    }
    Ok((endorsement, device))
}

/// Returns what the machine has to open before it may use the ticket; nothing for keys
/// in a file. Each call wraps the same secret anew.
///
/// # Errors
/// The keys are malformed: they were not checked.
pub fn challenge(
    authority: &Authority,
    ticket: &str,
    keys: &DeviceKeys,
) -> Result<Option<Credential>, Problem> {
    let Some(tpm) = &keys.tpm else {
        return Ok(None);
    };
    let (endorsement, device) = areas(tpm)?;
    let wrapped = credential::wrap(&secret(authority, ticket, keys), &endorsement, &device)
        .map_err(|problem| Problem::invalid(format!("keys: {problem}")))?;
    Ok(Some(Credential {
        blob: HexBytes(wrapped.blob),
        secret: HexBytes(wrapped.secret),
    }))
}

/// Checks the proof that the machine has the keys of which it speaks.
///
/// # Errors
/// It is missing, or not what was in the credential.
pub fn check_proof(
    authority: &Authority,
    ticket: &str,
    keys: &DeviceKeys,
    proof: Option<&HexBytes>,
) -> Result<(), Problem> {
    if keys.tpm.is_none() {
        return Ok(());
    }
    let expected = Digest::of(&secret(authority, ticket, keys));
    // Digests, so that the time of the comparison tells nothing.
    if proof.is_some_and(|proof| Digest::of(&proof.0) == expected) {
        return Ok(());
    }
    Err(Problem::refused(format!(
        "ticket {ticket}: the machine has not proven that its keys are in its TPM"
    )))
}

/// Nothing has to be remembered: only the sky can make it again.
fn secret(authority: &Authority, ticket: &str, keys: &DeviceKeys) -> [u8; credential::SECRET] {
    authority.secret(&format!("credential {ticket} {}", keys.fingerprint()))
}
