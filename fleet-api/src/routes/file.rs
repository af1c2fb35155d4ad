//! Answering with a file: whole, or a range of it.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use tokio_util::io::ReaderStream;

use crate::app::range::{Part, part};
use crate::blobs::Stored;
use crate::error::{Kind, Problem};
use crate::sky::Sky;

/// Bytes read at a time.
const READ_BUFFER: usize = 128 << 10;

/// Answers with `file`, as the call's headers ask for.
pub(super) async fn answer(
    sky: &Sky,
    file: &Stored,
    headers: &HeaderMap,
) -> Result<Response<Body>, Problem> {
    let tag = format!("\"{}\"", file.sha256);
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if header(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|t| t.trim() == tag)) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        set(response.headers_mut(), header::ETAG, &tag);
        return Ok(response);
    }
    // A range of another version of the file would be a mixture.
    let same = header(header::IF_RANGE).is_none_or(|wanted| wanted == tag);
    let wanted = header(header::RANGE).filter(|_| same);
    let (status, offset, length) = match wanted.map_or(Part::Whole, |range| part(range, file.size))
    {
        Part::Whole => (StatusCode::OK, 0, file.size),
        Part::Range { offset, length } => (StatusCode::PARTIAL_CONTENT, offset, length),
        Part::Outside => return Ok(outside(file)),
    };
    let reader = sky
        .blobs
        .read_range(file, offset, length)
        .await
        .map_err(Problem::internal)?;
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(
        reader,
        READ_BUFFER,
    )));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    set(headers, header::ETAG, &tag);
    set(headers, header::CONTENT_LENGTH, &length.to_string());
    set(headers, header::ACCEPT_RANGES, "bytes");
    set(headers, header::CONTENT_TYPE, "application/octet-stream");
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {offset}-{}/{}", offset + length - 1, file.size);
        set(headers, header::CONTENT_RANGE, &range);
    }
    Ok(response)
}

/// 416, with the size that a range must keep to.
fn outside(file: &Stored) -> Response<Body> {
    let message = format!("range: outside of the file's {} bytes", file.size);
    let mut response = Problem::new(Kind::Range, message).into_response();
    let size = format!("bytes */{}", file.size);
    set(response.headers_mut(), header::CONTENT_RANGE, &size);
    response
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("digits and ASCII words make a header");
    headers.insert(name, value);
}
