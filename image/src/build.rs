//! A build: facts, plan, steps, and the release's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind};
use model::release::{Component, ReleaseManifest, SegmentedImage};
use model::{Digest, ReleaseVersion, Signer, TrustRoot};

use crate::cache::Cache;
use crate::lock::{Index, Lock, Part};
use crate::plan::{self, Facts, Planned, Step, System};
use crate::recipe::{FileContent, Recipe};
use crate::release;
use crate::report::{Origin, Report};
use crate::segment;
use crate::sources::Mirrors;
use crate::steps::packages::{self, Apt, Indexes};
use crate::steps::{extension, initrd, kernel, root, uki, unpack, verity};
use crate::tools::Tools;
use crate::tree;

/// What a build is told.
#[derive(Debug)]
pub struct Order<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The version, when the recipe has none or another one.
    pub version: Option<ReleaseVersion>,
    /// Where our programs are.
    pub binaries: &'a Path,
    /// Where the release's folder goes.
    pub out: &'a Path,
    /// The trust root to put into the images.
    pub trust_root: &'a Path,
    /// Signs the manifest.
    pub signer: &'a Signer,
    /// Where packages come from.
    pub mirrors: &'a Mirrors,
    /// Whether to ask the mirrors for new versions.
    pub indexes: Indexes,
    /// Compression level of the segments.
    pub level: i32,
}

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// The release's folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: ReleaseManifest,
}

/// The packages' side of a build: apt and what it found.
struct Supply {
    apt: Apt,
    index: Index,
    lock: Lock,
}

/// Builds a release.
///
/// # Errors
/// What stopped it; the release's folder is then as it was before.
pub fn build(order: &Order<'_>, cache: &Cache, report: &mut Report) -> anyhow::Result<Built> {
    let recipe = order.recipe;
    let version = order.version.or(recipe.version).ok_or_else(|| {
        exit::hint(
            exit::marked(Kind::InvalidInput, "version: the recipe has none"),
            "name one with --version 2026.11.1",
        )
    })?;
    let trust_root = read_trust_root(order)?;
    let supply = supply(order, cache, report)?;
    let (facts, binaries) = gather(order, version, &trust_root, &supply.lock)?;
    let plan =
        plan::plan(recipe, &facts).map_err(|missing| exit::marked(Kind::InvalidInput, missing))?;
    let mut made = Made::default();
    let mut tools = None;
    for planned in plan.steps() {
        let folder = report.step(&planned.step.to_string(), |bar| {
            if let Some(folder) = cache.find(planned) {
                return Ok((folder, Origin::Cached));
            }
            let work = cache.work()?;
            let run = Run {
                order,
                version,
                trust_root: &trust_root,
                supply: &supply,
                binaries: &binaries,
                cache,
                made: &made,
                tools: tools.as_ref(),
            };
            run.step(planned, work.path(), bar)
                .with_context(|| format!("step {}", planned.step))?;
            Ok((cache.keep(planned, work)?, Origin::Made))
        })?;
        if planned.step == Step::Tools {
            tools = Some(Tools::open(&folder, &recipe.architecture)?);
        }
        made.folders.insert(planned.step.clone(), folder);
    }
    let tools = tools.context("the plan has no tools")?;
    let built = report.step("release", |_| {
        let built = assemble(order, version, &supply.lock, &made, &tools)?;
        Ok((built, Origin::Made))
    })?;
    if let Err(problem) = cache.tidy(edge::clock::now().into()) {
        tracing::warn!(problem = format!("{problem:#}"), "cache not tidied");
    }
    Ok(built)
}

/// Makes the plan of a build and changes nothing but the cache of packages.
///
/// # Errors
/// As for [`build`], up to the plan.
pub fn plan_only(
    order: &Order<'_>,
    cache: &Cache,
    report: &mut Report,
) -> anyhow::Result<Vec<(Planned, bool)>> {
    let version = order.version.or(order.recipe.version);
    let version = version.context("version: the recipe has none")?;
    let trust_root = read_trust_root(order)?;
    let supply = supply(order, cache, report)?;
    let (facts, _) = gather(order, version, &trust_root, &supply.lock)?;
    let plan = plan::plan(order.recipe, &facts)
        .map_err(|missing| exit::marked(Kind::InvalidInput, missing))?;
    let steps = plan.steps().iter();
    Ok(steps
        .map(|planned| (planned.clone(), cache.find(planned).is_some()))
        .collect())
}

