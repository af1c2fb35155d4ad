//! As much of ELF as it takes to know which libraries a program loads.

/// What a program or library asks of the dynamic loader.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The loader's path, for a program.
    pub interpreter: Option<String>,
    /// `DT_NEEDED`: the names of libraries.
    pub libraries: Vec<String>,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Reads the needs of a 64-bit little-endian ELF file; `None` when `bytes`
/// are not one, or are damaged.
pub fn needs(bytes: &[u8]) -> Option<Needs> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(read(bytes, 32, 8)?).ok()?;
    let entry_size = usize::try_from(read(bytes, 54, 2)?).ok()?;
    let count = usize::try_from(read(bytes, 56, 2)?).ok()?;
    let mut needs = Needs::default();
    let mut loads = Vec::new();
    let mut dynamic = None;
    for index in 0..count {
        let at = table.checked_add(index.checked_mul(entry_size)?)?;
        let kind = u32::try_from(read(bytes, at, 4)?).ok()?;
        let offset = read(bytes, at + 8, 8)?;
        let address = read(bytes, at + 16, 8)?;
        let size = read(bytes, at + 32, 8)?;
        match kind {
            PT_LOAD => loads.push((address, offset, size)),
            PT_DYNAMIC => dynamic = Some((offset, size)),
            PT_INTERP => needs.interpreter = text(bytes, offset),
            _ => {}
        }
    }
    let Some((offset, size)) = dynamic else {
        return Some(needs);
    };
    let mut names = Vec::new();
    let mut strings = None;
    for at in (offset..offset.checked_add(size)?).step_by(16) {
        let at = usize::try_from(at).ok()?;
        match (read(bytes, at, 8)?, read(bytes, at + 8, 8)?) {
            (0, _) => break,
            (DT_NEEDED, name) => names.push(name),
            (DT_STRTAB, address) => strings = Some(address),
            _ => {}
        }
    }
    // The string table is given as an address: find the segment that holds it.
    let address = strings?;
    let (start, offset, _) = loads
        .iter()
        .find(|(start, _, size)| (*start..start.saturating_add(*size)).contains(&address))?;
    let strings = address - start + offset;
    for name in names {
        needs
            .libraries
            .push(text(bytes, strings.checked_add(name)?)?);
    }
    Some(needs)
}

fn read(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let slice = bytes.get(at..at.checked_add(length)?)?;
    Some(
        slice
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    )
}

fn text(bytes: &[u8], at: u64) -> Option<String> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_program_needs_the_c_library_and_a_loader() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let needs = needs(&bytes).unwrap();
        assert!(
            needs.libraries.iter().any(|name| name == "libc.so.6"),
            "{needs:?}"
        );
        assert!(needs.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn damaged_files_are_no_elf_and_never_a_panic() {
        let mut bytes = std::fs::read("/proc/self/exe").unwrap();
        bytes.truncate(4096);
        let _ = needs(&bytes);
        assert_eq!(needs(b"#!/bin/sh\n"), None);
        assert_eq!(needs(b"\x7fELF\x02\x01"), None);
    }
}
