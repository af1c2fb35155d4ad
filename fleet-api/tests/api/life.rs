//! Configuration, commands, escrow and tenants.

use std::time::Duration;

use model::api::{CheckIn, CommandView, Event, IncarnationReason};
use model::command::{Action, CommandOutcome, CommandReport, UnitCommand};
use model::configuration::Configuration;
use model::release::{Artifact, CustomerLayer};
use model::secrets::SealedSecrets;
use model::{Digest, Signed};
use reqwest::{Method, StatusCode};

use crate::sky::{Caller, Machine, Sky, UNIT, refusal, said, seal};

#[tokio::test]
async fn configurations_come_signed_in_order_and_for_their_unit() {
    let sky = Sky::start().await;
    sky.add_unit(UNIT).await;
    sky.add_unit("motivatit/houma-2").await;
    let operator = sky.operator();
    let path = format!("/v1/units/{UNIT}/configuration");
    let refused = async |document: &Signed<Configuration>| {
        operator.refused(Method::PUT, &path, document).await
    };
    let (status, error) = refused(&sky.configuration(UNIT, 3)).await;
    assert_eq!((status, error.code.as_str()), (409, "conflict"));
    assert!(
        error.message.contains("generation 3 where 2 is next"),
        "{error}"
    );
    let (status, _) = refused(&sky.configuration("motivatit/houma-2", 2)).await;
    assert_eq!(status, 409);
    let mut forger = sky.configuration(UNIT, 2);
    let text = serde_json::to_string(&forger).unwrap();
    forger = serde_json::from_str(&text.replace("\"sig\":\"", "\"sig\":\"AAAA")).unwrap();
    let (status, error) = refused(&forger).await;
    assert_eq!((status, error.code.as_str()), (403, "refused"));
    let (status, error) = {
        let ticket = sky.ticket(&Machine::new("S1"), UNIT, model::Incarnation(1));
        let document = sky.operators.sign(&ticket);
        operator.refused(Method::PUT, &path, &document).await
    };
    assert_eq!((status, error.code.as_str()), (422, "bad-request"));
    // Once more is the same; the next is next.
    for generation in [1, 2, 2] {
        let document = sky.configuration(UNIT, generation);
        operator
            .ok::<serde_json::Value>(Method::PUT, &path, &document)
            .await;
    }
    let newest: Signed<Configuration> = operator.get(&path).await;
    assert_eq!(newest, sky.configuration(UNIT, 2));
    assert_eq!(sky.unit(UNIT).await.configuration_generation, 2);
    let other = sky.unit("motivatit/houma-2").await;
    assert_eq!(other.configuration_generation, 1);
}

fn command(id: &str, unit: &str) -> UnitCommand {
    let now = edge::clock::now();
    UnitCommand {
        id: id.repeat(16),
        unit: unit.parse().unwrap(),
        action: Action::BackUp { source: None },
        issued: now,
        expires: now + jiff::SignedDuration::from_hours(1),
    }
}

#[tokio::test]
async fn a_command_reaches_its_unit_once_and_its_report_wakes_the_operator() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let unit = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    let operator = sky.operator();
    let path = format!("/v1/units/{UNIT}/commands");
    let signed = sky.operators.sign(&command("0a", UNIT));
    for _ in 0..2 {
        operator
            .ok::<serde_json::Value>(Method::POST, &path, &signed)
            .await;
    }
    let foreign = sky.operators.sign(&command("0b", "motivatit/houma-2"));
    assert_eq!(operator.refused(Method::POST, &path, &foreign).await.0, 409);
    let forged = sky.releases.sign(&command("0c", UNIT));
    assert_eq!(operator.refused(Method::POST, &path, &forged).await.0, 403);

    let id = "0a".repeat(16);
    let shown = format!("{path}/{id}");
    let view: CommandView = operator.get(&shown).await;
    assert_eq!((view.delivered, view.report), (None, None));
    assert_eq!(unit.check_in(&said(true)).await.commands, [signed]);
    let view: CommandView = operator.get(&shown).await;
    assert!(view.delivered.is_some());

    let waiting = tokio::spawn({
        let (operator, shown) = (operator.clone(), format!("{shown}?wait=60"));
        async move { operator.get::<CommandView>(&shown).await }
    });
    let report = CommandReport {
        id: id.clone(),
        outcome: CommandOutcome::Done,
        message: "backed up".into(),
        detail: serde_json::json!({"files": 3}),
    };
    let reporting = CheckIn {
        reports: vec![report.clone()],
        ..said(true)
    };
    // Told again because the answer was lost: confirmed again, and not given again.
    for _ in 0..2 {
        let reply = unit.check_in(&reporting).await;
        assert_eq!(reply.reports_stored, std::slice::from_ref(&id));
        assert!(reply.commands.is_empty());
    }
    assert_eq!(waiting.await.unwrap().report, Some(report));
    let (status, _) = refusal(operator.fetch(&format!("{path}/{}", "0f".repeat(16))).await).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn an_escrow_is_ciphertext_and_only_moves_on() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let unit = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    let with = |version, age: &str| CheckIn {
        escrow: Some(SealedSecrets {
            version,
            age: age.to_owned(),
        }),
        ..said(true)
    };
    let clear = with(1, r#"{"repository_password":"hurricane"}"#);
    let (status, error) = unit.refused(Method::POST, "/v1/checkin", &clear).await;
    assert_eq!((status, error.code.as_str()), (422, "bad-request"));
    let newest = seal("two");
    assert_eq!(
        unit.check_in(&with(2, &newest)).await.escrow_version,
        Some(2)
    );
    // An older one is refused, and the same version never replaces what is stored.
    for version in [1, 2] {
        let reply = unit.check_in(&with(version, &seal("other"))).await;
        assert_eq!(reply.escrow_version, Some(2));
    }
    let stored: SealedSecrets = sky
        .operator()
        .get(&format!("/v1/units/{UNIT}/escrow"))
        .await;
    assert_eq!(stored.age, newest);
    for entry in std::fs::read_dir(sky.place()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(9).any(|window| window == b"hurricane");
            assert!(!found, "{} holds a secret in the clear", path.display());
        }
    }
}

