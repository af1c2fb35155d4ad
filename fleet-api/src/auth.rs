//! Who calls, and whether they may.
//!
//! [`crate::routes::CALLS`] says who may call what; a route that does not stand
//! there cannot be called at all. A fenced incarnation gets no further than here.

use std::sync::Arc;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use model::{DeviceIdentity, Digest};
use subtle::ConstantTimeEq as _;
use tls::server::Peer;

use crate::app::{fence, pass};
use crate::error::{Kind, Problem};
use crate::routes::{CALLS, Call, Who};
use crate::sky::Sky;
use crate::store::{Holder, PassRecord, TokenRecord};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// No credentials, on a call that needs none.
    Anyone,
    /// Operations and support.
    Operator,
    /// A provisioner.
    Factory,
    /// An offsite destination.
    Vault,
    /// A unit's current incarnation.
    Unit(DeviceIdentity),
    /// An installer with a unit's pass.
    Installer(PassRecord),
}

impl Caller {
    fn who(&self) -> Who {
        match self {
            Self::Anyone => Who::Anyone,
            Self::Operator => Who::Operator,
            Self::Factory => Who::Factory,
            Self::Vault => Who::Vault,
            Self::Unit(_) => Who::Unit,
            Self::Installer(_) => Who::Installer,
        }
    }

    /// The unit's identity.
    ///
    /// # Errors
    /// Refused: somebody else calls.
    pub fn unit(&self) -> Result<&DeviceIdentity, Problem> {
        match self {
            Self::Unit(identity) => Ok(identity),
            _ => Err(Problem::refused("this call is for units")),
        }
    }
}

/// What a call shows of its caller, before any of it is looked up that may change.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    /// Somebody whom we know from our start on.
    Caller(Caller),
    /// A token that is a pass, or nothing.
    Pass(Digest),
}

/// Finds out who calls.
///
/// A bearer token wins over a certificate; a wrong one is never overlooked.
///
/// # Errors
/// Unauthorized: what stands there is no bearer token.
fn identify(headers: &HeaderMap, peer: &Peer, tokens: &[TokenRecord]) -> Result<Shown, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        let caller = peer.device.clone().map_or(Caller::Anyone, Caller::Unit);
        return Ok(Shown::Caller(caller));
    };
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(unknown)?;
    let hash = Digest::of(token.as_bytes());
    Ok(holder(&hash, tokens).map_or(Shown::Pass(hash), Shown::Caller))
}

fn unknown() -> Problem {
    Problem::new(Kind::Unauthorized, "bearer token: not known here")
}

/// Compares with every token in constant time, whether one was found or not.
fn holder(hash: &Digest, tokens: &[TokenRecord]) -> Option<Caller> {
    tokens
        .iter()
        .fold(None, |found, known| {
            let same = bool::from(known.hash.as_bytes().ct_eq(hash.as_bytes()));
            if same { Some(known.holder) } else { found }
        })
        .map(|holder| match holder {
            Holder::Operator => Caller::Operator,
            Holder::Factory => Caller::Factory,
            Holder::Vault => Caller::Vault,
        })
}

/// Finds the pass of an installer. Who can find its hash by trying knows its code.
async fn installer(sky: &Sky, hash: &Digest) -> Result<Caller, Problem> {
    let found = sky.store.read().await?.pass(hash).await?;
    let found = found.ok_or_else(unknown)?;
    pass::check_time(&found, sky.now())?;
    Ok(Caller::Installer(found))
}

/// Whether `caller` may make `call`.
///
/// # Errors
/// Unauthorized without credentials, refused with others than the call wants.
pub fn permit(call: &Call, caller: &Caller) -> Result<(), Problem> {
    let who = caller.who();
    if call.who.contains(&who) || call.who.contains(&Who::Anyone) {
        return Ok(());
    }
    if who == Who::Anyone {
        return Err(
            Problem::new(Kind::Unauthorized, "this call needs credentials")
                .hint("send `Authorization: Bearer TOKEN`, or call with a device certificate"),
        );
    }
    let names: Vec<_> = call.who.iter().map(|who| who.word()).collect();
    Err(Problem::refused(format!(
        "{} {}: for {} only, not for {}",
        call.method,
        call.path,
        names.join(", "),
        who.word()
    )))
}

