//! A file server reached by SSH, read and written back over SFTP.
//!
//! The server proves itself with the one host key that the configuration
//! pins; the unit proves itself with its own Ed25519 key. SFTP version 3
//! knows times to the second only, so a file that was modified within
//! `RACY` seconds of being listed is read again by the next run.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use russh::client::{self, Handle};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Disconnect, Preferred};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::client::fs::{File, Metadata as Attributes};
use russh_sftp::client::{RawSftpSession, SftpSession};
use russh_sftp::protocol::{FileAttributes, FileType, OpenFlags, Packet, StatusCode};
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{
    ErrorKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime;

use super::mode_to_format;
use crate::ledger::{Fault, Ledger};
use crate::restore::{Attributes as Restored, Target};

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(20);
/// How long one answer of the server may take.
const ANSWER_SECONDS: u64 = 30;
/// A file this young when it is listed may change again within the same second.
const RACY: i64 = 2;

/// Where a file server is and how it proves itself.
#[derive(Debug, Clone)]
pub struct Server {
    /// Name or address.
    pub host: String,
    /// TCP port, usually 22.
    pub port: u16,
    /// Account on the server.
    pub user: String,
    /// The host key that the server must show.
    pub host_key: PublicKey,
}

/// Why there is no connection to a file server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers, or not in time.
    #[error("connect to {server}: {reason}")]
    Unreachable {
        /// Host and port.
        server: String,
        /// What the network said.
        reason: String,
    },
    /// The server shows another key than the pinned one.
    #[error("connect to {server}: host key is not the one pinned in the configuration")]
    HostKey {
        /// Host and port.
        server: String,
        /// Fingerprint of the key that the server showed.
        offered: String,
    },
    /// The server does not let us in.
    #[error("log in to {server} as {user:?}: the server refuses the unit's key")]
    Refused {
        /// Host and port.
        server: String,
        /// Account.
        user: String,
        /// The unit's public key.
        public_key: String,
    },
    /// SSH works, but file transfer does not.
    #[error("start SFTP on {server}: {reason}")]
    NoSftp {
        /// Host and port.
        server: String,
        /// What the server said.
        reason: String,
    },
    /// The configured folder is not there or is no folder.
    #[error("open {path} on {server}: {reason}")]
    Root {
        /// Host and port.
        server: String,
        /// The configured folder.
        path: String,
        /// What the server said.
        reason: String,
    },
}

impl ConnectError {
    /// What the operator can do, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::HostKey { offered, .. } => Some(format!(
                "it shows {offered}; if the server was rebuilt, put its new key into the unit's configuration"
            )),
            Self::Refused { public_key, .. } => Some(format!(
                "add this line to authorized_keys on the server: {public_key}"
            )),
            Self::Unreachable { .. } | Self::NoSftp { .. } | Self::Root { .. } => None,
        }
    }
}

/// Accepts exactly the pinned host key and remembers what was offered.
struct Pin {
    expected: PublicKey,
    offered: Arc<std::sync::Mutex<Option<String>>>,
}

impl client::Handler for Pin {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            return Ok(false);
        };
        if key.key_data() == self.expected.key_data() {
            return Ok(true);
        }
        if let Ok(mut offered) = self.offered.lock() {
            *offered = Some(key.fingerprint(russh::keys::HashAlg::Sha256).to_string());
        }
        Ok(false)
    }
}

