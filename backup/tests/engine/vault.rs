//! The vault against clients that do what they should not.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::routing::{get, post};
use backup::vault::config::Sky;
use futures::StreamExt;
use model::api::{FenceAttempt, Fences};
use model::{DeviceIdentity, Digest};
use reqwest::{Client, StatusCode};
use tls::server::{ClientAuth, Identity, Listener, Peer};

use crate::lab::{Lab, UNIT, Vault, noise, wait_for};

fn name(content: &[u8]) -> String {
    Digest::of(content).to_string()
}

fn url(vault: &Vault, unit: &str, path: &str) -> String {
    format!("{}/{unit}/{path}", vault.url)
}

async fn put(client: &Client, url: &str, content: &[u8]) -> StatusCode {
    let sent = client.post(url).body(content.to_vec()).send().await;
    sent.unwrap().status()
}

/// All files of the unit and of unfinished uploads.
fn files(vault: &Vault) -> Vec<String> {
    fn walk(folder: &std::path::Path, into: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else {
                into.push(path.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(&vault.data.join("units"), &mut found);
    walk(&vault.data.join("incoming"), &mut found);
    found
}

#[test]
fn only_what_is_named_by_its_hash_is_taken_and_nothing_is_lost_again() {
    let lab = Lab::new();
    let vault = lab.vault("north");
    let client = lab.client(UNIT, 1);
    lab.block_on(async {
        let content = noise(1, 300_000);
        let pack = url(&vault, UNIT, &format!("data/{}", name(&content)));
        let wrong = url(&vault, UNIT, &format!("data/{}", name(b"else")));
        assert_eq!(put(&client, &wrong, &content).await, 400);
        assert!(files(&vault).is_empty());

        assert_eq!(put(&client, &pack, &content).await, 200);
        // Again, the same: nothing changes. Another content: refused.
        assert_eq!(put(&client, &pack, &content).await, 200);
        assert_eq!(put(&client, &pack, b"other").await, 400);
        let config = url(&vault, UNIT, "config");
        assert_eq!(put(&client, &config, b"one").await, 200);
        assert_eq!(put(&client, &config, b"one").await, 200);
        assert_eq!(put(&client, &config, b"two").await, 403);
        let read = client.get(&config).send().await.unwrap();
        assert_eq!(read.bytes().await.unwrap(), "one");

        for victim in [&pack, &config, &url(&vault, UNIT, "")] {
            let status = client.delete(victim).send().await.unwrap().status();
            assert_eq!(status, 403, "{victim}");
        }
        let read = client
            .get(&pack)
            .header("range", "bytes=100-199")
            .send()
            .await;
        let read = read.unwrap();
        assert_eq!(read.status(), 206);
        assert_eq!(read.bytes().await.unwrap(), content[100..200]);
        let head = client.head(&pack).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], "300000");

        for bad in [
            "data/../config",
            "data/xyz",
            "data/",
            "etc/passwd",
            "locks/1",
        ] {
            let status = put(&client, &url(&vault, UNIT, bad), b"x").await;
            assert!(status.is_client_error(), "{bad}: {status}");
        }
        let huge = client.post(&wrong).header("content-length", 1_u64 << 40);
        let huge = huge.body(reqwest::Body::wrap_stream(futures::stream::pending::<
            Result<Vec<u8>, std::io::Error>,
        >()));
        assert_eq!(huge.send().await.unwrap().status(), 413);
    });
    assert_eq!(files(&vault).len(), 2);
}

#[test]
fn torn_upload_leaves_nothing() {
    let lab = Lab::new();
    let vault = lab.vault("north");
    let client = lab.client(UNIT, 1);
    let content = noise(2, 2_000_000);
    let target = url(&vault, UNIT, &format!("data/{}", name(&content)));
    lab.block_on(async {
        let half = bytes::Bytes::from(content[..1_000_000].to_vec());
        let body = futures::stream::iter([Ok(half)]).chain(futures::stream::once(async {
            Err(std::io::Error::other("power cut"))
        }));
        let sent = client
            .post(&target)
            .header("content-length", content.len())
            .body(reqwest::Body::wrap_stream(body))
            .send()
            .await;
        assert!(sent.is_err());
    });
    wait_for("the upload to be dropped", || files(&vault).is_empty());
    lab.block_on(async {
        assert_eq!(put(&client, &target, &content).await, 200);
    });
}

#[test]
fn certificate_opens_one_place_and_no_other() {
    let lab = Lab::new();
    let vault = lab.vault("north");
    let ours = lab.client(UNIT, 1);
    let theirs = lab.client("pelican/larose-2", 1);
    lab.block_on(async {
        let snapshot = format!("snapshots/{}", name(b"s"));
        assert_eq!(put(&ours, &url(&vault, UNIT, &snapshot), b"s").await, 200);
        for path in [&snapshot, "snapshots/", "config"] {
            let read = theirs.get(url(&vault, UNIT, path)).send().await.unwrap();
            assert_eq!(read.status(), 403, "{path}");
        }
        assert_eq!(put(&theirs, &url(&vault, UNIT, &snapshot), b"s").await, 403);
        let trick = format!("{}/pelican/larose-2/../../{UNIT}/{snapshot}", vault.url);
        let read = theirs.get(trick).send().await.unwrap();
        assert!(read.status().is_client_error());
    });
    let stranger = tls::client::builder(lab.ca.certificate())
        .unwrap()
        .build()
        .unwrap();
    let refused = lab.block_on(stranger.get(url(&vault, UNIT, "config")).send());
    assert!(refused.is_err(), "no certificate, no connection");
}

#[test]
fn quota_is_kept() {
    let lab = Lab::new();
    let vault = lab.vault_with("north", Some(1_000_000), None);
    let client = lab.client(UNIT, 1);
    lab.block_on(async {
        let (first, second) = (noise(1, 700_000), noise(2, 700_000));
        let path = |content: &[u8]| url(&vault, UNIT, &format!("data/{}", name(content)));
        assert_eq!(put(&client, &path(&first), &first).await, 200);
        assert_eq!(put(&client, &path(&second), &second).await, 507);
        assert_eq!(put(&client, &path(&first), &first).await, 200);
    });
    assert_eq!(files(&vault).len(), 1);
}

/// What a sky says and hears, behind real TLS.
#[derive(Default)]
struct Heard {
    fences: Fences,
    attempts: Vec<FenceAttempt>,
}

fn sky(lab: &Lab) -> (Sky, Arc<Mutex<Heard>>) {
    let heard = Arc::<Mutex<Heard>>::default();
    let (say, hear) = (Arc::clone(&heard), Arc::clone(&heard));
    let router = axum::Router::new()
        .route(
            "/v1/fences",
            get(move || async move { Json(say.lock().unwrap().fences.clone()) }),
        )
        .route(
            "/v1/fences/attempts",
            post(move |Json(attempt): Json<FenceAttempt>| async move {
                hear.lock().unwrap().attempts.push(attempt);
                Json(model::api::Accepted {})
            }),
        );
    let (certificate, key) = lab
        .ca
        .server_certificate(&["127.0.0.1".to_owned()], edge::clock::now())
        .unwrap();
    let url = lab.block_on(async {
        let identity = Identity::from_pem(&certificate, &key).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(address, identity, ClientAuth::None)
            .await
            .unwrap();
        let url = format!("https://{}", listener.address());
        let service = router.into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        url
    });
    let client = tls::client::builder(lab.ca.certificate())
        .unwrap()
        .build()
        .unwrap();
    let sky = Sky {
        url,
        client,
        token: "token".to_owned().into(),
        poll: Duration::from_millis(50),
    };
    (sky, heard)
}

#[test]
fn fence_of_the_sky_shuts_the_old_incarnation_out_and_is_reported() {
    let lab = Lab::new();
    let (sky, heard) = sky(&lab);
    let vault = lab.vault_with("north", None, Some(sky));
    let (old, new) = (lab.client(UNIT, 1), lab.client(UNIT, 2));
    let path = |content: &[u8]| url(&vault, UNIT, &format!("keys/{}", name(content)));
    lab.block_on(async {
        assert_eq!(put(&old, &path(b"before"), b"before").await, 200);
    });

    // The newcomer has not called yet: the sky's word alone shuts the door.
    let current: DeviceIdentity = format!("urn:leapserv:{UNIT}:2").parse().unwrap();
    heard.lock().unwrap().fences.units = vec![current];
    let target = path(b"after");
    wait_for("the fence", || {
        lab.block_on(async { put(&old, &target, b"after").await == 403 })
    });
    lab.block_on(async {
        let listing = url(&vault, UNIT, "keys/");
        assert_eq!(old.get(&listing).send().await.unwrap().status(), 403);
        assert_eq!(new.get(&listing).send().await.unwrap().status(), 200);
    });
    wait_for("the report", || !heard.lock().unwrap().attempts.is_empty());
    let attempt = heard.lock().unwrap().attempts[0].clone();
    assert_eq!(
        attempt.identity.to_string(),
        format!("urn:leapserv:{UNIT}:1")
    );
    assert_eq!(attempt.place, "vault north");
    assert_eq!(attempt.address, "127.0.0.1");

    // A vault that starts anew and reaches no sky remembers it.
    vault.stop();
    let again = lab.vault("north");
    lab.block_on(async {
        let listing = url(&again, UNIT, "keys/");
        assert_eq!(old.get(&listing).send().await.unwrap().status(), 403);
    });
}
