//! Sealed secrets. The sky cannot open them, and takes nothing that is not sealed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use model::secrets::SealedSecrets;
use model::{DeviceIdentity, UnitName};

use super::unit::find;
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::NewEvent;

const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";
const VERSION_LINE: &[u8] = b"age-encryption.org/v1\n-> ";
/// The payload's nonce and the tag of its last chunk.
const LEAST_PAYLOAD: usize = 16 + 16;
/// Columns of a line of the armor.
const COLUMNS: usize = 64;
/// Largest sealed file in bytes; secrets are a few kilobytes.
const LARGEST: usize = 128 << 10;

/// Checks that the text is an armored `age` file, as far as one sees without a key.
///
/// # Errors
/// Invalid. The message never repeats the text: it may be a secret in the clear.
pub fn check_sealed(secrets: &SealedSecrets) -> Result<(), Problem> {
    let wrong = |problem| {
        Err(Problem::invalid(format!(
            "sealed secrets: {problem}, expected an ASCII-armored age file"
        )))
    };
    if secrets.age.len() > LARGEST {
        return wrong("too large");
    }
    let text = secrets.age.trim_end_matches(['\n', '\r']);
    let Some(body) = text
        .strip_prefix(BEGIN)
        .and_then(|rest| rest.strip_suffix(END))
    else {
        return wrong("no armor");
    };
    let lines: Vec<&str> = body.lines().skip(1).collect();
    let Some((last, full)) = lines.split_last() else {
        return wrong("empty");
    };
    let first = body.lines().next();
    if first != Some("")
        || full.iter().any(|line| line.len() != COLUMNS)
        || last.is_empty()
        || last.len() > COLUMNS
    {
        return wrong("malformed armor");
    }
    let Ok(bytes) = BASE64.decode(lines.concat()) else {
        return wrong("malformed armor");
    };
    let mac = bytes.windows(5).position(|window| window == b"\n--- ");
    let payload = mac.and_then(|start| {
        let rest = &bytes[start + 1..];
        rest.iter()
            .position(|b| *b == b'\n')
            .map(|end| rest.len() - end - 1)
    });
    match payload {
        Some(length) if bytes.starts_with(VERSION_LINE) && length >= LEAST_PAYLOAD => Ok(()),
        _ => wrong("not an age header"),
    }
}

/// What to do with an escrow that a unit sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EscrowStep {
    /// Nothing: none was sent, or this version is stored.
    Keep,
    /// It is new.
    Store,
    /// It is older than what is stored, which stays.
    Behind {
        /// The version that is stored.
        stored: u64,
    },
}

/// A version is never replaced: a newcomer that made secrets of its own must
/// not put them over those that open the old backups.
pub(super) fn escrow_step(sent: Option<u64>, stored: Option<u64>) -> EscrowStep {
    match (sent, stored) {
        (None, _) => EscrowStep::Keep,
        (Some(sent), Some(stored)) if sent < stored => EscrowStep::Behind { stored },
        (Some(sent), Some(stored)) if sent == stored => EscrowStep::Keep,
        (Some(_), _) => EscrowStep::Store,
    }
}

/// Returns the newest escrow of a unit.
///
/// # Errors
/// Not found.
pub async fn escrow(sky: &Sky, unit: &UnitName) -> Result<SealedSecrets, Problem> {
    let mut session = sky.store.read().await?;
    find(&mut session, unit).await?;
    let escrow = session.escrow(unit).await?;
    escrow.ok_or_else(|| Problem::not_found(format!("unit {unit}: no escrow is stored")))
}

/// Takes secrets that an operator sealed to the current incarnation's device.
///
/// # Errors
/// Not sealed, not the escrow's version, or not the current incarnation.
pub async fn put_device(
    sky: &Sky,
    identity: &DeviceIdentity,
    secrets: &SealedSecrets,
) -> Result<(), Problem> {
    check_sealed(secrets)?;
    let now = sky.now();
    let unit = &identity.unit;
    let mut session = sky.store.change().await?;
    let current = find(&mut session, unit).await?.incarnation;
    if identity.incarnation != current {
        return Err(Problem::conflict(format!(
            "unit {unit}: secrets for incarnation {}, {current} is current",
            identity.incarnation
        )));
    }
    session
        .incarnation(identity)
        .await?
        .ok_or_else(|| Problem::conflict(format!("unit {unit}: its birth was never begun")))?;
    let stored = session.escrow(unit).await?.map(|escrow| escrow.version);
    if stored != Some(secrets.version) {
        let found = stored.map_or_else(|| "none".to_owned(), |version| version.to_string());
        return Err(Problem::conflict(format!(
            "unit {unit}: secrets of version {}, the escrow's version is {found}",
            secrets.version
        ))
        .hint("fetch the escrow again, and seal that to the device"));
    }
    session.save_device_secrets(identity, secrets, now).await?;
    let message = format!("secrets sealed to incarnation {current}");
    session
        .append_event(NewEvent::new("secrets", message).unit(unit), now)
        .await?;
    session.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use age::armor::{ArmoredWriter, Format};
    use std::io::Write as _;

    fn seal(text: &str) -> String {
        let key = age::x25519::Identity::generate().to_public();
        let encryptor =
            age::Encryptor::with_recipients(std::iter::once(&key as &dyn age::Recipient)).unwrap();
        let mut armored = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor).unwrap();
        let mut writer = encryptor.wrap_output(&mut armored).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        writer.finish().unwrap();
        String::from_utf8(armored.finish().unwrap()).unwrap()
    }

    fn check(age: &str) -> Result<(), String> {
        let age = age.to_owned();
        check_sealed(&SealedSecrets { version: 1, age }).map_err(|problem| problem.to_string())
    }

    #[test]
    fn real_age_files_of_every_length_pass() {
        for length in 0..200 {
            assert_eq!(check(&seal(&"x".repeat(length))), Ok(()));
        }
        assert_eq!(check(seal("no newline at the end").trim_end()), Ok(()));
        assert_eq!(check(&seal("x").replace('\n', "\r\n")), Ok(()));
    }

    #[test]
    fn what_is_not_sealed_is_refused_and_not_repeated() {
        let clear = r#"{"version":1,"repository_password":"hurricane"}"#;
        let wrapped = format!("{BEGIN}\n{}\n{END}\n", BASE64.encode(clear));
        let beside = format!("{}hurricane\n", seal("x"));
        let before = format!("hurricane\n{}", seal("x"));
        let header = format!(
            "{BEGIN}\n{}\n{END}\n",
            BASE64.encode("age-encryption.org/v1\n-> hurricane")
        );
        let cut: String = seal("x").lines().take(2).collect();
        let empty = format!("{BEGIN}\n{END}\n");
        for bad in [
            clear, &wrapped, &beside, &before, &header, &cut, &empty, "", BEGIN,
        ] {
            let problem = check(bad).unwrap_err();
            assert!(!problem.contains("hurricane"), "{problem}");
        }
        assert!(check(&"x".repeat(LARGEST + 1)).is_err());
    }

    #[test]
    fn an_escrow_only_ever_moves_on() {
        assert_eq!(escrow_step(None, Some(3)), EscrowStep::Keep);
        assert_eq!(escrow_step(Some(1), None), EscrowStep::Store);
        assert_eq!(escrow_step(Some(4), Some(3)), EscrowStep::Store);
        assert_eq!(escrow_step(Some(3), Some(3)), EscrowStep::Keep);
        let behind = EscrowStep::Behind { stored: 3 };
        assert_eq!(escrow_step(Some(2), Some(3)), behind);
    }
}
