//! Reading a packet capture: who asked what, and who answered.
//!
//! A parser of our own, apart from the one in `pxe`, so that a mistake in the
//! servers cannot hide itself here. It knows Ethernet, IPv4, UDP, DHCP and
//! TFTP, and leaves everything else alone.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context as _;
use memchr::memmem::Finder;
use model::MacAddr;

/// Why bytes are not a capture.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The file is not a little-endian pcap file of Ethernet frames.
    #[error("not a packet capture: expected a little-endian Ethernet pcap header")]
    Header,
    /// The file cannot be read.
    #[error("read the packet capture")]
    Read(#[from] io::Error),
}

/// The frames of a capture, one after the other: captures grow beyond what fits into
/// memory. A frame that was cut off at the end, because the writer was killed, ends
/// them without an error.
#[derive(Debug)]
pub struct Frames<R> {
    from: R,
    fraction: f64,
    begun: Option<f64>,
}

impl<R: Read> Frames<R> {
    /// Reads the header of a capture.
    ///
    /// # Errors
    /// The bytes do not begin as a capture does, or cannot be read.
    pub fn new(mut from: R) -> Result<Self, PcapError> {
        let mut header = [0; 24];
        let fraction = match fill(&mut from, &mut header)?.then(|| le32(&header, 0)) {
            Some(Some(0xa1b2_c3d4)) => 1e-6,
            Some(Some(0xa1b2_3c4d)) => 1e-9,
            _ => return Err(PcapError::Header),
        };
        if le32(&header, 20) != Some(1) {
            return Err(PcapError::Header);
        }
        Ok(Self {
            from,
            fraction,
            begun: None,
        })
    }

    fn frame(&mut self) -> io::Result<Option<Frame>> {
        /// More than any frame has; a larger length is damage.
        const LONGEST: u32 = 1 << 20;
        let mut record = [0; 16];
        if !fill(&mut self.from, &mut record)? {
            return Ok(None);
        }
        let field = |at| le32(&record, at).expect("the record has 16 bytes");
        let length = field(8);
        if length > LONGEST {
            return Ok(None);
        }
        let mut bytes = vec![0; length as usize];
        if !fill(&mut self.from, &mut bytes)? {
            return Ok(None);
        }
        let time = f64::from(field(0)) + f64::from(field(4)) * self.fraction;
        let begun = *self.begun.get_or_insert(time);
        Ok(Some(Frame {
            time,
            seconds: time - begun,
            bytes,
        }))
    }
}

impl<R: Read> Iterator for Frames<R> {
    type Item = Result<Frame, PcapError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.frame().map_err(PcapError::from).transpose()
    }
}

/// Fills the buffer whole, or says that the bytes ended before.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a capture file to read it frame by frame.
///
/// # Errors
/// The file cannot be read, or is not a capture.
pub fn frames_of(path: &Path) -> anyhow::Result<Frames<BufReader<File>>> {
    let file =
        File::open(path).with_context(|| format!("open packet capture {}", path.display()))?;
    Frames::new(BufReader::new(file)).with_context(|| format!("decode {}", path.display()))
}

/// Returns the first of these byte strings that a single frame of the capture holds, by
/// its index: how a test asks that planted secrets never crossed the wire in the clear.
///
/// # Errors
/// The file cannot be read, or is not a capture.
pub fn first_of(path: &Path, needles: &[&[u8]]) -> anyhow::Result<Option<usize>> {
    let finders: Vec<_> = needles.iter().map(Finder::new).collect();
    for frame in frames_of(path)? {
        let frame = frame.with_context(|| format!("decode {}", path.display()))?;
        let found = finders
            .iter()
            .position(|finder| finder.find(&frame.bytes).is_some());
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// When a client's firmware fetched its boot file by TFTP, in seconds since the UNIX epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fetch {
    /// The read request that was served.
    pub asked: f64,
    /// The last block that the client acknowledged.
    pub done: f64,
}

/// Returns the longest TFTP transfer of a client: its boot file, and not the question for
/// the file's size that comes before.
///
/// # Errors
/// The file cannot be read, or is not a capture.
pub fn longest_fetch(path: &Path, client: MacAddr) -> anyhow::Result<Option<Fetch>> {
    let mut current: Option<(u16, Fetch)> = None;
    let mut longest: Option<Fetch> = None;
    let length = |fetch: &Fetch| fetch.done - fetch.asked;
    for frame in frames_of(path)? {
        let frame = frame.with_context(|| format!("decode {}", path.display()))?;
        let Some(datagram) = datagram(&frame) else {
            continue;
        };
        if datagram.source_mac != client {
            continue;
        }
        let time = frame.time;
        if tftp_read(&datagram).is_some() {
            let fetch = Fetch {
                asked: time,
                done: time,
            };
            current = Some((datagram.source_port, fetch));
        } else if let Some((port, fetch)) = &mut current
            && datagram.source_port == *port
        {
            fetch.done = time;
            if longest.is_none_or(|longest| length(&longest) < length(fetch)) {
                longest = Some(*fetch);
            }
        }
    }
    Ok(longest)
}

/// One captured Ethernet frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Seconds since the UNIX epoch.
    pub time: f64,
    /// Seconds since the first frame of the capture.
    pub seconds: f64,
    /// The frame's bytes, from the destination address on.
    pub bytes: Vec<u8>,
}

