//! The commands: gather what is there, decide, do, report.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use edge::exit::{Kind, hint, marked};
use jiff::{SignedDuration, Timestamp};
use model::Digest;
use model::backup::{BackupStatus, CopyState, SnapshotRow};
use model::configuration::{Backup, Destination, SftpSource, Source};
use model::secrets::UnitSecrets;
use russh::keys::PublicKey;
use rustic_core::WriteBackend;

use crate::ledger::{Ledger, Verdict};
use crate::local::Local;
use crate::overlay::Overlay;
use crate::rate::Bucket;
use crate::replicate::{self, Counter};
use crate::report;
use crate::repository::{Label, Repository, Snapshot, short};
use crate::rest::{Remote, Rest};
use crate::restore::{Disk, Target};
use crate::retention;
use crate::secrets;
use crate::site::{self, Device, Lock, Site};
use crate::source::memory::Memory;
use crate::source::sftp::{ConnectError, Connection, Folder, Server, Sink};
use crate::state::{Copy, SourceState, State};

/// The local repository, as a place to restore from.
pub const LOCAL: &str = "local";

/// Where the canary lies in its snapshot.
const CANARY_PATH: &str = "/leapserv/canary";
const CANARY_SOURCE: &str = "leapserv-canary";
const CANARY_BYTES: usize = 4096;

/// Data that nothing needs is removed this often.
const PRUNE_EVERY: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How long a destination may take to say whether it holds the repository.
const PROBE: Duration = Duration::from_secs(20);

/// Rows of a source in the status.
const STATUS_ROWS: usize = 20;

/// A unit's backup engine: configuration and secrets in hand, nothing opened yet.
#[derive(Debug)]
pub struct Engine {
    site: Site,
    config: Backup,
    secrets: UnitSecrets,
    lock_wait: Duration,
}

/// Where restored files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// Back to the source, in place or into another folder there.
    Source {
        /// The other folder, absolute.
        folder: Option<PathBuf>,
    },
    /// Into a folder of this machine.
    Unit {
        /// The folder, absolute.
        folder: PathBuf,
    },
}

/// What to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Snapshot id or a unique beginning of it, or `latest`.
    pub snapshot: String,
    /// The source, for `latest` when there are several.
    pub source: Option<String>,
    /// `local` or a destination.
    pub from: String,
    /// Path inside the source; `.` is all of it.
    pub path: PathBuf,
    /// Where to.
    pub to: To,
}

/// How much of the repository an attach brings before it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Keys, index and snapshots: enough to restore through the destination.
    Metadata,
    /// The packs too.
    Everything,
}

/// The lock, and the marker that tells the next writer of a crash.
struct Writing {
    _lock: Lock,
    marker: PathBuf,
}

impl Writing {
    /// Only called when everything went well; otherwise the next writer repairs first.
    fn finish(self) -> anyhow::Result<()> {
        site::unmark(&self.marker)
    }
}

/// Runs blocking work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("run blocking work")?
}

fn no_repository() -> anyhow::Error {
    hint(
        anyhow::anyhow!("there is no local repository"),
        "run leap-backup init on a new unit, or leap-backup attach on a replaced one",
    )
}

