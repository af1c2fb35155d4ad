//! What comes over one connection of HTTP boot. Every request gets one answer, with its
//! length, with the bytes that it names and no others, and never a redirection; no path
//! leaves its tree, and each transfer that began is told to have ended.
#![no_main]

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use pxe::boot::{BootAnswer, BootEvent, BootFile, BootRequest, BootSource, FileOutcome, NotServed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const CONTENT: [u8; 1000] = {
    let mut bytes = [0; 1000];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at % 251) as u8;
        at += 1;
    }
    bytes
};

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without sockets");
}

fuzz_target!(|input: &[u8]| RUNTIME.with(|runtime| runtime.block_on(connection(input))));

async fn connection(input: &[u8]) {
    let shelf = Arc::new(Shelf::default());
    let asked = Mutex::new(Vec::new());
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let service = service_fn(async |request: Request<Incoming>| {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        asked.lock().expect("one thread").push(method.clone());
        let source = Arc::clone(&shelf) as Arc<dyn BootSource>;
        let answer = pxe::http::respond(source, PEER, &method, &path, request.headers()).await;
        Ok::<_, Infallible>(answer)
    });
    let mut server = http1::Builder::new();
    // The client says all at once and then listens: it has not gone.
    let server = server
        .half_close(true)
        .serve_connection(TokioIo::new(ours), service);
    let client = async {
        let (mut from, mut to) = tokio::io::split(theirs);
        let mut answers = Vec::new();
        let say = async {
            let _ = to.write_all(input).await;
            let _ = to.shutdown().await;
        };
        let (_, heard) = tokio::join!(say, from.read_to_end(&mut answers));
        heard.expect("memory can be read");
        answers
    };
    let (_, answers) = tokio::join!(server, client);

    let asked = asked.into_inner().expect("one thread");
    let mut rest = &answers[..];
    for method in &asked {
        rest = answered(method, rest);
    }
    // Beyond them stands at most one word of hyper's own: that it did not understand.
    if !rest.is_empty() {
        let refused = rest.starts_with(b"HTTP/1.") && rest.get(9) == Some(&b'4');
        assert!(refused, "{}", rest.escape_ascii());
        assert!(rest.ends_with(b"\r\n\r\n"), "{}", rest.escape_ascii());
    }
    let events = *shelf.events.lock().expect("one thread");
    assert_eq!(events.began, events.ended, "a transfer without its end");
    assert!(events.told >= asked.iter().filter(|method| serves(method)).count());
}

fn serves(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Checks the first of some answers and returns those behind it.
fn answered<'a>(method: &Method, answers: &'a [u8]) -> &'a [u8] {
    let end = answers.windows(4).position(|text| text == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {}", answers.escape_ascii()));
    let (head, rest) = (&answers[..end], &answers[end + 4..]);
    let head = str::from_utf8(head).expect("numbers and constants");
    let status = head.get(9..12).expect("a status line");
    let header = |name: &str| {
        let mut lines = head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(": "));
        lines
            .find(|(have, _)| *have == name)
            .map(|(_, value)| value)
    };
    assert_eq!(
        header("transfer-encoding"),
        None,
        "firmware knows no chunks"
    );
    let length = header("content-length").and_then(|text| text.parse().ok());
    let length: usize = length.unwrap_or_else(|| panic!("no length: {head}"));
    let (body, rest) = if *method == Method::HEAD {
        (None, rest)
    } else {
        let (body, rest) = rest.split_at_checked(length).expect("the whole body");
        (Some(body), rest)
    };
    match status {
        "200" => {
            let whole = [&CONTENT[..], &[], pxe::local_boot::PROGRAM];
            assert!(whole.iter().any(|file| file.len() == length), "{head}");
            assert!(body.is_none_or(|body| whole.contains(&body)), "{head}");
        }
        "206" => {
            let range = header("content-range").and_then(|text| text.strip_prefix("bytes "));
            let (range, total) = range.and_then(|text| text.split_once('/')).expect("range");
            let (first, last) = range.split_once('-').expect("first and last byte");
            let number = |text: &str| text.parse::<usize>().expect("a number");
            let (first, last, total) = (number(first), number(last), number(total));
            assert!(first <= last && last < total, "{head}");
            assert_eq!(length, last + 1 - first, "{head}");
            let file = match total == CONTENT.len() {
                true => &CONTENT[..],
                false => pxe::local_boot::PROGRAM,
            };
            assert_eq!(total, file.len());
            assert!(
                body.is_none_or(|body| body == &file[first..=last]),
                "{head}"
            );
        }
        "405" => assert!(!serves(method), "{method}"),
        "403" | "404" | "416" => {}
        _ => panic!("{head}"),
    }
    assert_eq!(status == "405", !serves(method), "{method}: {head}");
    rest
}

#[derive(Clone, Copy, Default)]
struct Events {
    told: usize,
    began: usize,
    ended: usize,
}

#[derive(Default)]
struct Shelf {
    events: Mutex<Events>,
}

impl BootSource for Shelf {
    fn decide(&self, _: &BootRequest) -> BootAnswer {
        panic!("HTTP asks for files only");
    }

    fn open(&self, _: IpAddr, path: &str) -> Result<BootFile, NotServed> {
        let clean = !path.split('/').any(|part| matches!(part, "" | "." | ".."));
        let odd = path.contains('\\') || path.chars().any(char::is_control);
        assert!(clean && !odd, "{path:?}");
        match path {
            "boot.efi" => Ok(BootFile::Bytes(Bytes::from_static(&CONTENT))),
            "empty" => Ok(BootFile::Bytes(Bytes::new())),
            "secret" => Err(NotServed::Refused("not yours".into())),
            _ => Err(NotServed::NotFound),
        }
    }

    fn observe(&self, event: &BootEvent) {
        let BootEvent::File { outcome, .. } = event else {
            panic!("{event:?}");
        };
        let mut events = self.events.lock().expect("one thread");
        events.told += 1;
        match outcome {
            FileOutcome::Started { .. } => events.began += 1,
            FileOutcome::Done { .. } | FileOutcome::Broken { .. } => events.ended += 1,
            FileOutcome::SizeAsked { .. } | FileOutcome::Refused { .. } => {}
        }
    }
}
