//! The same recipe, lock, keys and source date give the same bytes, for every output
//! and for a customer's whole disk.
//!
//! The programs come from `LEAP_BIN_DIR`, which the Makefile sets after building them.

use std::path::{Path, PathBuf};

use e2e::reproduce;
use e2e::story::Stage;

#[test]
fn a_release_built_elsewhere_by_someone_else_is_the_same_to_the_last_byte() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.parent().expect("the package lies in the workspace");
    let programs =
        std::env::var_os("LEAP_BIN_DIR").map_or_else(|| root.join("target/release"), PathBuf::from);
    let stage = Stage {
        programs,
        recipes: root.join("image/recipes"),
        build: root.join("build/reproducible"),
        cache: root.join(".cache"),
    };
    let outcome = reproduce::run(&stage).unwrap_or_else(|problem| panic!("{problem:#}"));
    let none: [String; 0] = [];
    assert_eq!(outcome.differences, none);
    assert_eq!(outcome.since_recorded.unwrap_or_default(), none);
    let outputs = &outcome.record.outputs;
    for name in ["manifest.json", "root.zst", "leapserv.efi", "disk"] {
        assert!(outputs.contains_key(name), "{name}: not among {outputs:?}");
    }
}
