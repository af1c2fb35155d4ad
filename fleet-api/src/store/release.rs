//! Files of releases; their bytes lie in the blob folder.

use std::collections::BTreeMap;

use jiff::Timestamp;
use model::{Digest, ReleaseVersion};

use super::{Session, StoreError, int, micros, number, parse};
use crate::blobs::Stored;

impl Session {
    /// Returns a file of a release.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn release_file(
        &mut self,
        release: &ReleaseVersion,
        path: &str,
    ) -> Result<Option<Stored>, StoreError> {
        let row: Option<(String, i64)> =
            sqlx::query_as("SELECT sha256, size FROM release_file WHERE release = ? AND path = ?")
                .bind(release.to_string())
                .bind(path)
                .fetch_optional(self.db())
                .await?;
        row.map(stored).transpose()
    }

    /// Returns all files of a release by path.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn release_files(
        &mut self,
        release: &ReleaseVersion,
    ) -> Result<BTreeMap<String, Stored>, StoreError> {
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT path, sha256, size FROM release_file WHERE release = ?")
                .bind(release.to_string())
                .fetch_all(self.db())
                .await?;
        rows.into_iter()
            .map(|(path, sha256, size)| Ok((path, stored((sha256, size))?)))
            .collect()
    }

    /// Adds a file to a release.
    ///
    /// # Errors
    /// A failure of the database; so is a path that the release has already.
    pub async fn insert_release_file(
        &mut self,
        release: &ReleaseVersion,
        path: &str,
        file: &Stored,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO release_file (release, path, sha256, size, created)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(release.to_string())
        .bind(path)
        .bind(file.sha256.to_string())
        .bind(int(file.size)?)
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }

    /// Returns the digest of the manifest with which all files of the release were compared.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn checked_release(
        &mut self,
        release: &ReleaseVersion,
    ) -> Result<Option<Digest>, StoreError> {
        let manifest: Option<String> =
            sqlx::query_scalar("SELECT manifest FROM release WHERE version = ?")
                .bind(release.to_string())
                .fetch_optional(self.db())
                .await?;
        manifest
            .map(|text| parse("manifest digest", &text))
            .transpose()
    }

    /// Notes that all files of a release were compared with its manifest.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn save_checked_release(
        &mut self,
        release: &ReleaseVersion,
        manifest: &Digest,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO release (version, manifest, created) VALUES (?, ?, ?)
             ON CONFLICT (version) DO UPDATE SET manifest = excluded.manifest",
        )
        .bind(release.to_string())
        .bind(manifest.to_string())
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }
}

fn stored((sha256, size): (String, i64)) -> Result<Stored, StoreError> {
    Ok(Stored {
        sha256: parse("digest", &sha256)?,
        size: number("size", size)?,
    })
}
