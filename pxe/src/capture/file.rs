//! The file format: classic pcap (draft-ietf-opsawg-pcap).

use std::io::{self, Write};

use jiff::Timestamp;
use thiserror::Error;

use super::Datagram;

/// Largest packet that a file may hold.
const SNAP_LENGTH: u32 = 65_535;

/// Why a file is not a capture that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadCapture {
    /// Not the classic pcap format.
    #[error("not a pcap file (pcapng is not read; hint: tcpdump -w writes pcap)")]
    Format,
    /// Not Ethernet.
    #[error("link type {0}, expected Ethernet (1)")]
    Link(u32),
}

/// Returns the UDP datagrams of a capture. What is no whole UDP over IPv4 is left
/// out, and a capture that was cut off ends with its last whole packet.
///
/// # Errors
/// [`BadCapture`].
pub fn read(bytes: &[u8]) -> Result<Vec<Datagram>, BadCapture> {
    let magic: [u8; 4] = bytes
        .get(..4)
        .and_then(|m| m.try_into().ok())
        .ok_or(BadCapture::Format)?;
    let (big, nanos) = match magic {
        [0xd4, 0xc3, 0xb2, 0xa1] => (false, false),
        [0xa1, 0xb2, 0xc3, 0xd4] => (true, false),
        [0x4d, 0x3c, 0xb2, 0xa1] => (false, true),
        [0xa1, 0xb2, 0x3c, 0x4d] => (true, true),
        _ => return Err(BadCapture::Format),
    };
    let number = |bytes: &[u8], at: usize| -> Option<u32> {
        let field = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(if big {
            u32::from_be_bytes(field)
        } else {
            u32::from_le_bytes(field)
        })
    };
    match number(bytes, 20) {
        Some(1) => {}
        Some(other) => return Err(BadCapture::Link(other)),
        None => return Err(BadCapture::Format),
    }
    let (mut rest, mut start, mut datagrams) = (&bytes[24..], None, Vec::new());
    while let (Some(seconds), Some(fraction), Some(length)) =
        (number(rest, 0), number(rest, 4), number(rest, 8))
    {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(frame) = rest.get(16..).and_then(|rest| rest.get(..length)) else {
            break;
        };
        rest = &rest[16 + length..];
        let micros = u64::from(if nanos { fraction / 1000 } else { fraction });
        let time = u64::from(seconds) * 1_000_000 + micros;
        let since = time.saturating_sub(*start.get_or_insert(time));
        datagrams.extend(Datagram::of_frame(frame, since));
    }
    Ok(datagrams)
}

/// Writes a capture, packet by packet.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// Begins a capture of Ethernet frames.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(mut to: W) -> io::Result<Self> {
        let mut head = Vec::new();
        head.extend_from_slice(&0xa1b2_c3d4u32.to_le_bytes());
        head.extend_from_slice(&2u16.to_le_bytes());
        head.extend_from_slice(&4u16.to_le_bytes());
        head.extend_from_slice(&[0; 8]);
        head.extend_from_slice(&SNAP_LENGTH.to_le_bytes());
        head.extend_from_slice(&1u32.to_le_bytes());
        to.write_all(&head)?;
        Ok(Self { to })
    }

    /// Adds the first `kept` bytes of a frame.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, time: Timestamp, frame: &[u8], kept: usize) -> io::Result<()> {
        let whole = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let kept = &frame[..frame.len().min(kept)];
        // In whole seconds until 2106, and 0 before 1970: the format has no more.
        let seconds = u32::try_from(time.as_second()).unwrap_or(0);
        let micros = u32::try_from(time.subsec_microsecond()).unwrap_or(0);
        let mut record = Vec::with_capacity(16 + kept.len());
        for number in [
            seconds,
            micros,
            u32::try_from(kept.len()).unwrap_or(u32::MAX),
            whole,
        ] {
            record.extend_from_slice(&number.to_le_bytes());
        }
        record.extend_from_slice(kept);
        // At once: a capture that is cut off is readable up to its last packet.
        self.to.write_all(&record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 10.0.0.2, port 2000, to 10.0.0.1, port 69, over Ethernet.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        for number in [2000, 69, u16::try_from(payload.len() + 8).unwrap(), 0] {
            frame.extend_from_slice(&number.to_be_bytes());
        }
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn what_was_written_is_read_again_and_what_was_cut_keeps_its_length() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        let start: Timestamp = "2026-11-23T12:00:00.9Z".parse().unwrap();
        writer.add(start, &frame(b"whole"), usize::MAX).unwrap();
        let later = "2026-11-23T12:00:01.15Z".parse().unwrap();
        writer.add(later, &frame(&[7; 300]), 50).unwrap();
        let found = read(&file).unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.micros, one.length, one.payload.as_slice()))
            .collect();
        assert_eq!(told, [(0, 5, &b"whole"[..]), (250_000, 300, &[7; 8][..])]);
        assert_eq!(found[0].from.to_string(), "10.0.0.2:2000");
        // Cut off in the middle of the second packet.
        file.truncate(file.len() - 3);
        assert_eq!(read(&file).unwrap().len(), 1);
        assert_eq!(read(b"\x0a\x0d\x0d\x0a and so on"), Err(BadCapture::Format));
    }
}
