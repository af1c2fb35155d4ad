//! Commands and what became of them.

use jiff::Timestamp;
use model::command::{CommandReport, UnitCommand};
use model::{Signed, UnitName};

use super::{Session, StoreError, Topic, json, micros, time, unjson};

/// A command as it is stored.
#[derive(Debug, Clone)]
pub struct CommandRecord {
    /// The document as it was received.
    pub document: Signed<UnitCommand>,
    /// When the unit was first given it.
    pub delivered: Option<Timestamp>,
    /// What became of it.
    pub report: Option<CommandReport>,
}

impl Session {
    /// Returns a command of a unit.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn command(
        &mut self,
        unit: &UnitName,
        id: &str,
    ) -> Result<Option<CommandRecord>, StoreError> {
        let row: Option<(String, Option<i64>, Option<String>)> = sqlx::query_as(
            "SELECT command.document, command.delivered, report.document
             FROM command LEFT JOIN command_report AS report
               ON report.unit = command.unit AND report.id = command.id
             WHERE command.unit = ? AND command.id = ?",
        )
        .bind(unit.to_string())
        .bind(id)
        .fetch_optional(self.db())
        .await?;
        row.map(|(document, delivered, report)| {
            Ok(CommandRecord {
                document: unjson("command", &document)?,
                delivered: delivered.map(time).transpose()?,
                report: report.map(|text| unjson("report", &text)).transpose()?,
            })
        })
        .transpose()
    }

    /// Whether any unit has a command of this id.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn command_exists(&mut self, id: &str) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM command WHERE id = ?")
            .bind(id)
            .fetch_optional(self.db())
            .await?;
        Ok(found.is_some())
    }

    /// Adds a command.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_command(
        &mut self,
        unit: &UnitName,
        id: &str,
        document: &Signed<UnitCommand>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO command (unit, id, document, created) VALUES (?, ?, ?, ?)")
            .bind(unit.to_string())
            .bind(id)
            .bind(json(document))
            .bind(micros(now))
            .execute(self.db())
            .await?;
        self.touch(Topic::Commands);
        Ok(())
    }

    /// Returns the oldest commands that the unit has not reported on, at most `most`.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn open_commands(
        &mut self,
        unit: &UnitName,
        most: u32,
    ) -> Result<Vec<(String, Signed<UnitCommand>)>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT id, document FROM command
             WHERE unit = ?1 AND id NOT IN (SELECT id FROM command_report WHERE unit = ?1)
             ORDER BY number LIMIT ?2",
        )
        .bind(unit.to_string())
        .bind(most)
        .fetch_all(self.db())
        .await?;
        rows.into_iter()
            .map(|(id, document)| Ok((id, unjson("command", &document)?)))
            .collect()
    }

    /// Notes that a command is being given to its unit, if it never was.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn mark_delivered(
        &mut self,
        unit: &UnitName,
        id: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let result = sqlx::query(
            "UPDATE command SET delivered = ? WHERE unit = ? AND id = ? AND delivered IS NULL",
        )
        .bind(micros(now))
        .bind(unit.to_string())
        .bind(id)
        .execute(self.db())
        .await?;
        if result.rows_affected() > 0 {
            self.touch(Topic::Commands);
        }
        Ok(())
    }

    /// Keeps a report; the first one of a command counts. Returns whether this was it.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_report(
        &mut self,
        unit: &UnitName,
        report: &CommandReport,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let result = sqlx::query(
            "INSERT INTO command_report (unit, id, document, created) VALUES (?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(unit.to_string())
        .bind(&report.id)
        .bind(json(report))
        .bind(micros(now))
        .execute(self.db())
        .await?;
        let new = result.rows_affected() > 0;
        if new {
            self.touch(Topic::Commands);
        }
        Ok(new)
    }
}
