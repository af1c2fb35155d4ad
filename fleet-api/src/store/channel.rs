//! Channels: which release each offers now.

use jiff::Timestamp;
use model::release::ChannelPointer;
use model::{Digest, ReleaseVersion, Signed};

use super::{Session, StoreError, int, json, micros, number, parse, time, unjson};

/// A channel as it is stored.
#[derive(Debug, Clone)]
pub struct ChannelRecord {
    /// [`ChannelPointer::version`].
    pub version: u64,
    /// The release offered.
    pub release: ReleaseVersion,
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
        let row: Option<(i64, String, String, String, i64)> = sqlx::query_as(
            "SELECT version, release, manifest, document, signed FROM channel WHERE name = ?",
        )
        .bind(name)
        .fetch_optional(self.db())
        .await?;
        row.map(|(version, release, manifest, document, signed)| {
            Ok(ChannelRecord {
                version: number("channel version", version)?,
                release: parse("release", &release)?,
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
            "INSERT INTO channel (name, version, release, manifest, document, signed)
             VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (name) DO UPDATE
             SET version = excluded.version, release = excluded.release,
                 manifest = excluded.manifest, document = excluded.document,
                 signed = excluded.signed",
        )
        .bind(name)
        .bind(int(channel.version)?)
        .bind(channel.release.to_string())
        .bind(channel.manifest.to_string())
        .bind(json(&channel.document))
        .bind(micros(channel.signed))
        .execute(self.db())
        .await?;
        Ok(())
    }
}
