//! HTTP boot: files by GET and HEAD, with ranges.
//!
//! Made for firmware: `//` in a path is served and not redirected, the length
//! is always told (UEFI sizes its buffer by it and does not know chunks), and
//! connections are kept alive.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::net::TcpListener;

use crate::boot::{BootEvent, BootSource, FileOutcome, NotServed, Protocol, clean_path};
use crate::connections::{Limits, limited};
use crate::content::{self, Content};

/// Returns a router that answers every path from the source. To serve boot files
/// beside other routes, use [`respond`] as the fallback of those.
///
/// Needs `into_make_service_with_connect_info::<SocketAddr>()`.
pub fn router(source: Arc<dyn BootSource>) -> Router {
    Router::new().fallback(handle).with_state(source)
}

/// Serves on a listener, within the default limits of connections, until `shutdown` is done.
///
/// # Errors
/// The listener broke.
pub async fn run(
    listener: TcpListener,
    source: Arc<dyn BootSource>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = router(source).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(limited(listener, Limits::default()), service)
        .with_graceful_shutdown(shutdown)
        .await
}

async fn handle(
    State(source): State<Arc<dyn BootSource>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    respond(
        source,
        peer.ip(),
        request.method(),
        request.uri().path(),
        request.headers(),
    )
    .await
}

/// Answers one request. `path` is as on the request line, percent-encoded.
pub async fn respond(
    source: Arc<dyn BootSource>,
    peer: IpAddr,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Response {
    let head = match *method {
        Method::GET => false,
        Method::HEAD => true,
        _ => {
            let allow = [(header::ALLOW, "GET, HEAD")];
            return (StatusCode::METHOD_NOT_ALLOWED, allow, "only GET and HEAD\n").into_response();
        }
    };
    let mut watch = Watch {
        source: Arc::clone(&source),
        peer,
        path: path.to_owned(),
        began: Instant::now(),
        sent: 0,
        wanted: 0,
        open: false,
    };
    let found = async {
        let clean = clean_path(&decode(path).ok_or(NotServed::NotFound)?)?;
        watch.path = clean;
        content::open(&*source, peer, &watch.path).await
    };
    let content = match found.await {
        Ok(content) => content,
        Err(error) => {
            watch.tell(FileOutcome::Refused {
                reason: error.to_string(),
            });
            let status = match error {
                NotServed::NotFound => StatusCode::NOT_FOUND,
                NotServed::Refused(_) => StatusCode::FORBIDDEN,
                NotServed::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return (status, format!("{error}\n")).into_response();
        }
    };
    let length = content.length();
    let (status, range) = match wanted(headers, length) {
        Wanted::All => (StatusCode::OK, 0..length),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Outside => {
            watch.tell(FileOutcome::Refused {
                reason: "a range outside the file".into(),
            });
            let range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
        }
    };
    let mut response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, range.end - range.start);
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!(
            "bytes {}-{}/{length}",
            range.start,
            range.end.saturating_sub(1)
        );
        response = response.header(header::CONTENT_RANGE, text);
    }
    let body = if head {
        watch.tell(FileOutcome::SizeAsked { length });
        Body::empty()
    } else {
        watch.begin(range.end - range.start);
        Body::new(Stream {
            content: Reading::Idle(content),
            range,
            watch,
        })
    };
    response
        .body(body)
        .expect("numbers and constants make valid headers")
}

/// Tells the source what becomes of one request.
struct Watch {
    source: Arc<dyn BootSource>,
    peer: IpAddr,
    path: String,
    began: Instant,
    sent: u64,
    wanted: u64,
    open: bool,
}

impl Watch {
    fn begin(&mut self, length: u64) {
        self.open = true;
        self.wanted = length;
        self.tell(FileOutcome::Started { length });
    }

    fn tell(&self, outcome: FileOutcome) {
        let event = BootEvent::File {
            protocol: Protocol::Http,
            peer: self.peer,
            path: self.path.clone(),
            outcome,
        };
        tracing::debug!(%event, "http");
        self.source.observe(&event);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        self.tell(if self.sent == self.wanted {
            let elapsed = self.began.elapsed();
            FileOutcome::Done {
                length: self.sent,
                elapsed,
                resent: 0,
            }
        } else {
            let reason = "the client closed the connection".into();
            FileOutcome::Broken {
                sent: self.sent,
                reason,
            }
        });
    }
}

type NextPiece = Pin<Box<dyn Future<Output = (Content, io::Result<Bytes>)> + Send>>;

enum Reading {
    Idle(Content),
    Busy(NextPiece),
    Over,
}

/// A body that reads as the connection takes it.
struct Stream {
    content: Reading,
    range: Range<u64>,
    watch: Watch,
}

