//! `leap-image compose` and `leap-image serve` as programs, on a small release.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail the test, like the test itself"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use edge::runner::Tool;
use memchr::memmem;
use model::release::{
    Artifact, Component, CustomerLayer, ReleaseManifest, SEGMENT_SIZE, Segment, SegmentedImage,
};
use model::trust::RoleKeys;
use model::{Digest, Role, Signer, TrustRoot};
use rustix::fs::{SeekFrom, seek};
use serde_json::Value;

const SIZE: &str = "10G";

/// A folder with a release, keys, and layers.
struct Place {
    folder: tempfile::TempDir,
    targets: Signer,
    operator: Signer,
}

fn content(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from((at / 512 * 7 + at % 251) % 256).unwrap() ^ seed)
        .collect()
}

fn artifact(path: &str, bytes: &[u8]) -> Artifact {
    Artifact {
        path: path.to_owned(),
        size: bytes.len() as u64,
        sha256: Digest::of(bytes),
    }
}

fn segmented(path: &str, content: &[u8]) -> (SegmentedImage, Vec<u8>) {
    let mut stored = Vec::new();
    let mut segments = Vec::new();
    for chunk in content.chunks(usize::try_from(SEGMENT_SIZE).unwrap()) {
        let frame = zstd::bulk::compress(chunk, 1).unwrap();
        segments.push(Segment {
            stored_offset: stored.len() as u64,
            stored_length: u32::try_from(frame.len()).unwrap(),
            length: u32::try_from(chunk.len()).unwrap(),
            sha256: Digest::of(chunk),
        });
        stored.extend(frame);
    }
    let image = SegmentedImage {
        path: path.to_owned(),
        stored_size: stored.len() as u64,
        size: content.len() as u64,
        segments,
    };
    (image, stored)
}

impl Place {
    fn make() -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            targets: Signer::from_seed(&[101; 32]),
            operator: Signer::from_seed(&[102; 32]),
        };
        let role = |signer: &Signer| RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        let trust = TrustRoot {
            version: 1,
            roles: BTreeMap::from([
                (Role::Targets, role(&place.targets)),
                (Role::Configuration, role(&place.operator)),
            ]),
            recovery: vec![],
        };
        place.write("trust-root.json", &serde_json::to_vec(&trust).unwrap());
        place.write("keys/targets.pem", place.targets.to_pem().as_bytes());
        place.write("keys/configuration.pem", place.operator.to_pem().as_bytes());
        place.release(&content(7 << 20, 1), &place.targets);
        place.layer("acme", "acme", b"motd of acme");
        place
    }

    fn release(&self, root: &[u8], signer: &Signer) {
        let (root, root_file) = segmented("root.zst", root);
        let (verity, verity_file) = segmented("verity.zst", &content(70_000, 2));
        let backup = content(300_000, 3);
        let manifest = ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b"root hash"),
            root,
            verity,
            uki: artifact("leapserv.efi", &content(900_000, 4)),
            boot_loader: artifact("systemd-bootx64.efi", b"loader"),
            installer: artifact("installer.efi", b"installer"),
            components: vec![Component {
                name: "backup".into(),
                version: "1".into(),
                image: artifact("components/backup.raw", &backup),
                verity: None,
            }],
            documents: vec![],
            tries: 3,
            secure_boot: None,
        };
        self.write("release/root.zst", &root_file);
        self.write("release/verity.zst", &verity_file);
        self.write("release/leapserv.efi", &content(900_000, 4));
        self.write("release/systemd-bootx64.efi", b"loader");
        self.write("release/installer.efi", b"installer");
        self.write("release/components/backup.raw", &backup);
        let signed = serde_json::to_vec(&signer.sign(&manifest)).unwrap();
        self.write("release/manifest.json", &signed);
    }

    /// A layer in the folder of `at` that is signed for `customer`.
    fn layer(&self, at: &str, customer: &str, image: &[u8]) {
        let layer = CustomerLayer {
            customer: customer.parse().unwrap(),
            version: 1,
            image: artifact("layer.raw", image),
            components: None,
        };
        self.write(&format!("layers/{at}/layer.raw"), image);
        let signed = serde_json::to_vec(&self.operator.sign(&layer)).unwrap();
        self.write(&format!("layers/{at}/layer.json"), &signed);
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn tool(&self, subcommand: &str) -> Tool {
        Tool::new(env!("CARGO_BIN_EXE_leap-image"))
            .arg(subcommand)
            .arg(self.path("release"))
            .arg("--trust-root")
            .arg(self.path("trust-root.json"))
            .arg("--cache")
            .arg(self.path("cache"))
            .args(["--size", SIZE, "--layers"])
            .arg(self.path("layers"))
    }

    fn compose(&self, customer: &str, format: &str, out: &str) -> Tool {
        self.tool("compose")
            .args([
                "--customer",
                customer,
                "--format",
                format,
                "--json",
                "--out",
            ])
            .arg(self.path(out))
    }

    fn composed(&self, customer: &str, format: &str, out: &str) -> Value {
        let said = self.compose(customer, format, out).text().unwrap();
        serde_json::from_str(&said).unwrap()
    }

    /// Runs what must fail and returns its exit code and what it said.
    fn refused(&self, tool: &Tool) -> (i32, String) {
        let output = tool.command().output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    }
}

