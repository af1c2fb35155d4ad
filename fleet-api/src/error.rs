//! What a call answers when it does not do what was asked.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::TrustError;
use model::api::ApiError;

use crate::store::StoreError;

/// What kind of problem; each has one status and one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The call's body, path or query does not fit.
    BadRequest,
    /// Readable, but a value in it is wrong.
    Invalid,
    /// More bytes than the call may have.
    TooLarge,
    /// No such method on this path.
    Method,
    /// A range outside of the file.
    Range,
    /// No credentials, or unknown ones.
    Unauthorized,
    /// Known, but not allowed; or a signature that does not count.
    Refused,
    /// A fenced incarnation.
    Fenced,
    /// No such thing.
    NotFound,
    /// The thing stands otherwise than the call assumes.
    Conflict,
    /// Too much of it at once.
    Busy,
    /// Our fault; the cause is in the log only.
    Internal,
}

impl Kind {
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Range => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Refused | Self::Fenced => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable word, [`ApiError::code`].
    pub fn code(self) -> &'static str {
        match self {
            Self::BadRequest | Self::Invalid | Self::TooLarge | Self::Method | Self::Range => {
                "bad-request"
            }
            Self::Unauthorized => "unauthorized",
            Self::Refused => "refused",
            Self::Fenced => "fenced",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Busy => "busy",
            Self::Internal => "internal",
        }
    }
}

/// The one error of the crate's calls.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    kind: Kind,
    message: String,
    hint: Option<String>,
    #[source]
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(Kind::$kind, message)
        })*
    };
}

impl Problem {
    /// A problem of any kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            cause: None,
        }
    }

    constructors! {
        /// 400: the call does not fit.
        bad_request => BadRequest;
        /// 422: a value is wrong.
        invalid => Invalid;
        /// 403: not allowed, or a signature that does not count.
        refused => Refused;
        /// 404: no such thing.
        not_found => NotFound;
        /// 409: the thing stands otherwise.
        conflict => Conflict;
    }

    /// 500: the cause goes to the log, and the caller gets the request's id.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            kind: Kind::Internal,
            message: "the sky could not do this".into(),
            hint: None,
            cause: Some(cause.into()),
        }
    }

    /// Adds what the caller can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What kind of problem it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Renders all causes in one line, for the log.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge(number) => {
                Self::invalid(format!("number {number}: expected less than 2^63"))
            }
            other => Self::internal(other),
        }
    }
}

impl From<TrustError> for Problem {
    /// A document that is not believed is refused; one that is no document is invalid.
    fn from(error: TrustError) -> Self {
        let kind = match error {
            TrustError::Threshold { .. } | TrustError::Expired { .. } => Kind::Refused,
            _ => Kind::Invalid,
        };
        Self::new(kind, error.to_string())
    }
}

/// The answer with its error still open, until the request's id is known.
#[derive(Debug, Clone)]
pub(crate) struct OpenError {
    pub(crate) error: ApiError,
    /// For the log; more than the caller is told.
    pub(crate) chain: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(OpenError {
            chain: self.chain(),
            error: ApiError {
                code: self.kind.code().to_owned(),
                message: self.message,
                hint: self.hint,
                request: None,
            },
        });
        response
    }
}

/// Writes the error's body with the request's id. Answers without an error pass unchanged.
pub(crate) fn close(response: Response, request: &str) -> Response {
    let status = response.status();
    let open = response.extensions().get::<OpenError>().cloned();
    let open = match open {
        Some(open) => open,
        // Not one of ours: axum's own refusal of a broken request.
        None if status.is_client_error() || status.is_server_error() => {
            let message = status
                .canonical_reason()
                .unwrap_or("bad request")
                .to_lowercase();
            OpenError {
                chain: message.clone(),
                error: ApiError {
                    code: Kind::BadRequest.code().to_owned(),
                    message,
                    hint: None,
                    request: None,
                },
            }
        }
        None => return response,
    };
    if status.is_server_error() {
        tracing::error!(request, problem = open.chain, "call failed");
    } else {
        tracing::info!(
            request,
            status = status.as_u16(),
            problem = open.chain,
            "call refused"
        );
    }
    let error = ApiError {
        request: Some(request.to_owned()),
        ..open.error
    };
    let body = serde_json::to_vec(&error).expect("an ApiError is plain JSON");
    let (mut parts, _) = response.into_parts();
    let headers = &mut parts.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Response::from_parts(parts, Body::from(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_status_and_word() {
        let table = [
            (Kind::BadRequest, 400, "bad-request"),
            (Kind::Invalid, 422, "bad-request"),
            (Kind::TooLarge, 413, "bad-request"),
            (Kind::Method, 405, "bad-request"),
            (Kind::Range, 416, "bad-request"),
            (Kind::Unauthorized, 401, "unauthorized"),
            (Kind::Refused, 403, "refused"),
            (Kind::Fenced, 403, "fenced"),
            (Kind::NotFound, 404, "not-found"),
            (Kind::Conflict, 409, "conflict"),
            (Kind::Internal, 500, "internal"),
        ];
        for (kind, status, code) in table {
            assert_eq!((kind.status().as_u16(), kind.code()), (status, code));
        }
    }

    #[test]
    fn an_internal_cause_is_for_the_log_only() {
        let problem = Problem::internal(std::io::Error::other("disk on fire"));
        assert!(problem.chain().ends_with("disk on fire"));
        assert!(!problem.to_string().contains("fire"));
    }
}
