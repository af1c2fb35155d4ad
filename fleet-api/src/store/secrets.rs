//! Sealed secrets: the escrow, and what operators re-sealed for a newcomer.

use jiff::Timestamp;
use model::secrets::SealedSecrets;
use model::{DeviceIdentity, UnitName};

use super::{Session, StoreError, int, micros, number};

impl Session {
    /// Returns the newest escrow of a unit.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn escrow(&mut self, unit: &UnitName) -> Result<Option<SealedSecrets>, StoreError> {
        let row: Option<(i64, String)> = sqlx::query_as(
            "SELECT version, age FROM escrow WHERE unit = ? ORDER BY version DESC LIMIT 1",
        )
        .bind(unit.to_string())
        .fetch_optional(self.db())
        .await?;
        row.map(sealed).transpose()
    }

    /// Adds an escrow; older versions stay.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_escrow(
        &mut self,
        identity: &DeviceIdentity,
        secrets: &SealedSecrets,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO escrow (unit, version, incarnation, age, created) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(identity.unit.to_string())
        .bind(int(secrets.version)?)
        .bind(identity.incarnation.0)
        .bind(&secrets.age)
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }

    /// Returns the secrets that were sealed to one incarnation's device.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn device_secrets(
        &mut self,
        identity: &DeviceIdentity,
    ) -> Result<Option<SealedSecrets>, StoreError> {
        let row: Option<(i64, String)> = sqlx::query_as(
            "SELECT version, age FROM device_secrets WHERE unit = ? AND incarnation = ?",
        )
        .bind(identity.unit.to_string())
        .bind(identity.incarnation.0)
        .fetch_optional(self.db())
        .await?;
        row.map(sealed).transpose()
    }

    /// Keeps secrets that were sealed to one incarnation's device.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn save_device_secrets(
        &mut self,
        identity: &DeviceIdentity,
        secrets: &SealedSecrets,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO device_secrets (unit, incarnation, version, age, created)
             VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (unit, incarnation) DO UPDATE
             SET version = excluded.version, age = excluded.age, created = excluded.created",
        )
        .bind(identity.unit.to_string())
        .bind(identity.incarnation.0)
        .bind(int(secrets.version)?)
        .bind(&secrets.age)
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }
}

fn sealed((version, age): (i64, String)) -> Result<SealedSecrets, StoreError> {
    Ok(SealedSecrets {
        version: number("secrets version", version)?,
        age,
    })
}
