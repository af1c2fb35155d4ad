//! Checking an image against its dm-verity hash tree and root hash.

use std::io;

use model::Digest;
use sha2::Digest as _;

use crate::block::Block;

/// Why an image does not have its root hash.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// The hash tree is none that is supported.
    #[error("hash tree: {0}")]
    Foreign(&'static str),
    /// The data is not what the tree says.
    #[error("block {block} of the data: its hash is not the one in the hash tree")]
    Data {
        /// The first such block.
        block: u64,
    },
    /// The tree is not what the root hash says.
    #[error("the hash tree has the root hash {found}, expected {expected}")]
    Root {
        /// What it has.
        found: Digest,
        /// What was asked for.
        expected: Digest,
    },
    /// Something cannot be read.
    #[error("read the image and its hash tree")]
    Read(#[from] io::Error),
}

const BLOCK: u64 = 4096;
const HASHES: u64 = BLOCK / 32;

/// Checks that `data` and its hash tree `tree` have the root hash `expected`.
///
/// # Errors
/// See [`VerityError`].
pub fn check(data: &impl Block, tree: &impl Block, expected: &Digest) -> Result<(), VerityError> {
    let mut head = [0; 512];
    tree.read_at(0, &mut head)?;
    let number = |at: usize, length: usize| {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(&head[at..at + length]);
        u64::from_le_bytes(bytes)
    };
    if !head.starts_with(b"verity\0\0") {
        return Err(VerityError::Foreign("expected a dm-verity super block"));
    }
    let salt_size = usize::try_from(number(80, 2)).unwrap_or(usize::MAX);
    let supported = number(8, 4) == 1
        && number(12, 4) == 1
        && head[32..64].starts_with(b"sha256\0")
        && number(64, 4) == BLOCK
        && number(68, 4) == BLOCK
        && salt_size <= 256;
    if !supported {
        return Err(VerityError::Foreign(
            "expected version 1 with SHA-256 and blocks of 4096 bytes",
        ));
    }
    let salt = &head[88..88 + salt_size];
    let blocks = number(72, 8);
    if blocks == 0 || blocks > data.size() / BLOCK {
        return Err(VerityError::Foreign(
            "covers more blocks than the image has",
        ));
    }
    let hash = |bytes: &[u8]| -> [u8; 32] {
        let mut hash = sha2::Sha256::new();
        hash.update(salt);
        hash.update(bytes);
        hash.finalize().into()
    };
    // From the leaves to the root; the tree lies with its root first, so the
    // levels' places are counted from the top.
    let mut sizes = vec![blocks.div_ceil(HASHES)];
    while let Some(last) = sizes.last().copied().filter(|last| *last > 1) {
        sizes.push(last.div_ceil(HASHES));
    }
    let mut at = 1;
    let mut starts = vec![0; sizes.len()];
    for (start, size) in starts.iter_mut().zip(&sizes).rev() {
        *start = at;
        at += size;
    }
    let mut buffer = vec![0; 4096];
    let mut node = vec![0; 4096];
    let mut below = blocks;
    for (level, start) in starts.iter().enumerate() {
        for index in 0..below {
            if index % HASHES == 0 {
                tree.read_at((start + index / HASHES) * BLOCK, &mut node)?;
            }
            match level.checked_sub(1) {
                None => data.read_at(index * BLOCK, &mut buffer)?,
                Some(lower) => tree.read_at((starts[lower] + index) * BLOCK, &mut buffer)?,
            }
            let place = usize::try_from(index % HASHES).unwrap_or(0) * 32;
            if hash(&buffer) != node[place..place + 32] {
                return Err(match level {
                    0 => VerityError::Data { block: index },
                    _ => VerityError::Foreign("contradicts itself"),
                });
            }
        }
        below = sizes[level];
    }
    tree.read_at(starts[starts.len() - 1] * BLOCK, &mut buffer)?;
    let found = Digest::from(hash(&buffer));
    if found != *expected {
        return Err(VerityError::Root {
            found,
            expected: *expected,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of two levels over 200 blocks, as `veritysetup format` lays it out.
    fn formatted() -> (Vec<u8>, Vec<u8>, Digest) {
        let data: Vec<u8> = (0..200 * 4096).map(|i| (i / 4096 % 251) as u8).collect();
        let salt = b"salt";
        let hash = |block: &[u8]| -> [u8; 32] {
            sha2::Sha256::digest([salt.as_slice(), block].concat()).into()
        };
        let mut leaves: Vec<u8> = data.chunks(4096).flat_map(hash).collect();
        leaves.resize(2 * 4096, 0);
        let mut top: Vec<u8> = leaves.chunks(4096).flat_map(hash).collect();
        top.resize(4096, 0);
        let root = Digest::from(hash(&top));
        let mut tree = vec![0; 4096];
        tree[..8].copy_from_slice(b"verity\0\0");
        tree[8] = 1;
        tree[12] = 1;
        tree[32..38].copy_from_slice(b"sha256");
        tree[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        tree[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        tree[72] = 200;
        tree[80] = 4;
        tree[88..92].copy_from_slice(salt);
        tree.extend(top);
        tree.extend(leaves);
        (data, tree, root)
    }

    #[test]
    fn an_image_with_its_tree_is_accepted_and_one_flipped_byte_found() {
        let (mut data, mut tree, root) = formatted();
        check(&data.as_slice(), &tree.as_slice(), &root).unwrap();
        let other = check(&data.as_slice(), &tree.as_slice(), &Digest::of(b"x"));
        assert!(matches!(other, Err(VerityError::Root { .. })));
        data[150 * 4096 + 3] ^= 1;
        let found = check(&data.as_slice(), &tree.as_slice(), &root);
        assert!(matches!(found, Err(VerityError::Data { block: 150 })));
        data[150 * 4096 + 3] ^= 1;
        tree[4096] ^= 1;
        assert!(check(&data.as_slice(), &tree.as_slice(), &root).is_err());
        tree[72..80].fill(0xff);
        assert!(check(&data.as_slice(), &tree.as_slice(), &root).is_err());
    }
}
