//! One file on its way to one client: which blocks to send when. No socket, no
//! file, no clock: messages and the time go in, what to send comes out.

use std::time::{Duration, Instant};

use super::packet::Packet;

/// Smallest and largest block of RFC 2348.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 8..=65464;
/// Block size without options.
const DEFAULT_BLOCK: u16 = 512;

/// First guess of the time to an answer, until one was measured.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// A firmware that writes to its screen between two packets is not lost.
const MIN_TIMEOUT: Duration = Duration::from_millis(200);
/// Largest pause between two attempts.
const MAX_TIMEOUT: Duration = Duration::from_secs(4);
/// A client that made no progress for so long is gone.
const PATIENCE: Duration = Duration::from_secs(25);

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Bytes of a block.
    pub block_size: u16,
    /// Blocks sent before an acknowledgement is awaited.
    pub window: u16,
    /// Timeout that the client wishes.
    pub timeout: Option<Duration>,
    /// Options to acknowledge, in the client's order; empty means no OACK.
    pub accepted: Vec<(&'static str, u64)>,
}

/// Answers the client's options within the server's limits.
///
/// Unknown options and values that make no sense are left out, as RFC 2347 wants:
/// the transfer then runs as if they had not been asked for.
#[must_use]
pub fn agree(options: &[(String, String)], length: u64, max_block: u16, max_window: u16) -> Agreed {
    let mut agreed = Agreed {
        block_size: DEFAULT_BLOCK,
        window: 1,
        timeout: None,
        accepted: Vec::new(),
    };
    for (name, value) in options {
        let Ok(value) = value.trim().parse::<u64>() else {
            continue;
        };
        // RFC 2347 allows each option once. What was told first holds: a client that
        // reads another block size than it is sent takes the first block for the last.
        if agreed.accepted.iter().any(|(have, _)| have == name) {
            continue;
        }
        let accepted = match name.as_str() {
            "blksize" if value >= *BLOCK_SIZES.start() => {
                let size = value.min(u64::from(max_block)).min(*BLOCK_SIZES.end());
                agreed.block_size = u16::try_from(size).unwrap_or(DEFAULT_BLOCK);
                ("blksize", size)
            }
            "windowsize" if (1..=65535).contains(&value) => {
                let window = value.min(u64::from(max_window.max(1)));
                agreed.window = u16::try_from(window).unwrap_or(1);
                ("windowsize", window)
            }
            "timeout" if (1..=255).contains(&value) => {
                agreed.timeout = Some(Duration::from_secs(value));
                ("timeout", value)
            }
            "tsize" => ("tsize", length),
            _ => continue,
        };
        agreed.accepted.push(accepted);
    }
    agreed
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing but wait.
    Wait,
    /// Send the option acknowledgement.
    SendOptions,
    /// Send these blocks, counted from 1; on the wire the count is modulo 65536.
    SendBlocks {
        /// First block.
        first: u64,
        /// Number of blocks.
        count: u64,
    },
    /// All is acknowledged.
    Done,
    /// The client wanted to know the size only.
    SizeAsked,
    /// The transfer is over and incomplete.
    Broken(String),
}

/// A transfer that runs.
#[derive(Debug)]
pub struct Transfer {
    length: u64,
    block_size: u64,
    window: u64,
    blocks: u64,
    /// Blocks up to here are acknowledged. `None`: the OACK is not yet.
    acked: Option<u64>,
    /// Blocks up to here were sent since the last going back.
    sent: u64,
    /// Largest block ever sent.
    reached: u64,
    /// The window after `acked` was resent because of a duplicate acknowledgement.
    answered_duplicate: bool,
    /// Where sending went back: the largest block sent before that.
    went_back_from: Option<u64>,
    resent: u64,
    timer: Timer,
}

impl Transfer {
    /// Returns a transfer and its first step.
    #[must_use]
    pub fn start(length: u64, agreed: &Agreed, now: Instant) -> (Self, Step) {
        let block_size = u64::from(agreed.block_size);
        let with_options = !agreed.accepted.is_empty();
        let mut transfer = Self {
            length,
            block_size,
            window: u64::from(agreed.window),
            // A file that fills its last block ends with an empty one.
            blocks: length / block_size + 1,
            acked: if with_options { None } else { Some(0) },
            sent: 0,
            reached: 0,
            answered_duplicate: false,
            went_back_from: None,
            resent: 0,
            timer: Timer::new(agreed.timeout, now),
        };
        let step = if with_options {
            Step::SendOptions
        } else {
            transfer.send_window(0, now)
        };
        (transfer, step)
    }

