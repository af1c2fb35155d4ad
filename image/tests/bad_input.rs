//! What `leap-image` says of packages that cannot be had, and what is left behind.
//!
//! A mirror of our own stands in for Debian's: packages made by `dpkg-deb`, an index
//! signed by a key of the test's, served over loopback by a server that can be told to
//! break off. apt is the real one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use edge::runner::Tool;
use model::Digest;
use tempfile::TempDir;

#[path = "bad_input/interrupted.rs"]
mod interrupted;
#[path = "bad_input/overlap.rs"]
mod overlap;

const ALWAYS: usize = usize::MAX;

/// A package archive with its own signing key.
struct Mirror {
    folder: TempDir,
    address: SocketAddr,
    /// So many packages are still served; then connections are cut in the middle.
    left: Arc<AtomicUsize>,
}

impl Mirror {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("mirror").tempdir().unwrap();
        let home = folder.path().join("gnupg");
        fs::create_dir_all(&home).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        let left = Arc::new(AtomicUsize::new(ALWAYS));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (root, limit) = (folder.path().join("www"), Arc::clone(&left));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, limit) = (root.clone(), Arc::clone(&limit));
                std::thread::spawn(move || drop(serve(&stream, &root, &limit)));
            }
        });
        let mirror = Self {
            folder,
            address,
            left,
        };
        let gpg = mirror.gpg(&["--quick-gen-key", "test", "ed25519", "sign", "never"]);
        gpg.run().unwrap();
        fs::create_dir(mirror.path("keyrings")).unwrap();
        let key = mirror.gpg(&["--export"]).output().unwrap();
        fs::write(mirror.path("keyrings/test.gpg"), key).unwrap();
        for (name, more, size) in [
            ("base-x", "Essential: yes\n", 10),
            ("kmod", "", 10),
            ("udev", "Depends: kmod\n", 60_000),
            ("linux-image-x", "", 10),
            ("lonely", "Depends: nowhere (>= 2)\n", 10),
        ] {
            mirror.package(name, "1.0-1", more, size, "* First.");
        }
        mirror.publish("debian", "trixie");
        mirror.publish("debian", "trixie-updates");
        mirror.publish("debian-security", "trixie-security");
        mirror
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn gpg(&self, arguments: &[&str]) -> Tool {
        Tool::new("gpg")
            .args(["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"])
            .args(["--passphrase", "", "--homedir"])
            .arg(self.path("gnupg"))
            .args(arguments)
    }

    /// Adds a package to the archive.
    fn package(&self, name: &str, version: &str, more: &str, size: usize, news: &str) {
        let build = self.path(&format!("build/{name}"));
        let doc = build.join("usr/share/doc").join(name);
        fs::create_dir_all(build.join("DEBIAN")).unwrap();
        fs::create_dir_all(&doc).unwrap();
        // Not compressible, so that a mirror can break off in its middle.
        let mut noise = Digest::of(name.as_bytes());
        let mut content = Vec::new();
        while content.len() < size {
            noise = Digest::of(noise.as_bytes());
            content.extend_from_slice(noise.as_bytes());
        }
        fs::write(build.join("usr/share").join(name), content).unwrap();
        let log = format!("{name} ({version}) trixie; urgency=medium\n\n  {news}\n");
        let log = Tool::new("gzip").arg("-9n").stdin_bytes(log).output();
        fs::write(doc.join("changelog.Debian.gz"), log.unwrap()).unwrap();
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: T <t@example.org>\n{more}Description: test\n"
        );
        fs::write(build.join("DEBIAN/control"), control).unwrap();
        let pool = self.path("www/debian/pool");
        fs::create_dir_all(&pool).unwrap();
        Tool::new("dpkg-deb")
            .args(["--build", "--root-owner-group"])
            .arg(&build)
            .arg(pool.join(format!("{name}_{version}_amd64.deb")))
            .run()
            .unwrap();
    }

    /// Writes the signed index of a suite; only the first one has packages.
    fn publish(&self, archive: &str, suite: &str) {
        let mut index = String::new();
        if suite == "trixie" {
            let pool = self.path("www/debian/pool");
            let mut files: Vec<_> = fs::read_dir(&pool).unwrap().flatten().collect();
            files.sort_by_key(fs::DirEntry::path);
            for file in files {
                let bytes = fs::read(file.path()).unwrap();
                let field = Tool::new("dpkg-deb").arg("--field").arg(file.path());
                index.push_str(&format!(
                    "{}\nFilename: pool/{}\nSize: {}\nSHA256: {}\n\n",
                    field.text().unwrap(),
                    file.file_name().to_string_lossy(),
                    bytes.len(),
                    Digest::of(&bytes)
                ));
            }
        }
        let dist = self.path(&format!("www/{archive}/dists/{suite}"));
        fs::create_dir_all(dist.join("main/binary-amd64")).unwrap();
        fs::write(dist.join("main/binary-amd64/Packages"), &index).unwrap();
        let release = format!(
            "Origin: test\nSuite: {suite}\nCodename: {suite}\nDate: Mon, 02 Nov 2026 00:00:00 UTC\nArchitectures: amd64\nComponents: main\nSHA256:\n {} {} main/binary-amd64/Packages\n",
            Digest::of(index.as_bytes()),
            index.len()
        );
        let signed = self.gpg(&["--clearsign"]).stdin_bytes(release).output();
        fs::write(dist.join("InRelease"), signed.unwrap()).unwrap();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // gpg has left an agent for its home folder, which goes now.
        let stop = Tool::new("gpgconf")
            .arg("--homedir")
            .arg(self.path("gnupg"));
        drop(stop.args(["--kill", "all"]).run());
    }
}

