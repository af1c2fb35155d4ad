//! QEMU's control socket: events of a machine, and what its disks have done.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::wait;

const ANSWER: Duration = Duration::from_secs(10);

/// A connection to one running QEMU.
#[derive(Debug)]
pub struct Qmp {
    write: OwnedWriteHalf,
    answers: mpsc::Receiver<Value>,
    events: Arc<Mutex<Vec<String>>>,
    listener: JoinHandle<()>,
}

/// What one disk has done since power-on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes that the machine has read.
    pub read: u64,
    /// Bytes that the machine has written.
    pub written: u64,
}

impl Qmp {
    /// Connects, as soon as QEMU listens. `alive` ends the waiting when QEMU has died.
    ///
    /// # Errors
    /// QEMU died, or does not answer.
    pub async fn connect(
        socket: &Path,
        mut alive: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let stream = wait::until("QEMU's control socket", ANSWER, || {
            let state = alive();
            async move {
                state?;
                Ok(UnixStream::connect(socket).await.ok())
            }
        })
        .await?;
        let (read, write) = stream.into_split();
        let (sender, answers) = mpsc::channel(16);
        let events = Arc::default();
        let lines = BufReader::new(read).lines();
        let listener = tokio::spawn(listen(lines, sender, Arc::clone(&events)));
        let mut qmp = Self {
            write,
            answers,
            events,
            listener,
        };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command and returns what it answers.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let mut request = json!({ "execute": command, "arguments": arguments }).to_string();
        request.push('\n');
        self.write
            .write_all(request.as_bytes())
            .await
            .with_context(|| format!("send {command} to QEMU"))?;
        let answer = tokio::time::timeout(ANSWER, self.answers.recv())
            .await
            .with_context(|| format!("{command}: QEMU does not answer"))?
            .with_context(|| format!("{command}: QEMU is gone"))?;
        if let Some(error) = answer.get("error") {
            bail!("{command}: QEMU refused: {error}");
        }
        Ok(answer.get("return").cloned().unwrap_or(Value::Null))
    }

    /// How many events of this name have come, for example `RESET`.
    #[must_use]
    pub fn count(&self, event: &str) -> usize {
        let events = self.events.lock().expect("no holder of the lock panics");
        events.iter().filter(|name| *name == event).count()
    }

    /// Returns what the disk with this QEMU id has done since power-on.
    ///
    /// # Errors
    /// QEMU is gone, or has no such disk.
    pub async fn disk_use(&mut self, id: &str) -> anyhow::Result<DiskUse> {
        let all = self.execute("query-blockstats", json!({})).await?;
        disk_use(&all, id).with_context(|| format!("disk {id}: QEMU does not know it"))
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn disk_use(all: &Value, id: &str) -> Option<DiskUse> {
    // A disk given by -device has its id in `qdev`, as a path that holds it.
    let ours = all.as_array()?.iter().find(|disk| {
        let qdev = disk["qdev"].as_str().unwrap_or_default();
        qdev.split('/').any(|part| part == id)
    })?;
    Some(DiskUse {
        read: ours["stats"]["rd_bytes"].as_u64()?,
        written: ours["stats"]["wr_bytes"].as_u64()?,
    })
}

async fn listen(
    mut lines: Lines<BufReader<OwnedReadHalf>>,
    answers: mpsc::Sender<Value>,
    events: Arc<Mutex<Vec<String>>>,
) {
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if let Some(event) = message["event"].as_str() {
            tracing::debug!(event, "machine");
            let mut events = events.lock().expect("no holder of the lock panics");
            events.push(event.to_owned());
        } else if message.get("QMP").is_none() && answers.send(message).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_use_of_a_disk_is_found_by_its_id() {
        let all = json!([
            { "qdev": "/machine/peripheral/disk1/virtio-backend",
              "stats": { "rd_bytes": 1, "wr_bytes": 2 } },
            { "qdev": "/machine/peripheral/disk0/virtio-backend",
              "stats": { "rd_bytes": 512, "wr_bytes": 4096 } },
        ]);
        let found = disk_use(&all, "disk0").unwrap();
        assert_eq!((found.read, found.written), (512, 4096));
        assert_eq!(disk_use(&all, "disk2"), None);
    }
}
