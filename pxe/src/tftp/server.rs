//! The sockets around [`Transfer`]: one task or thread for each transfer, with limits.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::packet::{self, ErrorCode, Packet, Request};
use super::transfer::{Agreed, Step, Transfer, agree, low_bits};
use super::wire::Wire;
use crate::boot::{BootEvent, BootSource, FileOutcome, NotServed, Protocol, clean_path};
use crate::content::{self, Content};

/// How much the server takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Transfers at once.
    pub transfers: usize,
    /// Transfers at once for one address.
    pub transfers_per_client: usize,
    /// Largest block size granted. 1468 fills an Ethernet frame; more is sent in
    /// fragments, which some firmware cannot put together.
    pub block_size: u16,
    /// Largest window granted, in blocks.
    pub window: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfers: 1024,
            transfers_per_client: 16,
            block_size: 1468,
            window: 64,
        }
    }
}

/// Why the server stopped.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The socket has no address.
    #[error("read the address of the TFTP socket")]
    Address(#[source] io::Error),
    /// The threads of the transfers cannot be started.
    #[error("start the threads of TFTP transfers")]
    Threads(#[source] io::Error),
    /// The socket broke.
    #[error("receive TFTP requests")]
    Receive(#[source] io::Error),
}

/// Serves files on `socket`, usually port 69, until `shutdown` is done; transfers
/// under way are broken off then.
///
/// Bind the socket to the address that clients know: transfers answer from the
/// same address, each from a port of its own.
///
/// # Errors
/// [`ServeError`]. A transfer that fails is told to the source and is no error.
pub async fn run(
    socket: UdpSocket,
    limits: Limits,
    source: Arc<dyn BootSource>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let local = socket.local_addr().map_err(ServeError::Address)?.ip();
    let active = Arc::new(Active::new(limits));
    let lanes = Lanes::open().map_err(ServeError::Threads)?;
    let sleepers = Arc::new(Semaphore::new(SLEEPERS));
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut buffer = vec![0; 2048];
    loop {
        let (length, peer) = tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP error that an earlier reply met.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(ServeError::Receive(error)),
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
        };
        let request = match Packet::parse(&buffer[..length]) {
            Ok(Packet::Read(request)) => request,
            Ok(Packet::Write(request)) => {
                refuse(&socket, peer, ErrorCode::Access, "this server is read-only").await;
                tracing::debug!(%peer, path = request.path, "TFTP write refused");
                continue;
            }
            Ok(Packet::Error { .. }) => continue,
            Ok(_) => {
                refuse(
                    &socket,
                    peer,
                    ErrorCode::UnknownTransfer,
                    "unknown transfer",
                )
                .await;
                continue;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "not a TFTP request");
                continue;
            }
        };
        let slot = match active.enter(peer, &request) {
            Ok(Some(slot)) => slot,
            // The client repeats its request; the transfer repeats its answer.
            Ok(None) => continue,
            Err(reason) => {
                // Told to the client: it will ask again rather than wait.
                refuse(&socket, peer, ErrorCode::Undefined, reason).await;
                tell(
                    &*source,
                    peer,
                    &request.path,
                    FileOutcome::Refused {
                        reason: reason.into(),
                    },
                );
                continue;
            }
        };
        let (source, sleepers) = (Arc::clone(&source), Arc::clone(&sleepers));
        let transfer = async move {
            if let Err(error) = serve(local, peer, request, limits, slot, source, sleepers).await {
                tracing::warn!(%peer, %error, "TFTP socket failed");
            }
        };
        tasks.spawn_on(transfer, lanes.next());
    }
}

/// Transfers that have a thread each; more share the lanes.
const SLEEPERS: usize = 64;

/// Threads for transfers, one for each processor. A transfer stays on its own: in
/// lock-step, to be passed from thread to thread costs more than to send a block.
struct Lanes {
    lanes: Vec<(Handle, oneshot::Sender<()>)>,
    turn: AtomicUsize,
}

impl Lanes {
    fn open() -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            lanes: (0..count).map(|_| Self::lane()).collect::<Result<_, _>>()?,
            turn: AtomicUsize::new(0),
        })
    }

    fn lane() -> io::Result<(Handle, oneshot::Sender<()>)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (open, closed) = oneshot::channel();
        std::thread::Builder::new()
            .name("tftp".into())
            // Until the lanes are dropped; that is all that can be heard here.
            .spawn(move || drop(runtime.block_on(closed)))?;
        Ok((handle, open))
    }

    fn next(&self) -> &Handle {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.lanes[turn % self.lanes.len()].0
    }
}

