//! A TCP listener that one client cannot use up: so many connections for each
//! address and in all, and none that says nothing for ever.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::{Listener, ListenerExt, TapIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

/// How many connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At once.
    pub connections: usize,
    /// At once from one address.
    pub connections_per_client: usize,
    /// A connection on which nothing moves for so long is closed. Longer than
    /// any answer is waited for.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_client: 64,
            idle: Duration::from_secs(600),
        }
    }
}

/// Told to a client that has too many connections, as far as it listens.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 26\r\n\
    Retry-After: 1\r\nConnection: close\r\n\r\ntoo many connections here\n";

/// A listener with limits; hand it to `axum::serve` in place of the plain one.
pub type Limited = TapIo<Gate, fn(&mut Connection)>;

/// Returns a listener that keeps the limits.
#[must_use]
pub fn limited(listener: TcpListener, limits: Limits) -> Limited {
    let gate = Gate {
        listener,
        limits,
        open: Arc::default(),
    };
    // axum tells handlers the peer's address only of its own kinds of listener.
    let nothing: fn(&mut Connection) = |_| {};
    gate.tap_io(nothing)
}

/// The listener inside [`Limited`].
#[derive(Debug)]
pub struct Gate {
    listener: TcpListener,
    limits: Limits,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    clients: HashMap<IpAddr, usize>,
}

impl Listener for Gate {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            let Some(place) = Place::take(&self.open, &self.limits, peer.ip()) else {
                tracing::warn!(%peer, "too many connections at once, one more refused");
                // The client may have closed already.
                let _ = stream.try_write(TOO_MANY);
                continue;
            };
            // Heads and short answers are not to wait for more.
            let _ = stream.set_nodelay(true);
            let connection = Connection {
                stream,
                idle: self.limits.idle,
                end: Box::pin(tokio::time::sleep(self.limits.idle)),
                _place: place,
            };
            return (connection, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A place among the connections; dropping it frees it.
#[derive(Debug)]
struct Place {
    open: Arc<Mutex<Open>>,
    peer: IpAddr,
}

impl Place {
    fn take(open: &Arc<Mutex<Open>>, limits: &Limits, peer: IpAddr) -> Option<Self> {
        let mut state = open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = state.clients.get(&peer).copied().unwrap_or(0);
        if state.all >= limits.connections || own >= limits.connections_per_client {
            return None;
        }
        state.all += 1;
        state.clients.insert(peer, own + 1);
        Some(Self {
            open: Arc::clone(open),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        state.all -= 1;
        if let Some(own) = state.clients.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                state.clients.remove(&self.peer);
            }
        }
    }
}

/// A connection that ends when nothing moves on it.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    idle: Duration,
    end: Pin<Box<Sleep>>,
    _place: Place,
}

impl Connection {
    /// Passes on what came of an operation, and ends what has idled too long.
    fn watch<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.end.as_mut().reset(Instant::now() + self.idle);
            return outcome;
        }
        self.end
            .as_mut()
            .poll(context)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(outcome, context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.watch(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::ConnectInfo;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serve(limits: Limits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hello = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
        let service = Router::new()
            .route("/", get(hello))
            .into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(limited(listener, limits), service).await });
        address
    }

    /// Asks once on a new connection from an address of the loopback.
    async fn ask(server: SocketAddr, from: [u8; 4]) -> (TcpStream, String) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let mut stream = socket.connect(server).await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut buffer = vec![0; 1024];
        let length = stream.read(&mut buffer).await.unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        (stream, text)
    }

    #[tokio::test]
    async fn one_client_cannot_take_the_connections_of_the_others() {
        let limits = Limits {
            connections: 3,
            connections_per_client: 2,
            ..Limits::default()
        };
        let server = serve(limits).await;
        let (greedy, modest) = ([127, 0, 0, 2], [127, 0, 0, 3]);
        let first = ask(server, greedy).await;
        assert!(first.1.contains("127.0.0.2:"), "{}", first.1);
        let _second = ask(server, greedy).await;
        let refused = ask(server, greedy).await.1;
        assert!(!refused.contains("200 OK"), "{refused}");
        let third = ask(server, modest).await;
        assert!(third.1.contains("200 OK"), "{}", third.1);
        let refused = ask(server, [127, 0, 0, 4]).await.1;
        assert!(!refused.contains("200 OK"), "all are taken: {refused}");
        // A connection that ends frees its place, as soon as the server sees it.
        drop(third);
        while !ask(server, modest).await.1.contains("200 OK") {}
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_moves_is_closed() {
        let limits = Limits {
            idle: Duration::from_millis(50),
            ..Limits::default()
        };
        let server = serve(limits).await;
        let mut silent = TcpStream::connect(server).await.unwrap();
        silent.write_all(b"GET / HTT").await.unwrap();
        let mut rest = Vec::new();
        let closed = silent.read_to_end(&mut rest);
        let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
        assert!(closed.is_ok(), "still open");
    }
}
