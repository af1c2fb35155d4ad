//! Many TFTP clients at once, the same ones for every server.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

/// Bytes of a block.
const BLOCK: usize = 1468;
/// Without a word of the server: said again, and in the end given up.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSES: u32 = 20;

/// What many clients came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fetched {
    /// Clients that did not get the whole file.
    pub failed: u32,
    /// Bytes of all files that came whole.
    pub bytes: u64,
    /// From the first question to the last block.
    pub seconds: f64,
    /// Why the first client failed, if one did.
    pub problem: Option<String>,
}

impl Fetched {
    /// MB a second of all together.
    #[must_use]
    pub fn rate(&self) -> f64 {
        super::mega(self.bytes) / self.seconds
    }
}

/// What each of them fetches.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where.
    pub server: SocketAddr,
    /// The file.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Blocks before an acknowledgement, if the server wants it so.
    pub window: u16,
}

/// Fetches a file with many clients at once, each a thread with an address of its own,
/// from `first` on.
#[must_use]
pub fn fetch(wanted: &Wanted, first: Ipv4Addr, clients: u32) -> Fetched {
    let bytes = wanted.bytes;
    let begun = Instant::now();
    let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let start = |number| {
            let address = Ipv4Addr::from(u32::from(first) + number);
            scope.spawn(move || one(wanted, address))
        };
        let threads: Vec<_> = (0..clients).map(start).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|done| done.unwrap_or_else(|_| bail!("the client panicked")))
            .collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let failed = results.iter().filter(|result| result.is_err()).count();
    let problem = results.iter().find_map(|result| result.as_ref().err());
    let failed = u32::try_from(failed).unwrap_or(clients);
    Fetched {
        failed,
        bytes: bytes * u64::from(clients - failed),
        seconds,
        problem: problem.map(|problem| format!("{problem:#}")),
    }
}

fn one(wanted: &Wanted, address: Ipv4Addr) -> anyhow::Result<()> {
    let Wanted {
        server,
        path,
        bytes,
        window,
    } = wanted;
    let (server, bytes) = (*server, *bytes);
    let socket = UdpSocket::bind((address, 0)).with_context(|| format!("use {address}"))?;
    socket
        .set_read_timeout(Some(PAUSE))
        .context("set a time-out")?;
    let mut request = vec![0, 1];
    let (block, window) = (BLOCK.to_string(), window.to_string());
    for text in [path, "octet", "blksize", &block, "windowsize", &window] {
        request.extend_from_slice(text.as_bytes());
        request.push(0);
    }
    socket
        .send_to(&request, server)
        .context("ask for the file")?;
    let mut buffer = [0; BLOCK + 4];
    let (mut peer, mut agreed) = (None, 1u64);
    let (mut received, mut length, mut unacked) = (0u64, 0u64, 0u64);
    let mut silent = 0;
    let mut gap_told = false;
    let ack = |received: u64, peer: SocketAddr| {
        let [.., high, low] = received.to_be_bytes();
        socket
            .send_to(&[0, 4, high, low], peer)
            .context("acknowledge")
    };
    loop {
        let (count, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                silent += 1;
                ensure!(
                    silent < PAUSES,
                    "nothing came for {PAUSES} s after {length} bytes"
                );
                unacked = 0;
                match peer {
                    None => socket.send_to(&request, server).context("ask again")?,
                    Some(peer) => ack(received, peer)?,
                };
                continue;
            }
            Err(error) => return Err(error).context("receive"),
        };
        ensure!(count >= 4, "a message of {count} bytes");
        if *peer.get_or_insert(from) != from {
            continue;
        }
        silent = 0;
        let number = u16::from_be_bytes([buffer[2], buffer[3]]);
        match buffer[1] {
            6 => {
                let text = String::from_utf8_lossy(&buffer[2..count]).to_lowercase();
                let mut words = text.split('\0');
                if words.any(|word| word == "windowsize") {
                    let granted = words.next().and_then(|word| word.parse().ok());
                    agreed = granted.context("a window without a number")?;
                }
                ack(0, from)?;
            }
            3 if u64::from(number) == (received + 1) & 0xffff => {
                received += 1;
                unacked += 1;
                gap_told = false;
                let data = count - 4;
                length += u64::try_from(data).context("a datagram's length")?;
                let last = data < BLOCK;
                if last || unacked >= agreed {
                    unacked = 0;
                    ack(received, from)?;
                }
                if last {
                    ensure!(length == bytes, "{length} bytes, expected {bytes}");
                    return Ok(());
                }
            }
            // A block is missing, or came twice: said once.
            3 if !gap_told => {
                gap_told = true;
                unacked = 0;
                ack(received, from)?;
            }
            3 => {}
            _ => bail!(
                "the server says {:?}",
                String::from_utf8_lossy(&buffer[4..count])
            ),
        }
    }
}