fn qemu_img(words: &[&str], files: &[PathBuf]) -> String {
    let tool = Tool::new("qemu-img").args(words).args(files);
    tool.text().unwrap()
}

#[test]
fn every_format_holds_the_raw_disk_and_a_second_compose_the_same_bytes() {
    let place = Place::make();
    let raw = place.composed("acme", "raw", "acme.raw");
    assert!(raw["stored"].as_u64().unwrap() < 64 << 20, "{raw}");
    assert!(raw["peak_memory"].as_u64().unwrap() < 64 << 20, "{raw}");
    let file = place.path("acme.raw");
    assert_eq!(file.metadata().unwrap().len(), 10 << 30);
    let said = Tool::new("sgdisk").arg("--verify").arg(&file).text();
    assert!(said.unwrap().contains("No problems found"));
    for format in ["qcow2", "vmdk"] {
        let out = format!("acme.{format}");
        let answer = place.composed("acme", format, &out);
        assert_eq!(answer["identity"], raw["identity"]);
        let out = place.path(&out);
        let said = qemu_img(&["check", "-f", format], std::slice::from_ref(&out));
        assert!(said.contains("No errors"), "{said}");
        qemu_img(
            &["compare", "-f", "raw", "-F", format],
            &[file.clone(), out],
        );
    }
    place.composed("acme", "raw.zst", "acme.raw.zst");
    let unpacked = place.path("unpacked");
    let unpack = Tool::new("zstd").args(["-dq", "--sparse", "-o"]);
    unpack
        .arg(&unpacked)
        .arg(place.path("acme.raw.zst"))
        .run()
        .unwrap();
    qemu_img(
        &["compare", "-f", "raw", "-F", "raw"],
        &[file.clone(), unpacked],
    );

    let again = place.composed("acme", "raw", "again.raw");
    assert_eq!(again["identity"], raw["identity"]);
    qemu_img(
        &["compare", "-f", "raw", "-F", "raw"],
        &[file, place.path("again.raw")],
    );
    let unit = place
        .tool("compose")
        .args(["--unit", "acme/shop-1", "--json", "--out"]);
    let unit: Value = serde_json::from_str(
        &unit
            .arg(place.path("unit"))
            .args(["--customer", "acme"])
            .text()
            .unwrap(),
    )
    .unwrap();
    assert_ne!(unit["identity"], raw["identity"]);
    let stick = place.composed("acme", "usb", "stick");
    assert!(stick["size"].as_u64().unwrap() < 1 << 30, "{stick}");
    let said = Tool::new("mdir")
        .args(["-b", "-i"])
        .arg(format!("{}@@1M", place.path("stick").display()))
        .arg("::/EFI/BOOT")
        .text()
        .unwrap();
    assert!(said.contains("BOOTX64.EFI"), "{said}");
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_leaves_nothing() {
    let place = Place::make();
    place.layer("other", "acme", b"acme's again");
    let out = || {
        let entries = fs::read_dir(place.folder.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("disk"))
            .collect::<Vec<_>>()
    };
    let check = |tool: Tool, code: i32, expected: &str| {
        let (found, said) = place.refused(&tool);
        assert!(said.contains(expected) && found == code, "{found}: {said}");
        assert_eq!(out(), Vec::<String>::new(), "{said}");
    };
    let compose = |customer| place.compose(customer, "raw", "disk");
    check(compose("acme").args(["--size", "2G"]), 2, "--size");
    let small = Tool::new(env!("CARGO_BIN_EXE_leap-image"))
        .arg("compose")
        .arg(place.path("release"))
        .args(["--size", "2G", "--trust-root"])
        .arg(place.path("trust-root.json"))
        .arg("--cache")
        .arg(place.path("cache"))
        .arg("--layer")
        .arg(place.path("layers/acme"))
        .arg("--out")
        .arg(place.path("disk"));
    check(small, 3, "expected at least 10336862208");
    check(
        compose("other"),
        5,
        "layer of customer acme, expected other",
    );
    check(compose("nobody"), 3, "layers/nobody/layer.json");
    check(
        place.compose("acme", "raw", "no-folder/disk"),
        4,
        "hint: the folder of --out",
    );
    check(
        place.compose("acme", "vdi", "disk"),
        2,
        "expected raw, raw.zst, qcow2, vmdk or usb",
    );

    let path = place.path("release/root.zst");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() - 100]).unwrap();
    check(compose("acme"), 3, "root.zst: not unpacked");
    fs::write(&path, content(good.len(), 9)).unwrap();
    check(compose("acme"), 5, "segment 0");
    fs::remove_file(&path).unwrap();
    check(compose("acme"), 3, "root.zst: open failed");
    fs::write(&path, &good).unwrap();
    assert_eq!(fs::read_dir(place.path("cache/disks")).unwrap().count(), 0);

    place.write("layers/acme/layer.raw", b"motd of evil");
    check(compose("acme"), 5, "layer.raw: SHA-256");
    place.layer("acme", "acme", b"motd of acme");
    place.release(&content(7 << 20, 1), &place.operator);
    check(compose("acme"), 5, "manifest.json");
    place.release(&content(7 << 20, 1), &place.targets);
    place.compose("acme", "raw", "disk").run().unwrap();
    assert_eq!(out(), ["disk"]);
}

