//! Channels: which release each offers now.

use jiff::Timestamp;
use model::release::ChannelPointer;
use model::{Digest, ReleaseVersion, Signed};

use super::{Session, StoreError, corrupt, int, json, micros, number, parse, time, unjson};

/// A channel as it is stored.
#[derive(Debug, Clone)]
pub struct ChannelRecord {
    /// [`ChannelPointer::version`].
    pub version: u64,
    /// The release offered.
    pub release: ReleaseVersion,
    /// Its revision.
    pub revision: u32,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// The signed pointer.
    pub document: Signed<ChannelPointer>,
    /// When it was signed.
    pub signed: Timestamp,
}

impl Session {
    /// Returns a channel.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn channel(&mut self, name: &str) -> Result<Option<ChannelRecord>, StoreError> {
        let row: Option<(i64, String, i64, String, String, i64)> = sqlx::query_as(
            "SELECT version, release, revision, manifest, document, signed
             FROM channel WHERE name = ?",
        )
        .bind(name)
        .fetch_optional(self.db())
        .await?;
        row.map(|(version, release, revision, manifest, document, signed)| {
            Ok(ChannelRecord {
                version: number("channel version", version)?,
                release: parse("release", &release)?,
                revision: u32::try_from(revision).map_err(|error| corrupt("revision", error))?,
                manifest: parse("manifest digest", &manifest)?,
                document: unjson("channel pointer", &document)?,
                signed: time(signed)?,
            })
        })
        .transpose()
    }

    /// Replaces what a channel offers.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn save_channel(
        &mut self,
        name: &str,
        channel: &ChannelRecord,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO channel (name, version, release, revision, manifest, document, signed)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (name) DO UPDATE
             SET version = excluded.version, release = excluded.release,
                 revision = excluded.revision, manifest = excluded.manifest, document = excluded.document,
                 signed = excluded.signed",
        )
        .bind(name)
        .bind(int(channel.version)?)
        .bind(channel.release.to_string())
        .bind(i64::from(channel.revision))
        .bind(channel.manifest.to_string())
        .bind(json(&channel.document))
        .bind(micros(channel.signed))
        .execute(self.db())
        .await?;
        Ok(())
    }
}
