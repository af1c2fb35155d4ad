//! What the protocols ask of the program that uses them: one [`BootSource`].
//!
//! DHCP, TFTP and HTTP put the same questions to the same source, so that a
//! machine gets the same verdict whichever way it asks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use model::id::MacAddr;
use serde::Serialize;
use thiserror::Error;

use crate::dhcp::options::MessageType;
use crate::dhcp6;

/// What a client told of itself, over whichever protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootRequest {
    /// Hardware address. Anybody can claim it: it names a machine and proves nothing.
    pub mac: MacAddr,
    /// Machine identifier of option 97, if the client sent one.
    pub uuid: Option<MachineUuid>,
    /// Architecture of option 93, or of the text of option 60.
    pub arch: ClientArch,
    /// What kind of client asks.
    pub client_class: ClientClass,
    /// The protocol of the question.
    pub protocol: Protocol,
    /// Relay that the question came through.
    pub relay: Option<IpAddr>,
}

/// The identifier of a machine (SMBIOS system UUID) as it travels in option 97.
///
/// Shown as Linux and `dmidecode` show it: the first three fields are
/// little-endian on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineUuid(pub [u8; 16]);

impl fmt::Display for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (place, at) in ORDER.into_iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[at])?;
        }
        Ok(())
    }
}

impl fmt::Debug for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MachineUuid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Client system architecture: RFC 4578 with IANA's later codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientArch {
    /// BIOS on x86 (0).
    Bios,
    /// UEFI, 32-bit x86 (6, 15).
    UefiIa32,
    /// UEFI, 64-bit x86 (7, 9, 16).
    UefiX64,
    /// UEFI, 32-bit ARM (10, 18).
    UefiArm32,
    /// UEFI, 64-bit ARM (11, 19).
    UefiArm64,
    /// UEFI, 64-bit RISC-V (27, 28).
    UefiRiscv64,
    /// Another code.
    Other(u16),
    /// The client did not say.
    Unknown,
}

impl ClientArch {
    /// Returns the architecture of an RFC 4578 code.
    #[must_use]
    pub fn from_code(code: u16) -> Self {
        match code {
            0 => Self::Bios,
            6 | 15 => Self::UefiIa32,
            // Off-spec: 9 is x64 in the errata and in what firmware sends, and
            // "EBC" in the RFC's own table; old firmware sends 9 for x64.
            7 | 9 | 16 => Self::UefiX64,
            10 | 18 => Self::UefiArm32,
            11 | 19 => Self::UefiArm64,
            27 | 28 => Self::UefiRiscv64,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ClientArch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bios => f.write_str("BIOS"),
            Self::UefiIa32 => f.write_str("UEFI ia32"),
            Self::UefiX64 => f.write_str("UEFI x64"),
            Self::UefiArm32 => f.write_str("UEFI arm32"),
            Self::UefiArm64 => f.write_str("UEFI arm64"),
            Self::UefiRiscv64 => f.write_str("UEFI riscv64"),
            Self::Other(code) => write!(f, "architecture {code}"),
            Self::Unknown => f.write_str("unknown architecture"),
        }
    }
}

/// The kind of program that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientClass {
    /// A PXE client: option 60 begins with `PXEClient`.
    Pxe,
    /// UEFI HTTP boot: option 60 begins with `HTTPClient`.
    HttpBoot,
    /// iPXE: user class `iPXE`. It says `PXEClient` too; this comes first.
    Ipxe,
    /// An operating system, or anything else that wants an address only.
    Other,
}

impl fmt::Display for ClientClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pxe => "PXE",
            Self::HttpBoot => "HTTP boot",
            Self::Ipxe => "iPXE",
            Self::Other => "plain DHCP",
        })
    }
}

/// The protocol that a question or an event came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// DHCPv4, where this is the network's DHCP server.
    Dhcp,
    /// DHCPv4 beside another server that gives the addresses.
    ProxyDhcp,
    /// DHCPv6.
    Dhcp6,
    /// TFTP.
    Tftp,
    /// HTTP.
    Http,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dhcp => "DHCP",
            Self::ProxyDhcp => "proxyDHCP",
            Self::Dhcp6 => "DHCPv6",
            Self::Tftp => "TFTP",
            Self::Http => "HTTP",
        })
    }
}

