//! Serves composed disks over HTTP/1.1, straight from the page cache.
//!
//! Most of a disk is ranges of files and zeros. Both are handed to the kernel,
//! which sends them without a copy through this process (`sendfile`); zeros come
//! from a file in memory that has nothing but a hole. One thread for each
//! connection, at most [`CONNECTIONS`] of them.
//!
//! It serves nothing that is not public: releases and layers hold no secrets.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create, sendfile};

use crate::extents::{Map, Source};
use crate::http::{Answer, Conditions, DiskPath, etag};

/// Connections that are served at once; one more is told to come again.
pub const CONNECTIONS: usize = 256;
/// How long a client may be silent, or not take what is sent.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest head of a request, in bytes.
const HEAD: usize = 16 << 10;
/// Bytes that the kernel is asked to send at once.
const SEND: u64 = 8 << 20;

/// Why there is no disk for a path.
#[derive(Debug)]
pub enum NotServed {
    /// There is none.
    NotFound(String),
    /// It could not be composed.
    Failed(String),
}

/// Gives the disk that a request names.
pub trait Disks: Send + Sync {
    /// Returns the disk.
    ///
    /// # Errors
    /// There is none, or it cannot be composed.
    fn disk(&self, path: &DiskPath) -> Result<Arc<Map>, NotServed>;
}

/// Serves on a listener, for ever.
///
/// # Errors
/// The listener broke, or there is no memory for a page of zeros.
pub fn run(listener: &TcpListener, disks: &Arc<dyn Disks>) -> io::Result<()> {
    let zeros = Arc::new(hole()?);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The client has gone away again, or there are no descriptors: the next one may fare better.
            Err(problem) if problem.raw_os_error().is_some() && !fatal(&problem) => {
                tracing::warn!(%problem, "connection not accepted");
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(problem) => return Err(problem),
        };
        let place = Place::take(&open);
        let (disks, zeros) = (Arc::clone(disks), Arc::clone(&zeros));
        let serve = move || {
            let mut connection = Connection {
                stream,
                peer,
                zeros,
                buffer: Vec::new(),
            };
            let served = match &place {
                Some(_) => connection.serve(&*disks),
                None => connection.refuse(503, "too many connections; come again"),
            };
            if let Err(problem) = served {
                tracing::debug!(%peer, %problem, "connection ended");
            }
        };
        if let Err(problem) = thread::Builder::new().stack_size(256 << 10).spawn(serve) {
            tracing::warn!(%peer, %problem, "connection not served");
        }
    }
}

fn fatal(problem: &io::Error) -> bool {
    matches!(
        problem.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotConnected
    )
}

/// A file of zeros that takes no memory.
fn hole() -> io::Result<File> {
    let file = File::from(memfd_create(c"zeros", MemfdFlags::CLOEXEC)?);
    file.set_len(SEND)?;
    Ok(file)
}

/// One of the places for connections.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let before = open.fetch_add(1, Ordering::Relaxed);
        let place = Self(Arc::clone(open));
        (before < CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    zeros: Arc<File>,
    buffer: Vec<u8>,
}

/// What happens to a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    Close,
}