/// A standing connection to a file server.
///
/// Its methods block and are called from threads outside the runtime.
pub struct Connection {
    runtime: runtime::Handle,
    ssh: Handle<Pin>,
    sftp: SftpSession,
    /// For the one request that the other session does not offer: replacing by rename.
    raw: RawSftpSession,
    replaces: bool,
    lost: AtomicBool,
    server: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

const POSIX_RENAME: &str = "posix-rename@openssh.com";

impl Connection {
    /// Connects, checks the host key, logs in and starts SFTP.
    ///
    /// # Errors
    /// [`ConnectError`], each with what the operator can do.
    pub async fn open(server: &Server, key: Arc<PrivateKey>) -> Result<Self, ConnectError> {
        let name = format!("{}:{}", server.host, server.port);
        let unreachable = |reason: String| ConnectError::Unreachable {
            server: name.clone(),
            reason,
        };
        let offered = Arc::default();
        let pin = Pin {
            expected: server.host_key.clone(),
            offered: Arc::clone(&offered),
        };
        let config = client::Config {
            // Ask for a key of the pinned kind: a server has several.
            preferred: Preferred {
                key: Cow::Owned(vec![server.host_key.algorithm()]),
                ..Preferred::default()
            },
            keepalive_interval: Some(Duration::from_secs(15)),
            nodelay: true,
            ..client::Config::default()
        };
        let address = (server.host.as_str(), server.port);
        let connecting = client::connect(Arc::new(config), address, pin);
        let mut ssh = match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(ssh)) => ssh,
            Ok(Err(error)) => {
                let shown = offered.lock().ok().and_then(|mut shown| shown.take());
                return Err(match shown {
                    Some(offered) => ConnectError::HostKey {
                        server: name,
                        offered,
                    },
                    None => unreachable(error.to_string()),
                });
            }
            Err(_) => return Err(unreachable(format!("no answer within {CONNECT:?}"))),
        };
        let login = PrivateKeyWithHashAlg::new(Arc::clone(&key), None);
        let entered = ssh
            .authenticate_publickey(&server.user, login)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        if !entered.success() {
            return Err(ConnectError::Refused {
                server: name,
                user: server.user.clone(),
                public_key: key.public_key().to_openssh().unwrap_or_default(),
            });
        }
        let no_sftp = |reason: String| ConnectError::NoSftp {
            server: name.clone(),
            reason,
        };
        let first = channel(&ssh).await.map_err(no_sftp)?;
        let sftp = SftpSession::new(first)
            .await
            .map_err(|error| no_sftp(error.to_string()))?;
        sftp.set_timeout(ANSWER_SECONDS);
        let second = channel(&ssh).await.map_err(no_sftp)?;
        let raw = RawSftpSession::new(second);
        raw.set_timeout(ANSWER_SECONDS);
        let version = raw
            .init()
            .await
            .map_err(|error| no_sftp(error.to_string()))?;
        Ok(Self {
            runtime: runtime::Handle::current(),
            ssh,
            sftp,
            raw,
            replaces: version.extensions.contains_key(POSIX_RENAME),
            lost: AtomicBool::new(false),
            server: name,
        })
    }

    /// Says good-bye. Errors don't matter any more.
    pub async fn close(&self) {
        let _ = self
            .ssh
            .disconnect(Disconnect::ByApplication, "done", "en")
            .await;
    }

    /// Tells a refusal by the server from the loss of the connection, and remembers the latter.
    fn sort(&self, error: &SftpError, otherwise: Fault) -> Fault {
        match error {
            SftpError::Status(status)
                if !matches!(
                    status.status_code,
                    StatusCode::NoConnection | StatusCode::ConnectionLost
                ) =>
            {
                otherwise
            }
            SftpError::Limited(_) => otherwise,
            _ => {
                self.lost.store(true, Ordering::Relaxed);
                Fault::Connection
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) || self.ssh.is_closed()
    }
}

async fn channel(ssh: &Handle<Pin>) -> Result<russh::ChannelStream<client::Msg>, String> {
    let channel = ssh
        .channel_open_session()
        .await
        .map_err(|error| error.to_string())?;
    channel
        .request_subsystem(true, "sftp")
        .await
        .map_err(|error| error.to_string())?;
    Ok(channel.into_stream())
}

/// One folder of a file server, as a source of a backup.
#[derive(Debug)]
pub struct Folder {
    connection: Arc<Connection>,
    root: String,
    ledger: Arc<Ledger>,
    now: Timestamp,
}

impl Folder {
    /// The folder `root` on the server.
    ///
    /// `now` marks files that are too young to be trusted by their time alone.
    ///
    /// # Errors
    /// [`ConnectError::Root`] when the folder cannot be opened: a run that
    /// finds no root must not become a snapshot without files.
    pub async fn open(
        connection: Arc<Connection>,
        root: &str,
        ledger: Arc<Ledger>,
        now: Timestamp,
    ) -> Result<Self, ConnectError> {
        let failed = |reason: String| ConnectError::Root {
            server: connection.server.clone(),
            path: root.to_owned(),
            reason,
        };
        let attributes = connection
            .sftp
            .metadata(root)
            .await
            .map_err(|error| failed(error.to_string()))?;
        if !attributes.is_dir() {
            return Err(failed("not a folder".to_owned()));
        }
        Ok(Self {
            root: root.to_owned(),
            ledger,
            now,
            connection,
        })
    }
}

