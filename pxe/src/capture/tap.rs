//! Frames as an interface sends and receives them.

use std::io;
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

use crate::interface::link_address;

/// Frames of all protocols, sent ones too (`ETH_P_ALL`, packet(7)).
const ALL: u16 = 3;
/// The kernel keeps so much while nobody reads.
const BUFFER: usize = 8 << 20;
/// The largest frame, also of those that the network card cuts into datagrams later.
const LARGEST: usize = 14 + 65_535;

/// UDP over IPv4 or right behind the header of IPv6, whole: the rest stays in the kernel.
fn udp() -> [SockFilter; 9] {
    // Load the half word or the byte at a place; go on, or jump over so many lines;
    // return how much of the frame is wanted.
    let (half, byte, equal, jump, give) = (0x28, 0x30, 0x15, 0x05, 0x06);
    [
        SockFilter::new(half, 0, 0, 12),
        SockFilter::new(equal, 0, 2, 0x0800),
        SockFilter::new(byte, 0, 0, 23),
        SockFilter::new(jump, 0, 0, 2),
        SockFilter::new(equal, 0, 3, 0x86dd),
        SockFilter::new(byte, 0, 0, 20),
        SockFilter::new(equal, 0, 1, 17),
        SockFilter::new(give, 0, 0, u32::MAX),
        SockFilter::new(give, 0, 0, 0),
    ]
}

/// Hears what goes over an interface.
#[derive(Debug)]
pub struct Tap {
    /// A packet socket. tokio has no type for those; receiving is the same.
    socket: UdpSocket,
    buffer: Vec<u8>,
}

impl Tap {
    /// Opens the interface; needs `CAP_NET_RAW`.
    ///
    /// # Errors
    /// There is no such interface, or it may not be listened to.
    pub fn open(interface: &str) -> io::Result<Self> {
        let link = link_address(interface)?;
        let protocol = Protocol::from(i32::from(ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.attach_filter(&udp())?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_nonblocking(true)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &link)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            buffer: vec![0; LARGEST],
        })
    }

    /// Returns the next frame of a UDP datagram, sent or received.
    ///
    /// # Errors
    /// The interface has gone.
    pub async fn next(&mut self) -> io::Result<&[u8]> {
        let length = self.socket.recv(&mut self.buffer).await?;
        Ok(&self.buffer[..length])
    }
}
