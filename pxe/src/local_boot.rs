//! The UEFI program that goes on with the disk (`local-boot/main.rs`).
//!
//! Firmware that boots "network first" tries four kinds of network boot before
//! the disk and waits a minute for each that is not answered. A machine that is to
//! boot its disk is therefore answered at once, with this program. The TFTP and
//! HTTP servers hold it under [`PATH`], unless the boot source serves a file of
//! that path itself: with Secure Boot that must be the same program, signed.

use crate::boot::ClientArch;

/// Architecture of the program: the one that this library was built for.
pub const ARCH: ClientArch = if cfg!(target_arch = "x86_64") {
    ClientArch::UefiX64
} else {
    ClientArch::UefiArm64
};

/// Path of the program, for TFTP and HTTP.
pub const PATH: &str = if cfg!(target_arch = "x86_64") {
    "leapserv/local-boot-x64.efi"
} else {
    "leapserv/local-boot-aa64.efi"
};

/// The program, not signed.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/local-boot.efi"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_a_uefi_application() {
        let word = |at: usize| u16::from_le_bytes([PROGRAM[at], PROGRAM[at + 1]]);
        assert_eq!(&PROGRAM[..2], b"MZ");
        let header = usize::from(word(0x3c));
        assert_eq!(&PROGRAM[header..header + 4], b"PE\0\0");
        let machine = if ARCH == ClientArch::UefiX64 {
            0x8664
        } else {
            0xaa64
        };
        assert_eq!(word(header + 4), machine, "machine");
        assert_eq!(word(header + 24), 0x20b, "64-bit header");
        assert_eq!(word(header + 24 + 68), 10, "subsystem");
        // A boot ROM fetches it in the smallest blocks on every boot.
        assert!(PROGRAM.len() < 16 << 10, "{} bytes", PROGRAM.len());
    }
}
