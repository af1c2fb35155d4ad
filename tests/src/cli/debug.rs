//! `leap-lab debug`: evidence in words.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use edge::exit::{Classify as _, Failure};
use edge::out;

use crate::lab::disk::DiskImage;
use crate::lab::pcap::Capture;

/// Put evidence into words
#[derive(Debug, Args)]
pub(super) struct Debug {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell who asked for what in a packet capture, by DHCP and TFTP
    Capture {
        /// The capture
        file: PathBuf,
    },
    /// List the partitions of a disk image
    Disk {
        /// The image
        file: PathBuf,
    },
}

impl Debug {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Capture { file } => {
                for line in words(&Capture::read(&file).invalid_input()?) {
                    out::line(line);
                }
            }
            Command::Disk { file } => {
                for part in DiskImage::open(&file).invalid_input()?.partitions() {
                    out::line(format_args!(
                        "{:2} {:16} {:>8} MiB at {:>6} MiB  {}  type {}",
                        part.number,
                        part.name,
                        part.length >> 20,
                        part.offset >> 20,
                        part.id,
                        part.kind
                    ));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn words(capture: &Capture) -> Vec<String> {
    let mut lines: Vec<(f64, String)> = Vec::new();
    for message in capture.dhcp() {
        let client = message.client;
        let mut line = format!("{:?} client {client} from {}", message.kind, message.from.0);
        if !message.your_ip.is_unspecified() {
            line.push_str(&format!(" address {}", message.your_ip));
        }
        if let Some(architecture) = message.architecture {
            line.push_str(&format!(" architecture {architecture}"));
        }
        if let Some(file) = message.boot_file {
            line.push_str(&format!(" boot file {file}"));
        }
        lines.push((message.seconds, line));
    }
    for read in capture.tftp_reads() {
        let options: Vec<_> = read
            .options
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let line = format!(
            "TFTP client {} reads {} {}",
            read.client,
            read.file,
            options.join(" ")
        );
        lines.push((read.seconds, line));
    }
    lines.sort_by(|one, other| one.0.total_cmp(&other.0));
    lines
        .into_iter()
        .map(|(seconds, line)| format!("{seconds:8.3} {line}"))
        .collect()
}
