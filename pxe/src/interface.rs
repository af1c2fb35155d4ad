//! Network interfaces by their names.

use std::io;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_no_silence() {
        let error = link_address("no-such-if0").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
