//! From recipe files to a [`Recipe`]: the chain of `extends`, the profiles on
//! top, and messages that name the place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::Architecture;
use toml::Spanned;

use super::raw::{Raw, RawFile, RawHook, Text};
use super::{FileContent, FileSpec, Hook, Place, Recipe, RecipeError, Root, nearest, parse_size};

/// Outputs that a budget may limit.
const BUDGETS: [&str; 4] = ["root", "uki", "installer", "download"];
/// Areas of Debian's archive besides `main`.
const AREAS: [&str; 3] = ["contrib", "non-free", "non-free-firmware"];

/// Reads files for [`load`]; a test reads them from memory.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> Result<String, String>;

/// Loads a recipe with all that it extends, and lays `profiles` over it in
/// their order.
///
/// # Errors
/// The first mistake that is found, with its place.
pub fn load(path: &Path, profiles: &[String], read: ReadFile<'_>) -> Result<Recipe, RecipeError> {
    let mut chain = vec![parse(path, read)?];
    while let Some(source) = chain.last()
        && let Some(base) = &source.raw.extends
    {
        let path = source.folder.join(base.get_ref());
        if let Some(round) = chain.iter().position(|source| source.path == path) {
            let names: Vec<&str> = chain[round..].iter().map(|s| s.name.as_str()).collect();
            let circle = names.join(", ");
            return Err(source.error(
                base,
                format!("extends: goes round in a circle through {circle}"),
                None,
            ));
        }
        if let Err(problem) = read(&path) {
            let problem = format!("extends: {}: {problem}", path.display());
            return Err(source.error(base, problem, None));
        }
        chain.push(parse(&path, read)?);
    }
    let top = chain[0].name.clone();
    chain.reverse();
    let mut recipe = Recipe::empty();
    recipe.file = path.to_owned();
    recipe.asked = profiles.to_vec();
    for source in &chain {
        source.apply(&source.raw, &mut recipe)?;
    }
    check_profiles(&top, &chain, profiles)?;
    for profile in profiles {
        for source in &chain {
            if let Some(raw) = source.raw.profile.get(profile) {
                source.apply(raw, &mut recipe)?;
            }
        }
    }
    recipe.components.retain(|_, component| {
        let wanted = &component.profiles;
        wanted.is_empty() || wanted.iter().any(|name| profiles.contains(name))
    });
    let named = chain.iter().any(|source| {
        let profiles = profiles
            .iter()
            .filter_map(|name| source.raw.profile.get(name));
        let mut raws = profiles.chain([&source.raw]);
        raws.any(|raw| raw.architecture.is_some())
    });
    recipe.complete(&top, named.then_some(recipe.architecture))?;
    Ok(recipe)
}

/// Refuses profiles that nothing in the recipe knows.
fn check_profiles(top: &str, chain: &[Source], asked: &[String]) -> Result<(), RecipeError> {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let mut wanted: Vec<(&Source, &Text)> = Vec::new();
    for source in chain {
        known.extend(source.raw.profile.keys().map(String::as_str));
        for component in source.raw.component.values() {
            wanted.extend(component.profiles.iter().map(|name| (source, name)));
        }
    }
    known.extend(wanted.iter().map(|(_, name)| name.get_ref().as_str()));
    for profile in asked {
        if !known.contains(profile.as_str()) {
            let hint = match nearest(profile, known.iter().copied()) {
                Some(nearest) => format!("did you mean {nearest:?}?"),
                None if known.is_empty() => "the recipe has no profiles".to_owned(),
                None => {
                    let known: Vec<&str> = known.into_iter().collect();
                    format!("expected one of {}", known.join(", "))
                }
            };
            return Err(RecipeError {
                file: top.to_owned(),
                place: Place(None),
                problem: format!("profile {profile:?}: not in the recipe"),
                hint: Some(hint),
            });
        }
    }
    Ok(())
}

/// One file of a recipe.
struct Source {
    path: PathBuf,
    name: String,
    folder: PathBuf,
    text: String,
    raw: Raw,
}

fn parse(path: &Path, read: ReadFile<'_>) -> Result<Source, RecipeError> {
    let name = path.display().to_string();
    let text = read(path).map_err(|problem| RecipeError {
        file: name.clone(),
        place: Place(None),
        problem,
        hint: None,
    })?;
    let raw: Raw = toml::from_str(&text).map_err(|error| {
        let (problem, hint) = explain(error.message());
        RecipeError {
            file: name.clone(),
            place: Place(error.span().map(|span| place(&text, span.start))),
            problem,
            hint,
        }
    })?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let source = Source {
        path: path.to_owned(),
        name,
        folder,
        text,
        raw,
    };
    for (name, profile) in &source.raw.profile {
        if let Some(extends) = &profile.extends {
            let problem = format!("profile.{name}: a profile extends its own recipe alone");
            return Err(source.error(extends, problem, None));
        }
        if !profile.profile.is_empty() {
            return Err(RecipeError {
                file: source.name.clone(),
                place: Place(None),
                problem: format!("profile.{name}: a profile has no profiles of its own"),
                hint: None,
            });
        }
    }
    Ok(source)
}

fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// Turns the parser's message into ours: an unknown key gets the nearest known one.
fn explain(message: &str) -> (String, Option<String>) {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if let (true, Some(key)) = (message.starts_with("unknown field"), quoted.next()) {
        let known: Vec<&str> = quoted.collect();
        let hint = match nearest(key, known.iter().copied()) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => format!("expected one of {}", known.join(", ")),
        };
        return (format!("unknown key {key:?}"), Some(hint));
    }
    (message.trim_end_matches('\n').replace('\n', "; "), None)
}

impl Source {
    fn error<T>(&self, at: &Spanned<T>, problem: String, hint: Option<String>) -> RecipeError {
        RecipeError {
            file: self.name.clone(),
            place: Place(Some(place(&self.text, at.span().start))),
            problem,
            hint,
        }
    }

    fn paths(&self, list: &[Text]) -> Vec<PathBuf> {
        let paths = list.iter().map(|path| self.folder.join(path.get_ref()));
        paths.collect()
    }

    /// Lays the values of `raw`, which stands in this file, over `recipe`.
    fn apply(&self, raw: &Raw, recipe: &mut Recipe) -> Result<(), RecipeError> {
        let set = |to: &mut String, from: &Option<String>| {
            if let Some(value) = from {
                to.clone_from(value);
            }
        };
        set(&mut recipe.name, &raw.name);
        set(&mut recipe.title, &raw.title);
        set(&mut recipe.suite, &raw.suite);
        if let Some(version) = &raw.version {
            let parsed = version
                .get_ref()
                .parse()
                .map_err(|error| self.error(version, format!("version: {error}"), None))?;
            recipe.version = Some(parsed);
        }
        if let Some(architecture) = &raw.architecture {
            recipe.architecture = self.architecture(architecture)?;
        }
        if let Some(date) = &raw.source_date {
            recipe.source_date = self.source_date(date)?;
        }
        recipe.tries = raw.tries.unwrap_or(recipe.tries);
        self.packages(raw, recipe)?;
        let Root {
            overlays,
            binaries,
            remove,
            keep,
            last,
        } = &mut recipe.root;
        overlays.extend(self.paths(&raw.root.overlays));
        binaries.extend_from_slice(&raw.root.binaries);
        remove.extend_from_slice(&raw.root.remove);
        keep.extend_from_slice(&raw.root.keep);
        last.extend_from_slice(&raw.root.last);
        for file in &raw.file {
            recipe.files.push(self.file(file)?);
        }
        recipe.users.extend_from_slice(&raw.user);
        recipe.units.enable.extend_from_slice(&raw.units.enable);
        recipe.units.mask.extend_from_slice(&raw.units.mask);
        for hook in &raw.hook {
            recipe.hooks.push(self.hook(hook)?);
        }
        set(&mut recipe.kernel.command_line, &raw.kernel.command_line);
        recipe.kernel.modules.extend_from_slice(&raw.kernel.modules);
        for (to, from) in [
            (&mut recipe.initrd, &raw.initrd),
            (&mut recipe.installer, &raw.installer),
        ] {
            to.overlays.extend(self.paths(&from.overlays));
            to.programs.extend_from_slice(&from.programs);
            to.modules.extend_from_slice(&from.modules);
            to.load.extend_from_slice(&from.load);
            to.init = from.init.clone().or(to.init.take());
            set(&mut to.command_line, &from.command_line);
        }
        for (name, from) in &raw.component {
            let to = recipe.components.entry(name.clone()).or_default();
            set(&mut to.version, &from.version);
            to.binaries.extend_from_slice(&from.binaries);
            to.overlays.extend(self.paths(&from.overlays));
            let profiles = from.profiles.iter().map(|name| name.get_ref().clone());
            to.profiles.extend(profiles);
        }
        self.budget(raw, recipe)
    }

