//! News as they come: the long answer that a live view listens to.
//!
//! It is made when it is asked for: a listener that does not read holds up
//! nobody, and no more is kept for it than one page of events and one list of
//! machines. It begins with what stands now, so that one who lost the
//! connection misses nothing that still counts.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use model::Digest;
use model::api::{Event, MachineView};
use model::machine::MachineCode;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::event::MOST;
use super::machine;
use crate::error::{Kind, Problem};
use crate::sky::Sky;
use crate::store::Topic;

/// Streams at once; each may hold one list of machines.
pub const LISTENERS: usize = 32;
/// A stream ends after so long: who listens has to show the token again.
const LIFE: Duration = Duration::from_secs(3600);
/// Looks come no closer than this, however much happens.
const PACE: Duration = Duration::from_millis(250);
/// A machine's state can change with time alone: a ticket that runs out.
const LOOK: Duration = Duration::from_secs(30);

/// What a listener wants.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Events after this number; without one, those that are still to come.
    pub after: Option<u64>,
    /// Machines too: all of them first, then each that has changed.
    pub machines: bool,
}

/// One piece of news.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// Something has happened.
    Event(Event),
    /// A machine as it is now.
    Machine(Box<MachineView>),
}

/// The news for one listener.
pub struct Stream {
    sky: Arc<Sky>,
    after: u64,
    /// What was told of each machine, if machines are wanted.
    told: Option<BTreeMap<MachineCode, Digest>>,
    events: watch::Receiver<u64>,
    machines: watch::Receiver<u64>,
    ready: VecDeque<News>,
    /// When to look next without news.
    look: Instant,
    end: Instant,
    _seat: OwnedSemaphorePermit,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Begins to listen.
    ///
    /// # Errors
    /// Busy: too many listen already.
    pub async fn open(sky: &Arc<Sky>, wanted: Wanted) -> Result<Self, Problem> {
        let seat = Arc::clone(&sky.listeners).try_acquire_owned();
        let seat = seat.map_err(|_| {
            Problem::new(
                Kind::Busy,
                format!("{LISTENERS} listen to the stream already"),
            )
            .hint("ask GET /v1/events?after=N&wait=SECONDS, or again later")
        })?;
        // Subscribed before the first look, so that no change falls between.
        let (events, machines) = (
            sky.store.watch(Topic::Events),
            sky.store.watch(Topic::Machines),
        );
        let after = match wanted.after {
            Some(after) => after,
            None => sky.store.read().await?.newest_event().await?,
        };
        let now = Instant::now();
        Ok(Self {
            sky: Arc::clone(sky),
            after,
            told: wanted.machines.then(BTreeMap::new),
            events,
            machines,
            ready: VecDeque::new(),
            look: now,
            end: now + LIFE,
            _seat: seat,
        })
    }

    /// Returns the next piece of news, or `None` when the stream ends.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            if let Some(news) = self.ready.pop_front() {
                return Some(news);
            }
            let stop = self.sky.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.end) => return None,
                () = self.wait() => {}
            }
            if let Err(problem) = self.look().await {
                tracing::error!(problem = problem.chain(), "stream ended");
                return None;
            }
        }
    }

    async fn wait(&mut self) {
        let machines = async {
            match &self.told {
                Some(_) => self.machines.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(self.look) => return,
            _ = self.events.changed() => {}
            _ = machines => {}
        }
        // A bench of hundreds tells its progress all the time.
        tokio::time::sleep(PACE).await;
    }

    async fn look(&mut self) -> Result<(), Problem> {
        self.events.mark_unchanged();
        self.machines.mark_unchanged();
        let events = self
            .sky
            .store
            .read()
            .await?
            .events(self.after, MOST)
            .await?;
        let full = events.len() >= MOST as usize;
        self.look = Instant::now() + if full { Duration::ZERO } else { LOOK };
        self.after = events.last().map_or(self.after, |event| event.number);
        self.ready.extend(events.into_iter().map(News::Event));
        if let Some(told) = &mut self.told {
            for machine in machine::list(&self.sky).await? {
                let text = serde_json::to_vec(&machine).map_err(Problem::internal)?;
                let digest = Digest::of(&text);
                if told.insert(machine.code.clone(), digest) != Some(digest) {
                    self.ready.push_back(News::Machine(Box::new(machine)));
                }
            }
        }
        Ok(())
    }
}