/// One UDP datagram over IPv4.
#[derive(Debug, Clone, PartialEq)]
pub struct Datagram {
    /// Seconds since the first frame of the capture.
    pub seconds: f64,
    /// Hardware address of the sender.
    pub source_mac: MacAddr,
    /// Hardware address of the receiver.
    pub destination_mac: MacAddr,
    /// Address of the sender.
    pub source: Ipv4Addr,
    /// Address of the receiver.
    pub destination: Ipv4Addr,
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// What the datagram carries.
    pub payload: Vec<u8>,
}

/// One DHCP message (RFC 2131), as far as a boot cares.
#[derive(Debug, Clone, PartialEq)]
pub struct Dhcp {
    /// Seconds since the first frame of the capture.
    pub seconds: f64,
    /// Address and port of the sender.
    pub from: (Ipv4Addr, u16),
    /// Kind of message.
    pub kind: DhcpKind,
    /// Transaction.
    pub xid: u32,
    /// The client's hardware address.
    pub client: MacAddr,
    /// The address given to the client.
    pub your_ip: Ipv4Addr,
    /// The next server (`siaddr`).
    pub next_server: Ipv4Addr,
    /// Boot file, from option 67 or else from the `file` field.
    pub boot_file: Option<String>,
    /// Client architecture (option 93).
    pub architecture: Option<u16>,
    /// Vendor class (option 60).
    pub vendor_class: Option<String>,
    /// Server identifier (option 54).
    pub server: Option<Ipv4Addr>,
}

/// Kind of a DHCP message (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DhcpKind {
    /// A client looks for servers.
    Discover,
    /// A server offers.
    Offer,
    /// A client asks for what was offered.
    Request,
    /// A server grants.
    Ack,
    /// A server refuses.
    Nak,
    /// Any other kind, by its number (0 where there is none: plain BOOTP).
    Other(u8),
}

/// One read request of a TFTP client (RFC 1350).
#[derive(Debug, Clone, PartialEq)]
pub struct TftpRead {
    /// Seconds since the first frame of the capture.
    pub seconds: f64,
    /// Hardware address of the client.
    pub client: MacAddr,
    /// Address of the client.
    pub client_ip: Ipv4Addr,
    /// Address of the server.
    pub server: Ipv4Addr,
    /// The file asked for.
    pub file: String,
    /// Options with their values (RFC 2347), in the client's order.
    pub options: Vec<(String, String)>,
}

/// A capture in memory.
#[derive(Debug, Clone, Default)]
pub struct Capture {
    frames: Vec<Frame>,
}

impl Capture {
    /// Reads a capture file.
    ///
    /// # Errors
    /// The file cannot be read, or is not a capture.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let frames = frames_of(path)?.collect::<Result<_, _>>();
        let frames = frames.with_context(|| format!("decode {}", path.display()))?;
        Ok(Self { frames })
    }

    /// Parses the bytes of a capture file.
    ///
    /// # Errors
    /// The bytes do not begin as a capture does.
    pub fn parse(bytes: &[u8]) -> Result<Self, PcapError> {
        let frames = Frames::new(bytes)?.collect::<Result<_, _>>()?;
        Ok(Self { frames })
    }

    /// Returns all frames in order.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Returns all unfragmented UDP datagrams in order.
    #[must_use]
    pub fn datagrams(&self) -> Vec<Datagram> {
        self.frames.iter().filter_map(datagram).collect()
    }

    /// Returns all DHCP messages in order, those of port 4011 included.
    #[must_use]
    pub fn dhcp(&self) -> Vec<Dhcp> {
        self.datagrams().iter().filter_map(dhcp).collect()
    }

    /// Returns what a server told this client in its last answer that carries a boot file.
    #[must_use]
    pub fn boot_file_for(&self, client: MacAddr) -> Option<String> {
        self.dhcp()
            .into_iter()
            .rev()
            .filter(|message| message.client == client)
            .filter(|message| matches!(message.kind, DhcpKind::Offer | DhcpKind::Ack))
            .find_map(|message| message.boot_file)
    }

    /// Returns all TFTP read requests in order.
    #[must_use]
    pub fn tftp_reads(&self) -> Vec<TftpRead> {
        self.datagrams().iter().filter_map(tftp_read).collect()
    }
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(field.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let field: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(Ipv4Addr::from(field))
}

