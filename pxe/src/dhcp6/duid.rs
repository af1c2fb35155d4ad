//! Who asks: the DHCP unique identifier of a client or a server (RFC 8415, section 11).

use std::fmt;

use model::id::MacAddr;

use crate::boot::MachineUuid;

/// Link-layer address and time (section 11.2).
const LLT: u16 = 1;
/// Link-layer address (section 11.4).
const LL: u16 = 3;
/// UUID (RFC 6355): the machine's own, where firmware asks.
const UUID: u16 = 4;
/// Hardware type of IANA's ARP registry.
const ETHERNET: u16 = 1;

/// The longest identifier, with its type.
const LONGEST: usize = 130;

/// A DHCP unique identifier. Anybody can claim it: it names a client and proves nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duid(Vec<u8>);

impl Duid {
    /// Takes the bytes of an option; `None` for a length that no identifier has.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (3..=LONGEST)
            .contains(&bytes.len())
            .then(|| Self(bytes.to_vec()))
    }

    /// The identifier of who has a network card with this address.
    #[must_use]
    pub fn of_mac(mac: MacAddr) -> Self {
        let mut bytes = [LL.to_be_bytes(), ETHERNET.to_be_bytes()].concat();
        bytes.extend(mac.0);
        Self(bytes)
    }

    /// Its bytes, type first.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The address of a network card in it, not always the one that asks.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddr> {
        let (kind, rest) = self.0.split_first_chunk()?;
        let (hardware, rest) = rest.split_first_chunk()?;
        let address = match u16::from_be_bytes(*kind) {
            LL => rest,
            LLT => rest.get(4..)?,
            _ => return None,
        };
        let ethernet = u16::from_be_bytes(*hardware) == ETHERNET;
        ethernet.then_some(MacAddr(address.try_into().ok()?))
    }

    /// The machine identifier in it. EDK II puts the bytes of SMBIOS there, as in
    /// option 97 of DHCPv4.
    #[must_use]
    pub fn uuid(&self) -> Option<MachineUuid> {
        let (kind, rest) = self.0.split_first_chunk()?;
        (u16::from_be_bytes(*kind) == UUID).then_some(MachineUuid(rest.try_into().ok()?))
    }
}

impl fmt::Display for Duid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let colon = if place == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Duid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

    #[test]
    fn a_card_and_a_machine_are_found_where_they_are_named() {
        let ll = Duid::of_mac(MAC);
        assert_eq!(ll.to_string(), "00:03:00:01:52:54:00:01:02:03");
        assert_eq!((ll.mac(), ll.uuid()), (Some(MAC), None));

        let mut llt = vec![0, 1, 0, 1, 9, 9, 9, 9];
        llt.extend(MAC.0);
        assert_eq!(Duid::new(&llt).unwrap().mac(), Some(MAC));
        llt[3] = 6;
        assert_eq!(Duid::new(&llt).unwrap().mac(), None, "not Ethernet");

        let uuid = [[0, 4].as_slice(), &[7; 16]].concat();
        let uuid = Duid::new(&uuid).unwrap();
        assert_eq!(
            (uuid.mac(), uuid.uuid()),
            (None, Some(MachineUuid([7; 16])))
        );
        let short = Duid::new(&[0, 4, 7]).unwrap();
        assert_eq!(short.uuid(), None);
        // By an enterprise's own number: systemd's.
        assert_eq!(Duid::new(&[0, 2, 0, 0, 0xab, 0x11]).unwrap().mac(), None);
    }

    #[test]
    fn lengths_that_no_identifier_has_are_refused() {
        for length in [0, 2, 131] {
            assert_eq!(Duid::new(&vec![0; length]), None);
        }
    }
}
