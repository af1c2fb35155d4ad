//! A disk in memory that loses power.
//!
//! What was not flushed before the cut is on the medium, or is not, or is so
//! in part: each 512-byte sector by the throw of a seeded dice.

use std::collections::BTreeMap;
use std::io;

use crate::target::Target;

const SECTOR: u64 = 512;

/// The machine with the disk. Cloned, it is a second machine with the same past.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    size: u64,
    sector_size: u64,
    durable: BTreeMap<u64, [u8; 512]>,
    pending: BTreeMap<u64, [u8; 512]>,
    steps: u64,
    cut_at: Option<u64>,
}

impl Machine {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            sector_size: SECTOR,
            durable: BTreeMap::new(),
            pending: BTreeMap::new(),
            steps: 0,
            cut_at: None,
        }
    }

    pub(crate) fn with_sector_size(mut self, size: u64) -> Self {
        self.sector_size = size;
        self
    }

    /// Writes and flushes so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Power goes after so many more writes and flushes.
    pub(crate) fn cut_after(&mut self, steps: u64) {
        self.cut_at = Some(self.steps + steps);
    }

    /// Power is back; `seed` decides what of the unflushed writes arrived.
    pub(crate) fn power_on(&mut self, seed: u64) {
        self.cut_at = None;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for (sector, bytes) in std::mem::take(&mut self.pending) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if state & 4 == 0 {
                self.durable.insert(sector, bytes);
            }
        }
    }

    /// Changes one byte behind everybody's back.
    pub(crate) fn rot(&mut self, offset: u64) {
        let within = usize::try_from(offset % SECTOR).unwrap();
        self.durable
            .entry(offset / SECTOR * SECTOR)
            .or_insert([0; 512])[within] ^= 0x80;
    }

    fn step(&mut self) -> io::Result<()> {
        if self.cut_at.is_some_and(|at| self.steps >= at) {
            return Err(io::Error::other("power cut"));
        }
        self.steps += 1;
        Ok(())
    }

    fn sector(&self, start: u64) -> [u8; 512] {
        let found = self.pending.get(&start);
        found
            .or_else(|| self.durable.get(&start))
            .copied()
            .unwrap_or([0; 512])
    }
}

impl Target for Machine {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset + buffer.len() as u64 > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let start = at / SECTOR * SECTOR;
            let within = usize::try_from(at - start).unwrap();
            let length = (512 - within).min(buffer.len() - done);
            buffer[done..done + length]
                .copy_from_slice(&self.sector(start)[within..within + length]);
            done += length;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        if offset + bytes.len() as u64 > self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let start = at / SECTOR * SECTOR;
            let within = usize::try_from(at - start).unwrap();
            let length = (512 - within).min(bytes.len() - done);
            let mut sector = self.sector(start);
            sector[within..within + length].copy_from_slice(&bytes[done..done + length]);
            self.pending.insert(start, sector);
            done += length;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.step()?;
        for (sector, bytes) in std::mem::take(&mut self.pending) {
            self.durable.insert(sector, bytes);
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u64 {
        self.sector_size
    }
}
