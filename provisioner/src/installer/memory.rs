//! A test of memory while the machine waits for its ticket: bad memory spoils what it
//! writes to disk, and every backup after it.
//!
//! It takes a share of what is free, writes patterns that depend on the place, reads
//! them back, and does so again inverted. It is no replacement for a night of a real
//! memory test; it finds what would spoil a birth, and costs it nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The share of the free memory that is tested: the rest is for the installation.
const SHARE: u64 = 4;
/// The most that is tested, in bytes.
const MOST: u64 = 1 << 30;
/// So much at a time, in words of 8 bytes: between two pieces it is asked to stop.
const PIECE: usize = (16 << 20) / 8;

/// Memory does not keep what is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("memory: wrote {wrote:#018x}, read {read:#018x}")]
pub struct BadMemory {
    /// What was written.
    pub wrote: u64,
    /// What was read.
    pub read: u64,
}

/// A test: one that runs, or what it found.
#[derive(Debug)]
pub struct MemoryTest {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64, BadMemory>>>,
    found: Result<u64, BadMemory>,
}

impl MemoryTest {
    /// Starts to test a share of `free` bytes.
    pub fn start(free: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let size = (free / SHARE).min(MOST);
        Self {
            stop,
            thread: Some(std::thread::spawn(move || test(size, &stopped, |_| {}))),
            found: Ok(0),
        }
    }

    /// No test at all.
    pub fn none() -> Self {
        Self {
            stop: Arc::default(),
            thread: None,
            found: Ok(0),
        }
    }

    /// Tells bad memory once, as soon as the test has ended by itself.
    pub fn news(&mut self) -> Option<BadMemory> {
        let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        ended.then(|| self.verdict().err()).flatten()
    }

    /// Ends the test, and returns how many bytes are good.
    ///
    /// # Errors
    /// [`BadMemory`].
    pub fn verdict(&mut self) -> Result<u64, BadMemory> {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::Relaxed);
            // A test that panicked has found nothing.
            self.found = thread.join().unwrap_or(Ok(0));
        }
        self.found
    }
}

/// Tests `size` bytes; `between` is what a bad chip would do after writing.
fn test(
    size: u64,
    stop: &AtomicBool,
    mut between: impl FnMut(&mut [u64]),
) -> Result<u64, BadMemory> {
    // Kept until the end, or the same page would be tested again and again.
    let mut pieces: Vec<Vec<u64>> = Vec::new();
    let mut good = 0;
    while good < size && !stop.load(Ordering::Relaxed) {
        let mut piece = Vec::new();
        // Where there is less than was thought, less is tested.
        if piece.try_reserve_exact(PIECE).is_err() {
            break;
        }
        piece.resize(PIECE, 0);
        for mask in [0, u64::MAX] {
            let wanted = |index: usize| pattern(pieces.len(), index) ^ mask;
            for (index, word) in piece.iter_mut().enumerate() {
                *word = wanted(index);
            }
            // The compiler must not know what is in it.
            between(std::hint::black_box(&mut piece));
            for (index, word) in piece.iter().enumerate() {
                if *word != wanted(index) {
                    return Err(BadMemory {
                        wrote: wanted(index),
                        read: *word,
                    });
                }
            }
        }
        good += (PIECE * 8) as u64;
        pieces.push(piece);
    }
    Ok(good)
}

/// Another word at each place: an address line that is stuck shows as well as a bit.
fn pattern(piece: usize, index: usize) -> u64 {
    let place = (piece * PIECE + index) as u64;
    place.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    static RUN: AtomicBool = AtomicBool::new(false);

    #[test]
    fn good_memory_passes_and_a_stuck_bit_does_not() {
        let size = (PIECE * 8) as u64 * 2;
        assert_eq!(test(size, &RUN, |_| {}), Ok(size));
        // A bit that is stuck at one, in the second piece.
        let mut passes = 0;
        let stuck = test(size, &RUN, |piece| {
            passes += 1;
            if passes > 2 {
                piece[77] |= 1 << 5;
            }
        });
        let BadMemory { wrote, read } = stuck.unwrap_err();
        assert_eq!(wrote ^ read, 1 << 5);
        // An address line that is stuck: two places are one.
        let folded = test(size, &RUN, |piece| piece[1024] = piece[0]);
        assert!(folded.is_err());
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let mut test = MemoryTest::start(u64::MAX);
        let good = test.verdict().unwrap();
        assert!(good <= MOST);
        assert_eq!(test.verdict(), Ok(good), "as before");
        assert_eq!(MemoryTest::start(0).verdict(), Ok(0));
        assert_eq!(MemoryTest::none().verdict(), Ok(0));
    }
}
