//! What each machine asked and was answered, for `explain`.
//!
//! Lines are kept in memory within a bound and appended to a file that is
//! rotated. They are an account, not a ledger: nothing is decided by them, so
//! they are written behind and without waiting for the disk.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use model::MacAddr;
use serde::{Deserialize, Serialize};

/// Lines in memory.
const KEPT: usize = 50_000;
/// Size of the file at which it is put aside, in bytes.
const ROTATE: u64 = 16 << 20;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoryLine {
    /// When.
    pub time: Timestamp,
    /// Hardware addresses of the machine, as far as known.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub macs: BTreeSet<MacAddr>,
    /// Address that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// How it came: `dhcp`, `proxy-dhcp`, `dhcp6`, `tftp`, `http`, `installer`, `sky`, `operator`.
    pub by: String,
    /// One line for people.
    pub text: String,
}

/// The story of one machine, the answer of `GET /v1/machines/{mac}/story`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Story {
    /// Hardware addresses of the machine.
    pub macs: BTreeSet<MacAddr>,
    /// Where it stands: the ledger's word, `unknown` where it has none.
    pub state: String,
    /// What it would be told to boot now: `installer` or `local-disk`.
    pub boots: String,
    /// Why, for the local disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// SMBIOS serial number, or empty.
    pub serial: String,
    /// The unit, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Code of its installer's keys, once it has announced them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What happened, oldest first.
    pub lines: Vec<StoryLine>,
}

/// All stories.
#[derive(Debug)]
pub struct Stories {
    lines: Mutex<VecDeque<StoryLine>>,
    /// To the file, if there is one.
    writer: Option<SyncSender<StoryLine>>,
}

impl Stories {
    /// Keeps them for as long as the program runs.
    pub fn in_memory() -> Self {
        Self {
            lines: Mutex::default(),
            writer: None,
        }
    }

    /// Reads what was written before and goes on.
    ///
    /// # Errors
    /// The file cannot be opened. Lines that cannot be read are left out.
    pub fn open(path: &Path) -> Result<Self> {
        let describe = || format!("open story {}", path.display());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(describe)?;
        }
        let mut lines = VecDeque::new();
        for path in [aside(path), path.to_owned()] {
            let Ok(file) = File::open(path) else { continue };
            for line in BufReader::new(file).lines().map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str(&line) {
                    push(&mut lines, line);
                }
            }
        }
        let file = append_to(path).with_context(describe)?;
        let (writer, received) = sync_channel(4096);
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("story".into())
            .spawn(move || write(&path, file, &received))
            .with_context(describe)?;
        Ok(Self {
            lines: Mutex::new(lines),
            writer: Some(writer),
        })
    }

    /// Adds a line.
    pub fn tell(&self, line: StoryLine) {
        if let Some(writer) = &self.writer
            && let Err(TrySendError::Full(line)) = writer.try_send(line.clone())
        {
            // In a flood the memory still has it.
            tracing::debug!(text = line.text, "story line not written to its file");
        }
        push(
            &mut self.lines.lock().unwrap_or_else(PoisonError::into_inner),
            line,
        );
    }

    /// Returns the lines of a machine, oldest first.
    pub fn lines_of(&self, macs: &BTreeSet<MacAddr>) -> Vec<StoryLine> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|line| !line.macs.is_disjoint(macs))
            .cloned()
            .collect()
    }
}

fn push(lines: &mut VecDeque<StoryLine>, line: StoryLine) {
    if lines.len() == KEPT {
        lines.pop_front();
    }
    lines.push_back(line);
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("old.jsonl")
}

fn append_to(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

fn write(path: &Path, file: File, received: &Receiver<StoryLine>) {
    let mut length = file.metadata().map_or(0, |facts| facts.len());
    let mut file = BufWriter::new(file);
    while let Ok(first) = received.recv() {
        let write = || -> std::io::Result<()> {
            for line in std::iter::once(first).chain(received.try_iter()) {
                let mut text = serde_json::to_vec(&line)?;
                text.push(b'\n');
                file.write_all(&text)?;
                length += u64::try_from(text.len()).unwrap_or(0);
            }
            file.flush()?;
            if length > ROTATE {
                std::fs::rename(path, aside(path))?;
                file = BufWriter::new(append_to(path)?);
                length = 0;
            }
            Ok(())
        };
        if let Err(problem) = write() {
            tracing::warn!(%problem, "story not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_told_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("story.jsonl");
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let line = |mac, text: &str| StoryLine {
            time: Timestamp::UNIX_EPOCH,
            macs: BTreeSet::from([mac]),
            address: None,
            by: "dhcp".into(),
            text: text.into(),
        };
        let stories = Stories::open(&path).unwrap();
        stories.tell(line(mac, "one"));
        stories.tell(line(MacAddr([9; 6]), "another machine's"));
        stories.tell(line(mac, "two"));
        let all = BTreeSet::from([mac]);
        assert_eq!(stories.lines_of(&all).len(), 2);
        drop(stories);
        // The writer is a thread of its own and ends after its last line.
        let again = loop {
            let again = Stories::open(&path).unwrap().lines_of(&all);
            if again.len() == 2 {
                break again;
            }
            std::thread::yield_now();
        };
        assert_eq!(again[1].text, "two");
    }
}
