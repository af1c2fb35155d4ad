//! Who gets in, and what everybody else is told.

use fleet_api::routes::{CALLS, Who};
use model::api::IncarnationReason;
use reqwest::{Method, StatusCode};

use crate::sky::{Caller, Machine, Sky, UNIT, refusal};

fn path(template: &str) -> String {
    template
        .replace("{c}", "motivatit")
        .replace("{n}", "houma-1")
        .replace("{i}", "1")
        .replace("{id}", "x")
        .replace("{code}", "7QK2-M9XD")
        .replace("{version}", "2026.11.1")
        .replace("{*path}", "manifest.json")
        .replace("{name}", "stable")
}

pub(crate) async fn statuses(
    caller: &Caller,
    allowed: impl Fn(&[Who]) -> bool,
    expected: (u16, &str),
) {
    for call in CALLS {
        if allowed(call.who) {
            continue;
        }
        let mut methods = vec![Method::from_bytes(call.method.as_bytes()).unwrap()];
        if call.method == "GET" {
            methods.push(Method::HEAD);
        }
        for method in methods {
            let path = path(call.path);
            let head = method == Method::HEAD;
            let response = caller.request(method, &path).send().await.unwrap();
            assert_eq!(response.status(), expected.0, "{} {path}", call.method);
            if !head {
                let (_, error) = refusal(response).await;
                assert_eq!(error.code, expected.1, "{} {path}", call.method);
            }
        }
    }
}

#[tokio::test]
async fn no_call_works_without_credentials() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let anyone = |who: &[Who]| who.contains(&Who::Anyone);
    statuses(&sky.anyone(), anyone, (401, "unauthorized")).await;
    let wrong = Caller {
        token: Some("00".repeat(32)),
        ..sky.anyone()
    };
    statuses(&wrong, |_| false, (401, "unauthorized")).await;
    let response = sky.anyone().fetch("/v1/units").await;
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn no_call_works_with_anothers_credentials() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let unit = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    for (caller, who) in [
        (sky.operator(), Who::Operator),
        (sky.factory(), Who::Factory),
        (sky.holder("vault"), Who::Vault),
        (unit, Who::Unit),
    ] {
        let allowed = |list: &[Who]| list.contains(&who) || list.contains(&Who::Anyone);
        statuses(&caller, allowed, (403, "refused")).await;
    }
}

/// A route that is missing in the table would answer 405 or 404 to everybody.
#[tokio::test]
async fn every_call_of_the_table_has_its_route() {
    let sky = Sky::start().await;
    let callers = [sky.operator(), sky.factory(), sky.holder("vault")];
    let words = [Who::Operator, Who::Factory, Who::Vault];
    for call in CALLS {
        let Some(caller) = words
            .iter()
            .position(|who| call.who.contains(who))
            .map(|index| &callers[index])
        else {
            continue;
        };
        let method = Method::from_bytes(call.method.as_bytes()).unwrap();
        let path = path(call.path);
        let response = caller.request(method, &path).send().await.unwrap();
        let status = response.status();
        assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        if status == StatusCode::NOT_FOUND {
            let (_, error) = refusal(response).await;
            assert!(!error.message.contains("no such call"), "{path}: {error}");
        }
    }
}

#[tokio::test]
async fn another_cas_certificate_is_nobody() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    sky.birth(&machine, UNIT, IncarnationReason::Birth).await;
    let now = edge::clock::now();
    let stranger = tls::ca::Authority::generate("LeapServ fleet", now).unwrap();
    let identity = format!("urn:leapserv:{UNIT}:1").parse().unwrap();
    let certificate = stranger
        .device_certificate(&machine.keys.csr, &identity, machine.keys.public_key, now)
        .unwrap();
    let builder = tls::client::builder(&sky.ca()).unwrap();
    let builder = tls::client::with_identity(builder, &certificate, &machine.key).unwrap();
    let caller = Caller {
        client: builder.build().unwrap(),
        ..sky.anyone()
    };
    // Refused in the handshake: not even the health call.
    let answer = caller.request(Method::GET, "/v1/health").send().await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test]
async fn every_refusal_is_an_api_error() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let operator = sky.operator();
    let get = async |path: &str| refusal(operator.fetch(path).await).await;
    let (status, error) = get("/nothing/here").await;
    assert_eq!((status, error.code.as_str()), (404, "not-found"));
    let (status, error) = get("/v1/units/motivatit/none").await;
    assert_eq!((status, error.code.as_str()), (404, "not-found"));
    let (status, error) = get("/v1/units/motivatit/UPPER").await;
    assert_eq!((status, error.code.as_str()), (400, "bad-request"));
    let (status, _) = get("/v1/events?after=minus").await;
    assert_eq!(status, 400);
    let (status, _) = get("/v1/events?aftre=1").await;
    assert_eq!(status, 400);
    let delete = operator.request(Method::DELETE, "/v1/units");
    let (status, error) = refusal(delete.send().await.unwrap()).await;
    assert_eq!((status, error.code.as_str()), (405, "bad-request"));
    let post = |body: Vec<u8>| {
        let request = operator.request(Method::POST, "/v1/customers").body(body);
        async { refusal(request.send().await.unwrap()).await.0 }
    };
    assert_eq!(post(b"{".to_vec()).await, 400);
    assert_eq!(
        post(b"{\"name\":\"A\",\"title\":\"x\"}".to_vec()).await,
        422
    );
    assert_eq!(post(b"{\"nmae\":\"a\"}".to_vec()).await, 422);
    assert_eq!(post(vec![b' '; (1 << 20) + 1]).await, 413);
}