fn tell(source: &dyn BootSource, peer: SocketAddr, path: &str, outcome: FileOutcome) {
    let event = BootEvent::File {
        protocol: Protocol::Tftp,
        peer: peer.ip(),
        path: path.to_owned(),
        outcome,
    };
    tracing::debug!(%event, "tftp");
    source.observe(&event);
}

async fn refuse(socket: &UdpSocket, peer: SocketAddr, code: ErrorCode, message: &str) {
    if let Err(error) = socket
        .send_to(&packet::encode_error(code, message), peer)
        .await
    {
        tracing::debug!(%peer, %error, "TFTP error not sent");
    }
}

async fn serve(
    local: IpAddr,
    peer: SocketAddr,
    request: Request,
    limits: Limits,
    slot: Slot,
    source: Arc<dyn BootSource>,
    sleepers: Arc<Semaphore>,
) -> io::Result<()> {
    let socket = UdpSocket::bind((local, 0)).await?;
    // Connected: the kernel drops what comes from any other port (RFC 1350, 4).
    socket.connect(peer).await?;
    let (path, content) = match open(&request, peer.ip(), &*source).await {
        Ok(found) => found,
        Err((code, reason)) => {
            tell(
                &*source,
                peer,
                &request.path,
                FileOutcome::Refused {
                    reason: reason.clone(),
                },
            );
            socket.send(&packet::encode_error(code, &reason)).await?;
            return Ok(());
        }
    };
    let length = content.length();
    let agreed = agree(&request.options, length, limits.block_size, limits.window);
    tracing::debug!(%peer, path, options = ?request.options, ?agreed, "TFTP request");
    let call = Call {
        peer,
        path,
        slot,
        source,
    };
    let Ok(permit) = sleepers.try_acquire_owned() else {
        return exchange(Wire::Shared(socket), &agreed, content, &call).await;
    };
    let wire = Wire::alone(socket)?;
    let lane = Handle::current();
    let transfer = tokio::task::spawn_blocking(move || {
        let ended = lane.block_on(exchange(wire, &agreed, content, &call));
        drop(permit);
        ended
    });
    transfer.await.map_err(io::Error::other)?
}

/// Whose transfer it is.
struct Call {
    peer: SocketAddr,
    path: String,
    slot: Slot,
    source: Arc<dyn BootSource>,
}

async fn exchange(wire: Wire, agreed: &Agreed, content: Content, call: &Call) -> io::Result<()> {
    let Call {
        peer,
        path,
        slot,
        source,
    } = call;
    let length = content.length();
    let began = Instant::now();
    let mut line = Line::new(wire, agreed, content);
    let (mut transfer, mut step) = Transfer::start(length, agreed, began);
    let mut started = false;
    let mut buffer = vec![0; 2048];
    loop {
        let outcome = match step {
            Step::Wait => None,
            Step::SendOptions => {
                line.send_options(agreed).await?;
                None
            }
            Step::SendBlocks { first, count } => {
                if !started {
                    started = true;
                    tell(&**source, *peer, path, FileOutcome::Started { length });
                }
                match line.send_blocks(first, count).await {
                    Ok(()) => None,
                    Err(reason) => {
                        let error =
                            packet::encode_error(ErrorCode::Undefined, "cannot read the file");
                        line.wire.send(&error).await?;
                        Some(FileOutcome::Broken {
                            sent: transfer.acked_bytes(),
                            reason,
                        })
                    }
                }
            }
            Step::Done => Some(FileOutcome::Done {
                length,
                elapsed: began.elapsed(),
                resent: transfer.resent(),
            }),
            Step::SizeAsked => Some(FileOutcome::SizeAsked { length }),
            Step::Broken(reason) => Some(FileOutcome::Broken {
                sent: transfer.acked_bytes(),
                reason,
            }),
        };
        if let Some(outcome) = outcome {
            tell(&**source, *peer, path, outcome);
            return Ok(());
        }
        step = match line.wire.hear(&mut buffer, transfer.deadline()).await {
            Ok(None) => transfer.on_timeout(Instant::now()),
            Ok(Some(length)) => match Packet::parse(&buffer[..length]) {
                Ok(packet) => {
                    // It has our answer, so a request from now on is a new one.
                    slot.heard();
                    transfer.on_packet(&packet, Instant::now())
                }
                Err(_) => Step::Wait,
            },
            // The client closed its port: it went away without a word.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Step::Broken("the client closed its port".into())
            }
            Err(error) => return Err(error),
        };
    }
}

