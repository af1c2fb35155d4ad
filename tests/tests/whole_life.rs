//! The laboratory's tests: real firmware, real daemons, real clients.
//!
//! The programs come from `LEAP_BIN_DIR`, which the Makefile sets after building them.

use std::path::{Path, PathBuf};

use e2e::lab::story::{Report, STEPS};
use edge::runner::Tool;

fn root() -> PathBuf {
    // Without `..`: dnsmasq serves nothing below a path that has one.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .parent()
        .expect("the package lies in the workspace")
        .to_path_buf()
}

fn programs() -> PathBuf {
    std::env::var_os("LEAP_BIN_DIR").map_or_else(|| root().join("target/release"), PathBuf::from)
}

/// Runs `leap-lab` and returns the report that it wrote, with what it printed.
fn leap_lab(arguments: &[&str], build: &Path, report: &str) -> (Report, String) {
    std::fs::create_dir_all(build).expect("the build folder can be made");
    let report = build.join(report);
    // A report of an earlier run proves nothing.
    let _ = std::fs::remove_file(&report);
    let told = Tool::new(programs().join("leap-lab"))
        .args(arguments)
        .arg("--bin-dir")
        .arg(programs())
        .arg("--build-dir")
        .arg(build)
        .current_dir(root())
        .text();
    let text = std::fs::read(&report)
        .unwrap_or_else(|problem| panic!("{}: {problem}\n{told:?}", report.display()));
    (
        serde_json::from_slice(&text).expect("a report"),
        format!("{told:#?}"),
    )
}

#[test]
#[ignore = "starts a machine with real firmware: make e2e"]
fn the_laboratory_keeps_its_promises() {
    let build = root().join("build/e2e-laboratory");
    let (report, told) = leap_lab(&["self-test"], &build, "self-test.json");
    assert!(report.ok, "{report:#?}\n{told}");
}

#[test]
#[ignore = "takes a quarter of an hour without KVM: make e2e"]
fn a_unit_is_born_lives_dies_and_is_reborn() {
    let build = root().join("build/e2e");
    let (report, told) = leap_lab(&["demo"], &build, "report.json");
    assert!(report.ok, "{report:#?}\n{told}");
    let names: Vec<_> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, STEPS);
}
