//! Signatures: the envelope, the roles, and the one verifier of the workspace.
//!
//! The envelope follows DSSE 1.0.0: what is signed is the pre-authentication
//! encoding of the document's type and its exact bytes, so that a signature
//! over one kind of document never counts for another. The bytes are verified
//! as received and only then parsed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// Who may sign which kind of document. The first four are TUF's role names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Names the keys of all other roles.
    Root,
    /// Releases and their components. Held by the release engineer, offline.
    Targets,
    /// Which release a channel offers now. Held by the sky: freshness only.
    Timestamp,
    /// Configuration, commands, customer layers and birth tickets. Held by operators.
    Configuration,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Timestamp => "timestamp",
            Self::Configuration => "configuration",
        })
    }
}

/// A document that is only ever accepted with its role's signatures.
pub trait Document: Serialize + DeserializeOwned {
    /// The type that is signed along with the bytes.
    const TYPE: &'static str;
    /// The role whose keys must have signed.
    const ROLE: Role;

    /// The moment from which the document no longer counts, if it has one.
    fn expires(&self) -> Option<Timestamp> {
        None
    }
}

/// Names a key: the first 16 hexadecimal digits of the SHA-256 of its 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ed25519 public key, written as base64 of its 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Returns the name of the key.
    pub fn id(&self) -> KeyId {
        let digest = Digest::of(self.0.as_bytes()).to_string();
        KeyId(digest[..16].to_owned())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0.as_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let bytes = BASE64.decode(text).map_err(|_| TrustError::BadKey)?;
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| TrustError::BadKey)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| TrustError::BadKey)?;
        // A weak key verifies forged signatures.
        if key.is_weak() {
            return Err(TrustError::BadKey);
        }
        Ok(Self(key))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A private signing key. Its `Debug` shows its public name only.
pub struct Signer(SigningKey);

impl Signer {
    /// Makes a key from 32 random bytes of the caller's.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads a key from PKCS #8 PEM.
    ///
    /// # Errors
    /// `BadKey` when the text is not an Ed25519 private key.
    pub fn from_pem(pem: &str) -> Result<Self, TrustError> {
        SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| TrustError::BadKey)
    }

    /// Returns the private key as PKCS #8 PEM.
    pub fn to_pem(&self) -> String {
        self.0
            .to_pkcs8_pem(Default::default())
            .expect("an Ed25519 key always has a PKCS #8 form")
            .as_str()
            .to_owned()
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs `document`.
    pub fn sign<T: Document>(&self, document: &T) -> Signed<T> {
        let payload = serde_json::to_vec(document).expect("our documents are plain JSON values");
        let signature = self.0.sign(&pre_authentication_encoding(T::TYPE, &payload));
        Signed {
            payload_type: T::TYPE.to_owned(),
            payload: BASE64.encode(payload),
            signatures: vec![EnvelopeSignature {
                keyid: self.public().id(),
                sig: BASE64.encode(signature.to_bytes()),
            }],
            document: PhantomData,
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public().id())
    }
}

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    keyid: KeyId,
    sig: String,
}

/// A document with its signatures, not yet believed (a DSSE 1.0.0 envelope).
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, bound = "")]
pub struct Signed<T> {
    payload_type: String,
    payload: String,
    signatures: Vec<EnvelopeSignature>,
    #[serde(skip)]
    document: PhantomData<fn() -> T>,
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self {
            payload_type: self.payload_type.clone(),
            payload: self.payload.clone(),
            signatures: self.signatures.clone(),
            document: PhantomData,
        }
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.payload_type == other.payload_type
            && self.payload == other.payload
            && self.signatures == other.signatures
    }
}

impl<T> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed")
            .field("type", &self.payload_type)
            .field("signatures", &self.signatures.len())
            .finish_non_exhaustive()
    }
}

impl<T> Signed<T> {
    /// Adds the signatures of `other`, which must be of the same bytes.
    pub fn merge(&mut self, other: Self) {
        if self.payload == other.payload {
            self.signatures.extend(other.signatures);
        }
    }
}

/// A document whose signatures were verified. Only [`TrustRoot::verify`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified<T>(T, Vec<KeyId>);

impl<T> Verified<T> {
    /// The keys whose signatures counted, for the audit.
    pub fn signers(&self) -> &[KeyId] {
        &self.1
    }

