//! A place of the laboratory's own: namespaces that nothing leaks out of.
//!
//! The program runs twice. *Outside* it only supervises: it starts itself again
//! through `unshare` (and a user namespace, when not root), passes a request to
//! stop on, and runs errands that need the host's network, such as a build that
//! fetches packages. *Inside* it is process 1 of a process namespace, with a
//! network, mounts and a host name of its own; the story happens there.
//!
//! When the inner program ends, the kernel kills all that it started. When the
//! outer one dies, however it dies, `setpriv --pdeathsig` and `unshare
//! --kill-child` take the inner one with it, and with that everything else.
//!
//! The two talk in JSON lines over one Unix socket, whose folder is removed as
//! soon as they are connected.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use edge::exit::{self, Kind};
use edge::runner::Tool;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};

use super::process::run;

/// Tells the inner program where the outer one listens.
const CONTROL: &str = "LEAP_LAB_CONTROL";

/// Sockets and other small things of the laboratory live here, inside only.
pub const RUN: &str = "/run/leap-lab";

/// How long the story may take to clean up when it is interrupted.
const PATIENCE: Duration = Duration::from_secs(20);

/// A host name that no machine of a customer has.
const HOST_NAME: &str = "leap-lab";

/// Where the laboratory keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Folder of logs, disks, captures and the report.
    pub build: PathBuf,
    /// Whether the laboratory has the terminal: an interactive shell needs it. Then
    /// Ctrl-C reaches everything inside directly.
    pub foreground: bool,
}

impl Place {
    /// The file that says where a running laboratory is, for [`enter`].
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.build.join("lab.json")
    }

    /// Temporary files of everything inside.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.build.join("tmp")
    }
}

/// Where a running laboratory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Process number of the inner program, as the host counts.
    pub process: i32,
    /// Its network namespace, by which a number that was used again is told apart.
    pub network: String,
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Variables that a shell in the laboratory should have.
    pub environment: BTreeMap<String, String>,
}

/// A program to run outside, with the host's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables added to the environment.
    pub environment: BTreeMap<String, String>,
}

/// What the inner program says.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Run(Errand),
    /// Variables that a shell in the laboratory should have.
    Ready(BTreeMap<String, String>),
}

/// What the outer program says.
#[derive(Debug, Serialize, Deserialize)]
enum Say {
    Stop,
    Line(String),
    Done(Result<i32, String>),
}

/// Says whether this program is the inner one.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(CONTROL).is_some()
}

// ---------------------------------------------------------------- outside

/// Runs this same program with the same arguments inside, and returns how it ended.
/// Must be called on the main thread, because the inner program dies with the thread
/// that started it.
///
/// # Errors
/// The namespaces cannot be made, or the socket between the two fails.
pub async fn supervise(place: &Place) -> anyhow::Result<ExitStatus> {
    std::fs::create_dir_all(place.temporary())
        .with_context(|| format!("make folder {}", place.temporary().display()))?;
    // Not in the build folder: the path of a Unix socket has at most 107 bytes.
    let folder = tempfile::Builder::new()
        .prefix("leap-lab-")
        .tempdir_in("/tmp")
        .context("make a folder for the laboratory's socket in /tmp")?;
    let socket = folder.path().join("control");
    let listener = UnixListener::bind(&socket).context("listen for the inner program")?;
    let mut signals = Signals::new(place.foreground)?;
    let mut inner = start_inner(place, &socket)?;

    let stream = tokio::select! {
        accepted = listener.accept() => accepted.context("accept the inner program")?.0,
        ended = inner.wait() => {
            let ended = ended.context("wait for the inner program")?;
            if ended.success() {
                return Ok(ended);
            }
            let failed = format!("cannot make the laboratory's namespaces: unshare: {ended}");
            let failed = exit::marked(Kind::Environment, failed);
            return Err(exit::hint(failed, "run leap-lab check-host"));
        }
        () = signals.next() => {
            inner.kill().await.context("kill the inner program")?;
            bail!("interrupted before the laboratory stood");
        }
    };
    drop(listener);
    drop(folder);
    let ended = attend(place, &mut inner, stream, &mut signals).await;
    let _ = std::fs::remove_file(place.record());
    let _ = std::fs::remove_dir_all(place.temporary());
    ended
}

/// Checks by trying that the namespaces can be made here.
///
/// # Errors
/// They cannot; the error says what the system said.
pub async fn try_namespaces() -> anyhow::Result<()> {
    let mut arguments = unshare_arguments();
    arguments.extend(["ip", "link", "set", "lo", "up"].map(OsString::from));
    let (path, value) = search_path();
    Tool::new("unshare")
        .args(arguments)
        .env(path, value)
        .run_async()
        .await
}

