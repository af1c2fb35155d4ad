//! Network interfaces by their names.

use std::io;
use std::net::Ipv6Addr;

use nix::sys::socket::LinkAddr;

/// Returns an interface's number and MAC address.
///
/// Asks the kernel, not `/sys`: that shows the network namespace which mounted it.
pub(crate) fn link_address(interface: &str) -> io::Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Tells whether an interface has an address, be it still tried out.
pub(crate) fn has_address(interface: &str, address: Ipv6Addr) -> io::Result<bool> {
    let entries = nix::ifaddrs::getifaddrs()?;
    let mut ours = entries.filter(|entry| entry.interface_name == interface);
    Ok(ours.any(|entry| {
        let have = entry
            .address
            .as_ref()
            .and_then(|have| have.as_sockaddr_in6());
        have.is_some_and(|have| have.ip() == address)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_no_silence() {
        let error = link_address("no-such-if0").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_address_counts_on_its_own_interface_only() {
        let nobodys = "2001:db8::1".parse().unwrap();
        assert!(!has_address("lo", nobodys).unwrap());
        assert!(!has_address("no-such-if0", Ipv6Addr::LOCALHOST).unwrap());
    }
}
