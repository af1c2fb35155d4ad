//! What a channel may offer, and how it stays fresh.

use jiff::{SignedDuration, Timestamp};
use model::api::Offer;
use model::release::{ChannelPointer, ReleaseManifest, manifest_path};
use model::{Digest, Signed};
use reqwest::Method;

use crate::sky::{RELEASE, Sky, release_files, trust_root};

const CHANNEL: &str = "/v1/channels/stable";

fn offer(release: &str) -> Offer {
    Offer {
        release: release.parse().unwrap(),
        revision: 0,
    }
}

async fn pointer(sky: &Sky, now: Timestamp) -> ChannelPointer {
    let signed: Signed<ChannelPointer> = sky.factory().get(CHANNEL).await;
    let trust = trust_root(&sky.place(), &sky.operators, &sky.releases);
    trust.verify(&signed, now).unwrap().into_inner()
}

#[tokio::test]
async fn only_a_whole_and_signed_release_is_offered() {
    let sky = Sky::start().await;
    let operator = sky.operator();
    let refused = async |release: &str| {
        operator
            .refused(Method::PUT, CHANNEL, &offer(release))
            .await
    };
    let (status, error) = refused(RELEASE).await;
    assert_eq!(status, 409, "{error}");
    // The manifest alone, then all but one file.
    let files = release_files(&sky.releases, RELEASE);
    let (missing, others) = files.split_first().unwrap();
    for (path, bytes) in others {
        sky.upload(RELEASE, path, bytes.clone()).await;
    }
    let (status, error) = refused(RELEASE).await;
    assert_eq!(status, 409);
    assert!(error.message.contains("root.zst is missing"), "{error}");
    sky.upload(RELEASE, &missing.0, missing.1.clone()).await;
    sky.offer(RELEASE).await;

    // Right size, other bytes: the segments tell.
    for (path, mut bytes) in release_files(&sky.releases, "2026.11.2") {
        if path == "root.zst" {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        sky.upload("2026.11.2", &path, bytes).await;
    }
    let (status, error) = refused("2026.11.2").await;
    assert_eq!(status, 409);
    assert!(error.message.contains("root.zst: segment 0"), "{error}");

    // Signed by operators, who may not sign code.
    for (path, bytes) in release_files(&sky.operators, "2026.11.3") {
        sky.upload("2026.11.3", &path, bytes).await;
    }
    let (status, error) = refused("2026.11.3").await;
    assert_eq!((status, error.code.as_str()), (403, "refused"));

    // Another release's manifest.
    for (path, bytes) in release_files(&sky.releases, "2026.11.4") {
        sky.upload("2026.11.5", &path, bytes).await;
    }
    assert_eq!(refused("2026.11.5").await.0, 409);
    let now = edge::clock::now();
    assert_eq!(pointer(&sky, now).await.release, RELEASE.parse().unwrap());
}

#[tokio::test]
async fn a_channel_never_goes_back() {
    let sky = Sky::start().await;
    for release in ["2026.11.9", "2026.11.10"] {
        sky.publish(release).await;
        sky.offer(release).await;
    }
    let now = edge::clock::now();
    let newest = pointer(&sky, now).await;
    assert_eq!(newest.version, 2);
    assert!(newest.expires > now + SignedDuration::from_hours(6 * 24));
    let (status, error) = sky
        .operator()
        .refused(Method::PUT, CHANNEL, &offer("2026.11.9"))
        .await;
    assert_eq!((status, error.code.as_str()), (409, "conflict"));
    // Once more the same is no change.
    sky.offer("2026.11.10").await;
    assert_eq!(pointer(&sky, now).await, newest);
}

fn in_two_days() -> Timestamp {
    edge::clock::now() + SignedDuration::from_hours(48)
}

#[tokio::test]
async fn a_pointer_is_signed_anew_when_it_is_read_a_day_later() {
    let mut sky = Sky::start().await;
    sky.publish(RELEASE).await;
    sky.offer(RELEASE).await;
    let first = pointer(&sky, edge::clock::now()).await;
    sky.restart(edge::clock::now).await;
    assert_eq!(pointer(&sky, edge::clock::now()).await, first);
    sky.restart(in_two_days).await;
    let renewed = pointer(&sky, in_two_days()).await;
    assert_eq!(renewed.version, first.version + 1);
    assert_eq!(renewed.release, first.release);
    assert_eq!(renewed.manifest, first.manifest);
    assert!(renewed.expires > first.expires + SignedDuration::from_hours(24));
    assert_eq!(pointer(&sky, in_two_days()).await, renewed);
}

#[tokio::test]
async fn a_revision_is_offered_beside_its_release_and_only_with_the_same_root() {
    let mut sky = Sky::start().await;
    sky.publish(RELEASE).await;
    sky.offer(RELEASE).await;
    let files = release_files(&sky.releases, RELEASE);
    let bytes = |path: &str| files.iter().find(|file| file.0 == path).unwrap().1.clone();
    let first: Signed<ReleaseManifest> = serde_json::from_slice(&bytes("manifest.json")).unwrap();
    let now = edge::clock::now();
    let trust = trust_root(&sky.place(), &sky.operators, &sky.releases);
    let first = trust.verify(&first, now).unwrap().into_inner();
    let image = "components/leap-backup-2.raw";
    let upload = async |sky: &Sky, number: u32, change: &dyn Fn(&mut ReleaseManifest)| {
        let mut manifest = first.clone();
        manifest.revision = number;
        manifest.components[0].image.path = image.to_owned();
        change(&mut manifest);
        let signed = serde_json::to_vec(&sky.releases.sign(&manifest)).unwrap();
        let path = manifest_path(number);
        sky.upload(RELEASE, &path, signed.clone()).await;
        Digest::of(&signed)
    };
    let of = |revision| Offer {
        revision,
        ..offer(RELEASE)
    };
    let refused = async |sky: &Sky, revision, problem: &str| {
        let operator = sky.operator();
        let (status, error) = operator.refused(Method::PUT, CHANNEL, &of(revision)).await;
        assert_eq!(status, 409);
        assert!(error.message.contains(problem), "{error}");
    };
    refused(&sky, 1, "revisions/1/manifest.json is not stored").await;
    upload(&sky, 1, &|manifest| {
        manifest.root_hash = Digest::of(b"other")
    })
    .await;
    refused(&sky, 1, "another root hash").await;
    upload(&sky, 2, &|manifest| manifest.revision = 7).await;
    refused(&sky, 2, "is of revision 7").await;
    let good = upload(&sky, 3, &|_| ()).await;
    refused(&sky, 3, "leap-backup-2.raw is missing").await;
    sky.upload(RELEASE, image, bytes("components/leap-backup.raw"))
        .await;
    let operator = sky.operator();
    let _: serde_json::Value = operator.ok(Method::PUT, CHANNEL, &of(3)).await;
    let offered = pointer(&sky, now).await;
    assert_eq!((offered.revision, offered.manifest), (3, good));
    assert_eq!(offered.version, 2);
    // Down is refused, and a renewal keeps the revision.
    refused(&sky, 0, "is older than").await;
    sky.restart(in_two_days).await;
    let renewed = pointer(&sky, in_two_days()).await;
    assert_eq!((renewed.revision, renewed.manifest), (3, good));
}
