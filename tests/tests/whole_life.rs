//! The laboratory's tests: real firmware, real daemons, real clients.
//!
//! The programs come from `LEAP_BIN_DIR`, which the Makefile sets after building them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use e2e::lab::story::{Report, STEPS};
use edge::runner::Tool;

/// One laboratory at a time: each has machines enough for all processors.
static LABORATORY: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
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
    let _alone = LABORATORY.lock().unwrap_or_else(PoisonError::into_inner);
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
fn the_laboratory_keeps_its_promises() {
    let build = root().join("build/e2e-laboratory");
    let (report, told) = leap_lab(&["self-test"], &build, "self-test.json");
    assert!(report.ok, "{report:#?}\n{told}");
}

#[test]
fn a_unit_is_born_lives_dies_and_is_reborn() {
    let build = root().join("build/e2e");
    let (report, told) = leap_lab(&["demo"], &build, "report.json");
    assert!(report.ok, "{report:#?}\n{told}");
    let names: Vec<_> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, STEPS);
}

/// A bench with a stranger at its far end, then sky and factory on it: alone, and beside
/// the stranger's DHCP server.
const BENCH: &str = r#"
ip link add bench0 type veth peer name far0
unshare --net sh -c 'ip link set lo up; touch "$WORK/apart"; exec sleep infinity' &
far=$!
until [ -e "$WORK/apart" ]; do sleep 0.05; done
ip link set far0 netns "$far"
ip address add 10.99.0.1/24 dev bench0
ip link set bench0 up
nsenter --target "$far" --net ip address add 10.99.0.2/24 dev far0
nsenter --target "$far" --net ip link set far0 up

"$BIN/leap-lab" run --bin-dir "$BIN" --interface bench0 --dir "$WORK/run" >"$WORK/alone" 2>&1 &
alone=$!
until grep -q 'Ctrl-C stops both' "$WORK/alone"; do
    kill -0 "$alone" || { cat "$WORK/alone"; exit 1; }
    sleep 0.05
done
curl --silent --show-error --fail --cacert "$WORK/run/sky/ca.crt" https://10.99.0.1:8443/v1/health
kill -INT "$alone"
wait "$alone"

nsenter --target "$far" --net dnsmasq --no-daemon --port=0 --user=root --conf-file=/dev/null \
    --bind-interfaces --interface=far0 --dhcp-range=10.99.0.100,10.99.0.120 \
    --dhcp-leasefile=/dev/null 2>"$WORK/dnsmasq" &
until grep -q 'IP range' "$WORK/dnsmasq"; do sleep 0.05; done
if "$BIN/leap-lab" run --bin-dir "$BIN" --interface bench0 --dir "$WORK/run" >"$WORK/beside" 2>&1; then
    exit 1
fi
cat "$WORK/beside"
"#;

#[test]
fn sky_and_factory_run_on_a_bench_but_not_beside_another_dhcp_server() {
    let _alone = LABORATORY.lock().unwrap_or_else(PoisonError::into_inner);
    let build = root().join("build/e2e-run");
    let _ = std::fs::remove_dir_all(&build);
    std::fs::create_dir_all(&build).expect("the build folder can be made");
    let told = Tool::new(programs().join("leap-lab"))
        .args(["inside", "--build-dir"])
        .arg(&build)
        .args(["--", "sh", "-eu", "-c", BENCH])
        .env("BIN", programs())
        .env("WORK", &build)
        .current_dir(root())
        .text()
        .expect("the script ends well");
    assert!(
        told.contains("another DHCP server answers, 10.99.0.2"),
        "{told}"
    );
    assert!(told.contains("hint: "), "{told}");
}
