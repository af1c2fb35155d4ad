//! The root's dm-verity hash tree.

use std::path::Path;

use anyhow::Context as _;
use model::Digest;

use crate::tools::Tools;

/// Makes the hash tree of the image `root` as `verity` into `out`, and writes
/// the root hash to `root-hash`. Salt and UUID come from `name`: a random
/// salt would change every hash with every build.
///
/// # Errors
/// When `veritysetup` fails.
pub fn format(name: &str, root: &Path, tools: &Tools, out: &Path) -> anyhow::Result<()> {
    let salt = Digest::of(format!("{name} verity salt").as_bytes());
    let uuid = uuid(&format!("{name} verity"));
    let file = out.join("verity");
    std::fs::File::create(&file).context("create the hash tree")?;
    let output = tools
        .tool("veritysetup")?
        .arg("format")
        .arg(format!("--salt={salt}"))
        .arg(format!("--uuid={uuid}"))
        .args([
            "--hash=sha256",
            "--data-block-size=4096",
            "--hash-block-size=4096",
        ])
        .arg(root)
        .arg(&file)
        .text()
        .context("make the hash tree")?;
    let hash: Digest = output
        .lines()
        .find_map(|line| line.strip_prefix("Root hash:"))
        .context("veritysetup: expected a line with the root hash")?
        .trim()
        .parse()
        .context("veritysetup: root hash")?;
    std::fs::write(out.join("root-hash"), hash.to_string()).context("write the root hash")
}

/// Reads what [`format()`] wrote.
///
/// # Errors
/// When there is none.
pub fn root_hash(folder: &Path) -> anyhow::Result<Digest> {
    std::fs::read_to_string(folder.join("root-hash"))
        .context("read the root hash")?
        .parse()
        .context("root hash")
}

/// Returns a UUID that depends on `name` alone.
pub fn uuid(name: &str) -> String {
    let digest = Digest::of(name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_depends_on_its_name_and_is_well_formed() {
        assert_eq!(uuid("a"), uuid("a"));
        assert_ne!(uuid("a"), uuid("b"));
        let parts: Vec<usize> = uuid("a").split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uuid("a")[14..15], "8");
    }
}
