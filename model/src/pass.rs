//! The one-time code by which a machine without a factory reaches the sky.
//!
//! A pass lets an installer speak with the sky, for one unit, until the unit is born
//! or the pass has expired. It permits no erase and opens no secret: that takes a birth
//! ticket, as anywhere. It is told by voice and typed on site, so no image holds it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::machine::ALPHABET;
use crate::{Digest, UnitName};

/// Characters of a code, without its hyphens: 60 bits.
const LENGTH: usize = 12;
/// Characters between two hyphens.
const GROUP: usize = 4;

/// A pass's code, as `XXXX-XXXX-XXXX` in Crockford's base 32.
///
/// `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PassCode(String);

/// A text that is no pass code. It does not repeat the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("one-time code: expected 12 letters and digits, as XXXX-XXXX-XXXX")]
pub struct InvalidPass;

impl PassCode {
    /// Makes a code from random bytes, of which 60 bits are used.
    pub fn from_random(random: [u8; 8]) -> Self {
        let bits = u64::from_be_bytes(random);
        let characters: Vec<u8> = (0..LENGTH)
            .map(|place| ALPHABET[(bits >> (place * 5) & 31) as usize])
            .collect();
        Self::grouped(&characters)
    }

    fn grouped(characters: &[u8]) -> Self {
        let groups: Vec<_> = characters
            .chunks(GROUP)
            .map(String::from_utf8_lossy)
            .collect();
        Self(groups.join("-"))
    }

    /// The code as text, to be told to a person or sent to the sky.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the sky keeps of it.
    pub fn hash(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for PassCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassCode")
    }
}

impl FromStr for PassCode {
    type Err = InvalidPass;

    /// Reads what a person has typed: hyphens, spaces and small letters are welcome, and
    /// letters that look like digits are these digits.
    fn from_str(text: &str) -> Result<Self, InvalidPass> {
        let characters: Vec<u8> = text
            .bytes()
            .filter(|byte| !matches!(byte, b'-' | b' ' | b'\t' | b'\r' | b'\n'))
            .map(|byte| match byte.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            })
            .collect();
        let good =
            characters.len() == LENGTH && characters.iter().all(|byte| ALPHABET.contains(byte));
        if good {
            Ok(Self::grouped(&characters))
        } else {
            Err(InvalidPass)
        }
    }
}

/// A pass to be kept by the sky, which never sees its code before it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPass {
    /// [`PassCode::hash`].
    pub hash: Digest,
    /// Until when it counts.
    pub expires: Timestamp,
}

/// A pass as the sky shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassView {
    /// The unit that a machine may become with it.
    pub unit: UnitName,
    /// Until when it counts.
    pub expires: Timestamp,
}

/// Where an installer on a stick finds the sky. Public, and believed by nobody: whatever
/// comes from there is verified as anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StickSettings {
    /// The sky, `https://HOST:PORT`.
    pub sky: String,
    /// The CA of its certificate (PEM).
    pub ca: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_carelessly_as_people_type() {
        let code = PassCode::from_random([0x1e, 0xa9, 3, 4, 5, 6, 7, 8]);
        assert_eq!(code.as_str().len(), LENGTH + 2);
        let careless = code
            .as_str()
            .to_lowercase()
            .replace('-', " ")
            .replace('0', "o")
            .replace('1', "l");
        assert_eq!(careless.parse(), Ok(code.clone()));
        assert_eq!(
            format!(" {}\r\n", code.as_str()).parse(),
            Ok(code),
            "as a file on a stick has it"
        );
        for bad in ["", "XXXX-XXXX", "UUUU-UUUU-UUUU", "0000-0000-00000"] {
            assert_eq!(bad.parse::<PassCode>(), Err(InvalidPass), "{bad}");
        }
    }

    #[test]
    fn every_random_bit_of_sixty_counts_and_none_is_logged() {
        let zero = PassCode::from_random([0; 8]);
        assert_eq!(zero.as_str(), "0000-0000-0000");
        for bit in 0..60 {
            let other = PassCode::from_random((1u64 << bit).to_be_bytes());
            assert_ne!(other, zero, "{bit}");
            assert_ne!(other.hash(), zero.hash(), "{bit}");
        }
        assert!(!format!("{zero:?}").contains("0000"));
    }
}