fn unshare_arguments() -> Vec<OsString> {
    let mut arguments: Vec<&str> = Vec::new();
    if !rustix::process::geteuid().is_root() {
        arguments.extend(["--user", "--map-root-user", "--map-auto"]);
    }
    arguments.extend(["--net", "--mount", "--pid", "--uts", "--ipc"]);
    arguments.extend(["--fork", "--kill-child=KILL", "--mount-proc", "--"]);
    arguments.into_iter().map(OsString::from).collect()
}

/// An ordinary user's search path lacks the folders that hold `sgdisk` and `sshd`.
pub(crate) fn search_path() -> (&'static str, OsString) {
    let mut value = std::env::var_os("PATH").unwrap_or_default();
    value.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    ("PATH", value)
}

fn start_inner(place: &Place, socket: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let (path, search) = search_path();
    let mut outer = Tool::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(unshare_arguments())
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(CONTROL, socket)
        .env("TMPDIR", absolute(&place.temporary())?)
        .env(path, search)
        .tokio_command();
    outer.kill_on_drop(true);
    if !place.foreground {
        // Ctrl-C on the terminal shall reach the outer program alone, which then
        // lets the inner one clean up in order.
        outer.stdin(Stdio::null()).process_group(0);
    }
    outer.spawn().context("start setpriv")
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("make {} absolute", path.display()))
}

async fn attend(
    place: &Place,
    inner: &mut Child,
    stream: UnixStream,
    signals: &mut Signals,
) -> anyhow::Result<ExitStatus> {
    let (read, mut write) = stream.into_split();
    let mut asked = BufReader::new(read).lines();
    let mut errand: Option<Running> = None;
    let mut stopping = false;
    loop {
        let deadline = async {
            if stopping {
                tokio::time::sleep(PATIENCE).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = inner.wait() => {
                if let Some(errand) = errand.take() {
                    errand.stop().await;
                }
                return ended.context("wait for the inner program");
            }
            () = signals.next() => {
                if stopping {
                    inner.kill().await.context("kill the inner program")?;
                }
                stopping = true;
                if let Some(errand) = errand.take() {
                    errand.stop().await;
                }
                let _ = say(&mut write, &Say::Stop).await;
            }
            () = deadline => {
                tracing::warn!("the laboratory did not clean up in time and is killed");
                inner.kill().await.context("kill the inner program")?;
            }
            said = next_of(&mut errand) => {
                let told = match said {
                    Some(line) => say(&mut write, &Say::Line(line)).await,
                    None => {
                        let done = match errand.take() {
                            Some(running) => running.end().await,
                            None => Err("the errand vanished".to_owned()),
                        };
                        say(&mut write, &Say::Done(done)).await
                    }
                };
                told?;
            }
            line = asked.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line).context("read a request")? {
                    Ask::Ready(environment) => record(place, inner, environment)?,
                    Ask::Run(wanted) => match Running::start(&wanted) {
                        Ok(running) => errand = Some(running),
                        Err(error) => {
                            say(&mut write, &Say::Done(Err(format!("{error:#}")))).await?;
                        }
                    },
                },
                // The inner program hung up: it is about to end.
                Ok(None) | Err(_) => {
                    let ended = tokio::time::timeout(PATIENCE, inner.wait()).await;
                    if let Ok(ended) = ended {
                        return ended.context("wait for the inner program");
                    }
                    inner.kill().await.context("kill the inner program")?;
                }
            },
        }
    }
}

fn record(
    place: &Place,
    inner: &Child,
    environment: BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let unshare = inner.id().context("the inner program has ended")?;
    let list = format!("/proc/{unshare}/task/{unshare}/children");
    let children = std::fs::read_to_string(&list).with_context(|| format!("read {list}"))?;
    let process = children
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    let process = process.context("unshare has no child")?;
    let record = Record {
        process,
        network: network_of(process).context("find the laboratory's network")?,
        user_namespace: !rustix::process::geteuid().is_root(),
        environment,
    };
    let path = place.record();
    let json = serde_json::to_string_pretty(&record).context("write the laboratory's record")?;
    std::fs::write(&path, json).with_context(|| format!("write {}", path.display()))
}

fn network_of(process: i32) -> std::io::Result<String> {
    let link = std::fs::read_link(format!("/proc/{process}/ns/net"))?;
    Ok(link.to_string_lossy().into_owned())
}

