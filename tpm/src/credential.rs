//! The proof that a key is in the TPM of a certain endorsement key.
//!
//! A secret is wrapped for the endorsement key and for the name of the other key.
//! A TPM unwraps it only if it has both (Library part 1, 24, "Credential
//! Protection"). Who gets the secret back knows that the key is in that TPM.

use aes::Aes128;
use aes::cipher::KeyIvInit as _;
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::digest::{Context, SHA256};
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::SystemRandom;
use zeroize::Zeroizing;

use crate::public::COORDINATE;
use crate::{Public, TpmError};

/// Bytes of a secret in a credential.
pub const SECRET: usize = 32;

/// A wrapped secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The content of a `TPM2B_ID_OBJECT`: integrity and encrypted secret.
    pub blob: Vec<u8>,
    /// The content of a `TPM2B_ENCRYPTED_SECRET`: a point that only the
    /// endorsement key makes a key of.
    pub secret: Vec<u8>,
}

/// Wraps a secret for the TPM that has both keys.
///
/// # Errors
/// `endorsement` is not a point on its curve; the system has no randomness.
pub fn wrap(
    secret: &[u8; SECRET],
    endorsement: &Public,
    key: &Public,
) -> Result<Credential, TpmError> {
    const WHAT: &str = "credential";
    let random = SystemRandom::new();
    let ephemeral = EphemeralPrivateKey::generate(&ECDH_P256, &random)
        .map_err(|_| TpmError::malformed(WHAT, "no randomness"))?;
    let ours = ephemeral
        .compute_public_key()
        .map_err(|_| TpmError::malformed(WHAT, "no randomness"))?;
    let theirs = UnparsedPublicKey::new(&ECDH_P256, &endorsement.point()[..]);
    let (our_x, our_y) = coordinates(ours.as_ref());
    let (their_x, _) = coordinates(endorsement.point());
    let seed = agree_ephemeral(ephemeral, &theirs, |shared| {
        kdf_e(shared, b"IDENTITY", our_x, their_x)
    })
    .map_err(|_| TpmError::malformed(WHAT, "the endorsement key is no point on P-256"))?;

    let name = key.name();
    let mut identity = sized(secret);
    let wrapping = kdf_a(&*seed, b"STORAGE", &name, 128);
    cfb_mode::Encryptor::<Aes128>::new_from_slices(&wrapping[..16], &[0; 16])
        .map_err(|_| TpmError::malformed(WHAT, "key of a wrong length"))?
        .encrypt(&mut identity);
    let integrity = kdf_a(&*seed, b"INTEGRITY", &[], 256);
    let mut mac = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, &*integrity));
    mac.update(&identity);
    mac.update(&name);
    let mut blob = sized(mac.sign().as_ref());
    blob.extend_from_slice(&identity);
    Ok(Credential {
        blob,
        secret: [sized(our_x), sized(our_y)].concat(),
    })
}

/// X and Y of an uncompressed point.
fn coordinates(point: &[u8]) -> (&[u8], &[u8]) {
    point[1..].split_at(COORDINATE)
}

/// A `TPM2B`: two bytes of length, then the bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], bytes].concat()
}

/// Library part 1, 11.4.10.3, for one round of SHA-256.
fn kdf_e(shared: &[u8], label: &[u8], ours: &[u8], theirs: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut context = Context::new(&SHA256);
    for part in [&1u32.to_be_bytes()[..], shared, label, &[0], ours, theirs] {
        context.update(part);
    }
    block(context.finish().as_ref())
}

/// Library part 1, 11.4.10.2, for one round of HMAC with SHA-256.
fn kdf_a(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Zeroizing<[u8; 32]> {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, key));
    for part in [
        &1u32.to_be_bytes()[..],
        label,
        &[0],
        context,
        &bits.to_be_bytes(),
    ] {
        mac.update(part);
    }
    block(mac.sign().as_ref())
}

fn block(bytes: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut block = Zeroizing::new([0; 32]);
    block.copy_from_slice(bytes);
    block
}
