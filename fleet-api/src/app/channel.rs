//! Channels: what each offers now, signed for freshness by the sky.

use jiff::{SignedDuration, Timestamp};
use model::api::Offer;
use model::release::ChannelPointer;
use model::{Digest, ReleaseVersion, Signed};

use super::{check_label, release};
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::{ChannelRecord, NewEvent};

/// A unit that hears nothing newer for this long knows that it is being held back.
const LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A pointer older than this is signed anew when somebody asks for it.
const RENEWAL: SignedDuration = SignedDuration::from_hours(24);

/// Offers a revision of a release on a channel. The same again changes nothing.
///
/// # Errors
/// A release that is not whole, or older than the one offered now.
pub async fn offer(
    sky: &Sky,
    name: &str,
    offer: &Offer,
) -> Result<Signed<ChannelPointer>, Problem> {
    check_label("channel", name)?;
    let checked = release::check(sky, &offer.release, offer.revision).await?;
    let now = sky.now();
    let mut session = sky.store.change().await?;
    let before = session.channel(name).await?;
    let offered = (offer.release, offer.revision);
    decide(name, offered, before.as_ref())?;
    if let Some(before) = before
        .as_ref()
        .filter(|before| (before.release, before.revision) == offered && !stale(before.signed, now))
    {
        return Ok(before.document.clone());
    }
    let changed = before.as_ref().map(|one| (one.release, one.revision)) != Some(offered);
    let version = before.map_or(0, |before| before.version);
    let record = sign(sky, name, version, offered, checked.manifest, now)?;
    session.save_channel(name, &record).await?;
    if changed {
        let message = format!("{} is offered on channel {name}", title(offered));
        session
            .append_event(NewEvent::new("release", message), now)
            .await?;
    }
    session.commit().await?;
    tracing::info!(channel = name, release = %offer.release, revision = offer.revision, "release offered");
    Ok(record.document)
}

/// A release and its revision: newer is greater.
type Offered = (ReleaseVersion, u32);

fn title((release, revision): Offered) -> String {
    match revision {
        0 => format!("release {release}"),
        revision => format!("release {release} revision {revision}"),
    }
}

fn decide(name: &str, offered: Offered, before: Option<&ChannelRecord>) -> Result<(), Problem> {
    match before {
        Some(before) if offered < (before.release, before.revision) => {
            Err(Problem::conflict(format!(
                "channel {name}: {} is older than {}, which it offers",
                title(offered),
                title((before.release, before.revision))
            ))
            .hint("units never go back by themselves: publish the good state as a new release"))
        }
        _ => Ok(()),
    }
}

fn stale(signed: Timestamp, now: Timestamp) -> bool {
    let age = now.duration_since(signed);
    age >= RENEWAL || age <= -RENEWAL
}

fn sign(
    sky: &Sky,
    name: &str,
    version: u64,
    (release, revision): Offered,
    manifest: Digest,
    now: Timestamp,
) -> Result<ChannelRecord, Problem> {
    let version = version.saturating_add(1);
    let expires = now.checked_add(LIFETIME).map_err(Problem::internal)?;
    let document = sky.timestamp.sign(&ChannelPointer {
        channel: name.to_owned(),
        version,
        release,
        revision,
        manifest,
        expires,
    });
    Ok(ChannelRecord {
        version,
        release,
        revision,
        manifest,
        document,
        signed: now,
    })
}

/// Returns what a channel offers, signed anew where that is due.
///
/// # Errors
/// Internal only.
pub async fn pointer(sky: &Sky, name: &str) -> Result<Option<Signed<ChannelPointer>>, Problem> {
    let now = sky.now();
    match sky.store.read().await?.channel(name).await? {
        None => return Ok(None),
        Some(channel) if !stale(channel.signed, now) => return Ok(Some(channel.document)),
        Some(_) => {}
    }
    let mut session = sky.store.change().await?;
    let Some(before) = session.channel(name).await? else {
        return Ok(None);
    };
    if !stale(before.signed, now) {
        return Ok(Some(before.document));
    }
    let record = sign(
        sky,
        name,
        before.version,
        (before.release, before.revision),
        before.manifest,
        now,
    )?;
    session.save_channel(name, &record).await?;
    session.commit().await?;
    Ok(Some(record.document))
}

/// Returns what a channel offers.
///
/// # Errors
/// Not found.
pub async fn show(sky: &Sky, name: &str) -> Result<Signed<ChannelPointer>, Problem> {
    pointer(sky, name)
        .await?
        .ok_or_else(|| Problem::not_found(format!("channel {name:?}: offers nothing yet")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use model::Signer;

    fn channel(release: &str) -> ChannelRecord {
        let release = release.parse().unwrap();
        let manifest = Digest::of(b"");
        let pointer = ChannelPointer {
            channel: "stable".into(),
            version: 1,
            release,
            revision: 0,
            manifest,
            expires: Timestamp::UNIX_EPOCH,
        };
        ChannelRecord {
            version: 1,
            release,
            revision: 1,
            manifest,
            document: Signer::from_seed(&[1; 32]).sign(&pointer),
            signed: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_older_release_or_revision_is_not_offered() {
        let before = channel("2026.11.2");
        let decide = |release: &str, revision| {
            decide(
                "stable",
                (release.parse().unwrap(), revision),
                Some(&before),
            )
            .map_err(|problem| problem.kind())
        };
        assert_eq!(decide("2026.11.1", 7), Err(Kind::Conflict));
        assert_eq!(decide("2026.11.2", 0), Err(Kind::Conflict));
        assert_eq!(decide("2026.11.2", 1), Ok(()));
        assert_eq!(decide("2026.11.2", 2), Ok(()));
        assert_eq!(decide("2026.11.10", 0), Ok(()));
    }

    #[test]
    fn a_pointer_is_renewed_daily_and_after_a_clock_that_was_wrong() {
        let signed = Timestamp::UNIX_EPOCH;
        let after = |hours| stale(signed, signed + SignedDuration::from_hours(hours));
        assert_eq!([0, 23, 24, 200].map(after), [false, false, true, true]);
        assert!(after(-24) && !after(-1));
    }
}
