//! The plan of a build: its steps, and for each the key of its inputs.
//!
//! Pure: the recipe, the lock and the digests of all files come in, and no
//! disk, socket or clock is touched. Two builds whose step has the same key
//! get the same output, so a step whose key is in the cache is not run.

use std::collections::BTreeMap;
use std::fmt;

use model::{Digest, ReleaseVersion};

use crate::lock::{self, Lock, Part};
use crate::recipe::{FileContent, Initrd, Recipe};

/// Which initrd or unified kernel image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// The operating system.
    Main,
    /// The installer.
    Installer,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Installer => "installer",
        })
    }
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Resolves the recipe's packages.
    Lock,
    /// Unpacks the build's tools.
    Tools,
    /// Installs the root's packages.
    Packages,
    /// Picks the kernel and its modules.
    Kernel,
    /// Composes an initrd.
    Initrd(System),
    /// Composes the root file system.
    Root,
    /// Makes the root's hash tree.
    Verity,
    /// Joins stub, kernel, initrd and command line.
    Uki(System),
    /// Composes a component's system extension.
    Component(String),
    /// Cuts root and hash tree into compressed segments.
    Segments,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock => f.write_str("lock"),
            Self::Tools => f.write_str("tools"),
            Self::Packages => f.write_str("packages"),
            Self::Kernel => f.write_str("kernel"),
            Self::Initrd(system) => write!(f, "initrd-{system}"),
            Self::Root => f.write_str("root"),
            Self::Verity => f.write_str("verity"),
            Self::Uki(system) => write!(f, "uki-{system}"),
            Self::Component(name) => write!(f, "component-{name}"),
            Self::Segments => f.write_str("segments"),
        }
    }
}

/// What the plan has to know of the world.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The packages.
    pub lock: Lock,
    /// The release's version.
    pub version: ReleaseVersion,
    /// SHA-256 of each of our programs, by name.
    pub binaries: BTreeMap<String, Digest>,
    /// SHA-256 of each overlay folder and source file: of its paths, modes and contents.
    pub sources: BTreeMap<String, Digest>,
    /// SHA-256 of the trust root.
    pub trust_root: Digest,
    /// SHA-256 of the certificate that kernel images are signed with, when they are.
    pub secure_boot: Option<Digest>,
    /// Compression level of the segments.
    pub level: i32,
}

/// A step with the key of its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The step.
    pub step: Step,
    /// Digest of all that its output depends on.
    pub key: Digest,
    /// The steps whose outputs it reads; they come before it in the plan.
    pub needs: Vec<Step>,
}

/// The steps of a build in the order to run them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Planned>,
}

impl Plan {
    /// Returns the steps in order.
    pub fn steps(&self) -> &[Planned] {
        &self.steps
    }
}

/// The first 16 hexadecimal digits of a key: enough for a folder's name.
pub fn short(key: &Digest) -> String {
    key.to_string()[..16].to_owned()
}

/// The source texts that decide what a step makes of its inputs. They are
/// part of its key, so that a changed program never trusts an output of its
/// former self.
fn code(step: &Step) -> &'static [&'static str] {
    match step {
        Step::Lock => &[
            include_str!("lock.rs"),
            include_str!("control.rs"),
            include_str!("steps/packages.rs"),
        ],
        Step::Tools => &[include_str!("steps/unpack.rs")],
        Step::Packages => &[include_str!("steps/packages.rs")],
        Step::Kernel => &[include_str!("steps/kernel.rs")],
        Step::Initrd(_) => &[
            include_str!("steps/initrd.rs"),
            include_str!("steps/kernel.rs"),
            include_str!("tools.rs"),
            include_str!("tree.rs"),
            include_str!("cpio.rs"),
        ],
        Step::Root => &[
            include_str!("steps/root.rs"),
            include_str!("steps/hook.rs"),
            include_str!("owners.rs"),
            include_str!("steps/extension.rs"),
            include_str!("tree.rs"),
        ],
        Step::Verity => &[include_str!("steps/verity.rs")],
        Step::Uki(_) => &[include_str!("steps/uki.rs"), include_str!("uki.rs")],
        Step::Component(_) => &[
            include_str!("steps/extension.rs"),
            include_str!("steps/verity.rs"),
            include_str!("tree.rs"),
        ],
        Step::Segments => &[include_str!("segment.rs")],
    }
}

