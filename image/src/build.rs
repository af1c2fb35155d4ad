//! A build: facts, plan, steps, and the release's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind};
use model::release::{Component, ReleaseManifest, SegmentedImage};
use model::{Digest, ReleaseVersion, Signer, TrustRoot};

use crate::cache::Cache;
use crate::documents;
use crate::lock::{Index, Lock, Part};
use crate::plan::{self, Facts, Plan, Planned, Step, System};
use crate::recipe::{FileContent, Recipe};
use crate::release;
use crate::report::{Origin, Report};
use crate::room;
use crate::schedule;
use crate::segment;
use crate::signing::authenticode;
use crate::signing::set::SecureBoot;
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
    /// Its packages.
    pub lock: &'a Lock,
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
    /// Signs what the firmware starts.
    pub secure_boot: Option<&'a SecureBoot>,
    /// Where packages come from that the cache lacks.
    pub mirrors: &'a Mirrors,
    /// Compression level of the segments.
    pub level: i32,
    /// The `Cargo.lock` that our programs were built with.
    pub cargo_lock: Option<&'a Path>,
}

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// The release's folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: ReleaseManifest,
}

/// Resolves a recipe's packages.
///
/// # Errors
/// When no mirror answers, or the recipe names what does not exist or fit together.
pub fn resolve(
    recipe: &Recipe,
    mirrors: &Mirrors,
    indexes: Indexes,
    cache: &Cache,
    report: &Report,
) -> anyhow::Result<Lock> {
    let (apt, index) = report.step("packages: index", |_| {
        let apt = Apt::open(&cache.apt(), &cache.packages(), recipe, mirrors)?;
        let index = apt.index(indexes)?;
        Ok(((apt, index), Origin::Made))
    })?;
    report.step("packages: resolve", |_| {
        cached_lock(cache, &apt, recipe, &index)
    })
}

/// Fetches the locked packages that the cache lacks.
///
/// # Errors
/// When one cannot be fetched or is not the locked one.
pub fn fetch(
    recipe: &Recipe,
    lock: &Lock,
    mirrors: &Mirrors,
    cache: &Cache,
    report: &Report,
) -> anyhow::Result<()> {
    report.step("packages: fetch", |bar| {
        let wanted = packages::missing(&cache.packages(), lock).len();
        if wanted == 0 {
            return Ok(((), Origin::Cached));
        }
        let apt = Apt::open(&cache.apt(), &cache.packages(), recipe, mirrors)?;
        apt.fetch(lock, &mut |bytes| {
            let come = release::readable(bytes);
            bar.label(format!("packages: fetch {wanted}, {come}"));
        })
        .map_err(|error| no_room_in_cache(error, cache))?;
        Ok(((), Origin::Made))
    })
}

fn no_room_in_cache(error: anyhow::Error, cache: &Cache) -> anyhow::Error {
    room::explain(
        error,
        cache.folder(),
        "make room there or name another --cache, and build again: finished steps are kept",
    )
}

/// Builds a release.
///
/// # Errors
/// What stopped it; the release's folder is then as it was before.
pub fn build(order: &Order<'_>, cache: &Cache, report: &Report) -> anyhow::Result<Built> {
    let (version, trust_root) = (version(order)?, read_trust_root(order)?);
    let (facts, binaries) = gather(order, version, &trust_root)?;
    let plan = plan(order, &facts)?;
    fetch(order.recipe, order.lock, order.mirrors, cache, report)?;
    tidy(cache);
    let run = Run {
        order,
        version,
        trust_root: &trust_root,
        binaries: &binaries,
        cache,
        tools: OnceLock::new(),
    };
    let made = run.all(&plan, report)?;
    let built = report.step("release", |_| {
        let built = assemble(order, version, &facts, &made, run.tools()?)?;
        Ok((built, Origin::Made))
    })?;
    tidy(cache);
    Ok(built)
}

/// Before a build, too: what an interrupted one has left may be what fills the disk.
fn tidy(cache: &Cache) {
    if let Err(problem) = cache.tidy(edge::clock::now().into()) {
        tracing::warn!(problem = format!("{problem:#}"), "cache not tidied");
    }
}

