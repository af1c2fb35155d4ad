//! Machines, their tickets, and the ledger that burns them.

use jiff::Timestamp;
use model::api::{Announcement, Enrolment, Progress};
use model::machine::{DeviceKeys, MachineCode, MachineFacts};
use model::ticket::BirthTicket;
use model::{DeviceIdentity, Digest, Incarnation, Signed, UnitName};

use super::{Session, StoreError, Topic, incarnation_number, json, micros, parse, time, unjson};

/// A machine as it is stored.
#[derive(Debug, Clone)]
pub struct MachineRecord {
    /// The code on its screen.
    pub code: MachineCode,
    /// What the installer found.
    pub facts: MachineFacts,
    /// What it made.
    pub keys: DeviceKeys,
    /// The last progress told.
    pub progress: Option<Progress>,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// The ticket that it is to use.
    pub ticket: Option<TicketRecord>,
    /// The unit whose pass it came with; none behind a factory.
    pub pass: Option<UnitName>,
}

/// A ticket as it is stored.
#[derive(Debug, Clone)]
pub struct TicketRecord {
    /// [`BirthTicket::id`].
    pub id: String,
    /// The machine that it was stored for.
    pub machine: MachineCode,
    /// Who the machine becomes.
    pub identity: DeviceIdentity,
    /// The document as it was received.
    pub document: Signed<BirthTicket>,
    /// When it stops to count.
    pub expires: Timestamp,
    /// The unit's current incarnation now.
    pub current: Incarnation,
    /// Its use, once it is burned.
    pub redemption: Option<RedemptionRecord>,
}

/// The use of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedemptionRecord {
    /// The keys that used it.
    pub fingerprint: Digest,
    /// What was answered.
    pub enrolment: Enrolment,
}

/// A ticket to store.
#[derive(Debug, Clone, Copy)]
pub struct NewTicket<'a> {
    /// The verified ticket.
    pub ticket: &'a BirthTicket,
    /// The document as it was received.
    pub document: &'a Signed<BirthTicket>,
}

type MachineRow = (
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    i64,
    i64,
    Option<String>,
);

type TicketRow = (
    String,
    String,
    String,
    i64,
    String,
    i64,
    i64,
    Option<String>,
    Option<String>,
);