impl Connection {
    fn serve(&mut self, disks: &dyn Disks) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        while let Some(head) = self.head()? {
            let request = match Request::parse(&head) {
                Ok(request) => request,
                Err(Malformed { status, problem }) => return self.refuse(status, problem),
            };
            let path: DiskPath = match request.path.parse() {
                Ok(path) => path,
                Err(problem) => return self.refuse(404, &format!("{problem}")),
            };
            let disk = match disks.disk(&path) {
                Ok(disk) => disk,
                Err(NotServed::NotFound(problem)) => return self.refuse(404, &problem),
                Err(NotServed::Failed(problem)) => {
                    tracing::error!(customer = %path.customer, problem, "disk not composed");
                    return self.refuse(500, "the disk could not be composed");
                }
            };
            let tag = etag(&disk.id());
            let answer = Answer::decide(request.conditions, &tag, disk.size());
            self.answer(&request, &answer, &tag, disk.size())?;
            if !request.head_only {
                let range = answer.body(disk.size());
                tracing::info!(peer = %self.peer, customer = %path.customer, from = range.start, to = range.end, "disk");
                self.send(&disk, range)?;
            }
            if request.after == After::Close {
                break;
            }
        }
        Ok(())
    }

    /// The head of the next request, or nothing where the client is done.
    fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.buffer.split_off(end + 4);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            if self.buffer.len() >= HEAD {
                self.refuse(431, "the head of the request is too long")?;
                return Ok(None);
            }
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece)?;
            if count == 0 {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&piece[..count]);
        }
    }

    fn answer(
        &mut self,
        request: &Request<'_>,
        answer: &Answer,
        tag: &str,
        size: u64,
    ) -> io::Result<()> {
        let status = answer.status();
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
        for (name, value) in answer.headers(tag, size) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if request.after == After::Close {
            head.push_str("connection: close\r\n");
        }
        head.push_str("\r\n");
        self.stream.write_all(head.as_bytes())
    }

    fn refuse(&mut self, status: u16, problem: &str) -> io::Result<()> {
        let body = format!("{problem}\n");
        let head = format!(
            "HTTP/1.1 {status} {}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            reason(status),
            body.len()
        );
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(body.as_bytes())
    }

    fn send(&mut self, disk: &Map, range: Range<u64>) -> io::Result<()> {
        let mut computed = Vec::new();
        for piece in disk.pieces(range) {
            match piece.source {
                Source::Bytes(bytes) => self.stream.write_all(bytes)?,
                Source::Chains(..) => {
                    let length = usize::try_from(piece.length).unwrap_or(usize::MAX);
                    computed.resize(length, 0);
                    piece.read(&mut computed)?;
                    self.stream.write_all(&computed)?;
                }
                Source::File(file, offset) => {
                    let end = offset + piece.length;
                    self.send_file(file.file(), offset..end).map_err(|error| {
                        let path = file.path().display();
                        io::Error::new(error.kind(), format!("send {path}: {error}"))
                    })?;
                }
                Source::Zeros => {
                    let mut left = piece.length;
                    let zeros = Arc::clone(&self.zeros);
                    while left > 0 {
                        let now = left.min(SEND);
                        self.send_file(&zeros, 0..now)?;
                        left -= now;
                    }
                }
            }
        }
        Ok(())
    }

    fn send_file(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let count = usize::try_from((range.end - offset).min(SEND)).expect("a few MiB");
            match sendfile(&self.stream, file, Some(&mut offset), count) {
                // The length is promised: an early end must not look like one that is right.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

/// A request as it came.
#[derive(Debug)]
struct Request<'a> {
    head_only: bool,
    path: &'a str,
    conditions: Conditions<'a>,
    after: After,
}

/// Why a request is not understood.
#[derive(Debug, PartialEq, Eq)]
struct Malformed {
    status: u16,
    problem: &'static str,
}

fn malformed(status: u16, problem: &'static str) -> Malformed {
    Malformed { status, problem }
}

impl<'a> Request<'a> {
    fn parse(head: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(head).map_err(|_| malformed(400, "not a request"))?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(malformed(400, "not a request line"));
        };
        let after = match version {
            "HTTP/1.1" => After::Keep,
            "HTTP/1.0" => After::Close,
            _ => return Err(malformed(505, "expected HTTP/1.1")),
        };
        let head_only = match method {
            "GET" => false,
            "HEAD" => true,
            _ => return Err(malformed(405, "only GET and HEAD")),
        };
        let mut request = Self {
            head_only,
            path: target.split('?').next().unwrap_or_default(),
            conditions: Conditions::default(),
            after,
        };
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| malformed(400, "not a header"))?;
            let value = value.trim();
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            let conditions = &mut request.conditions;
            if is("range") {
                conditions.range = Some(value);
            } else if is("if-range") {
                conditions.if_range = Some(value);
            } else if is("if-none-match") {
                conditions.if_none_match = Some(value);
            } else if is("connection") && value.eq_ignore_ascii_case("close") {
                request.after = After::Close;
            } else if is("transfer-encoding") || (is("content-length") && value != "0") {
                return Err(malformed(400, "a request without a body is expected"));
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extents::{Backing, Builder};
    use model::Digest;
    use proptest::prelude::*;

    struct One(Arc<Map>);

    impl Disks for One {
        fn disk(&self, path: &DiskPath) -> Result<Arc<Map>, NotServed> {
            match path.customer.as_str() {
                "acme" => Ok(Arc::clone(&self.0)),
                "broken" => Err(NotServed::Failed("the reason".into())),
                _ => Err(NotServed::NotFound("no layer".into())),
            }
        }
    }

    /// A disk of 20 MB with zeros, bytes and a file, and a server for it.
    fn served(folder: &std::path::Path) -> (SocketAddr, Arc<Map>) {
        let content: Vec<u8> = (0..9_000_000u32)
            .map(|at| (at % 251).to_le_bytes()[0])
            .collect();
        let path = folder.join("file");
        std::fs::write(&path, &content).unwrap();
        let file = Arc::new(Backing::open(&path, Digest::of(&content)).unwrap());
        let mut disk = Builder::new(20_000_000);
        disk.bytes(1000, &[3; 3000]);
        disk.file(10_000, 9_000_000, file, 0);
        disk.bytes(19_999_999, &[9]);
        let disk = Arc::new(disk.build());
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let disks: Arc<dyn Disks> = Arc::new(One(Arc::clone(&disk)));
        thread::spawn(move || run(&listener, &disks));
        (address, disk)
    }

    fn ask(stream: &mut TcpStream, request: &str) -> (String, Vec<u8>) {
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![
            0;
            if request.starts_with("HEAD") {
                0
            } else {
                length
            }
        ];
        stream.read_exact(&mut body).unwrap();
        (head, body)
    }

    #[test]
    fn any_range_is_served_on_one_connection() {
        let folder = tempfile::tempdir().unwrap();
        let (address, disk) = served(folder.path());
        let mut stream = TcpStream::connect(address).unwrap();
        let mut all = vec![0; 20_000_000];
        disk.read_at(0, &mut all).unwrap();
        let tag = etag(&disk.id());
        for (from, to) in [
            (0, 0),
            (999, 1000),
            (0, 19_999_999),
            (3990, 10_010),
            (9_009_999, 19_999_999),
        ] {
            let range = format!(
                "GET /disk/acme.raw HTTP/1.1\r\nRange: bytes={from}-{to}\r\nIf-Range: {tag}\r\n\r\n"
            );
            let (head, body) = ask(&mut stream, &range);
            assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
            assert!(
                head.contains(&format!("content-range: bytes {from}-{to}/20000000")),
                "{head}"
            );
            assert!(body == all[from..=to], "{from}-{to}");
        }
        let (head, body) = ask(&mut stream, "GET /disk/acme/unit.raw HTTP/1.1\r\n\r\n");
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains(&tag),
            "{head}"
        );
        assert!(body == all);
        let (head, _) = ask(&mut stream, "HEAD /disk/acme.raw HTTP/1.1\r\n\r\n");
        assert!(head.contains("content-length: 20000000"), "{head}");
        let have = format!("GET /disk/acme.raw HTTP/1.1\r\nIf-None-Match: {tag}\r\n\r\n");
        assert!(ask(&mut stream, &have).0.starts_with("HTTP/1.1 304 "));
        let (head, _) = ask(
            &mut stream,
            "GET /disk/acme.raw HTTP/1.1\r\nRange: bytes=20000000-\r\n\r\n",
        );
        assert!(
            head.starts_with("HTTP/1.1 416 ") && head.contains("bytes */20000000"),
            "{head}"
        );
    }

    #[test]
    fn what_is_not_there_or_not_understood_is_said_and_the_server_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (address, _) = served(folder.path());
        let answer = |request: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            ask(&mut stream, request)
        };
        for (request, status) in [
            ("GET /disk/other.raw HTTP/1.1\r\n\r\n", 404),
            ("GET /etc/passwd HTTP/1.1\r\n\r\n", 404),
            ("GET /disk/broken.raw HTTP/1.1\r\n\r\n", 500),
            ("POST /disk/acme.raw HTTP/1.1\r\n\r\n", 405),
            ("GET /disk/acme.raw HTTP/2.0\r\n\r\n", 505),
            ("GET\r\n\r\n", 400),
            (
                "GET /disk/acme.raw HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
                400,
            ),
        ] {
            let (head, body) = answer(request);
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:?}: {head}"
            );
            assert!(!String::from_utf8(body).unwrap().contains("the reason"));
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * HEAD));
        assert!(answer(&long).0.starts_with("HTTP/1.1 431 "));
        assert!(
            answer("HEAD /disk/acme.raw HTTP/1.1\r\n\r\n")
                .0
                .starts_with("HTTP/1.1 200 ")
        );
    }

    #[test]
    fn a_file_that_ends_early_breaks_the_connection_and_is_not_filled_up() {
        let folder = tempfile::tempdir().unwrap();
        let (address, _) = served(folder.path());
        File::options()
            .write(true)
            .open(folder.path().join("file"))
            .unwrap()
            .set_len(100)
            .unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(b"GET /disk/acme.raw HTTP/1.1\r\n\r\n")
            .unwrap();
        let mut all = Vec::new();
        drop(stream.read_to_end(&mut all));
        assert!(all.len() < 20_000, "{}", all.len());
    }

    proptest! {
        #[test]
        fn no_head_makes_the_parser_panic(head in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Request::parse(&head));
        }
    }
}
