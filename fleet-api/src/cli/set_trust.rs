//! `leap-fleet set-trust`: whom the sky believes.

use std::path::PathBuf;

use anyhow::anyhow;
use edge::durable::{self, Mode};
use edge::exit::{Classify as _, Failure, Kind};

use crate::place::{Place, read_trust_root};

/// Set the trust root; a running sky takes it up when it is restarted
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The sky's folder
    dir: PathBuf,
    /// The trust root, made by `leapctl keys init`
    trust_root: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let place = Place::new(&args.dir);
    let trust = read_trust_root(&args.trust_root)?;
    place.check_trust(&trust, &place.timestamp_key()?)?;
    let path = place.trust_root_file();
    if path.exists() {
        let known = read_trust_root(&path)?;
        if trust.version < known.version || (trust.version == known.version && trust != known) {
            return Err(Failure::new(
                Kind::Refused,
                anyhow!(
                    "trust root: version {} where more than {} is expected",
                    trust.version,
                    known.version
                ),
            ));
        }
    }
    durable::write_json(&path, &trust, Mode::Public).environment()?;
    edge::out::line(format_args!(
        "trust root version {} set in {}",
        trust.version,
        args.dir.display()
    ));
    Ok(())
}