/// Reads a repository that another process may be writing to: between a
/// listing and the reading of a file, retention or repair may have replaced it.
async fn reading<T: Send + 'static>(
    work: impl Fn() -> anyhow::Result<T> + Send + Sync + 'static,
) -> anyhow::Result<T> {
    let work = Arc::new(work);
    for _ in 0..2 {
        let attempt = Arc::clone(&work);
        match blocking(move || attempt()).await {
            Ok(value) => return Ok(value),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "read again"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    blocking(move || work()).await
}

/// Makes secrets and repository where they are missing.
///
/// With secrets but no repository, a destination is asked first: when it
/// holds this unit's repository, a second one would split the unit's history.
///
/// # Errors
/// When the disk refuses, a destination cannot be asked, or one holds the repository.
pub async fn init(site: &Site, lock_wait: Duration) -> anyhow::Result<report::Init> {
    let device = site.device()?;
    let lock = lock(site, lock_wait).await?;
    let unit = device.identity.unit.to_string();
    let stored = secrets::read(&site.secrets())?;
    let secrets_made = stored.is_none();
    let local = Local::new(site.repository());
    let exists = local.exists().context("look for the local repository")?;
    let secrets = match stored {
        Some(secrets) => secrets,
        None if exists => bail!(hint(
            anyhow::anyhow!("there is a repository, but its secrets are missing"),
            "bring the unit's secrets back from the escrow",
        )),
        None => secrets::make(&site.secrets(), &unit)?,
    };
    if !exists && !secrets_made {
        refuse_second_repository(site, &device).await?;
    }
    let repository = Repository::new(Arc::new(local), &secrets.repository_key)?;
    let password = secrets.repository_password.clone();
    blocking(move || {
        if exists {
            repository.ensure_password(&password)?;
        } else {
            repository.create(&password)?;
        }
        ensure_canary(&repository, &unit)
    })
    .await?;
    drop(lock);
    Ok(report::Init {
        secrets_made,
        secrets_version: secrets.version,
        repository_made: !exists,
        ssh_public_key: secrets::ssh_public_key(&secrets)?,
    })
}

async fn refuse_second_repository(site: &Site, device: &Device) -> anyhow::Result<()> {
    let Some(config) = site.read_config()? else {
        return Ok(());
    };
    for destination in &config.destinations {
        let rest = rest(device, destination);
        let found = tokio::time::timeout(PROBE, rest.list(rustic_core::FileType::Config))
            .await
            .map_err(anyhow::Error::new)
            .and_then(|found| found.map_err(anyhow::Error::new))
            .with_context(|| format!("ask {} for an older repository", destination.name))?;
        if !found.is_empty() {
            bail!(hint(
                marked(
                    Kind::Refused,
                    format!("{} holds this unit's repository", destination.name)
                ),
                "run leap-backup attach: a second repository would split the unit's history",
            ));
        }
    }
    Ok(())
}

fn rest(device: &Device, destination: &Destination) -> Rest {
    Rest::new(
        device.client.clone(),
        &destination.url,
        &device.identity.unit.to_string(),
    )
}

async fn lock(site: &Site, wait: Duration) -> anyhow::Result<Lock> {
    let site = site.clone();
    blocking(move || site.lock(wait)).await
}

/// Writes the canary unless a snapshot of it is there.
fn ensure_canary(repository: &Repository, unit: &str) -> anyhow::Result<()> {
    if repository.snapshots()?.iter().any(|s| s.canary) {
        return Ok(());
    }
    let mut content = vec![0; CANARY_BYTES];
    getrandom::fill(&mut content)
        .ok()
        .context("ask for randomness")?;
    let digest = Digest::of(&content).to_string();
    let now = edge::clock::now();
    let source = Memory::new(CANARY_PATH, content, now);
    let label = Label {
        unit,
        source: CANARY_SOURCE,
        root: Path::new(CANARY_PATH),
        time: now,
    };
    repository
        .put_canary(&source, &label, &digest)
        .context("write canary")
}

/// Restores the canary and compares its digest.
fn prove_canary(repository: &Repository, scratch: &Path) -> anyhow::Result<String> {
    let snapshots = repository.snapshots()?;
    let canary = snapshots.iter().find(|s| s.canary).ok_or_else(|| {
        hint(
            anyhow::anyhow!("repository holds no canary"),
            "leap-backup run writes one",
        )
    })?;
    let folder = tempfile::tempdir_in(scratch)
        .with_context(|| format!("make a folder in {}", scratch.display()))?;
    repository
        .restore(canary, Path::new(CANARY_PATH), Some(folder.path()), &Disk)
        .context("restore canary")?;
    let content = std::fs::read(folder.path().join("canary")).context("read restored canary")?;
    let digest = Digest::of(&content).to_string();
    if digest != canary.description {
        bail!(
            "restored canary has the digest {digest}, expected {}",
            canary.description
        );
    }
    Ok(canary.id.clone())
}

/// Chooses the snapshot that an order means.
///
/// `latest` is the newest complete one: a partial snapshot is only restored
/// when it is named.
///
/// # Errors
/// When there is none, or more than one could be meant.
pub fn select<'a>(
    snapshots: &'a [Snapshot],
    which: &str,
    source: Option<&str>,
) -> anyhow::Result<&'a Snapshot> {
    let of_source = |s: &&Snapshot| source.is_none_or(|source| s.source == source);
    let candidates: Vec<&Snapshot> = snapshots
        .iter()
        .filter(|s| !s.canary)
        .filter(of_source)
        .collect();
    if which == "latest" {
        let names: BTreeSet<&str> = candidates.iter().map(|s| s.source.as_str()).collect();
        if names.len() > 1 {
            let names: Vec<&str> = names.into_iter().collect();
            bail!(hint(
                marked(Kind::Usage, "there are snapshots of several sources"),
                format!("name one with --source: {}", names.join(", ")),
            ));
        }
        let newest = candidates
            .iter()
            .filter(|s| !s.partial)
            .max_by_key(|s| s.time);
        return match newest {
            Some(newest) => Ok(newest),
            None if candidates.is_empty() => bail!("there is no snapshot"),
            None => bail!(hint(
                anyhow::anyhow!("there is no complete snapshot"),
                "partial ones are restored when their id is given; see leap-backup snapshots",
            )),
        };
    }
    let mut found = candidates.iter().filter(|s| s.id.starts_with(which));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => bail!("there is no snapshot {which}"),
        (Some(_), Some(_)) => bail!("snapshot {which}: more than one id begins so"),
    }
}