/// Unpacks the tools of a recipe, for what needs them outside a build.
///
/// # Errors
/// When packages cannot be fetched or unpacked.
pub fn tools(
    recipe: &Recipe,
    mirrors: &Mirrors,
    cache: &Cache,
    report: &mut Report,
) -> anyhow::Result<Tools> {
    let lock = report.step("packages: lock", |_| {
        let apt = Apt::open(&cache.apt(), &cache.packages(), recipe, mirrors)?;
        let index = apt.index(Indexes::Cached)?;
        let (lock, origin) = cached_lock(cache, &apt, recipe, &index)?;
        apt.fetch(&lock)?;
        Ok((lock, origin))
    })?;
    let planned = plan::tools(&lock);
    let folder = report.step("tools", |_| {
        if let Some(folder) = cache.find(&planned) {
            return Ok((folder, Origin::Cached));
        }
        let work = cache.work()?;
        unpack::into_folder(&cache.packages(), lock.part(Part::Tools), work.path())?;
        Ok((cache.keep(&planned, work)?, Origin::Made))
    })?;
    Tools::open(&folder, &recipe.architecture)
}

fn read_trust_root(order: &Order<'_>) -> anyhow::Result<Vec<u8>> {
    let path = order.trust_root;
    let bytes = std::fs::read(path).map_err(|error| {
        exit::marked(
            Kind::InvalidInput,
            format!("read the trust root {}: {error}", path.display()),
        )
    })?;
    serde_json::from_slice::<TrustRoot>(&bytes).map_err(|error| {
        exit::marked(
            Kind::InvalidInput,
            format!("{}: expected a trust root: {error}", path.display()),
        )
    })?;
    Ok(bytes)
}

fn supply(order: &Order<'_>, cache: &Cache, report: &mut Report) -> anyhow::Result<Supply> {
    let recipe = order.recipe;
    let (apt, index) = report.step("packages: index", |_| {
        let apt = Apt::open(&cache.apt(), &cache.packages(), recipe, order.mirrors)?;
        let index = apt.index(order.indexes)?;
        Ok(((apt, index), Origin::Made))
    })?;
    let lock = report.step("packages: lock", |_| {
        cached_lock(cache, &apt, recipe, &index)
    })?;
    report.step("packages: fetch", |_| {
        let origin = match apt.fetch(&lock)? {
            0 => Origin::Cached,
            _ => Origin::Made,
        };
        Ok(((), origin))
    })?;
    Ok(Supply { apt, index, lock })
}

/// Resolving takes seconds and depends on the indexes and the recipe's lists alone.
fn cached_lock(
    cache: &Cache,
    apt: &Apt,
    recipe: &Recipe,
    index: &Index,
) -> anyhow::Result<(Lock, Origin)> {
    let planned = plan::lock(recipe, &index.digest());
    if let Some(folder) = cache.find(&planned) {
        let bytes = std::fs::read(folder.join("lock.json")).context("read the lock")?;
        let lock = serde_json::from_slice(&bytes).context("read the lock")?;
        return Ok((lock, Origin::Cached));
    }
    let lock = apt.lock(recipe, index)?;
    let work = cache.work()?;
    let bytes = serde_json::to_vec(&lock).context("write the lock")?;
    std::fs::write(work.path().join("lock.json"), bytes).context("write the lock")?;
    cache.keep(&planned, work)?;
    Ok((lock, Origin::Made))
}

/// Looks at everything that the plan depends on.
fn gather(
    order: &Order<'_>,
    version: ReleaseVersion,
    trust_root: &[u8],
    lock: &Lock,
) -> anyhow::Result<(Facts, BTreeMap<String, PathBuf>)> {
    let recipe = order.recipe;
    let mut names: BTreeSet<&String> = recipe.root.binaries.iter().collect();
    names.extend(recipe.installer.init.iter().chain(&recipe.initrd.init));
    let mut folders: BTreeSet<&PathBuf> = recipe.root.overlays.iter().collect();
    folders.extend(recipe.initrd.overlays.iter());
    folders.extend(recipe.installer.overlays.iter());
    for component in recipe.components.values() {
        names.extend(component.binaries.iter());
        folders.extend(component.overlays.iter());
    }
    let mut binaries = BTreeMap::new();
    let mut digests = BTreeMap::new();
    for name in names {
        let path = order.binaries.join(name);
        if !path.is_file() {
            return Err(exit::hint(
                exit::marked(
                    Kind::InvalidInput,
                    format!("program {name}: not in {}", order.binaries.display()),
                ),
                "build the workspace first, and name the folder with --bin-dir",
            ));
        }
        digests.insert(name.clone(), unpack::digest_file(&path)?);
        binaries.insert(name.clone(), path);
    }
    let mut sources = BTreeMap::new();
    for folder in folders {
        sources.insert(folder.display().to_string(), digest_folder(folder)?);
    }
    for file in &recipe.files {
        if let FileContent::Source(path) = &file.content {
            sources.insert(path.display().to_string(), unpack::digest_file(path)?);
        }
    }
    let facts = Facts {
        lock: lock.clone(),
        version,
        binaries: digests,
        sources,
        trust_root: Digest::of(trust_root),
        level: order.level,
    };
    Ok((facts, binaries))
}