    /// Gives the document away.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// The keys of one role and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleKeys {
    /// The keys.
    pub keys: Vec<PublicKey>,
    /// How many different keys must have signed; never 0.
    pub threshold: u32,
}

/// Whom an installer, a unit and the sky believe. It stands in every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRoot {
    /// Rises with every change.
    pub version: u64,
    /// The keys of each role.
    pub roles: BTreeMap<Role, RoleKeys>,
    /// The `age` recipients to which a unit's secrets are sealed.
    pub recovery: Vec<String>,
}

/// Why a document is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A key's text is not an Ed25519 key, or the key is a weak one.
    #[error("key: expected an Ed25519 key")]
    BadKey,
    /// The envelope holds another kind of document.
    #[error("signed document: expected {expected}, found {found}")]
    WrongType {
        /// What was asked for.
        expected: &'static str,
        /// What the envelope says.
        found: String,
    },
    /// The payload is not base64.
    #[error("signed document: payload is not base64")]
    BadPayload,
    /// Too few different keys of the role have signed.
    #[error("{role} role: {valid} valid signatures where {threshold} are needed")]
    Threshold {
        /// The role.
        role: Role,
        /// Different keys that have signed.
        valid: u32,
        /// Keys that must have.
        threshold: u32,
    },
    /// The document is past its end.
    #[error("{kind}: expired at {expired}, now {now}")]
    Expired {
        /// The document's type.
        kind: &'static str,
        /// Its end.
        expired: Timestamp,
        /// The caller's time.
        now: Timestamp,
    },
    /// The signature is good and the document is not what its type says.
    #[error("{kind}: signed, but not readable: {problem}")]
    Malformed {
        /// The document's type.
        kind: &'static str,
        /// What the parser said.
        problem: String,
    },
}

impl TrustRoot {
    /// Verifies an envelope and returns its document.
    ///
    /// This is the one signature-threshold function of the workspace. A key
    /// that signed twice counts once, and an unknown key does not count.
    ///
    /// # Errors
    /// Every [`TrustError`] but `BadKey`.
    pub fn verify<T: Document>(
        &self,
        signed: &Signed<T>,
        now: Timestamp,
    ) -> Result<Verified<T>, TrustError> {
        if signed.payload_type != T::TYPE {
            return Err(TrustError::WrongType {
                expected: T::TYPE,
                found: signed.payload_type.clone(),
            });
        }
        let payload = BASE64
            .decode(&signed.payload)
            .map_err(|_| TrustError::BadPayload)?;
        let signers = self.check_threshold(T::ROLE, T::TYPE, &payload, &signed.signatures)?;
        let document: T =
            serde_json::from_slice(&payload).map_err(|problem| TrustError::Malformed {
                kind: T::TYPE,
                problem: problem.to_string(),
            })?;
        match document.expires() {
            Some(expired) if expired <= now => Err(TrustError::Expired {
                kind: T::TYPE,
                expired,
                now,
            }),
            _ => Ok(Verified(document, signers)),
        }
    }

    fn check_threshold(
        &self,
        role: Role,
        kind: &str,
        payload: &[u8],
        signatures: &[EnvelopeSignature],
    ) -> Result<Vec<KeyId>, TrustError> {
        let message = pre_authentication_encoding(kind, payload);
        let keys = self.roles.get(&role);
        let threshold = keys.map_or(1, |keys| keys.threshold.max(1));
        let signers: BTreeSet<KeyId> = keys
            .into_iter()
            .flat_map(|keys| &keys.keys)
            .filter(|key| {
                let id = key.id();
                signatures
                    .iter()
                    .filter(|signature| signature.keyid == id)
                    .filter_map(|signature| BASE64.decode(&signature.sig).ok())
                    .filter_map(|bytes| Signature::from_slice(&bytes).ok())
                    .any(|signature| key.0.verify_strict(&message, &signature).is_ok())
            })
            .map(PublicKey::id)
            .collect();
        let valid = u32::try_from(signers.len()).unwrap_or(u32::MAX);
        if valid < threshold {
            return Err(TrustError::Threshold {
                role,
                valid,
                threshold,
            });
        }
        Ok(signers.into_iter().collect())
    }
}

