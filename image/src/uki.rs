//! Unified kernel images: systemd's EFI stub with our sections appended.
//!
//! A section goes behind the stub's last one, in memory and in the file, as
//! `ukify` lays them out. Nothing but the inputs gets into the result, so the
//! same inputs give the same bytes.

/// A section to append: its name (at most 8 bytes) and its content.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// `.linux`, `.initrd`, `.cmdline`, `.osrel` …
    pub name: &'static str,
    /// The bytes.
    pub content: &'a [u8],
}

/// Why a unified kernel image cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UkiError {
    /// The stub is not a PE32+ file that sections can be appended to.
    #[error("EFI stub: {0}")]
    Stub(&'static str),
    /// A section does not fit the format.
    #[error("section {0}: does not fit into a PE file")]
    Section(&'static str),
}

const HEADER: usize = 40;
/// Readable initialised data.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// Returns `stub` with `sections` appended in the order given.
///
/// # Errors
/// See [`UkiError`].
pub fn assemble(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, UkiError> {
    let stub_is = UkiError::Stub;
    if stub.get(..2) != Some(b"MZ") {
        return Err(stub_is("expected a PE file"));
    }
    let u16_at = |bytes: &[u8], at: usize| {
        let field = bytes.get(at..at + 2)?;
        Some(usize::from(u16::from_le_bytes([field[0], field[1]])))
    };
    let u32_at = |bytes: &[u8], at: usize| {
        let field = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize)
    };
    let short = || stub_is("cut off");
    let pe = u32_at(stub, 0x3c).ok_or_else(short)?;
    if stub.get(pe..pe + 4) != Some(b"PE\0\0") {
        return Err(stub_is("expected a PE signature"));
    }
    let count = u16_at(stub, pe + 6).ok_or_else(short)?;
    let optional = pe + 24;
    if u16_at(stub, optional) != Some(0x20b) {
        return Err(stub_is("expected the PE32+ format"));
    }
    let table = optional + u16_at(stub, pe + 20).ok_or_else(short)?;
    let section_alignment = u32_at(stub, optional + 32).ok_or_else(short)?;
    let file_alignment = u32_at(stub, optional + 36).ok_or_else(short)?;
    if !section_alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
        return Err(stub_is("alignment is no power of two"));
    }
    let headers_end = u32_at(stub, optional + 60).ok_or_else(short)?;
    if table + (count + sections.len()) * HEADER > headers_end {
        return Err(stub_is("no room for more section headers"));
    }
    // Where the stub's own sections end, in memory and in the file.
    let (mut memory, mut file) = (0, 0);
    for index in 0..count {
        let at = table + index * HEADER;
        let size = u32_at(stub, at + 8).ok_or_else(short)?;
        let address = u32_at(stub, at + 12).ok_or_else(short)?;
        let raw_size = u32_at(stub, at + 16).ok_or_else(short)?;
        let raw = u32_at(stub, at + 20).ok_or_else(short)?;
        memory = memory.max(address + size);
        file = file.max(raw + raw_size);
    }
    let mut image = stub.get(..file).ok_or_else(short)?.to_vec();
    let mut data = u32_at(stub, optional + 8).ok_or_else(short)?;
    for (index, section) in sections.iter().enumerate() {
        let fits = |value: usize| {
            u32::try_from(value)
                .map(u32::to_le_bytes)
                .map_err(|_| UkiError::Section(section.name))
        };
        memory = memory.next_multiple_of(section_alignment);
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let raw = image.len();
        image.extend_from_slice(section.content);
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let raw_size = image.len() - raw;

        let mut header = [0; HEADER];
        let name = section.name.as_bytes();
        header
            .get_mut(..name.len().min(9))
            .filter(|field| field.len() <= 8)
            .ok_or(UkiError::Section(section.name))?
            .copy_from_slice(name);
        header[8..12].copy_from_slice(&fits(section.content.len())?);
        header[12..16].copy_from_slice(&fits(memory)?);
        header[16..20].copy_from_slice(&fits(raw_size)?);
        header[20..24].copy_from_slice(&fits(raw)?);
        header[36..40].copy_from_slice(&CHARACTERISTICS.to_le_bytes());
        let at = table + (count + index) * HEADER;
        image[at..at + HEADER].copy_from_slice(&header);
        memory += section.content.len();
        data += raw_size;
    }
    let last = sections.last().map_or("", |section| section.name);
    let fits = |value: usize| {
        u32::try_from(value)
            .map(u32::to_le_bytes)
            .map_err(|_| UkiError::Section("image"))
    };
    let number = u16::try_from(count + sections.len()).map_err(|_| stub_is(last))?;
    image[pe + 6..pe + 8].copy_from_slice(&number.to_le_bytes());
    image[optional + 8..optional + 12].copy_from_slice(&fits(data)?);
    let size = memory.next_multiple_of(section_alignment);
    image[optional + 56..optional + 60].copy_from_slice(&fits(size)?);
    // The checksum would be of the stub alone; firmware does not ask for one.
    image[optional + 64..optional + 68].fill(0);
    Ok(image)
}

