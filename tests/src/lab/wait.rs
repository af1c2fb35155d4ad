//! Waiting for conditions, with a deadline and words for what never came.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at. Short beside anything that a machine does.
pub const PACE: Duration = Duration::from_millis(50);

/// Waits until `look` returns something.
///
/// `what` completes the sentence "waited 30 s for …".
///
/// # Errors
/// `look` failed, which ends the waiting at once, or the deadline passed.
pub async fn until<T, F>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if begun.elapsed() >= deadline {
            bail!("waited {} s for {what}", deadline.as_secs());
        }
        tokio::time::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_is_returned() {
        let mut looks = 0;
        let found = until("the third look", Duration::from_secs(5), || {
            looks += 1;
            let now = looks;
            async move { Ok((now == 3).then_some(now)) }
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn what_never_comes_is_named() {
        let found = until::<(), _>("a miracle", Duration::ZERO, || async { Ok(None) });
        let error = found.await.unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for a miracle");
    }

    #[tokio::test]
    async fn a_look_that_fails_ends_the_waiting() {
        let found = until::<(), _>("nothing", Duration::from_secs(60), || async {
            bail!("the machine went off")
        });
        assert_eq!(found.await.unwrap_err().to_string(), "the machine went off");
    }
}
