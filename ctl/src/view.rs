//! How a person reads the sky's answers. Pure; the time is an argument.

use std::fmt::Write as _;

use jiff::Timestamp;
use model::api::{
    CheckIn, Event, InstallStep, MachineState, MachineView, NewCustomer, Progress, UnitState,
    UnitView, UpdateStatus,
};
use model::backup::{BackupStatus, SnapshotRow};
use model::machine::Severity;
use model::release::ChannelPointer;
use model::{Digest, ReleaseVersion};

use crate::birth::{describe, size};

/// The state's word on the wire.
pub(crate) fn state_word(state: UnitState) -> &'static str {
    match state {
        UnitState::Unborn => "unborn",
        UnitState::Birth => "birth",
        UnitState::InService => "in-service",
        UnitState::Unhealthy => "unhealthy",
        UnitState::Rebirth => "rebirth",
    }
}

/// The state's word on the wire.
pub(crate) fn machine_word(state: MachineState) -> &'static str {
    match state {
        MachineState::Held => "held",
        MachineState::Approved => "approved",
        MachineState::Installing => "installing",
        MachineState::Born => "born",
        MachineState::Failed => "failed",
    }
}

/// The installer's step.
pub(crate) fn step_word(step: InstallStep) -> &'static str {
    match step {
        InstallStep::Waiting => "waiting for approval",
        InstallStep::Partition => "partition the disk",
        InstallStep::Write => "write the system",
        InstallStep::Boot => "write boot loader and kernel",
        InstallStep::Identity => "store the identity",
        InstallStep::Verify => "read back",
        InstallStep::Done => "done, restarting",
        InstallStep::Failed => "gave up",
    }
}

/// What the updater does now.
pub(crate) fn update_words(update: &UpdateStatus) -> String {
    let mut text = update.state.clone();
    if let Some(target) = update.target {
        let _ = write!(text, " {target}");
    }
    if update.segments_total > 0 && update.state == "fetching" {
        let _ = write!(
            text,
            ", {} of {} segments",
            update.segments_done, update.segments_total
        );
    }
    text
}

/// What the health gate still waits for.
pub(crate) fn gate_words(last: &CheckIn) -> String {
    let failing = last.checks.iter().filter(|check| !check.ok);
    let failing: Vec<&str> = failing.map(|check| check.message.as_str()).collect();
    match failing.as_slice() {
        [] => "the health gate has not passed yet".into(),
        failing => format!("the health gate has not passed: {}", failing.join("; ")),
    }
}

/// How long ago.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    let (value, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        7200..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{value} {unit} ago")
}

fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Lays out rows in columns under their headings.
fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|word| (*word).to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// All customers.
pub(crate) fn customers(customers: &[NewCustomer]) -> String {
    if customers.is_empty() {
        return "no customers yet: leapctl customer create NAME --title TITLE".into();
    }
    let rows: Vec<_> = customers
        .iter()
        .map(|customer| vec![customer.name.to_string(), customer.title.clone()])
        .collect();
    table(&["CUSTOMER", "TITLE"], &rows)
}

/// All units.
pub(crate) fn units(units: &[UnitView], now: Timestamp) -> String {
    if units.is_empty() {
        return "no units yet: leapctl unit create CUSTOMER/NAME".into();
    }
    let rows: Vec<_> = units
        .iter()
        .map(|unit| {
            let last = unit.last_check_in.as_ref();
            vec![
                unit.unit.to_string(),
                state_word(unit.state).to_owned(),
                unit.incarnation.to_string(),
                last.map_or("-".into(), |last| release(last.release, last.revision)),
                match last {
                    Some(last) if last.configuration.applied != unit.configuration_generation => {
                        format!(
                            "{} of {}",
                            last.configuration.applied, unit.configuration_generation
                        )
                    }
                    _ => unit.configuration_generation.to_string(),
                },
                unit.last_seen.map_or("-".into(), |seen| ago(seen, now)),
            ]
        })
        .collect();
    table(
        &[
            "UNIT",
            "STATE",
            "INCARNATION",
            "RELEASE",
            "CONFIGURATION",
            "SEEN",
        ],
        &rows,
    )
}

/// The lines of one unit, each under its word.
struct Sheet(String);

impl Sheet {
    fn row(&mut self, word: &str, text: impl AsRef<str>) {
        for (index, line) in text.as_ref().lines().enumerate() {
            let word = if index == 0 { word } else { "" };
            let _ = writeln!(self.0, "  {word:<14} {line}");
        }
    }
}