impl axum::body::HttpBody for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, io::Error>>> {
        loop {
            match std::mem::replace(&mut self.content, Reading::Over) {
                Reading::Over => return Poll::Ready(None),
                Reading::Idle(_) if self.range.is_empty() => return Poll::Ready(None),
                Reading::Idle(mut content) => {
                    let offset = self.range.start;
                    self.content = Reading::Busy(Box::pin(async move {
                        let piece = content.piece(offset).await;
                        (content, piece)
                    }));
                }
                Reading::Busy(mut next) => match next.as_mut().poll(context) {
                    Poll::Pending => {
                        self.content = Reading::Busy(next);
                        return Poll::Pending;
                    }
                    Poll::Ready((_, Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready((content, Ok(mut piece))) => {
                        let left = self.range.end - self.range.start;
                        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                        let taken = u64::try_from(piece.len()).expect("at most a chunk");
                        self.range.start += taken;
                        self.watch.sent += taken;
                        self.content = Reading::Idle(content);
                        return Poll::Ready(Some(Ok(hyper::body::Frame::data(piece))));
                    }
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.range.is_empty()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.range.end - self.range.start)
    }
}

/// What part of a file a request wants.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Outside,
}

/// RFC 9110, 14.2: one range of bytes is served; what is not understood, several
/// ranges, and conditions that cannot be checked give the whole file.
fn wanted(headers: &HeaderMap, length: u64) -> Wanted {
    let text = headers.get(header::RANGE).map(HeaderValue::to_str);
    let Some(Ok(text)) = text else {
        return Wanted::All;
    };
    // Files carry no validator, so no condition can hold.
    if headers.contains_key(header::IF_RANGE) {
        return Wanted::All;
    }
    let Some(range) = text.trim().strip_prefix("bytes=") else {
        return Wanted::All;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Wanted::All;
    };
    let number = |text: &str| match text.trim() {
        text if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() => {
            // More digits than 64 bits hold is beyond any file.
            Some(text.parse().unwrap_or(u64::MAX))
        }
        _ => None,
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => return Wanted::All,
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
        (Some(first), None) if last.trim().is_empty() => first..length,
        (None, Some(count)) if first.trim().is_empty() => length.saturating_sub(count)..length,
        _ => return Wanted::All,
    };
    if range.start >= range.end {
        Wanted::Outside
    } else {
        Wanted::Part(range)
    }
}

/// Undoes percent-encoding; `None` if the result is no text.
fn decode(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        out.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{BootAnswer, BootFile, BootRequest};
    use proptest::prelude::*;
    use std::path::PathBuf;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
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
            match path {
                "secret" => Err(NotServed::Refused("not yours".into())),
                "broken" => Err(NotServed::Failed("disk on fire".into())),
                "bytes" => Ok(BootFile::Bytes(Bytes::from_static(b"0123456789"))),
                path => Ok(BootFile::Path(self.root.join(path))),
            }
        }

        fn observe(&self, event: &BootEvent) {
            let _ = self.events.send(event.clone());
        }
    }

    struct Bench {
        stream: TcpStream,
        events: mpsc::UnboundedReceiver<BootEvent>,
        content: Vec<u8>,
        _folder: tempfile::TempDir,
    }