/// Returns the name and content of each section, for a person to look at.
///
/// # Errors
/// When `image` is not a PE32+ file.
pub fn sections(image: &[u8]) -> Result<Vec<(String, &[u8])>, UkiError> {
    let short = || UkiError::Stub("cut off");
    let u32_at = |at: usize| {
        let field = image.get(at..at + 4).ok_or_else(short)?;
        Ok::<usize, UkiError>(u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize)
    };
    let pe = u32_at(0x3c)?;
    if image.get(pe..pe + 4) != Some(b"PE\0\0") {
        return Err(UkiError::Stub("expected a PE signature"));
    }
    let count = u32_at(pe + 4)? >> 16;
    let table = pe + 24 + (u32_at(pe + 20)? & 0xffff);
    (0..count)
        .map(|index| {
            let at = table + index * HEADER;
            let name = image.get(at..at + 8).ok_or_else(short)?;
            let name = String::from_utf8_lossy(name)
                .trim_end_matches('\0')
                .to_owned();
            let size = u32_at(at + 8)?.min(u32_at(at + 16)?);
            let raw = u32_at(at + 20)?;
            Ok((name, image.get(raw..raw + size).ok_or_else(short)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE32+ file with one section of 100 bytes.
    fn stub() -> Vec<u8> {
        let mut stub = vec![0; 0x600];
        stub[..2].copy_from_slice(b"MZ");
        stub[0x3c] = 0x80;
        stub[0x80..0x84].copy_from_slice(b"PE\0\0");
        stub[0x86] = 1;
        stub[0x94] = 240;
        let optional = 0x98;
        stub[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
        stub[optional + 32..optional + 36].copy_from_slice(&0x1000_u32.to_le_bytes());
        stub[optional + 36..optional + 40].copy_from_slice(&0x200_u32.to_le_bytes());
        stub[optional + 60..optional + 64].copy_from_slice(&0x400_u32.to_le_bytes());
        let table = optional + 240;
        stub[table..table + 5].copy_from_slice(b".text");
        stub[table + 8] = 100;
        stub[table + 12..table + 16].copy_from_slice(&0x1000_u32.to_le_bytes());
        stub[table + 16..table + 20].copy_from_slice(&0x200_u32.to_le_bytes());
        stub[table + 20..table + 24].copy_from_slice(&0x400_u32.to_le_bytes());
        stub
    }

    #[test]
    fn sections_are_appended_in_order_and_can_be_read_back() {
        let sections_in = [
            Section {
                name: ".osrel",
                content: b"ID=leapserv\n",
            },
            Section {
                name: ".linux",
                content: &[7; 700],
            },
        ];
        let image = assemble(&stub(), &sections_in).unwrap();
        let read = sections(&image).unwrap();
        let names: Vec<_> = read.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [".text", ".osrel", ".linux"]);
        assert_eq!(read[1].1, b"ID=leapserv\n");
        assert_eq!(read[2].1, [7; 700]);
        assert_eq!(image.len() % 0x200, 0);
        // Size in memory: .text at 0x1000, .osrel at 0x2000, .linux at 0x3000.
        let size = &image[0x98 + 56..0x98 + 60];
        assert_eq!(size, 0x4000_u32.to_le_bytes());
    }

    #[test]
    fn a_stub_without_room_is_refused() {
        let many = [Section {
            name: ".x",
            content: b"",
        }; 20];
        assert_eq!(
            assemble(&stub(), &many),
            Err(UkiError::Stub("no room for more section headers"))
        );
        assert!(assemble(b"MZ", &[]).is_err());
        assert!(assemble(b"not a PE", &[]).is_err());
    }
}
