//! Builds `local-boot/main.rs` as a UEFI application.
//!
//! `rustc` and the linker of the build host make a position-independent ELF file
//! without relocations; its segments are put into a PE image here. That needs no
//! Rust target but the host's own.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

/// Pages of the PE image; segments of the ELF file are aligned to the same.
const PAGE: u32 = 0x1000;
/// Alignment of sections in the file.
const SECTOR: u32 = 0x200;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=local-boot/main.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let elf = out.join("local-boot.elf");
    #[allow(
        clippy::disallowed_methods,
        reason = "a build script runs before edge exists"
    )]
    let mut rustc = std::process::Command::new(env::var("RUSTC")?);
    rustc
        .args(["local-boot/main.rs", "--edition=2024", "--crate-name=local_boot", "--crate-type=bin"])
        .args(["--target", &env::var("TARGET")?])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Coverflow-checks=no", "-Cdebuginfo=0", "-Cstrip=symbols"])
        // Interrupts run on the stack of the program: nothing may lie below it.
        .args(["-Cno-redzone=yes", "-Crelocation-model=pie", "-Ccode-model=small"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static-pie"])
        .arg("-Clink-arg=-Wl,--entry=efi_main,--gc-sections,--build-id=none,-z,norelro,-z,noexecstack")
        .arg("-Clink-arg=-Wl,-z,max-page-size=4096,--no-dynamic-linker")
        .arg("-o")
        .arg(&elf);
    if !rustc.status()?.success() {
        return Err("compile local-boot/main.rs: see above".into());
    }
    fs::write(out.join("local-boot.efi"), wrap(&fs::read(&elf)?)?)?;
    Ok(())
}

struct Segment {
    address: u32,
    memory: u32,
    bytes: Vec<u8>,
    flags: u32,
}

/// Returns the PE image of a static position-independent ELF file.
fn wrap(elf: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let machine: u16 = match u16_at(elf, 18) {
        62 => 0x8664,
        183 => 0xaa64,
        other => return Err(format!("ELF machine {other}, expected x86-64 or AArch64").into()),
    };
    let entry = u32::try_from(u64_at(elf, 24))?;
    let table = usize::try_from(u64_at(elf, 32))?;
    let (size, count) = (usize::from(u16_at(elf, 54)), usize::from(u16_at(elf, 56)));
    let mut segments = Vec::new();
    for index in 0..count {
        let header = &elf[table + index * size..];
        let (offset, address) = (usize::try_from(u64_at(header, 8))?, u64_at(header, 16));
        let (in_file, memory) = (usize::try_from(u64_at(header, 32))?, u64_at(header, 40));
        let bytes = &elf[offset..offset + in_file];
        match u32_at(header, 0) {
            1 => segments.push(Segment {
                address: u32::try_from(address)?,
                memory: u32::try_from(memory)?,
                bytes: bytes.to_vec(),
                flags: u32_at(header, 4),
            }),
            // DT_RELASZ: a relocation would be left undone.
            2 if bytes
                .chunks_exact(16)
                .any(|pair| u64_at(pair, 0) == 8 && u64_at(pair, 8) != 0) =>
            {
                return Err("local-boot needs relocations: it has a static with an address".into());
            }
            _ => {}
        }
    }
    // Everything moves up by one page, where the PE headers lie. Whole pages
    // only: code finds its data by distance.
    let shift = PAGE;
    let mut sections = Vec::new();
    for segment in segments {
        let start = segment.address / PAGE * PAGE;
        let lead = segment.address - start;
        let mut bytes = vec![0; usize::try_from(lead)?];
        bytes.extend_from_slice(&segment.bytes);
        let kind: u32 = if segment.flags & 1 != 0 {
            0x6000_0020
        } else {
            0x4000_0040
        };
        let write: u32 = if segment.flags & 2 != 0 {
            0x8000_0000
        } else {
            0
        };
        let name: &[u8; 8] = if segment.flags & 1 != 0 {
            b".text\0\0\0"
        } else {
            b".data\0\0\0"
        };
        sections.push((
            name,
            start + shift,
            segment.memory + lead,
            bytes,
            kind | write,
        ));
    }
    let end = sections
        .iter()
        .map(|(_, at, size, ..)| (at + size).next_multiple_of(PAGE))
        .max();
    let relocations = end.ok_or("no segments")?;
    // One empty block: some firmware refuses an image without relocations.
    let block = [0u32.to_le_bytes(), 12u32.to_le_bytes(), [0; 4]].concat();
    sections.push((b".reloc\0\0", relocations, 12, block, 0x4200_0040));

    let headers = u32::try_from(0x40 + 4 + 20 + 240 + 40 * sections.len())?;
    let mut raw = headers.next_multiple_of(SECTOR);
    let mut out = vec![0; 0x40];
    out[..2].copy_from_slice(b"MZ");
    out[0x3c] = 0x40;
    out.extend_from_slice(b"PE\0\0");
    put16(&mut out, &[machine, u16::try_from(sections.len())?]);
    put32(&mut out, &[0, 0, 0]);
    // Executable, large addresses, no debug information; relocatable.
    put16(&mut out, &[240, 0x022e]);
    // Optional header of 64 bits.
    put16(&mut out, &[0x20b, 0]);
    put32(&mut out, &[0, 0, 0, entry + shift, sections[0].1]);
    put32(&mut out, &[0, 0, PAGE, SECTOR]);
    put16(&mut out, &[0, 0, 0, 0, 0, 0]);
    put32(&mut out, &[0, relocations + PAGE, raw, 0]);
    // Subsystem 10: EFI application. No page is both written and executed.
    put16(&mut out, &[10, 0x0100]);
    put32(&mut out, &[0; 8]);
    put32(&mut out, &[0, 16]);
    let mut directories = [0; 32];
    (directories[10], directories[11]) = (relocations, 12);
    put32(&mut out, &directories);
    for (name, at, size, bytes, flags) in &sections {
        let stored = u32::try_from(bytes.len())?.next_multiple_of(SECTOR);
        out.extend_from_slice(*name);
        put32(&mut out, &[*size, *at, stored, raw, 0, 0, 0, *flags]);
        raw += stored;
    }
    for (.., bytes, _) in &sections {
        let start = out.len().next_multiple_of(usize::try_from(SECTOR)?);
        out.resize(start, 0);
        out.extend_from_slice(bytes);
    }
    out.resize(usize::try_from(raw)?, 0);
    Ok(out)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn put16(out: &mut Vec<u8>, values: &[u16]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
