//! Following a text file that someone else writes: a serial console, a daemon's log.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::wait;

/// A reader that remembers how far it has read.
#[derive(Debug, Clone)]
pub struct LogTail {
    path: PathBuf,
    position: u64,
    /// What was read and not matched yet, without escape sequences.
    pending: String,
    /// Bytes at the end that do not make a whole line yet.
    partial: Vec<u8>,
}

impl LogTail {
    /// Follows a file from its beginning. The file may not exist yet.
    #[must_use]
    pub fn from_start(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            position: 0,
            pending: String::new(),
            partial: Vec::new(),
        }
    }

    /// Follows a file from where it ends now.
    #[must_use]
    pub fn from_end(path: &Path) -> Self {
        let position = std::fs::metadata(path).map_or(0, |facts| facts.len());
        Self {
            position,
            ..Self::from_start(path)
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks once for the first of `patterns` that the text holds. Returns its index,
    /// and goes on behind it the next time.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn look(&mut self, patterns: &[&str]) -> anyhow::Result<Option<usize>> {
        self.read()?;
        // The unfinished last line counts: prompts end without a line break.
        let tail = plain(&self.partial);
        let mut text = std::mem::take(&mut self.pending);
        let settled = text.len();
        text.push_str(&tail);
        let found = patterns
            .iter()
            .enumerate()
            .filter_map(|(index, pattern)| Some((text.find(pattern)?, index, pattern.len())))
            .min();
        let Some((at, index, length)) = found else {
            text.truncate(settled);
            self.pending = keep_end(text);
            return Ok(None);
        };
        let behind = at + length;
        if behind > settled {
            self.partial = text.split_off(behind).into_bytes();
        } else {
            text.truncate(settled);
            self.pending = text.split_off(behind);
        }
        Ok(Some(index))
    }

    /// Waits for the first of `patterns` and returns its index. `alive` is asked at
    /// every look, and ends the waiting with its error when the writer died.
    ///
    /// # Errors
    /// The deadline passed, the writer died, or the file cannot be read. The error
    /// shows the log's last lines.
    pub async fn wait_for(
        &mut self,
        patterns: &[&str],
        deadline: Duration,
        mut alive: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        let what = format!("`{}` in {}", patterns.join("` or `"), self.path.display());
        let found = wait::until(&what, deadline, || {
            let seen = self.look(patterns);
            let state = alive();
            async move {
                match seen? {
                    // What a dying writer said last counts before its death does.
                    Some(index) => Ok(Some(index)),
                    None => state.map(|()| None),
                }
            }
        })
        .await;
        found.with_context(|| format!("last lines:\n{}", last_lines(&self.path, 15)))
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("open log {}", self.path.display()));
            }
        };
        let read = file
            .seek(SeekFrom::Start(self.position))
            .and_then(|_| file.read_to_end(&mut self.partial))
            .with_context(|| format!("read log {}", self.path.display()))?;
        self.position += read as u64;
        if let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') {
            let rest = self.partial.split_off(end + 1);
            let lines = std::mem::replace(&mut self.partial, rest);
            self.pending.push_str(&plain(&lines));
        }
        Ok(())
    }
}

/// Returns the last lines of a log without escape sequences, or a word why not.
#[must_use]
pub fn last_lines(path: &Path, count: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = plain(&bytes);
            let lines: Vec<_> = text
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            let first = lines.len().saturating_sub(count);
            lines[first..].join("\n")
        }
        Err(error) => format!("(no log {}: {error})", path.display()),
    }
}

/// Nobody looks for something longer than this across lines.
fn keep_end(mut text: String) -> String {
    const KEEP: usize = 4096;
    if text.len() > 4 * KEEP {
        let mut cut = text.len() - KEEP;
        while !text.is_char_boundary(cut) {
            cut += 1;
        }
        text.drain(..cut);
    }
    text
}

/// Text without terminal escape sequences and carriage returns. Firmware draws
/// its screens with them.
#[must_use]
pub fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\x1b' => {
                if rest.next_if_eq(&'[').is_some() {
                    // A control sequence ends with a byte of 0x40 to 0x7e.
                    for part in rest.by_ref() {
                        if ('\x40'..='\x7e').contains(&part) {
                            break;
                        }
                    }
                } else {
                    rest.next();
                }
            }
            '\r' => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_earliest_pattern_wins_and_the_next_look_goes_on_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let mut tail = LogTail::from_start(&path);
        assert_eq!(tail.look(&["login:"]).unwrap(), None);
        let mut file = File::create(&path).unwrap();
        write!(file, "\x1b[2J\x1b[01;01Hone\r\ntwo one\nlogin:").unwrap();
        assert_eq!(tail.look(&["two", "one"]).unwrap(), Some(1));
        assert_eq!(tail.look(&["two", "one"]).unwrap(), Some(0));
        assert_eq!(tail.look(&["two", "one"]).unwrap(), Some(1));
        assert_eq!(tail.look(&["one"]).unwrap(), None);
        assert_eq!(tail.look(&["login:"]).unwrap(), Some(0));
        assert_eq!(tail.look(&["login:"]).unwrap(), None);
    }

    #[test]
    fn a_pattern_that_arrives_in_two_pieces_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut tail = LogTail::from_start(&path);
        let mut file = File::create(&path).unwrap();
        write!(file, "ready to ser").unwrap();
        assert_eq!(tail.look(&["ready to serve"]).unwrap(), None);
        writeln!(file, "ve").unwrap();
        assert_eq!(tail.look(&["ready to serve"]).unwrap(), Some(0));
    }

    #[test]
    fn a_tail_from_the_end_sees_only_what_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "booted\n").unwrap();
        let mut tail = LogTail::from_end(&path);
        assert_eq!(tail.look(&["booted"]).unwrap(), None);
    }

    #[tokio::test]
    async fn a_dead_writer_ends_the_waiting_and_its_last_lines_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "cannot bind port 67\n").unwrap();
        let mut tail = LogTail::from_start(&path);
        let result = tail.wait_for(&["ready"], Duration::from_secs(60), || {
            anyhow::bail!("leap-provisioner ended with exit code 1")
        });
        let error = format!("{:#}", result.await.unwrap_err());
        assert!(error.contains("cannot bind port 67"), "{error}");
        assert!(error.contains("exit code 1"), "{error}");
    }

    #[test]
    fn escape_sequences_vanish() {
        assert_eq!(plain(b"\x1b[0m\x1b[35mBdsDxe\x1b[0m: x\r\n"), "BdsDxe: x\n");
    }
}