/// Answers one request.
fn serve(stream: &TcpStream, root: &Path, left: &AtomicUsize) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut stream = stream;
    let Ok(body) = fs::read(root.join(path.trim_start_matches('/'))) else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let cut = path.ends_with(".deb")
        && left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(if left == ALWAYS {
                    left
                } else {
                    left.saturating_sub(1)
                })
            })
            .is_ok_and(|before| before == 0);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let end = if cut { body.len() / 2 } else { body.len() };
    stream.write_all(&body[..end])
}

/// A recipe with its lock and cache.
struct Bench {
    mirror: Mirror,
    folder: TempDir,
}

impl Bench {
    fn new(install: &str) -> Self {
        let bench = Self {
            mirror: Mirror::new(),
            folder: tempfile::tempdir().unwrap(),
        };
        bench.recipe(install);
        bench
    }

    fn recipe(&self, install: &str) {
        let text = format!(
            "name = \"x\"\narchitecture = \"amd64\"\nsuite = \"trixie\"\nsource-date = \"2026-11-01T00:00:00Z\"\n[packages]\ninstall = [{install}]\ntools = [\"kmod\"]\n[kernel]\npackage = \"linux-image-x\"\n"
        );
        fs::write(self.path("r.toml"), text).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn tool(&self, command: &str) -> Tool {
        self.tool_for(command, "r.toml")
    }

    fn tool_for(&self, command: &str, recipe: &str) -> Tool {
        Tool::new(env!("CARGO_BIN_EXE_leap-image"))
            .args([command, recipe])
            .current_dir(self.folder.path())
            .args(["--cache", "cache", "--mirror"])
            .arg(format!("http://{}/debian", self.mirror.address))
            .arg("--keyrings")
            .arg(self.mirror.path("keyrings"))
    }

    /// Runs a command and returns its exit code and all that it said.
    fn run(&self, tool: &Tool) -> (i32, String) {
        let output = tool.command().output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // The lock never names where packages come from.
        let lock = fs::read_to_string(self.path("r.lock")).unwrap_or_default();
        assert!(!lock.contains("127.0.0.1"), "{lock}");
        (output.status.code().unwrap_or(-1), text)
    }

    fn must(&self, command: &str) -> String {
        let (code, text) = self.run(&self.tool(command));
        assert_eq!(code, 0, "{command}: {text}");
        text
    }

    /// The packages in the cache with their sizes.
    fn cached(&self) -> BTreeMap<String, u64> {
        let files = fs::read_dir(self.path("cache/debs")).into_iter().flatten();
        files
            .flatten()
            .map(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                (name, file.metadata().unwrap().len())
            })
            .collect()
    }
}

#[test]
fn an_unknown_package_is_named_with_its_place_and_the_nearest_name() {
    let bench = Bench::new("\"base-x\", \"udve\"");
    let (code, text) = bench.run(&bench.tool("lock"));
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("r.toml:6:22: package \"udve\": not in suite trixie"),
        "{text}"
    );
    assert!(text.contains("did you mean \"udev\"?"), "{text}");
    assert!(!bench.path("r.lock").exists());
}

#[test]
fn an_unsatisfiable_dependency_is_named_with_the_package_that_has_it() {
    let bench = Bench::new("\"lonely\"");
    let (code, text) = bench.run(&bench.tool("lock"));
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("r.toml:6:12: dependencies cannot be satisfied"),
        "{text}"
    );
    assert!(text.contains("lonely Depends: nowhere (>= 2)"), "{text}");
    assert!(!bench.path("r.lock").exists());
}

#[test]
fn a_build_without_a_lock_or_with_one_of_other_wishes_says_what_to_run() {
    let bench = Bench::new("\"udev\"");
    let (code, text) = bench.run(&bench.tool("fetch"));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("lock r.lock: there is none"), "{text}");
    bench.must("lock");
    bench.recipe("\"udev\", \"kmod\"");
    let (code, text) = bench.run(&bench.tool("fetch"));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("made for other packages"), "{text}");
    assert!(text.contains("hint: run leap-image lock"), "{text}");
}

