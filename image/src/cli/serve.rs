//! `leap-image serve`

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure, hint};
use edge::progress::Bar;
use edge::{durable, exit, out};
use model::ReleaseVersion;
use serde::Serialize;
use slots::serve::Disks;

use super::stock::StockArgs;
use crate::disk::shelf::{Shelf, peak_memory};

/// Serve the disks of all customers over HTTP, without writing one
///
/// GET and HEAD /disk/CUSTOMER.raw and /disk/CUSTOMER/UNIT.raw, with ranges. Every
/// customer's disk is composed once at the start, so that what is wrong with a layer is
/// said then; a layer that is added or changed later counts with the next request. There
/// is no encryption and no login: releases and layers are public.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    stock: StockArgs,
    /// Folder with the folder of each customer's layer
    #[arg(long, value_name = "DIR")]
    layers: PathBuf,
    /// Address and port; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// File to write the identity of each customer's disk to, as JSON
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Say what is served as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Ready {
    url: String,
    release: ReleaseVersion,
    /// Size of each disk in bytes.
    size: u64,
    disks: usize,
    /// Layers that are not to be used.
    bad: usize,
    /// Seconds that composing all of them took.
    composed: f64,
    /// The most bytes that one disk has for itself alone.
    bytes_each: usize,
    /// The most memory that was taken until now, in bytes.
    peak_memory: u64,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let trust = self.stock.trust()?;
        let listener = TcpListener::bind(self.listen)
            .with_context(|| format!("listen on {}", self.listen))
            .map_err(|error| hint(error, "is the address on this machine, and the port free?"))
            .environment()?;
        let address = listener
            .local_addr()
            .context("ask for the port")
            .environment()?;
        let shelf = Shelf::new(self.stock.open(&trust)?, self.layers, trust);
        let bar = Bar::spinner("compose");
        let begun = Instant::now();
        let composed = shelf.compose_all(&|| bar.advance(1))?;
        let seconds = begun.elapsed().as_secs_f64();
        bar.finish();
        for (customer, failure) in &composed.bad {
            let problem = exit::render(failure.error());
            tracing::error!(%customer, problem, "disk not composed");
        }
        if let Some(path) = &self.catalogue {
            durable::write_json(path, &composed.disks, durable::Mode::Public).environment()?;
        }
        let ready = Ready {
            url: format!("http://{address}"),
            release: shelf.stock().manifest().version,
            size: shelf.stock().size(),
            disks: composed.disks.len(),
            bad: composed.bad.len(),
            composed: seconds,
            bytes_each: composed.most_bytes,
            peak_memory: peak_memory()?,
        };
        if self.json {
            out::json(&ready);
        } else {
            out::line(format_args!(
                "leap-image: serves {} disks of release {} on {}/disk/CUSTOMER.raw (composed in {seconds:.2} s, at most {} bytes each)",
                ready.disks, ready.release, ready.url, ready.bytes_each
            ));
        }
        let disks: Arc<dyn Disks> = Arc::new(shelf);
        slots::serve::run(&listener, &disks)
            .context("serve disks")
            .environment()
    }
}
