//! Copies the repository file by file to a destination.
//!
//! Packs are immutable, named by their hash and already encrypted, so a copy
//! needs no key and no repacking. The order makes every moment safe: the
//! source's snapshots are listed first, and written last, after everything
//! that they need. An interrupted copy goes on from a listing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use futures::stream::{self, TryStreamExt};
use rustic_core::{FileType, Id, WriteBackend};

use crate::rate::Bucket;
use crate::rest::Rest;

/// Files in flight at once to one destination.
const PARALLEL: usize = 3;

/// Read from the source in this order, so that nothing is listed that needs something unlisted.
const LIST_ORDER: [FileType; 4] = [
    FileType::Snapshot,
    FileType::Index,
    FileType::Pack,
    FileType::Key,
];

/// Written in this order, so that nothing is there before what it needs.
const WRITE_ORDER: [FileType; 4] = [
    FileType::Key,
    FileType::Pack,
    FileType::Index,
    FileType::Snapshot,
];

/// What a repository consists of: for each kind, names and sizes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    snapshots: BTreeMap<Id, u32>,
    index: BTreeMap<Id, u32>,
    packs: BTreeMap<Id, u32>,
    keys: BTreeMap<Id, u32>,
}

impl Listing {
    /// The files of one kind.
    pub fn of(&self, kind: FileType) -> &BTreeMap<Id, u32> {
        match kind {
            FileType::Snapshot => &self.snapshots,
            FileType::Index => &self.index,
            FileType::Pack => &self.packs,
            FileType::Key | FileType::Config => &self.keys,
        }
    }

    fn set(&mut self, kind: FileType, files: Vec<(Id, u32)>) {
        let files = files.into_iter().collect();
        match kind {
            FileType::Snapshot => self.snapshots = files,
            FileType::Index => self.index = files,
            FileType::Pack => self.packs = files,
            FileType::Key | FileType::Config => self.keys = files,
        }
    }
}

/// What is to be sent, in the order in which it is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// For each kind the files that the destination lacks.
    pub send: Vec<(FileType, Vec<(Id, u32)>)>,
    /// Files that the destination holds in another size. It checks hashes on
    /// arrival, so such a file was damaged there later.
    pub damaged: Vec<Id>,
}

/// Compares a source with a destination.
///
/// Pure. The destination may hold more: it keeps what was forgotten here.
pub fn plan(source: &Listing, destination: &Listing) -> Plan {
    let mut plan = Plan::default();
    for kind in WRITE_ORDER {
        let there = destination.of(kind);
        let mut missing = Vec::new();
        for (id, size) in source.of(kind) {
            match there.get(id) {
                None => missing.push((*id, *size)),
                Some(other) if other != size => plan.damaged.push(*id),
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            plan.send.push((kind, missing));
        }
    }
    plan
}

/// What a copy has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// Files sent.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Snapshots that the destination holds now, ids in hexadecimal.
    pub snapshots: Vec<String>,
}

