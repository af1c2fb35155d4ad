//! A transfer's own socket, in two ways.
//!
//! A transfer says a window, hears an acknowledgement, and says the next. To wake a task
//! for each costs more than to send a block, so that the first transfers get a thread
//! each, which waits in the kernel. Where the last answer came at once, the thread looks
//! for the next one for a moment before it sleeps: to be woken takes longer than that.
//! Any further transfers share a few threads.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::net::UdpSocket;

/// Steps in which a sleeper's patience is set: each setting is a system call.
const GRAIN: Duration = Duration::from_millis(50);
/// How long a thread looks for an answer before it sleeps.
const GLANCE: Duration = Duration::from_micros(200);
/// One processor is always left for everybody else.
static LOOKERS: LazyLock<Places> = LazyLock::new(|| {
    Places::new(std::thread::available_parallelism().map_or(0, |count| count.get() - 1))
});

/// So many may look at the same time.
struct Places {
    free: AtomicUsize,
}

/// A place of one that looks; dropping it frees it.
struct Place<'a>(&'a Places);

impl Places {
    fn new(count: usize) -> Self {
        let free = AtomicUsize::new(count);
        Self { free }
    }

    fn take(&self) -> Option<Place<'_>> {
        let one_less = |free: usize| free.checked_sub(1);
        let taken = self
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        // Made only where it was taken: to drop another would free one too many.
        taken.ok().map(|_| Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// The socket, connected to its client.
pub(super) enum Wire {
    /// Waits as a task among others.
    Shared(UdpSocket),
    /// Waits as a thread of its own. Its futures never pend.
    Alone {
        socket: std::net::UdpSocket,
        patience: Duration,
        /// The last answer came within a glance.
        prompt: bool,
    },
}

impl Wire {
    /// A wire for a thread of its own.
    pub(super) fn alone(socket: UdpSocket) -> io::Result<Self> {
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        Ok(Self::Alone {
            socket,
            patience: Duration::ZERO,
            prompt: false,
        })
    }

    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Shared(socket) => socket.send(bytes).await,
            Self::Alone { socket, .. } => socket.send(bytes),
        }
    }

    /// Hears a message, or nothing until `deadline`.
    pub(super) async fn hear(
        &mut self,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> io::Result<Option<usize>> {
        match self {
            Self::Shared(socket) => {
                let heard = tokio::time::timeout_at(deadline.into(), socket.recv(buffer));
                heard.await.ok().transpose()
            }
            Self::Alone {
                socket,
                patience,
                prompt,
            } => {
                let begun = Instant::now();
                if *prompt && let Some(length) = glance(socket, buffer, begun)? {
                    return Ok(Some(length));
                }
                let heard = sleep(socket, patience, buffer, deadline)?;
                *prompt = begun.elapsed() < GLANCE;
                Ok(heard)
            }
        }
    }

    /// Has the kernel cut what is sent into datagrams of `size` bytes; 0 for no more.
    pub(super) fn segment(&self, size: i32) -> bool {
        let set = match self {
            Self::Shared(socket) => setsockopt(socket, sockopt::UdpGsoSegment, &size),
            Self::Alone { socket, .. } => setsockopt(socket, sockopt::UdpGsoSegment, &size),
        };
        set.is_ok()
    }
}

/// Looks for a message for a moment, while nobody else wants the processor.
fn glance(
    socket: &std::net::UdpSocket,
    buffer: &mut [u8],
    begun: Instant,
) -> io::Result<Option<usize>> {
    let Some(_place) = LOOKERS.take() else {
        return Ok(None);
    };
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if begun.elapsed() >= GLANCE {
            return Ok(None);
        }
        std::thread::yield_now();
    }
}

/// Sleeps until a message comes, or `deadline`.
fn sleep(
    socket: &std::net::UdpSocket,
    patience: &mut Duration,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<Option<usize>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let steps = left.as_millis().div_ceil(GRAIN.as_millis());
        let wanted = GRAIN * u32::try_from(steps).unwrap_or(u32::MAX);
        if *patience != wanted {
            socket.set_read_timeout(Some(wanted))?;
            *patience = wanted;
        }
        match socket.recv(buffer) {
            Ok(length) => return Ok(Some(length)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_look_than_there_are_places_whoever_asks_in_vain() {
        let places = Places::new(2);
        let (one, two) = (places.take().unwrap(), places.take().unwrap());
        for _ in 0..3 {
            assert!(places.take().is_none());
        }
        drop(one);
        let three = places.take();
        assert!(three.is_some() && places.take().is_none());
        drop((two, three));
        assert_eq!(places.free.into_inner(), 2);
    }
}
