//! What all calls share.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use edge::exit::{Classify as _, Failure, Kind, hint};
use jiff::Timestamp;
use model::{Signer, TrustRoot};
use tls::ca::Authority;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::app::stream::LISTENERS;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::error::Problem;
use crate::place::Place;
use crate::store::{Store, TokenRecord, Topic};

/// Longest wait of a call that waits, in seconds.
pub const LONGEST_WAIT: u64 = 60;

/// How long the store may take to close.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes the folder for this process alone: opening it removes unfinished uploads.
fn take(path: &Path) -> Result<File, Failure> {
    let lock = File::create(path)
        .with_context(|| format!("open {}", path.display()))
        .environment()?;
    lock.try_lock()
        .with_context(|| {
            format!(
                "lock {}: another leap-fleet serves this folder",
                path.display()
            )
        })
        .environment()?;
    Ok(lock)
}

/// The sky: store, blobs, keys and the trust root.
pub struct Sky {
    /// The database.
    pub store: Store,
    /// Large files.
    pub blobs: Blobs,
    /// Whom the sky believes.
    pub trust: TrustRoot,
    /// Signs device certificates.
    pub authority: Authority,
    /// Signs channel pointers: freshness only.
    pub timestamp: Signer,
    /// Where units find the sky, `https://HOST:PORT`.
    pub url: String,
    /// Largest file of a release in bytes.
    pub largest_file: u64,
    pub(crate) tokens: Vec<TokenRecord>,
    /// Seats of those who listen to a stream.
    pub(crate) listeners: Arc<Semaphore>,
    /// Check-ins that were taken.
    pub(crate) check_ins: AtomicU64,
    lock: File,
    /// Cancelled when the process is to end: waiting calls then answer at once.
    pub stop: CancellationToken,
    /// The time; an argument, so that tests can move it.
    pub clock: fn() -> Timestamp,
}

impl fmt::Debug for Sky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sky")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Sky {
    /// Opens everything that the configuration names.
    ///
    /// # Errors
    /// Kind `InvalidInput` for files that do not fit each other, `Environment`
    /// for those that cannot be read or written.
    pub async fn open(config: &Config, stop: CancellationToken) -> Result<Arc<Self>, Failure> {
        let place = Place::new(&config.data);
        let trust = place.trust_root()?;
        let timestamp = place.timestamp_key()?;
        place.check_trust(&trust, &timestamp)?;
        let authority = place.authority()?;
        let lock = take(&place.lock())?;
        // Opening makes a missing database, and an empty one knows nobody.
        let database = place.database();
        if !database.exists() {
            let error = anyhow!("read {}: the database is missing", database.display());
            let next = "put the last copy of it back; a new sky is made with `leap-fleet init`";
            return Err(Failure::new(Kind::InvalidInput, hint(error, next)));
        }
        let store = Store::open(&database)
            .await
            .context("open the store")
            .environment()?;
        let blobs = Blobs::open(&place.blobs()).environment()?;
        let tokens = async { store.read().await?.tokens().await }
            .await
            .context("read the tokens")
            .environment()?;
        Ok(Arc::new(Self {
            store,
            blobs,
            trust,
            authority,
            timestamp,
            url: config.url.clone(),
            largest_file: config.largest_file,
            tokens,
            listeners: Arc::new(Semaphore::new(LISTENERS)),
            check_ins: AtomicU64::new(0),
            lock,
            stop,
            clock: edge::clock::now,
        }))
    }

    /// Ends the store and gives the folder free.
    pub(crate) async fn close(&self) {
        // A call that does not end must not hold up the process.
        let closed = tokio::time::timeout(PATIENCE, self.store.close()).await;
        if closed.is_err() {
            tracing::warn!("the store did not close in time");
        }
        drop(self.lock.unlock());
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Looks until there is something to tell, the time is over, or the process ends.
    ///
    /// `look` says whether its answer is final; the last answer is returned in any case.
    pub(crate) async fn wait_for<T, F>(
        &self,
        topic: Topic,
        seconds: u64,
        mut look: impl FnMut() -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<Look<T>, Problem>>,
    {
        // Subscribed before the first look, so that no change falls between.
        let mut changes = self.store.watch(topic);
        let wait = Duration::from_secs(seconds.min(LONGEST_WAIT));
        let mut over = std::pin::pin!(tokio::time::sleep(wait));
        loop {
            let answer = match look().await? {
                Look::Final(answer) => return Ok(answer),
                Look::Open(answer) => answer,
            };
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Ok(answer);
                    }
                }
                () = &mut over => return Ok(answer),
                () = self.stop.cancelled() => return Ok(answer),
            }
        }
    }
}

/// What a look found.
#[derive(Debug)]
pub(crate) enum Look<T> {
    /// Nothing to wait for.
    Final(T),
    /// The answer if the time were over now.
    Open(T),
}
