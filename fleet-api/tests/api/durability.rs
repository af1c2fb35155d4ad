//! What was answered stays; what failed was not.

use model::api::{CheckIn, Enrolment, IncarnationReason, Redemption, Verdict};
use model::command::{Action, CommandOutcome, CommandReport, UnitCommand};
use model::secrets::SealedSecrets;
use reqwest::{Method, StatusCode};
use sqlx::{Connection as _, SqliteConnection};

use crate::sky::{Machine, RELEASE, Sky, UNIT, said, seal};

#[tokio::test]
async fn a_restart_keeps_everything() {
    let mut sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    let unit = sky.birth(&machine, UNIT, IncarnationReason::Birth).await;
    let now = edge::clock::now();
    let id = "0d".repeat(16);
    let command = sky.operators.sign(&UnitCommand {
        id: id.clone(),
        unit: UNIT.parse().unwrap(),
        action: Action::BackUp { source: None },
        issued: now,
        expires: now + jiff::SignedDuration::from_hours(1),
    });
    let commands = format!("/v1/units/{UNIT}/commands");
    sky.operator()
        .ok::<serde_json::Value>(Method::POST, &commands, &command)
        .await;
    unit.check_in(&CheckIn {
        escrow: Some(SealedSecrets {
            version: 1,
            age: seal("x"),
        }),
        reports: vec![CommandReport {
            id: id.clone(),
            outcome: CommandOutcome::Done,
            message: "done".into(),
            detail: serde_json::Value::Null,
        }],
        ..said(true)
    })
    .await;

    let paths = [
        "/v1/customers".to_owned(),
        "/v1/units".to_owned(),
        format!("/v1/units/{UNIT}"),
        format!("/v1/units/{UNIT}/configuration"),
        format!("/v1/units/{UNIT}/escrow"),
        format!("{commands}/{id}"),
        "/v1/machines".to_owned(),
        format!("/v1/releases/{RELEASE}/manifest.json"),
        "/v1/channels/stable".to_owned(),
        "/v1/events".to_owned(),
    ];
    let mut before = Vec::new();
    for path in &paths {
        before.push(sky.operator().get::<serde_json::Value>(path).await);
    }
    sky.restart(edge::clock::now).await;
    for (path, before) in paths.iter().zip(before) {
        let after: serde_json::Value = sky.operator().get(path).await;
        assert_eq!(after, before, "{path}");
    }
}

async fn break_store(sky: &Sky, statement: &'static str) {
    let url = format!("sqlite://{}", sky.place().join("fleet.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query(statement).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_store_that_fails_burns_no_ticket_and_tells_no_cause() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let ticket = sky.approve(&machine, UNIT, incarnation).await;
    break_store(
        &sky,
        "CREATE TRIGGER broken BEFORE INSERT ON event
         WHEN NEW.kind = 'ticket-redeemed' BEGIN SELECT RAISE(ABORT, 'disk on fire'); END",
    )
    .await;
    let path = format!("/v1/machines/{}/redeem", machine.code());
    let redemption = Redemption {
        ticket: ticket.id.clone(),
        keys: machine.keys.clone(),
        proof: None,
    };
    let (status, error) = sky
        .factory()
        .refused(Method::POST, &path, &redemption)
        .await;
    assert_eq!((status, error.code.as_str()), (500, "internal"));
    assert!(!error.message.contains("fire"), "{error}");
    // The redemption was written before the event failed; it must be gone with it.
    let verdict: Verdict = sky
        .factory()
        .get(&format!("/v1/machines/{}/verdict", machine.code()))
        .await;
    assert!(matches!(verdict, Verdict::Install { .. }));
    break_store(&sky, "DROP TRIGGER broken").await;
    let enrolment: Enrolment = sky.redeem(&machine, &ticket).await;
    let unit = sky.device(&machine, &enrolment);
    let response = unit.send(Method::POST, "/v1/checkin", &said(true)).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_store_that_fails_confirms_no_escrow() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let unit = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    break_store(
        &sky,
        "CREATE TRIGGER broken BEFORE INSERT ON escrow BEGIN SELECT RAISE(ABORT, 'x'); END",
    )
    .await;
    let with_escrow = CheckIn {
        escrow: Some(SealedSecrets {
            version: 1,
            age: seal("x"),
        }),
        ..said(true)
    };
    let (status, _) = unit
        .refused(Method::POST, "/v1/checkin", &with_escrow)
        .await;
    assert_eq!(status, 500);
    assert_eq!(sky.unit(UNIT).await.escrow_version, None);
    break_store(&sky, "DROP TRIGGER broken").await;
    assert_eq!(unit.check_in(&with_escrow).await.escrow_version, Some(1));
}
