//! The thin facade over the repository library.
//!
//! Everything that this project knows of `rustic_core`'s operations stands
//! here, so that its API can change under us in one place. The library takes
//! no locks: the caller sees to it that there is one writer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rustic_core::repofile::{MasterKey, Node, SnapshotFile, SnapshotId};
use rustic_core::{
    BackupOptions, CheckOptions, ConfigOptions, Credentials, FileType, Id, IndexedFull, KeyOptions,
    LsOptions, OpenStatus, PruneOptions, ReadBackend, ReadSource, RepairIndexOptions,
    RepositoryBackends, RepositoryOptions, RusticError, WriteBackend,
};

use crate::gate::Gate;
use crate::ledger::{Ledger, Verdict, judge};
use crate::restore::{self, Content, Target};

/// Tag of a snapshot that misses something.
const PARTIAL: &str = "partial";
/// Tag of the snapshot that holds the canary.
const CANARY: &str = "canary";

/// Target size of a data pack. It does not grow with the repository, so that
/// restores stay small in memory and a torn upload costs little.
const PACK_BYTES: &str = "16 MiB";

/// Packs that nothing needs any more are deleted this long after they were marked.
const KEEP_DELETED: SignedDuration = SignedDuration::from_hours(23);

type Opened = rustic_core::Repository<OpenStatus>;

/// A snapshot as the rest of this crate sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Full id, 64 hexadecimal digits.
    pub id: String,
    /// Name of the source.
    pub source: String,
    /// The folder that was backed up.
    pub root: PathBuf,
    /// When.
    pub time: Timestamp,
    /// Files and links in it.
    pub files: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub added: u64,
    /// Incomplete; counts for nothing.
    pub partial: bool,
    /// Holds the canary, not a source.
    pub canary: bool,
    /// What was said about it: why it is partial, or the canary's digest.
    pub description: String,
}

impl Snapshot {
    fn of(file: &SnapshotFile) -> Self {
        let summary = file.summary.as_ref();
        Self {
            id: file.id.to_hex().to_string(),
            source: file.label.clone(),
            root: file
                .paths
                .iter()
                .next()
                .map_or_else(|| PathBuf::from("/"), PathBuf::from),
            time: file.time.timestamp(),
            files: summary.map_or(0, |s| s.total_files_processed),
            bytes: summary.map_or(0, |s| s.total_bytes_processed),
            added: summary.map_or(0, |s| s.data_added_packed),
            partial: file.tags.contains(PARTIAL),
            canary: file.tags.contains(CANARY),
            description: file.description.clone().unwrap_or_default(),
        }
    }
}

/// What a snapshot is called.
#[derive(Debug, Clone)]
pub struct Label<'a> {
    /// The unit, as host name of the snapshot.
    pub unit: &'a str,
    /// The source's name.
    pub source: &'a str,
    /// The folder that is backed up, absolute.
    pub root: &'a Path,
    /// When the run began.
    pub time: Timestamp,
}

/// A repository in some store, with the key that opens it.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn WriteBackend>,
    key: MasterKey,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("store", &self.store.location())
            .finish_non_exhaustive()
    }
}

/// The library's messages are long; its log form is one line.
#[allow(
    clippy::boxed_local,
    reason = "the library hands its errors out in boxes"
)]
fn told(error: Box<RusticError>) -> anyhow::Error {
    anyhow::anyhow!("{}", error.display_log().trim_start_matches("Error: "))
}

impl Repository {
    /// A repository that exists in `store`, opened with `key` without key derivation.
    ///
    /// # Errors
    /// When the key is not a master key.
    pub fn new(store: Arc<dyn WriteBackend>, key: &str) -> anyhow::Result<Self> {
        let key = serde_json::from_str(key)
            .ok()
            .context("read repository key: expected a master key as JSON")?;
        Ok(Self { store, key })
    }

    /// Makes a fresh master key, as JSON.
    pub fn new_key() -> String {
        serde_json::to_string(&MasterKey::new()).expect("a key is plain data")
    }

    /// Makes the repository, and adds a key file so that `password` opens it too.
    ///
    /// # Errors
    /// When there is one already, or the store cannot write.
    pub fn create(&self, password: &str) -> anyhow::Result<()> {
        let mut config = ConfigOptions::default()
            .set_datapack_growfactor(0u32)
            .set_treepack_growfactor(0u32);
        config.set_datapack_size = PACK_BYTES.parse().ok();
        let repository = self
            .library(Arc::clone(&self.store))?
            .init(&self.credentials(), &KeyOptions::default(), &config)
            .map_err(told)
            .context("create repository")?;
        repository
            .add_key(password, &KeyOptions::default())
            .map_err(told)
            .context("add the password to the repository")?;
        Ok(())
    }

