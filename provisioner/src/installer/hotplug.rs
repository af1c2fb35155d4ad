//! Drivers for devices that appear after the first look at the hardware: sticks and
//! keyboards on USB, and disks behind a controller that takes its time.
//!
//! The kernel tells of each new device over a netlink socket (`kobject_uevent(9)` of the
//! kernel, `udev` reads the same), with the alias of the driver that it wants.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The kernel's own messages; those of `udev` are another group.
const KERNEL: u32 = 1;
/// Devices come in crowds: so long is waited for the rest of one.
const CROWD: Duration = Duration::from_millis(100);
/// Largest message of the kernel (`UEVENT_BUFFER_SIZE`), with room.
const MESSAGE: usize = 8192;

/// Follows the kernel from now on, and gives `load` the aliases of each crowd of devices.
///
/// # Errors
/// The kernel gives no socket, or no thread.
pub fn follow(load: impl Fn(&[&str]) + Send + 'static) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let kernel = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(KOBJECT_UEVENT),
    )?;
    bind(&kernel, &SocketAddrNetlink::new(0, KERNEL))?;
    let name = "hotplug".to_owned();
    let thread = std::thread::Builder::new().name(name);
    thread.spawn(move || {
        while let Ok(aliases) = crowd(&kernel) {
            let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
            load(&aliases);
        }
    })?;
    Ok(())
}

/// Waits for a device, and for those that come with it.
fn crowd(kernel: &OwnedFd) -> io::Result<Vec<String>> {
    let mut aliases = Vec::new();
    let mut message = vec![0; MESSAGE];
    loop {
        match recv(kernel, &mut message[..], RecvFlags::empty()) {
            Ok((length, _)) => {
                let alias = alias(&message[..length]).map(str::to_owned);
                aliases.extend(alias.filter(|alias| !aliases.contains(alias)));
            }
            // More came than the kernel keeps; the rest is still to be heard.
            Err(Errno::INTR | Errno::NOBUFS) => {}
            Err(error) => return Err(error.into()),
        }
        if !aliases.is_empty() && !more(kernel)? {
            return Ok(aliases);
        }
    }
}

/// Whether another message comes soon.
fn more(kernel: &OwnedFd) -> io::Result<bool> {
    let patience = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(CROWD.subsec_nanos()),
    };
    let mut fds = [PollFd::new(kernel, PollFlags::IN)];
    match poll(&mut fds, Some(&patience)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The alias in the message of a device that was added.
fn alias(message: &[u8]) -> Option<&str> {
    let lines = || {
        message
            .split(|byte| *byte == 0)
            .filter_map(|line| std::str::from_utf8(line).ok())
    };
    lines().find(|line| *line == "ACTION=add")?;
    lines()
        .find_map(|line| line.strip_prefix("MODALIAS="))
        .filter(|alias| !alias.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_that_was_added_wants_a_driver() {
        let added = b"add@/devices/x\0ACTION=add\0SUBSYSTEM=scsi\0MODALIAS=scsi:t-0x00\0SEQNUM=1\0";
        assert_eq!(alias(added), Some("scsi:t-0x00"));
        let removed = b"remove@/devices/x\0ACTION=remove\0MODALIAS=scsi:t-0x00\0";
        assert_eq!(alias(removed), None);
        assert_eq!(
            alias(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0"),
            None
        );
        assert_eq!(alias(b"add@/x\0ACTION=add\0MODALIAS=\0"), None);
        assert_eq!(alias(b"libudev\0\xff\xfe"), None);
        assert_eq!(alias(b""), None);
    }

    #[test]
    fn the_kernel_lets_itself_be_followed() {
        follow(|_| {}).unwrap();
    }
}
