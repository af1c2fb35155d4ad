//! The images below `samples` were made with mkfs.erofs 1.8.6: `sample` from an
//! archive (`--tar=f`), `chunks` and `lz4` from folders (`--chunksize=8192`, `-zlz4`).
//! What is expected of them is what fsck.erofs 1.8.6 extracts.

use proptest::prelude::*;

use super::*;

pub(crate) fn sample(name: &str) -> Vec<u8> {
    let frame: &[u8] = match name {
        "sample" => include_bytes!("samples/sample.erofs.zst"),
        "chunks" => include_bytes!("samples/chunks.erofs.zst"),
        _ => include_bytes!("samples/lz4.erofs.zst"),
    };
    zstd::bulk::decompress(frame, 1 << 20).unwrap()
}

fn digest(bytes: &[u8], path: &str) -> String {
    let image = Image::open(bytes).unwrap();
    let entries = image.entries().unwrap();
    let entry = entries.iter().find(|entry| entry.path == path).unwrap();
    image.digest(entry).unwrap().to_string()
}

#[test]
fn names_modes_owners_and_attributes_are_read() {
    let bytes = sample("sample");
    let image = Image::open(bytes.as_slice()).unwrap();
    let entries = image.entries().unwrap();
    assert_eq!(entries.len() as u64, image.head().inodes);
    assert_eq!(image.head().uuid, "69821705-a1bb-85b7-8074-475630e22144");
    let get = |path: &str| entries.iter().find(|entry| entry.path == path).unwrap();
    assert_eq!(get("").kind, Kind::Directory);
    assert_eq!(
        get("etc/os-release").kind,
        Kind::Link("../usr/lib/os-release".into())
    );
    assert_eq!(get("usr/bin/su").mode, 0o4755);
    let crontab = get("usr/bin/crontab");
    assert_eq!(
        (crontab.mode, crontab.uid, crontab.gid),
        (0o2755, 0, 70_000)
    );
    assert_eq!(crontab.mtime, 1_793_491_200);
    assert_eq!(get("usr/lib/fifo").kind, Kind::Fifo);
    assert_eq!(get("usr/lib/many/a-rather-long-name-of-a-file-119").uid, 5);
    let capability = &get("usr/bin/ping").attributes["security.capability"];
    assert_eq!(capability[..8], [1, 0, 0, 2, 0, 0x20, 0, 0]);
}

#[test]
fn attributes_are_read_inline_and_shared() {
    for name in ["sample", "chunks"] {
        let bytes = sample(name);
        let image = Image::open(bytes.as_slice()).unwrap();
        let entries = image.entries().unwrap();
        for file in ["usr/lib/a", "usr/lib/e"] {
            let entry = entries.iter().find(|entry| entry.path == file).unwrap();
            let value = &entry.attributes["user.shared"];
            assert_eq!(*value, b"the same value in two files".repeat(3), "{file}");
            // Too little room for the value: it stands elsewhere.
            let inode = image.inode(entry.inode, file).unwrap();
            assert_eq!(inode.attribute_size == 16, name == "chunks");
        }
    }
}

#[test]
fn contents_are_those_that_the_reference_extracts() {
    let bytes = sample("sample");
    // An inline tail, a whole block, and nothing.
    for (path, sha256) in [
        (
            "usr/lib/long",
            "0dab4e133341cff6151d300cc6b0aa583b6ab275e2a9822f34aeb5cb6ad965d2",
        ),
        (
            "usr/lib/block",
            "c8f5d0341d54d951a71b136e6e2afcb14d11ed8489a7ae126a8fee0df6ecf193",
        ),
        (
            "usr/bin/su",
            "b1e9913a8e2ad00822fa78671cb9791c98d98a1f6427d912d389227bb896e0fa",
        ),
    ] {
        assert_eq!(digest(&bytes, path), sha256, "{path}");
    }
    assert_eq!(digest(&bytes, "usr/lib/empty"), Digest::of(b"").to_string());
}

#[test]
fn chunks_and_holes_are_read() {
    let bytes = sample("chunks");
    let long = "646351d1f47c004a575e31ba67adc3c4e0e444141bc7112380c6be1e579218f3";
    assert_eq!(digest(&bytes, "usr/lib/long"), long);
    let mut holes = vec![b'x'; 8192];
    holes.resize(8192 * 4, 0);
    holes.extend([b'y'; 100]);
    assert_eq!(
        digest(&bytes, "usr/lib/holes"),
        Digest::of(&holes).to_string()
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = Image::open(sample("lz4").as_slice()).unwrap_err();
    assert!(refused.to_string().contains("LZ4"), "{refused}");
    let refused = Image::open([0; 5000].as_slice()).unwrap_err();
    assert!(matches!(refused, ErofsError::Foreign(_)), "{refused}");
}

#[test]
fn a_super_block_with_a_flipped_bit_or_a_missing_end_is_refused() {
    let mut bytes = sample("sample");
    let short = &bytes[..bytes.len() - 4096];
    let refused = Image::open(short).unwrap_err();
    assert!(refused.to_string().contains("cut off"), "{refused}");
    bytes[1024 + 24] ^= 1;
    let refused = Image::open(bytes.as_slice()).unwrap_err();
    assert!(refused.to_string().contains("checksum"), "{refused}");
}

#[test]
fn a_folder_that_holds_itself_is_refused() {
    let mut bytes = sample("sample");
    let image = Image::open(bytes.as_slice()).unwrap();
    let entries = image.entries().unwrap();
    let inode = |path: &str| entries.iter().find(|e| e.path == path).unwrap().inode;
    let (usr, root) = (inode("usr").to_le_bytes(), inode("").to_le_bytes());
    // The entry of /usr in the root, by its eight bytes and the kind behind them.
    let at = (0..bytes.len() - 12)
        .step_by(4)
        .find(|at| bytes[*at..*at + 8] == usr && bytes[*at + 10] == 2);
    let at = at.unwrap();
    bytes[at..at + 8].copy_from_slice(&root);
    bytes[1024 + 8] &= !1;
    let refused = Image::open(bytes.as_slice())
        .unwrap()
        .entries()
        .unwrap_err();
    assert!(refused.to_string().contains("circle"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The checksum is switched off, so that flipped bits get further than it.
    #[test]
    fn any_bytes_end_in_an_answer(
        chunks in any::<bool>(),
        flips in prop::collection::vec((0usize..12_000, any::<u8>()), 1..12),
        cut in prop::option::of(0usize..20_000),
    ) {
        let mut bytes = sample(if chunks { "chunks" } else { "sample" });
        bytes[1024 + 8] &= !1;
        for (at, value) in flips {
            // The magic number stays, and most hits land where the metadata is.
            let at = if at < 1028 { at + 1028 } else { at };
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(bytes.len().saturating_sub(cut));
        }
        if let Ok(image) = Image::open(bytes.as_slice())
            && let Ok(entries) = image.entries()
        {
            for entry in entries.iter().filter(|entry| entry.size < 1 << 20) {
                let _ = image.digest(entry);
            }
        }
    }
}
