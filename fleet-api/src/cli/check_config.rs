//! `leap-fleet check-config`: what `run` would refuse, without running.

use std::path::PathBuf;

use edge::exit::Failure;

use crate::config::Config;
use crate::place::Place;

/// Check a configuration and the files that it names
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, default_value = "fleet.toml")]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let config = Config::read(&args.config)?;
    let place = Place::new(&config.data);
    let trust = place.trust_root()?;
    place.check_trust(&trust, &place.timestamp_key()?)?;
    place.authority()?;
    for path in [place.server_certificate(), place.server_key()] {
        place.text(&path)?;
    }
    edge::out::line(format_args!("{}: good", args.config.display()));
    Ok(())
}
