//! What happened, for watching and for the audit.

use model::api::Event;

use crate::error::Problem;
use crate::sky::{Look, Sky};
use crate::store::Topic;

/// Events in one answer.
pub(super) const MOST: u32 = 500;

/// Returns the events after number `after`, waiting up to `wait` seconds for the first.
///
/// # Errors
/// Internal only.
pub async fn after(sky: &Sky, after: u64, wait: u64) -> Result<Vec<Event>, Problem> {
    sky.wait_for(Topic::Events, wait, || async move {
        let events = sky.store.read().await?.events(after, MOST).await?;
        Ok(if events.is_empty() {
            Look::Open(events)
        } else {
            Look::Final(events)
        })
    })
    .await
}