    async fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..1_300_003u32)
            .flat_map(|n| [n.to_le_bytes()[0], (n >> 9).to_le_bytes()[0]])
            .collect();
        std::fs::create_dir(folder.path().join("boot dir")).unwrap();
        std::fs::write(folder.path().join("boot dir/x.efi"), &content).unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let source = Arc::new(Folder {
            root: folder.path().to_owned(),
            events: sender,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(run(listener, source, std::future::pending()));
        let stream = TcpStream::connect(address).await.unwrap();
        Bench {
            stream,
            events,
            content,
            _folder: folder,
        }
    }

    /// Status, head in lower case, body. All on one connection: it is kept alive.
    async fn ask(
        bench: &mut Bench,
        method: &str,
        path: &str,
        head: &str,
    ) -> (u16, String, Vec<u8>) {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n");
        bench.stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(bench.stream.read_u8().await.unwrap());
        }
        let text = String::from_utf8(text).unwrap().to_lowercase();
        let length = text
            .split("content-length: ")
            .nth(1)
            .expect("the length is always told");
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        assert!(!text.contains("transfer-encoding"), "{text}");
        let mut body = vec![0; if method == "HEAD" { 0 } else { length }];
        bench.stream.read_exact(&mut body).await.unwrap();
        (text[9..12].parse().unwrap(), text, body)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn files_are_served_by_any_spelling_of_their_path() {
        let mut bench = bench().await;
        for path in [
            "/boot%20dir/x.efi",
            "//boot%20dir//x.efi",
            "/./boot%20dir/%78.efi",
        ] {
            let (status, head, body) = ask(&mut bench, "GET", path, "").await;
            assert_eq!(status, 200, "{path}: {head}");
            assert!(body == bench.content, "{path}: {} bytes", body.len());
            assert!(head.contains("accept-ranges: bytes"));
        }
        let (status, head, _) = ask(&mut bench, "HEAD", "/boot%20dir/x.efi", "").await;
        assert_eq!(status, 200);
        assert!(
            head.contains(&format!("content-length: {}", bench.content.len())),
            "{head}"
        );
        let (status, _, body) = ask(&mut bench, "GET", "/bytes", "").await;
        assert_eq!((status, &body[..]), (200, &b"0123456789"[..]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ranges_give_the_bytes_that_they_name() {
        let mut bench = bench().await;
        let length = bench.content.len();
        // Across the border of two chunks, too.
        for (range, expected) in [
            ("0-0".to_owned(), 0..1),
            ("1048570-1048590".to_owned(), 1_048_570..1_048_591),
            (format!("{}-", length - 5), length - 5..length),
            ("-7".to_owned(), length - 7..length),
            ("2500000-99999999".to_owned(), 2_500_000..length),
            ("10-2200000".to_owned(), 10..2_200_001),
        ] {
            let head = format!("Range: bytes={range}\r\n");
            let (status, head, body) = ask(&mut bench, "GET", "/boot%20dir/x.efi", &head).await;
            assert_eq!(status, 206, "{range}");
            assert!(body == bench.content[expected.clone()], "{range}");
            let text = format!(
                "content-range: bytes {}-{}/{length}",
                expected.start,
                expected.end - 1
            );
            assert!(head.contains(&text), "{range}: {head}");
        }
        let (status, head, _) = ask(&mut bench, "GET", "/bytes", "Range: bytes=10-\r\n").await;
        assert_eq!(status, 416);
        assert!(head.contains("content-range: bytes */10"), "{head}");
        let condition = "Range: bytes=0-1\r\nIf-Range: \"old\"\r\n";
        assert_eq!(ask(&mut bench, "GET", "/bytes", condition).await.0, 200);
    }

    #[tokio::test]
    async fn what_is_not_served_says_why() {
        let mut bench = bench().await;
        for (method, path, status, words) in [
            ("GET", "/nothing", 404, "not found"),
            ("GET", "/", 404, "not found"),
            ("GET", "/boot%20dir", 404, "not found"),
            ("GET", "/secret", 403, "refused: not yours"),
            ("GET", "/broken", 500, "could not look: disk on fire"),
            ("GET", "/%2e%2e/etc/passwd", 403, "\"..\" in the path"),
            ("GET", "/a%00b", 403, "control characters"),
            ("GET", "/%ff", 404, "not found"),
            ("POST", "/bytes", 405, "only GET and HEAD"),
        ] {
            let (got, _, body) = ask(&mut bench, method, path, "").await;
            let body = String::from_utf8(body).unwrap();
            assert_eq!(got, status, "{path}: {body}");
            assert!(body.contains(words), "{path}: {body}");
        }
    }

    #[tokio::test]
    async fn the_source_is_told_how_it_ended() {
        let mut bench = bench().await;
        ask(&mut bench, "GET", "/bytes", "").await;
        let outcomes = [
            bench.events.recv().await.unwrap(),
            bench.events.recv().await.unwrap(),
        ]
        .map(|event| event.to_string());
        assert_eq!(outcomes[0], "127.0.0.1 HTTP bytes: sending 10 bytes");
        assert!(
            outcomes[1].starts_with("127.0.0.1 HTTP bytes: sent 10 bytes"),
            "{}",
            outcomes[1]
        );
    }

    #[test]
    fn ranges_that_are_not_understood_give_the_whole_file() {
        let range = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_str(text).unwrap());
            wanted(&headers, 10)
        };
        for text in [
            "bytes=5-2",
            "bytes=a-b",
            "bytes=",
            "bytes=-",
            "lines=1-2",
            "bytes=0-1,4-5",
            "bytes=+1-2",
        ] {
            assert_eq!(range(text), Wanted::All, "{text}");
        }
        assert_eq!(range("bytes=-0"), Wanted::Outside);
        assert_eq!(range("bytes=-99"), Wanted::Part(0..10));
        assert_eq!(
            range("bytes=0-99999999999999999999999"),
            Wanted::Part(0..10)
        );
        assert_eq!(range("bytes=99999999999999999999999-"), Wanted::Outside);
    }

    proptest! {
        #[test]
        fn no_range_leaves_the_file(text in "bytes=[0-9]{0,21}-[0-9]{0,21}", length in 0u64..1000) {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_str(&text).unwrap());
            if let Wanted::Part(range) = wanted(&headers, length) {
                prop_assert!(range.start < range.end && range.end <= length);
            }
        }

        #[test]
        fn no_path_makes_the_decoder_panic(path in ".{0,40}") {
            let _ = decode(&path);
        }
    }
}
