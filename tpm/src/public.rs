//! The public area of an object in a TPM: what it is, and its name.

use ring::digest::{SHA256, digest};
use tpm2_protocol::data::{TpmAlgId, TpmtPublic, TpmuPublicId};
use tpm2_protocol::{TpmUnmarshal as _, TpmWriter};

use crate::{TpmError, template};

/// Bytes of a coordinate on P-256.
pub(crate) const COORDINATE: usize = 32;
/// What stands before the point in a SubjectPublicKeyInfo of a P-256 key (RFC 5480).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The public area of a P-256 key in a TPM (`TPMT_PUBLIC`, Library part 2, 12.2.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    bytes: Vec<u8>,
    area: TpmtPublic,
    point: [u8; 65],
}

impl Public {
    /// Reads a public area.
    ///
    /// # Errors
    /// It is malformed, or not that of a P-256 key whose name is a SHA-256.
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        const WHAT: &str = "public area";
        let (area, rest) =
            TpmtPublic::unmarshal(bytes).map_err(|error| TpmError::malformed(WHAT, error))?;
        if !rest.is_empty() {
            return Err(TpmError::malformed(WHAT, "bytes behind its end"));
        }
        if area.name_alg != TpmAlgId::Sha256 {
            return Err(TpmError::malformed(WHAT, "expected names by SHA-256"));
        }
        let TpmuPublicId::Ecc(unique) = &area.unique else {
            return Err(TpmError::malformed(WHAT, "expected a P-256 key"));
        };
        let mut point = [0; 65];
        point[0] = 4;
        let (x, y) = point[1..].split_at_mut(COORDINATE);
        for (to, from) in [(x, &*unique.x), (y, &*unique.y)] {
            let pad = COORDINATE
                .checked_sub(from.len())
                .ok_or_else(|| TpmError::malformed(WHAT, "coordinate too long for P-256"))?;
            to[pad..].copy_from_slice(from);
        }
        let public = Self {
            bytes: bytes.to_vec(),
            area,
            point,
        };
        // Whose bytes are another text for the same area would have another name.
        if marshalled(&public.area)? != bytes {
            return Err(TpmError::malformed(WHAT, "not in its one form"));
        }
        Ok(public)
    }

    pub(crate) fn of(area: &TpmtPublic) -> Result<Self, TpmError> {
        Self::parse(&marshalled(area)?)
    }

    /// The area as the TPM writes it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The object's name: algorithm and digest of the area (Library part 1, 16).
    pub fn name(&self) -> [u8; 34] {
        let mut name = [0; 34];
        name[..2].copy_from_slice(&[0x00, 0x0b]);
        name[2..].copy_from_slice(digest(&SHA256, &self.bytes).as_ref());
        name
    }

    /// The key as an uncompressed point (SEC 1, 2.3.3).
    pub fn point(&self) -> &[u8; 65] {
        &self.point
    }

    /// The key as certificates have it (SubjectPublicKeyInfo, DER).
    pub fn subject_public_key_info(&self) -> Vec<u8> {
        [&SPKI[..], &self.point[..]].concat()
    }

    /// Whether this is an endorsement key of the usual template.
    pub fn is_endorsement_key(&self) -> bool {
        self.is_like(&template::endorsement())
    }

    /// Whether this is a device key as we make it: made in its TPM, never to leave
    /// it, and for nothing but signatures.
    pub fn is_device_key(&self) -> bool {
        self.is_like(&template::device())
    }

    fn is_like(&self, template: &TpmtPublic) -> bool {
        let mut area = self.area.clone();
        area.unique = template.unique.clone();
        area == *template
    }
}

pub(crate) fn marshalled(value: &impl tpm2_protocol::TpmMarshal) -> Result<Vec<u8>, TpmError> {
    let mut buffer = [0; crate::channel::LARGEST];
    let mut writer = TpmWriter::new(&mut buffer);
    value
        .marshal(&mut writer)
        .map_err(|error| TpmError::malformed("own message", error))?;
    Ok(writer.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tpm2_protocol::data::{Tpm2bEccParameter, TpmaObject, TpmsEccPoint};

    use super::*;

    fn with_point(mut area: TpmtPublic, x: &[u8]) -> Vec<u8> {
        area.unique = TpmuPublicId::Ecc(TpmsEccPoint {
            x: Tpm2bEccParameter::try_from(x).unwrap(),
            y: Tpm2bEccParameter::try_from(&[2; 32][..]).unwrap(),
        });
        marshalled(&area).unwrap()
    }

    #[test]
    fn keys_are_told_apart_by_what_they_may_do() {
        let device = Public::parse(&with_point(template::device(), &[1; 32])).unwrap();
        assert!(device.is_device_key() && !device.is_endorsement_key());
        let endorsement = Public::parse(&with_point(template::endorsement(), &[1; 32])).unwrap();
        assert!(endorsement.is_endorsement_key() && !endorsement.is_device_key());
        // One that could be copied out of its TPM is none of ours.
        for lacking in [
            TpmaObject::FIXED_TPM,
            TpmaObject::FIXED_PARENT,
            TpmaObject::SENSITIVE_DATA_ORIGIN,
        ] {
            let mut area = template::device();
            area.object_attributes &= !lacking;
            let loose = Public::parse(&with_point(area, &[1; 32])).unwrap();
            assert!(!loose.is_device_key(), "{lacking:?}");
        }
    }

    #[test]
    fn short_coordinates_are_padded_and_long_ones_refused() {
        let short = Public::parse(&with_point(template::device(), &[7; 31])).unwrap();
        assert_eq!(short.point()[..3], [4, 0, 7]);
        assert!(Public::parse(&with_point(template::device(), &[7; 33])).is_err());
        let mut trailing = with_point(template::device(), &[7; 32]);
        trailing.push(0);
        assert!(Public::parse(&trailing).is_err());
        assert!(Public::parse(&marshalled(&template::sealed()).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..256),
            at in any::<prop::sample::Index>(),
            by in any::<u8>(),
        ) {
            let _ = Public::parse(&bytes);
            let mut real = with_point(template::device(), &[7; 32]);
            let at = at.index(real.len());
            real[at] ^= by;
            let _ = Public::parse(&real);
        }
    }
}