    /// Returns the moment at which [`Transfer::on_timeout`] is due.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.timer.deadline
    }

    /// Returns how many bytes the client has acknowledged.
    #[must_use]
    pub fn acked_bytes(&self) -> u64 {
        (self.acked.unwrap_or(0) * self.block_size).min(self.length)
    }

    /// Returns how many blocks were sent more than once.
    #[must_use]
    pub fn resent(&self) -> u64 {
        self.resent
    }

    /// Takes a message of the client.
    pub fn on_packet(&mut self, packet: &Packet, now: Instant) -> Step {
        match packet {
            Packet::Ack { block } => self.on_ack(*block, now),
            // PXE firmware asks for the size first and then breaks off, with
            // error 0 or 8, and asks again for the file.
            Packet::Error { .. } if self.acked.is_none() => Step::SizeAsked,
            Packet::Error { code, message } => {
                Step::Broken(format!("the client gave up: error {code} {message:?}"))
            }
            Packet::Read(_) | Packet::Write(_) | Packet::Data { .. } | Packet::OptionAck(_) => {
                Step::Wait
            }
        }
    }

    fn on_ack(&mut self, block: u16, now: Instant) -> Step {
        let Some(acked) = self.acked else {
            if block != 0 {
                return Step::Wait;
            }
            self.acked = Some(0);
            self.timer.progress(now);
            return self.send_window(0, now);
        };
        // The count on the wire rolls over; the window is smaller than half of
        // its range, so the distance says which block is meant.
        let ahead = u64::from(block.wrapping_sub(low_bits(acked)));
        if ahead == 0 {
            return self.on_duplicate(acked, now);
        }
        if ahead > self.reached - acked {
            return Step::Wait;
        }
        let acked = acked + ahead;
        self.acked = Some(acked);
        self.answered_duplicate = false;
        self.timer.progress(now);
        if acked >= self.blocks {
            return Step::Done;
        }
        if acked == self.sent {
            self.went_back_from = None;
            return self.send_window(acked, now);
        }
        // Inside the window: the receiver misses the block after it, and the
        // sender goes back to that one (RFC 7440, section 4). Or the receiver was
        // puzzled by a block that came twice, as after every going back that was
        // not needed: going back again would double all that follows. So the
        // first such word about blocks that were sent once is taken as progress.
        if self
            .went_back_from
            .take_if(|before| acked >= *before)
            .is_some()
        {
            return self.send_next(acked, now);
        }
        self.send_window(acked, now)
    }

    /// An acknowledgement that says nothing new.
    ///
    /// In lock-step it is never answered: each duplicate would double all that
    /// follows (the Sorcerer's Apprentice, RFC 1123, 4.2.3.1). With windows it is
    /// how a receiver says that the first block of the window is missing. It can
    /// say so one round trip after the window was sent, not sooner: an earlier one
    /// was doubled on its way, or speaks of blocks that came twice. It is answered
    /// once for each window, the timer does the rest.
    fn on_duplicate(&mut self, acked: u64, now: Instant) -> Step {
        let early = !self.timer.round_trip_passed(now);
        if self.window == 1 || self.answered_duplicate || self.sent == acked || early {
            return Step::Wait;
        }
        self.answered_duplicate = true;
        self.send_window(acked, now)
    }

    /// Does what is due when the deadline has passed.
    pub fn on_timeout(&mut self, now: Instant) -> Step {
        if now < self.timer.deadline {
            return Step::Wait;
        }
        if now.duration_since(self.timer.last_progress) >= PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Step::Broken(format!("no acknowledgement for {seconds} s"));
        }
        self.timer.back_off(now);
        match self.acked {
            None => {
                self.resent += 1;
                Step::SendOptions
            }
            Some(acked) => self.send_window(acked, now),
        }
    }

    /// Sends the window after `acked`, whatever of it was sent before.
    fn send_window(&mut self, acked: u64, now: Instant) -> Step {
        let count = self.window.min(self.blocks - acked);
        let again = self.reached.saturating_sub(acked).min(count);
        if again > 0 {
            self.went_back_from = Some(self.reached);
        }
        self.resent += again;
        self.sent = acked + count;
        self.reached = self.reached.max(self.sent);
        self.timer.sent(now, again == 0);
        Step::SendBlocks {
            first: acked + 1,
            count,
        }
    }

    /// Sends what of the window after `acked` was not sent yet.
    fn send_next(&mut self, acked: u64, now: Instant) -> Step {
        let first = self.sent + 1;
        let last = self.blocks.min(acked + self.window);
        if last < first {
            return Step::Wait;
        }
        self.sent = last;
        self.reached = self.reached.max(last);
        self.timer.sent(now, false);
        Step::SendBlocks {
            first,
            count: last + 1 - first,
        }
    }
}