/// Makes the plan of a build and changes nothing. Says of each step whether
/// the cache has its output.
///
/// # Errors
/// As for [`build`], up to the plan.
pub fn plan_only(order: &Order<'_>, cache: &Cache) -> anyhow::Result<Vec<(Planned, bool)>> {
    let (facts, _) = gather(order, version(order)?, &read_trust_root(order)?)?;
    let plan = plan(order, &facts)?;
    let steps = plan.steps().iter();
    Ok(steps
        .map(|planned| (planned.clone(), cache.find(planned).is_some()))
        .collect())
}

fn version(order: &Order<'_>) -> anyhow::Result<ReleaseVersion> {
    order.version.or(order.recipe.version).ok_or_else(|| {
        exit::hint(
            exit::marked(Kind::InvalidInput, "version: the recipe has none"),
            "name one with --version 2026.11.1",
        )
    })
}

fn plan(order: &Order<'_>, facts: &Facts) -> anyhow::Result<Plan> {
    plan::plan(order.recipe, facts).map_err(|missing| exit::marked(Kind::InvalidInput, missing))
}

/// Unpacks the tools of a recipe, for what needs them outside a build.
///
/// # Errors
/// When packages cannot be fetched or unpacked.
pub fn tools(
    recipe: &Recipe,
    mirrors: &Mirrors,
    cache: &Cache,
    report: &Report,
) -> anyhow::Result<Tools> {
    let mut lock = resolve(recipe, mirrors, Indexes::Cached, cache, report)?;
    lock.packages.retain(|package| package.part == Part::Tools);
    fetch(recipe, &lock, mirrors, cache, report)?;
    let planned = plan::tools(&lock);
    let folder = report.step("tools", |_| {
        if let Some(folder) = cache.find(&planned) {
            return Ok((folder, Origin::Cached));
        }
        let work = cache.work()?;
        unpack::into_folder(&cache.packages(), lock.part(Part::Tools), work.path())?;
        Ok((cache.keep(&planned, work)?, Origin::Made))
    })?;
    Tools::open(&folder, recipe.architecture)
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

/// Resolving takes seconds and depends on the indexes and the recipe's lists alone.
fn cached_lock(
    cache: &Cache,
    apt: &Apt,
    recipe: &Recipe,
    index: &Index,
) -> anyhow::Result<(Lock, Origin)> {
    let planned = plan::lock(recipe, &index.digest());
    if let Some(folder) = cache.find(&planned) {
        let text = std::fs::read_to_string(folder.join("lock.json")).context("read the lock")?;
        return Ok((Lock::parse(&text).context("read the lock")?, Origin::Cached));
    }
    let lock = apt.lock(recipe, index)?;
    let work = cache.work()?;
    std::fs::write(work.path().join("lock.json"), lock.to_json()).context("write the lock")?;
    cache.keep(&planned, work)?;
    Ok((lock, Origin::Made))
}

/// Looks at everything that the plan depends on.
fn gather(
    order: &Order<'_>,
    version: ReleaseVersion,
    trust_root: &[u8],
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
    let from_files = recipe.files.iter().filter_map(|file| match &file.content {
        FileContent::Source(path) => Some(path),
        _ => None,
    });
    let of_hooks = recipe
        .hooks
        .iter()
        .flat_map(|hook| hook.inputs.iter().chain([&hook.run]));
    for path in from_files.chain(of_hooks) {
        let digest = if path.is_dir() {
            digest_folder(path)?
        } else {
            unpack::digest_file(path)
                .map_err(|error| exit::marked(Kind::InvalidInput, format!("{error:#}")))?
        };
        sources.insert(path.display().to_string(), digest);
    }
    let facts = Facts {
        lock: order.lock.clone(),
        version,
        binaries: digests,
        sources,
        trust_root: Digest::of(trust_root),
        secure_boot: order
            .secure_boot
            .map(|set| set.signer.certificate().digest()),
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

/// The output of a finished step.
#[derive(Debug, Clone)]
struct Output<'p> {
    planned: &'p Planned,
    folder: PathBuf,
    // What the cache had is compared with its digests before its first use.
    trusted: Arc<OnceLock<()>>,
}

/// The outputs of finished steps.
struct Made<'a, 'p> {
    cache: &'a Cache,
    outputs: Vec<Output<'p>>,
}

impl Made<'_, '_> {
    fn folder(&self, step: &Step) -> anyhow::Result<&Path> {
        let output = self
            .outputs
            .iter()
            .find(|output| output.planned.step == *step);
        let output = output.with_context(|| format!("step {step}: its output is not there"))?;
        if output.trusted.get().is_none() {
            self.cache.check(output.planned)?;
            output.trusted.get_or_init(|| ());
        }
        Ok(&output.folder)
    }
}

/// All that the steps may read.
struct Run<'a> {
    order: &'a Order<'a>,
    version: ReleaseVersion,
    trust_root: &'a [u8],
    binaries: &'a BTreeMap<String, PathBuf>,
    cache: &'a Cache,
    tools: OnceLock<Tools>,
}

impl Run<'_> {
    /// Runs the steps of a plan that the cache lacks, those at the same time
    /// that do not need each other.
    fn all<'p>(&self, plan: &'p Plan, report: &Report) -> anyhow::Result<Made<'_, 'p>> {
        let steps = plan.steps();
        let place = |need: &Step| steps.iter().position(|planned| planned.step == *need);
        let needs: Vec<Vec<usize>> = steps
            .iter()
            .map(|planned| planned.needs.iter().filter_map(place).collect())
            .collect();
        let width = std::thread::available_parallelism().map_or(1, usize::from);
        let outputs = schedule::run(&needs, width, |at, inputs: &[Output<'p>]| {
            let planned = &steps[at];
            let made = Made {
                cache: self.cache,
                outputs: inputs.to_vec(),
            };
            let trusted = Arc::new(OnceLock::new());
            let folder = report.step(&planned.step.to_string(), |bar| {
                if let Some(folder) = self.cache.find(planned) {
                    return Ok((folder, Origin::Cached));
                }
                let work = self.cache.work()?;
                self.step(planned, &made, work.path(), bar)
                    .with_context(|| format!("step {}", planned.step))
                    .map_err(|error| no_room_in_cache(error, self.cache))?;
                trusted.get_or_init(|| ());
                Ok((self.cache.keep(planned, work)?, Origin::Made))
            })?;
            let output = Output {
                planned,
                folder,
                trusted,
            };
            if planned.step == Step::Tools {
                let made = Made {
                    cache: self.cache,
                    outputs: vec![output.clone()],
                };
                let folder = made.folder(&Step::Tools)?;
                let tools = Tools::open(folder, self.order.recipe.architecture)?;
                self.tools.get_or_init(|| tools);
            }
            Ok(output)
        })?;
        Ok(Made {
            cache: self.cache,
            outputs,
        })
    }

    fn tools(&self) -> anyhow::Result<&Tools> {
        self.tools.get().context("the tools are not there yet")
    }

    fn step(
        &self,
        planned: &Planned,
        made: &Made<'_, '_>,
        out: &Path,
        bar: &edge::progress::Bar,
    ) -> anyhow::Result<()> {
        let recipe = self.order.recipe;
        let lock = self.order.lock;
        let packages = self.cache.packages();
        match &planned.step {
            Step::Lock => bail!("the lock is made before the plan"),
            Step::Tools => unpack::into_folder(&packages, lock.part(Part::Tools), out),
            Step::Packages => packages::install(&packages, recipe, lock, out),
            Step::Kernel => kernel::pick(recipe, lock, &packages, self.tools()?, out),
            Step::Initrd(system) => self.initrd(*system, made, out),
            Step::Root => {
                let inputs = root::Inputs {
                    recipe,
                    lock,
                    packages: &packages,
                    rootfs: &made.folder(&Step::Packages)?.join("rootfs.tar"),
                    kernel: made.folder(&Step::Kernel)?,
                    binaries: self.binaries,
                    trust_root: self.trust_root,
                    version: self.version,
                };
                root::compose(&inputs, self.tools()?, out)
            }
            Step::Verity => {
                let image = made.folder(&Step::Root)?.join("root");
                verity::format(&recipe.name, &image, self.tools()?, out)
            }
            Step::Uki(system) => self.uki(*system, made, out),
            Step::Component(name) => {
                let component = recipe
                    .components
                    .get(name)
                    .with_context(|| format!("component {name}: not in the recipe"))?;
                let parts = extension::Parts {
                    binaries: self.binaries,
                    lock,
                    packages: &packages,
                };
                extension::component(
                    name,
                    component,
                    &recipe.name,
                    recipe.source_date,
                    parts,
                    self.tools()?,
                    out,
                )
            }
            Step::Segments => self.segments(made, out, bar),
        }
    }

    fn initrd(&self, system: System, made: &Made<'_, '_>, out: &Path) -> anyhow::Result<()> {
        let recipe = self.order.recipe;
        let initrd = match system {
            System::Main => &recipe.initrd,
            System::Installer => &recipe.installer,
        };
        let init = initrd.init.as_ref().map(|name| initrd::Init {
            program: &self.binaries[name],
            trust_root: self.trust_root,
        });
        let kernel = made.folder(&Step::Kernel)?;
        let target = initrd::Target {
            architecture: recipe.architecture,
            mtime: recipe.source_date,
        };
        initrd::compose(initrd, init, kernel, self.tools()?, &target, out)
    }

    fn uki(&self, system: System, made: &Made<'_, '_>, out: &Path) -> anyhow::Result<()> {
        let recipe = self.order.recipe;
        let command_line = match system {
            System::Main => {
                let hash = verity::root_hash(made.folder(&Step::Verity)?)?;
                format!("roothash={hash} {}", recipe.kernel.command_line)
            }
            System::Installer => recipe.installer.command_line.clone(),
        };
        let inputs = uki::Inputs {
            kernel: made.folder(&Step::Kernel)?,
            initrd: &made.folder(&Step::Initrd(system))?.join("initrd"),
            command_line: &command_line,
            os_release: &root::os_release(recipe, self.version),
            architecture: recipe.architecture,
        };
        uki::join(&inputs, self.tools()?, out)?;
        let image = out.join("uki.efi");
        let program = std::fs::read(&image).context("read the unified kernel image")?;
        let signed = signed(self.order, program)?;
        std::fs::write(image, signed).context("write the unified kernel image")
    }

    fn segments(
        &self,
        made: &Made<'_, '_>,
        out: &Path,
        bar: &edge::progress::Bar,
    ) -> anyhow::Result<()> {
        let level = self.order.level;
        let frames = self.cache.frames(level);
        for (step, name) in [(Step::Root, "root"), (Step::Verity, "verity")] {
            let image = made.folder(&step)?.join(name);
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

/// Signs an EFI program, where the order says so.
fn signed(order: &Order<'_>, program: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    match order.secure_boot {
        Some(set) => authenticode::sign(&set.signer, &program),
        None => Ok(program),
    }
}

/// Puts the finished steps together as the release's folder.
fn assemble(
    order: &Order<'_>,
    version: ReleaseVersion,
    facts: &Facts,
    made: &Made<'_, '_>,
    tools: &Tools,
) -> anyhow::Result<Built> {
    check_overlap(order.recipe, made)?;
    let no_room = |error| {
        room::explain(
            error,
            order.out,
            "make room there or name another --out, and build again: finished steps are kept",
        )
    };
    let mut draft = release::Draft::new(order.out, version, &record(order, facts))?;
    let manifest = fill(order, version, made, tools, &mut draft).map_err(no_room)?;
    let folder = draft
        .finish(&order.signer.sign(&manifest))
        .map_err(no_room)?;
    Ok(Built { folder, manifest })
}

/// Fills the release's folder.
fn fill(
    order: &Order<'_>,
    version: ReleaseVersion,
    made: &Made<'_, '_>,
    tools: &Tools,
    draft: &mut release::Draft,
) -> anyhow::Result<ReleaseManifest> {
    let (recipe, lock) = (order.recipe, order.lock);
    let segments = made.folder(&Step::Segments)?;
    let index = |name: &str| -> anyhow::Result<SegmentedImage> {
        let bytes = std::fs::read(segments.join(name)).context("read the segment index")?;
        serde_json::from_slice(&bytes).context("read the segment index")
    };
    draft.copy(&segments.join("root.zst"), "root.zst")?;
    draft.copy(&segments.join("verity.zst"), "verity.zst")?;
    let firmware = uki::firmware_name(recipe.architecture);
    let loader = format!("systemd-boot{firmware}.efi");
    let loader_bytes = tools
        .tree()
        .read(&format!("usr/lib/systemd/boot/efi/{loader}"))?;
    let loader_bytes = signed(order, loader_bytes)?;
    let mut components = Vec::new();
    for (name, component) in &recipe.components {
        let file = format!("{name}.raw");
        let from = made.folder(&Step::Component(name.clone()))?.join(&file);
        components.push(Component {
            name: name.clone(),
            version: component.version.clone(),
            image: draft.copy(&from, &format!("components/{file}"))?,
            verity: Some(verity::appended(&from)?),
        });
    }
    let uki = |system| made.folder(&Step::Uki(system)).map(|f| f.join("uki.efi"));
    let mut manifest = ReleaseManifest {
        version,
        revision: 0,
        architecture: recipe.architecture,
        root_hash: verity::root_hash(made.folder(&Step::Verity)?)?,
        root: index("root.json")?,
        verity: index("verity.json")?,
        uki: draft.copy(&uki(System::Main)?, "leapserv.efi")?,
        boot_loader: draft.write(&loader, &loader_bytes)?,
        installer: draft.copy(&uki(System::Installer)?, "installer.efi")?,
        components,
        documents: Vec::new(),
        tries: recipe.tries,
        secure_boot: order.secure_boot.map(|set| set.ship(draft)).transpose()?,
    };
    manifest.documents = documents::write(
        &documents::Inputs {
            recipe,
            lock,
            manifest: &manifest,
            root: made.folder(&Step::Root)?,
            kernel: made.folder(&Step::Kernel)?,
            cargo_lock: order.cargo_lock,
            out: order.out,
        },
        draft,
    )?;
    Ok(manifest)
}

/// Looks at what a build would be made of.
///
/// # Errors
/// When something that the recipe names is not there.
pub fn record_of(order: &Order<'_>) -> anyhow::Result<release::BuildRecord> {
    let (facts, _) = gather(order, version(order)?, &read_trust_root(order)?)?;
    Ok(record(order, &facts))
}

/// What a build is made of, without the paths of this machine.
fn record(order: &Order<'_>, facts: &Facts) -> release::BuildRecord {
    let recipe = order.recipe;
    let folder = recipe.file.parent().unwrap_or(Path::new(""));
    let sources = facts.sources.iter().map(|(path, digest)| {
        let path = Path::new(path);
        let name = path.strip_prefix(folder).unwrap_or(path);
        (name.display().to_string(), *digest)
    });
    release::BuildRecord {
        recipe: recipe
            .file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        profiles: recipe.asked.clone(),
        level: order.level,
        programs: facts.binaries.clone(),
        sources: sources.collect(),
        trust_root: facts.trust_root,
        secure_boot: facts.secure_boot,
    }
}

/// Refuses components with files that the root or another component has: of
/// two files at one place a unit would show either.
fn check_overlap(recipe: &Recipe, made: &Made<'_, '_>) -> anyhow::Result<()> {
    let paths = |step: &Step| -> anyhow::Result<Vec<String>> {
        let file = made.folder(step)?.join("paths");
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for path in paths(&Step::Root)? {
        owners.insert(path, "the root".to_owned());
    }
    for name in recipe.components.keys() {
        let owner = format!("component {name}");
        for path in paths(&Step::Component(name.clone()))? {
            if let Some(other) = owners.insert(path.clone(), owner.clone()) {
                bail!(exit::hint(
                    exit::marked(
                        Kind::InvalidInput,
                        format!("{owner}: /{path}: overwrites a file of {other}"),
                    ),
                    "give the file another path, or take it out of one of the two",
                ));
            }
        }
    }
    Ok(())
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
