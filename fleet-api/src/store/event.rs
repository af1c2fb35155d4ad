//! What happened, in order.

use jiff::Timestamp;
use model::api::Event;
use model::machine::MachineCode;
use model::{MacAddr, UnitName};

use super::{Session, StoreError, Topic, int, micros, number, parse, time};

/// An event to append.
#[derive(Debug, Clone)]
pub struct NewEvent {
    kind: &'static str,
    unit: Option<UnitName>,
    machine: Option<MachineCode>,
    mac: Option<MacAddr>,
    message: String,
}

impl NewEvent {
    /// An event that concerns the whole fleet.
    pub fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            unit: None,
            machine: None,
            mac: None,
            message: plain(&message.into()),
        }
    }

    /// Names the unit.
    #[must_use]
    pub fn unit(mut self, unit: &UnitName) -> Self {
        self.unit = Some(unit.clone());
        self
    }

    /// Names the machine.
    #[must_use]
    pub fn machine(mut self, code: &MachineCode, mac: Option<MacAddr>) -> Self {
        self.machine = Some(code.clone());
        self.mac = mac;
        self
    }
}

/// Longest message in characters.
const LONGEST: usize = 500;

/// Makes a line of what may come from a machine or a unit: it ends up on an
/// operator's terminal.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect()
}

type EventRow = (
    i64,
    i64,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    String,
);

impl Session {
    /// Appends an event.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn append_event(
        &mut self,
        event: NewEvent,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO event (time, kind, unit, machine, mac, message)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(micros(now))
        .bind(event.kind)
        .bind(event.unit.map(|unit| unit.to_string()))
        .bind(event.machine.map(|code| code.to_string()))
        .bind(event.mac.map(|mac| mac.to_string()))
        .bind(event.message)
        .execute(self.db())
        .await?;
        self.touch(Topic::Events);
        Ok(())
    }

    /// Returns the number of the newest event; 0 without one.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn newest_event(&mut self) -> Result<u64, StoreError> {
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(number) FROM event")
            .fetch_one(self.db())
            .await?;
        number("event number", newest.unwrap_or(0))
    }

    /// Returns the events with a higher number than `after`, oldest first, at most `most`.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn events(&mut self, after: u64, most: u32) -> Result<Vec<Event>, StoreError> {
        let rows: Vec<EventRow> = sqlx::query_as(
            "SELECT number, time, kind, unit, machine, mac, message FROM event
             WHERE number > ? ORDER BY number LIMIT ?",
        )
        .bind(int(after)?)
        .bind(most)
        .fetch_all(self.db())
        .await?;
        rows.into_iter()
            .map(|(n, at, kind, unit, machine, mac, message)| {
                Ok(Event {
                    number: number("event number", n)?,
                    time: time(at)?,
                    kind,
                    unit: unit.map(|text| parse("unit", &text)).transpose()?,
                    machine: machine
                        .map(|text| parse("machine code", &text))
                        .transpose()?,
                    mac: mac.map(|text| parse("MAC address", &text)).transpose()?,
                    message,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_steer_the_operators_terminal() {
        let event = NewEvent::new("install", "disk\u{1b}[2Jgone\nnext");
        assert_eq!(event.message, "disk [2Jgone next");
    }
}