    /// Adds the key file if a crash came between making the repository and adding it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn ensure_password(&self, password: &str) -> anyhow::Result<()> {
        if self.store.list(FileType::Key).map_err(told)?.is_empty() {
            self.open()?
                .add_key(password, &KeyOptions::default())
                .map_err(told)?;
        }
        Ok(())
    }

    fn credentials(&self) -> Credentials {
        Credentials::Masterkey(self.key.clone())
    }

    fn library(&self, store: Arc<dyn WriteBackend>) -> anyhow::Result<rustic_core::Repository<()>> {
        let options = RepositoryOptions::default().no_cache(true);
        rustic_core::Repository::new(&options, &RepositoryBackends::new(store, None)).map_err(told)
    }

    fn open_on(&self, store: Arc<dyn WriteBackend>) -> anyhow::Result<Opened> {
        let place = store.location();
        self.library(store)?
            .open(&self.credentials())
            .map_err(told)
            .with_context(|| format!("open repository {place}"))
    }

    fn open(&self) -> anyhow::Result<Opened> {
        self.open_on(Arc::clone(&self.store))
    }

    /// All snapshots, newest first.
    ///
    /// # Errors
    /// When the repository does not open or a snapshot does not read.
    pub fn snapshots(&self) -> anyhow::Result<Vec<Snapshot>> {
        let files = self.open()?.get_all_snapshots().map_err(told)?;
        let mut all: Vec<Snapshot> = files.iter().map(Snapshot::of).collect();
        all.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    /// Takes a snapshot through the gate.
    ///
    /// The snapshot file is written only after the ledger is judged: as it is
    /// when the run is complete, tagged `partial` when it is not.
    ///
    /// # Errors
    /// When the repository fails. A source that fails does not: it makes the
    /// snapshot partial.
    pub fn back_up<S>(
        &self,
        source: &S,
        label: &Label<'_>,
        ledger: &Ledger,
        files_before: Option<u64>,
    ) -> anyhow::Result<(Snapshot, Verdict)>
    where
        S: ReadSource + 'static,
        S::Open: Send,
        S::Iter: Send,
    {
        self.archive(source, label, |taken| {
            let saved = taken
                .summary
                .as_ref()
                .map_or(0, |s| s.total_files_processed);
            let verdict = judge(&ledger.report(), saved, files_before);
            if let Verdict::Partial { reason } = &verdict {
                taken.tags.add(PARTIAL.to_owned());
                taken.description = Some(reason.clone());
            }
            verdict
        })
    }

    /// Takes the snapshot that holds the canary and remembers its digest.
    ///
    /// # Errors
    /// When the repository fails.
    pub fn put_canary<S>(&self, source: &S, label: &Label<'_>, digest: &str) -> anyhow::Result<()>
    where
        S: ReadSource + 'static,
        S::Open: Send,
        S::Iter: Send,
    {
        self.archive(source, label, |taken| {
            taken.tags.add(CANARY.to_owned());
            taken.description = Some(digest.to_owned());
        })
        .map(drop)
    }

    /// Runs the archiver behind a gate; `decide` sees and may mark the snapshot before it is written.
    fn archive<S, D>(
        &self,
        source: &S,
        label: &Label<'_>,
        decide: impl FnOnce(&mut SnapshotFile) -> D,
    ) -> anyhow::Result<(Snapshot, D)>
    where
        S: ReadSource + 'static,
        S::Open: Send,
        S::Iter: Send,
    {
        let gate = Arc::new(Gate::new(Arc::clone(&self.store)));
        let gated = self
            .open_on(Arc::clone(&gate) as Arc<dyn WriteBackend>)?
            .to_indexed_ids()
            .map_err(told)?;
        let blank = SnapshotFile {
            time: label.time.to_zoned(TimeZone::UTC),
            program_version: concat!("leap-backup ", env!("CARGO_PKG_VERSION")).to_owned(),
            label: label.source.to_owned(),
            hostname: label.unit.to_owned(),
            ..SnapshotFile::default()
        };
        let mut taken = gated
            .archive(
                &BackupOptions::default().no_scan(true),
                source,
                blank,
                &[label.root.to_path_buf()],
            )
            .map_err(told)
            .context("write backup")?;
        // The library has "saved" an unmarked snapshot; it is in the gate and
        // never gets out. What is written is the one that was decided upon.
        gate.discard();
        let decision = decide(&mut taken);
        gated.save_snapshots(vec![taken.clone()]).map_err(told)?;
        let written = gate.release().map_err(told).context("write snapshot")?;
        let id = written.first().context("the gate held one snapshot")?;
        taken.id = SnapshotId::from(*id);
        Ok((Snapshot::of(&taken), decision))
    }

    /// Forgets snapshots. Their data stays until [`Repository::prune`].
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget(&self, ids: &[String]) -> anyhow::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<SnapshotId> = ids
            .iter()
            .map(|id| id.parse::<Id>().map(SnapshotId::from).map_err(told))
            .collect::<anyhow::Result<_>>()?;
        self.open()?
            .delete_snapshots(&ids)
            .map_err(told)
            .context("forget snapshots")
    }

    /// Removes data that no snapshot needs, in two phases a day apart.
    ///
    /// # Errors
    /// When the repository is damaged or the store fails.
    pub fn prune(&self) -> anyhow::Result<()> {
        let repository = self.open()?;
        let options = PruneOptions::default()
            .keep_delete(jiff::Span::try_from(KEEP_DELETED).context("a span of hours")?);
        let plan = repository.prune_plan(&options).map_err(told)?;
        repository
            .prune(&options, plan)
            .map_err(told)
            .context("prune")
    }

    /// Makes the index agree with the packs after an interrupted run, so that
    /// a retry finds what was already written.
    ///
    /// # Errors
    /// When the store fails.
    pub fn repair_index(&self) -> anyhow::Result<()> {
        self.open()?
            .repair_index(&RepairIndexOptions::default(), false)
            .map_err(told)
            .context("repair index")
    }

    /// Checks the structure, and with `Depth::Data` every byte. Returns what is wrong.
    ///
    /// # Errors
    /// When the check itself cannot run.
    pub fn check(&self, depth: Depth) -> anyhow::Result<Vec<String>> {
        let results = self
            .open()?
            .check(CheckOptions::default().read_data(depth == Depth::Data))
            .map_err(told)?;
        Ok(results
            .0
            .iter()
            .map(|(level, error)| format!("{level:?}: {error}"))
            .collect())
    }

    /// Restores `path` (absolute in the snapshot) to `elsewhere`, or in place.
    ///
    /// # Errors
    /// When the path is not in the snapshot, or reading or writing fails.
    pub fn restore(
        &self,
        snapshot: &Snapshot,
        path: &Path,
        elsewhere: Option<&Path>,
        target: &dyn Target,
    ) -> anyhow::Result<restore::Report> {
        let repository = self.open()?.to_indexed().map_err(told)?;
        let file = repository
            .get_snapshots(&[&snapshot.id])
            .map_err(told)?
            .pop()
            .context("read snapshot")?;
        let inner = path.to_str().context("path is not UTF-8")?;
        let node = repository
            .node_from_snapshot_and_path(&file, inner)
            .map_err(told)
            .with_context(|| {
                format!(
                    "find {} in snapshot {}",
                    path.display(),
                    short(&snapshot.id)
                )
            })?;
        let base = restore::landing(path, node.is_dir(), elsewhere);
        let reader = Reader(&repository);
        if node.is_dir() {
            target.folder(&base)?;
            let entries = repository
                .ls(&node, &LsOptions::default().recursive(true))
                .map_err(told)?
                .map(|entry| entry.map_err(told));
            restore::restore(&reader, entries, &base, target)
        } else {
            let folder = base.parent().context("a file lies in a folder")?;
            target.folder(folder)?;
            let name = PathBuf::from(base.file_name().unwrap_or_default());
            restore::restore(&reader, std::iter::once(Ok((name, node))), folder, target)
        }
    }
}

/// How deep a check goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Index, packs' headers and trees.
    Structure,
    /// Every byte of every pack too.
    Data,
}

/// The first eight digits of an id, for people.
pub fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

struct Reader<'a, S>(&'a rustic_core::Repository<S>);

impl<S: IndexedFull + Sync> Content for Reader<'_, S> {
    fn dump(&self, node: &Node, into: &mut dyn std::io::Write) -> anyhow::Result<()> {
        let mut into = into;
        self.0.dump(node, &mut into).map_err(told)
    }
}