/// A running server, ended with the test.
struct Server {
    child: Child,
    address: String,
    ready: Value,
}

impl Server {
    fn start(place: &Place) -> Self {
        let tool = place
            .tool("serve")
            .args(["--listen", "127.0.0.1:0", "--json", "--catalogue"])
            .arg(place.path("catalogue.json"));
        let mut child = tool.command().stdout(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            text.push_str(&line);
            if line == "}" {
                break;
            }
        }
        let ready: Value = serde_json::from_str(&text).unwrap();
        let address = ready["url"].as_str().unwrap().trim_start_matches("http://");
        Self {
            address: address.to_owned(),
            child,
            ready: ready.clone(),
        }
    }

    fn get(&self, path: &str, headers: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = memmem::find(&answer, b"\r\n\r\n").unwrap() + 4;
        let body = answer.split_off(end);
        (String::from_utf8(answer).unwrap(), body)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn what_is_served_is_what_is_written_and_a_new_layer_counts_at_once() {
    let place = Place::make();
    place.layer("bad", "acme", b"not bad's");
    let server = Server::start(&place);
    assert_eq!(server.ready["disks"], 1);
    assert_eq!(server.ready["bad"], 1);
    assert!(server.ready["bytes_each"].as_u64().unwrap() < 64 << 10);
    let raw = place.composed("acme", "raw", "acme.raw");
    let catalogue = fs::read(place.path("catalogue.json")).unwrap();
    let catalogue: Value = serde_json::from_slice(&catalogue).unwrap();
    assert_eq!(catalogue["acme"], raw["identity"]);
    let tag = format!("\"{}\"", raw["identity"].as_str().unwrap());
    let file = File::open(place.path("acme.raw")).unwrap();
    let esp = 1 << 20;
    let root = esp + (1 << 30);
    for (from, to) in [
        (0, 40_000),
        (esp, esp + 4_000_000),
        (root - 70_000, root + 8_000_000),
        ((10u64 << 30) - 40_000, (10 << 30) - 1),
    ] {
        let headers = format!("Range: bytes={from}-{to}\r\nIf-Range: {tag}\r\n");
        let (head, body) = server.get("/disk/acme.raw", &headers);
        assert!(
            head.starts_with("HTTP/1.1 206 ") && head.contains(&tag),
            "{head}"
        );
        let mut expected = vec![0; usize::try_from(to - from + 1).unwrap()];
        file.read_exact_at(&mut expected, from).unwrap();
        assert!(body == expected, "{from}-{to}");
    }
    let (head, _) = server.get("/disk/bad.raw", "");
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    let (head, _) = server.get("/disk/new.raw", "");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    place.layer("new", "new", b"new here");
    let (head, body) = server.get("/disk/new.raw", "Range: bytes=0-511\r\n");
    assert!(
        head.starts_with("HTTP/1.1 206 ") && body.ends_with(&[0x55, 0xaa]),
        "{head}"
    );
    place.layer("acme", "acme", b"changed since");
    let (head, _) = server.get("/disk/acme.raw", "Range: bytes=0-0\r\n");
    assert!(!head.contains(&tag), "{head}");
}

/// Every form in which the secrets of a folder could show.
fn needles(keys: &Path) -> Vec<Vec<u8>> {
    let mut needles = Vec::new();
    for entry in fs::read_dir(keys).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("-----"));
        let lines: Vec<&str> = lines.collect();
        let der = base64_decoded(&lines.concat());
        // PKCS#8 of Ed25519: 16 bytes, then the 32 of the key.
        let seed = &der[16..48];
        // The first line holds the key; what follows is public.
        needles.push(lines[0].as_bytes().to_vec());
        needles.push(seed.to_vec());
        needles.push(hex::encode(seed).into_bytes());
        needles.push(hex::encode_upper(seed).into_bytes());
    }
    needles.push(b"PRIVATE KEY-----".to_vec());
    needles.push(b"AGE-SECRET-KEY-".to_vec());
    needles
}

