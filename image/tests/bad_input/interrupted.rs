//! Builds that meet another one, a sudden end, or a full disk.
//!
//! A whole build of the smallest possible system: Debian's packages and the kernel are
//! made here, of the host's own programs; apt, `mmdebstrap`, `mkfs.erofs` and
//! `veritysetup` are the real ones. A build stops where a test wants it to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use edge::runner::Tool;
use model::trust::RoleKeys;
use model::{Digest, Role, Signer, TrustRoot};

use super::{Bench, Mirror};

/// Starts the script beside it: the build runs only dynamically linked programs.
const SHIM: &str = r#"
#include <limits.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char script[PATH_MAX];
    char *words[64] = {"sh", script};
    snprintf(script, sizeof script, "%s.sh", argv[0]);
    for (int i = 1; i < argc && i < 62; i++) words[i + 1] = argv[i];
    execv("/bin/sh", words);
    return 127;
}
"#;

/// Waits where a test wants it to, until the test lets it go or ends.
const STOP: &str = r#"#!/bin/sh
name=$(basename "$0" .sh)
if [ "$STOP_AT" = "$name" ]; then : > "$STOP/reached"; read -r _ < "$STOP/go"; fi
"#;

const DEPMOD: &str = r#"
cd "$2/lib/modules/$3"
find kernel -name '*.ko' | sed 's/$/:/' > modules.dep
: > modules.alias; : > modules.softdep
"#;

/// Older versions of mkfs.erofs read no archives.
const EROFS: &str = r#"
mkdir "$6.d" && tar --extract --no-same-owner --file "$6" --directory "$6.d" &&
mkfs.erofs --quiet "$3" "$4" --force-uid=0 --force-gid=0 "$5" "$6.d" &&
rm -r "$6.d"
"#;

/// Copies a program of the host into a package, with what it is linked to.
fn add_program(package: &Path, program: &Path) {
    let linked = Tool::new("ldd").arg(program).text().unwrap_or_default();
    let libraries = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in libraries.map(Path::new).chain([program]) {
        let inner = file.strip_prefix("/").unwrap();
        let inner = match inner.strip_prefix("usr") {
            Ok(_) => inner.to_owned(),
            Err(_) => Path::new("usr").join(inner),
        };
        let place = package.join(inner);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(file, place).unwrap();
    }
}

pub(super) fn put(file: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, bytes).unwrap();
}

fn find(program: &str) -> PathBuf {
    ["/usr/bin", "/usr/sbin"]
        .map(|folder| Path::new(folder).join(program))
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program}: run make setup"))
}

/// A PE32+ file that sections can be appended to.
fn stub() -> Vec<u8> {
    let mut stub = vec![0; 0x400];
    let mut at = |place: usize, bytes: &[u8]| {
        stub[place..place + bytes.len()].copy_from_slice(bytes);
    };
    at(0, b"MZ");
    at(0x3c, &0x80u32.to_le_bytes());
    at(0x80, b"PE\0\0\x64\x86\0\0");
    at(0x80 + 20, &240u16.to_le_bytes());
    at(0x98, &0x20bu16.to_le_bytes());
    at(0x98 + 32, &0x1000u32.to_le_bytes());
    at(0x98 + 36, &0x200u32.to_le_bytes());
    at(0x98 + 60, &0x400u32.to_le_bytes());
    stub
}

