//! Against Debian's software TPM.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use tpm::emulator::Emulator;
use tpm::{Blob, Tpm, TpmError, credential};

fn refused<T: std::fmt::Debug>(result: Result<T, TpmError>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, TpmError::Refused { .. }), "{error}");
    error.to_string()
}

#[test]
fn a_key_is_made_in_the_chip_signs_there_and_nowhere_else() {
    let chip = Emulator::start().unwrap();
    let mut tpm = chip.open().unwrap();
    let (key, public) = tpm.create_key().unwrap();
    assert!(public.is_device_key());
    let message = b"a hand shaken";
    let hash: [u8; 32] = digest(&SHA256, message).as_ref().try_into().unwrap();
    // More often than a chip has room for objects: nothing stays in it.
    for _ in 0..8 {
        let signature = tpm.sign(&key, &hash).unwrap();
        let verifier = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public.point());
        verifier.verify(message, &signature).unwrap();
        assert!(verifier.verify(b"another", &signature).is_err());
    }
    // From its file again.
    let again = Blob::from_pem(&key.to_pem()).unwrap();
    assert!(tpm.sign(&again, &hash).is_ok());
    let mut altered = key.clone();
    *altered.private.last_mut().unwrap() ^= 1;
    refused(tpm.sign(&altered, &hash));
    assert!(tpm.sign(&key, &hash).is_ok(), "after a refusal");
    drop(tpm);

    let other = Emulator::start().unwrap();
    let message = refused(other.open().unwrap().sign(&key, &hash));
    assert!(message.starts_with("TPM: load: refused with"), "{message}");
}

#[test]
fn a_secret_comes_back_from_its_chip_alone() {
    let chip = Emulator::start().unwrap();
    let mut tpm = chip.open().unwrap();
    let secret = b"AGE-SECRET-KEY-1 and so on, seventy-four characters of it, with an end";
    let sealed = tpm.seal(secret).unwrap();
    assert!(!sealed.to_pem().contains("AGE-SECRET"));
    let file = Blob::from_pem(&sealed.to_pem()).unwrap();
    assert_eq!(*tpm.unseal(&file).unwrap(), secret);
    assert!(tpm.seal(&[1; 129]).is_err());
    drop(tpm);
    refused(Emulator::start().unwrap().open().unwrap().unseal(&sealed));
}

#[test]
fn the_credential_proves_which_chip_has_the_key() {
    let (chip, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let (mut tpm, mut clone) = (chip.open().unwrap(), other.open().unwrap());
    let endorsement = tpm.endorsement().unwrap().key;
    assert!(endorsement.is_endorsement_key());
    assert_eq!(
        tpm.endorsement().unwrap().key,
        endorsement,
        "always the same"
    );
    assert_ne!(clone.endorsement().unwrap().key, endorsement);
    let (key, public) = tpm.create_key().unwrap();
    let secret = [42; credential::SECRET];
    let credential = credential::wrap(&secret, &endorsement, &public).unwrap();
    assert_eq!(tpm.activate(&key, &credential).unwrap()[..], secret);

    // Another key in the same chip, the same key in another chip, an altered one.
    let (second, _) = tpm.create_key().unwrap();
    refused(tpm.activate(&second, &credential));
    refused(clone.activate(&key, &credential));
    let (own, _) = clone.create_key().unwrap();
    refused(clone.activate(&own, &credential));
    let mut altered = credential.clone();
    *altered.blob.last_mut().unwrap() ^= 1;
    refused(tpm.activate(&key, &altered));
    assert!(tpm.activate(&key, &credential).is_ok(), "after refusals");
}

#[test]
fn a_machine_without_a_chip_says_so() {
    let error = Tpm::open(Path::new("/dev/no-such-tpm")).unwrap_err();
    assert_eq!(error.to_string(), "TPM /dev/no-such-tpm");
}