/// Finds the file of a request, or says why not.
async fn open(
    request: &Request,
    peer: IpAddr,
    source: &dyn BootSource,
) -> Result<(String, Content), (ErrorCode, String)> {
    // Boot files are binary; netascii would damage them without a word.
    if request.mode != "octet" {
        let reason = format!("mode {}, expected octet", request.mode);
        return Err((ErrorCode::Illegal, reason));
    }
    let refused = |error: &NotServed| {
        let code = match error {
            NotServed::NotFound => ErrorCode::NotFound,
            NotServed::Refused(_) => ErrorCode::Access,
            NotServed::Failed(_) => ErrorCode::Undefined,
        };
        (code, error.to_string())
    };
    let path = clean_path(&request.path).map_err(|error| refused(&error))?;
    match content::open(source, peer, &path).await {
        Ok(content) => Ok((path, content)),
        Err(error) => Err(refused(&error)),
    }
}

/// Most bytes and segments that the kernel takes in one send.
const BURST_BYTES: usize = 65_000;
const BURST_SEGMENTS: usize = 64;
/// Largest datagram that an Ethernet frame holds.
const FRAME: usize = 1472;

/// The way from content to wire.
struct Line {
    wire: Wire,
    content: Content,
    block_size: usize,
    /// The kernel cuts one send into datagrams of this size.
    segmented: bool,
    buffer: Vec<u8>,
}

impl Line {
    fn new(wire: Wire, agreed: &Agreed, content: Content) -> Self {
        Self {
            wire,
            content,
            block_size: usize::from(agreed.block_size),
            segmented: false,
            buffer: Vec::new(),
        }
    }

    async fn send_options(&self, agreed: &Agreed) -> io::Result<()> {
        self.wire
            .send(&packet::encode_option_ack(&agreed.accepted))
            .await
            .map(drop)
    }

    /// Sends blocks; the error is text for the operator.
    async fn send_blocks(&mut self, first: u64, count: u64) -> Result<(), String> {
        let datagram = self.block_size + 4;
        let segment = count > 1 && datagram <= FRAME;
        if segment != self.segmented {
            self.segment(segment);
        }
        let burst = if self.segmented {
            (BURST_BYTES / datagram).clamp(1, BURST_SEGMENTS)
        } else {
            1
        };
        let mut next = first;
        let end = first + count;
        while next < end {
            let blocks = (end - next).min(u64::try_from(burst).unwrap_or(1));
            self.fill(next, blocks)
                .await
                .map_err(|error| format!("read: {error}"))?;
            if let Err(error) = self.wire.send(&self.buffer).await {
                if !self.segmented {
                    // A full queue or a missing route: the timer tries again.
                    tracing::debug!(%error, "TFTP block not sent");
                    return Ok(());
                }
                // A device without checksum offload, or a path with a smaller MTU.
                tracing::debug!(%error, "sending TFTP blocks one by one");
                self.segment(false);
                return Box::pin(self.send_blocks(next, end - next)).await;
            }
            next += blocks;
        }
        Ok(())
    }

    fn segment(&mut self, on: bool) {
        let size = if on {
            i32::try_from(self.block_size + 4).unwrap_or(0)
        } else {
            0
        };
        self.segmented = self.wire.segment(size) && on;
    }

    /// Puts `count` blocks with their headers into the buffer.
    async fn fill(&mut self, first: u64, count: u64) -> io::Result<()> {
        self.buffer.clear();
        let size = u64::try_from(self.block_size).expect("a block size of at most 65464");
        for block in first..first + count {
            self.buffer.extend_from_slice(&[0, 3]);
            self.buffer
                .extend_from_slice(&low_bits(block).to_be_bytes());
            self.content
                .append((block - 1) * size, self.block_size, &mut self.buffer)
                .await?;
        }
        Ok(())
    }
}

