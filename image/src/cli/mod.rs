//! The command line: one file for each subcommand.

mod boot;
mod build;
mod check;
mod compose;
mod diff;
mod fetch;
mod inspect;
mod keys;
mod layer;
mod lock;
mod revision;
mod schema;
mod serve;
mod sign;
mod sizes;
mod stock;
mod verify;
mod which;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use edge::exit::{self, Failure, Kind};
use model::{Signer, TrustRoot};

use crate::cache::Cache;
use crate::recipe::{self, Recipe};
use crate::signing::key::KeyPlace;
use crate::sources::Mirrors;
use crate::steps::packages::host_mirrors;

/// Build LeapServ releases and compose disk images
#[derive(Debug, Parser)]
#[command(name = "leap-image", version)]
pub struct Cli {
    /// Say more on standard error; twice for even more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Schema(schema::Args),
    Lock(lock::Args),
    Fetch(fetch::Args),
    Build(build::Args),
    Verify(verify::Args),
    Component(revision::Args),
    Layer(layer::Args),
    Compose(compose::Args),
    Serve(serve::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Sizes(sizes::Args),
    Which(which::Args),
    Keys(keys::Args),
    Sign(sign::Args),
    Boot(boot::Args),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What stopped it, with its exit code.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Check(args) => args.run(),
            Command::Schema(args) => args.run(),
            Command::Lock(args) => args.run(),
            Command::Fetch(args) => args.run(),
            Command::Build(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Component(args) => args.run(),
            Command::Layer(args) => args.run(),
            Command::Compose(args) => args.run(),
            Command::Serve(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Diff(args) => args.run(),
            Command::Sizes(args) => args.run(),
            Command::Which(args) => args.run(),
            Command::Keys(args) => args.run(),
            Command::Sign(args) => args.run(),
            Command::Boot(args) => args.run(),
        }
    }
}

/// A recipe and its variants.
#[derive(Debug, Clone, clap::Args)]
struct RecipeArgs {
    /// The recipe
    recipe: PathBuf,
    /// Lay this profile of the recipe over it; may be given several times
    #[arg(long = "profile", value_name = "NAME")]
    profiles: Vec<String>,
}

impl RecipeArgs {
    fn load(&self) -> Result<Recipe, Failure> {
        load_profiles(&self.recipe, &self.profiles)
    }
}

/// Where downloaded packages and finished steps are, and where packages come from.
#[derive(Debug, Clone, clap::Args)]
struct CacheArgs {
    /// Folder for downloaded packages and finished steps; leap-image below the
    /// user's cache folder when not given
    #[arg(long, value_name = "DIR", env = "LEAP_IMAGE_CACHE")]
    cache: Option<PathBuf>,
    /// Debian mirror, instead of those of this machine's apt
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Folder of the keyrings that sign the mirror's indexes, instead of Debian's
    #[arg(long, value_name = "DIR")]
    keyrings: Option<PathBuf>,
}

impl CacheArgs {
    fn open(&self) -> Result<Cache, Failure> {
        let folder = match &self.cache {
            Some(folder) => folder.clone(),
            None => user_cache()?.join("leap-image"),
        };
        Ok(Cache::open(&folder)?)
    }

    fn mirrors(&self) -> anyhow::Result<Mirrors> {
        let mut mirrors = match &self.mirror {
            Some(address) => Mirrors::from_address(address),
            None => host_mirrors()?,
        };
        mirrors.keyrings.clone_from(&self.keyrings);
        Ok(mirrors)
    }
}

/// The user's folder for caches (XDG Base Directory Specification).
fn user_cache() -> anyhow::Result<PathBuf> {
    let folder = |name: &str| {
        let value = std::env::var_os(name).map(PathBuf::from);
        value.filter(|path| path.is_absolute())
    };
    folder("XDG_CACHE_HOME")
        .or_else(|| Some(folder("HOME")?.join(".cache")))
        .context("no folder for the cache: HOME is not set; name one with --cache")
}

/// The folder of the running program: our programs lie beside each other.
fn own_folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("find the running program")?;
    let folder = program.parent().context("find the running program")?;
    Ok(folder.to_owned())
}

/// Loads a recipe from disk.
fn load_recipe(path: &Path) -> Result<Recipe, Failure> {
    load_profiles(path, &[])
}

fn load_profiles(path: &Path, profiles: &[String]) -> Result<Recipe, Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("read the recipe: {error}"))
    };
    recipe::load(path, profiles, &read).map_err(|error| {
        let marked = exit::marked(Kind::InvalidInput, &error);
        Failure::new(
            Kind::InvalidInput,
            match error.hint() {
                Some(hint) => exit::hint(marked, hint),
                None => marked,
            },
        )
    })
}

/// Reads a trust root.
fn read_trust_root(path: &Path) -> Result<TrustRoot, Failure> {
    let invalid = |problem: String| {
        Failure::new(
            Kind::InvalidInput,
            anyhow::anyhow!("trust root {}: {problem}", path.display()),
        )
    };
    let bytes = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))
}

/// Reads where a key is. Not clap's business: its messages repeat what they refuse, and
/// that may be a PIN.
fn key_place(text: Option<&str>) -> Result<Option<KeyPlace>, Failure> {
    let place = text.map(str::parse::<KeyPlace>).transpose();
    place.map_err(|error| {
        let error = anyhow::Error::new(error).context("where the key is");
        Failure::new(Kind::Usage, error)
    })
}

/// Reads a private signing key.
fn read_key(path: &Path) -> Result<Signer, Failure> {
    let invalid = |problem: String| {
        Failure::new(
            Kind::InvalidInput,
            anyhow::anyhow!("signing key {}: {problem}", path.display()),
        )
    };
    let pem = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    Signer::from_pem(&pem).map_err(|error| invalid(error.to_string()))
}