fn base64_decoded(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(value).collect();
    digits
        .chunks(4)
        .flat_map(|four| {
            let bits = four
                .iter()
                .fold(0u32, |bits, digit| (bits << 6) | u32::from(*digit));
            let bits = bits << (6 * (4 - four.len()));
            bits.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect()
}

/// Looks for the needles in everything of a sparse file that is not a hole.
fn finds(file: &Path, needles: &[Vec<u8>]) -> bool {
    let file = File::open(file).unwrap();
    let longest = needles.iter().map(Vec::len).max().unwrap() as u64;
    let mut end = 0;
    let mut looked = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
        end = seek(&file, SeekFrom::Hole(start)).unwrap();
        for at in (start..end).step_by(1 << 24) {
            // A needle may lie across the end of a piece.
            let to = end.min(at + (1 << 24) + longest);
            let mut bytes = vec![0; usize::try_from(to - at).unwrap()];
            file.read_exact_at(&mut bytes, at).unwrap();
            looked += bytes.len();
            if needles
                .iter()
                .any(|needle| memmem::find(&bytes, needle).is_some())
            {
                return true;
            }
        }
    }
    assert!(looked > 0 || file.metadata().unwrap().blocks() == 0);
    false
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn no_secret_is_on_a_composed_disk_or_in_what_a_release_serves() {
    let place = Place::make();
    let needles = needles(&place.path("keys"));
    assert!(needles.contains(&vec![101; 32]) && needles.contains(&vec![102; 32]));
    place.composed("acme", "raw", "disk");
    let mut served = vec![place.path("disk")];
    files(&place.path("release"), &mut served);
    files(&place.path("layers"), &mut served);
    assert!(served.len() >= 10);
    for file in &served {
        assert!(!finds(file, &needles), "{}", file.display());
    }
    // The search can find: in the root image, in the layer, and in each form.
    let seed = [101; 32];
    let forms = [
        seed.to_vec(),
        hex::encode(seed).into_bytes(),
        fs::read(place.path("keys/targets.pem")).unwrap(),
    ];
    for form in forms {
        let mut root = content(7 << 20, 1);
        // Across the end of a segment.
        root[(1 << 20) - 5..(1 << 20) - 5 + form.len()].copy_from_slice(&form);
        place.release(&root, &place.targets);
        place.composed("acme", "raw", "disk");
        assert!(finds(&place.path("disk"), &needles));
        place.release(&content(7 << 20, 1), &place.targets);
        place.layer("acme", "acme", &[b"motd: ", form.as_slice()].concat());
        place.composed("acme", "raw", "disk");
        assert!(finds(&place.path("disk"), &needles));
        place.layer("acme", "acme", b"motd of acme");
    }
}
