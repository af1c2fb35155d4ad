//! Passes, as hashes only.

use jiff::Timestamp;
use model::machine::MachineCode;
use model::pass::NewPass;
use model::{Digest, UnitName};

use super::{Session, StoreError, micros, parse, time};

/// A pass as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassRecord {
    /// The unit that a machine may become with it.
    pub unit: UnitName,
    /// Until when it counts.
    pub expires: Timestamp,
    /// When it was made.
    pub created: Timestamp,
    /// The machine that has used its ticket with it.
    pub used_by: Option<MachineCode>,
}

type PassRow = (String, i64, i64, Option<String>);

impl Session {
    /// Returns the pass with this hash.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn pass(&mut self, hash: &Digest) -> Result<Option<PassRecord>, StoreError> {
        let row: Option<PassRow> =
            sqlx::query_as("SELECT unit, expires, created, used_by FROM pass WHERE hash = ?")
                .bind(hash.as_bytes().as_slice())
                .fetch_optional(self.db())
                .await?;
        row.map(|(unit, expires, created, used_by)| {
            Ok(PassRecord {
                unit: parse("pass unit", &unit)?,
                expires: time(expires)?,
                created: time(created)?,
                used_by: used_by
                    .map(|code| parse("pass machine", &code))
                    .transpose()?,
            })
        })
        .transpose()
    }

    /// Makes this the unit's pass, in place of an older one.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn replace_pass(
        &mut self,
        unit: &UnitName,
        pass: &NewPass,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO pass (unit, hash, expires, created) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (unit) DO UPDATE
             SET hash = ?2, expires = ?3, created = ?4, used_by = NULL",
        )
        .bind(unit.to_string())
        .bind(pass.hash.as_bytes().as_slice())
        .bind(micros(pass.expires))
        .bind(micros(now))
        .execute(self.db())
        .await?;
        Ok(())
    }

    /// Notes that a machine is born with the unit's pass: from now on it is this
    /// machine's alone.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn use_pass(
        &mut self,
        unit: &UnitName,
        machine: &MachineCode,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE pass SET used_by = ? WHERE unit = ?")
            .bind(machine.as_str())
            .bind(unit.to_string())
            .execute(self.db())
            .await?;
        Ok(())
    }

    /// Returns how many machines have announced themselves with the unit's pass since.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn machines_with_pass(
        &mut self,
        unit: &UnitName,
        since: Timestamp,
    ) -> Result<i64, StoreError> {
        let count =
            sqlx::query_scalar("SELECT COUNT(*) FROM machine WHERE pass = ? AND first_seen >= ?")
                .bind(unit.to_string())
                .bind(micros(since))
                .fetch_one(self.db())
                .await?;
        Ok(count)
    }
}