/// An errand that runs.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(errand: &Errand) -> anyhow::Result<Self> {
        // A process group of its own: an interrupt is passed on by `stop`. It also
        // dies with us, should we be killed.
        let mut tool = Tool::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&errand.program)
            .args(&errand.arguments);
        for (name, value) in &errand.environment {
            tool = tool.env(name, value);
        }
        let mut child = tool
            .tokio_command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", errand.program.display()))?;
        let (sender, lines) = mpsc::channel(64);
        if let Some(output) = child.stdout.take() {
            tokio::spawn(forward(output, sender.clone()));
        }
        if let Some(output) = child.stderr.take() {
            tokio::spawn(forward(output, sender));
        }
        Ok(Self { child, lines })
    }

    async fn end(mut self) -> Result<i32, String> {
        match self.child.wait().await {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Ok(code),
                (None, number) => Err(format!("killed by signal {}", number.unwrap_or(0))),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    async fn stop(mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            // The whole group: a build has children of its own.
            let _ = kill_process_group(pid, Signal::TERM);
        }
        if tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }
}

async fn forward(output: impl AsyncRead + Unpin, sender: mpsc::Sender<String>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if sender.send(line).await.is_err() {
            break;
        }
    }
}

/// The next line of a running errand; nothing when it has closed its output. Waits for
/// ever when there is no errand.
async fn next_of(errand: &mut Option<Running>) -> Option<String> {
    match errand {
        Some(running) => running.lines.recv().await,
        None => std::future::pending().await,
    }
}

async fn say<T: Serialize>(write: &mut OwnedWriteHalf, message: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(message).context("encode a message")?;
    line.push('\n');
    write
        .write_all(line.as_bytes())
        .await
        .context("talk to the other half of the laboratory")
}

/// The signals that ask for an end. In the foreground, Ctrl-C belongs to what runs
/// there: a shell must survive it.
struct Signals {
    foreground: bool,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new(foreground: bool) -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            foreground,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {
                    if self.foreground {
                        continue;
                    }
                }
                _ = self.terminate.recv() => {}
                _ = self.hangup.recv() => {}
            }
            return;
        }
    }
}

// ----------------------------------------------------------------- inside

/// The inner program's hold on its place.
#[derive(Debug)]
pub struct Inside {
    write: Arc<Mutex<OwnedWriteHalf>>,
    answers: Mutex<mpsc::Receiver<Say>>,
    stop: watch::Receiver<bool>,
}

impl Inside {
    /// Prepares the namespaces: loopback up, a private `/run`, `/sys` of the new
    /// network, a host name. Called once, first thing inside.
    ///
    /// # Errors
    /// The system refused one of these, or the outer program is gone.
    pub async fn begin() -> anyhow::Result<Self> {
        let socket = std::env::var_os(CONTROL).context("not inside a laboratory")?;
        let stream = UnixStream::connect(&socket)
            .await
            .context("reach the outer program")?;
        run("ip", ["link", "set", "lo", "up"]).await?;
        run(
            "mount",
            ["-t", "tmpfs", "-o", "mode=755", "leap-lab", "/run"],
        )
        .await?;
        std::fs::create_dir_all(RUN).with_context(|| format!("make folder {RUN}"))?;
        // The old /sys still shows the host's interfaces.
        if let Err(error) = run("mount", ["-t", "sysfs", "sysfs", "/sys"]).await {
            tracing::warn!("the laboratory sees the host's /sys: {error:#}");
        }
        rustix::system::sethostname(HOST_NAME.as_bytes()).context("set the host name")?;

        let (read, write) = stream.into_split();
        let (answer, answers) = mpsc::channel(64);
        let (stopper, stop) = watch::channel(false);
        tokio::spawn(listen(BufReader::new(read).lines(), answer, stopper));
        Ok(Self {
            write: Arc::new(Mutex::new(write)),
            answers: Mutex::new(answers),
            stop,
        })
    }

    /// Lets [`enter`] find the laboratory, with these variables in its shells.
    ///
    /// # Errors
    /// The outer program is gone.
    pub async fn ready(&self, environment: BTreeMap<String, String>) -> anyhow::Result<()> {
        say(&mut *self.write.lock().await, &Ask::Ready(environment)).await
    }

