//! The same release twice, under circumstances as different as one machine can make
//! them: another folder on another kind of file system, another user, umask, time
//! zone, locale and host name. Every byte must be the same, that of a customer's
//! composed disk too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use edge::durable::{self, Mode};
use edge::runner::Tool;
use model::trust::RoleKeys;
use model::{Digest, Role, Signer, TrustRoot};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tempfile::TempDir;

use crate::story::Stage;

/// The version that is built.
const VERSION: &str = "2026.11.8";
/// The user outside of its namespace as whom root builds the second time.
const STRANGER: u32 = 1_900_000_000;
/// So many users and groups a build needs.
const IDS: u32 = 65_536;

/// What is run under both circumstances. `$0` is the folder, which holds programs,
/// recipes, keys and package cache.
const BUILD: &str = r#"
set -eu
cd "$0"
unset LEAP_IMAGE_CACHE
./bin/leap-image layer --customer acme --files layer-files --out layer --recipe recipes/leapserv.toml \
    --cache cache --key keys/configuration.pem
./bin/leap-image build recipes/leapserv.toml --version "$VERSION" --lock leapserv.lock --cache cache \
    --out releases --bin-dir bin --key keys/targets.pem --trust-root keys/trust-root.json
./bin/leap-image compose "releases/$VERSION" --layer layer --trust-root keys/trust-root.json \
    --recipe recipes/leapserv.toml --cache cache --size 12G --out disk.raw
"#;

/// Before it the second time: another host name, mask and file system.
const ELSEWHERE: &str = r#"
set -eu
umask 077
hostname elsewhere.invalid
mkdir "$0/far"
mount -t tmpfs -o mode=0755 far "$0/far"
(cd "$0" && tar --create --exclude=./far .) | tar --extract --directory "$0/far" --no-same-permissions
"#;

/// What came out of one build, by name.
pub type Outputs = BTreeMap<String, Digest>;

/// What is kept of a run, so that a later one can be compared with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Digests of all that went in.
    pub inputs: Outputs,
    /// Digests of all that came out.
    pub outputs: Outputs,
}

/// The result of building twice.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What went in and what came out the first time.
    pub record: Record,
    /// What came out differently the second time.
    pub differences: Vec<String>,
    /// What came out differently from the last recorded run with the same inputs;
    /// none when there is no such run.
    pub since_recorded: Option<Vec<String>>,
    /// How long the two builds took, in seconds.
    pub seconds: [f64; 2],
}

/// Builds twice, compares, and compares with the last recorded run. When all is
/// the same, this run is recorded.
///
/// # Errors
/// A build failed, or this machine lacks what the second circumstances need.
pub fn run(stage: &Stage) -> anyhow::Result<Outcome> {
    let place = std::path::absolute(&stage.build).context("name the build folder")?;
    let material = Material::prepare(stage, &place)?;
    let inputs = material.inputs()?;
    let begun = Instant::now();
    let here = material.here()?;
    let first = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let there = material.elsewhere()?;
    let second = begun.elapsed().as_secs_f64();
    let record = Record {
        inputs,
        outputs: here,
    };
    let differences = different(&record.outputs, &there);
    let file = place.join("hashes.json");
    let since_recorded = match read_record(&file)? {
        Some(old) if old.inputs == record.inputs => Some(different(&old.outputs, &record.outputs)),
        _ => None,
    };
    if differences.is_empty() && since_recorded.as_ref().is_none_or(Vec::is_empty) {
        durable::write_json(&file, &record, Mode::Public)?;
        material.remove()?;
    }
    Ok(Outcome {
        record,
        differences,
        since_recorded,
        seconds: [first, second],
    })
}

fn read_record(file: &Path) -> anyhow::Result<Option<Record>> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{}: expected recorded hashes", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

/// The names of outputs that only one has, or that are not the same in both.
fn different(a: &Outputs, b: &Outputs) -> Vec<String> {
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .cloned()
        .collect()
}

/// Keys that sign nothing but what is built here. They are the same in every run, so
/// that runs can be compared.
fn write_keys(folder: &Path) -> anyhow::Result<()> {
    let (targets, configuration) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
    let role = |signer: &Signer| RoleKeys {
        keys: vec![signer.public()],
        threshold: 1,
    };
    let root = TrustRoot {
        version: 1,
        roles: BTreeMap::from([
            (Role::Targets, role(&targets)),
            (Role::Configuration, role(&configuration)),
        ]),
        recovery: Vec::new(),
    };
    std::fs::create_dir_all(folder).context("make the folder of keys")?;
    for (name, signer) in [("targets", &targets), ("configuration", &configuration)] {
        let file = folder.join(format!("{name}.pem"));
        durable::write(&file, signer.to_pem().as_bytes(), Mode::Secret)?;
    }
    durable::write_json(&folder.join("trust-root.json"), &root, Mode::Public)
}

