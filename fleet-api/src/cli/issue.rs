//! `leap-fleet issue`: a server certificate for another of our servers.

use std::path::PathBuf;

use edge::durable::{self, Mode};
use edge::exit::{Classify as _, Failure};

use super::host::Hosts;
use crate::place::Place;

/// Issue a server certificate, for a vault
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The sky's folder
    #[arg(long)]
    dir: PathBuf,
    #[command(flatten)]
    hosts: Hosts,
    /// Folder for server.crt, server.key and ca.crt
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let authority = Place::new(&args.dir).authority()?;
    let names = args.hosts.all();
    let (certificate, key) = authority
        .server_certificate(&names, edge::clock::now())
        .usage()?;
    let files = [
        ("ca.crt", authority.certificate(), Mode::Public),
        ("server.key", &key, Mode::Secret),
        ("server.crt", &certificate, Mode::Public),
    ];
    for (name, text, mode) in files {
        durable::write(&args.out.join(name), text.as_bytes(), mode).environment()?;
    }
    edge::out::line(format_args!(
        "issued a certificate for {} in {}",
        names.join(", "),
        args.out.display()
    ));
    Ok(())
}
