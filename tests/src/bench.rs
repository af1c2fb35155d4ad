//! What `make bench` measures.
//!
//! Machines are noisy: a figure of ours counts beside a peer's from the same run,
//! never by itself.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use edge::progress::Bar;
use edge::runner::Tool;
use serde::Serialize;
use serde_json::Value;

use crate::lab::story::Report;
use crate::story::{Sizes, Stage};

pub mod boot;
pub mod compose;

/// Seconds from power-on to "in service" that we aim at, without KVM on 2 cores.
const BIRTH: f64 = 90.0;
/// Seconds from power-on of the new machine to the restored gallery that we aim at.
const REBIRTH: f64 = 150.0;
/// Seconds from the installed kernel's start to the first check-in that we aim at.
const KERNEL: f64 = 25.0;
/// A cold build beside its peer: so many times as long at most.
const COLD: f64 = 1.15;
/// Seconds of a build after a change in one component that we aim at.
const COMPONENT: f64 = 5.0;
/// Memory of any step of a build that we aim at, in MiB.
const MEMORY: f64 = 1024.0;
/// Seconds of the whole story that we aim at.
const STORY: f64 = 1200.0;

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Its unit.
    pub unit: &'static str,
    /// Ours.
    pub ours: f64,
    /// The same by a peer, in the same run.
    pub peer: Option<f64>,
    /// What we aim at.
    pub aim: Option<f64>,
}

impl Figure {
    fn seconds(what: impl Into<String>, ours: f64) -> Self {
        Self {
            what: what.into(),
            unit: "s",
            ours,
            peer: None,
            aim: None,
        }
    }

    fn aim(self, aim: f64) -> Self {
        Self {
            aim: Some(aim),
            ..self
        }
    }
}

/// Returns the figures that a told story holds.
#[must_use]
pub fn of_story(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    for step in &report.steps {
        for (name, seconds) in &step.timings {
            let figure = Figure::seconds(format!("{}: {name}", step.name), *seconds);
            figures.push(match (step.name.as_str(), name.as_str()) {
                ("birth", "power-on to in service") => figure.aim(BIRTH),
                ("birth", "kernel start to in service") => figure.aim(KERNEL),
                ("death", "power-on to restored gallery") => figure.aim(REBIRTH),
                _ => figure,
            });
        }
    }
    let all = report.steps.iter().map(|step| step.seconds).sum();
    figures.push(Figure::seconds("the whole story", all).aim(STORY));
    figures
}

/// Builds a release with no step in the cache, and once more with all of them, beside
/// plain `mmdebstrap` with the same packages. Packages are in the cache for all three.
///
/// # Errors
/// A build failed. The story has to be told first: its keys sign the release.
pub fn builds(stage: &Stage) -> anyhow::Result<Vec<Figure>> {
    let absolute = |path: &Path| std::path::absolute(path).context("name a folder");
    let work = absolute(&stage.build.join("builds"))?;
    if work.exists() {
        std::fs::remove_dir_all(&work).context("remove the builds of an earlier run")?;
    }
    std::fs::create_dir_all(work.join("cache")).context("make a folder for the builds")?;
    let from = absolute(&stage.cache.join("image"))?;
    for part in ["apt", "debs"] {
        let copy = Tool::new("cp").args(["-a", "--reflink=auto"]);
        copy.arg(from.join(part)).arg(work.join("cache")).run()?;
    }
    let keys = absolute(&stage.build.join("keys"))?;
    let lock = absolute(&stage.build.join("leapserv.lock"))?;
    let recipe = absolute(&stage.recipes.join("leapserv.toml"))?;
    let build = |recipe: &Path, out: &str| {
        Tool::new(stage.programs.join("leap-image"))
            .arg("build")
            .arg(recipe)
            .args(["--version", "2026.11.9", "--bin-dir"])
            .arg(&stage.programs)
            .arg("--lock")
            .arg(&lock)
            .arg("--out")
            .arg(work.join(out))
            .arg("--cache")
            .arg(work.join("cache"))
            .arg("--key")
            .arg(keys.join("targets.pem"))
            .arg("--trust-root")
            .arg(keys.join("trust-root.json"))
    };
    let cold = timed("leap-image build, cold", &build(&recipe, "cold"))?;
    // The largest process so far: all before it in the story were servers of a few MiB.
    let memory = largest_child();
    let release = work.join("cold/2026.11.9");
    let packages = packages(&release.join("lock.json"))?;
    let install = timed("plain mmdebstrap", &mmdebstrap(&work, &packages)?)?;
    let pack = timed("mkfs.erofs", &mkfs_erofs(&work)?)?;
    let warm = timed("leap-image build, warm", &build(&recipe, "warm"))?;
    let changed = with_another_component(&stage.recipes, &work)?;
    let component = timed(
        "leap-image build, another component",
        &build(&changed, "component"),
    )?;
    let peer = Some(install + pack);
    let mut figures = vec![
        Figure {
            peer,
            aim: Some(COLD * (install + pack)),
            ..Figure::seconds(
                "release build, cold, beside mmdebstrap and mkfs.erofs",
                cold,
            )
        },
        Figure {
            peer,
            ..Figure::seconds("release build, warm, beside the same", warm)
        },
        Figure::seconds("release build after a change in one component", component).aim(COMPONENT),
        Figure {
            unit: "MiB",
            ..Figure::seconds("largest process of a cold build", memory).aim(MEMORY)
        },
    ];
    figures.extend(sizes(&release)?);
    std::fs::remove_dir_all(&work).context("remove the builds")?;
    Ok(figures)
}

