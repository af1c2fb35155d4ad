//! `leapctl debug`: what goes over a bench's network, kept in a file and told in words.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use edge::exit::{Classify as _, Failure, Kind, hint, marked};
use edge::out;
use jiff::Timestamp;
use model::MacAddr;
use pxe::capture::{self, Datagram, Filter, Tap, Teller, Writer};
use serde::Serialize;
use tokio::time::Instant;

use super::seconds;
use crate::operator::Operator;

/// Bytes of a frame that are kept of a file on its way: all headers, and the block's number.
const BEGINNING: usize = 128;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Debug {
    /// Listen to DHCP and TFTP on an interface of this machine, and keep it in a file
    Capture(Capture),
    /// Tell what a capture holds
    Decode(Decode),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Capture {
    /// The interface, as `ip link` names it
    interface: String,
    /// The new file, in the format pcap
    file: PathBuf,
    /// Only the machine with this MAC address
    #[arg(long)]
    mac: Option<MacAddr>,
    /// End after so many seconds; otherwise at Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Keep files on their way whole, not only the beginning of each block
    #[arg(long)]
    whole: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Decode {
    /// The capture, in the format pcap
    file: PathBuf,
    /// Only the machine with this MAC address
    #[arg(long)]
    mac: Option<MacAddr>,
    /// Tell each block of a file on its way
    #[arg(long)]
    all: bool,
}

impl Debug {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        match self {
            Self::Capture(args) => args.run(operator).await,
            Self::Decode(args) => args.run(operator),
        }
    }
}

/// What a capture came to.
#[derive(Debug, Serialize)]
struct Captured<'a> {
    file: &'a Path,
    datagrams: u64,
}

impl Capture {
    async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let mut tap = Tap::open(&self.interface).map_err(|error| no_tap(&self.interface, error))?;
        let file = File::create_new(&self.file)
            .map_err(|error| no_file(&self.file, error))
            .map_err(|error| Failure::new(Kind::Environment, error))?;
        let writing = || format!("write {}", self.file.display());
        let mut writer = Writer::new(file).with_context(writing)?;
        let mut filter = self.mac.map(Filter::new);
        let mut teller = Teller::condensed();
        let (mut start, mut datagrams) = (None, 0);
        let stop = edge::shutdown::token();
        let end = self.seconds.map(|count| Instant::now() + seconds(count));
        loop {
            let frame = tokio::select! {
                frame = tap.next() => frame.with_context(|| format!("listen on {}", self.interface))?,
                () = stop.cancelled() => break,
                () = until(end) => break,
            };
            let now = edge::clock::now();
            let micros = since(*start.get_or_insert(now), now);
            let Some(datagram) = Datagram::of_frame(frame, micros) else {
                continue;
            };
            if filter
                .as_mut()
                .is_some_and(|filter| !filter.takes(&datagram))
            {
                continue;
            }
            let kept = if self.whole || is_talk(&datagram) {
                frame.len()
            } else {
                BEGINNING
            };
            writer.add(now, frame, kept).with_context(writing)?;
            datagrams += 1;
            let told = teller.tell(&datagram);
            if !operator.json() && !told.is_empty() {
                out::line(told.trim_end());
            }
        }
        let rest = teller.end();
        if !operator.json() && !rest.is_empty() {
            out::line(rest.trim_end());
        }
        let captured = Captured {
            file: &self.file,
            datagrams,
        };
        operator.show(&captured, |captured| {
            format!(
                "{} datagrams in {}",
                captured.datagrams,
                captured.file.display()
            )
        });
        Ok(())
    }
}

/// Whether a datagram is talk about booting, and not a block of a file.
fn is_talk(datagram: &Datagram) -> bool {
    datagram.is_dhcp() || datagram.opens_transfer()
}

fn since(start: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(start).as_micros()).unwrap_or(0)
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn no_tap(interface: &str, error: io::Error) -> Failure {
    let next = match error.kind() {
        io::ErrorKind::PermissionDenied => "run it as root, on the machine that serves the bench",
        io::ErrorKind::NotFound => "`ip link` lists the interfaces of this machine",
        _ => "check the interface with `ip link`",
    };
    let error = anyhow!(error).context(format!("listen on {interface}"));
    Failure::new(Kind::Environment, hint(error, next))
}

