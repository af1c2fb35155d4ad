//! Where data comes from: machines of the customer, read in user space.

pub mod memory;
pub mod sftp;

/// Kinds of file as Go's `io/fs` numbers them; restic's format stores modes in this form.
const GO_DIR: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;

/// Turns a POSIX mode into the one that restic's format stores.
fn mode_to_format(posix: u32) -> u32 {
    let mut mode = posix & 0o777;
    match posix & 0o170_000 {
        0o040_000 => mode |= GO_DIR,
        0o120_000 => mode |= GO_SYMLINK,
        _ => {}
    }
    for (bit, go) in [
        (0o4000, GO_SETUID),
        (0o2000, GO_SETGID),
        (0o1000, GO_STICKY),
    ] {
        if posix & bit != 0 {
            mode |= go;
        }
    }
    mode
}

/// Turns a mode of restic's format into POSIX permission bits, without the kind of file.
pub(crate) fn mode_from_format(format: u32) -> u32 {
    let mut mode = format & 0o777;
    for (bit, go) in [
        (0o4000, GO_SETUID),
        (0o2000, GO_SETGID),
        (0o1000, GO_STICKY),
    ] {
        if format & go != 0 {
            mode |= bit;
        }
    }
    mode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_bits_survive_the_format() {
        for posix in [0o100_644, 0o104_755, 0o042_770, 0o041_777] {
            assert_eq!(mode_from_format(mode_to_format(posix)), posix & 0o7777);
        }
        assert_eq!(mode_to_format(0o040_755) & GO_DIR, GO_DIR);
    }
}
