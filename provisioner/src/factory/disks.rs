//! Customers' disks of the channel's release, composed when they are asked for.
//!
//! `GET` and `HEAD` of `/disk/CUSTOMER.raw` and `/disk/CUSTOMER/UNIT.raw`, with
//! ranges: for who puts a unit into a hypervisor instead of onto the bench. Such
//! a disk has no identity yet and holds no secret, no more than the release and
//! the layer do that this factory serves anyway.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use edge::runner::Tool;
use futures::stream;
use jiff::Timestamp;
use model::{ReleaseVersion, Verified};
use slots::extents::Map;
use slots::http::{Answer, Conditions, DiskPath, etag};
use slots::stock::{Places, Stock, StockError, StoredLayer, USUAL_SIZE};
use tokio::sync::Mutex;

use super::cache::{Cache, FetchError};

/// Bytes that are read from disk at once.
const PIECE: u64 = 1 << 20;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The channel has offered nothing yet.
    #[error("no release is here yet")]
    NoRelease,
    /// A part of it is not to be had.
    #[error("disk: a part is not here")]
    Fetch(#[source] FetchError),
    /// The parts make no disk.
    #[error("disk: not composed")]
    Compose(#[source] StockError),
}

/// The release that disks are composed of, laid ready once it is asked for.
#[derive(Debug, Default)]
pub struct DiskShelf(Mutex<Option<(ReleaseVersion, Arc<Stock>)>>);

impl DiskShelf {
    /// Composes a disk.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn disk(
        &self,
        cache: &Cache,
        path: &DiskPath,
        now: Timestamp,
    ) -> Result<Arc<Map>, DiskError> {
        let current = cache.current().ok_or(DiskError::NoRelease)?;
        let stock = self.stock(cache, current.version, now).await?;
        let (bytes, image) = cache
            .layer(&path.customer, now)
            .await
            .map_err(DiskError::Fetch)?;
        let document = cache.believe_layer(&path.customer, &bytes, now);
        let document: Verified<_> = document.map_err(DiskError::Fetch)?;
        let unit = path.unit.clone();
        beside(move || {
            let layer = StoredLayer::open(document, bytes.to_vec(), &image)?;
            stock.disk(&layer, unit.as_ref()).map(Arc::new)
        })
        .await
        .map_err(DiskError::Compose)
    }

    async fn stock(
        &self,
        cache: &Cache,
        version: ReleaseVersion,
        now: Timestamp,
    ) -> Result<Arc<Stock>, DiskError> {
        // Held meanwhile: a release is laid ready once, and who asks too waits for it.
        let mut ready = self.0.lock().await;
        if let Some((of, stock)) = &*ready
            && *of == version
        {
            return Ok(Arc::clone(stock));
        }
        cache
            .prefetch(version, now)
            .await
            .map_err(DiskError::Fetch)?;
        let manifest = cache
            .manifest(version, now)
            .await
            .map_err(DiskError::Fetch)?;
        let path = cache.file(version, "manifest.json", now).await;
        let path = path.map_err(DiskError::Fetch)?;
        let kept = cache.disks();
        let stock = beside(move || {
            let bytes = std::fs::read(&path).map_err(|source| StockError::Io {
                path: path.clone(),
                what: "read",
                source,
            })?;
            let places = Places {
                release: path.parent().expect("a manifest lies in a folder"),
                kept: &kept,
                mke2fs: &|| Ok(Tool::new("mke2fs")),
                maker: "host",
                time: 0,
            };
            let manifest = Verified::clone(&manifest);
            Stock::open(manifest, bytes, USUAL_SIZE, &places, &mut |_, _, _| {})
        })
        .await
        .map_err(DiskError::Compose)?;
        let stock = Arc::new(stock);
        *ready = Some((version, Arc::clone(&stock)));
        tracing::info!(release = %version, "disks can be composed");
        Ok(stock)
    }
}

/// Runs what waits for the disk beside the event loop.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("composing does not panic")
}

/// Answers a request for a disk.
#[must_use]
pub fn respond(disk: Arc<Map>, headers: &HeaderMap) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let conditions = Conditions {
        range: text(header::RANGE),
        if_range: text(header::IF_RANGE),
        if_none_match: text(header::IF_NONE_MATCH),
    };
    let tag = etag(&disk.id());
    let size = disk.size();
    let answer = Answer::decide(conditions, &tag, size);
    let status = StatusCode::from_u16(answer.status()).expect("a status is a status");
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers(&tag, size) {
        response = response.header(name, value);
    }
    response
        .body(body(disk, answer.body(size)))
        .expect("numbers and digests make valid headers")
}

/// A body that reads as the connection takes it.
fn body(disk: Arc<Map>, range: Range<u64>) -> Body {
    Body::from_stream(stream::unfold((disk, range), |(disk, range)| async move {
        if range.is_empty() {
            return None;
        }
        let end = range.end.min((range.start / PIECE + 1) * PIECE);
        let source = Arc::clone(&disk);
        let piece = beside(move || -> std::io::Result<Bytes> {
            let length = usize::try_from(end - range.start).expect("at most a piece");
            let mut bytes = vec![0; length];
            source.read_at(range.start, &mut bytes)?;
            Ok(bytes.into())
        });
        let piece = piece.await;
        if let Err(problem) = &piece {
            tracing::error!(%problem, "disk not read");
        }
        Some((piece, (disk, end..range.end)))
    }))
}