/// One unit with all that the sky knows of it.
pub(crate) fn unit(unit: &UnitView, now: Timestamp) -> String {
    let mut sheet = Sheet(format!("{}  {}\n", unit.unit, state_word(unit.state)));
    sheet.row(
        "follows",
        format!("channel {}, profile {}", unit.channel, unit.profile),
    );
    let machine = unit.machine_serial.as_deref().unwrap_or("none");
    sheet.row(
        "incarnation",
        format!("{}, machine serial {machine}", unit.incarnation),
    );
    if let Some(seen) = unit.last_seen {
        sheet.row("seen", format!("{} ({})", moment(seen), ago(seen, now)));
    }
    match &unit.last_check_in {
        None => sheet.row(
            "configuration",
            format!("generation {} signed", unit.configuration_generation),
        ),
        Some(last) => {
            let health = if last.healthy {
                "healthy"
            } else {
                "not healthy"
            };
            sheet.row(
                "release",
                format!(
                    "{} in slot {}, {health}",
                    release(last.release, last.revision),
                    last.slot
                ),
            );
            sheet.row("root hash", &last.root_hash);
            sheet.row(
                "host",
                format!("{} {}", last.hostname, last.addresses.join(" ")).trim(),
            );
            sheet.row("configuration", configuration(unit, last));
            sheet.row("health", checks(last));
            sheet.row("update", update(&last.update));
            if let Some(status) = &last.backup {
                sheet.row("backup", backup(status, now));
            }
        }
    }
    match unit.escrow_version {
        Some(version) => sheet.row("escrow", format!("version {version}")),
        None => sheet.row("escrow", "none yet"),
    }
    if !unit.fenced_attempts.is_empty() {
        let mut text = String::new();
        for attempt in &unit.fenced_attempts {
            let _ = writeln!(
                text,
                "{} incarnation {} refused at {}, from {}",
                moment(attempt.time),
                attempt.identity.incarnation,
                attempt.place,
                attempt.address
            );
        }
        sheet.row("fenced", text);
    }
    sheet.0
}

fn configuration(unit: &UnitView, last: &CheckIn) -> String {
    let status = &last.configuration;
    let mut text = format!("generation {} applied", status.applied);
    let rejected = status.rejected.as_ref();
    let pending = unit.configuration_generation > status.applied
        && rejected.is_none_or(|r| r.generation < unit.configuration_generation);
    if pending {
        let _ = write!(text, ", {} on its way", unit.configuration_generation);
    }
    if let Some(rejected) = rejected {
        let _ = write!(
            text,
            "\ngeneration {} rejected: {}",
            rejected.generation, rejected.reason
        );
    }
    text
}

fn checks(last: &CheckIn) -> String {
    if last.checks.is_empty() {
        return "no checks told".into();
    }
    let names = last.checks.iter().map(|check| check.name.len());
    let width = names.max().unwrap_or(0);
    let mut text = String::new();
    for check in &last.checks {
        let word = if check.ok { "ok  " } else { "FAIL" };
        let _ = writeln!(text, "{word} {:<width$} {}", check.name, check.message);
    }
    text
}

fn update(update: &UpdateStatus) -> String {
    let mut text = update_words(update);
    if update.segments_resumed > 0 {
        let _ = write!(
            text,
            "\nwent on after an interruption: {} segments were there already",
            update.segments_resumed
        );
    }
    for rejected in &update.rejected {
        let which = release(rejected.release, rejected.revision);
        let _ = write!(text, "\n{which} given up: {}", rejected.reason);
    }
    if let Some(problem) = &update.problem {
        let _ = write!(text, "\nproblem: {problem}");
    }
    text
}