fn server(source: &Source) -> anyhow::Result<(Server, &str)> {
    let Source::Sftp(SftpSource {
        host,
        port,
        user,
        path,
        host_key,
        ..
    }) = source;
    let host_key = PublicKey::from_openssh(host_key).map_err(|error| {
        marked(
            Kind::InvalidInput,
            format!("source {}: host_key: {error}", source.name()),
        )
    })?;
    let server = Server {
        host: host.clone(),
        port: *port,
        user: user.clone(),
        host_key,
    };
    // One spelling, so that the same folder is found again in older snapshots.
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    Ok((server, path))
}

/// Files in the newest complete snapshot of the same folder.
fn files_before(known: &[Snapshot], source: &Source) -> Option<u64> {
    let Source::Sftp(SftpSource { name, path, .. }) = source;
    known
        .iter()
        .filter(|s| s.source == *name && !s.partial && s.root == Path::new(path))
        .max_by_key(|s| s.time)
        .map(|s| s.files)
}

fn with_hint(error: ConnectError) -> anyhow::Error {
    match error.hint() {
        Some(next) => hint(error, next),
        None => error.into(),
    }
}

impl Engine {
    /// Reads configuration and secrets.
    ///
    /// # Errors
    /// When either is missing or does not fit.
    pub fn open(site: &Site, lock_wait: Duration) -> anyhow::Result<Self> {
        let config = site.read_config()?.ok_or_else(|| {
            hint(
                marked(Kind::Environment, "there is no backup configuration"),
                "the unit's configuration has no [backup] yet, or it is not applied",
            )
        })?;
        let secrets = secrets::read(&site.secrets())?.ok_or_else(|| {
            hint(
                marked(Kind::Environment, "the unit has no secrets"),
                "run leap-backup init on a new unit; on a replaced one they come from the escrow",
            )
        })?;
        Ok(Self {
            site: site.clone(),
            config,
            secrets,
            lock_wait,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Backup {
        &self.config
    }

    fn local(&self) -> Local {
        Local::new(self.site.repository())
    }

    fn local_repository(&self) -> anyhow::Result<Repository> {
        let local = self.local();
        if !local.exists().context("look for the local repository")? {
            return Err(no_repository());
        }
        Repository::new(Arc::new(local), &self.secrets.repository_key)
    }

    fn destination(&self, name: &str) -> anyhow::Result<&Destination> {
        self.config
            .destinations
            .iter()
            .find(|destination| destination.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self
                    .config
                    .destinations
                    .iter()
                    .map(|destination| destination.name.as_str())
                    .collect();
                hint(
                    marked(Kind::Usage, format!("there is no destination {name:?}")),
                    format!("expected {LOCAL} or one of: {}", names.join(", ")),
                )
            })
    }

    /// A repository to read from: the local one, completed by the destination
    /// that it is being filled from, or a destination.
    fn reading(&self, from: &str) -> anyhow::Result<Repository> {
        let key = &self.secrets.repository_key;
        if from != LOCAL {
            let destination = self.destination(from)?;
            let remote = Remote::new(rest(&self.site.device()?, destination));
            return Repository::new(Arc::new(remote), key);
        }
        let Some(filling) = State::read(&self.site).attaching else {
            return self.local_repository();
        };
        let destination = self.destination(&filling)?;
        let remote = Remote::new(rest(&self.site.device()?, destination));
        Repository::new(Arc::new(Overlay::new(self.local(), remote)), key)
    }

    /// Takes the lock and mends what an interrupted writer left.
    async fn begin(&self) -> anyhow::Result<Writing> {
        let lock = lock(&self.site, self.lock_wait).await?;
        let marker = self.site.state().join("writing");
        let interrupted = marker.try_exists().context("look for the marker")?;
        let local = self.local();
        if interrupted && local.exists().context("look for the local repository")? {
            tracing::info!("the last run was interrupted; mending the index");
            let repository = self.local_repository()?;
            blocking(move || {
                local.sweep().context("sweep unfinished files")?;
                repository.repair_index()
            })
            .await?;
        }
        site::mark(&marker)?;
        Ok(Writing {
            _lock: lock,
            marker,
        })
    }

    /// Backs up all sources, or those that are named, then replicates.
    ///
    /// # Errors
    /// When nothing could be begun: no repository, unknown source, lock. A
    /// source or destination that fails is told in the report.
    pub async fn run(&self, only: &[String]) -> anyhow::Result<report::Run> {
        let begun = Instant::now();
        for name in only {
            if !self.config.sources.iter().any(|s| s.name() == name) {
                bail!(marked(Kind::Usage, format!("there is no source {name:?}")));
            }
        }
        let device = self.site.device()?;
        let unit = device.identity.unit.to_string();
        let writing = self.begin().await?;
        let mut state = State::read(&self.site);
        self.fill(&mut state, &device).await?;
        let repository = self.local_repository()?;
        {
            let (repository, unit) = (repository.clone(), unit.clone());
            blocking(move || ensure_canary(&repository, &unit)).await?;
        }
        let known = {
            let repository = repository.clone();
            blocking(move || repository.snapshots()).await?
        };
        let mut sources = Vec::new();
        for source in &self.config.sources {
            if only.is_empty() || only.iter().any(|name| name == source.name()) {
                let before = files_before(&known, source);
                let ran = self
                    .run_source(source, &repository, &unit, before, &mut state)
                    .await;
                // What happened is remembered before the next source, which may hang or crash.
                state.write(&self.site)?;
                sources.push(ran);
            }
        }
        let forgotten = self.retain(&repository, &mut state).await?;
        let copies = self.replicate_all(&device, &mut state).await;
        let copies_complete = copies.iter().filter(|c| c.problem.is_none()).count();
        let enough = copies_complete >= self.config.copies_required as usize;
        state.problem = sources
            .iter()
            .find_map(|s| {
                let problem = s.error.as_ref().or(s.reason.as_ref())?;
                Some(format!("source {}: {problem}", s.source))
            })
            .or_else(|| (!enough).then(|| too_few(&copies)));
        state.write(&self.site)?;
        writing.finish()?;
        Ok(report::Run {
            ok: state.problem.is_none(),
            sources,
            forgotten,
            copies,
            copies_complete,
            copies_required: self.config.copies_required,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    async fn run_source(
        &self,
        source: &Source,
        repository: &Repository,
        unit: &str,
        files_before: Option<u64>,
        state: &mut State,
    ) -> report::SourceRun {
        let begun = Instant::now();
        let now = edge::clock::now();
        let remembered: &mut SourceState =
            state.sources.entry(source.name().to_owned()).or_default();
        remembered.begun = Some(now);
        let ledger = Arc::new(Ledger::default());
        let taken = self
            .take_snapshot(source, repository, unit, files_before, now, &ledger)
            .await;
        let mut ran = report::SourceRun {
            source: source.name().to_owned(),
            snapshot: None,
            time: now,
            files: 0,
            bytes: 0,
            added: 0,
            partial: false,
            reason: None,
            ledger: ledger.report(),
            error: None,
            seconds: begun.elapsed().as_secs_f64(),
        };
        match taken {
            Ok((snapshot, verdict)) => {
                ran.files = snapshot.files;
                ran.bytes = snapshot.bytes;
                ran.added = snapshot.added;
                match verdict {
                    Verdict::Complete => {
                        remembered.complete = Some(now);
                        tracing::info!(
                            source = source.name(),
                            snapshot = short(&snapshot.id),
                            files = snapshot.files,
                            "snapshot complete"
                        );
                    }
                    Verdict::Partial { reason } => {
                        tracing::warn!(
                            source = source.name(),
                            snapshot = short(&snapshot.id),
                            reason,
                            "snapshot partial"
                        );
                        ran.partial = true;
                        ran.reason = Some(reason);
                    }
                }
                ran.snapshot = Some(snapshot.id);
            }
            Err(error) => {
                let rendered = edge::exit::render(&error);
                let told = rendered.trim_start_matches("error: ").to_owned();
                tracing::error!(source = source.name(), error = told, "no snapshot");
                ran.error = Some(told);
            }
        }
        ran
    }

    async fn take_snapshot(
        &self,
        source: &Source,
        repository: &Repository,
        unit: &str,
        files_before: Option<u64>,
        now: Timestamp,
        ledger: &Arc<Ledger>,
    ) -> anyhow::Result<(Snapshot, Verdict)> {
        if self.site.is_restoring(source.name())? {
            let error = anyhow::anyhow!(
                "files of source {} are being restored: a snapshot would hold half of them",
                source.name()
            );
            return Err(hint(error, "the next run takes it"));
        }
        let (server, root) = server(source)?;
        let key = secrets::ssh_key(&self.secrets)?;
        let connection = Connection::open(&server, key).await.map_err(with_hint)?;
        let connection = Arc::new(connection);
        let folder = Folder::open(Arc::clone(&connection), root, Arc::clone(ledger), now)
            .await
            .map_err(with_hint)?;
        let (repository, ledger) = (repository.clone(), Arc::clone(ledger));
        let (unit, name, root) = (
            unit.to_owned(),
            source.name().to_owned(),
            PathBuf::from(root),
        );
        let taken = blocking(move || {
            let label = Label {
                unit: &unit,
                source: &name,
                root: &root,
                time: now,
            };
            repository.back_up(&folder, &label, &ledger, files_before)
        })
        .await;
        connection.close().await;
        taken
    }

    async fn retain(&self, repository: &Repository, state: &mut State) -> anyhow::Result<usize> {
        let now = edge::clock::now();
        let prune = match state.pruned {
            None => {
                state.pruned = Some(now);
                false
            }
            Some(last) => now.duration_since(last) >= PRUNE_EVERY,
        };
        let (repository, rules) = (repository.clone(), self.config.retention.clone());
        let forgotten = blocking(move || {
            let forget = retention::to_forget(&repository.snapshots()?, &rules, now)?;
            repository.forget(&forget)?;
            if prune {
                repository.prune()?;
            }
            Ok(forget.len())
        })
        .await?;
        if prune {
            state.pruned = Some(now);
        }
        Ok(forgotten)
    }

    /// Brings every destination up to the local repository.
    ///
    /// # Errors
    /// When nothing could be begun. A destination that fails is told in the report.
    pub async fn replicate(&self) -> anyhow::Result<report::Replicate> {
        let device = self.site.device()?;
        let writing = self.begin().await?;
        let mut state = State::read(&self.site);
        self.fill(&mut state, &device).await?;
        self.local_repository()?;
        let copies = self.replicate_all(&device, &mut state).await;
        state.write(&self.site)?;
        writing.finish()?;
        let copies_complete = copies.iter().filter(|c| c.problem.is_none()).count();
        Ok(report::Replicate {
            ok: copies_complete >= self.config.copies_required as usize,
            copies,
            copies_complete,
            copies_required: self.config.copies_required,
        })
    }

    async fn replicate_all(&self, device: &Device, state: &mut State) -> Vec<CopyState> {
        let source: Arc<dyn WriteBackend> = Arc::new(self.local());
        let copying = self.config.destinations.iter().map(|destination| {
            let source = Arc::clone(&source);
            let rest = rest(device, destination);
            let rate = Arc::new(Bucket::new(destination.rate_kib));
            async move {
                let counter = Counter::default();
                let sent = replicate::copy(source, &rest, &rate, &counter).await;
                (destination, counter.so_far(), sent)
            }
        });
        let mut copies = Vec::new();
        for (destination, (files_sent, bytes_sent), sent) in
            futures::future::join_all(copying).await
        {
            let name = destination.name.clone();
            let before = state.copies.remove(&name);
            let (complete, snapshots, problem) = match sent {
                Ok(sent) => {
                    tracing::info!(
                        destination = name,
                        files_sent,
                        bytes_sent,
                        "destination holds everything"
                    );
                    let snapshots = sent.snapshots.into_iter().collect();
                    (Some(edge::clock::now()), snapshots, None)
                }
                Err(error) => {
                    let told = format!("{error:#}");
                    tracing::warn!(destination = name, error = told, "destination is behind");
                    let (complete, snapshots) = before.map_or_else(Default::default, |before| {
                        (before.state.complete, before.snapshots)
                    });
                    (complete, snapshots, Some(told))
                }
            };
            let copy = CopyState {
                destination: name.clone(),
                complete,
                files_sent,
                bytes_sent,
                problem,
            };
            copies.push(copy.clone());
            state.copies.insert(
                name,
                Copy {
                    state: copy,
                    snapshots,
                },
            );
        }
        // A destination that is not configured any more is forgotten.
        state
            .copies
            .retain(|name, _| copies.iter().any(|copy| copy.destination == *name));
        state.replicated = Some(edge::clock::now());
        copies
    }

    /// Fetches the packs that an attach left for later.
    async fn fill(&self, state: &mut State, device: &Device) -> anyhow::Result<u64> {
        let Some(name) = state.attaching.clone() else {
            return Ok(0);
        };
        let destination = self.destination(&name)?;
        let local: Arc<dyn WriteBackend> = Arc::new(self.local());
        let fetched = replicate::fetch_packs(&rest(device, destination), local)
            .await
            .with_context(|| format!("fill the local repository from {name}"))?;
        state.attaching = None;
        state.write(&self.site)?;
        tracing::info!(fetched, destination = name, "local repository is filled");
        Ok(fetched)
    }

    /// Whether there is a repository to work on.
    ///
    /// # Errors
    /// When there is none: only an operator or the updater makes or attaches one.
    pub fn ready(&self) -> anyhow::Result<()> {
        self.local_repository().map(drop)
    }

    /// Whether an attach left packs to fetch.
    pub fn is_filling(&self) -> bool {
        State::read(&self.site).attaching.is_some()
    }

    /// Brings the unit's repository to this machine from the best destination.
    ///
    /// The best one holds the most snapshots; among equals, the one that
    /// answered first. When the repository is here already, what is missing is
    /// fetched and nothing else is done.
    ///
    /// # Errors
    /// When no destination holds a repository that the secrets open.
    pub async fn attach(&self, extent: Extent) -> anyhow::Result<report::Attach> {
        let begun = Instant::now();
        let device = self.site.device()?;
        let writing = self.begin().await?;
        let mut state = State::read(&self.site);
        let here = self
            .local()
            .exists()
            .context("look for the local repository")?;
        let mut files = 0;
        let mut from = None;
        if !here {
            let name = self.best_destination(&device).await?;
            let local: Arc<dyn WriteBackend> = Arc::new(self.local());
            // Remembered first: from now on an interruption is no new beginning.
            state.attaching = Some(name.clone());
            state.write(&self.site)?;
            files += replicate::fetch_metadata(&rest(&device, self.destination(&name)?), local)
                .await
                .with_context(|| format!("attach from {name}"))?;
            from = Some(name);
        }
        if extent == Extent::Everything {
            files += self.fill(&mut state, &device).await?;
        }
        let repository = self.reading(LOCAL)?;
        let snapshots = blocking(move || repository.snapshots()).await?;
        writing.finish()?;
        Ok(report::Attach {
            from,
            snapshots: snapshots.iter().filter(|s| !s.canary).count(),
            files,
            complete: state.attaching.is_none(),
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    async fn best_destination(&self, device: &Device) -> anyhow::Result<String> {
        let probing = self.config.destinations.iter().map(|destination| {
            let remote = Remote::new(rest(device, destination));
            let key = self.secrets.repository_key.clone();
            async move {
                let begun = Instant::now();
                let open = blocking(move || Repository::new(Arc::new(remote), &key)?.snapshots());
                let found = match tokio::time::timeout(PROBE, open).await {
                    Ok(found) => found,
                    Err(_) => Err(anyhow::anyhow!("no answer within {PROBE:?}")),
                };
                (destination.name.clone(), begun.elapsed(), found)
            }
        });
        let mut best: Option<(usize, Duration, String)> = None;
        let mut problems = Vec::new();
        for (name, took, found) in futures::future::join_all(probing).await {
            match found {
                Ok(snapshots) => {
                    let better = best.as_ref().is_none_or(|(most, quickest, _)| {
                        (snapshots.len(), *quickest) > (*most, took)
                    });
                    if better {
                        best = Some((snapshots.len(), took, name));
                    }
                }
                Err(error) => problems.push(format!("{name}: {error:#}")),
            }
        }
        match best {
            Some((_, _, name)) => Ok(name),
            None if problems.is_empty() => bail!("there are no destinations to attach from"),
            None => bail!(
                "no destination holds a repository that these secrets open: {}",
                problems.join("; ")
            ),
        }
    }

    /// Lists the snapshots of the local repository or of a destination, newest first.
    ///
    /// # Errors
    /// When it does not open.
    pub async fn snapshots(&self, from: &str) -> anyhow::Result<Vec<SnapshotRow>> {
        let repository = self.reading(from)?;
        let snapshots = reading(move || repository.snapshots()).await?;
        let state = State::read(&self.site);
        Ok(snapshots
            .iter()
            .filter(|s| !s.canary)
            .map(|s| {
                if from == LOCAL {
                    row(s, &state)
                } else {
                    SnapshotRow {
                        copies: vec![from.to_owned()],
                        ..row(s, &State::default())
                    }
                }
            })
            .collect())
    }

    /// Restores files.
    ///
    /// # Errors
    /// When the snapshot or the path is not there, or reading or writing fails.
    pub async fn restore(&self, order: &Order) -> anyhow::Result<report::Restore> {
        let begun = Instant::now();
        let repository = self.reading(&order.from)?;
        let snapshots = {
            let repository = repository.clone();
            reading(move || repository.snapshots()).await?
        };
        let snapshot = select(&snapshots, &order.snapshot, order.source.as_deref())?.clone();
        let path = crate::restore::inside(&snapshot.root, &order.path)?;
        let (target, elsewhere): (Box<dyn Target + Send>, Option<PathBuf>) = match &order.to {
            To::Unit { folder } => (Box::new(Disk), Some(folder.clone())),
            To::Source { folder } => {
                let source = self
                    .config
                    .sources
                    .iter()
                    .find(|source| source.name() == snapshot.source)
                    .with_context(|| {
                        format!("source {:?} is not configured any more", snapshot.source)
                    })?;
                let (server, _) = server(source)?;
                let key = secrets::ssh_key(&self.secrets)?;
                let connection = Connection::open(&server, key).await.map_err(with_hint)?;
                (Box::new(Sink::new(Arc::new(connection))), folder.clone())
            }
        };
        let _restoring = match &order.to {
            To::Unit { .. } => None,
            To::Source { .. } => Some(self.site.restoring(&snapshot.source)?),
        };
        let to = target.describe();
        let report_path = path.display().to_string();
        let id = snapshot.id.clone();
        let source = snapshot.source.clone();
        let landing = elsewhere.clone();
        let written =
            blocking(move || repository.restore(&snapshot, &path, elsewhere.as_deref(), &*target))
                .await?;
        Ok(report::Restore {
            snapshot: id,
            source,
            from: order.from.clone(),
            path: report_path.clone(),
            to: format!(
                "{to}:{}",
                landing.map_or(report_path, |folder| folder.display().to_string())
            ),
            written,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    /// Proves that the repository opens and gives back what was put in.
    ///
    /// # Errors
    /// When it does not.
    pub async fn canary(&self, from: &str) -> anyhow::Result<report::Canary> {
        let repository = self.reading(from)?;
        let scratch = self.site.state();
        let snapshot = reading(move || prove_canary(&repository, &scratch)).await?;
        let proven = edge::clock::now();
        if from == LOCAL {
            edge::durable::write_json(
                &self.site.state().join("canary.json"),
                &proven,
                edge::durable::Mode::Public,
            )?;
        }
        Ok(report::Canary {
            ok: true,
            from: from.to_owned(),
            snapshot,
            proven,
        })
    }
}

fn too_few(copies: &[CopyState]) -> String {
    copies
        .iter()
        .find_map(|copy| {
            let problem = copy.problem.as_ref()?;
            Some(format!("destination {}: {problem}", copy.destination))
        })
        .unwrap_or_else(|| "too few destinations hold everything".to_owned())
}

fn row(snapshot: &Snapshot, state: &State) -> SnapshotRow {
    let mut copies = vec![LOCAL.to_owned()];
    copies.extend(
        state
            .copies
            .iter()
            .filter(|(_, copy)| copy.snapshots.contains(&snapshot.id))
            .map(|(name, _)| name.clone()),
    );
    SnapshotRow {
        id: snapshot.id.clone(),
        source: snapshot.source.clone(),
        time: snapshot.time,
        files: snapshot.files,
        bytes: snapshot.bytes,
        added: snapshot.added,
        partial: snapshot.partial,
        copies,
    }
}

/// The state of the unit's backups. It never fails: what cannot be told is a problem in it.
pub async fn status(site: &Site) -> BackupStatus {
    let state = State::read(site);
    let canary_proven = std::fs::read(site.state().join("canary.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut status = BackupStatus {
        copies: state
            .copies
            .values()
            .map(|copy| copy.state.clone())
            .collect(),
        canary_proven,
        problem: state.problem.clone(),
        ..BackupStatus::default()
    };
    match local_state(site).await {
        Ok(Some((snapshots, ssh_public_key))) => {
            status.ssh_public_key = Some(ssh_public_key);
            let mut counts = std::collections::BTreeMap::<String, usize>::new();
            status.snapshots = snapshots
                .iter()
                .filter(|s| !s.canary)
                .filter(|s| {
                    let count = counts.entry(s.source.clone()).or_default();
                    *count += 1;
                    *count <= STATUS_ROWS
                })
                .map(|s| row(s, &state))
                .collect();
        }
        Ok(None) => {}
        Err(error) => status.problem = Some(format!("{error:#}")),
    }
    status
}

/// Snapshots and public key; `None` on a unit that was not initialised.
async fn local_state(site: &Site) -> anyhow::Result<Option<(Vec<Snapshot>, String)>> {
    let Some(secrets) = secrets::read(&site.secrets())? else {
        return Ok(None);
    };
    let public = secrets::ssh_public_key(&secrets)?;
    let local = Local::new(site.repository());
    if !local.exists().context("look for the local repository")? {
        return Ok(Some((Vec::new(), public)));
    }
    let repository = Repository::new(Arc::new(local), &secrets.repository_key)?;
    let snapshots = reading(move || repository.snapshots()).await?;
    Ok(Some((snapshots, public)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, source: &str, second: i64, partial: bool) -> Snapshot {
        Snapshot {
            id: id.repeat(64),
            source: source.into(),
            root: "/srv".into(),
            time: Timestamp::from_second(second).unwrap(),
            files: 0,
            bytes: 0,
            added: 0,
            partial,
            canary: source == CANARY_SOURCE,
            description: String::new(),
        }
    }

    #[test]
    fn latest_is_the_newest_complete_one() {
        let all = [
            snapshot("a", "gallery", 3, true),
            snapshot("b", "gallery", 2, false),
            snapshot("c", "gallery", 1, false),
            snapshot("d", CANARY_SOURCE, 9, false),
        ];
        assert_eq!(select(&all, "latest", None).unwrap().id, all[1].id);
        assert_eq!(select(&all, "aaaa", None).unwrap().id, all[0].id);
        assert!(select(&all, "latest", Some("books")).is_err());
        assert!(select(&all[..1], "latest", None).is_err());
    }

    #[test]
    fn latest_of_several_sources_must_name_one() {
        let all = [
            snapshot("a", "gallery", 3, false),
            snapshot("b", "books", 2, false),
        ];
        assert!(select(&all, "latest", None).is_err());
        assert_eq!(select(&all, "latest", Some("books")).unwrap().id, all[1].id);
    }
}
