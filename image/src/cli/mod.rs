//! The command line: one file for each subcommand.

mod build;
mod check;
mod compose;
mod inspect;
mod layer;

use std::path::Path;

use clap::{Parser, Subcommand};
use edge::exit::{self, Failure, Kind};
use model::{Signer, TrustRoot};

use crate::recipe::{self, Recipe};

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
    Build(build::Args),
    Layer(layer::Args),
    Compose(compose::Args),
    Inspect(inspect::Args),
    Check(check::Args),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What stopped it, with its exit code.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Build(args) => args.run(),
            Command::Layer(args) => args.run(),
            Command::Compose(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Check(args) => args.run(),
        }
    }
}

/// Loads a recipe from disk.
fn load_recipe(path: &Path) -> Result<Recipe, Failure> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("read the recipe: {error}"))
    };
    recipe::load(path, &read).map_err(|error| {
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