/// Two folders with the same material. The second one is nobody's home: other users
/// must be able to come to it.
struct Material {
    first: PathBuf,
    second: TempDir,
}

impl Material {
    fn prepare(stage: &Stage, place: &Path) -> anyhow::Result<Self> {
        let material = Self {
            first: place.join("first folder"),
            second: tempfile::Builder::new()
                .prefix("leap-reproduce-")
                .tempdir()
                .context("make the second folder")?,
        };
        material.remove()?;
        let keys = place.join("keys");
        write_keys(&keys)?;
        let cache = stage.cache.join("image");
        let lock = place.join("leapserv.lock");
        let image = stage.programs.join("leap-image");
        let locking = Tool::new(&image)
            .arg("lock")
            .arg(stage.recipes.join("leapserv.toml"))
            .arg("--lock")
            .arg(&lock)
            .arg("--cache")
            .arg(&cache);
        locking.run()?;
        // Fetches what is missing, so that both builds need no network.
        let first = &material.first;
        std::fs::create_dir_all(first.join("bin")).context("make the first folder")?;
        for program in [
            "leap-image",
            "leap-updater",
            "leap-installer",
            "leap-backup",
        ] {
            copy(&stage.programs.join(program), &first.join("bin"))?;
        }
        copy(&stage.recipes, &first.join("recipes"))?;
        copy(&keys, &first.join("keys"))?;
        copy(&lock, first)?;
        std::fs::create_dir(first.join("cache")).context("make the first cache")?;
        for part in ["apt", "debs"] {
            copy(&cache.join(part), &first.join("cache"))?;
        }
        let files = first.join("layer-files");
        std::fs::create_dir(&files)
            .and_then(|()| std::fs::write(files.join("motd"), "acme\n"))
            .context("write the layer's files")?;
        let everything = first.join(".");
        copy(&everything, material.second.path())?;
        Ok(material)
    }

    /// Digests of programs, recipes, keys and lock.
    fn inputs(&self) -> anyhow::Result<Outputs> {
        let mut inputs = Outputs::new();
        for part in ["bin", "recipes", "keys", "layer-files", "leapserv.lock"] {
            digests(&self.first, &self.first.join(part), &mut inputs)?;
        }
        Ok(inputs)
    }

    /// Builds as whoever runs this.
    fn here(&self) -> anyhow::Result<Outputs> {
        Tool::new("sh")
            .args(["-c", &format!("umask 022\n{BUILD}")])
            .arg(&self.first)
            .env("VERSION", VERSION)
            .env("TZ", "America/Chicago")
            .env("LC_ALL", "C.UTF-8")
            .run()
            .context("the first build")?;
        outputs(&self.first)
    }

    /// Builds in namespaces of its own, as another user where root can be one.
    fn elsewhere(&self) -> anyhow::Result<Outputs> {
        let script = format!("{ELSEWHERE}\nset -- \"$0/far\"\nexec sh -c \"$BUILD\" \"$1\"");
        let second = self.second.path();
        let far = second.join("far");
        // What is on the other file system ends with its namespace: the outputs are copied out.
        let script = script.replace("exec sh -c", "sh -c")
            + "\ncp -a --sparse=always \"$1/releases\" \"$1/disk.raw\" \"$0/\"\n";
        let sh = |tool: Tool| {
            tool.args(["sh", "-c", &script])
                .arg(second)
                .env("BUILD", BUILD)
                .env("VERSION", VERSION)
                .env("TZ", "Pacific/Kiritimati")
                .env("LC_ALL", "tr_TR.UTF-8")
                .env("LANG", "tr_TR.UTF-8")
                .env("HOME", "/nonexistent")
        };
        let done = if rustix::process::geteuid().is_root() {
            give_away(second)?;
            let stranger = Namespace::of_stranger()?;
            sh(stranger.enter()).run()
        } else {
            let own = [
                "--user",
                "--map-root-user",
                "--map-auto",
                "--mount",
                "--uts",
            ];
            sh(Tool::new("unshare").args(own)).run()
        };
        done.context("the second build")?;
        ensure!(
            std::fs::read_dir(&far).is_ok_and(|mut inside| inside.next().is_none()),
            "the second build: its file system is still mounted"
        );
        outputs(second)
    }