/// What a machine is to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum BootAnswer {
    /// A file from us.
    Boot {
        /// Path for PXE clients, at most 127 bytes for old boot ROMs.
        tftp_path: String,
        /// Path for UEFI HTTP boot and iPXE, with or without leading `/`.
        http_path: String,
    },
    /// Its own disk. It still gets an address.
    LocalDisk {
        /// Why, in words for the operator.
        reason: String,
    },
    /// No answer at all.
    Ignore {
        /// Why, in words for the operator.
        reason: String,
    },
}

/// A file that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootFile {
    /// A regular file. Its length is taken when it is opened; it must not
    /// change while it is served: replace it by renaming.
    Path(PathBuf),
    /// Bytes in memory.
    Bytes(Bytes),
}

/// Why a path is not served.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotServed {
    /// There is no such path (HTTP 404, TFTP error 1).
    #[error("not found")]
    NotFound,
    /// The path exists and is not for this client now (HTTP 403, TFTP error 2).
    #[error("refused: {0}")]
    Refused(String),
    /// The path could not be looked up (HTTP 500, TFTP error 0).
    #[error("could not look: {0}")]
    Failed(String),
}

/// Decides what machines boot, and holds the files.
///
/// The methods are called on the servers' own tasks, once for a message or a
/// file: they must return within a millisecond or so and never block on the
/// network.
pub trait BootSource: Send + Sync + 'static {
    /// Returns what a client is to boot. Asked for each DHCP message, also by
    /// clients that want an address only ([`ClientClass::Other`]): for these
    /// `Boot` and `LocalDisk` mean the same.
    fn decide(&self, request: &BootRequest) -> BootAnswer;

    /// Returns the file of a path for a peer.
    ///
    /// `path` never begins with `/`, is valid UTF-8, and holds no empty, `.`
    /// or `..` segment, whatever the client sent.
    ///
    /// # Errors
    /// [`NotServed`] says why not, and is what the client is told.
    fn open(&self, peer: IpAddr, path: &str) -> Result<BootFile, NotServed>;

    /// Takes note, when a server starts, of an address that a machine was given
    /// before: by it the machine asks for files.
    fn leased(&self, _address: Ipv4Addr, _mac: MacAddr) {}

    /// Takes note of what was asked and answered.
    fn observe(&self, event: &BootEvent);
}

/// Something that happened between a client and a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum BootEvent {
    /// A DHCP message was answered, or left without answer.
    Dhcp {
        /// Who asked, and how.
        request: BootRequest,
        /// Transaction of the message.
        xid: u32,
        /// Kind of message.
        message: DhcpMessage,
        /// What became of it.
        outcome: DhcpOutcome,
    },
    /// A file was asked for by TFTP or HTTP.
    File {
        /// TFTP or HTTP.
        protocol: Protocol,
        /// Address of the client.
        peer: IpAddr,
        /// Path as the source was asked.
        path: String,
        /// What became of it.
        outcome: FileOutcome,
    },
}

/// Kind of a DHCP message, of either version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DhcpMessage {
    /// DHCPv4.
    V4(MessageType),
    /// DHCPv6.
    V6(dhcp6::packet::MessageType),
}

impl DhcpMessage {
    /// Returns the name as the protocol's RFC writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4(kind) => kind.name(),
            Self::V6(kind) => kind.name(),
        }
    }
}

/// What became of a DHCP message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum DhcpOutcome {
    /// A reply was sent.
    Replied {
        /// Kind of reply.
        message: DhcpMessage,
        /// Address given, if the reply gives one.
        address: Option<IpAddr>,
        /// Boot file or URL named in the reply.
        boot_file: Option<String>,
        /// Reason of a refusal or of booting the local disk.
        note: Option<String>,
    },
    /// Noted, and no reply belongs to it (release, decline, another server chosen).
    Noted {
        /// What was done.
        note: String,
    },
    /// Left without answer.
    Dropped {
        /// Why.
        reason: String,
    },
}