/// Returns the number of a block on the wire.
#[must_use]
pub fn low_bits(block: u64) -> u16 {
    u16::try_from(block & 0xffff).expect("masked to 16 bits")
}

/// The retransmission timer: RFC 6298's estimate, with the client's wish as floor.
#[derive(Debug)]
struct Timer {
    floor: Duration,
    smoothed: Option<(Duration, Duration)>,
    shortest: Option<Duration>,
    window_sent: Instant,
    current: Duration,
    deadline: Instant,
    /// When what is now under way was sent, if it was sent once only (Karn).
    sent_at: Option<Instant>,
    last_progress: Instant,
}

impl Timer {
    fn new(wish: Option<Duration>, now: Instant) -> Self {
        let current = wish.unwrap_or(FIRST_TIMEOUT);
        Self {
            floor: wish.unwrap_or(MIN_TIMEOUT),
            smoothed: None,
            shortest: None,
            window_sent: now,
            current,
            deadline: now + current,
            sent_at: Some(now),
            last_progress: now,
        }
    }

    fn sent(&mut self, now: Instant, first_time: bool) {
        self.sent_at = first_time.then_some(now);
        self.window_sent = now;
        self.deadline = now + self.current;
    }

    /// Tells whether an answer to what was sent last can have come. A tenth is
    /// granted, as no two round trips are alike.
    fn round_trip_passed(&self, now: Instant) -> bool {
        self.shortest
            .is_some_and(|time| now.duration_since(self.window_sent) >= time * 9 / 10)
    }

    fn progress(&mut self, now: Instant) {
        self.last_progress = now;
        if let Some(sent_at) = self.sent_at.take() {
            let sample = now.duration_since(sent_at);
            self.shortest = Some(self.shortest.map_or(sample, |time| time.min(sample)));
            let (mean, spread) = match self.smoothed {
                None => (sample, sample / 2),
                Some((mean, spread)) => (
                    (mean * 7 + sample) / 8,
                    (spread * 3 + mean.abs_diff(sample)) / 4,
                ),
            };
            self.smoothed = Some((mean, spread));
        }
        let estimate = self
            .smoothed
            .map_or(FIRST_TIMEOUT, |(mean, spread)| mean + spread * 4);
        self.current = estimate.clamp(self.floor, self.floor.max(MAX_TIMEOUT));
        self.deadline = now + self.current;
    }