/// The transfers under way.
struct Active {
    limits: Limits,
    state: Mutex<ActiveState>,
}

#[derive(Default)]
struct ActiveState {
    transfers: usize,
    clients: HashMap<IpAddr, usize>,
    /// Requests whose answer the client may not have yet. The same request again
    /// is a repetition. Afterwards it is a client that was switched off and on, and
    /// whose boot ROM begins with the same port each time: it gets a transfer of
    /// its own at once, and ends the old one itself with error 5 (RFC 1350, 4).
    opening: HashMap<SocketAddr, Request>,
}

/// A place among the transfers under way; dropping it frees it.
struct Slot {
    active: Arc<Active>,
    peer: SocketAddr,
    request: Request,
}

impl Active {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    /// Returns a place; `None` if the peer is being answered this very request.
    fn enter(
        self: &Arc<Self>,
        peer: SocketAddr,
        request: &Request,
    ) -> Result<Option<Slot>, &'static str> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.opening.get(&peer) == Some(request) {
            return Ok(None);
        }
        if state.transfers >= self.limits.transfers {
            return Err("too many transfers at once, try again later");
        }
        let mine = state.clients.entry(peer.ip()).or_default();
        if *mine >= self.limits.transfers_per_client {
            return Err("too many transfers at once from this address, try again later");
        }
        *mine += 1;
        state.transfers += 1;
        state.opening.insert(peer, request.clone());
        Ok(Some(Slot {
            active: Arc::clone(self),
            peer,
            request: request.clone(),
        }))
    }
}

impl Slot {
    /// Takes note that the client has heard of the transfer.
    fn heard(&self) {
        self.state(|state| self.no_longer_opening(state));
    }

    fn no_longer_opening(&self, state: &mut ActiveState) {
        if state.opening.get(&self.peer) == Some(&self.request) {
            state.opening.remove(&self.peer);
        }
    }