/// Rises when the cache keeps finished steps in another way.
const CACHE_FORMAT: u64 = 2;

/// Collects a step's inputs. Every field has its length in front, so that no
/// two different lists of fields give the same bytes.
struct Key(Vec<u8>);

impl Key {
    fn new(step: &Step) -> Self {
        let mut key = Self(Vec::new());
        key.number(CACHE_FORMAT);
        key.text(&step.to_string());
        key.list(code(step));
        key
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn list<T: AsRef<str>>(&mut self, list: &[T]) {
        self.0.extend_from_slice(&(list.len() as u64).to_le_bytes());
        for item in list {
            self.text(item.as_ref());
        }
    }

    fn digest(&mut self, digest: &Digest) {
        self.0.extend_from_slice(digest.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn packages(&mut self, lock: &Lock, part: Part) {
        for package in lock.part(part) {
            self.text(&package.file_name());
            self.digest(&package.sha256);
        }
    }

    fn finish(self) -> Digest {
        Digest::of(&self.0)
    }
}

/// Plans the resolving of a recipe's packages against indexes with this digest.
pub fn lock(recipe: &Recipe, index: &Digest) -> Planned {
    let step = Step::Lock;
    let mut key = Key::new(&step);
    key.digest(index);
    key.digest(&lock::wishes(recipe));
    Planned {
        step,
        key: key.finish(),
        needs: Vec::new(),
    }
}

/// Plans the unpacking of the build's tools.
pub fn tools(lock: &Lock) -> Planned {
    let step = Step::Tools;
    let mut key = Key::new(&step);
    key.packages(lock, Part::Tools);
    Planned {
        step,
        key: key.finish(),
        needs: Vec::new(),
    }
}

/// Something that the recipe names and that was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: named by the recipe, and not found")]
pub struct Missing(pub String);

/// Makes the plan of a release.
///
/// # Errors
/// [`Missing`] when `facts` lack a file that the recipe names.
pub fn plan(recipe: &Recipe, facts: &Facts) -> Result<Plan, Missing> {
    let lock = &facts.lock;
    let mut plan = Plan { steps: Vec::new() };
    let binary = |name: &String| {
        let found = facts.binaries.get(name).copied();
        found.ok_or_else(|| Missing(format!("program {name}")))
    };
    let source = |path: &std::path::Path| {
        let name = path.display().to_string();
        let found = facts.sources.get(&name).copied();
        found.ok_or(Missing(name))
    };

    let planned = self::tools(lock);
    let tools = planned.key;
    plan.steps.push(planned);
    let mut add = |step: Step, key: Key, needs: &[Step]| {
        let key = key.finish();
        let needs = needs.to_vec();
        plan.steps.push(Planned { step, key, needs });
        key
    };

    let mut key = Key::new(&Step::Packages);
    key.text(&lock.suite);
    key.text(lock.architecture.name());
    key.number(u64::from(recipe.source_date));
    key.list(&recipe.packages.install);
    key.packages(lock, Part::Root);
    let packages = add(Step::Packages, key, &[]);

    let mut key = Key::new(&Step::Kernel);
    key.digest(&tools);
    key.packages(lock, Part::Kernel);
    key.list(&recipe.kernel.modules);
    key.list(&recipe.initrd.modules);
    key.list(&recipe.installer.modules);
    let kernel = add(Step::Kernel, key, &[Step::Tools]);

    let mut initrds = Vec::new();
    for (system, initrd) in systems(recipe) {
        let step = Step::Initrd(system);
        let mut key = Key::new(&step);
        key.digest(&tools);
        key.digest(&kernel);
        key.number(u64::from(recipe.source_date));
        key.list(&initrd.programs);
        key.list(&initrd.modules);
        key.list(&initrd.load);
        for overlay in &initrd.overlays {
            key.digest(&source(overlay)?);
        }
        if let Some(init) = &initrd.init {
            key.digest(&binary(init)?);
            key.digest(&facts.trust_root);
        }
        initrds.push((system, initrd, add(step, key, &[Step::Tools, Step::Kernel])));
    }

    let mut key = Key::new(&Step::Root);
    key.digest(&tools);
    key.digest(&packages);
    key.digest(&kernel);
    key.digest(&facts.trust_root);
    key.number(u64::from(recipe.source_date));
    key.text(&recipe.name);
    key.text(&recipe.title);
    key.text(&facts.version.to_string());
    key.packages(lock, Part::Unpacked);
    key.packages(lock, Part::Firmware);
    key.list(&recipe.firmware.files);
    key.list(&recipe.packages.drop);
    key.list(&recipe.kernel.modules);
    for list in [&recipe.root.remove, &recipe.root.keep, &recipe.root.last] {
        key.list(list);
    }
    for overlay in &recipe.root.overlays {
        key.digest(&source(overlay)?);
    }
    for name in &recipe.root.binaries {
        key.text(name);
        key.digest(&binary(name)?);
    }
    for file in &recipe.files {
        key.text(&file.path);
        key.number(u64::from(file.mode));
        match &file.content {
            FileContent::Text(text) => key.list(&["text", text]),
            FileContent::Link(target) => key.list(&["link", target]),
            FileContent::Directory => key.list(&["directory"]),
            FileContent::Source(path) => key.digest(&source(path)?),
        }
    }
    for hook in &recipe.hooks {
        key.text(&hook.name);
        for path in hook.inputs.iter().chain([&hook.run]) {
            key.digest(&source(path)?);
        }
    }
    for user in &recipe.users {
        key.list(&[&user.name, &user.home, &user.shell]);
        key.number(u64::from(user.id));
    }
    key.list(&recipe.units.enable);
    key.list(&recipe.units.mask);
    let needs = [Step::Tools, Step::Packages, Step::Kernel];
    let root = add(Step::Root, key, &needs);

    let mut key = Key::new(&Step::Verity);
    key.digest(&tools);
    key.digest(&root);
    let verity = add(Step::Verity, key, &[Step::Tools, Step::Root]);

    for (system, initrd, initrd_key) in initrds {
        let step = Step::Uki(system);
        let mut key = Key::new(&step);
        key.digest(&tools);
        key.digest(&kernel);
        key.digest(&initrd_key);
        key.text(&recipe.name);
        key.text(&recipe.title);
        key.text(&facts.version.to_string());
        let mut needs = vec![Step::Tools, Step::Kernel, Step::Initrd(system)];
        match system {
            System::Main => {
                key.digest(&verity);
                key.text(&recipe.kernel.command_line);
                needs.push(Step::Verity);
            }
            System::Installer => key.text(&initrd.command_line),
        }
        if let Some(certificate) = &facts.secure_boot {
            key.list(crate::signing::CODE);
            key.digest(certificate);
        }
        add(step, key, &needs);
    }

    for (name, component) in &recipe.components {
        let step = Step::Component(name.clone());
        let mut key = Key::new(&step);
        key.digest(&tools);
        key.number(u64::from(recipe.source_date));
        key.list(&[&recipe.name, &component.version]);
        key.packages(lock, Part::Component(name.clone()));
        for name in &component.binaries {
            key.text(name);
            key.digest(&binary(name)?);
        }
        for overlay in &component.overlays {
            key.digest(&source(overlay)?);
        }
        add(step, key, &[Step::Tools]);
    }

    let mut key = Key::new(&Step::Segments);
    key.digest(&root);
    key.digest(&verity);
    key.text(&facts.level.to_string());
    add(Step::Segments, key, &[Step::Root, Step::Verity]);
    Ok(plan)
}

fn systems(recipe: &Recipe) -> [(System, &Initrd); 2] {
    [
        (System::Main, &recipe.initrd),
        (System::Installer, &recipe.installer),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const RECIPE: &str = r#"
name = "leapserv"
architecture = "amd64"
suite = "trixie"
source-date = "2026-11-01T00:00:00Z"
[packages]
install = ["systemd"]
tools = ["erofs-utils"]
[root]
binaries = ["leap-updater"]
[kernel]
package = "linux-image-amd64"
[installer]
init = "leap-installer"
[component.backup]
version = "0.1.0"
binaries = ["leap-backup"]
"#;

    fn recipe(more: &str) -> Recipe {
        let text = format!("{RECIPE}{more}");
        crate::recipe::load(Path::new("r.toml"), &[], &|_| Ok(text.clone())).unwrap()
    }

    fn facts(version: &str) -> Facts {
        let binary = |name: &str| (name.to_owned(), Digest::of(name.as_bytes()));
        Facts {
            lock: Lock::of(&recipe(""), Vec::new()),
            version: version.parse().unwrap(),
            binaries: ["leap-updater", "leap-installer", "leap-backup"]
                .map(binary)
                .into(),
            sources: BTreeMap::new(),
            trust_root: Digest::of(b"trust"),
            secure_boot: None,
            level: 10,
        }
    }

    /// The steps whose keys differ.
    fn changed(a: &Plan, b: &Plan) -> Vec<String> {
        let pairs = a.steps().iter().zip(b.steps());
        pairs
            .filter(|(a, b)| a.key != b.key)
            .map(|(a, _)| a.step.to_string())
            .collect()
    }

    /// Steps with what they read, and the beginnings of their keys without the
    /// part that stands for our own source texts.
    fn text(plan: &Plan) -> String {
        let lines = plan.steps().iter().map(|planned| {
            let needs: Vec<String> = planned.needs.iter().map(Step::to_string).collect();
            format!("{}: {}\n", planned.step, needs.join(" ")).replace(": \n", "\n")
        });
        lines.collect()
    }

    #[test]
    fn the_plans_of_both_architectures_are_the_golden_ones() {
        for (architecture, golden) in [
            ("amd64", include_str!("plan.amd64.golden")),
            ("arm64", include_str!("plan.arm64.golden")),
        ] {
            let text = RECIPE.replace("amd64", architecture);
            let recipe = crate::recipe::load(Path::new("r.toml"), &[], &|_| Ok(text.clone()));
            let plan = plan(&recipe.unwrap(), &facts("2026.11.1")).unwrap();
            assert_eq!(self::text(&plan), golden, "{architecture}");
        }
    }

    #[test]
    fn a_step_comes_after_all_that_it_needs() {
        let plan = plan(&recipe(""), &facts("2026.11.1")).unwrap();
        for (place, planned) in plan.steps().iter().enumerate() {
            for need in &planned.needs {
                let before = plan.steps()[..place].iter().any(|p| p.step == *need);
                assert!(before, "{} needs {need}", planned.step);
            }
        }
        // Pure: the same facts give the same keys.
        assert_eq!(plan, super::plan(&recipe(""), &facts("2026.11.1")).unwrap());
    }

    #[test]
    fn another_version_touches_no_packages_kernel_initrd_or_component() {
        let recipe = recipe("");
        let a = plan(&recipe, &facts("2026.11.1")).unwrap();
        let b = plan(&recipe, &facts("2026.11.2")).unwrap();
        assert_eq!(
            changed(&a, &b),
            ["root", "verity", "uki-main", "uki-installer", "segments"]
        );
    }

    #[test]
    fn another_backup_program_touches_its_component_alone() {
        let recipe = recipe("");
        let a = plan(&recipe, &facts("2026.11.1")).unwrap();
        let mut facts = facts("2026.11.1");
        facts
            .binaries
            .insert("leap-backup".into(), Digest::of(b"new"));
        let b = plan(&recipe, &facts).unwrap();
        assert_eq!(changed(&a, &b), ["component-backup"]);
    }

    #[test]
    fn an_extra_file_touches_the_root_and_what_is_made_of_it() {
        let a = plan(&recipe(""), &facts("2026.11.1")).unwrap();
        let more = "[[file]]\npath = \"/usr/lib/leapserv/health.d/90-refuse\"\ntext = \"x\"\n";
        let b = plan(&recipe(more), &facts("2026.11.1")).unwrap();
        assert_eq!(changed(&a, &b), ["root", "verity", "uki-main", "segments"]);
    }

    #[test]
    fn another_secure_boot_key_touches_what_the_firmware_starts_alone() {
        let signed_by = |key: &[u8]| Facts {
            secure_boot: Some(Digest::of(key)),
            ..facts("2026.11.1")
        };
        let unsigned = plan(&recipe(""), &facts("2026.11.1")).unwrap();
        let one = plan(&recipe(""), &signed_by(b"one")).unwrap();
        let two = plan(&recipe(""), &signed_by(b"two")).unwrap();
        for (a, b) in [(&unsigned, &one), (&one, &two)] {
            assert_eq!(changed(a, b), ["uki-main", "uki-installer"]);
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let mut facts = facts("2026.11.1");
        facts.binaries.remove("leap-updater");
        assert_eq!(
            plan(&recipe(""), &facts),
            Err(Missing("program leap-updater".into()))
        );
    }
}
