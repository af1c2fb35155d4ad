//! The firmware matrix: other people's firmware, DHCP server and relay, each from an empty
//! disk to "in service" or to what its screen has to say.
//!
//! The programs come from `LEAP_BIN_DIR`, which the Makefile sets after building them.
//! All cases take a quarter of an hour without KVM: `make e2e` asks for them by
//! `LEAP_MATRIX=all`. Otherwise there are those that differ most.

use std::path::{Path, PathBuf};

use e2e::lab::story::Report;
use e2e::story::matrix::{BEFORE, CASES};
use edge::runner::Tool;

/// Another DHCP server, another firmware, and no factory at all. Secure Boot has a test of
/// its own.
const DIFFER_MOST: [&str; 4] = ["proxy-dhcp", "seabios", "mirrored", "stick"];

#[test]
fn machines_are_born_whatever_their_firmware_and_their_network() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.parent().expect("the package lies in the workspace");
    let programs =
        std::env::var_os("LEAP_BIN_DIR").map_or_else(|| root.join("target/release"), PathBuf::from);
    let build = root.join("build/e2e-matrix");
    std::fs::create_dir_all(&build).expect("the build folder can be made");
    let report = build.join("report.json");
    // A report of an earlier run proves nothing.
    let _ = std::fs::remove_file(&report);
    let all = std::env::var("LEAP_MATRIX").is_ok_and(|wish| wish == "all");
    let cases: Vec<_> = CASES
        .map(|case| case.name)
        .into_iter()
        .filter(|name| all || DIFFER_MOST.contains(name))
        .collect();
    let told = Tool::new(programs.join("leap-lab"))
        .arg("matrix")
        .args(&cases)
        .arg("--bin-dir")
        .arg(&programs)
        .arg("--build-dir")
        .arg(&build)
        .current_dir(root)
        .text();
    let text = std::fs::read(&report)
        .unwrap_or_else(|problem| panic!("{}: {problem}\n{told:?}", report.display()));
    let report: Report = serde_json::from_slice(&text).expect("a report");
    assert!(report.ok, "{report:#?}\n{told:#?}");
    let names: Vec<_> = report.steps.iter().map(|step| step.name.as_str()).collect();
    let expected: Vec<_> = BEFORE.into_iter().chain(cases).collect();
    assert_eq!(names, expected);
}
