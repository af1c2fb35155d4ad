//! The embedded SQLite database: durable before anything is acknowledged.
//!
//! All SQL of the crate is in this module. A [`Session`] is one transaction;
//! its methods are grouped by noun, a file each. Decisions are the caller's:
//! it gathers facts, decides and applies within one session, so that nothing
//! changes in between.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use model::Incarnation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::watch;

mod customer;
pub use customer::LayerRecord;

mod unit;
pub use unit::{IncarnationRecord, UnitRecord};

mod configuration;

mod secrets;

mod command;
pub use command::CommandRecord;

mod machine;
pub use machine::{MachineRecord, NewTicket, RedemptionRecord, TicketRecord};

mod release;

mod channel;
pub use channel::ChannelRecord;

mod fence;

mod pass;
pub use pass::PassRecord;

mod event;
pub use event::NewEvent;

mod token;
pub use token::{Holder, TokenRecord};

/// Readers never wait for the writer (WAL); a handful is plenty for 2 cores.
const READERS: u32 = 8;

/// Longest wait for the one writer before a call fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database could not be opened or brought to this version.
    #[error("open database {path}")]
    Open {
        /// The file.
        path: String,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// The schema could not be brought to this version.
    #[error("migrate database")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("database")]
    Database(#[from] sqlx::Error),
    /// A stored value is not what was written.
    #[error("database: {what} is not readable: {problem}")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// What the parser said.
        problem: String,
    },
    /// A number does not fit into the database.
    #[error("number {0} is too large")]
    TooLarge(u64),
}

/// What a waiting call can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A machine, its ticket or its progress.
    Machines,
    /// A command or a report.
    Commands,
    /// Any event.
    Events,
}

const TOPICS: usize = 3;

/// The database.
pub struct Store {
    readers: SqlitePool,
    // One connection: SQLite has one writer, and waiting in this pool's queue
    // is fair where SQLite's own busy handler is a lottery.
    writer: SqlitePool,
    topics: Arc<[watch::Sender<u64>; TOPICS]>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database at `path`, making it and bringing its schema to this version.
    ///
    /// # Errors
    /// `Open` and `Migrate`.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: a commit that was answered survives the power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(PATIENCE);
        let open = |source| StoreError::Open {
            path: path.display().to_string(),
            source,
        };
        let pool = |size| {
            SqlitePoolOptions::new()
                .max_connections(size)
                .acquire_timeout(PATIENCE)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let writer = pool(1).connect_with(options.clone()).await.map_err(open)?;
        sqlx::migrate!()
            .run(&writer)
            .await
            .map_err(StoreError::Migrate)?;
        let readers = pool(READERS).connect_with(options).await.map_err(open)?;
        Ok(Self {
            readers,
            writer,
            topics: Arc::new(std::array::from_fn(|_| watch::Sender::new(0))),
        })
    }

    /// Begins a consistent look at the database. It must not change anything.
    ///
    /// # Errors
    /// `Database`.
    pub async fn read(&self) -> Result<Session, StoreError> {
        Ok(Session {
            transaction: self.readers.begin().await?,
            touched: [false; TOPICS],
            topics: Arc::clone(&self.topics),
        })
    }

    /// Begins a change. Without [`Session::commit`] nothing of it happens.
    ///
    /// # Errors
    /// `Database`.
    pub async fn change(&self) -> Result<Session, StoreError> {
        Ok(Session {
            transaction: self.writer.begin_with("BEGIN IMMEDIATE").await?,
            touched: [false; TOPICS],
            topics: Arc::clone(&self.topics),
        })
    }

    /// Returns a receiver that sees every later commit that touches `topic`.
    pub fn watch(&self, topic: Topic) -> watch::Receiver<u64> {
        self.topics[topic as usize].subscribe()
    }

    /// Ends all connections; the write-ahead log is folded into the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// One transaction.
pub struct Session {
    transaction: Transaction<'static, Sqlite>,
    touched: [bool; TOPICS],
    topics: Arc<[watch::Sender<u64>; TOPICS]>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Makes the change durable and wakes who waits for it.
    ///
    /// # Errors
    /// `Database`; then nothing has changed.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await?;
        for (sender, touched) in self.topics.iter().zip(self.touched) {
            if touched {
                sender.send_modify(|revision| *revision += 1);
            }
        }
        Ok(())
    }

    /// Proves that the database answers.
    ///
    /// # Errors
    /// `Database`.
    pub async fn ping(&mut self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(self.db()).await?;
        Ok(())
    }

    fn db(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    fn touch(&mut self, topic: Topic) {
        self.touched[topic as usize] = true;
    }
}

fn int(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::TooLarge(number))
}

fn number(what: &'static str, value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|error| corrupt(what, error))
}

fn incarnation_number(value: i64) -> Result<Incarnation, StoreError> {
    u32::try_from(value)
        .map(Incarnation)
        .map_err(|error| corrupt("incarnation", error))
}

fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

fn time(value: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(value).map_err(|error| corrupt("time", error))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our documents are plain JSON values")
}

fn unjson<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt(what, error))
}

fn parse<T>(what: &'static str, text: &str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text.parse().map_err(|error| corrupt(what, error))
}

fn corrupt(what: &'static str, problem: impl fmt::Display) -> StoreError {
    StoreError::Corrupt {
        what,
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::api::NewCustomer;

    fn customer() -> NewCustomer {
        NewCustomer {
            name: "motivatit".parse().unwrap(),
            title: "Motivatit Seafoods".into(),
        }
    }

    #[tokio::test]
    async fn a_commit_survives_reopening_and_a_dropped_session_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.db");
        let now = Timestamp::UNIX_EPOCH;
        let store = Store::open(&path).await.unwrap();
        let mut dropped = store.change().await.unwrap();
        dropped.insert_customer(&customer(), now).await.unwrap();
        drop(dropped);
        assert!(
            store
                .read()
                .await
                .unwrap()
                .customers()
                .await
                .unwrap()
                .is_empty()
        );
        let mut kept = store.change().await.unwrap();
        kept.insert_customer(&customer(), now).await.unwrap();
        kept.commit().await.unwrap();
        store.close().await;
        let store = Store::open(&path).await.unwrap();
        let found = store.read().await.unwrap().customers().await.unwrap();
        assert_eq!(found, [customer()]);
    }

    #[tokio::test]
    async fn only_a_commit_wakes_those_who_wait() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("fleet.db")).await.unwrap();
        let events = store.watch(Topic::Events);
        let event = NewEvent::new("release", "offered");
        let mut session = store.change().await.unwrap();
        session
            .append_event(event, Timestamp::UNIX_EPOCH)
            .await
            .unwrap();
        assert!(!events.has_changed().unwrap());
        session.commit().await.unwrap();
        assert!(events.has_changed().unwrap());
        assert!(!store.watch(Topic::Machines).has_changed().unwrap());
    }

    #[tokio::test]
    async fn every_connection_is_durable_and_keeps_references() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("fleet.db")).await.unwrap();
        let mut session = store.change().await.unwrap();
        let pragma = async |session: &mut Session, sql: &'static str| -> i64 {
            sqlx::query_scalar(sql)
                .fetch_one(session.db())
                .await
                .unwrap()
        };
        assert_eq!(pragma(&mut session, "PRAGMA synchronous").await, 2);
        assert_eq!(pragma(&mut session, "PRAGMA foreign_keys").await, 1);
    }
}