impl Session {
    /// Returns a machine.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn machine(
        &mut self,
        code: &MachineCode,
    ) -> Result<Option<MachineRecord>, StoreError> {
        let row: Option<MachineRow> = sqlx::query_as(
            "SELECT code, facts, keys, progress, ticket, first_seen, last_seen, pass
             FROM machine WHERE code = ?",
        )
        .bind(code.as_str())
        .fetch_optional(self.db())
        .await?;
        match row {
            Some(row) => self.machine_record(row).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns all machines, the last heard of first.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn machines(&mut self) -> Result<Vec<MachineRecord>, StoreError> {
        let rows: Vec<MachineRow> = sqlx::query_as(
            "SELECT code, facts, keys, progress, ticket, first_seen, last_seen, pass
             FROM machine ORDER BY last_seen DESC, code",
        )
        .fetch_all(self.db())
        .await?;
        let mut machines = Vec::with_capacity(rows.len());
        for row in rows {
            machines.push(self.machine_record(row).await?);
        }
        Ok(machines)
    }

    /// Adds a machine.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_machine(
        &mut self,
        code: &MachineCode,
        announcement: &Announcement,
        pass: Option<&UnitName>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO machine
             (code, fingerprint, facts, keys, installer, first_seen, last_seen, pass)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)",
        )
        .bind(code.as_str())
        .bind(announcement.keys.fingerprint().to_string())
        .bind(json(&announcement.facts))
        .bind(json(&announcement.keys))
        .bind(&announcement.installer)
        .bind(micros(now))
        .bind(pass.map(UnitName::to_string))
        .execute(self.db())
        .await?;
        self.touch(Topic::Machines);
        Ok(())
    }

    /// Notes that a machine was heard of.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn hear_of_machine(
        &mut self,
        code: &MachineCode,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE machine SET last_seen = ? WHERE code = ?")
            .bind(micros(now))
            .bind(code.as_str())
            .execute(self.db())
            .await?;
        Ok(())
    }

    /// Keeps the last progress.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn save_progress(
        &mut self,
        code: &MachineCode,
        progress: &Progress,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE machine SET progress = ?, last_seen = ? WHERE code = ?")
            .bind(json(progress))
            .bind(micros(now))
            .bind(code.as_str())
            .execute(self.db())
            .await?;
        self.touch(Topic::Machines);
        Ok(())
    }

    /// Returns a ticket.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn ticket(&mut self, id: &str) -> Result<Option<TicketRecord>, StoreError> {
        let row: Option<TicketRow> = sqlx::query_as(
            "SELECT ticket.id, ticket.machine, ticket.unit, ticket.incarnation, ticket.document,
                    ticket.expires, unit.incarnation,
                    redemption.fingerprint, redemption.enrolment
             FROM ticket JOIN unit ON unit.name = ticket.unit
             LEFT JOIN redemption ON redemption.ticket = ticket.id
             WHERE ticket.id = ?",
        )
        .bind(id)
        .fetch_optional(self.db())
        .await?;
        row.map(ticket_record).transpose()
    }

    /// Returns the ticket by which an incarnation was born, or else the newest that is out for it.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn ticket_of(
        &mut self,
        identity: &DeviceIdentity,
    ) -> Result<Option<TicketRecord>, StoreError> {
        let row: Option<TicketRow> = sqlx::query_as(
            "SELECT ticket.id, ticket.machine, ticket.unit, ticket.incarnation, ticket.document,
                    ticket.expires, unit.incarnation,
                    redemption.fingerprint, redemption.enrolment
             FROM ticket JOIN unit ON unit.name = ticket.unit
             LEFT JOIN redemption ON redemption.ticket = ticket.id
             WHERE ticket.unit = ? AND ticket.incarnation = ?
             ORDER BY redemption.ticket IS NULL, ticket.created DESC LIMIT 1",
        )
        .bind(identity.unit.to_string())
        .bind(identity.incarnation.0)
        .fetch_optional(self.db())
        .await?;
        row.map(ticket_record).transpose()
    }

    /// Stores a ticket and makes it the one that the machine is to use.
    ///
    /// What the machine told of an earlier ticket is forgotten. Another machine
    /// that had an unused ticket of the same incarnation is held again.
    ///
    /// # Errors
    /// A failure of the database.
    pub async fn insert_ticket(
        &mut self,
        code: &MachineCode,
        new: NewTicket<'_>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO ticket (id, machine, unit, incarnation, document, expires, created)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&new.ticket.id)
        .bind(code.as_str())
        .bind(new.ticket.unit.to_string())
        .bind(new.ticket.incarnation.0)
        .bind(json(new.document))
        .bind(micros(new.ticket.expires))
        .bind(micros(now))
        .execute(self.db())
        .await?;
        sqlx::query(
            "UPDATE machine SET ticket = NULL WHERE ticket IN
               (SELECT id FROM ticket WHERE unit = ? AND incarnation = ?
                  AND id NOT IN (SELECT ticket FROM redemption))",
        )
        .bind(new.ticket.unit.to_string())
        .bind(new.ticket.incarnation.0)
        .execute(self.db())
        .await?;
        sqlx::query("UPDATE machine SET ticket = ?, progress = NULL WHERE code = ?")
            .bind(&new.ticket.id)
            .bind(code.as_str())
            .execute(self.db())
            .await?;
        self.touch(Topic::Machines);
        Ok(())
    }

    /// Burns a ticket. The answer is kept with it, for those who lost it on the way.
    ///
    /// # Errors
    /// A failure of the database; so is a ticket that is burned already and
    /// an incarnation that was born already.
    pub async fn insert_redemption(
        &mut self,
        ticket: &TicketRecord,
        redemption: &RedemptionRecord,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO redemption (ticket, fingerprint, unit, incarnation, enrolment, created)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&ticket.id)
        .bind(redemption.fingerprint.to_string())
        .bind(ticket.identity.unit.to_string())
        .bind(ticket.identity.incarnation.0)
        .bind(json(&redemption.enrolment))
        .bind(micros(now))
        .execute(self.db())
        .await?;
        self.touch(Topic::Machines);
        Ok(())
    }

    async fn machine_record(&mut self, row: MachineRow) -> Result<MachineRecord, StoreError> {
        let (code, facts, keys, progress, ticket, first_seen, last_seen, pass) = row;
        let ticket = match ticket {
            Some(id) => self.ticket(&id).await?,
            None => None,
        };
        Ok(MachineRecord {
            code: parse("machine code", &code)?,
            facts: unjson("facts", &facts)?,
            keys: unjson("keys", &keys)?,
            progress: progress.map(|text| unjson("progress", &text)).transpose()?,
            first_seen: time(first_seen)?,
            last_seen: time(last_seen)?,
            ticket,
            pass: pass.map(|unit| parse("pass unit", &unit)).transpose()?,
        })
    }
}

fn ticket_record(row: TicketRow) -> Result<TicketRecord, StoreError> {
    let (id, machine, unit, incarnation, document, expires, current, fingerprint, enrolment) = row;
    let redemption = match fingerprint.zip(enrolment) {
        Some((fingerprint, enrolment)) => Some(RedemptionRecord {
            fingerprint: parse("fingerprint", &fingerprint)?,
            enrolment: unjson("enrolment", &enrolment)?,
        }),
        None => None,
    };
    Ok(TicketRecord {
        id,
        machine: parse("machine code", &machine)?,
        identity: DeviceIdentity {
            unit: parse("unit", &unit)?,
            incarnation: incarnation_number(incarnation)?,
        },
        document: unjson("ticket", &document)?,
        expires: time(expires)?,
        current: incarnation_number(current)?,
        redemption,
    })
}
