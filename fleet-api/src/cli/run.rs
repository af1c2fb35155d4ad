//! `leap-fleet run`: the daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

use edge::exit::Failure;

use crate::config::Config;
use crate::serve;
use crate::sky::Sky;

/// Serve until SIGTERM or Ctrl-C
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration
    #[arg(long, default_value = "fleet.toml")]
    config: PathBuf,
    /// Listen here instead of where the configuration says
    #[arg(long, env = "LEAP_FLEET_LISTEN")]
    listen: Option<SocketAddr>,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let mut config = Config::read(&args.config)?;
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    let stop = edge::shutdown::token();
    // The address first: a second daemon must not touch the first one's store.
    let listener = serve::bind(&config).await?;
    let sky = Sky::open(&config, stop).await?;
    serve::serve(sky, listener).await
}
