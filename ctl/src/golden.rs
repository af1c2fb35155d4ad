//! Golden files: `testdata/NAME` is what a test expects.
//!
//! `make golden` (`UPDATE_GOLDEN=1`) writes them; a plain run never does.

use std::path::Path;

pub(crate) fn assert(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == found,
        "{name} differs; run with UPDATE_GOLDEN=1 and look at the difference\n\
         --- expected\n{expected}\n--- found\n{found}"
    );
}