impl ReadSource for Folder {
    type Open = Opener;
    type Iter = Walk;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Walk {
        Walk {
            connection: Arc::clone(&self.connection),
            ledger: Arc::clone(&self.ledger),
            now: self.now,
            stack: Vec::new(),
            start: Some(self.root.clone()),
        }
    }
}

/// Walks a folder in depth, names in byte order, as the format wants it.
#[derive(Debug)]
pub struct Walk {
    connection: Arc<Connection>,
    ledger: Arc<Ledger>,
    now: Timestamp,
    stack: Vec<VecDeque<(String, Attributes)>>,
    start: Option<String>,
}

impl Walk {
    /// Lists a folder onto the stack; a failure goes into the ledger.
    fn descend(&mut self, folder: &str) {
        let listing = self
            .connection
            .runtime
            .block_on(self.connection.sftp.read_dir(folder));
        match listing {
            Ok(entries) => {
                let mut found: Vec<(String, Attributes)> = entries
                    .map(|entry| (entry.path(), entry.metadata()))
                    .collect();
                found.sort_unstable_by(|a, b| name(&a.0).as_bytes().cmp(name(&b.0).as_bytes()));
                self.stack.push(found.into());
            }
            Err(error) => {
                let fault = self.connection.sort(&error, Fault::List);
                self.ledger.error(folder, fault, error.to_string());
                self.stack.push(VecDeque::new());
            }
        }
    }

    fn link(&self, path: &str) -> Option<NodeType> {
        let target = self
            .connection
            .runtime
            .block_on(self.connection.sftp.read_link(path));
        match target {
            Ok(target) => Some(NodeType::from_link(Path::new(&target))),
            Err(error) => {
                let fault = self.connection.sort(&error, Fault::Open);
                self.ledger.error(path, fault, error.to_string());
                None
            }
        }
    }
}

/// How the names of files begin that are being restored, until they are whole.
const RESTORED: &str = ".leap-restore-";

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The metadata that SFTP tells, in the form of the repository.
fn metadata(attributes: &Attributes, now: Timestamp) -> Metadata {
    let mtime = attributes
        .mtime
        .and_then(|seconds| Timestamp::from_second(i64::from(seconds)).ok());
    // SFTP 3 has no change time. The field decides together with size and
    // modification time whether a file is read again: for a young file it gets
    // a value that no later run repeats.
    let young = mtime.is_some_and(|mtime| mtime.as_second() >= now.as_second() - RACY);
    Metadata {
        mode: attributes.permissions.map(mode_to_format),
        mtime,
        ctime: if young { Some(now) } else { mtime },
        uid: attributes.uid,
        gid: attributes.gid,
        size: attributes.size.unwrap_or(0),
        links: 1,
        ..Metadata::default()
    }
}

impl Iterator for Walk {
    type Item = RusticResult<ReadSourceEntry<Opener>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.start.take() {
            self.descend(&root);
        }
        loop {
            if self.connection.is_lost() {
                // What was not listed cannot be counted; that the listing
                // stopped here can.
                let pending = self.stack.iter().rev().find_map(|level| level.front());
                if let Some((path, _)) = pending {
                    let fault = Fault::Connection;
                    self.ledger
                        .error(path, fault, "connection lost; the listing stops here");
                }
                self.stack.clear();
                return None;
            }
            let level = self.stack.last_mut()?;
            let Some((path, attributes)) = level.pop_front() else {
                self.stack.pop();
                continue;
            };
            let mut meta = metadata(&attributes, self.now);
            let (kind, open) = match attributes.file_type() {
                FileType::Dir => {
                    self.descend(&path);
                    meta.size = 0;
                    (NodeType::Dir, None)
                }
                FileType::Symlink => {
                    self.ledger.listed();
                    match self.link(&path) {
                        Some(kind) => (kind, None),
                        None => continue,
                    }
                }
                // What an interrupted restore left.
                FileType::File if name(&path).starts_with(RESTORED) => continue,
                FileType::File => {
                    self.ledger.listed();
                    let open = Opener {
                        connection: Arc::clone(&self.connection),
                        ledger: Arc::clone(&self.ledger),
                        path: path.clone(),
                        size: meta.size,
                        mtime: attributes.mtime,
                    };
                    (NodeType::File, Some(open))
                }
                FileType::Other => {
                    self.ledger.special(&path);
                    continue;
                }
            };
            return Some(Ok(ReadSourceEntry {
                node: Node::new_node(name(&path).as_ref(), kind, meta),
                path: PathBuf::from(path),
                open,
            }));
        }
    }
}