/// DSSE 1.0.0, "PAE": what is signed.
fn pre_authentication_encoding(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
        until: Option<Timestamp>,
    }

    impl Document for Note {
        const TYPE: &'static str = "application/vnd.leapserv.note+json";
        const ROLE: Role = Role::Targets;

        fn expires(&self) -> Option<Timestamp> {
            self.until
        }
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Other {}

    impl Document for Other {
        const TYPE: &'static str = "application/vnd.leapserv.other+json";
        const ROLE: Role = Role::Targets;
    }

    fn note() -> Note {
        Note {
            text: "shrimp".into(),
            until: None,
        }
    }

    fn root(role: Role, signers: &[&Signer], threshold: u32) -> TrustRoot {
        let keys = signers.iter().map(|signer| signer.public()).collect();
        TrustRoot {
            version: 1,
            roles: BTreeMap::from([(role, RoleKeys { keys, threshold })]),
            recovery: Vec::new(),
        }
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_signed_document_is_believed() {
        let signer = Signer::from_seed(&[1; 32]);
        let root = root(Role::Targets, &[&signer], 1);
        let verified = root.verify(&signer.sign(&note()), NOW).unwrap();
        assert_eq!(*verified, note());
    }

    #[test]
    fn a_key_that_signs_twice_counts_once() {
        let (a, b) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
        let root = root(Role::Targets, &[&a, &b], 2);
        let mut signed = a.sign(&note());
        signed.merge(a.sign(&note()));
        let refused = root.verify(&signed, NOW).unwrap_err();
        assert_eq!(
            refused,
            TrustError::Threshold {
                role: Role::Targets,
                valid: 1,
                threshold: 2
            }
        );
        signed.merge(b.sign(&note()));
        // A stranger's signature neither counts nor is named.
        signed.merge(Signer::from_seed(&[3; 32]).sign(&note()));
        let verified = root.verify(&signed, NOW).unwrap();
        let mut both = vec![a.public().id(), b.public().id()];
        both.sort();
        assert_eq!(verified.signers(), both);
    }

    #[test]
    fn a_key_listed_twice_counts_once() {
        let a = Signer::from_seed(&[1; 32]);
        let root = root(Role::Targets, &[&a, &a], 2);
        assert!(root.verify(&a.sign(&note()), NOW).is_err());
    }

    #[test]
    fn a_key_of_another_role_is_refused() {
        let signer = Signer::from_seed(&[1; 32]);
        let root = root(Role::Configuration, &[&signer], 1);
        assert!(root.verify(&signer.sign(&note()), NOW).is_err());
    }

    #[test]
    fn a_threshold_of_zero_is_no_free_pass() {
        let signer = Signer::from_seed(&[1; 32]);
        let mut signed = signer.sign(&note());
        signed.signatures.clear();
        assert!(
            root(Role::Targets, &[&signer], 0)
                .verify(&signed, NOW)
                .is_err()
        );
    }

    #[test]
    fn one_altered_byte_is_refused() {
        let signer = Signer::from_seed(&[1; 32]);
        let root = root(Role::Targets, &[&signer], 1);
        let mut signed = signer.sign(&note());
        signed.payload = BASE64.encode(br#"{"text":"shrimq","until":null}"#);
        assert!(root.verify(&signed, NOW).is_err());
    }

    #[test]
    fn a_signature_for_one_type_does_not_count_for_another() {
        let signer = Signer::from_seed(&[1; 32]);
        let root = root(Role::Targets, &[&signer], 1);
        let signed = signer.sign(&Other {});
        let mut relabelled: Signed<Note> =
            serde_json::from_str(&serde_json::to_string(&signed).unwrap()).unwrap();
        assert!(matches!(
            root.verify(&relabelled, NOW),
            Err(TrustError::WrongType { .. })
        ));
        relabelled.payload_type = Note::TYPE.to_owned();
        assert!(matches!(
            root.verify(&relabelled, NOW),
            Err(TrustError::Threshold { .. })
        ));
    }

    #[test]
    fn an_expired_document_is_refused() {
        let signer = Signer::from_seed(&[1; 32]);
        let root = root(Role::Targets, &[&signer], 1);
        let signed = signer.sign(&Note {
            until: Some(NOW),
            ..note()
        });
        assert!(matches!(
            root.verify(&signed, NOW),
            Err(TrustError::Expired { .. })
        ));
    }

    #[test]
    fn a_private_key_survives_its_file_and_stays_out_of_logs() {
        let signer = Signer::from_seed(&[7; 32]);
        let again = Signer::from_pem(&signer.to_pem()).unwrap();
        assert_eq!(again.public(), signer.public());
        assert!(!format!("{signer:?}").contains("7, 7"));
    }
}
