//! What people type: on the machine's own keyboard, or at a serial line.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

/// Lines from every console at once. The kernel's line discipline does echo and editing.
#[derive(Debug)]
pub struct Keyboard(mpsc::UnboundedReceiver<String>);

impl Keyboard {
    /// Listens at these terminals. Those that are not there are passed over.
    pub fn open<'a>(terminals: impl IntoIterator<Item = &'a str>) -> Self {
        let (send, receive) = mpsc::unbounded_channel();
        for name in terminals {
            // A terminal that is opened must not become ours: its hang-up would end us.
            let flags = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
            let path = Path::new("/dev").join(name);
            let file = File::options().read(true).custom_flags(flags).open(path);
            if let Ok(file) = file {
                listen(file, send.clone());
            }
        }
        Self(receive)
    }

    /// Returns the next line that somebody types, or `None` after `patience`.
    pub async fn line(&mut self, patience: Option<Duration>) -> Option<String> {
        match patience {
            Some(patience) => tokio::time::timeout(patience, self.0.recv()).await.ok()?,
            None => match self.0.recv().await {
                Some(line) => Some(line),
                // Nobody can ever type anything.
                None => std::future::pending().await,
            },
        }
    }
}

/// A thread for each: a read of a terminal ends with its line or never.
fn listen(file: File, send: mpsc::UnboundedSender<String>) {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(file);
        let mut bytes = Vec::new();
        while let Ok(count) = lines.read_until(b'\n', &mut bytes) {
            if count == 0 {
                return;
            }
            let line = String::from_utf8_lossy(&bytes).trim().to_owned();
            bytes.clear();
            if !line.is_empty() && send.send(line).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[tokio::test]
    async fn the_first_line_from_any_console_is_the_answer() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (quiet, _held) = std::io::pipe().unwrap();
        let (send, receive) = mpsc::unbounded_channel();
        for end in [reader, quiet] {
            listen(File::from(std::os::fd::OwnedFd::from(end)), send.clone());
        }
        let mut keyboard = Keyboard(receive);
        assert_eq!(keyboard.line(Some(Duration::ZERO)).await, None);
        writer.write_all(b"\r\n  7qk2-m9xd-0000 \r\n").unwrap();
        assert_eq!(keyboard.line(None).await.as_deref(), Some("7qk2-m9xd-0000"));
    }
}