/// What became of the wish for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum FileOutcome {
    /// The transfer began.
    Started {
        /// Bytes to send.
        length: u64,
    },
    /// The client has asked for the size only, as PXE firmware does first.
    SizeAsked {
        /// Size told.
        length: u64,
    },
    /// Everything was sent, and over TFTP acknowledged.
    Done {
        /// Bytes sent.
        length: u64,
        /// Time it took.
        elapsed: Duration,
        /// TFTP blocks that were sent more than once.
        resent: u64,
    },
    /// The client got no file.
    Refused {
        /// Why.
        reason: String,
    },
    /// The transfer ended early.
    Broken {
        /// Bytes that the client has acknowledged or taken.
        sent: u64,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for BootEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp {
                request,
                message,
                outcome,
                ..
            } => {
                let BootRequest {
                    mac,
                    arch,
                    client_class,
                    protocol,
                    ..
                } = request;
                write!(
                    f,
                    "{mac} ({client_class}, {arch}) {protocol} {}: ",
                    message.name()
                )?;
                match outcome {
                    DhcpOutcome::Replied {
                        message,
                        address,
                        boot_file,
                        note,
                    } => {
                        f.write_str(message.name())?;
                        if let Some(address) = address {
                            write!(f, " {address}")?;
                        }
                        if let Some(file) = boot_file {
                            write!(f, ", boot {file}")?;
                        }
                        if let Some(note) = note {
                            write!(f, ", {note}")?;
                        }
                        Ok(())
                    }
                    DhcpOutcome::Noted { note } => f.write_str(note),
                    DhcpOutcome::Dropped { reason } => write!(f, "no answer: {reason}"),
                }
            }
            Self::File {
                protocol,
                peer,
                path,
                outcome,
            } => {
                write!(f, "{peer} {protocol} {path}: ")?;
                match outcome {
                    FileOutcome::Started { length } => write!(f, "sending {length} bytes"),
                    FileOutcome::SizeAsked { length } => write!(f, "told its size, {length} bytes"),
                    FileOutcome::Done {
                        length,
                        elapsed,
                        resent,
                    } => {
                        let seconds = elapsed.as_secs_f64();
                        write!(
                            f,
                            "sent {length} bytes in {seconds:.2} s, {resent} blocks again"
                        )
                    }
                    FileOutcome::Refused { reason } => write!(f, "not served: {reason}"),
                    FileOutcome::Broken { sent, reason } => {
                        write!(f, "stopped after {sent} bytes: {reason}")
                    }
                }
            }
        }
    }
}

/// Returns a path as [`BootSource::open`] expects it: without leading, doubled
/// or trailing slashes and `.` segments. Backslashes count as slashes, because
/// Windows-minded firmware sends them.
///
/// # Errors
/// `..`, control characters and empty paths are refused: nothing honest sends them.
pub fn clean_path(raw: &str) -> Result<String, NotServed> {
    if raw.chars().any(char::is_control) {
        return Err(NotServed::Refused("control characters in the path".into()));
    }
    let mut clean = String::with_capacity(raw.len());
    for segment in raw.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => return Err(NotServed::Refused("\"..\" in the path".into())),
            segment => {
                if !clean.is_empty() {
                    clean.push('/');
                }
                clean.push_str(segment);
            }
        }
    }
    if clean.is_empty() {
        return Err(NotServed::NotFound);
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_cleaned_and_never_climb() {
        for (raw, clean) in [
            ("/boot/x.efi", "boot/x.efi"),
            ("//boot//x.efi", "boot/x.efi"),
            ("\\boot\\x.efi", "boot/x.efi"),
            ("./a/./b/", "a/b"),
            ("...", "..."),
        ] {
            assert_eq!(clean_path(raw).as_deref(), Ok(clean), "{raw}");
        }
        for raw in ["../x", "a/../../x", "a\\..\\x", "..", "a\0b", "a\nb"] {
            assert!(
                matches!(clean_path(raw), Err(NotServed::Refused(_))),
                "{raw:?}"
            );
        }
        for raw in ["", "/", "//", "."] {
            assert_eq!(clean_path(raw), Err(NotServed::NotFound), "{raw}");
        }
    }

    #[test]
    fn architectures_are_what_firmware_means_by_them() {
        for (codes, arch) in [
            (&[0][..], ClientArch::Bios),
            (&[6, 15], ClientArch::UefiIa32),
            (&[7, 9, 16], ClientArch::UefiX64),
            (&[11, 19], ClientArch::UefiArm64),
            (&[31], ClientArch::Other(31)),
        ] {
            for code in codes {
                assert_eq!(ClientArch::from_code(*code), arch, "{code}");
            }
        }
    }

    #[test]
    fn a_machine_identifier_reads_as_linux_shows_it() {
        let wire = [
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ];
        assert_eq!(
            MachineUuid(wire).to_string(),
            "00112233-4455-6677-8899-aabbccddeeff"
        );
    }

    proptest! {
        #[test]
        fn a_cleaned_path_stays_below_its_root(raw in "[a./\\\\]{0,24}") {
            if let Ok(clean) = clean_path(&raw) {
                prop_assert!(clean.split('/').all(|part| !matches!(part, "" | "." | "..")));
                prop_assert_eq!(clean_path(&clean), Ok(clean.clone()));
            }
        }
    }
}