/// The largest resident set of a process that we waited for, in MiB, with those that
/// they waited for.
fn largest_child() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    // The kernel counts in KiB.
    usage.map_or(f64::NAN, |usage| {
        u32::try_from(usage.max_rss()).map_or(f64::NAN, f64::from) / 1024.0
    })
}

/// The recipe with another version of its component.
fn with_another_component(recipes: &Path, work: &Path) -> anyhow::Result<PathBuf> {
    let folder = work.join("recipes");
    let copy = Tool::new("cp").arg("-a");
    copy.arg(recipes).arg(&folder).run()?;
    let recipe = folder.join("leapserv.toml");
    let text = std::fs::read_to_string(&recipe).context("read the recipe")?;
    let changed = text.replace("version = \"0.1.0\"", "version = \"0.1.1\"");
    ensure!(changed != text, "the recipe has no component 0.1.0");
    std::fs::write(&recipe, changed).context("write the recipe")?;
    Ok(recipe)
}

/// `mkfs.erofs` of the release's tools on what the peer has installed.
fn mkfs_erofs(work: &Path) -> anyhow::Result<Tool> {
    let steps = work.join("cache/steps");
    let entries = std::fs::read_dir(&steps).context("read the build's steps")?;
    let tools = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("tools-")
        })
        .context("the build has no tools")?;
    Ok(Tool::new(tools.join("lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(tools.join("usr/lib/x86_64-linux-gnu"))
        .arg(tools.join("usr/bin/mkfs.erofs"))
        .args(["--quiet", "--tar=f"])
        .args([work.join("peer.erofs"), work.join("peer.tar")]))
}

fn timed(what: &str, tool: &Tool) -> anyhow::Result<f64> {
    let bar = Bar::spinner(what);
    let begun = Instant::now();
    tool.run().context(what.to_owned())?;
    let seconds = begun.elapsed().as_secs_f64();
    bar.finish();
    Ok(seconds)
}

/// The packages of the root, by the release's lock.
fn packages(lock: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read(lock).with_context(|| format!("read {}", lock.display()))?;
    let lock: Value = serde_json::from_slice(&text).context("lock: expected JSON")?;
    let all = lock["packages"]
        .as_array()
        .context("lock: has no packages")?;
    let names: Vec<String> = all
        .iter()
        .filter(|package| package["part"] == "root")
        .filter_map(|package| Some(package["package"].as_str()?.to_owned()))
        .collect();
    ensure!(!names.is_empty(), "lock: names no package of the root");
    Ok(names)
}

/// Plain `mmdebstrap`, with the packages put into its cache as its manual shows.
fn mmdebstrap(work: &Path, packages: &[String]) -> anyhow::Result<Tool> {
    let debs = work.join("cache/debs");
    Ok(Tool::new("mmdebstrap")
        .args(["--variant=essential", "--format=tar", "--quiet"])
        .args(["--aptopt=APT::Install-Recommends \"false\""])
        .args(["--skip=download/empty,essential/unlink,cleanup/apt"])
        .arg("--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives/")
        .arg(format!(
            "--setup-hook=sync-in {} /var/cache/apt/archives/",
            debs.display()
        ))
        .arg(format!("--include={}", packages.join(",")))
        .arg("trixie")
        .arg(work.join("peer.tar"))
        .arg(sources(&work.join("cache/apt"))?))
}

/// The package sources that `leap-image` found on this machine.
fn sources(apt: &Path) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(apt).with_context(|| format!("read {}", apt.display()))?;
    let found = entries
        .flatten()
        .map(|entry| entry.path().join("etc/sources.list"))
        .find(|path| path.is_file());
    found.with_context(|| format!("{}: has no package sources", apt.display()))
}

/// The sizes of a release, with what we aim at.
fn sizes(release: &Path) -> anyhow::Result<Vec<Figure>> {
    let sizes = Sizes::of(release)?;
    let figure = |what: &str, ours, aim| Figure {
        what: what.to_owned(),
        unit: "MiB",
        ours,
        peer: None,
        aim: Some(aim),
    };
    Ok(vec![
        figure("root image, uncompressed", sizes.root, 400.0),
        figure("whole download, compressed", sizes.download, 120.0),
        figure("kernel image", sizes.kernel, 48.0),
        figure("installer", sizes.installer, 48.0),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::story::StepReport;

    #[test]
    fn the_storys_timings_are_figures_and_the_aims_stand_beside_them() {
        let report = Report {
            steps: vec![StepReport {
                name: "birth".to_owned(),
                ok: true,
                seconds: 100.0,
                evidence: Vec::new(),
                timings: vec![
                    ("firmware".to_owned(), 5.0),
                    ("power-on to in service".to_owned(), 95.0),
                ],
            }],
            ok: true,
        };
        let figures = of_story(&report);
        assert_eq!(figures[0], Figure::seconds("birth: firmware", 5.0));
        assert_eq!(figures[1].aim, Some(BIRTH));
        assert_eq!(
            figures[2],
            Figure::seconds("the whole story", 100.0).aim(STORY)
        );
    }

    #[test]
    fn the_locks_root_packages_are_the_peers_list() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("lock.json");
        let text =
            r#"{"packages":[{"part":"root","package":"bash"},{"part":"kernel","package":"k"}]}"#;
        std::fs::write(&lock, text).unwrap();
        assert_eq!(packages(&lock).unwrap(), ["bash"]);
        std::fs::write(&lock, r#"{"packages":[]}"#).unwrap();
        assert!(packages(&lock).is_err());
    }
}
