//! The permission to erase one disk. There is no other way to open a disk for
//! writing in this program, and no way to a permit but a verified ticket.

use std::io;
use std::path::{Path, PathBuf};

use model::Verified;
use model::machine::{DeviceKeys, DiskContent, DiskFacts, MachineFacts};
use model::ticket::{BirthTicket, ForeignData, TicketRefusal};
use slots::{Disk, Target as _};

use super::facts;

/// A permission to erase one disk.
#[derive(Debug)]
pub struct ErasePermit {
    ticket: Verified<BirthTicket>,
    disk: DiskFacts,
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
        let disk = ticket.permits(facts, keys)?.clone();
        Ok(Self { ticket, disk })
    }

    /// The ticket.
    pub fn ticket(&self) -> &BirthTicket {
        &self.ticket
    }

    /// The disk that may be erased.
    pub fn disk(&self) -> &DiskFacts {
        &self.disk
    }

    /// Path of the disk.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.disk.path)
    }

    /// Looks once more at the disk, just before it is erased.
    ///
    /// # Errors
    /// [`OpenRefusal`]: it is not as it was when the operator saw it.
    pub fn recheck(&self) -> Result<(), OpenRefusal> {
        let path = || self.disk.path.clone();
        self.open()?;
        let now = facts::content_of(Path::new(&self.disk.path));
        let foreign = now == DiskContent::Foreign
            && self.disk.content != DiskContent::Foreign
            && self.ticket.foreign_data == ForeignData::Keep;
        if foreign {
            return Err(OpenRefusal::ForeignData { path: path() });
        }
        Ok(())
    }

    /// Opens the disk for writing.
    ///
    /// # Errors
    /// [`OpenRefusal`].
    pub fn open(&self) -> Result<Disk, OpenRefusal> {
        let path = || self.disk.path.clone();
        let disk = Disk::open(Path::new(&self.disk.path)).map_err(|source| OpenRefusal::Open {
            path: path(),
            source,
        })?;
        if disk.size() != self.disk.size {
            return Err(OpenRefusal::Changed {
                path: path(),
                expected: self.disk.size,
                found: disk.size(),
            });
        }
        Ok(disk)
    }
}
