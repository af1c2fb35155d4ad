//! What disks say of their own health: SMART, or the health log of NVMe.
//!
//! `smartctl` asks them, and knows the odd ones; its JSON is read here. A disk that says
//! nothing (virtual ones, some RAID controllers) is no worse for it.

use std::path::Path;
use std::process::Stdio;

use edge::runner::Tool;
use model::machine::{DiskHealth, MachineFacts};
use serde::Deserialize;

use super::install::PATH;

/// Asks every fixed disk that may know.
pub fn ask(facts: &mut MachineFacts) {
    // A sick disk takes its time, and several are asked at once.
    std::thread::scope(|scope| {
        for disk in &mut facts.disks {
            let name = Path::new(&disk.path).file_name().unwrap_or_default();
            let name = name.to_string_lossy();
            if !disk.removable && (name.starts_with("sd") || name.starts_with("nvme")) {
                scope.spawn(|| disk.health = of(Path::new(&disk.path)));
            }
        }
    });
}

fn of(disk: &Path) -> Option<DiskHealth> {
    let tool = Tool::new("smartctl")
        .args(["--json=c", "--health", "--attributes"])
        .arg(disk)
        .env("PATH", PATH);
    let output = tool.command().stdin(Stdio::null()).output();
    // Its exit code is a set of bits, most of which are the disk's answer.
    let output = output.inspect_err(
        |problem| tracing::debug!(%problem, disk = %disk.display(), "smartctl did not start"),
    );
    verdict(&output.ok()?.stdout)
}

/// What we read of `smartctl --json`.
#[derive(Debug, Deserialize)]
struct Told {
    smart_status: Option<Status>,
    #[serde(default)]
    ata_smart_attributes: Attributes,
    nvme_smart_health_information_log: Option<NvmeLog>,
}

#[derive(Debug, Deserialize)]
struct Status {
    passed: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Attributes {
    #[serde(default)]
    table: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
struct Attribute {
    id: u8,
    name: String,
    #[serde(default)]
    when_failed: String,
    raw: Raw,
}

#[derive(Debug, Deserialize)]
struct Raw {
    value: u64,
}

/// NVM Express Base Specification, "SMART / Health Information".
#[derive(Debug, Deserialize)]
struct NvmeLog {
    #[serde(default)]
    critical_warning: u8,
    #[serde(default)]
    percentage_used: u64,
    #[serde(default)]
    media_errors: u64,
}

/// Sectors that could not be read and wait to be written, and those that a scan found.
const UNREADABLE: [u8; 2] = [197, 198];
/// The bits of `critical_warning`.
const WARNINGS: [&str; 6] = [
    "its spare blocks run out",
    "it is too hot or too cold",
    "it is not reliable any more",
    "it can only be read",
    "its memory is not kept without power",
    "its persistent memory can only be read",
];

/// Reads the answer; `None` for a disk that says nothing.
fn verdict(answer: &[u8]) -> Option<DiskHealth> {
    let told: Told = serde_json::from_slice(answer).ok()?;
    let passed = told.smart_status?.passed;
    let mut reasons = Vec::new();
    if let Some(log) = &told.nvme_smart_health_information_log {
        let set = |bit: &usize| log.critical_warning >> bit & 1 == 1;
        let warnings = (0..WARNINGS.len())
            .filter(set)
            .map(|bit| WARNINGS[bit].to_owned());
        reasons.extend(warnings);
        if log.media_errors > 0 {
            reasons.push(format!("{} errors of its medium", log.media_errors));
        }
        if log.percentage_used >= 100 {
            reasons.push(format!(
                "{} % of the writes that it is made for",
                log.percentage_used
            ));
        }
    }
    for attribute in &told.ata_smart_attributes.table {
        if attribute.when_failed == "now" {
            reasons.push(format!("{} beyond its limit", attribute.name));
        } else if UNREADABLE.contains(&attribute.id) && attribute.raw.value > 0 {
            reasons.push(format!("{}: {}", attribute.name, attribute.raw.value));
        }
    }
    if passed && reasons.is_empty() {
        return Some(DiskHealth::Passed);
    }
    if reasons.is_empty() {
        reasons.push("its own verdict".to_owned());
    }
    Some(DiskHealth::Failing {
        reason: reasons.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(answer: &str) -> String {
        match verdict(answer.as_bytes()) {
            Some(DiskHealth::Failing { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_disk_is_well_when_it_says_so_and_counts_nothing_bad() {
        let well = r#"{"smart_status":{"passed":true},"ata_smart_attributes":{"table":[
            {"id":5,"name":"Reallocated_Sector_Ct","when_failed":"","raw":{"value":8}},
            {"id":197,"name":"Current_Pending_Sector","when_failed":"","raw":{"value":0}}]}}"#;
        assert_eq!(verdict(well.as_bytes()), Some(DiskHealth::Passed));
        // A virtual disk, and no answer at all.
        assert_eq!(verdict(br#"{"smartctl":{"exit_status":4}}"#), None);
        assert_eq!(verdict(b""), None);
    }

    #[test]
    fn a_failing_disk_says_why() {
        let nvme = r#"{"smart_status":{"passed":false,"nvme":{"value":5}},
            "nvme_smart_health_information_log":
            {"critical_warning":5,"percentage_used":104,"media_errors":2}}"#;
        assert_eq!(
            failing(nvme),
            "its spare blocks run out, it is not reliable any more, 2 errors of its medium, \
             104 % of the writes that it is made for"
        );
        let sata = r#"{"smart_status":{"passed":true},"ata_smart_attributes":{"table":[
            {"id":197,"name":"Current_Pending_Sector","when_failed":"","raw":{"value":16}}]}}"#;
        assert_eq!(failing(sata), "Current_Pending_Sector: 16");
        let limit = r#"{"smart_status":{"passed":false},"ata_smart_attributes":{"table":[
            {"id":5,"name":"Reallocated_Sector_Ct","when_failed":"now","raw":{"value":900}}]}}"#;
        assert_eq!(failing(limit), "Reallocated_Sector_Ct beyond its limit");
        assert_eq!(
            failing(r#"{"smart_status":{"passed":false}}"#),
            "its own verdict"
        );
    }
}
