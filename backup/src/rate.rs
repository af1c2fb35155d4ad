//! A token bucket: bounds the upload rate without ever failing.
//!
//! A piece larger than the bucket is let through and paid for afterwards, so
//! no size of pack can get stuck.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Bounds a flow of bytes over all who share it.
#[derive(Debug)]
pub struct Bucket {
    per_second: u64,
    /// When everything let through until now will be paid for.
    paid: Mutex<Instant>,
}

/// The bucket saves up at most this much idle time.
const BURST: Duration = Duration::from_millis(500);

impl Bucket {
    /// A bucket of `kib` KiB a second; 0 is unbounded.
    pub fn new(kib: u32) -> Self {
        Self {
            per_second: u64::from(kib) * 1024,
            paid: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may go.
    pub async fn take(&self, bytes: usize) {
        if self.per_second == 0 {
            return;
        }
        let until = {
            let mut paid = self.paid.lock().await;
            *paid = reserve(*paid, Instant::now(), bytes as u64, self.per_second);
            *paid
        };
        tokio::time::sleep_until(until).await;
    }
}

/// When everything is paid for, `bytes` more included. Idle time counts up to the burst.
fn reserve(paid: Instant, now: Instant, bytes: u64, per_second: u64) -> Instant {
    let start = paid.max(now.checked_sub(BURST).unwrap_or(now));
    start + cost(bytes, per_second)
}

/// How long `bytes` take.
fn cost(bytes: u64, per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn rate_is_kept_over_time() {
        let begun = Instant::now();
        let mut paid = begun;
        for _ in 0..160 {
            // Each piece is asked for as soon as the one before may go.
            paid = reserve(paid, paid, 64 * 1024, MIB);
        }
        assert_eq!(paid - begun, Duration::from_secs(10));
    }

    #[test]
    fn idle_time_is_saved_up_to_the_burst_only() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(3600);
        assert_eq!(
            reserve(begun, later, MIB, MIB),
            later - BURST + Duration::from_secs(1)
        );
    }

    #[test]
    fn piece_larger_than_the_burst_is_paid_for_and_passes() {
        let now = Instant::now();
        let paid = reserve(now, now, 16 * MIB, MIB);
        assert_eq!(paid - now, Duration::from_secs(16));
    }

    #[tokio::test]
    async fn zero_is_unbounded() {
        let bucket = Bucket::new(0);
        tokio::time::timeout(Duration::from_secs(1), bucket.take(usize::MAX))
            .await
            .unwrap();
    }
}
