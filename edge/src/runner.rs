//! Runs tools: logs their command lines and keeps what they say on standard error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, anyhow};

use crate::exit::{self, Kind};

/// A tool with its arguments, not yet started.
#[derive(Debug, Clone)]
pub struct Tool {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    current_dir: Option<OsString>,
    stdin: Option<Vec<u8>>,
}

impl Tool {
    /// A tool by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            current_dir: None,
            stdin: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the folder to run in.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.current_dir = Some(dir.as_ref().as_os_str().to_owned());
        self
    }

    /// Gives bytes to read on standard input.
    #[must_use]
    pub fn stdin_bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// The command line, quoted as a shell would need it.
    pub fn line(&self) -> String {
        std::iter::once(&self.program)
            .chain(&self.args)
            .map(|word| quote(&word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The command for the standard library, for what is special.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place where a process is made"
    )]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.current_dir {
            command.current_dir(dir);
        }
        command
    }

    /// The command for tokio, for what is special.
    pub fn tokio_command(&self) -> tokio::process::Command {
        tokio::process::Command::from(self.command())
    }

    /// Runs the tool to its end.
    ///
    /// # Errors
    /// It cannot be started (kind `Environment` where it is missing), or it
    /// ends without success; then the error holds its last words.
    pub fn run(&self) -> Result<()> {
        self.output().map(drop)
    }

    /// Runs the tool and returns its standard output.
    ///
    /// # Errors
    /// As for [`Tool::run`].
    pub fn output(&self) -> Result<Vec<u8>> {
        tracing::debug!(command = %self.line(), "run");
        let mut child = self
            .command()
            .stdin(if self.stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| self.not_started(error))?;
        // Feeding and reading go on at the same time, or a full pipe stops both.
        let output = std::thread::scope(|scope| {
            if let (Some(bytes), Some(mut stdin)) = (&self.stdin, child.stdin.take()) {
                // A tool that stops reading says why by its exit status.
                scope.spawn(move || drop(stdin.write_all(bytes)));
            }
            child.wait_with_output()
        })
        .with_context(|| format!("wait for {}", self.line()))?;
        self.judge(output)
    }

    /// Runs the tool and returns its standard output as text without the last line end.
    ///
    /// # Errors
    /// As for [`Tool::run`], and output that is not UTF-8.
    pub fn text(&self) -> Result<String> {
        let text = String::from_utf8(self.output()?)
            .with_context(|| format!("output of {}: expected UTF-8", self.line()))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Runs the tool to its end without blocking the runtime; dropped, it is killed.
    ///
    /// # Errors
    /// As for [`Tool::run`].
    pub async fn run_async(&self) -> Result<()> {
        self.output_async().await.map(drop)
    }

    /// As [`Tool::output`], without blocking the runtime.
    ///
    /// # Errors
    /// As for [`Tool::run`].
    pub async fn output_async(&self) -> Result<Vec<u8>> {
        use tokio::io::AsyncWriteExt as _;
        tracing::debug!(command = %self.line(), "run");
        let mut child = self
            .tokio_command()
            .stdin(if self.stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.not_started(error))?;
        let stdin = child.stdin.take();
        let feed = async {
            if let (Some(bytes), Some(mut stdin)) = (&self.stdin, stdin) {
                drop(stdin.write_all(bytes).await);
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        self.judge(output.with_context(|| format!("wait for {}", self.line()))?)
    }

    /// As [`Tool::text`], without blocking the runtime.
    ///
    /// # Errors
    /// As for [`Tool::text`].
    pub async fn text_async(&self) -> Result<String> {
        let text = String::from_utf8(self.output_async().await?)
            .with_context(|| format!("output of {}: expected UTF-8", self.line()))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Starts the tool with both its outputs appended to a file.
    ///
    /// # Errors
    /// The file cannot be opened, or the tool cannot be started.
    pub fn spawn_logged(&self, log: &Path) -> Result<Child> {
        tracing::debug!(command = %self.line(), "start");
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        self.command()
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log file")?)
            .stderr(file)
            .spawn()
            .map_err(|error| self.not_started(error))
    }

    fn not_started(&self, error: std::io::Error) -> anyhow::Error {
        let program = self.program.to_string_lossy();
        if error.kind() == std::io::ErrorKind::NotFound {
            let missing = exit::marked(Kind::Environment, format!("{program} is missing"));
            return exit::hint(
                missing,
                format!("install the package that has {program}, or run make setup"),
            );
        }
        anyhow!(error).context(format!("start {program}"))
    }

    fn judge(&self, output: Output) -> Result<Vec<u8>> {
        if output.status.success() {
            return Ok(output.stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let mut words: Vec<&str> = stderr.lines().rev().take(12).collect();
        words.reverse();
        Err(anyhow!(
            "{}: {}{}{}",
            self.line(),
            output.status,
            if words.is_empty() { "" } else { ":\n    " },
            words.join("\n    ")
        ))
    }
}

fn quote(word: &str) -> String {
    let plain = !word.is_empty()
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c));
    if plain {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_tool_gives_its_last_words() {
        let error = Tool::new("sh")
            .args(["-c", "echo first; echo 'no space' >&2; exit 3"])
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains("no space"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(!error.contains("first\n"), "{error}");
    }

    #[test]
    fn a_missing_tool_is_a_fault_of_the_environment() {
        let error = Tool::new("no-such-tool").run().unwrap_err();
        let failure = exit::Failure::from(error);
        assert_eq!(failure.kind(), Kind::Environment);
        assert!(exit::render(failure.error()).contains("hint: "));
    }

    #[test]
    fn standard_input_larger_than_a_pipe_is_fed() {
        let input = vec![b'x'; 1 << 20];
        let output = Tool::new("cat")
            .stdin_bytes(input.clone())
            .output()
            .unwrap();
        assert_eq!(output, input);
    }

    #[test]
    fn the_command_line_can_be_pasted_into_a_shell() {
        let tool = Tool::new("echo").args(["a b", "it's", "--x=1", ""]);
        assert_eq!(tool.line(), r"echo 'a b' 'it'\''s' --x=1 ''");
    }
}
