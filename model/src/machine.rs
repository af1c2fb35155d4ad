//! A piece of hardware as its installer sees it. A machine is never a credential.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{Digest, HexBytes, MacAddr};

/// What the installer found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFacts {
    /// SMBIOS system serial number, or empty where the vendor gave none.
    pub serial: String,
    /// SMBIOS system UUID in its usual text form, lower case.
    pub uuid: String,
    /// SMBIOS manufacturer and product name.
    pub product: String,
    /// CPU model.
    pub cpu: String,
    /// Number of logical CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Disks that could be written, in the kernel's order.
    pub disks: Vec<DiskFacts>,
    /// Ethernet ports.
    pub nics: Vec<NicFacts>,
    /// `uefi` or `bios`.
    pub firmware: String,
    /// Whether Secure Boot is enforced.
    pub secure_boot: bool,
    /// Whether a TPM 2.0 answers.
    pub tpm: bool,
    /// What the installer finds wanting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// Something that the installer finds wanting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// One line, with what to do where something can be done.
    pub text: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// This machine cannot become a unit as it is.
    Stops,
    /// It can, and the operator should know.
    Matters,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskFacts {
    /// Device path in the installer, such as `/dev/vda`.
    pub path: String,
    /// Serial number, or empty.
    pub serial: String,
    /// Model, or empty.
    pub model: String,
    /// Size in bytes.
    pub size: u64,
    /// Removable disks are never installed to.
    pub removable: bool,
    /// What is on the disk now.
    pub content: DiskContent,
    /// What it says of its health; none where it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<DiskHealth>,
}

/// What a disk says of its own health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum DiskHealth {
    /// It is well.
    Passed,
    /// It fails, or is about to.
    Failing {
        /// What it counts, for people.
        reason: String,
    },
}

/// What a disk holds, as far as an erase is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskContent {
    /// The first and last MiB are zero.
    Empty,
    /// A LeapServ layout.
    Leapserv,
    /// Something else: erased only if the ticket says so.
    Foreign,
}

/// One Ethernet port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicFacts {
    /// Kernel name.
    pub name: String,
    /// Address.
    pub mac: MacAddr,
    /// Whether there is link.
    pub link: bool,
}

/// The short code that a machine shows on its screen and the operator types.
///
/// It is derived from the keys that the installer made, so that a code seen
/// on the screen names these keys and no others: someone between the machine
/// and the provisioner who swaps the keys changes the code.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineCode(String);

/// Crockford's base 32: no letter that a tired person reads as another.
pub(crate) const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl MachineCode {
    /// Derives the code (40 bits, as `XXXX-XXXX`) from the device's keys.
    pub fn of(keys: &DeviceKeys) -> Self {
        let digest = keys.fingerprint();
        let bits = digest.as_bytes()[..5]
            .iter()
            .fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let mut text: String = (0..8)
            .rev()
            .map(|group| char::from(ALPHABET[(bits >> (group * 5) & 31) as usize]))
            .collect();
        text.insert(4, '-');
        Self(text)
    }

    /// The code as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a machine's code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("machine code {0:?}: expected eight letters or digits, like 7QK2-M9XD")]
pub struct InvalidCode(String);

impl FromStr for MachineCode {
    type Err = InvalidCode;

    fn from_str(text: &str) -> Result<Self, InvalidCode> {
        let mut code: String = text
            .chars()
            .filter(|c| *c != '-')
            .map(|c| match c.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                c => c,
            })
            .collect();
        if code.len() != 8 || !code.bytes().all(|b| ALPHABET.contains(&b)) {
            return Err(InvalidCode(text.to_owned()));
        }
        code.insert(4, '-');
        Ok(Self(code))
    }
}

impl fmt::Display for MachineCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for MachineCode {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MachineCode {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The public halves of what a machine made for itself at birth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKeys {
    /// Certificate signing request (PKCS #10, PEM) of the TLS client key.
    pub csr: String,
    /// SHA-256 of the public key in the request (SubjectPublicKeyInfo, DER).
    pub public_key: Digest,
    /// The `age` recipient to which secrets for this machine are sealed.
    pub recipient: String,
    /// The TPM that the private halves are in; none where the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<TpmKeys>,
}

/// The TPM 2.0 in which a device's keys were made.
///
/// What it says is proven at redemption: only this TPM opens the ticket's
/// [`Credential`](crate::api::Credential).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmKeys {
    /// Public area (`TPMT_PUBLIC`) of the endorsement key: which TPM it is.
    pub endorsement_key: HexBytes,
    /// The endorsement key's certificate by the TPM's maker (DER), where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsement_certificate: Option<HexBytes>,
    /// Public area of the device key: that it was made there and cannot leave.
    pub device_key: HexBytes,
}

impl DeviceKeys {
    /// Returns the digest that a birth ticket is bound to.
    pub fn fingerprint(&self) -> Digest {
        let mut text = format!("{}\n{}\n", self.public_key, self.recipient);
        if let Some(tpm) = &self.tpm {
            text.push_str(&format!("{}\n{}\n", tpm.endorsement_key, tpm.device_key));
        }
        Digest::of(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(recipient: &str) -> DeviceKeys {
        DeviceKeys {
            csr: String::new(),
            public_key: Digest::of(b"key"),
            recipient: recipient.into(),
            tpm: None,
        }
    }

    #[test]
    fn another_tpm_is_another_fingerprint() {
        let in_tpm = |endorsement: u8| DeviceKeys {
            tpm: Some(TpmKeys {
                endorsement_key: HexBytes(vec![endorsement]),
                endorsement_certificate: None,
                device_key: HexBytes(vec![9]),
            }),
            ..keys("age1a")
        };
        assert_ne!(in_tpm(1).fingerprint(), in_tpm(2).fingerprint());
        assert_ne!(in_tpm(1).fingerprint(), keys("age1a").fingerprint());
    }

    #[test]
    fn a_code_names_its_keys() {
        let code = MachineCode::of(&keys("age1a"));
        assert_eq!(code, MachineCode::of(&keys("age1a")));
        assert_ne!(code, MachineCode::of(&keys("age1b")));
    }

    #[test]
    fn a_code_may_be_typed_carelessly() {
        let code = MachineCode::of(&keys("age1a"));
        let careless = code.as_str().to_lowercase().replace('-', "");
        assert_eq!(careless.parse(), Ok(code));
        assert!("1234".parse::<MachineCode>().is_err());
        assert!("7QK2-M9XU".parse::<MachineCode>().is_err());
    }
}