fn hardware(bytes: &[u8], at: usize) -> Option<MacAddr> {
    Some(MacAddr(bytes.get(at..at.checked_add(6)?)?.try_into().ok()?))
}

fn datagram(frame: &Frame) -> Option<Datagram> {
    const IPV4: u16 = 0x0800;
    const UDP: u8 = 17;
    let bytes = &frame.bytes;
    if be16(bytes, 12)? != IPV4 {
        return None;
    }
    let packet = bytes.get(14..)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let fragment = be16(packet, 6)? & 0x3fff;
    if packet.get(9) != Some(&UDP) || fragment != 0 {
        return None;
    }
    let udp = packet.get(header..)?;
    let length = usize::from(be16(udp, 4)?);
    Some(Datagram {
        seconds: frame.seconds,
        destination_mac: hardware(bytes, 0)?,
        source_mac: hardware(bytes, 6)?,
        source: address(packet, 12)?,
        destination: address(packet, 16)?,
        source_port: be16(udp, 0)?,
        destination_port: be16(udp, 2)?,
        payload: udp.get(8..length)?.to_vec(),
    })
}

fn dhcp(datagram: &Datagram) -> Option<Dhcp> {
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    let ports = [datagram.source_port, datagram.destination_port];
    if !ports.iter().any(|port| matches!(port, 67 | 68 | 4011)) {
        return None;
    }
    let message = &datagram.payload;
    if message.get(236..240)? != COOKIE {
        return None;
    }
    let options = options(message.get(240..)?);
    let option = |code: u8| {
        let found = options.iter().find(|(number, _)| *number == code);
        found.map(|(_, value)| *value)
    };
    let field = text(message.get(108..236)?);
    let boot_file = option(67)
        .map(text)
        .or(Some(field))
        .filter(|file| !file.is_empty());
    let kind = match option(53).and_then(|value| value.first()) {
        Some(1) => DhcpKind::Discover,
        Some(2) => DhcpKind::Offer,
        Some(3) => DhcpKind::Request,
        Some(5) => DhcpKind::Ack,
        Some(6) => DhcpKind::Nak,
        Some(other) => DhcpKind::Other(*other),
        None => DhcpKind::Other(0),
    };
    Some(Dhcp {
        seconds: datagram.seconds,
        from: (datagram.source, datagram.source_port),
        kind,
        xid: u32::from_be_bytes(message.get(4..8)?.try_into().ok()?),
        client: hardware(message, 28)?,
        your_ip: address(message, 16)?,
        next_server: address(message, 20)?,
        boot_file,
        architecture: option(93).and_then(|value| be16(value, 0)),
        vendor_class: option(60).map(text),
        server: option(54).and_then(|value| address(value, 0)),
    })
}

/// Splits the options field. A length that runs past the end stops it.
fn options(mut field: &[u8]) -> Vec<(u8, &[u8])> {
    const PAD: u8 = 0;
    const END: u8 = 255;
    let mut found = Vec::new();
    while let Some((&code, rest)) = field.split_first() {
        if code == END {
            break;
        }
        if code == PAD {
            field = rest;
            continue;
        }
        let Some((&length, rest)) = rest.split_first() else {
            break;
        };
        let Some(value) = rest.get(..usize::from(length)) else {
            break;
        };
        found.push((code, value));
        field = &rest[value.len()..];
    }
    found
}

fn tftp_read(datagram: &Datagram) -> Option<TftpRead> {
    const READ: u16 = 1;
    if datagram.destination_port != 69 || be16(&datagram.payload, 0)? != READ {
        return None;
    }
    let mut fields = datagram
        .payload
        .get(2..)?
        .split(|byte| *byte == 0)
        .map(text);
    let file = fields.next()?;
    let _mode = fields.next()?;
    let mut options = Vec::new();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        if !name.is_empty() {
            options.push((name, value));
        }
    }
    Some(TftpRead {
        seconds: datagram.seconds,
        client: datagram.source_mac,
        client_ip: datagram.source,
        server: datagram.destination,
        file,
        options,
    })
}

