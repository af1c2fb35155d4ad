//! dm-verity hash trees: the root's beside its image, a component's behind it.

use std::path::Path;

use anyhow::Context as _;
use edge::runner::Tool;
use model::Digest;
use model::release::HashTree;

use crate::tools::Tools;

/// Makes the hash tree of the image `root` as `verity` into `out`, and writes
/// the root hash to `root-hash`. Salt and UUID come from `name`: a random
/// salt would change every hash with every build.
///
/// # Errors
/// When `veritysetup` fails.
pub fn format(name: &str, root: &Path, tools: &Tools, out: &Path) -> anyhow::Result<()> {
    let file = out.join("verity");
    std::fs::File::create(&file).context("create the hash tree")?;
    let hash = root_hash_of(formatting(name, tools)?.args([root, &file]))?;
    std::fs::write(out.join("root-hash"), hash.to_string()).context("write the root hash")
}

/// Appends the hash tree of the image `file` to it, and writes where it begins
/// and its root hash beside the image.
///
/// # Errors
/// When the image is not of whole blocks, or `veritysetup` fails.
pub fn append(name: &str, file: &Path, tools: &Tools) -> anyhow::Result<()> {
    let offset = std::fs::metadata(file)
        .with_context(|| format!("look at {}", file.display()))?
        .len();
    anyhow::ensure!(
        offset > 0 && offset % BLOCK == 0,
        "{}: {offset} bytes, expected whole blocks of {BLOCK}",
        file.display()
    );
    let tool = formatting(name, tools)?
        .arg(format!("--data-blocks={}", offset / BLOCK))
        .arg(format!("--hash-offset={offset}"))
        .args([file, file]);
    let root_hash = root_hash_of(tool)?;
    let text =
        serde_json::to_vec(&HashTree { root_hash, offset }).context("write the hash tree")?;
    std::fs::write(file.with_extension(HASH_TREE), text).context("write the hash tree's place")
}

/// Reads what [`append()`] wrote beside the image `file`.
///
/// # Errors
/// When there is none.
pub fn appended(file: &Path) -> anyhow::Result<HashTree> {
    let bytes =
        std::fs::read(file.with_extension(HASH_TREE)).context("read the hash tree's place")?;
    serde_json::from_slice(&bytes).context("the hash tree's place")
}

const BLOCK: u64 = 4096;
const HASH_TREE: &str = "tree.json";

fn formatting(name: &str, tools: &Tools) -> anyhow::Result<Tool> {
    let salt = Digest::of(format!("{name} verity salt").as_bytes());
    let uuid = uuid(&format!("{name} verity"));
    Ok(tools
        .tool("veritysetup")?
        .arg("format")
        .arg(format!("--salt={salt}"))
        .arg(format!("--uuid={uuid}"))
        .args([
            "--hash=sha256",
            "--data-block-size=4096",
            "--hash-block-size=4096",
        ]))
}

fn root_hash_of(format: Tool) -> anyhow::Result<Digest> {
    let output = format.text().context("make the hash tree")?;
    output
        .lines()
        .find_map(|line| line.strip_prefix("Root hash:"))
        .context("veritysetup: expected a line with the root hash")?
        .trim()
        .parse()
        .context("veritysetup: root hash")
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