    fn back_off(&mut self, now: Instant) {
        self.current = (self.current * 2).min(self.floor.max(MAX_TIMEOUT));
        self.sent_at = None;
        self.deadline = now + self.current;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn options(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn ack(block: u16) -> Packet {
        Packet::Ack { block }
    }

    fn blocks(first: u64, count: u64) -> Step {
        Step::SendBlocks { first, count }
    }

    fn started(length: u64, window: &str) -> (Transfer, Step, Instant) {
        let now = Instant::now();
        let agreed = agree(&options(&[("windowsize", window)]), length, 1468, 64);
        let (mut transfer, step) = Transfer::start(length, &agreed, now);
        assert_eq!(step, Step::SendOptions);
        let step = transfer.on_packet(&ack(0), now);
        (transfer, step, now)
    }

    #[test]
    fn options_are_granted_within_limits_and_nonsense_is_left_out() {
        for (asked, granted) in [
            (
                &[("blksize", "1468"), ("tsize", "0"), ("windowsize", "4")][..],
                &[("blksize", 1468), ("tsize", 99), ("windowsize", 4)][..],
            ),
            (
                &[("blksize", "65464"), ("windowsize", "65535")],
                &[("blksize", 1468), ("windowsize", 64)],
            ),
            (
                &[("blksize", "7"), ("windowsize", "0"), ("timeout", "0")],
                &[],
            ),
            (
                &[("blksize", "-1"), ("timeout", "256"), ("multicast", "")],
                &[],
            ),
            (&[("blksize", "99999999999999999999999")], &[]),
            (
                &[("blksize", "8"), ("timeout", "255")],
                &[("blksize", 8), ("timeout", 255)],
            ),
            (
                &[("blksize", "512"), ("blksize", "1024")],
                &[("blksize", 512)],
            ),
        ] {
            assert_eq!(
                agree(&options(asked), 99, 1468, 64).accepted,
                granted,
                "{asked:?}"
            );
        }
    }

    /// Found by the fuzzer: the first was told, and the last was used.
    #[test]
    fn of_an_option_that_stands_twice_the_one_that_is_told_is_used() {
        let asked = [
            ("blksize", "1024"),
            ("windowsize", "8"),
            ("timeout", "3"),
            ("blksize", "512"),
            ("windowsize", "1"),
            ("timeout", "200"),
        ];
        let agreed = agree(&options(&asked), 99, 1468, 64);
        assert_eq!((agreed.block_size, agreed.window), (1024, 8));
        assert_eq!(agreed.timeout, Some(Duration::from_secs(3)));
        let told = [("blksize", 1024), ("windowsize", 8), ("timeout", 3)];
        assert_eq!(agreed.accepted, told);
    }

    #[test]
    fn without_options_the_first_block_answers() {
        let now = Instant::now();
        let (mut transfer, step) = Transfer::start(600, &agree(&[], 600, 1468, 64), now);
        assert_eq!(step, blocks(1, 1));
        assert_eq!(transfer.on_packet(&ack(1), now), blocks(2, 1));
        assert_eq!(transfer.on_packet(&ack(2), now), Step::Done);
    }

    #[test]
    fn a_file_that_fills_its_last_block_ends_with_an_empty_one() {
        for (length, count) in [(0, 1), (511, 1), (512, 2), (1024, 3)] {
            let now = Instant::now();
            let (transfer, _) = Transfer::start(length, &agree(&[], length, 1468, 64), now);
            assert_eq!(transfer.blocks, count, "{length} bytes");
        }
    }

    #[test]
    fn duplicate_acknowledgements_do_not_multiply_blocks_in_lock_step() {
        let (mut transfer, step, now) = started(5000, "1");
        assert_eq!(step, blocks(1, 1));
        assert_eq!(transfer.on_packet(&ack(1), now), blocks(2, 1));
        assert_eq!(transfer.on_packet(&ack(1), now), Step::Wait);
        assert_eq!(transfer.on_packet(&ack(0), now), Step::Wait);
        assert_eq!(
            transfer.on_packet(&ack(9), now),
            Step::Wait,
            "a block never sent"
        );
        assert_eq!(transfer.resent(), 0);
    }

    #[test]
    fn a_window_with_a_hole_is_sent_again_from_the_hole() {
        let (mut transfer, step, now) = started(512 * 20, "8");
        assert_eq!(step, blocks(1, 8));
        assert_eq!(transfer.on_packet(&ack(3), now), blocks(4, 8));
        assert_eq!(transfer.resent(), 5);
        // The first block of the window is missing: said once, answered once.
        assert_eq!(transfer.on_packet(&ack(3), now), blocks(4, 8));
        assert_eq!(transfer.on_packet(&ack(3), now), Step::Wait);
        assert_eq!(transfer.on_packet(&ack(11), now), blocks(12, 8));
    }

    #[test]
    fn block_numbers_roll_over() {
        let (mut transfer, _, now) = started(512 * 70_000, "1");
        for block in 1..=70_000u64 {
            assert_eq!(
                transfer.on_packet(&ack(low_bits(block)), now),
                blocks(block + 1, 1)
            );
        }
        assert_eq!(low_bits(65_536), 0);
        assert_eq!(transfer.on_packet(&ack(low_bits(70_001)), now), Step::Done);
    }

    #[test]
    fn an_error_after_the_options_means_that_the_size_was_asked() {
        let now = Instant::now();
        let error = Packet::Error {
            code: 8,
            message: "User aborted the transfer".into(),
        };
        let agreed = agree(&options(&[("tsize", "0")]), 9, 1468, 64);
        let (mut transfer, _) = Transfer::start(9, &agreed, now);
        assert_eq!(transfer.on_packet(&error, now), Step::SizeAsked);
        let (mut transfer, ..) = started(9, "1");
        assert!(matches!(transfer.on_packet(&error, now), Step::Broken(_)));
    }

    #[test]
    fn silence_is_met_with_patience_and_an_end() {
        let (mut transfer, _, start) = started(5000, "4");
        let mut sent = 0;
        let end = loop {
            let due = transfer.deadline();
            assert_eq!(
                transfer.on_timeout(due - Duration::from_millis(1)),
                Step::Wait,
                "too early"
            );
            match transfer.on_timeout(due) {
                Step::SendBlocks { first: 1, count: 4 } => sent += 1,
                Step::Broken(reason) => {
                    assert!(reason.contains("no acknowledgement"), "{reason}");
                    break due;
                }
                step => panic!("{step:?}"),
            }
        };
        assert!(
            (5..12).contains(&sent),
            "{sent} attempts: neither deaf nor a flood"
        );
        let seconds = end.duration_since(start).as_secs();
        assert!((25..40).contains(&seconds), "{seconds} s");
    }

    #[test]
    fn the_clients_timeout_is_kept() {
        let now = Instant::now();
        let agreed = agree(&options(&[("timeout", "3")]), 5000, 1468, 64);
        let (mut transfer, _) = Transfer::start(5000, &agreed, now);
        assert_eq!(transfer.deadline(), now + Duration::from_secs(3));
        transfer.on_packet(&ack(0), now);
        assert_eq!(
            transfer.deadline(),
            now + Duration::from_secs(3),
            "not below it either"
        );
    }

    /// A receiver after RFC 7440: acknowledges the end of a window, and on a gap
    /// the last block before it.
    struct Receiver {
        window: u64,
        block_size: u64,
        have: u64,
        since_ack: u64,
        bytes: u64,
        complained: bool,
        done: bool,
    }

    impl Receiver {
        fn data(&mut self, block: u64, length: u64) -> Option<u64> {
            if block == self.have + 1 && !self.done {
                self.have = block;
                self.bytes += length;
                self.since_ack += 1;
                self.complained = false;
                self.done = length < self.block_size;
                if self.done || self.since_ack == self.window {
                    self.since_ack = 0;
                    return Some(self.have);
                }
                return None;
            }
            // Once for each gap, or when an old block says that the ACK was lost.
            if block > self.have && self.complained {
                return None;
            }
            self.complained = true;
            self.since_ack = 0;
            Some(self.have)
        }
    }

    /// Runs a transfer over a network that loses and doubles messages, in
    /// simulated time. Returns the seconds and the blocks that were sent.
    fn simulate(length: u64, window: u64, loss: u32, double: u32, seed: u64) -> (f64, u64) {
        let mut state = seed | 1;
        let mut chance = move |per_mille: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state % 1000).unwrap() < per_mille
        };
        let delay = Duration::from_micros(300);
        let start = Instant::now();
        let text = window.to_string();
        let agreed = agree(&options(&[("windowsize", &text)]), length, 1468, 64);
        let block_size = u64::from(agreed.block_size);
        let mut receiver = Receiver {
            window,
            block_size,
            have: 0,
            since_ack: 0,
            bytes: 0,
            complained: false,
            done: false,
        };
        // Messages under way by arrival and order: a block to the receiver, or an
        // acknowledgement to the sender.
        #[derive(Clone, Copy)]
        enum Message {
            Options,
            Block(u64),
            Ack(u64),
        }
        let mut wire: BTreeMap<(Instant, u64), Message> = BTreeMap::new();
        let mut order = 0;
        let mut sent = 0;
        let (mut transfer, mut step) = Transfer::start(length, &agreed, start);
        let mut now = start;
        let mut receiver_resends = start + Duration::from_secs(1);
        loop {
            let mut out = Vec::new();
            match step {
                Step::Wait => {}
                Step::SendOptions => out.push(Message::Options),
                Step::SendBlocks { first, count } => {
                    sent += count;
                    out.extend((first..first + count).map(Message::Block));
                }
                Step::Done => break,
                Step::SizeAsked | Step::Broken(_) => panic!("{step:?} with seed {seed}"),
            }
            loop {
                for message in out.drain(..) {
                    for _ in 0..1 + u32::from(chance(double)) {
                        if !chance(loss) {
                            order += 1;
                            wire.insert((now + delay, order), message);
                        }
                    }
                }
                let arrival = wire.first_key_value().map(|((at, _), _)| *at);
                let next = arrival
                    .unwrap_or(receiver_resends)
                    .min(transfer.deadline())
                    .min(receiver_resends);
                now = now.max(next);
                if Some(next) == arrival {
                    let (_, message) = wire.pop_first().unwrap();
                    match message {
                        Message::Options => out.push(Message::Ack(0)),
                        Message::Block(block) => {
                            receiver_resends = now + Duration::from_secs(1);
                            let bytes = length
                                .saturating_sub((block - 1) * block_size)
                                .min(block_size);
                            out.extend(receiver.data(block, bytes).map(Message::Ack));
                        }
                        Message::Ack(block) => {
                            step = transfer.on_packet(&ack(low_bits(block)), now);
                            break;
                        }
                    }
                } else if next == receiver_resends {
                    receiver_resends = now + Duration::from_secs(1);
                    out.push(Message::Ack(receiver.have));
                } else {
                    step = transfer.on_timeout(now);
                    break;
                }
                assert!(
                    now.duration_since(start) < Duration::from_secs(900),
                    "seed {seed}"
                );
            }
        }
        assert_eq!(receiver.bytes, length, "seed {seed}");
        (now.duration_since(start).as_secs_f64(), sent)
    }