async fn publish_layer(sky: &Sky, customer: &str, version: u64, image: &[u8]) {
    let layer = CustomerLayer {
        customer: customer.parse().unwrap(),
        version,
        components: None,
        image: Artifact {
            path: "layer.raw".into(),
            size: image.len() as u64,
            sha256: Digest::of(image),
        },
    };
    let path = format!("/v1/customers/{customer}/layer");
    let signed = sky.operators.sign(&layer);
    sky.operator()
        .ok::<serde_json::Value>(Method::PUT, &path, &signed)
        .await;
}

async fn upload_layer(sky: &Sky, customer: &str, image: &[u8]) {
    let path = format!("/v1/customers/{customer}/layer.raw");
    let response = sky.operator().put_bytes(&path, image.to_vec()).await;
    assert_eq!(response.status(), StatusCode::OK);
}

async fn image(caller: &Caller) -> Vec<u8> {
    let response = caller.fetch("/v1/customers/motivatit/layer.raw").await;
    assert_eq!(response.status(), StatusCode::OK);
    response.bytes().await.unwrap().to_vec()
}

#[tokio::test]
async fn a_layer_is_served_whole_and_to_its_own_customer_only() {
    let sky = Sky::start().await;
    sky.prepare().await;
    sky.add_unit("other/unit").await;
    let own = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    let foreign = sky
        .birth(&Machine::new("S2"), "other/unit", IncarnationReason::Birth)
        .await;
    let document = "/v1/customers/motivatit/layer.json";
    assert_eq!(own.fetch(document).await.status(), StatusCode::NOT_FOUND);
    upload_layer(&sky, "motivatit", b"first").await;
    publish_layer(&sky, "motivatit", 1, b"first").await;
    assert_eq!(image(&own).await, b"first");
    // The document is there and its image is not: the old pair goes on.
    publish_layer(&sky, "motivatit", 2, b"second").await;
    assert_eq!(image(&own).await, b"first");
    upload_layer(&sky, "motivatit", b"second").await;
    assert_eq!(image(&own).await, b"second");
    assert_eq!(image(&sky.factory()).await, b"second");
    for path in [document, "/v1/customers/motivatit/layer.raw"] {
        let (status, error) = refusal(foreign.fetch(path).await).await;
        assert_eq!((status, error.code.as_str()), (403, "refused"));
    }
    let (status, _) = refusal(own.fetch("/v1/channels/beta").await).await;
    assert_eq!(status, 403, "a unit follows its own channel");
}

#[tokio::test]
async fn events_wake_who_waits_and_stopping_ends_all_waiting() {
    let mut sky = Sky::start().await;
    let operator = sky.operator();
    let wait = |after: u64| {
        let (operator, path) = (
            operator.clone(),
            format!("/v1/events?after={after}&wait=60"),
        );
        tokio::spawn(async move { operator.get::<Vec<Event>>(&path).await })
    };
    let first = wait(0);
    sky.add_unit(UNIT).await;
    let events = first.await.unwrap();
    assert_eq!(events[0].kind, "customer");
    let last = sky.events().await.last().unwrap().number;
    let waiting = wait(last);
    // The request must have come in before the end is near.
    let health: serde_json::Value = sky.anyone().get("/v1/health").await;
    assert_eq!(health, serde_json::json!({"ok": true}));
    let ended = tokio::time::timeout(Duration::from_secs(9), async {
        sky.restart(edge::clock::now).await;
        waiting.await
    });
    drop(ended.await.expect("a waiting call held up the end"));
}