/// Opens one file when the engine gets to it.
#[derive(Debug)]
pub struct Opener {
    connection: Arc<Connection>,
    ledger: Arc<Ledger>,
    path: String,
    size: u64,
    mtime: Option<u32>,
}

impl ReadSourceOpen for Opener {
    type Reader = Reader;

    fn open(self) -> RusticResult<Reader> {
        let refuse = |fault: Fault, reason: String| {
            self.ledger.error(&self.path, fault, reason.clone());
            RusticError::new(ErrorKind::InputOutput, reason)
        };
        if self.connection.is_lost() {
            return Err(refuse(Fault::Connection, "connection lost".to_owned()));
        }
        let opened = self
            .connection
            .runtime
            .block_on(self.connection.sftp.open(&self.path));
        match opened {
            Ok(file) => Ok(Reader {
                file,
                left: self.size,
                checked: false,
                opener: self,
            }),
            Err(error) => {
                let fault = self.connection.sort(&error, Fault::Open);
                Err(refuse(fault, error.to_string()))
            }
        }
    }
}

/// Reads one file up to the size that the listing gave, and checks what it got.
pub struct Reader {
    opener: Opener,
    file: File,
    left: u64,
    checked: bool,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("path", &self.opener.path)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Reader {
    fn fail(&self, fault: Fault, reason: String) -> io::Error {
        self.opener
            .ledger
            .error(&self.opener.path, fault, reason.clone());
        io::Error::other(reason)
    }

    /// Compares the file's time and size after the last byte with those of the listing.
    fn check(&mut self) -> io::Result<()> {
        if self.checked {
            return Ok(());
        }
        self.checked = true;
        let connection = &self.opener.connection;
        match connection.runtime.block_on(self.file.metadata()) {
            Ok(now) => {
                if now.size.is_some_and(|size| size != self.opener.size)
                    || now.mtime != self.opener.mtime
                {
                    self.opener.ledger.changed(&self.opener.path);
                }
                Ok(())
            }
            Err(error) => {
                let fault = connection.sort(&error, Fault::Read);
                Err(self.fail(fault, error.to_string()))
            }
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return self.check().map(|()| 0);
        }
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let connection = Arc::clone(&self.opener.connection);
        if connection.is_lost() {
            return Err(self.fail(Fault::Connection, "connection lost".to_owned()));
        }
        let read = connection
            .runtime
            .block_on(self.file.read(&mut buffer[..most]));
        match read {
            Ok(0) => Err(self.fail(
                Fault::Read,
                format!(
                    "file ends {} bytes before the size that was listed, {}",
                    self.left, self.opener.size
                ),
            )),
            Ok(count) => {
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) => {
                let refused = error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<SftpError>())
                    .map(|inner| connection.sort(inner, Fault::Read));
                let fault = match refused {
                    Some(fault) => fault,
                    None if connection.ssh.is_closed() => Fault::Connection,
                    None => Fault::Read,
                };
                Err(self.fail(fault, error.to_string()))
            }
        }
    }
}

/// Writes files back to the server: first under another name, then in place.
#[derive(Debug)]
pub struct Sink {
    connection: Arc<Connection>,
}

impl Sink {
    /// A target on the connected server.
    pub fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    fn run<T>(
        &self,
        operation: &str,
        path: &str,
        future: impl Future<Output = Result<T, SftpError>>,
    ) -> anyhow::Result<T> {
        self.connection.runtime.block_on(future).map_err(|error| {
            anyhow::anyhow!("{operation} {path} on {}: {error}", self.connection.server)
        })
    }