#[test]
fn a_mirror_that_is_gone_in_the_middle_costs_only_what_had_not_come() {
    let bench = Bench::new("\"udev\"");
    bench.must("lock");
    bench.mirror.left.store(2, Ordering::SeqCst);
    let (code, text) = bench.run(&bench.tool("fetch"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("fetch packages"), "{text}");
    assert!(text.contains("what has come is kept"), "{text}");
    let kept = bench.cached();
    assert_eq!(kept.len(), 2, "{kept:?}");
    bench.mirror.left.store(ALWAYS, Ordering::SeqCst);
    let text = bench.must("fetch");
    assert!(text.contains("are in the cache, as locked"), "{text}");
    let all = bench.cached();
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(kept.iter().all(|(name, size)| all.get(name) == Some(size)));
    // And now the network is not needed at all.
    bench.mirror.left.store(0, Ordering::SeqCst);
    bench.must("fetch");
}

#[test]
fn a_lock_that_is_newer_than_the_indexes_that_are_here_is_fetched_all_the_same() {
    let bench = Bench::new("\"udev\"");
    bench.must("lock");
    // A colleague's update: another cache, and a mirror that has moved on.
    bench
        .mirror
        .package("udev", "1.1-1", "Depends: kmod\n", 60_000, "* Fix a hole.");
    bench.mirror.publish("debian", "trixie");
    fs::rename(bench.path("cache"), bench.path("own")).unwrap();
    let (code, text) = bench.run(&bench.tool("lock").arg("--update"));
    assert_eq!(code, 0, "{text}");
    fs::remove_dir_all(bench.path("cache")).unwrap();
    fs::rename(bench.path("own"), bench.path("cache")).unwrap();
    bench.must("fetch");
    assert!(bench.cached().contains_key("udev_1.1-1_amd64.deb"));
}

#[test]
fn a_package_that_is_not_the_indexed_one_is_refused() {
    let bench = Bench::new("\"udev\"");
    bench.must("lock");
    let deb = bench.mirror.path("www/debian/pool/udev_1.0-1_amd64.deb");
    let mut bytes = fs::read(&deb).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&deb, bytes).unwrap();
    let (code, text) = bench.run(&bench.tool("fetch"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("Hash Sum mismatch"), "{text}");
    let cached = bench.cached();
    assert!(!cached.contains_key("udev_1.0-1_amd64.deb"), "{cached:?}");
}

#[test]
fn a_flipped_byte_in_a_cached_package_is_found_and_mended() {
    let bench = Bench::new("\"udev\"");
    bench.must("lock");
    bench.must("fetch");
    let deb = bench.path("cache/debs/udev_1.0-1_amd64.deb");
    let mut bytes = fs::read(&deb).unwrap();
    bytes[100] ^= 1;
    fs::write(&deb, bytes).unwrap();
    let (code, text) = bench.run(&bench.tool("fetch"));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("udev_1.0-1_amd64.deb: SHA-256 is"), "{text}");
    assert!(text.contains("build again to fetch it again"), "{text}");
    bench.must("fetch");
}

#[test]
fn a_full_disk_is_told_and_leaves_no_half_package() {
    let bench = Bench::new("\"udev\"");
    bench.must("lock");
    // The same cache on a file system with no room for the 60 KB of udev.
    let script = "mkdir small && mount -t tmpfs -o size=16m small small && cp -a cache/. small/ && \
        free=$(df --output=avail --block-size=1 small | tail -1) && \
        head -c $((free - 49152)) /dev/zero > small/full && mount --bind small cache && \"$@\"; \
        code=$?; ls cache/debs; exit $code";
    let tool = bench.tool("fetch");
    let command = tool.command();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let inside = Tool::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args(words)
        .current_dir(bench.folder.path());
    let (code, text) = bench.run(&inside);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("hint: make room there"), "{text}");
    assert!(!text.contains("udev_1.0-1_amd64.deb\n"), "{text}");
    bench.must("fetch");
}

#[test]
fn an_update_shows_versions_and_changelogs_and_the_old_lock_stays_until_it_is_written() {
    let bench = Bench::new("\"udev\"");
    bench.must("lock");
    let before = fs::read_to_string(bench.path("r.lock")).unwrap();
    assert!(bench.must("lock").contains("up to date"));
    bench
        .mirror
        .package("udev", "1.1-1", "Depends: kmod\n", 60_000, "* Fix a hole.");
    bench.mirror.publish("debian", "trixie");
    let (code, text) = bench.run(&bench.tool("lock").args(["--update", "--dry-run"]));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("udev 1.0-1 -> 1.1-1"), "{text}");
    assert!(text.contains("* Fix a hole."), "{text}");
    assert!(
        text.contains("1 changed, 0 of them security fixes; not written"),
        "{text}"
    );
    assert_eq!(fs::read_to_string(bench.path("r.lock")).unwrap(), before);
    let (code, text) = bench.run(&bench.tool("lock").arg("--update"));
    assert_eq!(code, 0, "{text}");
    let after = fs::read_to_string(bench.path("r.lock")).unwrap();
    assert!(after.contains("\"version\":\"1.1-1\""), "{after}");
}
