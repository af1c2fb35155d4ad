//! Extended attributes: inline behind the inode, or shared by several.

use std::collections::BTreeMap;

use super::{ErofsError, damaged, u16_at, u32_at};

/// The longest entry: a name of 255 bytes and a value of 65535.
pub(super) const MAX_ENTRY: u64 = 4 + 255 + 65_535;
const HEADER: usize = 12;

fn prefix(index: u8) -> Option<&'static str> {
    Some(match index {
        0 => "",
        1 => "user.",
        2 => "system.posix_acl_access",
        3 => "system.posix_acl_default",
        4 => "trusted.",
        6 => "security.",
        _ => return None,
    })
}

/// Reads the attributes of an inode; `shared` returns the bytes from a shared entry on.
pub(super) fn parse(
    body: &[u8],
    shared: impl Fn(u32) -> Result<Vec<u8>, ErofsError>,
    path: &str,
) -> Result<BTreeMap<String, Vec<u8>>, ErofsError> {
    let mut found = BTreeMap::new();
    let wrong = |problem| damaged(format!("/{path}"), problem);
    let count = usize::from(body.get(4).copied().unwrap_or(0));
    let inline = HEADER + count * 4;
    if inline > body.len() {
        return Err(wrong("its list of shared attributes is cut off"));
    }
    for index in 0..count {
        let bytes = shared(u32_at(body, HEADER + index * 4))?;
        let (name, value, _) = entry(&bytes, path)?;
        found.insert(name, value);
    }
    let mut rest = &body[inline..];
    while rest.len() >= 4 {
        // The list ends with its room, or with zeros.
        if rest[..4] == [0; 4] {
            break;
        }
        let (name, value, length) = entry(rest, path)?;
        found.insert(name, value);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

fn entry(bytes: &[u8], path: &str) -> Result<(String, Vec<u8>, usize), ErofsError> {
    let cut = || damaged(format!("/{path}"), "an extended attribute is cut off");
    let &[name_length, index, ..] = bytes else {
        return Err(cut());
    };
    let value_length = usize::from(u16_at(bytes, 2));
    let value_at = 4 + usize::from(name_length);
    let name = bytes.get(4..value_at).ok_or_else(cut)?;
    let end = value_at + value_length;
    let value = bytes.get(value_at..end).ok_or_else(cut)?;
    let prefix = prefix(index).ok_or_else(|| {
        ErofsError::Unsupported(format!("/{path}: extended attribute with prefix {index}"))
    })?;
    let name = format!("{prefix}{}", String::from_utf8_lossy(name));
    Ok((name, value.to_vec(), end))
}