    fn replace(&self, from: &str, to: &str) -> anyhow::Result<()> {
        if !self.connection.replaces {
            // Off-spec: without OpenSSH's extension a rename never replaces,
            // so an existing file makes this fail rather than vanish.
            return self.run("rename to", to, self.connection.sftp.rename(from, to));
        }
        let mut request = Vec::new();
        for text in [from, to] {
            request.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
            request.extend_from_slice(text.as_bytes());
        }
        let answer = self.run(
            "rename to",
            to,
            self.connection.raw.extended(POSIX_RENAME, request),
        )?;
        match answer {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => anyhow::bail!("rename to {to}: {}", status.error_message),
            _ => anyhow::bail!("rename to {to}: the server answers out of turn"),
        }
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .ok_or_else(|| anyhow::anyhow!("path {} is not UTF-8", path.display()))
}

fn to_set(attributes: &Restored) -> FileAttributes {
    let seconds = attributes
        .modified
        .and_then(|time| u32::try_from(time.as_second()).ok());
    FileAttributes {
        permissions: attributes.mode,
        atime: seconds,
        mtime: seconds,
        ..FileAttributes::empty()
    }
}

impl Target for Sink {
    fn describe(&self) -> String {
        format!("sftp:{}", self.connection.server)
    }

    fn folder(&self, path: &Path) -> anyhow::Result<()> {
        let path = text(path)?;
        let mut made = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            made.push('/');
            made.push_str(part);
            let exists = self.run("look at", &made, self.connection.sftp.try_exists(&made))?;
            if !exists {
                self.run("make folder", &made, self.connection.sftp.create_dir(&made))?;
            }
        }
        Ok(())
    }

    fn file(
        &self,
        path: &Path,
        attributes: &Restored,
        fill: &mut dyn FnMut(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let path = text(path)?;
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        // Of fixed length, since the name itself may be as long as names can be.
        let mark = model::Digest::of(name.as_bytes()).to_string();
        let partial = format!("{folder}/{RESTORED}{}", &mark[..16]);
        let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE;
        let file = self.run(
            "create",
            &partial,
            self.connection.sftp.open_with_flags(&partial, flags),
        )?;
        let mut writer = Writer {
            runtime: self.connection.runtime.clone(),
            file,
        };
        let written = fill(&mut writer).and_then(|()| {
            let Writer { runtime, mut file } = writer;
            runtime.block_on(async {
                // Flush waits for every write and asks the server to sync.
                file.flush().await?;
                file.set_metadata(to_set(attributes)).await?;
                file.close().await?;
                anyhow::Ok(())
            })
        });
        let placed = written.and_then(|()| self.replace(&partial, path));
        if placed.is_err() {
            let _ = self.run(
                "remove",
                &partial,
                self.connection.sftp.remove_file(&partial),
            );
        }
        placed
    }

    fn link(&self, path: &Path, target: &Path) -> anyhow::Result<()> {
        let path = text(path)?;
        // OpenSSH takes the two arguments in the reverse of the draft's order.
        let made = self.run(
            "link",
            path,
            self.connection.sftp.symlink(text(target)?, path),
        );
        match made {
            Ok(()) => Ok(()),
            Err(error) => {
                let now = self.run("read link", path, self.connection.sftp.read_link(path));
                match now {
                    Ok(now) if now == text(target)? => Ok(()),
                    _ => Err(error),
                }
            }
        }
    }

    fn finish_folder(&self, path: &Path, attributes: &Restored) -> anyhow::Result<()> {
        let path = text(path)?;
        self.run(
            "set times of",
            path,
            self.connection.sftp.set_metadata(path, to_set(attributes)),
        )
    }
}

/// A file on the server as a blocking writer.
struct Writer {
    runtime: runtime::Handle,
    file: File,
}

impl Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.file.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_file_gets_a_mark_that_the_next_run_does_not_repeat() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let later = Timestamp::from_second(1_000_060).unwrap();
        let attributes = Attributes {
            mtime: Some(999_999),
            ..Attributes::empty()
        };
        let first = metadata(&attributes, now);
        let second = metadata(&attributes, later);
        assert_eq!(first.mtime, second.mtime);
        assert_ne!(first.ctime, second.ctime);
        assert_eq!(metadata(&attributes, later).ctime, second.ctime);
    }
}
