//! TFTP: a request and what its client says afterwards; an empty datagram lets the time to
//! the next deadline pass. No path leaves its tree, no block is sent that is not of the
//! file, and after all noise an honest client still gets every block.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use pxe::boot::clean_path;
use pxe::tftp::packet::{ErrorCode, Packet, Request, encode_error, encode_option_ack};
use pxe::tftp::transfer::{Agreed, Step, Transfer, agree, low_bits};

const MAX_BLOCK: u16 = 1468;
const MAX_WINDOW: u16 = 64;

fuzz_target!(|input: &[u8]| {
    let datagrams = pxe_fuzz::datagrams(input);
    let Ok(packet) = Packet::parse(datagrams[0]) else {
        return;
    };
    let (Packet::Read(request) | Packet::Write(request)) = packet else {
        return;
    };
    path_stays_inside(&request);
    // Nothing, one byte, full last blocks and others, and more blocks than 16 bits count.
    for length in [0, 1, 512, 20_000, 40_000_000] {
        let agreed = agree(&request.options, length, MAX_BLOCK, MAX_WINDOW);
        in_limits(&request, &agreed, length);
        let mut session = Session::start(length, &agreed);
        for bytes in &datagrams[1..] {
            session.hear(bytes);
        }
        session.ends(length <= 20_000);
    }
});

fn path_stays_inside(request: &Request) {
    match clean_path(&request.path) {
        Ok(path) => {
            let climbs = path.split('/').any(|part| matches!(part, "" | "." | ".."));
            let odd = path.contains('\\') || path.chars().any(char::is_control);
            assert!(!climbs && !odd, "{path:?}");
            assert_eq!(clean_path(&path).as_ref(), Ok(&path));
        }
        Err(error) => {
            let sent = encode_error(ErrorCode::Access, &error.to_string());
            let message = error.to_string();
            assert_eq!(Packet::parse(&sent), Ok(Packet::Error { code: 2, message }));
        }
    }
}

fn in_limits(request: &Request, agreed: &Agreed, length: u64) {
    assert!((8..=MAX_BLOCK).contains(&agreed.block_size), "{agreed:?}");
    assert!((1..=MAX_WINDOW).contains(&agreed.window), "{agreed:?}");
    if agreed.accepted.is_empty() {
        return;
    }
    let sent = encode_option_ack(&agreed.accepted);
    let Ok(Packet::OptionAck(told)) = Packet::parse(&sent) else {
        panic!("{agreed:?}");
    };
    assert_eq!(told.len(), agreed.accepted.len());
    for (name, value) in told {
        // RFC 2347: nothing is acknowledged that was not asked for, and nothing twice.
        assert!(
            request.options.iter().any(|(asked, _)| *asked == name),
            "{name}"
        );
        let value: u64 = value.parse().expect("a number was encoded");
        match name.as_str() {
            "blksize" => assert_eq!(value, u64::from(agreed.block_size)),
            "windowsize" => assert_eq!(value, u64::from(agreed.window)),
            "timeout" => assert_eq!(agreed.timeout, Some(Duration::from_secs(value))),
            "tsize" => assert_eq!(value, length),
            other => panic!("{other} is no option of ours"),
        }
    }
}

struct Session {
    transfer: Transfer,
    step: Step,
    now: Instant,
    length: u64,
    blocks: u64,
    window: u64,
    /// Largest block that was sent.
    reached: u64,
    acked: u64,
}

impl Session {
    fn start(length: u64, agreed: &Agreed) -> Self {
        let now = Instant::now();
        let (transfer, step) = Transfer::start(length, agreed, now);
        let mut session = Self {
            transfer,
            step,
            now,
            length,
            blocks: length / u64::from(agreed.block_size) + 1,
            window: u64::from(agreed.window),
            reached: 0,
            acked: 0,
        };
        session.judge();
        session
    }

    fn over(&self) -> bool {
        matches!(self.step, Step::Done | Step::SizeAsked | Step::Broken(_))
    }

    fn judge(&mut self) {
        if let Step::SendBlocks { first, count } = self.step {
            assert!(
                first >= 1 && count >= 1 && count <= self.window,
                "{:?}",
                self.step
            );
            assert!(
                first <= self.reached + 1,
                "a block is left out: {:?}",
                self.step
            );
            let last = first + count - 1;
            assert!(last <= self.blocks, "no block of the file: {:?}", self.step);
            self.reached = self.reached.max(last);
        }
        let acked = self.transfer.acked_bytes();
        assert!(
            self.acked <= acked && acked <= self.length,
            "{:?}",
            self.transfer
        );
        self.acked = acked;
        if self.step == Step::Done {
            assert_eq!((acked, self.reached), (self.length, self.blocks));
        }
    }

    fn time_passes(&mut self) {
        let deadline = self.transfer.deadline();
        if self.now < deadline {
            assert_eq!(self.transfer.on_timeout(self.now), Step::Wait, "too early");
            self.now = deadline;
        }
        self.step = self.transfer.on_timeout(self.now);
        self.judge();
        assert_ne!(self.step, Step::Wait, "a deadline without consequence");
    }

    fn says(&mut self, packet: &Packet) {
        // Some answers come sooner, some later.
        self.now += Duration::from_millis(3 + self.reached % 7 * 50);
        self.step = self.transfer.on_packet(packet, self.now);
        self.judge();
    }

    fn hear(&mut self, bytes: &[u8]) {
        if self.over() {
            return;
        }
        match Packet::parse(bytes) {
            Ok(packet) => self.says(&packet),
            Err(_) if bytes.is_empty() => self.time_passes(),
            Err(_) => {}
        }
    }

    /// An honest client comes to its end, and one that has gone is given up.
    fn ends(mut self, honest: bool) {
        let mut left = 3 * self.blocks.min(20_000) + 100;
        let mut last = None;
        while !self.over() {
            left = left.checked_sub(1).expect("the transfer comes to an end");
            if !honest {
                self.time_passes();
                continue;
            }
            match self.step {
                Step::SendOptions => self.says(&Packet::Ack { block: 0 }),
                Step::SendBlocks { first, count } => {
                    last = Some(first + count - 1);
                    let block = low_bits(first + count - 1);
                    self.says(&Packet::Ack { block });
                }
                _ => self.time_passes(),
            }
        }
        let gone = matches!(self.step, Step::Broken(_));
        assert!(!honest || last.is_none() || !gone, "{:?}", self.step);
    }
}