    #[test]
    fn nothing_is_sent_twice_without_loss() {
        for window in [1, 4, 16, 64] {
            let (_, sent) = simulate(512 * 1000 + 7, window, 0, 0, 1);
            assert_eq!(sent, 1001, "window {window}");
        }
    }

    #[test]
    fn doubled_messages_do_not_double_the_traffic() {
        // In lock-step nothing at all is sent again, even if all is doubled.
        assert_eq!(simulate(512 * 1000, 1, 0, 1000, 1).1, 1001);
        // With windows a doubled block looks like a hole: it costs a window, and
        // what is sent again does not breed. About 13 messages are doubled here.
        for window in [4, 16] {
            let (_, sent) = simulate(512 * 1000, window, 0, 10, 1);
            assert!(
                sent <= 1001 + 2 * 25 * window,
                "window {window}: {sent} blocks for 1001"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_file_arrives_over_a_lossy_network(
            length in 0u64..200_000, window in 1u64..32,
            loss in 0u32..150, double in 0u32..200, seed in any::<u64>(),
        ) {
            let (_, sent) = simulate(length, window, loss, double, seed);
            prop_assert!(sent > length / 512);
        }

        #[test]
        fn no_message_makes_a_transfer_panic(
            length in 0u64..100_000, window in 1u64..70,
            messages in proptest::collection::vec((any::<u16>(), 0u64..3_000), 0..60),
        ) {
            let mut now = Instant::now();
            let agreed = agree(&options(&[("windowsize", &window.to_string())]), length, 1468, 64);
            let (mut transfer, _) = Transfer::start(length, &agreed, now);
            for (block, millis) in messages {
                now += Duration::from_millis(millis);
                let step = if millis % 2 == 0 {
                    transfer.on_packet(&ack(block % 80), now)
                } else {
                    transfer.on_timeout(now)
                };
                if let Step::SendBlocks { first, count } = step {
                    prop_assert!(first >= 1 && first + count - 1 <= length / 512 + 1);
                }
                prop_assert!(transfer.acked_bytes() <= length);
            }
        }
    }
}
