//! Fences, and who ran against them.

use jiff::Timestamp;
use model::api::FenceAttempt;
use model::{DeviceIdentity, UnitName};

use super::{Session, StoreError, incarnation_number, micros, parse, time};

impl Session {
    /// Returns the current incarnation of every unit whose birth was begun.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn current_incarnations(&mut self) -> Result<Vec<DeviceIdentity>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT name, incarnation FROM unit WHERE incarnation > 0 ORDER BY name",
        )
        .fetch_all(self.db())
        .await?;
        rows.into_iter()
            .map(|(unit, incarnation)| identity(&unit, incarnation))
            .collect()
    }

    /// Keeps an attempt.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_attempt(&mut self, attempt: &FenceAttempt) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO fence_attempt (unit, incarnation, place, address, time)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(attempt.identity.unit.to_string())
        .bind(attempt.identity.incarnation.0)
        .bind(&attempt.place)
        .bind(&attempt.address)
        .bind(micros(attempt.time))
        .execute(self.db())
        .await?;
        Ok(())
    }

    /// Returns the newest attempts of a unit's fenced incarnations, at most `most`.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn attempts(
        &mut self,
        unit: &UnitName,
        most: u32,
    ) -> Result<Vec<FenceAttempt>, StoreError> {
        let rows: Vec<(String, i64, String, String, i64)> = sqlx::query_as(
            "SELECT unit, incarnation, place, address, time FROM fence_attempt
             WHERE unit = ? ORDER BY number DESC LIMIT ?",
        )
        .bind(unit.to_string())
        .bind(most)
        .fetch_all(self.db())
        .await?;
        rows.into_iter()
            .map(|(unit, incarnation, place, address, at)| {
                Ok(FenceAttempt {
                    identity: identity(&unit, incarnation)?,
                    place,
                    address,
                    time: time(at)?,
                })
            })
            .collect()
    }

    /// Returns when this identity last tried this place from this address.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn last_attempt(
        &mut self,
        attempt: &FenceAttempt,
    ) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> = sqlx::query_scalar(
            "SELECT time FROM fence_attempt
             WHERE unit = ? AND incarnation = ? AND place = ? AND address = ?
             ORDER BY number DESC LIMIT 1",
        )
        .bind(attempt.identity.unit.to_string())
        .bind(attempt.identity.incarnation.0)
        .bind(&attempt.place)
        .bind(&attempt.address)
        .fetch_optional(self.db())
        .await?;
        at.map(time).transpose()
    }
}

fn identity(unit: &str, incarnation: i64) -> Result<DeviceIdentity, StoreError> {
    Ok(DeviceIdentity {
        unit: parse("unit", unit)?,
        incarnation: incarnation_number(incarnation)?,
    })
}
