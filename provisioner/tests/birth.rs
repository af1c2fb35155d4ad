//! Births over loopback: the real installer, the real factory, a sky that
//! speaks the same calls, and a file that stands in for the disk.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail the test, like the test itself"
)]

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use model::api::{InstallStep, MachineState};
use model::machine::DiskContent;
use pxe::boot::{
    BootAnswer, BootRequest, BootSource as _, ClientArch, ClientClass, MachineUuid, Protocol,
};
use slots::esp::{self, Fat};
use slots::{Disk, Part, Slot, Target as _, Window};
use tpm::Blob;
use tpm::emulator::Emulator;

use support::{Bench, Fault, Installer, MAC, Ticketing};

fn asks(class: ClientClass) -> BootRequest {
    BootRequest {
        mac: MAC,
        uuid: Some(MachineUuid([
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ])),
        arch: ClientArch::UefiX64,
        client_class: class,
        protocol: Protocol::Dhcp,
        relay: Some(Ipv4Addr::LOCALHOST.into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_a_tpm_the_keys_are_of_no_use_without_it() {
    let bench = Bench::start(Fault::None).await;
    let chip = Emulator::start().unwrap();
    let socket = chip.socket();
    let mut installer = Installer::start(&bench, &["--tpm", socket.to_str().unwrap()]);
    installer.line("leapserv: keys: made in the TPM").await;
    let code = installer.code().await;
    bench.sky.approve(&code, Ticketing::Good);
    installer.line("leapserv: born motivatit/houma-1").await;
    installer.ends(0).await;
    assert!(bench.sky.redeemed(&code));

    let file = |name: &str| bench.debugfs(&format!("cat /lib/leapserv/identity/{name}"));
    let (device, age) = (file("device.key"), file("age.key"));
    let blob = |text: &str| Blob::from_pem(text).unwrap();
    let mut tpm = chip.open().unwrap();
    assert!(tpm.sign(&blob(&device), &[1; 32]).is_ok());
    let opened = tpm.unseal(&blob(&age)).unwrap();
    assert!(opened.starts_with(b"AGE-SECRET-KEY-1"));
    let other = Emulator::start().unwrap();
    let mut other = other.open().unwrap();
    assert!(other.sign(&blob(&device), &[1; 32]).is_err());
    assert!(other.unseal(&blob(&age)).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_does_not_work_is_told_and_the_keys_are_in_a_file() {
    let bench = Bench::start(Fault::None).await;
    let mut installer = Installer::start(&bench, &["--tpm", "/nowhere/tpmrm0"]);
    let told = installer
        .line("leapserv: finding note its TPM does not make keys")
        .await;
    assert!(told.contains("/nowhere/tpmrm0"), "{told}");
    let code = installer.code().await;
    let findings = bench.sky.facts(&code).findings;
    assert!(
        findings
            .iter()
            .any(|finding| finding.text.contains("/nowhere/tpmrm0"))
    );
    bench.sky.approve(&code, Ticketing::Good);
    installer.line("leapserv: born motivatit/houma-1").await;
    installer.ends(0).await;
    let key = bench.debugfs("cat /lib/leapserv/identity/device.key");
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_an_empty_disk_is_born() {
    let bench = Bench::start(Fault::None).await;
    assert!(matches!(
        bench.source().decide(&asks(ClientClass::Pxe)),
        BootAnswer::Boot { .. }
    ));
    let mut installer = Installer::start(&bench, &[]);
    let code = installer.code().await;
    assert_eq!(bench.sky.state(&code), MachineState::Held);
    installer.line("leapserv: step waiting").await;
    bench.sky.approve(&code, Ticketing::Good);
    installer.line("leapserv: born motivatit/houma-1").await;
    installer.ends(0).await;
    assert_eq!(bench.sky.state(&code), MachineState::Born);

    // From outside: the partition table, the slots, the ESP, the identity.
    let mut disk = Disk::open_read_only(&bench.disk()).unwrap();
    let layout = slots::gpt::read(&mut disk).unwrap();
    let release = &bench.release;
    assert_eq!(layout.slot_of(&release.manifest.root_hash), Some(Slot::A));
    for (part, content) in [
        (Part::Root(Slot::A), &release.root),
        (Part::Verity(Slot::A), &release.verity),
    ] {
        let mut found = vec![0; content.len()];
        let start = layout.partition(part).start;
        disk.read_at(start, &mut found).unwrap();
        assert!(found == *content, "{part}");
    }
    let partition = layout.partition(Part::Esp);
    let fat = Fat::open(Window::new(disk, partition.start, partition.size)).unwrap();
    for (path, content) in [
        (
            esp::boot_loader(release.manifest.architecture),
            &release.boot_loader,
        ),
        ("EFI/Linux/leapserv_2026.11.1+3.efi", &release.uki),
        (
            "leapserv/releases/2026.11.1/leap-backup.raw",
            &release.component,
        ),
        (
            "leapserv/releases/2026.11.1/manifest.json",
            &release.manifest_bytes,
        ),
        (esp::LAYER_RAW, &release.layer),
        ("loader/keys/auto/PK.auth", &b"PK".to_vec()),
        ("loader/keys/auto/KEK.auth", &b"KEK".to_vec()),
        ("loader/keys/auto/db.auth", &b"db".to_vec()),
    ] {
        assert!(fat.read(path).unwrap() == *content, "{path}");
    }
    let loader = fat.read(esp::LOADER_CONF).unwrap();
    assert!(loader.ends_with(b"\nsecure-boot-enroll force\n"));
    let enrolment = bench.debugfs("cat /lib/leapserv/identity/enrolment.json");
    assert!(
        enrolment.contains("urn:leapserv:motivatit/houma-1:1"),
        "{enrolment}"
    );
    let key = bench.debugfs("stat /lib/leapserv/identity/device.key");
    assert!(key.contains("Mode:  0600"), "{key}");
    assert!(key.contains("User:     0   Group:     0"), "{key}");
    let folder = bench.debugfs("stat /lib/leapserv/identity");
    assert!(folder.contains("Mode:  0700"), "{folder}");
    let age = bench.debugfs("cat /lib/leapserv/identity/age.key");
    assert!(age.starts_with("AGE-SECRET-KEY-1"));
    bench.fsck();

    // The factory keeps it on its disk, also after a restart.
    for class in [ClientClass::Pxe, ClientClass::HttpBoot, ClientClass::Other] {
        let answer = bench.source().decide(&asks(class));
        assert!(matches!(answer, BootAnswer::LocalDisk { .. }), "{answer:?}");
    }
    let bench = bench.restart_factory().await;
    let answer = bench.source().decide(&asks(ClientClass::Pxe));
    assert!(matches!(answer, BootAnswer::LocalDisk { .. }), "{answer:?}");

    // With a program at hand that starts the disk, firmware is given that one.
    std::fs::write(bench.disk().with_file_name("local.efi"), "MZ").unwrap();
    let bench = bench.restart_factory().await;
    for class in [ClientClass::Pxe, ClientClass::HttpBoot, ClientClass::Ipxe] {
        let answer = bench.source().decide(&asks(class));
        let BootAnswer::Boot {
            tftp_path,
            http_path,
        } = answer
        else {
            panic!("{answer:?}");
        };
        assert_eq!(
            (tftp_path.as_str(), http_path.as_str()),
            ("boot/local.efi", "boot/local.efi")
        );
    }

    // An installer that comes up all the same is sent to the disk and told so.
    let mut again = Installer::start(&bench, &[]);
    again
        .line("leapserv: local disk: the machine has its disk already")
        .await;
    again.ends(0).await;
    let story = bench.story();
    let texts: Vec<&str> = story.lines.iter().map(|line| line.text.as_str()).collect();
    assert!(
        texts.iter().any(|text| text.starts_with("is born")),
        "{texts:?}"
    );
    assert_eq!(
        (story.state.as_str(), story.boots.as_str()),
        ("born", "local-disk")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_lost_in_the_middle_is_taken_up_again() {
    let bench = Bench::start(Fault::CutAfter {
        bytes: 1_500_000,
        times: 4,
    })
    .await;
    let mut installer = Installer::start(&bench, &[]);
    let code = installer.code().await;
    bench.sky.approve(&code, Ticketing::Good);
    installer.line("leapserv: link lost: fetch root.zst").await;
    installer.line("leapserv: link is back").await;
    installer.ends(0).await;
    assert_eq!(bench.sky.state(&code), MachineState::Born);
    assert!(bench.root_is_whole());
    // Each cut costs what was on the way, and never a start from the beginning.
    let whole = bench.release.total();
    assert!(
        bench.carried() < whole + 4 * 1_500_000,
        "{} of {whole}",
        bench.carried()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_altered_for_a_moment_is_fetched_again() {
    let bench = Bench::start(Fault::Flip {
        at: 2_500_000,
        times: 1,
    })
    .await;
    let mut installer = Installer::start(&bench, &[]);
    let code = installer.code().await;
    bench.sky.approve(&code, Ticketing::Good);
    installer
        .line("leapserv: altered on the way, fetched again")
        .await;
    installer.ends(0).await;
    assert!(bench.root_is_whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_stays_altered_is_refused_and_nothing_of_it_starts() {
    let bench = Bench::start(Fault::FlipEvery { bytes: 700_000 }).await;
    let mut installer = Installer::start(&bench, &["--once"]);
    let code = installer.code().await;
    bench.sky.approve(&code, Ticketing::Good);
    installer.line("leapserv: error write root-a").await;
    installer.line("leapserv: next ").await;
    installer.ends(1).await;
    assert_eq!(bench.sky.state(&code), MachineState::Failed);
    let mut disk = Disk::open_read_only(&bench.disk()).unwrap();
    let layout = slots::gpt::read(&mut disk).unwrap();
    let partition = layout.partition(Part::Esp);
    assert!(
        Fat::open(Window::new(disk, partition.start, partition.size)).is_err(),
        "there is a file system to start from"
    );
    // And the factory still gives it the installer, not a half-written disk.
    let answer = bench.source().decide(&asks(ClientClass::Pxe));
    assert!(matches!(answer, BootAnswer::Boot { .. }), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_that_do_not_fit_erase_nothing() {
    for (ticketing, expected) in [
        (Ticketing::Expired, "expired at"),
        (Ticketing::OtherMachine, "made for machine serial"),
        (Ticketing::OtherKeys, "made for other device keys"),
        (Ticketing::OtherDisk, "no disk with serial"),
        (
            Ticketing::SignedByTheSky,
            "0 valid signatures where 1 are needed",
        ),
        (Ticketing::OtherRelease, "fetch the manifest"),
    ] {
        // The factory would keep false tickets back: this one believes all.
        let bench = Bench::start_gullible().await;
        let before = std::fs::metadata(bench.disk()).unwrap().modified().unwrap();
        let mut installer = Installer::start(&bench, &["--once", "--give-up", "2"]);
        let code = installer.code().await;
        bench.sky.approve(&code, ticketing);
        installer.line("leapserv: error ").await;
        let said = installer.said();
        assert!(said.contains(expected), "{ticketing:?}: {said}");
        installer.fails().await;
        assert!(!bench.sky.redeemed(&code), "{ticketing:?}");
        let after = std::fs::metadata(bench.disk()).unwrap().modified().unwrap();
        assert_eq!(before, after, "{ticketing:?} touched the disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_ticket_does_not_get_past_the_factory() {
    let bench = Bench::start(Fault::None).await;
    let mut installer = Installer::start(&bench, &["--once"]);
    let code = installer.code().await;
    bench.sky.approve(&code, Ticketing::SignedByTheSky);
    installer.line("leapserv: error ask what to do").await;
    installer.fails().await;
    let record = bench.ledger().by_code(&code).unwrap();
    assert_eq!(record.birth.word(), "held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_with_foreign_data_is_erased_only_where_the_ticket_says_so() {
    let bench = Bench::start(Fault::None).await;
    let mut disk = Disk::open(&bench.disk()).unwrap();
    disk.write_at(4096, b"someone's photographs").unwrap();
    drop(disk);
    let mut installer = Installer::start(&bench, &[]);
    let code = installer.code().await;
    assert!(
        installer.said().contains("bytes foreign"),
        "{}",
        installer.said()
    );
    assert_eq!(
        bench.sky.facts(&code).disks[0].content,
        DiskContent::Foreign
    );
    bench.sky.approve(&code, Ticketing::Good);
    installer
        .line("leapserv: next approve again with permission")
        .await;
    assert!(!bench.sky.redeemed(&code));
    let mut disk = Disk::open_read_only(&bench.disk()).unwrap();
    let mut found = [0; 21];
    disk.read_at(4096, &mut found).unwrap();
    assert_eq!(&found, b"someone's photographs");
    // It waits, and another ticket lets it go on.
    bench.sky.approve(&code, Ticketing::EraseForeign);
    installer.line("leapserv: born motivatit/houma-1").await;
    installer.ends(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_to_a_sky_that_was_away() {
    let bench = Bench::start(Fault::None).await;
    let mut installer = Installer::start(&bench, &[]);
    let code = installer.code().await;
    bench.sky.fall_silent_at(InstallStep::Done);
    bench.sky.approve(&code, Ticketing::Good);
    installer.ends(0).await;
    assert_eq!(bench.sky.state(&code), MachineState::Installing);
    let record = bench.ledger().by_code(&code).unwrap();
    assert_eq!((record.birth.word(), record.owed.is_some()), ("born", true));
    let page = bench.metrics().await;
    for line in [
        "leap_factory_machines{state=\"born\"} 1\n",
        "leap_factory_untold_ends 1\n",
        "leap_factory_tickets_redeemed_total 1\n",
        "leap_factory_birth_failures_total 0\n",
        "leap_factory_birth_seconds_count 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    assert!(
        !page.contains("served_bytes_total{protocol=\"http\"} 0"),
        "{page}"
    );
    assert!(
        page.contains("served_bytes_total{protocol=\"http\"} "),
        "{page}"
    );
    let bench = bench.restart_factory().await;
    bench.sky.speak();
    bench.tell_owed().await;
    assert_eq!(bench.sky.state(&code), MachineState::Born);
    assert!(bench.ledger().by_code(&code).unwrap().owed.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installer_that_is_cut_off_in_mid_write_needs_a_new_ticket() {
    let bench = Bench::start(Fault::Stop { bytes: 1_500_000 }).await;
    let mut installer = Installer::start(&bench, &[]);
    let old = installer.code().await;
    bench.sky.approve(&old, Ticketing::Good);
    installer.line("leapserv: step write").await;
    installer.kill().await;
    bench.mend();
    let answer = bench.source().decide(&asks(ClientClass::Pxe));
    assert!(matches!(answer, BootAnswer::Boot { .. }), "{answer:?}");
    let mut installer = Installer::start(&bench, &[]);
    let new = installer.code().await;
    assert_ne!(old, new, "the keys were in memory only");
    installer.line("leapserv: step waiting").await;
    assert_eq!(bench.ledger().by_code(&new).unwrap().birth.word(), "held");
    // What was begun is ours: no permission to erase foreign data is needed.
    bench.sky.approve(&new, Ticketing::Good);
    installer.line("leapserv: born").await;
    installer.ends(0).await;
    assert!(bench.root_is_whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_factory_that_is_away_is_given_up_and_nothing_hangs() {
    let bench = Bench::start(Fault::None).await;
    let mut installer = Installer::start(&bench, &["--give-up", "1", "--stall", "1"]);
    installer.code().await;
    bench.cut_for_good();
    let ended = tokio::time::timeout(Duration::from_secs(60), installer.fails()).await;
    assert!(ended.is_ok(), "it hangs: {}", installer.said());
}

/// Asks the factory with curl and returns head and body.
async fn curl(url: String, more: &[&str]) -> (String, Vec<u8>) {
    let tool = edge::runner::Tool::new("curl")
        .args(["-s", "-i", "--max-time", "50"])
        .args(more)
        .arg(url);
    let mut answer = tool.output_async().await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = answer.split_off(end.unwrap() + 4);
    (String::from_utf8(answer).unwrap(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_range_of_a_customers_disk_is_served_and_nothing_of_others() {
    let bench = Bench::start(Fault::None).await;
    let url = |name: &str| format!("{}/disk/{name}", bench.base);
    let (head, body) = curl(url("motivatit/houma-1.raw"), &["-r", "510-511"]).await;
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    assert!(
        head.contains("content-range: bytes 510-511/17179869184"),
        "{head}"
    );
    assert_eq!(body, [0x55, 0xaa]);
    // Across the end of a piece, into the root image.
    let root = (1u64 << 20) + (1 << 30);
    let range = format!("{}-{}", root - 3, root + (1 << 20) + 4);
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: "));
    let same = format!("If-Range: {}", tag.unwrap());
    let (head, body) = curl(url("motivatit/houma-1.raw"), &["-r", &range, "-H", &same]).await;
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    assert_eq!(body.len(), (1 << 20) + 8);
    assert!(body[3..] == bench.release.root[..(1 << 20) + 5]);
    let (head, _) = curl(url("motivatit.raw"), &["-I"]).await;
    assert!(head.contains("content-length: 17179869184"), "{head}");
    assert!(
        !head.contains(tag.unwrap()),
        "a unit's disk is its own: {head}"
    );
    for none in [
        "other.raw",
        "motivatit",
        "../v1/machines.raw",
        "motivatit/a/b.raw",
    ] {
        let (head, _) = curl(url(none), &["--path-as-is"]).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{none}: {head}");
    }
}
