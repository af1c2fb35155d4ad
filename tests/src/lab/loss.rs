//! A wire that loses frames, where the kernel has none.
//!
//! It stands between two Unix sockets that carry one Ethernet frame in each datagram:
//! QEMU's own, and that of the port. Which frames are lost is decided by a seed, so that
//! a run can be had again as far as the programs at its ends allow.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;

/// How much a wire loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Frames of a thousand, in each direction.
    pub per_mille: u32,
    /// Decides which.
    pub seed: u64,
}

/// What one direction of a wire has carried.
#[derive(Debug, Default)]
struct Count {
    carried: AtomicU64,
    lost: AtomicU64,
}

/// What a wire has carried and lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Toll {
    /// Frames that came to the machine.
    pub to_machine: u64,
    /// Frames that were lost on their way to it.
    pub lost_to_machine: u64,
    /// Frames that came from the machine.
    pub from_machine: u64,
    /// Frames of the machine that were lost.
    pub lost_from_machine: u64,
}

impl Toll {
    /// Frames that both wires carried and lost together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            to_machine: self.to_machine + other.to_machine,
            lost_to_machine: self.lost_to_machine + other.lost_to_machine,
            from_machine: self.from_machine + other.from_machine,
            lost_from_machine: self.lost_from_machine + other.lost_from_machine,
        }
    }
}

/// One end of a wire: where it listens, and who listens where it sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) own: PathBuf,
    pub(super) peer: PathBuf,
}

/// A wire that carries. Dropped, it is cut.
#[derive(Debug)]
pub(super) struct Wire {
    counts: [Arc<Count>; 2],
    directions: [JoinHandle<()>; 2],
}

impl Wire {
    /// Begins to carry frames between a machine and its network.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub(super) fn start(loss: Loss, machine: End, network: End) -> anyhow::Result<Self> {
        let (near, far) = (listen(&machine.own)?, listen(&network.own)?);
        let counts: [Arc<Count>; 2] = Default::default();
        // Each direction on its own: one that waits for its reader must not hold up the
        // other, which that reader may be waiting for.
        let inward = carry(
            Arc::clone(&far),
            Arc::clone(&near),
            machine.peer,
            Dice::new(loss, 0),
            Arc::clone(&counts[0]),
        );
        let outward = carry(
            near,
            far,
            network.peer,
            Dice::new(loss, 1),
            Arc::clone(&counts[1]),
        );
        Ok(Self {
            counts,
            directions: [tokio::spawn(inward), tokio::spawn(outward)],
        })
    }

    /// What it has carried and lost so far.
    pub(super) fn toll(&self) -> Toll {
        let [inward, outward] = &self.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Toll {
            to_machine: read(&inward.carried),
            lost_to_machine: read(&inward.lost),
            from_machine: read(&outward.carried),
            lost_from_machine: read(&outward.lost),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for direction in &self.directions {
            direction.abort();
        }
    }
}

fn listen(path: &Path) -> anyhow::Result<Arc<UnixDatagram>> {
    let socket = UnixDatagram::bind(path)
        .with_context(|| format!("lossy wire: listen on {}", path.display()))?;
    Ok(Arc::new(socket))
}

async fn carry(
    from: Arc<UnixDatagram>,
    to: Arc<UnixDatagram>,
    peer: PathBuf,
    mut dice: Dice,
    count: Arc<Count>,
) {
    let mut frame = vec![0; 1 << 16];
    // An error is the end of the laboratory: nobody else has this socket.
    while let Ok(length) = from.recv(&mut frame).await {
        if dice.loses() {
            count.lost.fetch_add(1, Ordering::Relaxed);
        } else if to.send_to(&frame[..length], &peer).await.is_ok() {
            count.carried.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Decides frame by frame which is lost (SplitMix64).
#[derive(Debug)]
struct Dice {
    state: u64,
    per_mille: u64,
}

impl Dice {
    fn new(loss: Loss, direction: u64) -> Self {
        Self {
            // Far apart, so that the directions do not lose alike.
            state: loss.seed ^ (direction << 63),
            per_mille: loss.per_mille.into(),
        }
    }

    fn loses(&mut self) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        mixed % 1000 < self.per_mille
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::wait;
    use super::*;

    #[tokio::test]
    async fn a_wire_loses_what_it_says_in_both_directions_and_counts_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (machine, network) = (
            UnixDatagram::bind(at("machine")).unwrap(),
            UnixDatagram::bind(at("network")).unwrap(),
        );
        let end = |own: &str, peer: &str| End {
            own: at(own),
            peer: at(peer),
        };
        let loss = Loss {
            per_mille: 20,
            seed: 4,
        };
        let wire = Wire::start(loss, end("near", "machine"), end("far", "network")).unwrap();
        for (from, entry, to) in [(&machine, "near", &network), (&network, "far", &machine)] {
            let sent = async {
                for number in 0..5000u16 {
                    let sent = from.send_to(&number.to_be_bytes(), at(entry)).await;
                    sent.unwrap();
                }
            };
            let heard = async {
                let mut last = None;
                let mut frame = [0; 2];
                // The last one is among those that this seed does not lose.
                while last != Some(4999) {
                    assert_eq!(to.recv(&mut frame).await.unwrap(), 2);
                    let number = u16::from_be_bytes(frame);
                    assert!(last.is_none_or(|last| last < number), "in order");
                    last = Some(number);
                }
            };
            tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(sent, heard) })
                .await
                .unwrap();
        }
        let toll = wait::until("all frames", Duration::from_secs(5), || {
            let toll = wire.toll();
            let all = toll.from_machine + toll.lost_from_machine == 5000
                && toll.to_machine + toll.lost_to_machine == 5000;
            async move { Ok(all.then_some(toll)) }
        })
        .await
        .unwrap();
        for lost in [toll.lost_to_machine, toll.lost_from_machine] {
            assert!((70..130).contains(&lost), "{toll:?}");
        }
        assert_ne!(toll.lost_to_machine, toll.lost_from_machine, "{toll:?}");
    }

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let loss = Loss {
            per_mille: 20,
            seed: 7,
        };
        let all = |seed| {
            let mut dice = Dice::new(Loss { seed, ..loss }, 0);
            (0..1000).map(|_| dice.loses()).collect::<Vec<_>>()
        };
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
    }
}