/// Replaces the mirror's packages by those of a system that can be built.
fn fill(mirror: &Mirror) {
    let base = mirror.path("build/base-x");
    for program in [
        "dpkg",
        "dpkg-deb",
        "dpkg-split",
        "sh",
        "rm",
        "tar",
        "diff",
        "ldconfig",
        "start-stop-daemon",
        "chmod",
        "mkdir",
        "dpkg-query",
        "env",
        "true",
        "cat",
    ] {
        add_program(&base, &find(program));
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(base.join("usr").join(name)).unwrap();
        std::os::unix::fs::symlink(format!("usr/{name}"), base.join(name)).unwrap();
    }
    put(&base.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
    put(&base.join("etc/group"), "root:x:0:\n");
    fs::create_dir_all(base.join("tmp")).unwrap();

    let tools = mirror.path("build/kmod/usr");
    let source = mirror.path("shim.c");
    put(&source, SHIM);
    let shim = mirror.path("shim");
    let compiler = Tool::new("cc").arg("-o").arg(&shim).arg(&source);
    compiler.run().unwrap();
    add_program(&mirror.path("build/kmod"), &find("true"));
    for (name, script) in [
        ("depmod", DEPMOD),
        ("mkfs.erofs", EROFS),
        (
            "veritysetup",
            "PATH=$PATH:/usr/sbin exec veritysetup \"$@\"\n",
        ),
    ] {
        fs::create_dir_all(tools.join("bin")).unwrap();
        fs::copy(&shim, tools.join("bin").join(name)).unwrap();
        put(
            &tools.join(format!("bin/{name}.sh")),
            format!("{STOP}{script}"),
        );
    }
    put(
        &tools.join("lib/systemd/boot/efi/linuxx64.efi.stub"),
        stub(),
    );
    put(
        &tools.join("lib/systemd/boot/efi/systemd-bootx64.efi"),
        stub(),
    );

    let kernel = mirror.path("build/linux-image-x");
    put(&kernel.join("boot/vmlinuz-1"), "kernel");
    put(&kernel.join("boot/config-1"), "CONFIG_X=y\n");
    let modules = kernel.join("usr/lib/modules/1");
    for name in [
        "kernel/x.ko",
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        put(&modules.join(name), "");
    }
    for (name, more, size) in [
        ("base-x", "Essential: yes\n", 10),
        ("kmod", "", 10),
        ("udev", "", 400_000),
        ("linux-image-x", "", 10),
    ] {
        mirror.package(name, "1.0-1", more, size, "* First.");
    }
    mirror.publish("debian", "trixie");
}

/// A system that can be built, and where builds stop.
pub(super) struct Yard {
    pub(super) bench: Bench,
    /// Held open: whoever waits at its other end goes on when it is closed.
    go: File,
}

impl Yard {
    pub(super) fn new() -> Self {
        let bench = Bench::new("\"udev\"");
        fill(&bench.mirror);
        let mut recipe = fs::read_to_string(bench.path("r.toml")).unwrap();
        recipe.push_str(
            "modules = [\"x\"]\n[root]\nremove = [\"var/**\", \"etc/apt/**\"]\n[initrd]\noverlays = [\"init\"]\n[installer]\noverlays = [\"init\"]\n",
        );
        fs::write(bench.path("r.toml"), recipe).unwrap();
        put(&bench.path("init/init"), "#!/bin/sh\n");
        let signer = Signer::from_seed(&[7; 32]);
        put(&bench.path("key.pem"), signer.to_pem().as_bytes());
        let role = || RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        let root = TrustRoot {
            version: 1,
            roles: BTreeMap::from([(Role::Targets, role())]),
            recovery: vec![],
        };
        put(
            &bench.path("trust.json"),
            serde_json::to_vec(&root).unwrap(),
        );
        fs::create_dir(bench.path("stop")).unwrap();
        Tool::new("mkfifo")
            .arg(bench.path("stop/go"))
            .run()
            .unwrap();
        let go = File::options()
            .read(true)
            .write(true)
            .open(bench.path("stop/go"));
        let yard = Self {
            go: go.unwrap(),
            bench,
        };
        yard.bench.must("lock");
        yard
    }

    pub(super) fn tool(&self, out: &str) -> Tool {
        self.tool_for("r.toml", out)
    }

    pub(super) fn tool_for(&self, recipe: &str, out: &str) -> Tool {
        let folder = self.bench.path("stop");
        self.bench
            .tool_for("build", recipe)
            .args([
                "--version",
                "2026.11.1",
                "--key",
                "key.pem",
                "--trust-root",
                "trust.json",
            ])
            .args(["--level", "1", "--out", out])
            .env("STOP", folder)
    }

    pub(super) fn build(&self, out: &str) -> String {
        let (code, text) = self.bench.run(&self.tool(out));
        assert_eq!(code, 0, "{text}");
        text
    }

    /// Starts a build and returns when it has come to the tool `at`.
    fn start(&self, out: &str, at: &str) -> Child {
        let reached = self.bench.path("stop/reached");
        let log = self.bench.path("log");
        let file = File::create(&log).unwrap();
        let tool = self.tool(out).env("STOP_AT", at);
        let mut command = tool.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let mut child = command.spawn().unwrap();
        while !reached.exists() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {}", fs::read_to_string(&log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(reached).unwrap();
        child
    }

    /// Lets those go on that wait.
    fn go(&mut self) {
        use std::io::Write as _;
        self.go.write_all(b"\n").unwrap();
    }

    /// The digests of a release's files.
    pub(super) fn release(&self, out: &str) -> BTreeMap<PathBuf, Digest> {
        let folder = self.bench.path(out);
        assert_eq!(names(&folder), ["2026.11.1"]);
        let mut files = BTreeMap::new();
        for name in names(&folder.join("2026.11.1")) {
            let bytes = fs::read(folder.join("2026.11.1").join(&name)).unwrap();
            files.insert(name.into(), Digest::of(&bytes));
        }
        assert!(files.contains_key(Path::new("manifest.json")), "{files:?}");
        files
    }

    fn finished(&self, step: &str) -> bool {
        let prefix = format!("{step}-");
        names(&self.bench.path("cache/steps"))
            .iter()
            .any(|name| name.starts_with(&prefix))
    }
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn two_builds_at_once_do_not_disturb_each_other() {
    let mut yard = Yard::new();
    for out in ["second", "first"] {
        // The first is in the middle of a step while the second one runs from its
        // beginning to its end: into another folder, then into the same.
        let mut first = yard.start("first", "mkfs.erofs");
        let working = names(&yard.bench.path("cache/work"));
        assert!(!working.is_empty());
        yard.build(out);
        let still = names(&yard.bench.path("cache/work"));
        // Steps that ran beside it have ended meanwhile.
        assert!(working.iter().any(|name| still.contains(name)), "{still:?}");
        yard.go();
        let status = first.wait().unwrap();
        let log = fs::read_to_string(yard.bench.path("log")).unwrap();
        assert!(status.success(), "{log}");
        assert_eq!(yard.release("first"), yard.release(out));
        assert!(names(&yard.bench.path("cache/work")).is_empty());
        for step in names(&yard.bench.path("cache/steps")) {
            if !step.starts_with("tools") && !step.starts_with("packages") {
                fs::remove_dir_all(yard.bench.path("cache/steps").join(step)).unwrap();
            }
        }
    }
}

#[test]
fn what_a_killed_build_leaves_is_not_trusted_and_goes_with_the_next() {
    let mut yard = Yard::new();
    for (at, step) in [
        ("depmod", "kernel"),
        ("mkfs.erofs", "root"),
        ("veritysetup", "verity"),
    ] {
        let mut killed = yard.start("out", at);
        killed.kill().unwrap();
        killed.wait().unwrap();
        // The tool lives longer than its build, and still writes.
        yard.go();
        assert!(!yard.finished(step), "{step}");
        assert!(names(&yard.bench.path("out")).is_empty());
        assert!(!names(&yard.bench.path("cache/work")).is_empty());
    }
    yard.build("out");
    let healed = yard.release("out");
    assert!(names(&yard.bench.path("cache/work")).is_empty());
    fs::remove_dir_all(yard.bench.path("cache/steps")).unwrap();
    yard.build("fresh");
    assert_eq!(yard.release("fresh"), healed);
}

#[test]
fn a_full_disk_is_named_with_the_remedy_and_leaves_nothing_half_made() {
    let yard = Yard::new();
    yard.build("out");
    let whole = yard.release("out");
    for step in names(&yard.bench.path("cache/steps")) {
        if !step.starts_with("tools") && !step.starts_with("packages") {
            fs::remove_dir_all(yard.bench.path("cache/steps").join(step)).unwrap();
        }
    }
    fs::remove_dir_all(yard.bench.path("out")).unwrap();
    // The folder $small on a disk with $room bytes left; then with as many as it needs.
    let script = r#"
        mkdir -p $small tmp && mount -t tmpfs -o size=256m small tmp && cp -a $small/. tmp/ &&
        free=$(df --output=avail --block-size=1 tmp | tail -1) &&
        head -c $((free - room)) /dev/zero > tmp/full && mount --bind tmp $small || exit 99
        "$@"; code=$?
        rm tmp/full; echo "left: $(ls -A cache/work) $(ls -A out 2>&-)"
        "$@" > again 2>&1 || { cat again; exit 98; }
        rm -rf kept && cp -a out kept
        exit $code"#;
    // Room for some of a step and not for all of it, and for some of the release.
    for (small, room, said) in [
        ("cache", "300000", "--cache"),
        ("cache", "0", "--cache"),
        ("out", "300000", "--out"),
        ("out", "8192", "--out"),
    ] {
        let tool = yard.tool("out");
        let command = tool.command();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let inside = Tool::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .args(words)
            .env("small", small)
            .env("room", room)
            .current_dir(yard.bench.folder.path());
        let (code, text) = yard.bench.run(&inside);
        assert_eq!(code, 4, "{small} {room}: {text}");
        let errors: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("error:"))
            .collect();
        assert_eq!(errors.len(), 1, "{small} {room}: {text}");
        let place = format!("{small}: no room on the disk (");
        assert!(errors[0].contains(&place), "{small} {room}: {text}");
        let hint = format!("hint: make room there or name another {said}");
        assert!(text.contains(&hint), "{small} {room}: {text}");
        assert!(text.contains("left:  \n"), "{small} {room}: {text}");
        assert_eq!(yard.release("kept"), whole, "{small} {room}");
        if small == "cache" {
            fs::remove_dir_all(yard.bench.path("out")).unwrap();
        }
    }
}
