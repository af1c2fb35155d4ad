//! What keys are to be like.

use tpm2_protocol::basic::TpmUint16;
use tpm2_protocol::data::{
    Tpm2bDigest, Tpm2bEccParameter, TpmAlgId, TpmEccCurve, TpmaObject, TpmsEccParms, TpmsEccPoint,
    TpmsKeyedhashParms, TpmsSchemeHash, TpmtEccScheme, TpmtKdfScheme, TpmtKeyedhashScheme,
    TpmtPublic, TpmtSymDefObject, TpmuAsymScheme, TpmuPublicId, TpmuPublicParms, TpmuSymKeyBits,
    TpmuSymMode,
};

/// `PolicySecret(TPM_RH_ENDORSEMENT)` (TCG EK Credential Profile, B.3.2).
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// Where a chip keeps the certificate of the endorsement key that [`endorsement`]
/// describes (TCG EK Credential Profile, 2.2.1.4: ECC NIST P256).
pub(crate) const ENDORSEMENT_CERTIFICATE: u32 = 0x01c0_000a;

/// The endorsement key: template L-2 of the TCG EK Credential Profile. The same
/// chip makes the same key of it each time.
pub(crate) fn endorsement() -> TpmtPublic {
    let attributes = TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::SENSITIVE_DATA_ORIGIN
        | TpmaObject::ADMIN_WITH_POLICY
        | TpmaObject::RESTRICTED
        | TpmaObject::DECRYPT;
    let zero = parameter(&[0; 32]);
    TpmtPublic {
        auth_policy: digest(&ENDORSEMENT_POLICY),
        unique: TpmuPublicId::Ecc(TpmsEccPoint { x: zero, y: zero }),
        ..elliptic(attributes, aes(), None)
    }
}

/// The parent of our keys: the storage key that TPM key files mean by the owner's
/// handle ("ASN.1 Specification for TPM 2.0 Key Files", 3.1.8). Made anew each time
/// and always the same, so that nothing has to be kept in the chip.
pub(crate) fn storage() -> TpmtPublic {
    let attributes = TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::SENSITIVE_DATA_ORIGIN
        | TpmaObject::USER_WITH_AUTH
        | TpmaObject::NO_DA
        | TpmaObject::RESTRICTED
        | TpmaObject::DECRYPT;
    elliptic(attributes, aes(), None)
}

/// What a device key has to be: made in the chip, never to leave it, for signatures.
pub(crate) fn device_attributes() -> TpmaObject {
    TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::SENSITIVE_DATA_ORIGIN
        | TpmaObject::USER_WITH_AUTH
        | TpmaObject::NO_DA
        | TpmaObject::SIGN_ENCRYPT
}

/// A device key: ECDSA over P-256 with SHA-256.
pub(crate) fn device() -> TpmtPublic {
    let scheme = TpmtEccScheme {
        scheme: TpmAlgId::Ecdsa,
        details: TpmuAsymScheme::Hash(TpmsSchemeHash {
            hash_alg: TpmAlgId::Sha256,
        }),
    };
    elliptic(
        device_attributes(),
        TpmtSymDefObject::default(),
        Some(scheme),
    )
}

/// A secret that only this chip gives back.
pub(crate) fn sealed() -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::KeyedHash,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::FIXED_TPM
            | TpmaObject::FIXED_PARENT
            | TpmaObject::USER_WITH_AUTH
            | TpmaObject::NO_DA,
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::KeyedHash(TpmsKeyedhashParms {
            scheme: TpmtKeyedhashScheme::default(),
        }),
        unique: TpmuPublicId::KeyedHash(Tpm2bDigest::default()),
    }
}

fn elliptic(
    object_attributes: TpmaObject,
    symmetric: TpmtSymDefObject,
    scheme: Option<TpmtEccScheme>,
) -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes,
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric,
            scheme: scheme.unwrap_or_default(),
            curve_id: TpmEccCurve::NistP256,
            kdf: TpmtKdfScheme::default(),
        }),
        unique: TpmuPublicId::Ecc(TpmsEccPoint {
            x: Tpm2bEccParameter::default(),
            y: Tpm2bEccParameter::default(),
        }),
    }
}

/// AES-128 in CFB mode, for what a storage key wraps.
fn aes() -> TpmtSymDefObject {
    TpmtSymDefObject {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::new(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    }
}

fn digest(bytes: &[u8; 32]) -> Tpm2bDigest {
    Tpm2bDigest::try_from(&bytes[..]).unwrap_or_default()
}

fn parameter(bytes: &[u8; 32]) -> Tpm2bEccParameter {
    Tpm2bEccParameter::try_from(&bytes[..]).unwrap_or_default()
}
