//! Configuration generations.

use jiff::Timestamp;
use model::configuration::Configuration;
use model::{Signed, UnitName};

use super::{Session, StoreError, int, json, micros, number, unjson};

impl Session {
    /// Returns the newest generation's number and document.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn newest_configuration(
        &mut self,
        unit: &UnitName,
    ) -> Result<Option<(u64, Signed<Configuration>)>, StoreError> {
        let row: Option<(i64, String)> = sqlx::query_as(
            "SELECT generation, document FROM configuration
             WHERE unit = ? ORDER BY generation DESC LIMIT 1",
        )
        .bind(unit.to_string())
        .fetch_optional(self.db())
        .await?;
        row.map(|(generation, document)| {
            Ok((
                number("generation", generation)?,
                unjson("configuration", &document)?,
            ))
        })
        .transpose()
    }

    /// Returns one generation's document.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn configuration(
        &mut self,
        unit: &UnitName,
        generation: u64,
    ) -> Result<Option<Signed<Configuration>>, StoreError> {
        let document: Option<String> = sqlx::query_scalar(
            "SELECT document FROM configuration WHERE unit = ? AND generation = ?",
        )
        .bind(unit.to_string())
        .bind(int(generation)?)
        .fetch_optional(self.db())
        .await?;
        document
            .map(|document| unjson("configuration", &document))
            .transpose()
    }

    /// Adds a generation.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_configuration(
        &mut self,
        unit: &UnitName,
        generation: u64,
        document: &Signed<Configuration>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO configuration (unit, generation, document, created) VALUES (?, ?, ?, ?)",
        )
        .bind(unit.to_string())
        .bind(int(generation)?)
        .bind(json(document))
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }
}