/// Returns a digest of all paths, modes and contents below a folder.
fn digest_folder(folder: &Path) -> anyhow::Result<Digest> {
    let mut tree = tree::Tree::new();
    tree.add_folder(folder)
        .map_err(|error| exit::marked(Kind::InvalidInput, format!("{error:#}")))?;
    let mut bytes = Vec::new();
    tree.write_tar(&mut bytes, 0, &[])?;
    Ok(Digest::of(&bytes))
}

/// The folders of the steps that are done.
#[derive(Debug, Default)]
struct Made {
    folders: BTreeMap<Step, PathBuf>,
}

impl Made {
    fn folder(&self, step: Step) -> anyhow::Result<&Path> {
        self.folders
            .get(&step)
            .map(PathBuf::as_path)
            .with_context(|| format!("step {step}: has not run yet"))
    }
}

/// All that a single step may read.
struct Run<'a> {
    order: &'a Order<'a>,
    version: ReleaseVersion,
    trust_root: &'a [u8],
    supply: &'a Supply,
    binaries: &'a BTreeMap<String, PathBuf>,
    cache: &'a Cache,
    made: &'a Made,
    tools: Option<&'a Tools>,
}

impl Run<'_> {
    fn step(&self, planned: &Planned, out: &Path, bar: &edge::progress::Bar) -> anyhow::Result<()> {
        let recipe = self.order.recipe;
        let lock = &self.supply.lock;
        let packages = self.cache.packages();
        let tools = || self.tools.context("the tools are not there yet");
        match &planned.step {
            Step::Lock => anyhow::bail!("the lock is made before the plan"),
            Step::Tools => unpack::into_folder(&packages, lock.part(Part::Tools), out),
            Step::Packages => {
                packages::install(&self.supply.apt, recipe, lock, &self.supply.index, out)
            }
            Step::Kernel => kernel::pick(recipe, lock, &packages, tools()?, out),
            Step::Initrd(system) => self.initrd(*system, out),
            Step::Root => {
                let inputs = root::Inputs {
                    recipe,
                    lock,
                    packages: &packages,
                    rootfs: &self.made.folder(Step::Packages)?.join("rootfs.tar"),
                    kernel: self.made.folder(Step::Kernel)?,
                    binaries: self.binaries,
                    trust_root: self.trust_root,
                    version: self.version,
                };
                root::compose(&inputs, tools()?, out)
            }
            Step::Verity => {
                let image = self.made.folder(Step::Root)?.join("root");
                verity::format(&recipe.name, &image, tools()?, out)
            }
            Step::Uki(system) => self.uki(*system, out),
            Step::Component(name) => {
                let component = recipe
                    .components
                    .get(name)
                    .with_context(|| format!("component {name}: not in the recipe"))?;
                extension::component(
                    name,
                    component,
                    &recipe.name,
                    recipe.source_date,
                    self.binaries,
                    tools()?,
                    out,
                )
            }
            Step::Segments => self.segments(out, bar),
        }
    }

    fn initrd(&self, system: System, out: &Path) -> anyhow::Result<()> {
        let recipe = self.order.recipe;
        let initrd = match system {
            System::Main => &recipe.initrd,
            System::Installer => &recipe.installer,
        };
        let init = initrd.init.as_ref().map(|name| initrd::Init {
            program: &self.binaries[name],
            trust_root: self.trust_root,
        });
        let tools = self.tools.context("the tools are not there yet")?;
        let kernel = self.made.folder(Step::Kernel)?;
        let target = initrd::Target {
            architecture: &recipe.architecture,
            mtime: recipe.source_date,
        };
        initrd::compose(initrd, init, kernel, tools, &target, out)
    }

    fn uki(&self, system: System, out: &Path) -> anyhow::Result<()> {
        let recipe = self.order.recipe;
        let command_line = match system {
            System::Main => {
                let hash = verity::root_hash(self.made.folder(Step::Verity)?)?;
                format!("roothash={hash} {}", recipe.kernel.command_line)
            }
            System::Installer => recipe.installer.command_line.clone(),
        };
        let inputs = uki::Inputs {
            kernel: self.made.folder(Step::Kernel)?,
            initrd: &self.made.folder(Step::Initrd(system))?.join("initrd"),
            command_line: &command_line,
            os_release: &root::os_release(recipe, self.version),
            architecture: &recipe.architecture,
        };
        uki::join(
            &inputs,
            self.tools.context("the tools are not there yet")?,
            out,
        )
    }

    fn segments(&self, out: &Path, bar: &edge::progress::Bar) -> anyhow::Result<()> {
        let level = self.order.level;
        let frames = self.cache.frames(level);
        for (step, name) in [(Step::Root, "root"), (Step::Verity, "verity")] {
            let image = self.made.folder(step)?.join(name);
            let file = format!("{name}.zst");
            let index = segment::write(
                &image,
                &out.join(&file),
                &file,
                level,
                &frames,
                &mut |done, total| {
                    bar.label(format!("segments: {name} {}%", done * 100 / total.max(1)));
                },
            )?;
            let bytes = serde_json::to_vec(&index).context("write the segment index")?;
            std::fs::write(out.join(format!("{name}.json")), bytes)
                .context("write the segment index")?;
        }
        Ok(())
    }
}