    /// Returns when somebody asked the laboratory to stop, or the outer program is gone.
    pub async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // An error means that the listener ended: the outer program is gone.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Runs a program outside, with the host's network, and hands each line that it
    /// prints to `line`. One errand at a time; a second one waits.
    ///
    /// # Errors
    /// The program cannot be started or fails. The error ends with its last lines.
    pub async fn errand(&self, errand: &Errand, mut line: impl FnMut(&str)) -> anyhow::Result<()> {
        let name = errand
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let mut answers = self.answers.lock().await;
        say(&mut *self.write.lock().await, &Ask::Run(errand.clone())).await?;
        let mut last: Vec<String> = Vec::new();
        while let Some(answer) = answers.recv().await {
            match answer {
                Say::Line(text) => {
                    line(&text);
                    if last.len() == 12 {
                        last.remove(0);
                    }
                    last.push(text);
                }
                Say::Done(Ok(0)) => return Ok(()),
                Say::Done(Ok(code)) => {
                    bail!("{name} ended with exit code {code}:\n{}", last.join("\n"))
                }
                Say::Done(Err(trouble)) => bail!("{name}: {trouble}:\n{}", last.join("\n")),
                Say::Stop => {}
            }
        }
        bail!("{name}: the outer program is gone")
    }

    /// Puts a file with this text over `path`, for everything inside. The host's own
    /// file stays as it is.
    ///
    /// # Errors
    /// `path` does not exist, or the system refused.
    pub async fn cover_file(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let folder = Path::new(RUN).join("covers");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("make folder {}", folder.display()))?;
        let own = folder.join(path.trim_start_matches('/').replace('/', "-"));
        std::fs::write(&own, text).with_context(|| format!("write {}", own.display()))?;
        run("mount", ["--bind".as_ref(), own.as_os_str(), path.as_ref()]).await?;
        Ok(())
    }
}

async fn listen(
    mut lines: Lines<BufReader<OwnedReadHalf>>,
    answer: mpsc::Sender<Say>,
    stop: watch::Sender<bool>,
) {
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Say::Stop) => {
                stop.send_replace(true);
            }
            Ok(say) => {
                if answer.send(say).await.is_err() {
                    break;
                }
            }
            Err(error) => tracing::warn!(%error, "the outer program said something odd"),
        }
    }
    stop.send_replace(true);
}

// ------------------------------------------------------------------ enter

/// Runs a program in a laboratory that is running, on this terminal.
///
/// # Errors
/// No laboratory runs there, or the program cannot be started.
pub async fn enter(place: &Place, arguments: &[OsString]) -> anyhow::Result<ExitStatus> {
    let path = place.record();
    let none = || {
        let none = format!("no laboratory runs in {}", place.build.display());
        exit::hint(
            exit::marked(Kind::Environment, none),
            "start one with make lab",
        )
    };
    let text = std::fs::read_to_string(&path).map_err(|_| none())?;
    let record: Record =
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    // The record outlives an outer program that was killed.
    if network_of(record.process).ok().as_ref() != Some(&record.network) {
        return Err(none());
    }
    let mut nsenter = Tool::new("nsenter").args(["--target", &record.process.to_string()]);
    if record.user_namespace {
        nsenter = nsenter.arg("--user");
    }
    let (search, value) = search_path();
    // Of another mount namespace nsenter shows the root folder: people stay where they are.
    let here = std::env::current_dir().context("name this folder")?;
    nsenter = nsenter
        .args(["--net", "--mount", "--pid", "--uts", "--ipc", "--"])
        .args(["env", "--chdir"])
        .arg(here)
        .env(search, value);
    for (name, value) in &record.environment {
        nsenter = nsenter.env(name, value);
    }
    nsenter = if arguments.is_empty() {
        nsenter
            .args(["bash", "--norc", "-i"])
            .env("PS1", "leap-lab \\w$ ")
    } else {
        nsenter.args(arguments)
    };
    nsenter
        .tokio_command()
        .status()
        .await
        .context("start nsenter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entering_without_a_laboratory_says_how_to_start_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            build: folder.path().to_owned(),
            foreground: false,
        };
        let error = enter(&place, &[]).await.unwrap_err();
        assert!(exit::render(&error).contains("hint: start one with make lab"));
    }

    #[tokio::test]
    async fn an_errand_hands_over_its_lines_and_its_exit_code() {
        let errand = Errand {
            program: "sh".into(),
            arguments: vec!["-c".into(), "echo fetching $WHAT; exit 3".into()],
            environment: BTreeMap::from([("WHAT".to_owned(), "packages".to_owned())]),
        };
        let mut running = Some(Running::start(&errand).unwrap());
        assert_eq!(
            next_of(&mut running).await.as_deref(),
            Some("fetching packages")
        );
        assert_eq!(next_of(&mut running).await, None);
        assert_eq!(running.unwrap().end().await, Ok(3));
    }
}