/// Lets a call through to its route, with the [`Caller`] beside it.
pub(crate) async fn guard(
    State(sky): State<Arc<Sky>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    matched: MatchedPath,
    mut request: Request,
    next: Next,
) -> Response {
    let shown = identify(request.headers(), &peer, &sky.tokens);
    let caller = match shown {
        Ok(Shown::Caller(caller)) => Ok(caller),
        Ok(Shown::Pass(hash)) => installer(&sky, &hash).await,
        Err(problem) => Err(problem),
    };
    let admitted = caller.and_then(|caller| admit(caller, matched.as_str(), request.method()));
    let checked = match admitted {
        Ok((Caller::Unit(identity), call)) => {
            let address = peer.address.ip().to_string();
            fence::check(&sky, &identity, call.place, &address)
                .await
                .map(|()| Caller::Unit(identity))
        }
        Ok((caller, _)) => Ok(caller),
        Err(problem) => Err(problem),
    };
    match checked {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

fn admit(caller: Caller, path: &str, method: &Method) -> Result<(Caller, &'static Call), Problem> {
    let method = match *method {
        Method::HEAD => "GET",
        ref method => method.as_str(),
    };
    let call = CALLS
        .iter()
        .find(|call| call.path == path && call.method == method)
        .ok_or_else(|| Problem::new(Kind::Method, format!("{method} {path}: no such method")))?;
    permit(call, &caller)?;
    Ok((caller, call))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(device: Option<&str>) -> Peer {
        Peer {
            address: "10.0.0.9:5000".parse().unwrap(),
            device: device.map(|text| text.parse().unwrap()),
            certificate: None,
        }
    }

    fn tokens() -> Vec<TokenRecord> {
        [("o", Holder::Operator), ("v", Holder::Vault)]
            .map(|(token, holder)| TokenRecord {
                hash: Digest::of(token.as_bytes()),
                holder,
            })
            .to_vec()
    }

    fn with_token(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    const UNIT: &str = "urn:leapserv:motivatit/houma-1:1";

    #[test]
    fn a_wrong_token_is_not_saved_by_a_certificate() {
        let peer = peer(Some(UNIT));
        let identify = |headers| identify(&headers, &peer, &tokens());
        let known = |caller| Ok(Shown::Caller(caller));
        let unit = identify(HeaderMap::new());
        assert!(matches!(unit, Ok(Shown::Caller(Caller::Unit(_)))));
        for (value, caller) in [("Bearer o", Caller::Operator), ("bearer v", Caller::Vault)] {
            assert_eq!(identify(with_token(value)).map_err(|_| ()), known(caller));
        }
        // Not a token of ours, so at best the code of a pass.
        for other in ["Bearer x", "Bearer "] {
            let shown = identify(with_token(other));
            assert!(matches!(shown, Ok(Shown::Pass(_))), "{other:?}");
        }
        for bad in ["Bearer", "Basic o", "o"] {
            let problem = identify(with_token(bad)).unwrap_err();
            assert_eq!(problem.kind(), Kind::Unauthorized, "{bad}");
        }
    }

    #[test]
    fn nobody_may_call_what_is_not_for_them() {
        let unit = Caller::Unit(UNIT.parse().unwrap());
        let pass = PassRecord {
            unit: "motivatit/houma-1".parse().unwrap(),
            expires: jiff::Timestamp::UNIX_EPOCH,
            created: jiff::Timestamp::UNIX_EPOCH,
            used_by: None,
        };
        let callers = [
            Caller::Operator,
            Caller::Factory,
            Caller::Vault,
            unit,
            Caller::Installer(pass),
        ];
        for call in CALLS {
            for caller in &callers {
                let listed = call.who.contains(&caller.who()) || call.who.contains(&Who::Anyone);
                let answer = permit(call, caller).map_err(|problem| problem.kind());
                let expected = if listed { Ok(()) } else { Err(Kind::Refused) };
                assert_eq!(answer, expected, "{} {}", call.method, call.path);
            }
        }
    }
}
