//! Identifiers: small values with one way in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?}: expected {expected}")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
    expected: &'static str,
}

impl InvalidId {
    fn new(kind: &'static str, text: &str, expected: &'static str) -> Self {
        Self {
            kind,
            text: text.to_owned(),
            expected,
        }
    }
}

/// Lets serde go through `FromStr` and `Display`, so that there is one door.
macro_rules! text_serde {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 40
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

const LABEL: &str = "1 to 40 of a-z, 0-9 and '-', not at either end";

/// The tenant that owns units, for example `motivatit`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomerName(String);

impl CustomerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CustomerName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if is_label(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new("customer", text, LABEL))
        }
    }
}

impl fmt::Display for CustomerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_serde!(CustomerName);

/// The logical appliance, `customer/name`. It outlives its hardware.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName {
    customer: CustomerName,
    name: String,
}

impl UnitName {
    /// The customer who owns the unit.
    pub fn customer(&self) -> &CustomerName {
        &self.customer
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for UnitName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let expected = "CUSTOMER/NAME, each 1 to 40 of a-z, 0-9 and '-'";
        let bad = || InvalidId::new("unit", text, expected);
        let (customer, name) = text.split_once('/').ok_or_else(bad)?;
        if !is_label(name) {
            return Err(bad());
        }
        Ok(Self {
            customer: customer.parse().map_err(|_| bad())?,
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.customer, self.name)
    }
}

text_serde!(UnitName);

/// The number of a machine's service as a unit. One is current; all lower ones are fenced.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Incarnation(pub u32);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who a device certificate speaks for.
///
/// It stands in the certificate as a subject alternative name of the URI
/// kind: `urn:leapserv:CUSTOMER/NAME:INCARNATION`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceIdentity {
    /// The unit.
    pub unit: UnitName,
    /// Which incarnation of it.
    pub incarnation: Incarnation,
}

impl FromStr for DeviceIdentity {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bad = || InvalidId::new("device identity", text, "urn:leapserv:CUSTOMER/NAME:NUMBER");
        let rest = text.strip_prefix("urn:leapserv:").ok_or_else(bad)?;
        let (unit, number) = rest.rsplit_once(':').ok_or_else(bad)?;
        Ok(Self {
            unit: unit.parse().map_err(|_| bad())?,
            incarnation: Incarnation(number.parse().map_err(|_| bad())?),
        })
    }
}

impl fmt::Display for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "urn:leapserv:{}:{}", self.unit, self.incarnation)
    }
}

text_serde!(DeviceIdentity);

/// A release's version, `YEAR.MONTH.NUMBER`, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseVersion {
    year: u16,
    month: u8,
    number: u32,
}

impl FromStr for ReleaseVersion {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bad = || InvalidId::new("release", text, "YEAR.MONTH.NUMBER, like 2026.11.1");
        let mut parts = text.split('.');
        let mut next = || {
            let part = parts.next().ok_or_else(bad)?;
            // One spelling for each version: file names are compared as text.
            let canonical =
                part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            if canonical { Ok(part) } else { Err(bad()) }
        };
        let version = Self {
            year: next()?.parse().map_err(|_| bad())?,
            month: next()?.parse().map_err(|_| bad())?,
            number: next()?.parse().map_err(|_| bad())?,
        };
        if parts.next().is_some() || !(2000..=9999).contains(&version.year) {
            return Err(bad());
        }
        if !(1..=12).contains(&version.month) {
            return Err(bad());
        }
        Ok(version)
    }
}

impl fmt::Display for ReleaseVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.year, self.month, self.number)
    }
}

text_serde!(ReleaseVersion);

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Digest {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bad = || InvalidId::new("SHA-256", text, "64 lower-case hexadecimal digits");
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_serde!(Digest);

/// Bytes of some other format, written as lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HexBytes(pub Vec<u8>);

impl FromStr for HexBytes {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bad = || InvalidId::new("bytes", text, "pairs of lower-case hexadecimal digits");
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        hex::decode(text).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_serde!(HexBytes);

/// An Ethernet address, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl FromStr for MacAddr {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bad = || InvalidId::new("MAC address", text, "six pairs of hexadecimal digits");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_serde!(MacAddr);

/// A kind of processor, in Debian's word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// 64-bit x86.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Architecture {
    /// Those that a release can be for.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// That of the running program.
    #[cfg(target_arch = "x86_64")]
    pub const OURS: Self = Self::Amd64;
    /// That of the running program.
    #[cfg(target_arch = "aarch64")]
    pub const OURS: Self = Self::Arm64;

    /// Returns Debian's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.name() == text)
            .ok_or_else(|| InvalidId::new("architecture", text, "amd64 or arm64"))
    }
}

text_serde!(Architecture);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_keep_customers_apart() {
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        assert_eq!(unit.customer().as_str(), "motivatit");
        for bad in ["motivatit", "a/b/c", "../etc/x", "A/b", "a/-b", "/b", "a/"] {
            assert!(bad.parse::<UnitName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn releases_are_ordered_by_number_and_not_by_text() {
        let parse = |text: &str| text.parse::<ReleaseVersion>().unwrap();
        assert!(parse("2026.11.10") > parse("2026.11.9"));
        assert!(parse("2027.1.1") > parse("2026.12.30"));
        for bad in [
            "2026.11",
            "2026.13.1",
            "2026.011.1",
            "2026.11.1.1",
            "v1.2.3",
            "2026.11.+1",
        ] {
            assert!(bad.parse::<ReleaseVersion>().is_err(), "{bad}");
        }
    }

    #[test]
    fn device_identity_survives_its_text() {
        let identity = DeviceIdentity {
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(2),
        };
        assert_eq!(identity.to_string(), "urn:leapserv:motivatit/houma-1:2");
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }

    #[test]
    fn a_mac_address_survives_its_text() {
        let mac: MacAddr = "52-54-00-AB-cd-01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
        assert!("52:54:00:12:34".parse::<MacAddr>().is_err());
    }

    #[test]
    fn an_architecture_is_debians_word_and_another_one_is_named() {
        for (architecture, word) in Architecture::ALL.into_iter().zip(["amd64", "arm64"]) {
            assert_eq!(architecture.to_string(), word);
            assert_eq!(
                serde_json::to_value(architecture).unwrap(),
                serde_json::json!(word)
            );
            assert_eq!(word.parse(), Ok(architecture));
        }
        for word in ["x86_64", "AMD64", "", "riscv64"] {
            let refused = serde_json::from_value::<Architecture>(serde_json::json!(word));
            assert_eq!(
                refused.unwrap_err().to_string(),
                format!("architecture {word:?}: expected amd64 or arm64")
            );
        }
    }
}