    fn state(&self, change: impl FnOnce(&mut ActiveState)) {
        let state = self.active.state.lock();
        change(&mut state.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.state(|state| {
            self.no_longer_opening(state);
            state.transfers -= 1;
            if let Some(count) = state.clients.get_mut(&self.peer.ip()) {
                *count -= 1;
                if *count == 0 {
                    state.clients.remove(&self.peer.ip());
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{BootAnswer, BootFile, BootRequest};
    use std::path::PathBuf;
    use std::time::Duration;
    use tokio::sync::mpsc;

    struct Folder {
        root: PathBuf,
        events: mpsc::UnboundedSender<BootEvent>,
    }

    impl BootSource for Folder {
        fn decide(&self, _: &BootRequest) -> BootAnswer {
            BootAnswer::Ignore {
                reason: "not asked here".into(),
            }
        }

        fn open(&self, _: IpAddr, path: &str) -> Result<BootFile, NotServed> {
            if path == "secret" {
                return Err(NotServed::Refused("not yours".into()));
            }
            Ok(BootFile::Path(self.root.join(path)))
        }

        fn observe(&self, event: &BootEvent) {
            let _ = self.events.send(event.clone());
        }
    }

    struct Bench {
        server: SocketAddr,
        events: mpsc::UnboundedReceiver<BootEvent>,
        content: Vec<u8>,
        _folder: tempfile::TempDir,
        _task: tokio::task::JoinHandle<Result<(), ServeError>>,
    }

    async fn bench(limits: Limits) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3_000_017u32)
            .flat_map(|n| [n.to_le_bytes()[0], (n >> 9).to_le_bytes()[0]])
            .collect();
        std::fs::write(folder.path().join("boot.efi"), &content).unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let source = Arc::new(Folder {
            root: folder.path().to_owned(),
            events: sender,
        });
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = socket.local_addr().unwrap();
        let task = tokio::spawn(run(socket, limits, source, std::future::pending()));
        Bench {
            server,
            events,
            content,
            _folder: folder,
            _task: task,
        }
    }

    fn read_request(path: &str, options: &[(&str, &str)]) -> Vec<u8> {
        let mut out = b"\0\x01".to_vec();
        let words = [path, "octet"]
            .into_iter()
            .chain(options.iter().flat_map(|(n, v)| [*n, *v]));
        for word in words {
            out.extend_from_slice(word.as_bytes());
            out.push(0);
        }
        out
    }

    /// Longer than the server goes on alone.
    const SILENCE: Duration = Duration::from_secs(60);

    /// A client in lock-step or with windows that drops every `lose`-th datagram.
    async fn fetch(server: SocketAddr, options: &[(&str, &str)], lose: usize) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket
            .send_to(&read_request("boot.efi", options), server)
            .await
            .unwrap();
        let mut buffer = vec![0; 70_000];
        let (mut out, mut block, mut size) = (Vec::new(), 0u16, 512);
        let (mut window, mut in_window, mut seen) = (1, 0, 0);
        let mut transfer = None;
        loop {
            let heard = tokio::time::timeout(SILENCE, socket.recv_from(&mut buffer));
            let Ok(heard) = heard.await else {
                panic!("silence after block {block}, {} bytes", out.len());
            };
            let (length, peer) = heard.unwrap();
            // Somebody who spoke to this port's last owner (RFC 1350, 4).
            if *transfer.get_or_insert(peer) != peer {
                continue;
            }
            seen += 1;
            if lose > 0 && seen % lose == 0 {
                continue;
            }
            match Packet::parse(&buffer[..length]).unwrap() {
                Packet::OptionAck(options) => {
                    for (name, value) in options {
                        match name.as_str() {
                            "blksize" => size = value.parse().unwrap(),
                            "windowsize" => window = value.parse().unwrap(),
                            _ => {}
                        }
                    }
                    socket.send_to(&[0, 4, 0, 0], peer).await.unwrap();
                }
                Packet::Data { block: got } if got == block.wrapping_add(1) => {
                    block = got;
                    out.extend_from_slice(&buffer[4..length]);
                    in_window += 1;
                    let last = length < size + 4;
                    if last || in_window == window {
                        in_window = 0;
                        let [high, low] = block.to_be_bytes();
                        socket.send_to(&[0, 4, high, low], peer).await.unwrap();
                    }
                    if last {
                        return out;
                    }
                }
                Packet::Data { .. } => {
                    in_window = 0;
                    let [high, low] = block.to_be_bytes();
                    socket.send_to(&[0, 4, high, low], peer).await.unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn outcome(bench: &mut Bench) -> FileOutcome {
        loop {
            match bench.events.recv().await.unwrap() {
                BootEvent::File {
                    outcome: FileOutcome::Started { .. },
                    ..
                } => {}
                BootEvent::File { outcome, .. } => return outcome,
                event @ BootEvent::Dhcp { .. } => panic!("{event}"),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whole_files_arrive_with_every_kind_of_options() {
        let mut bench = bench(Limits::default()).await;
        for options in [
            &[][..],
            &[("blksize", "1468")],
            &[("blksize", "1468"), ("windowsize", "4")],
            &[("blksize", "1024"), ("windowsize", "64")],
            // Rolls over: 6 MB in blocks of 64 bytes are 93,751 blocks.
            &[("blksize", "64"), ("windowsize", "32")],
        ] {
            let got = fetch(bench.server, options, 0).await;
            assert!(got == bench.content, "{options:?}: {} bytes", got.len());
            let FileOutcome::Done { resent, .. } = outcome(&mut bench).await else {
                panic!()
            };
            assert_eq!(resent, 0, "{options:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_file_arrives_when_datagrams_are_lost() {
        let bench = bench(Limits {
            block_size: 16_384,
            ..Limits::default()
        })
        .await;
        let options = [("blksize", "16384"), ("windowsize", "8")];
        let got = fetch(bench.server, &options, 97).await;
        assert!(got == bench.content, "{} bytes", got.len());
    }

    #[tokio::test]
    async fn what_is_not_served_says_why() {
        let mut bench = bench(Limits::default()).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for (request, code, words) in [
            (read_request("nothing.efi", &[]), 1, "not found"),
            (read_request("secret", &[]), 2, "refused: not yours"),
            (
                read_request("../../etc/passwd", &[]),
                2,
                "\"..\" in the path",
            ),
            (
                read_request("a\\..\\..\\b", &[("tsize", "0")]),
                2,
                "\"..\" in the path",
            ),
            (
                b"\0\x01boot.efi\0netascii\0".to_vec(),
                4,
                "mode netascii, expected octet",
            ),
            (b"\0\x02boot.efi\0octet\0".to_vec(), 2, "read-only"),
            (b"\0\x04\0\x01".to_vec(), 5, "unknown transfer"),
        ] {
            socket.send_to(&request, bench.server).await.unwrap();
            let mut buffer = [0; 600];
            let length = socket.recv(&mut buffer).await.unwrap();
            let Ok(Packet::Error { code: got, message }) = Packet::parse(&buffer[..length]) else {
                panic!("{:?}", &buffer[..length]);
            };
            assert_eq!(got, code, "{message}");
            assert!(message.contains(words), "{message}");
            if matches!(request[1], 1) {
                assert!(matches!(
                    outcome(&mut bench).await,
                    FileOutcome::Refused { .. }
                ));
            }
        }
    }

    #[tokio::test]
    async fn the_loader_of_the_local_disk_is_always_there() {
        let bench = bench(Limits::default()).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let request = read_request(crate::local_boot::PATH, &[("blksize", "1468")]);
        socket.send_to(&request, bench.server).await.unwrap();
        let mut buffer = [0; 2000];
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        assert!(matches!(
            Packet::parse(&buffer[..length]),
            Ok(Packet::OptionAck(_))
        ));
        socket.send_to(&[0, 4, 0, 0], peer).await.unwrap();
        let length = socket.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[4..length], &crate::local_boot::PROGRAM[..1468]);
    }

    #[tokio::test]
    async fn one_client_cannot_take_all_places() {
        let limits = Limits {
            transfers: 3,
            transfers_per_client: 2,
            ..Limits::default()
        };
        let mut bench = bench(limits).await;
        let mut sockets = Vec::new();
        for _ in 0..3 {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // A request that is repeated takes one place only.
            for _ in 0..2 {
                socket
                    .send_to(&read_request("boot.efi", &[]), bench.server)
                    .await
                    .unwrap();
            }
            let mut buffer = [0; 600];
            let length = socket.recv(&mut buffer).await.unwrap();
            sockets.push((socket, Packet::parse(&buffer[..length]).unwrap()));
        }
        let answers: Vec<_> = sockets.iter().map(|(_, answer)| answer).collect();
        assert!(matches!(
            answers[..2],
            [Packet::Data { block: 1 }, Packet::Data { block: 1 }]
        ));
        let Packet::Error { message, .. } = answers[2] else {
            panic!("{:?}", answers[2])
        };
        assert!(message.contains("too many transfers"), "{message}");
        assert!(matches!(
            outcome(&mut bench).await,
            FileOutcome::Refused { .. }
        ));
    }

    #[tokio::test]
    async fn a_client_that_was_switched_off_in_mid_transfer_begins_anew_from_the_same_port() {
        let bench = bench(Limits::default()).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let request = read_request("boot.efi", &[("blksize", "1024")]);
        let mut buffer = vec![0; 2048];
        let begin = async |buffer: &mut Vec<u8>| {
            client.send_to(&request, bench.server).await.unwrap();
            let (length, from) = client.recv_from(buffer).await.unwrap();
            assert_eq!(
                buffer[..length],
                packet::encode_option_ack(&[("blksize", 1024)])[..]
            );
            from
        };
        let first = begin(&mut buffer).await;
        client.send_to(&[0, 4, 0, 0], first).await.unwrap();
        let (_, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((from, &buffer[..4]), (first, &[0, 3, 0, 1][..]));
        // Power off, power on; the boot ROM takes the same port.
        let second = begin(&mut buffer).await;
        assert_ne!(first, second, "a transfer of its own");
        // A request that is repeated before its answer was heard is one request. The
        // server has read it when it refuses what came to the same port behind it.
        client.send_to(&request, bench.server).await.unwrap();
        let writer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let write = [&[0, 2][..], &request[2..]].concat();
        writer.send_to(&write, bench.server).await.unwrap();
        let (length, _) = writer.recv_from(&mut buffer).await.unwrap();
        assert!(matches!(
            Packet::parse(&buffer[..length]),
            Ok(Packet::Error { .. })
        ));
        client.send_to(&[0, 4, 0, 0], second).await.unwrap();
        let (_, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((from, &buffer[..4]), (second, &[0, 3, 0, 1][..]));
    }
}
