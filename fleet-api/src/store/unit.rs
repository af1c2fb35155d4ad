//! Units and their incarnations.

use jiff::Timestamp;
use model::api::{CheckIn, IncarnationReason};
use model::{DeviceIdentity, Incarnation, UnitName};

use super::{Session, StoreError, corrupt, json, micros, parse, time, unjson};

/// A unit as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitRecord {
    /// Its name.
    pub unit: UnitName,
    /// The profile.
    pub profile: String,
    /// The channel that it follows.
    pub channel: String,
    /// The current incarnation; 0 before birth was begun.
    pub incarnation: Incarnation,
}

/// An incarnation as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncarnationRecord {
    /// Why it was begun.
    pub reason: IncarnationReason,
    /// When its health gate first passed.
    pub in_service: Option<Timestamp>,
    /// What it said last.
    pub check_in: Option<CheckIn>,
    /// When it did.
    pub seen: Option<Timestamp>,
}

type UnitRow = (String, String, String, i64);
type IncarnationRow = (String, Option<i64>, Option<String>, Option<i64>);

impl Session {
    /// Returns a unit.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn unit(&mut self, unit: &UnitName) -> Result<Option<UnitRecord>, StoreError> {
        let row: Option<UnitRow> =
            sqlx::query_as("SELECT name, profile, channel, incarnation FROM unit WHERE name = ?")
                .bind(unit.to_string())
                .fetch_optional(self.db())
                .await?;
        row.map(record).transpose()
    }

    /// Returns all units by name.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn units(&mut self) -> Result<Vec<UnitRecord>, StoreError> {
        let rows: Vec<UnitRow> =
            sqlx::query_as("SELECT name, profile, channel, incarnation FROM unit ORDER BY name")
                .fetch_all(self.db())
                .await?;
        rows.into_iter().map(record).collect()
    }

    /// Adds a unit.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_unit(
        &mut self,
        unit: &UnitName,
        profile: &str,
        channel: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO unit (name, customer, profile, channel, created) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(unit.to_string())
        .bind(unit.customer().as_str())
        .bind(profile)
        .bind(channel)
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }

    /// Makes `incarnation` the unit's current one; all lower ones are fenced by that.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn begin_incarnation(
        &mut self,
        unit: &UnitName,
        incarnation: Incarnation,
        reason: IncarnationReason,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO incarnation (unit, number, reason, begun) VALUES (?, ?, ?, ?)")
            .bind(unit.to_string())
            .bind(incarnation.0)
            .bind(word(reason))
            .bind(micros(now))
            .execute(self.db())
            .await?;
        sqlx::query("UPDATE unit SET incarnation = ? WHERE name = ?")
            .bind(incarnation.0)
            .bind(unit.to_string())
            .execute(self.db())
            .await?;
        Ok(())
    }

    /// Returns an incarnation.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn incarnation(
        &mut self,
        identity: &DeviceIdentity,
    ) -> Result<Option<IncarnationRecord>, StoreError> {
        let row: Option<IncarnationRow> = sqlx::query_as(
            "SELECT reason, in_service, check_in, seen FROM incarnation
             WHERE unit = ? AND number = ?",
        )
        .bind(identity.unit.to_string())
        .bind(identity.incarnation.0)
        .fetch_optional(self.db())
        .await?;
        row.map(|(reason, in_service, check_in, seen)| {
            Ok(IncarnationRecord {
                reason: match reason.as_str() {
                    "birth" => IncarnationReason::Birth,
                    "replace" => IncarnationReason::Replace,
                    other => return Err(corrupt("reason", other)),
                },
                in_service: in_service.map(time).transpose()?,
                check_in: check_in.map(|text| unjson("check-in", &text)).transpose()?,
                seen: seen.map(time).transpose()?,
            })
        })
        .transpose()
    }

    /// Returns what earlier incarnations said last, the latest of them first.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn earlier_check_ins(
        &mut self,
        identity: &DeviceIdentity,
    ) -> Result<Vec<CheckIn>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT check_in FROM incarnation
             WHERE unit = ? AND number < ? AND check_in IS NOT NULL ORDER BY number DESC",
        )
        .bind(identity.unit.to_string())
        .bind(identity.incarnation.0)
        .fetch_all(self.db())
        .await?;
        rows.iter().map(|text| unjson("check-in", text)).collect()
    }

    /// Whether any incarnation of the unit was ever in service.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn has_lived(&mut self, unit: &UnitName) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM incarnation WHERE unit = ? AND in_service IS NOT NULL LIMIT 1",
        )
        .bind(unit.to_string())
        .fetch_optional(self.db())
        .await?;
        Ok(found.is_some())
    }

    /// Keeps what an incarnation said last. The first healthy word puts it in service.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn save_check_in(
        &mut self,
        identity: &DeviceIdentity,
        check_in: &CheckIn,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE incarnation SET check_in = ?, seen = ?, in_service = coalesce(in_service, ?)
             WHERE unit = ? AND number = ?",
        )
        .bind(json(check_in))
        .bind(micros(now))
        .bind(check_in.healthy.then(|| micros(now)))
        .bind(identity.unit.to_string())
        .bind(identity.incarnation.0)
        .execute(self.db())
        .await?;
        Ok(())
    }
}

fn word(reason: IncarnationReason) -> &'static str {
    match reason {
        IncarnationReason::Birth => "birth",
        IncarnationReason::Replace => "replace",
    }
}

fn record((name, profile, channel, incarnation): UnitRow) -> Result<UnitRecord, StoreError> {
    Ok(UnitRecord {
        unit: parse("unit", &name)?,
        profile,
        channel,
        incarnation: super::incarnation_number(incarnation)?,
    })
}