/// Text up to its first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 7]);

    fn udp_frame(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(CLIENT.0);
        frame.extend([8, 0]);
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        packet.extend([10, 77, 0, 1, 10, 77, 0, 20]);
        packet.extend(ports.0.to_be_bytes());
        packet.extend(ports.1.to_be_bytes());
        packet.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        frame.extend(packet);
        // Short Ethernet frames are padded: the UDP length must win.
        frame.extend([0; 5]);
        frame
    }

    fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(0xa1b2_c3d4_u32.to_le_bytes());
        file.extend([2, 0, 4, 0]);
        file.extend([0; 8]);
        file.extend(65535_u32.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        for (index, frame) in frames.iter().enumerate() {
            file.extend((100 + u32::try_from(index).unwrap()).to_le_bytes());
            file.extend(500_000_u32.to_le_bytes());
            let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
            file.extend(length);
            file.extend(length);
            file.extend(frame);
        }
        file
    }

    fn offer(file: &str) -> Vec<u8> {
        let mut message = vec![2, 1, 6, 0];
        message.extend(0xdead_beef_u32.to_be_bytes());
        message.resize(16, 0);
        message.extend([10, 77, 0, 20, 10, 77, 0, 1]);
        message.resize(28, 0);
        message.extend(CLIENT.0);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, 2, 0, 54, 4, 10, 77, 0, 1, 67]);
        message.push(u8::try_from(file.len()).unwrap());
        message.extend(file.as_bytes());
        message.push(255);
        message
    }

    #[test]
    fn an_offer_names_client_server_and_boot_file() {
        let file = capture(&[udp_frame((67, 68), &offer("installer.efi"))]);
        let read = Capture::parse(&file).unwrap();
        let [message] = &read.dhcp()[..] else {
            panic!("one message");
        };
        assert_eq!(message.kind, DhcpKind::Offer);
        assert_eq!(message.client, CLIENT);
        assert_eq!(message.your_ip, Ipv4Addr::new(10, 77, 0, 20));
        assert_eq!(message.next_server, Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(message.server, Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(read.boot_file_for(CLIENT).as_deref(), Some("installer.efi"));
        assert_eq!(read.boot_file_for(MacAddr([1; 6])), None);
    }

    #[test]
    fn a_read_request_keeps_its_options_in_order() {
        let request = b"\0\x01boot/installer.efi\0octet\0blksize\x001468\0windowsize\x008\0";
        let read = Capture::parse(&capture(&[udp_frame((2070, 69), request)])).unwrap();
        let [read] = &read.tftp_reads()[..] else {
            panic!("one request");
        };
        assert_eq!(read.file, "boot/installer.efi");
        assert_eq!(
            read.options,
            [
                ("blksize".to_owned(), "1468".to_owned()),
                ("windowsize".to_owned(), "8".to_owned())
            ]
        );
    }

    #[test]
    fn a_capture_cut_in_its_last_frame_keeps_the_frames_before() {
        let whole = capture(&[
            udp_frame((67, 68), &offer("a")),
            udp_frame((67, 68), &offer("b")),
        ]);
        let cut = Capture::parse(&whole[..whole.len() - 10]).unwrap();
        assert_eq!(cut.frames().len(), 1);
    }

    #[test]
    fn bytes_that_are_no_capture_are_refused() {
        for bytes in [&b"hello"[..], &[7; 40]] {
            let error = Capture::parse(bytes).unwrap_err();
            assert!(matches!(error, PcapError::Header), "{error}");
        }
    }

    #[test]
    fn no_truncation_of_a_message_makes_the_reader_panic() {
        let message = offer("installer.efi");
        for length in 0..message.len() {
            let file = capture(&[udp_frame((67, 68), &message[..length])]);
            assert!(Capture::parse(&file).unwrap().dhcp().len() <= 1);
        }
    }

    #[test]
    fn a_planted_secret_is_found_in_a_frame() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lan.pcap");
        let file = capture(&[
            udp_frame((9, 9), b"nothing"),
            udp_frame((9, 9), b"...AGE-SECRET-KEY-1..."),
        ]);
        std::fs::write(&path, file).unwrap();
        let found = first_of(&path, &[b"another", b"AGE-SECRET-KEY-1"]).unwrap();
        assert_eq!(found, Some(1));
        assert_eq!(first_of(&path, &[b"another"]).unwrap(), None);
    }

    #[test]
    fn the_fetch_of_the_boot_file_is_the_longest_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lan.pcap");
        let request = b"\0\x01boot.efi\0octet\0";
        let acknowledge = b"\0\x04\0\x01";
        let file = capture(&[
            udp_frame((2000, 69), request),
            udp_frame((2000, 4000), acknowledge),
            udp_frame((2001, 69), request),
            udp_frame((2001, 4001), acknowledge),
            udp_frame((53, 53), b"something else"),
            udp_frame((2001, 4001), acknowledge),
        ]);
        std::fs::write(&path, file).unwrap();
        let fetch = longest_fetch(&path, CLIENT).unwrap().unwrap();
        assert_eq!((fetch.asked, fetch.done), (102.5, 105.5));
        assert_eq!(longest_fetch(&path, MacAddr([1; 6])).unwrap(), None);
    }
}
