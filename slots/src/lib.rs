//! The disk of a unit: its layout, and the one writer of its slots.
//!
//! Three programs put an operating system on a disk: the installer at birth,
//! the updater later, and the composer of disk images. All of them do it
//! through this crate, so that there is one place that decides where things
//! lie, checks a segment before it is written, and orders writes so that a
//! power cut at any moment leaves a machine that boots.
//!
//! Flow: [`layout`] plans the partition table, [`gpt`] writes it, [`writer`]
//! fills a slot from a verified release, [`esp`] holds the boot loader, the
//! kernels and the releases' small files, in a file system that [`fat`] plans.
//! [`decide`] chooses the slot to write; [`compose`] does all of it at once for
//! a whole disk, and [`twin`] keeps the second disk of a mirrored system like the first.
//! A disk that is only to be read need not lie anywhere: [`stock`]
//! composes it of [`extents`], and [`serve`] sends any range of it.
//!
//! It deliberately does not fetch anything, knows no clock, makes no random
//! number, and touches no file system mount. Of the data partition it makes only
//! the empty template that composed disks share.
//! It accepts releases only as [`model::Verified`].

pub mod layout;

pub mod target;

pub mod gpt;

pub mod writer;

pub mod fat;

pub mod esp;

pub mod enrol;

pub mod decide;

pub mod compose;

pub mod twin;

pub mod extents;

pub mod stock;

pub mod http;

pub mod serve;

#[cfg(test)]
mod fault;

#[cfg(test)]
mod first_layout;

pub use layout::{Layout, Part, Slot};
pub use target::{Disk, Mirror, Target, Window};
