//! `leap-lab bench-boot`: what network boot takes, beside Kea, dnsmasq and atftpd.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edge::durable::{self, Mode};
use edge::exit::Failure;
use edge::out;

use super::bench::table;
use super::{Options, in_laboratory};
use crate::bench::boot;

/// The figures of the last run, in the build folder.
const FIGURES: &str = "figures-boot.json";

/// Measure DHCP and TFTP beside Kea, dnsmasq and atftpd
#[derive(Debug, Args)]
pub(super) struct BenchBoot {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl BenchBoot {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        std::fs::create_dir_all(&options.build_dir).context("make the build folder")?;
        let work = std::path::absolute(&options.build_dir).context("name a folder")?;
        in_laboratory(&options.place(false), async |_| {
            let figures = boot::measure(&work).await?;
            durable::write_json(&work.join(FIGURES), &figures, Mode::Public)?;
            if self.json {
                out::json(&figures);
            } else {
                out::line(table(&figures).trim_end());
            }
            Ok(ExitCode::SUCCESS)
        })
        .await
    }
}

/// Serve a folder as `bench-boot` measures it
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct ServeBoot {
    #[arg(long)]
    interface: String,
    #[arg(long)]
    server: Ipv4Addr,
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    leases: PathBuf,
}

impl ServeBoot {
    pub(super) async fn run(self) -> Result<ExitCode, Failure> {
        boot::serve(&self.interface, self.server, self.root, self.leases).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Fetch a file by TFTP with many clients at once, as `bench-boot` does
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct FetchBoot {
    #[arg(long)]
    server: Ipv4Addr,
    #[arg(long)]
    path: String,
    #[arg(long)]
    bytes: u64,
    #[arg(long)]
    first: Ipv4Addr,
    #[arg(long)]
    clients: u32,
    #[arg(long)]
    window: u16,
}

impl FetchBoot {
    pub(super) fn run(self) -> ExitCode {
        let wanted = boot::Wanted {
            server: (self.server, 69).into(),
            path: self.path,
            bytes: self.bytes,
            window: self.window,
        };
        out::json(&boot::fetch(&wanted, self.first, self.clients));
        ExitCode::SUCCESS
    }
}