/// Puts the finished steps together as the release's folder.
fn assemble(
    order: &Order<'_>,
    version: ReleaseVersion,
    lock: &Lock,
    made: &Made,
    tools: &Tools,
) -> anyhow::Result<Built> {
    let recipe = order.recipe;
    let mut draft = release::Draft::new(order.out, version)?;
    let segments = made.folder(Step::Segments)?;
    let index = |name: &str| -> anyhow::Result<SegmentedImage> {
        let bytes = std::fs::read(segments.join(name)).context("read the segment index")?;
        serde_json::from_slice(&bytes).context("read the segment index")
    };
    draft.copy(&segments.join("root.zst"), "root.zst")?;
    draft.copy(&segments.join("verity.zst"), "verity.zst")?;
    let firmware = uki::firmware_name(&recipe.architecture);
    let loader = format!("systemd-boot{firmware}.efi");
    let loader_bytes = tools
        .tree()
        .read(&format!("usr/lib/systemd/boot/efi/{loader}"))?;
    let mut components = Vec::new();
    for (name, component) in &recipe.components {
        let file = format!("{name}.raw");
        let from = made.folder(Step::Component(name.clone()))?.join(&file);
        components.push(Component {
            name: name.clone(),
            version: component.version.clone(),
            image: draft.copy(&from, &format!("components/{file}"))?,
        });
    }
    let uki = |system| made.folder(Step::Uki(system)).map(|f| f.join("uki.efi"));
    let manifest = ReleaseManifest {
        version,
        architecture: recipe.architecture.clone(),
        root_hash: verity::root_hash(made.folder(Step::Verity)?)?,
        root: index("root.json")?,
        verity: index("verity.json")?,
        uki: draft.copy(&uki(System::Main)?, "leapserv.efi")?,
        boot_loader: draft.write(&loader, &loader_bytes)?,
        installer: draft.copy(&uki(System::Installer)?, "installer.efi")?,
        components,
        tries: recipe.tries,
    };
    let lock_json = serde_json::to_vec_pretty(lock).context("write the lock")?;
    draft.write("lock.json", &lock_json)?;
    draft.write("packages.txt", lock.text().as_bytes())?;
    check_budget(recipe, &manifest)?;
    let folder = draft.finish(&order.signer.sign(&manifest))?;
    Ok(Built { folder, manifest })
}

/// The sizes that a budget can limit.
pub fn sizes(manifest: &ReleaseManifest) -> BTreeMap<String, u64> {
    let components: u64 = manifest.components.iter().map(|c| c.image.size).sum();
    let download = manifest.root.stored_size
        + manifest.verity.stored_size
        + manifest.uki.size
        + manifest.boot_loader.size
        + components;
    BTreeMap::from([
        ("root".to_owned(), manifest.root.size),
        ("uki".to_owned(), manifest.uki.size),
        ("installer".to_owned(), manifest.installer.size),
        ("download".to_owned(), download),
    ])
}

fn check_budget(recipe: &Recipe, manifest: &ReleaseManifest) -> anyhow::Result<()> {
    for (output, size) in sizes(manifest) {
        if let Some(limit) = recipe.budget.get(&output).filter(|limit| size > **limit) {
            bail!(
                "budget.{output}: {} where at most {} is allowed",
                release::readable(size),
                release::readable(*limit)
            );
        }
    }
    Ok(())
}
