//! `leap-image lock`

use std::path::{Path, PathBuf};

use edge::exit::{self, Failure, Kind};
use edge::{durable, out};
use serde::Serialize;

use super::{CacheArgs, RecipeArgs};
use crate::build;
use crate::changelog;
use crate::lock::{self, Change, Lock};
use crate::recipe::Recipe;
use crate::report::Report;
use crate::steps::packages::Indexes;

/// Resolve a recipe's packages and write the lock file
///
/// The lock names package, version, architecture, SHA-256 and suite, and never
/// a mirror. A build takes exactly what the lock says.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// The lock file; beside the recipe with the suffix .lock when not given
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Ask the mirrors for new versions, and show what changes with the heads of changelogs
    #[arg(long)]
    update: bool,
    /// Show what would change and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    lock: PathBuf,
    packages: usize,
    written: bool,
    changes: Vec<Told>,
}

/// A change with what the package's maintainer says about it.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    change: Change,
    changelog: Vec<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = self.recipe.load()?;
        let path = place(&self.recipe.recipe, self.lock.as_deref());
        let before = read_if_there(&path)?;
        if let (Some(lock), false) = (&before, self.update)
            && lock.fits(&recipe).is_ok()
        {
            self.tell(&path, lock, Vec::new(), false);
            return Ok(());
        }
        let (cache, mirrors) = (self.cache.open()?, self.cache.mirrors()?);
        let report = Report::new();
        let indexes = if self.update {
            Indexes::Fresh
        } else {
            Indexes::Cached
        };
        let now = build::resolve(&recipe, &mirrors, indexes, &cache, &report)?;
        let changes = match &before {
            Some(before) => {
                // Their changelogs lie in the new packages, which a build needs anyhow.
                build::fetch(&recipe, &now, &mirrors, &cache, &report)?;
                told(before, &now, &cache.packages())?
            }
            None => Vec::new(),
        };
        let written = !self.dry_run && before.as_ref() != Some(&now);
        if written {
            durable::write(&path, now.to_json().as_bytes(), durable::Mode::Public)?;
        }
        self.tell(&path, &now, changes, written);
        Ok(())
    }

    fn tell(&self, path: &Path, lock: &Lock, changes: Vec<Told>, written: bool) {
        if self.json {
            out::json(&Answer {
                lock: path.to_owned(),
                packages: lock.packages.len(),
                written,
                changes,
            });
            return;
        }
        for told in &changes {
            out::line(line(&told.change));
            for entry in &told.changelog {
                out::line(format_args!("      {entry}"));
            }
        }
        let security = changes.iter().filter(|told| told.change.security).count();
        let changed = match (changes.len(), written) {
            (0, true) => "written".to_owned(),
            (0, false) => "up to date".to_owned(),
            (count, _) => format!(
                "{count} changed, {security} of them security fixes{}",
                if written { "" } else { "; not written" }
            ),
        };
        out::line(format_args!(
            "{}: {} packages of {}, {changed}",
            path.display(),
            lock.packages.len(),
            lock.suite
        ));
    }
}

fn line(change: &Change) -> String {
    let Change {
        package,
        from,
        to,
        security,
        ..
    } = change;
    let mark = if *security { "  SECURITY" } else { "" };
    match (from, to) {
        (Some(from), Some(to)) => format!("  {package} {from} -> {to}{mark}"),
        (None, Some(to)) => format!("+ {package} {to}{mark}"),
        (Some(from), None) => format!("- {package} {from}"),
        (None, None) => format!("  {package}"),
    }
}

fn told(before: &Lock, now: &Lock, packages: &Path) -> anyhow::Result<Vec<Told>> {
    let changes = lock::changes(before, now).into_iter();
    changes
        .map(|change| {
            let changelog = match (&change.from, &change.to) {
                (Some(from), Some(to)) => {
                    let package = now.packages.iter().find(|p| {
                        (&p.package, &p.architecture, &p.version)
                            == (&change.package, &change.architecture, to)
                    });
                    match package {
                        Some(package) => changelog::since(packages, package, from)?,
                        None => Vec::new(),
                    }
                }
                _ => Vec::new(),
            };
            Ok(Told { change, changelog })
        })
        .collect()
}

/// Where a recipe's lock is: where `--lock` says, or beside the recipe.
pub(super) fn place(recipe: &Path, lock: Option<&Path>) -> PathBuf {
    lock.map_or_else(|| recipe.with_extension("lock"), Path::to_owned)
}

/// Reads a lock file, if there is one.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Lock>, Failure> {
    let invalid = |problem: String| {
        let problem = format!("lock {}: {problem}", path.display());
        Failure::new(Kind::InvalidInput, anyhow::anyhow!(problem))
    };
    match std::fs::read_to_string(path) {
        Ok(text) => match Lock::parse(&text) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) => Err(invalid(error.to_string())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(invalid(error.to_string())),
    }
}

/// Reads the lock of a recipe that is to be built.
///
/// # Errors
/// There is none, or it was made for other packages.
pub(super) fn fitting(path: &Path, recipe: &Recipe) -> Result<Lock, Failure> {
    let refused = |problem: String| {
        let error = exit::marked(Kind::InvalidInput, problem);
        let hint = "run leap-image lock with the same recipe, profiles and --lock";
        Failure::new(Kind::InvalidInput, exit::hint(error, hint))
    };
    let Some(lock) = read_if_there(path)? else {
        return Err(refused(format!("lock {}: there is none", path.display())));
    };
    lock.fits(recipe)
        .map_err(|error| refused(format!("lock {}: {error}", path.display())))?;
    Ok(lock)
}