fn backup(status: &BackupStatus, now: Timestamp) -> String {
    let mut text = String::new();
    let mut told: Vec<&str> = Vec::new();
    let mut newest: Vec<&SnapshotRow> = status.snapshots.iter().collect();
    newest.sort_by_key(|row| std::cmp::Reverse(row.time));
    for row in newest {
        if told.contains(&row.source.as_str()) {
            continue;
        }
        told.push(&row.source);
        let _ = writeln!(
            text,
            "{}: snapshot {} of {} ({}), {} files, {}{}, at {}",
            row.source,
            short(&row.id),
            moment(row.time),
            ago(row.time, now),
            row.files,
            size(row.bytes),
            if row.partial { ", PARTIAL" } else { "" },
            row.copies.join(" "),
        );
    }
    if told.is_empty() {
        text.push_str("no snapshot yet\n");
    }
    for copy in &status.copies {
        let _ = write!(text, "{}: ", copy.destination);
        match copy.complete {
            Some(time) => {
                let _ = write!(text, "complete {} ({})", moment(time), ago(time, now));
            }
            None => text.push_str("not complete yet"),
        }
        if let Some(problem) = &copy.problem {
            let _ = write!(text, ", problem: {problem}");
        }
        text.push('\n');
    }
    if let Some(time) = status.canary_proven {
        let _ = writeln!(
            text,
            "last proven restore {} ({})",
            moment(time),
            ago(time, now)
        );
    }
    if let Some(key) = &status.ssh_public_key {
        let _ = writeln!(text, "logs in at its sources with {key}");
    }
    if let Some(problem) = &status.problem {
        let _ = writeln!(text, "problem: {problem}");
    }
    text
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// All snapshots of a unit, and its copies.
pub(crate) fn backups(status: Option<&BackupStatus>) -> String {
    let Some(status) = status else {
        return "the unit has told nothing of backups yet".into();
    };
    if status.snapshots.is_empty() {
        let problem = status.problem.as_deref();
        return problem.map_or("no snapshot yet".into(), |problem| {
            format!("no snapshot yet: {problem}")
        });
    }
    let rows: Vec<_> = status
        .snapshots
        .iter()
        .map(|row| {
            vec![
                short(&row.id).to_owned(),
                row.source.clone(),
                moment(row.time),
                row.files.to_string(),
                size(row.bytes),
                size(row.added),
                if row.partial { "partial" } else { "complete" }.to_owned(),
                row.copies.join(" "),
            ]
        })
        .collect();
    table(
        &[
            "SNAPSHOT", "SOURCE", "TIME", "FILES", "SIZE", "ADDED", "STATE", "AT",
        ],
        &rows,
    )
}

/// All machines.
pub(crate) fn machines(machines: &[MachineView], now: Timestamp) -> String {
    if machines.is_empty() {
        return "no machine has announced itself: power one on at the factory, network first"
            .into();
    }
    let rows: Vec<_> = machines
        .iter()
        .map(|machine| {
            let unit = match (&machine.unit, &machine.pass) {
                (Some(unit), _) => unit.to_string(),
                // Not yet: its people have the unit's one-time code.
                (None, Some(pass)) => format!("({pass})"),
                (None, None) => "-".into(),
            };
            vec![
                machine.code.to_string(),
                machine_word(machine.state).to_owned(),
                machine.facts.serial.clone(),
                machine.facts.product.clone(),
                unit,
                ago(machine.last_seen, now),
            ]
        })
        .collect();
    table(
        &["CODE", "STATE", "SERIAL", "PRODUCT", "UNIT", "SEEN"],
        &rows,
    )
}

/// One machine with its facts.
pub(crate) fn machine(machine: &MachineView, now: Timestamp) -> String {
    let facts = &machine.facts;
    let mut sheet = Sheet(format!(
        "{}  {}\n",
        machine.code,
        machine_word(machine.state)
    ));
    if let Some(unit) = &machine.unit {
        sheet.row("unit", unit.to_string());
    }
    if let Some(pass) = &machine.pass {
        sheet.row("came with", format!("the one-time code of {pass}"));
    }
    if let Some(progress) = &machine.progress {
        sheet.row("step", progress_words(progress, None));
    }
    sheet.row("serial", &facts.serial);
    sheet.row("uuid", &facts.uuid);
    sheet.row("product", &facts.product);
    sheet.row(
        "cpu, memory",
        format!("{} x {}, {}", facts.cpus, facts.cpu, size(facts.memory)),
    );
    let disks: Vec<String> = facts.disks.iter().map(describe).collect();
    sheet.row(
        "disks",
        if disks.is_empty() {
            "none".into()
        } else {
            disks.join("\n")
        },
    );
    let nics: Vec<String> = facts
        .nics
        .iter()
        .map(|nic| {
            let link = if nic.link { "link" } else { "no link" };
            format!("{} {} {link}", nic.name, nic.mac)
        })
        .collect();
    sheet.row("network", nics.join("\n"));
    let findings: Vec<String> = facts
        .findings
        .iter()
        .map(|finding| match finding.severity {
            Severity::Stops => format!("stops: {}", finding.text),
            Severity::Matters => finding.text.clone(),
        })
        .collect();
    if !findings.is_empty() {
        sheet.row("wanting", findings.join("\n"));
    }
    let on = |on: bool| if on { "on" } else { "off" };
    let tpm = match (&machine.keys.tpm, facts.tpm) {
        // What tells one chip from another, as short as codes are.
        (Some(tpm), _) => {
            let name = Digest::of(&tpm.endorsement_key.0).to_string();
            let certificate = match tpm.endorsement_certificate {
                Some(_) => "with its maker's certificate",
                None => "without a certificate of its maker",
            };
            format!("keys in TPM {}, {certificate}", &name[..16])
        }
        (None, true) => "a TPM, and keys in a file".into(),
        (None, false) => "no TPM, keys in a file".into(),
    };
    sheet.row(
        "firmware",
        format!(
            "{}, Secure Boot {}, {tpm}",
            facts.firmware,
            on(facts.secure_boot)
        ),
    );
    sheet.row(
        "seen",
        format!(
            "first {}, last {}",
            moment(machine.first_seen),
            ago(machine.last_seen, now)
        ),
    );
    sheet.0
}

/// How far an installer is; `rate` in bytes a second, where it is known.
pub(crate) fn progress_words(progress: &Progress, rate: Option<u64>) -> String {
    let mut text = step_word(progress.step).to_owned();
    let percent = progress.done.saturating_mul(100);
    if let Some(percent) = percent.checked_div(progress.total) {
        let _ = write!(
            text,
            " {percent} % ({} of {})",
            size(progress.done),
            size(progress.total)
        );
        if let Some(rate) = rate.filter(|rate| *rate > 0) {
            let left = progress.total.saturating_sub(progress.done) / rate;
            let _ = write!(text, ", {}/s, {left} s left", size(rate));
        }
    }
    let _ = write!(text, ", {} s since the installer started", progress.seconds);
    if let Some(problem) = &progress.problem {
        let _ = write!(text, ": {problem}");
    }
    text
}

/// One machine in one line of the live view.
pub(crate) fn birth_line(machine: &MachineView, rate: Option<u64>) -> String {
    let unit = machine.unit.as_ref();
    let mut text = format!(
        "{}  {:<10}  {:<16} {}",
        machine.code,
        machine_word(machine.state),
        machine.facts.serial,
        unit.map_or("-".into(), ToString::to_string),
    );
    if let Some(progress) = &machine.progress {
        let _ = write!(text, "  {}", progress_words(progress, rate));
    }
    text
}

/// Events, a line each.
pub(crate) fn event(event: &Event) -> String {
    let mut text = format!("{}  {:<22} ", moment(event.time), event.kind);
    if let Some(unit) = &event.unit {
        let _ = write!(text, "{unit} ");
    }
    if let Some(code) = &event.machine {
        let _ = write!(text, "[{code}] ");
    }
    text.push_str(&event.message);
    text
}

/// A release, with the revision of its components where it has one.
pub(crate) fn release(release: ReleaseVersion, revision: u32) -> String {
    match revision {
        0 => release.to_string(),
        revision => format!("{release} revision {revision}"),
    }
}

/// What a channel offers.
pub(crate) fn channel(pointer: &ChannelPointer, now: Timestamp) -> String {
    let offered = release(pointer.release, pointer.revision);
    let mut sheet = Sheet(format!("{}  {offered}\n", pointer.channel));
    sheet.row("version", pointer.version.to_string());
    sheet.row("manifest", pointer.manifest.to_string());
    let hours = (pointer.expires.as_second() - now.as_second()) / 3600;
    sheet.row(
        "fresh until",
        format!("{} ({hours} h left)", moment(pointer.expires)),
    );
    sheet.0
}

#[cfg(test)]
pub(crate) mod tests {
    use model::api::{
        ConfigurationStatus, FenceAttempt, HealthCheck, RejectedGeneration, RejectedRelease,
    };
    use model::backup::CopyState;
    use model::{DeviceIdentity, Digest, Incarnation};

    use super::*;
    use crate::birth::tests::{disk, machine as some_machine};

    fn time(text: &str) -> Timestamp {
        format!("2026-11-22T{text}Z").parse().unwrap()
    }

    pub(crate) fn living_unit() -> UnitView {
        UnitView {
            unit: "motivatit/houma-1".parse().unwrap(),
            profile: "backup".into(),
            channel: "stable".into(),
            state: UnitState::InService,
            incarnation: Incarnation(1),
            machine_serial: Some("LEAP-0001".into()),
            configuration_generation: 2,
            last_check_in: Some(CheckIn {
                release: "2026.11.1".parse().unwrap(),
                revision: 0,
                root_hash: Digest::of(b"root").to_string(),
                slot: "a".into(),
                boot_id: "b".into(),
                healthy: true,
                checks: vec![
                    HealthCheck {
                        name: "check-in".into(),
                        ok: true,
                        message: "the sky answered".into(),
                    },
                    HealthCheck {
                        name: "canary".into(),
                        ok: true,
                        message: "restored".into(),
                    },
                ],
                configuration: ConfigurationStatus {
                    applied: 2,
                    rejected: None,
                },
                update: UpdateStatus {
                    state: "idle".into(),
                    ..UpdateStatus::default()
                },
                backup: Some(BackupStatus {
                    snapshots: vec![SnapshotRow {
                        id: "1a2b3c4d5e6f".into(),
                        source: "gallery".into(),
                        time: time("20:05:00"),
                        files: 312,
                        bytes: 43_200_000,
                        added: 41_000_000,
                        partial: false,
                        copies: vec!["local".into(), "vault-1".into(), "vault-2".into()],
                    }],
                    copies: ["vault-1", "vault-2"]
                        .map(|name| CopyState {
                            destination: name.into(),
                            complete: Some(time("20:06:00")),
                            files_sent: 9,
                            bytes_sent: 41_000_000,
                            problem: None,
                        })
                        .into(),
                    canary_proven: Some(time("20:05:30")),
                    ssh_public_key: Some("ssh-ed25519 AAAA houma-1".into()),
                    problem: None,
                }),
                escrow: None,
                secrets_version: Some(1),
                reports: vec![],
                hostname: "houma-1".into(),
                addresses: vec!["10.77.0.50".into()],
            }),
            last_seen: Some(time("20:10:00")),
            escrow_version: Some(1),
            fenced_attempts: vec![],
        }
    }

    #[test]
    fn pages_look_as_agreed() {
        let now = time("20:10:12");
        let alive = living_unit();
        let mut troubled = living_unit();
        troubled.state = UnitState::Unhealthy;
        troubled.incarnation = Incarnation(2);
        troubled.configuration_generation = 3;
        troubled.fenced_attempts = vec![FenceAttempt {
            identity: DeviceIdentity {
                unit: troubled.unit.clone(),
                incarnation: Incarnation(1),
            },
            place: "check-in".into(),
            address: "10.77.0.11".into(),
            time: time("20:09:00"),
        }];
        let last = troubled.last_check_in.as_mut().unwrap();
        last.healthy = false;
        last.checks[1].ok = false;
        last.checks[1].message = "the repository does not open".into();
        last.configuration.rejected = Some(RejectedGeneration {
            generation: 3,
            reason: "the sky could not be reached with it".into(),
        });
        last.update = UpdateStatus {
            state: "fetching".into(),
            target: Some("2026.11.4".parse().unwrap()),
            segments_done: 120,
            segments_total: 400,
            segments_resumed: 80,
            rejected: vec![RejectedRelease {
                release: "2026.11.3".parse().unwrap(),
                revision: 0,
                reason: "the health gate failed".into(),
            }],
            problem: None,
        };
        let mut unborn = living_unit();
        unborn.state = UnitState::Unborn;
        unborn.incarnation = Incarnation(0);
        unborn.machine_serial = None;
        unborn.last_check_in = None;
        unborn.last_seen = None;
        unborn.escrow_version = None;
        let mut installing = some_machine("LEAP-0002", vec![disk("/dev/vda", "D1", 20)]);
        installing.state = MachineState::Installing;
        installing.unit = Some(alive.unit.clone());
        installing.progress = Some(Progress {
            step: InstallStep::Write,
            done: 100 << 20,
            total: 400 << 20,
            seconds: 9,
            problem: None,
        });
        let held = some_machine("LEAP-0003", vec![]);
        let happened = Event {
            number: 7,
            time: time("20:00:01"),
            kind: "machine-held".into(),
            unit: None,
            machine: Some(held.code.clone()),
            mac: None,
            message: "waits for approval".into(),
        };
        let pointer = ChannelPointer {
            channel: "stable".into(),
            version: 4,
            release: "2026.11.2".parse().unwrap(),
            revision: 0,
            manifest: Digest::of(b"manifest"),
            expires: time("23:10:12"),
        };
        let pages = [
            unit(&alive, now),
            unit(&troubled, now),
            unit(&unborn, now),
            units(&[alive.clone(), troubled.clone(), unborn], now),
            backups(alive.last_check_in.as_ref().unwrap().backup.as_ref()),
            machines(&[installing.clone(), held.clone()], now),
            machine(&installing, now),
            birth_line(&installing, Some(25 << 20)),
            birth_line(&held, None),
            event(&happened),
            channel(&pointer, now),
        ];
        let pages: Vec<&str> = pages.iter().map(|page| page.trim_end()).collect();
        crate::golden::assert("pages.txt", &(pages.join("\n\n") + "\n"));
    }

    #[test]
    fn nothing_to_show_names_the_next_step() {
        let now = time("20:10:12");
        assert!(units(&[], now).contains("leapctl unit create"));
        assert!(customers(&[]).contains("leapctl customer create"));
        assert!(machines(&[], now).contains("power one on"));
    }
}
