//! The dead wake: a fenced incarnation gets nothing, and is seen trying.

use model::api::{
    CheckIn, ConfigurationStatus, FenceAttempt, Fences, IncarnationReason, RejectedGeneration,
    UnitState,
};
use model::secrets::SealedSecrets;
use reqwest::{Method, StatusCode};

use crate::sky::{Machine, RELEASE, Sky, UNIT, refusal, said, seal};

#[tokio::test]
async fn a_replaced_incarnation_gets_nothing_and_is_seen() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let old = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    let release = format!("/v1/releases/{RELEASE}/manifest.json");
    let layer = "/v1/customers/motivatit/layer.json";
    old.check_in(&said(true)).await;
    assert_eq!(old.fetch(&release).await.status(), StatusCode::OK);

    sky.begin(UNIT, IncarnationReason::Replace).await;
    let view = sky.unit(UNIT).await;
    assert_eq!(view.state, UnitState::Rebirth);
    assert_eq!(view.last_check_in, None);
    let (status, error) = old.refused(Method::POST, "/v1/checkin", &said(true)).await;
    assert_eq!((status, error.code.as_str()), (403, "fenced"));
    for path in [release.as_str(), layer, "/v1/channels/stable"] {
        let (status, error) = refusal(old.fetch(path).await).await;
        assert_eq!((status, error.code.as_str()), (403, "fenced"), "{path}");
    }
    let head = old.request(Method::HEAD, &release).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::FORBIDDEN);

    let view = sky.unit(UNIT).await;
    let places: Vec<_> = view
        .fenced_attempts
        .iter()
        .map(|attempt| (attempt.identity.incarnation.0, attempt.place.as_str()))
        .collect();
    assert_eq!(
        places,
        [
            (1, "channel"),
            (1, "layer"),
            (1, "release"),
            (1, "check-in")
        ]
    );
    assert_eq!(view.fenced_attempts[0].address, "127.0.0.1");
    assert!(sky.event_kinds().await.iter().any(|kind| kind == "fenced"));
    // A refused check-in puts nobody into service.
    assert_eq!(view.state, UnitState::Rebirth);
}

#[tokio::test]
async fn the_newcomer_gets_configuration_and_its_sealed_secrets() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let old = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    let escrow = SealedSecrets {
        version: 3,
        age: seal("secrets"),
    };
    let reply = old
        .check_in(&CheckIn {
            escrow: Some(escrow.clone()),
            secrets_version: Some(3),
            ..said(true)
        })
        .await;
    assert_eq!(reply.escrow_version, Some(3));

    let newborn = sky
        .birth(&Machine::new("S2"), UNIT, IncarnationReason::Replace)
        .await;
    let operator = sky.operator();
    let stored: SealedSecrets = operator.get(&format!("/v1/units/{UNIT}/escrow")).await;
    assert_eq!(stored, escrow);
    // It knows that there are secrets to wait for.
    let reply = newborn.check_in(&said(false)).await;
    assert_eq!((reply.secrets, reply.escrow_version), (None, Some(3)));
    assert_eq!(reply.configuration, Some(sky.configuration(UNIT, 1)));

    let path = |incarnation| format!("/v1/units/{UNIT}/incarnations/{incarnation}/secrets");
    let sealed = |version| SealedSecrets {
        version,
        age: seal("secrets"),
    };
    for (incarnation, version, expected) in [(1, 3, 409), (3, 3, 409), (2, 2, 409), (2, 4, 409)] {
        let body = sealed(version);
        let (status, _) = operator
            .refused(Method::PUT, &path(incarnation), &body)
            .await;
        assert_eq!(status, expected, "{incarnation} {version}");
    }
    let body = sealed(3);
    operator
        .ok::<serde_json::Value>(Method::PUT, &path(2), &body)
        .await;
    assert_eq!(newborn.check_in(&said(false)).await.secrets, Some(body));
    let holding = CheckIn {
        secrets_version: Some(3),
        ..said(true)
    };
    assert_eq!(newborn.check_in(&holding).await.secrets, None);
    assert_eq!(sky.unit(UNIT).await.state, UnitState::InService);
}

#[tokio::test]
async fn the_newcomer_is_not_given_what_the_dead_one_took_back() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let old = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    let path = format!("/v1/units/{UNIT}/configuration");
    let sign = async |generation| {
        let document = sky.configuration(UNIT, generation);
        sky.operator()
            .ok::<serde_json::Value>(Method::PUT, &path, &document)
            .await
    };
    sign(2).await;
    let mut said = said(true);
    said.configuration = ConfigurationStatus {
        applied: 1,
        rejected: Some(RejectedGeneration {
            generation: 2,
            reason: "sky not reached".into(),
        }),
    };
    old.check_in(&said).await;

    let newborn = sky
        .birth(&Machine::new("S2"), UNIT, IncarnationReason::Replace)
        .await;
    said.configuration = ConfigurationStatus {
        applied: 0,
        rejected: None,
    };
    let reply = newborn.check_in(&said).await;
    assert_eq!(reply.configuration, Some(sky.configuration(UNIT, 1)));
    said.configuration.applied = 1;
    assert_eq!(newborn.check_in(&said).await.configuration, None);
    sign(3).await;
    let reply = newborn.check_in(&said).await;
    assert_eq!(reply.configuration, Some(sky.configuration(UNIT, 3)));
}

#[tokio::test]
async fn vaults_learn_who_is_current_and_report_who_is_not() {
    let sky = Sky::start().await;
    sky.prepare().await;
    sky.add_unit("motivatit/houma-2").await;
    let vault = sky.holder("vault");
    assert!(vault.get::<Fences>("/v1/fences").await.units.is_empty());
    sky.begin(UNIT, IncarnationReason::Birth).await;
    sky.begin(UNIT, IncarnationReason::Replace).await;
    let fences: Fences = vault.get("/v1/fences").await;
    let current: model::DeviceIdentity = format!("urn:leapserv:{UNIT}:2").parse().unwrap();
    assert_eq!(fences.units, std::slice::from_ref(&current));

    let attempt = |identity: &str| FenceAttempt {
        identity: identity.parse().unwrap(),
        place: "vault vault-1".into(),
        address: "10.0.0.9".into(),
        time: edge::clock::now(),
    };
    let path = "/v1/fences/attempts";
    let fenced = attempt(&format!("urn:leapserv:{UNIT}:1"));
    for _ in 0..2 {
        vault
            .ok::<serde_json::Value>(Method::POST, path, &fenced)
            .await;
    }
    let seen = sky.unit(UNIT).await.fenced_attempts;
    assert_eq!(seen.len(), 1, "asked again at once, it is one attempt");
    assert_eq!(seen[0].place, "vault vault-1");
    let of_current = attempt(&current.to_string());
    assert_eq!(vault.refused(Method::POST, path, &of_current).await.0, 409);
    let stranger = attempt("urn:leapserv:other/x:1");
    assert_eq!(vault.refused(Method::POST, path, &stranger).await.0, 404);
    let mut hostile = fenced;
    hostile.place = "\u{1b}[2J".into();
    assert_eq!(vault.refused(Method::POST, path, &hostile).await.0, 422);
}
