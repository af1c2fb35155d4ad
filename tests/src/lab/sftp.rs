//! The customer's file server: Debian's OpenSSH with nothing but SFTP.
//!
//! It runs as root of the laboratory, so it changes to the customer's user as a real
//! one does. That user exists only inside: the account files are covered, not changed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::runner::Tool;

use super::isolation::{Inside, RUN};
use super::process::Recipe;
use super::server::{Ready, Server};

/// The account that may log in.
pub const USER: &str = "gallery";

const UID: u32 = 2000;
/// For sshd's own unprivileged half, where the host has no such account.
const SEPARATION_UID: u32 = 2001;

/// A running SFTP server with one user and one share.
#[derive(Debug)]
pub struct FileServer {
    server: Server,
    address: SocketAddr,
    share: PathBuf,
    host_key: String,
    authorized: PathBuf,
}

impl FileServer {
    /// Starts the server. Its log goes to `log`; `sshd` is the program, as
    /// [`super::prerequisites::sshd`] finds it.
    ///
    /// # Errors
    /// A key cannot be made, or `sshd` does not start.
    pub async fn start(
        inside: &Inside,
        sshd: &Path,
        address: SocketAddr,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let home = Path::new(RUN).join("file-server");
        let share = home.join("photos");
        for folder in [share.as_path(), Path::new("/run/sshd")] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("make folder {}", folder.display()))?;
        }
        cover_accounts(inside, &home).await?;
        let key = home.join("host-key");
        make_key(&key).await?;
        let host_key = public_key(&key)?;
        let authorized = home.join("authorized-keys");
        std::fs::write(&authorized, "").context("make the list of authorised keys")?;
        let config = home.join("sshd_config");
        let text = configuration(address, &key, &authorized, &share, sshd);
        std::fs::write(&config, text).context("write sshd's configuration")?;
        let mut tool = Tool::new(sshd).args(["-D", "-e", "-f"]).arg(&config);
        if let Some(root) = unpacked(sshd) {
            let libraries = format!("{}-linux-gnu", std::env::consts::ARCH);
            let folders = ["usr/lib", "lib"].map(|lib| root.join(lib).join(&libraries));
            let folders = std::env::join_paths(folders).context("name the libraries' folders")?;
            tool = tool.env("LD_LIBRARY_PATH", folders);
        }
        let server = Server::start(
            Recipe::new("the file server (sshd)", tool, log),
            Ready::Port(address),
        )
        .await?;
        Ok(Self {
            server,
            address,
            share,
            host_key,
            authorized,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder that it shares, as it lies here and as the client names it.
    #[must_use]
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// The host's public key: `ssh-ed25519 …` without a comment.
    #[must_use]
    pub fn host_key(&self) -> &str {
        &self.host_key
    }

    /// Lets the holder of this public key (a line of `ssh-ed25519 …`) log in.
    ///
    /// # Errors
    /// The list of keys cannot be written.
    pub fn authorize(&self, public_key: &str) -> anyhow::Result<()> {
        let mut list = std::fs::read_to_string(&self.authorized)
            .context("read the list of authorised keys")?;
        list.push_str(public_key.trim());
        list.push('\n');
        std::fs::write(&self.authorized, list).context("write the list of authorised keys")
    }

    /// The daemon.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Kills the server as a power cut would: what a source that stops in mid-run does.
    ///
    /// # Errors
    /// The system did not let us.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.server.kill().await
    }

    /// Stops the server.
    ///
    /// # Errors
    /// It did not end when asked.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.server.stop().await.map(drop)
    }
}

/// Makes an Ed25519 key pair without a passphrase: `path` and `path.pub`.
///
/// # Errors
/// `ssh-keygen` failed.
pub async fn make_key(path: &Path) -> anyhow::Result<()> {
    for old in [path.to_owned(), path.with_extension("pub")] {
        let _ = std::fs::remove_file(old);
    }
    Tool::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(path)
        .run_async()
        .await
}

/// Returns the public half of a key pair as one line without a comment.
///
/// # Errors
/// It cannot be read.
pub fn public_key(path: &Path) -> anyhow::Result<String> {
    let path = path.with_extension("pub");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("read public key {}", path.display()))?;
    let words: Vec<_> = text.split_whitespace().take(2).collect();
    Ok(words.join(" "))
}

async fn cover_accounts(inside: &Inside, home: &Path) -> anyhow::Result<()> {
    let read = |path: &str| {
        std::fs::read_to_string(path).with_context(|| format!("read account file {path}"))
    };
    let passwd = accounts(&read("/etc/passwd")?, home);
    let group = format!("{}\n{USER}:x:{UID}:\n", read("/etc/group")?.trim_end());
    // Nobody has a password here; `*` is not a locked account, `!` would be.
    let shadow = format!("root:*:19000:0:99999:7:::\n{USER}:*:19000:0:99999:7:::\n");
    inside.cover_file("/etc/passwd", &passwd).await?;
    inside.cover_file("/etc/group", &group).await?;
    inside.cover_file("/etc/shadow", &shadow).await
}

fn accounts(passwd: &str, home: &Path) -> String {
    let mut text = passwd.trim_end().to_owned();
    text.push_str(&format!(
        "\n{USER}:x:{UID}:{UID}:photo gallery:{}:/bin/sh\n",
        home.display()
    ));
    if !passwd.lines().any(|line| line.starts_with("sshd:")) {
        text.push_str(&format!(
            "sshd:x:{SEPARATION_UID}:{SEPARATION_UID}::/run/sshd:/usr/sbin/nologin\n"
        ));
    }
    text
}

fn configuration(
    address: SocketAddr,
    key: &Path,
    authorized: &Path,
    share: &Path,
    sshd: &Path,
) -> String {
    let mut text = format!(
        "ListenAddress {address}\n\
         HostKey {}\n\
         AuthorizedKeysFile {}\n\
         AllowUsers {USER}\n\
         PubkeyAuthentication yes\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         UsePAM no\n\
         StrictModes no\n\
         UseDNS no\n\
         PidFile none\n\
         LogLevel VERBOSE\n\
         Subsystem sftp internal-sftp\n\
         ForceCommand internal-sftp -d {}\n",
        key.display(),
        authorized.display(),
        share.display()
    );
    // Since OpenSSH 9.8 sshd starts helpers; of a server that was only unpacked they
    // do not stand at their usual place.
    if let Some(root) = unpacked(sshd) {
        for (option, helper) in [
            ("SshdSessionPath", "sshd-session"),
            ("SshdAuthPath", "sshd-auth"),
        ] {
            let path = root.join("usr/lib/openssh").join(helper);
            if path.exists() {
                text.push_str(&format!("{option} {}\n", path.display()));
            }
        }
    }
    text
}

/// The folder that a server was unpacked into, when it is not the host's own.
fn unpacked(sshd: &Path) -> Option<&Path> {
    sshd.ancestors()
        .nth(3)
        .filter(|root| *root != Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_added_once_and_the_hosts_stay() {
        let home = Path::new("/run/leap-lab/file-server");
        let host = "root:x:0:0:root:/root:/bin/bash\n";
        let covered = accounts(host, home);
        assert!(covered.starts_with(host));
        assert!(covered.contains("\ngallery:x:2000:2000:"));
        assert!(covered.contains("\nsshd:x:2001:"));
        let again = accounts("sshd:x:104:65534::/run/sshd:/usr/sbin/nologin", home);
        assert!(!again.contains("sshd:x:2001:"));
    }
}