fn no_file(path: &Path, error: io::Error) -> anyhow::Error {
    let exists = error.kind() == io::ErrorKind::AlreadyExists;
    let error = anyhow!(error).context(format!("make {}", path.display()));
    if exists {
        hint(
            error,
            "name a file that does not exist yet: a capture is evidence",
        )
    } else {
        error
    }
}

/// One datagram, for programs.
#[derive(Debug, PartialEq, Serialize)]
struct Told {
    /// Microseconds since the first packet.
    micros: u64,
    from: SocketAddr,
    to: SocketAddr,
    /// Of its content.
    bytes: usize,
    text: String,
}

impl Decode {
    fn run(self, operator: &Operator) -> Result<(), Failure> {
        let bytes = std::fs::read(&self.file)
            .with_context(|| format!("read {}", self.file.display()))
            .invalid_input()?;
        let mut datagrams = capture::read(&bytes)
            .map_err(|error| marked(Kind::InvalidInput, error.to_string()))
            .with_context(|| self.file.display().to_string())
            .invalid_input()?;
        if let Some(mac) = self.mac {
            let mut filter = Filter::new(mac);
            datagrams.retain(|datagram| filter.takes(datagram));
        }
        if operator.json() {
            out::json(&for_programs(&datagrams));
        } else {
            out::line(for_people(&datagrams, self.all).trim_end());
        }
        Ok(())
    }
}

fn for_people(datagrams: &[Datagram], all: bool) -> String {
    if datagrams.is_empty() {
        return "no UDP of that machine".to_owned();
    }
    if all {
        return capture::tell(datagrams);
    }
    let mut teller = Teller::condensed();
    let mut text: String = datagrams.iter().map(|one| teller.tell(one)).collect();
    text.push_str(&teller.end());
    text
}

fn for_programs(datagrams: &[Datagram]) -> Vec<Told> {
    let mut teller = Teller::default();
    let told = |one: &Datagram| Told {
        micros: one.micros,
        from: one.from,
        to: one.to,
        bytes: one.length,
        text: teller.words(one).trim_end().to_owned(),
    };
    datagrams.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OVMF and our servers said to one another.
    const BOOT: &[u8] = include_bytes!("../../../pxe/testdata/ovmf-pxe-boot.pcap");

    #[test]
    fn a_boot_is_told_in_few_lines_to_people_and_whole_to_programs() {
        let datagrams = capture::read(BOOT).unwrap();
        let text = for_people(&datagrams, false);
        assert!(
            text.contains("DHCP DISCOVER from 52:54:00:77:00:01"),
            "{text}"
        );
        assert!(
            text.contains("TFTP data, 8 blocks, 11744 bytes in 0.00"),
            "{text}"
        );
        // What answers the grant is told; what answers the blocks is summed up.
        assert!(text.contains("TFTP acknowledge 0\n"), "{text}");
        assert!(!text.contains("TFTP acknowledge 4"), "{text}");
        assert!(for_people(&datagrams, true).contains("TFTP acknowledge 4"));
        let all = for_programs(&datagrams);
        assert_eq!(all.len(), datagrams.len());
        assert!(
            all[0].text.starts_with("DHCP DISCOVER from"),
            "{:?}",
            all[0]
        );
    }

    #[test]
    fn a_machine_is_followed_by_the_address_that_it_was_given() {
        let mut datagrams = capture::read(BOOT).unwrap();
        let all = datagrams.len();
        let mut own = Filter::new("52:54:00:77:00:01".parse().unwrap());
        datagrams.retain(|one| own.takes(one));
        assert_eq!(datagrams.len(), all, "its TFTP too");
        let mut other = Filter::new("52:54:00:77:00:02".parse().unwrap());
        assert!(!datagrams.iter().any(|one| other.takes(one)));
    }
}
