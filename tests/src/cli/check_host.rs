//! `leap-lab check-host`: what this machine lacks for a laboratory.

use std::process::ExitCode;

use clap::Args;
use edge::exit::{self, Failure, Kind};
use edge::out;
use serde_json::json;

use super::Options;
use crate::lab::accelerator::Accelerator;
use crate::lab::network::Wiring;
use crate::lab::{isolation, prerequisites};

/// Say what this machine lacks for a laboratory, and install it
#[derive(Debug, Args)]
pub(super) struct CheckHost {
    /// Install what is missing from Debian's packages (with sudo when not root)
    #[arg(long)]
    install: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl CheckHost {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        if self.install {
            prepare().await?;
        }
        let found = prerequisites::survey();
        let missing = prerequisites::missing_packages(&found);
        let namespaces = isolation::try_namespaces().await;
        let trial = options.place(false).temporary();
        let accelerator = match std::fs::create_dir_all(&trial) {
            Ok(()) => Accelerator::detect(&trial).await.ok(),
            Err(_) => None,
        };
        let words = accelerator.map_or("unknown: QEMU or its firmware is missing", |found| {
            found.words()
        });
        let wiring = Wiring::detect();
        if self.json {
            out::json(&json!({
                "needs": found,
                "missing_packages": missing,
                "namespaces": namespaces.is_ok(),
                "accelerator": words,
                "tap": wiring == Wiring::Tap,
            }));
        } else {
            for one in &found {
                let mark = if one.path.is_some() {
                    "here   "
                } else {
                    "MISSING"
                };
                let prerequisites::Need {
                    thing,
                    package,
                    purpose,
                } = one.need;
                out::line(format_args!("{mark}  {thing:34} {package:18} {purpose}"));
            }
            let state = match &namespaces {
                Ok(()) => "can be made".to_owned(),
                Err(error) => format!("CANNOT BE MADE: {error:#}"),
            };
            out::line(format_args!("namespaces  {state}"));
            out::line(format_args!("processors  {words}"));
            let plugs = match wiring {
                Wiring::Tap => "TAP devices",
                Wiring::Socat => "socat, because this user may not open /dev/net/tun",
            };
            out::line(format_args!("network     {plugs}"));
        }
        if !missing.is_empty() {
            let error = format!("missing packages: {}", missing.join(" "));
            let error = exit::marked(Kind::Environment, error);
            return Err(exit::hint(error, "leap-lab check-host --install").into());
        }
        namespaces.map_err(cannot_isolate)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Installs what is missing, and says so. Silent when nothing is.
pub(super) async fn prepare() -> Result<(), Failure> {
    let missing = prerequisites::missing_packages(&prerequisites::survey());
    if !missing.is_empty() {
        out::line(format_args!("missing here: {}", missing.join(" ")));
        prerequisites::install(&missing, |line| out::line(format_args!("$ {line}"))).await?;
    }
    isolation::try_namespaces().await.map_err(cannot_isolate)?;
    Ok(())
}

fn cannot_isolate(error: anyhow::Error) -> Failure {
    let error = error.context("namespaces of our own cannot be made here");
    let hint = "an ordinary user needs the package uidmap, a range of 65536 in /etc/subuid and \
                /etc/subgid (usermod --add-subuids 100000-165535 --add-subgids 100000-165535), \
                and kernel.unprivileged_userns_clone=1; root needs a container that lets it \
                mount";
    Failure::new(Kind::Environment, exit::hint(error, hint))
}