    fn remove(&self) -> anyhow::Result<()> {
        if self.first.exists() {
            std::fs::remove_dir_all(&self.first)
                .with_context(|| format!("remove {}", self.first.display()))?;
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    Tool::new("cp")
        .args(["-a", "--reflink=auto"])
        .args([from, to])
        .run()
}

fn give_away(folder: &Path) -> anyhow::Result<()> {
    Tool::new("chown")
        .args(["--recursive", &format!("{STRANGER}:{STRANGER}")])
        .arg(folder)
        .run()
}

/// Namespaces whose root is a user of its own outside. They end with this value.
struct Namespace(std::process::Child);

impl Namespace {
    fn of_stranger() -> anyhow::Result<Self> {
        let holder = Tool::new("unshare")
            .args(["--user", "--mount", "--uts", "sleep", "infinity"])
            .command()
            .stdin(std::process::Stdio::null())
            .spawn()
            .context("make a user namespace")?;
        let namespace = Self(holder);
        let process = namespace.0.id();
        // The new namespace is there when its link differs from ours.
        let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/uts"));
        let ours = link("self").context("look at our namespaces")?;
        let begun = Instant::now();
        while link(&process.to_string()).context("look at the namespace")? == ours {
            ensure!(
                begun.elapsed().as_secs() < 10,
                "no user namespace after 10 s"
            );
            std::thread::yield_now();
        }
        for map in ["uid_map", "gid_map"] {
            std::fs::write(
                format!("/proc/{process}/{map}"),
                format!("0 {STRANGER} {IDS}\n"),
            )
            .with_context(|| format!("write the namespace's {map}"))?;
        }
        Ok(namespace)
    }

    fn enter(&self) -> Tool {
        Tool::new("nsenter")
            .arg(format!("--target={}", self.0.id()))
            .args([
                "--user",
                "--mount",
                "--uts",
                "--setuid=0",
                "--setgid=0",
                "--",
            ])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It does nothing but wait, so there is nothing to lose.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The digests of a build's release and disk.
fn outputs(folder: &Path) -> anyhow::Result<Outputs> {
    let mut found = Outputs::new();
    let release = folder.join("releases").join(VERSION);
    digests(&release, &release, &mut found)?;
    ensure!(found.len() > 5, "{}: not a release", release.display());
    found.insert("disk".to_owned(), of_disk(&folder.join("disk.raw"))?);
    Ok(found)
}

fn digests(base: &Path, path: &Path, found: &mut Outputs) -> anyhow::Result<()> {
    let reading = || format!("read {}", path.display());
    if path.is_dir() {
        for entry in std::fs::read_dir(path).with_context(reading)? {
            digests(base, &entry.with_context(reading)?.path(), found)?;
        }
        return Ok(());
    }
    let name = path
        .strip_prefix(base)
        .unwrap_or(path)
        .display()
        .to_string();
    let bytes = std::fs::read(path).with_context(reading)?;
    found.insert(name, Digest::of(&bytes));
    Ok(())
}

/// The digest of all blocks of a sparse file that are not zero, with their places.
fn of_disk(path: &Path) -> anyhow::Result<Digest> {
    use rustix::fs::{SeekFrom, seek};
    const BLOCK: usize = 4096;
    let reading = || format!("read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hash = sha2::Sha256::new();
    hash.update(file.metadata().with_context(reading)?.len().to_le_bytes());
    let mut block = vec![0; BLOCK];
    let mut end = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
        end = seek(&file, SeekFrom::Hole(start)).with_context(reading)?;
        let mut at = start / BLOCK as u64 * BLOCK as u64;
        seek(&file, SeekFrom::Start(at)).with_context(reading)?;
        while at < end {
            file.read_exact(&mut block).with_context(reading)?;
            if block.iter().any(|byte| *byte != 0) {
                hash.update(at.to_le_bytes());
                hash.update(&block);
            }
            at += BLOCK as u64;
        }
        end = at;
    }
    Ok(Digest::from(<[u8; 32]>::from(hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn what_differs_is_named_and_what_is_missing_too() {
        let outputs = |list: &[(&str, &[u8])]| -> Outputs {
            let pairs = list.iter();
            pairs
                .map(|(name, bytes)| ((*name).to_owned(), Digest::of(bytes)))
                .collect()
        };
        let a = outputs(&[("root", b"1"), ("uki", b"2"), ("only", b"3")]);
        let b = outputs(&[("root", b"1"), ("uki", b"x")]);
        assert_eq!(different(&a, &b), ["only", "uki"]);
        assert!(different(&a, &a).is_empty());
    }

    #[test]
    fn a_disk_is_the_same_with_and_without_holes_and_differs_by_one_byte() {
        let folder = tempfile::tempdir().unwrap();
        let disk = |name: &str, write: &dyn Fn(&File)| {
            let path = folder.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_len(1 << 20).unwrap();
            write(&file);
            of_disk(&path).unwrap()
        };
        let sparse = disk("sparse", &|file| file.write_all_at(b"x", 70_000).unwrap());
        let full = disk("full", &|file| {
            file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
            file.write_all_at(b"x", 70_000).unwrap();
        });
        let other = disk("other", &|file| file.write_all_at(b"x", 70_001).unwrap());
        assert_eq!(sparse, full);
        assert_ne!(sparse, other);
    }
}
