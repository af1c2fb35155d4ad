//! The permission to erase the disks of a ticket: one, or two that become mirrors.
//! There is no other way to open a disk for writing in this program, and no way to a
//! permit but a verified ticket.

use std::io;
use std::path::Path;

use model::Verified;
use model::machine::{DeviceKeys, DiskContent, DiskFacts, MachineFacts};
use model::ticket::{BirthTicket, ForeignData, TicketRefusal};
use slots::{Disk, Mirror, Target as _};

use super::facts;

/// A permission to erase one disk, or two.
#[derive(Debug)]
pub struct ErasePermit {
    ticket: Verified<BirthTicket>,
    disks: Vec<DiskFacts>,
}

/// Why a permitted disk is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenRefusal {
    /// It is not the disk any more that the facts told of.
    #[error("disk {path}: {found} bytes now, {expected} when the machine was announced")]
    Changed {
        /// The disk.
        path: String,
        /// Size in the facts.
        expected: u64,
        /// Size now.
        found: u64,
    },
    /// Data has appeared on it since.
    #[error("disk {path}: holds data now that was not there when the machine was announced")]
    ForeignData {
        /// The disk.
        path: String,
    },
    /// It does not open.
    #[error("open disk {path}")]
    Open {
        /// The disk.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl ErasePermit {
    /// Grants the permission that a ticket gives for this machine and these keys.
    ///
    /// # Errors
    /// What the ticket does not fit.
    pub fn grant(
        ticket: Verified<BirthTicket>,
        facts: &MachineFacts,
        keys: &DeviceKeys,
    ) -> Result<Self, TicketRefusal> {
        let disks = ticket.permits(facts, keys)?.into_iter().cloned().collect();
        Ok(Self { ticket, disks })
    }

    /// The ticket.
    pub fn ticket(&self) -> &BirthTicket {
        &self.ticket
    }

    /// The disks that may be erased, in the order of the ticket.
    pub fn disks(&self) -> &[DiskFacts] {
        &self.disks
    }

    /// Looks once more at the disks, just before they are erased.
    ///
    /// # Errors
    /// [`OpenRefusal`]: one is not as it was when the operator saw it.
    pub fn recheck(&self) -> Result<(), OpenRefusal> {
        self.open_each()?;
        for disk in &self.disks {
            let now = facts::content_of(Path::new(&disk.path));
            let foreign = now == DiskContent::Foreign
                && disk.content != DiskContent::Foreign
                && self.ticket.foreign_data == ForeignData::Keep;
            if foreign {
                let path = disk.path.clone();
                return Err(OpenRefusal::ForeignData { path });
            }
        }
        Ok(())
    }

    /// Opens the disks for writing the same to all of them.
    ///
    /// # Errors
    /// [`OpenRefusal`].
    pub fn open(&self) -> Result<Mirror<Disk>, OpenRefusal> {
        Ok(Mirror::new(self.open_each()?))
    }

    /// Opens each disk for writing, in the order of the ticket.
    ///
    /// # Errors
    /// [`OpenRefusal`].
    pub fn open_each(&self) -> Result<Vec<Disk>, OpenRefusal> {
        self.disks.iter().map(open).collect()
    }
}

fn open(facts: &DiskFacts) -> Result<Disk, OpenRefusal> {
    let path = || facts.path.clone();
    let disk = Disk::open(Path::new(&facts.path)).map_err(|source| OpenRefusal::Open {
        path: path(),
        source,
    })?;
    if disk.size() != facts.size {
        return Err(OpenRefusal::Changed {
            path: path(),
            expected: facts.size,
            found: disk.size(),
        });
    }
    Ok(disk)
}