/// Counts what was sent, also when the copy does not come to its end.
#[derive(Debug, Default)]
pub struct Counter {
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    /// Files and bytes so far.
    pub fn so_far(&self) -> (u64, u64) {
        (
            self.files.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

/// Brings a destination up to the source.
///
/// # Errors
/// The first failure. What was sent until then is durable there and is not
/// sent again; no snapshot is there without what it needs.
pub async fn copy(
    source: Arc<dyn WriteBackend>,
    destination: &Rest,
    rate: &Arc<Bucket>,
    counter: &Counter,
) -> anyhow::Result<Sent> {
    let local = read(Arc::clone(&source), list_source).await?;
    destination
        .create()
        .await
        .context("make a place for the unit")?;
    same_repository(&source, destination, rate).await?;
    let mut there = Listing::default();
    for kind in LIST_ORDER {
        there.set(
            kind,
            destination.list(kind).await.context("list destination")?,
        );
    }
    let plan = plan(&local, &there);
    if let Some(id) = plan.damaged.first() {
        bail!(
            "destination holds {} files in a wrong size, the first is {}",
            plan.damaged.len(),
            &*id.to_hex()
        );
    }
    for (kind, files) in plan.send {
        // Each kind is complete before the next begins.
        stream::iter(files.into_iter().map(Ok))
            .try_for_each_concurrent(PARALLEL, |(id, size)| {
                let source = Arc::clone(&source);
                async move {
                    let content = read(source, move |source| source.read_full(kind, &id)).await?;
                    destination
                        .write(kind, &id, content, rate)
                        .await
                        .with_context(|| format!("send {kind} {}", &id.to_hex()[..8]))?;
                    counter.files.fetch_add(1, Ordering::Relaxed);
                    counter.bytes.fetch_add(u64::from(size), Ordering::Relaxed);
                    anyhow::Ok(())
                }
            })
            .await?;
    }
    let (files, bytes) = counter.so_far();
    let mut snapshots: Vec<String> = local
        .snapshots
        .keys()
        .chain(there.snapshots.keys())
        .map(|id| id.to_hex().to_string())
        .collect();
    snapshots.sort_unstable();
    snapshots.dedup();
    Ok(Sent {
        files,
        bytes,
        snapshots,
    })
}

fn list_source(source: &dyn WriteBackend) -> rustic_core::RusticResult<Listing> {
    let mut listing = Listing::default();
    for kind in LIST_ORDER {
        listing.set(kind, source.list_with_size(kind)?);
    }
    Ok(listing)
}

/// Sees to it that the destination holds the configuration of this repository and no other.
async fn same_repository(
    source: &Arc<dyn WriteBackend>,
    destination: &Rest,
    rate: &Arc<Bucket>,
) -> anyhow::Result<()> {
    let kind = FileType::Config;
    let id = Id::default();
    let ours = read(Arc::clone(source), move |source| {
        source.read_full(kind, &id)
    })
    .await?;
    match destination.read(kind, &id).await {
        Ok(theirs) if theirs == ours => Ok(()),
        Ok(_) => bail!(edge::exit::hint(
            anyhow::anyhow!("destination holds another repository of this unit"),
            "if this machine replaces another one, run leap-backup attach with the unit's secrets",
        )),
        Err(error) if error.is_missing() => destination
            .write(kind, &id, ours, rate)
            .await
            .context("send repository configuration"),
        Err(error) => Err(error.into()),
    }
}

/// Brings an empty local repository up from a destination: all but the packs.
///
/// Written in an order in which an interruption is harmless: the
/// configuration, which makes the folder a repository, comes last.
///
/// # Errors
/// When the destination cannot be read or the disk cannot be written.
pub async fn fetch_metadata(source: &Rest, local: Arc<dyn WriteBackend>) -> anyhow::Result<u64> {
    let mut fetched = 0;
    read(Arc::clone(&local), |local| local.create()).await?;
    for kind in [FileType::Key, FileType::Index, FileType::Snapshot] {
        let here: std::collections::BTreeSet<Id> =
            read(Arc::clone(&local), move |local| local.list(kind))
                .await?
                .into_iter()
                .collect();
        let missing = source.list(kind).await.context("list destination")?;
        let missing = missing.into_iter().filter(|(id, _)| !here.contains(id));
        fetched += fetch(source, &local, kind, missing.collect()).await?;
    }
    let config = vec![(Id::default(), 0)];
    fetched += fetch(source, &local, FileType::Config, config).await?;
    Ok(fetched)
}

/// Fetches the packs that the local repository lacks.
///
/// # Errors
/// When the destination cannot be read or the disk cannot be written; what
/// has come until then stays.
pub async fn fetch_packs(source: &Rest, local: Arc<dyn WriteBackend>) -> anyhow::Result<u64> {
    let kind = FileType::Pack;
    let here: BTreeMap<Id, u32> = read(Arc::clone(&local), move |local| local.list_with_size(kind))
        .await?
        .into_iter()
        .collect();
    let there = source.list(kind).await.context("list destination")?;
    let missing = there
        .into_iter()
        .filter(|(id, size)| here.get(id) != Some(size));
    fetch(source, &local, kind, missing.collect()).await
}

async fn fetch(
    source: &Rest,
    local: &Arc<dyn WriteBackend>,
    kind: FileType,
    files: Vec<(Id, u32)>,
) -> anyhow::Result<u64> {
    let count = files.len() as u64;
    stream::iter(files.into_iter().map(Ok))
        .try_for_each_concurrent(PARALLEL, |(id, _)| async move {
            let content = source
                .read(kind, &id)
                .await
                .with_context(|| format!("fetch {kind} {}", &id.to_hex()[..8]))?;
            // The destination is not trusted: a file whose hash is not its
            // name is not let in. The configuration is checked by the key.
            if kind != FileType::Config {
                let digest: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
                    <sha2::Sha256 as sha2::Digest>::new(),
                    &content,
                ))
                .into();
                if hex::encode(digest) != *id.to_hex() {
                    bail!("{kind} {}: content does not match its name", &*id.to_hex());
                }
            }
            read(Arc::clone(local), move |local| {
                local.write_bytes(kind, &id, false, content.into())
            })
            .await
        })
        .await?;
    Ok(count)
}

/// Runs a blocking operation of a store off the runtime's threads.
async fn read<T: Send + 'static>(
    store: Arc<dyn WriteBackend>,
    operation: impl FnOnce(&dyn WriteBackend) -> rustic_core::RusticResult<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(move || operation(&*store))
        .await
        .context("run store operation")?
        .map_err(|error| anyhow::anyhow!("{}", error.display_log()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(snapshots: &[Id], packs: &[Id]) -> Listing {
        let mut listing = Listing::default();
        listing.set(
            FileType::Snapshot,
            snapshots.iter().map(|id| (*id, 1)).collect(),
        );
        listing.set(FileType::Pack, packs.iter().map(|id| (*id, 2)).collect());
        listing
    }

    #[test]
    fn packs_go_before_the_snapshots_that_need_them() {
        let (snapshot, pack) = (Id::random(), Id::random());
        let plan = plan(&listing(&[snapshot], &[pack]), &Listing::default());
        assert_eq!(
            plan.send,
            [
                (FileType::Pack, vec![(pack, 2)]),
                (FileType::Snapshot, vec![(snapshot, 1)])
            ]
        );
    }

    #[test]
    fn copy_that_is_up_to_date_needs_nothing_and_keeps_more() {
        let (snapshot, pack, old) = (Id::random(), Id::random(), Id::random());
        let destination = listing(&[snapshot, old], &[pack]);
        assert_eq!(
            plan(&listing(&[snapshot], &[pack]), &destination),
            Plan::default()
        );
    }

    #[test]
    fn file_of_another_size_is_damage_and_not_overwritten() {
        let pack = Id::random();
        let mut destination = listing(&[], &[pack]);
        destination.packs.insert(pack, 1);
        let plan = plan(&listing(&[], &[pack]), &destination);
        assert_eq!(plan.damaged, [pack]);
        assert!(plan.send.is_empty());
    }
}
