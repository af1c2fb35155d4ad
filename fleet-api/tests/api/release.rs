//! Files of releases: whole or not at all, in ranges, never changed.

use std::path::Path;

use reqwest::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use reqwest::{Body, Method, StatusCode};

use crate::sky::{Sky, refusal};

const PATH: &str = "/v1/releases/2026.11.1/root.zst";

fn files_below(dir: &Path) -> usize {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}

#[tokio::test]
async fn a_file_is_served_whole_in_ranges_and_by_its_head() {
    let sky = Sky::start().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    sky.upload("2026.11.1", "root.zst", bytes.clone()).await;
    let factory = sky.factory();
    let whole = factory.fetch(PATH).await;
    assert_eq!(whole.headers()[CONTENT_LENGTH], "300000");
    assert_eq!(whole.headers()[ACCEPT_RANGES], "bytes");
    let tag = whole.headers()[ETAG].clone();
    assert_eq!(whole.bytes().await.unwrap(), bytes);

    let head = factory.request(Method::HEAD, PATH).send().await.unwrap();
    assert_eq!(head.headers()[CONTENT_LENGTH], "300000");
    assert!(head.bytes().await.unwrap().is_empty());

    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=262143-262144", 262_143, 262_145),
        ("bytes=299999-", 299_999, 300_000),
        ("bytes=-10", 299_990, 300_000),
        ("bytes=1000-9999999", 1000, 300_000),
    ] {
        let request = factory.request(Method::GET, PATH).header(RANGE, range);
        let part = request.send().await.unwrap();
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        let expected = format!("bytes {from}-{}/300000", to - 1);
        assert_eq!(part.headers()[CONTENT_RANGE], expected.as_str());
        assert_eq!(part.bytes().await.unwrap(), bytes[from..to]);
    }
    // Larger than a body of JSON may be.
    let large = vec![7; 3 << 20];
    sky.upload("2026.11.1", "large", large.clone()).await;
    let found = factory.fetch("/v1/releases/2026.11.1/large").await;
    assert_eq!(found.bytes().await.unwrap(), large);

    let get = || factory.request(Method::GET, PATH);
    let outside = get().header(RANGE, "bytes=300000-").send().await.unwrap();
    assert_eq!(outside.headers()[CONTENT_RANGE], "bytes */300000");
    assert_eq!(refusal(outside).await.0, 416);
    let other = get()
        .header(RANGE, "bytes=0-0")
        .header(IF_RANGE, "\"other\"");
    assert_eq!(other.send().await.unwrap().status(), StatusCode::OK);
    let same = get().header(RANGE, "bytes=0-0").header(IF_RANGE, &tag);
    assert_eq!(
        same.send().await.unwrap().status(),
        StatusCode::PARTIAL_CONTENT
    );
    let known = get().header(IF_NONE_MATCH, &tag).send().await.unwrap();
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn a_torn_upload_leaves_nothing() {
    let sky = Sky::start().await;
    let operator = sky.operator();
    let parts = [
        Ok(vec![1u8; 100_000]),
        Err(std::io::Error::other("power cut")),
    ];
    let body = Body::wrap_stream(futures::stream::iter(parts));
    let torn = operator.request(Method::PUT, PATH).body(body).send().await;
    assert!(torn.is_err(), "the connection broke");
    // The same with a length that was promised and not kept, without TLS's farewell.
    promise_and_break(&sky, 1_000_000).await;
    assert_eq!(operator.fetch(PATH).await.status(), StatusCode::NOT_FOUND);
    wait_until(|| files_below(&sky.place().join("blobs")) == 0).await;
    sky.upload("2026.11.1", "root.zst", vec![1; 1000]).await;
    assert_eq!(
        operator.fetch(PATH).await.bytes().await.unwrap(),
        vec![1; 1000]
    );
}

async fn promise_and_break(sky: &Sky, length: u64) {
    let operator = sky.operator();
    let (send, receive) = futures::channel::mpsc::unbounded::<Result<Vec<u8>, std::io::Error>>();
    send.unbounded_send(Ok(vec![1; 1000])).unwrap();
    let request = operator
        .request(Method::PUT, PATH)
        .header(CONTENT_LENGTH, length)
        .body(Body::wrap_stream(receive));
    let sending = tokio::spawn(request.send());
    let blobs = sky.place().join("blobs");
    wait_until(|| files_below(&blobs) == 1).await;
    sending.abort();
    drop(sending.await);
    drop(operator);
    drop(send);
}

/// Bounded by the runner's own limit.
async fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_file_never_changes_and_paths_stay_inside() {
    let sky = Sky::start().await;
    let operator = sky.operator();
    for _ in 0..2 {
        sky.upload("2026.11.1", "root.zst", b"first".to_vec()).await;
    }
    let other = operator.put_bytes(PATH, b"other".to_vec()).await;
    let (status, error) = refusal(other).await;
    assert_eq!((status, error.code.as_str()), (409, "conflict"));
    let kept = operator.fetch(PATH).await.bytes().await.unwrap();
    assert_eq!(kept, b"first".as_slice());
    for path in ["..%2f..%2fx", "a%2f..%2fb", ".x", "a//b", "a%00b"] {
        let path = format!("/v1/releases/2026.11.1/{path}");
        let response = operator.put_bytes(&path, b"x".to_vec()).await;
        assert_eq!(refusal(response).await.0, 422, "{path}");
    }
    let version = operator
        .put_bytes("/v1/releases/latest/root.zst", b"x".to_vec())
        .await;
    assert_eq!(refusal(version).await.0, 400);
}