    /// Takes the names of packages, and where they stand.
    fn packages(&self, raw: &Raw, recipe: &mut Recipe) -> Result<(), RecipeError> {
        for area in &raw.packages.areas {
            self.one_of("area", area, &AREAS)?;
            recipe.packages.areas.push(area.get_ref().clone());
        }
        recipe.firmware.files.extend_from_slice(&raw.firmware.files);
        let places = &mut recipe.places;
        let mut take = |to: &mut Vec<String>, from: &[Text]| {
            for package in from {
                self.check_package(package)?;
                let (line, column) = place(&self.text, package.span().start);
                let place = format!("{}:{line}:{column}", self.name);
                places.insert(package.get_ref().clone(), place);
                to.push(package.get_ref().clone());
            }
            Ok::<(), RecipeError>(())
        };
        let packages = &mut recipe.packages;
        take(&mut packages.install, &raw.packages.install)?;
        take(&mut packages.unpack, &raw.packages.unpack)?;
        take(&mut packages.drop, &raw.packages.drop)?;
        take(&mut packages.tools, &raw.packages.tools)?;
        take(&mut recipe.firmware.packages, &raw.firmware.packages)?;
        for (name, component) in &raw.component {
            let to = recipe.components.entry(name.clone()).or_default();
            take(&mut to.packages, &component.packages)?;
        }
        if let Some(package) = &raw.kernel.package {
            let mut one = Vec::new();
            take(&mut one, std::slice::from_ref(package))?;
            recipe.kernel.package.clone_from(package.get_ref());
        }
        Ok(())
    }

    fn budget(&self, raw: &Raw, recipe: &mut Recipe) -> Result<(), RecipeError> {
        for (output, limit) in &raw.budget {
            if !BUDGETS.contains(&output.as_str()) {
                let hint = nearest(output, BUDGETS.into_iter())
                    .map(|known| format!("did you mean {known:?}?"));
                let problem = format!("budget: unknown output {output:?}");
                return Err(self.error(limit, problem, hint));
            }
            let Some(bytes) = parse_size(limit.get_ref()) else {
                let problem = format!("budget.{output}: {:?} is not a size", limit.get_ref());
                let hint = "write it like \"250M\"".to_owned();
                return Err(self.error(limit, problem, Some(hint)));
            };
            recipe.budget.insert(output.clone(), bytes);
        }
        Ok(())
    }

    fn one_of(&self, key: &str, value: &Text, known: &[&str]) -> Result<(), RecipeError> {
        if known.contains(&value.get_ref().as_str()) {
            return Ok(());
        }
        let hint = format!("expected one of {}", known.join(", "));
        Err(self.error(value, format!("{key}: {:?}", value.get_ref()), Some(hint)))
    }

    fn architecture(&self, text: &Text) -> Result<Architecture, RecipeError> {
        self.one_of(
            "architecture",
            text,
            &Architecture::ALL.map(Architecture::name),
        )?;
        let parsed = text.get_ref().parse();
        parsed.map_err(|error| self.error(text, format!("{error}"), None))
    }

    fn source_date(&self, date: &Text) -> Result<u32, RecipeError> {
        let bad = |problem: String| {
            let hint = "write it like \"2026-11-01T00:00:00Z\"".to_owned();
            self.error(date, format!("source-date: {problem}"), Some(hint))
        };
        let time: Timestamp = date
            .get_ref()
            .parse()
            .map_err(|error: jiff::Error| bad(error.to_string()))?;
        u32::try_from(time.as_second()).map_err(|_| bad("expected a time after 1970".to_owned()))
    }

    fn check_package(&self, package: &Text) -> Result<(), RecipeError> {
        let name = package.get_ref();
        let fits = name.len() > 1
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
        if fits {
            return Ok(());
        }
        let problem = format!("package {name:?}: expected a Debian package's name");
        Err(self.error(package, problem, None))
    }

    fn file(&self, file: &Spanned<RawFile>) -> Result<FileSpec, RecipeError> {
        let bad = |problem: &str| self.error(file, format!("file: {problem}"), None);
        let RawFile {
            path,
            mode,
            text,
            source,
            link,
            directory,
        } = file.get_ref();
        if !path.starts_with('/') || path.ends_with('/') || path.split('/').any(|p| p == "..") {
            return Err(bad(&format!(
                "path {path:?}: expected an absolute path of a file"
            )));
        }
        let content = match (text, source, link, directory) {
            (Some(text), None, None, false) => FileContent::Text(text.clone()),
            (None, Some(source), None, false) => FileContent::Source(self.folder.join(source)),
            (None, None, Some(link), false) => FileContent::Link(link.clone()),
            (None, None, None, true) => FileContent::Directory,
            _ => return Err(bad("expected exactly one of text, source, link, directory")),
        };
        let default = if *directory { 0o755 } else { 0o644 };
        let mode = match mode {
            None => default,
            Some(mode) => u32::from_str_radix(mode, 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| bad(&format!("mode {mode:?}: expected it like \"0755\"")))?,
        };
        Ok(FileSpec {
            path: path.clone(),
            mode,
            content,
        })
    }

    fn hook(&self, hook: &Spanned<RawHook>) -> Result<Hook, RecipeError> {
        let RawHook { name, run, inputs } = hook.get_ref();
        if name.is_empty() || run.is_empty() {
            let problem = "hook: expected name and run".to_owned();
            return Err(self.error(hook, problem, None));
        }
        Ok(Hook {
            name: name.clone(),
            run: self.folder.join(run),
            inputs: inputs.iter().map(|path| self.folder.join(path)).collect(),
        })
    }
}
