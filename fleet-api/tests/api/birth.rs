//! From power-on to in service, and all the ways in which a ticket is refused.

use model::api::{
    IncarnationReason, InstallStep, MachineState, MachineView, NewIncarnation, Redemption,
    UnitState, Verdict,
};
use reqwest::{Method, StatusCode};

use crate::sky::{Machine, RELEASE, Sky, UNIT, said};

#[tokio::test]
async fn a_machine_is_born_and_comes_into_service() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    let code = machine.code();
    assert_eq!(sky.unit(UNIT).await.state, UnitState::Unborn);

    let held = sky.announce(&machine).await;
    assert_eq!((held.state, held.unit), (MachineState::Held, None));
    assert_eq!(sky.announce(&machine).await.first_seen, held.first_seen);

    // The installer waits; the approval wakes it, not the clock.
    let path = format!("/v1/machines/{code}/verdict?wait=60");
    let factory = sky.factory();
    let waiting = tokio::spawn(async move { factory.get::<Verdict>(&path).await });
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    assert_eq!(sky.unit(UNIT).await.state, UnitState::Unborn);
    let ticket = sky.approve(&machine, UNIT, incarnation).await;
    let Verdict::Install { ticket: signed, .. } = waiting.await.unwrap() else {
        panic!("approved, and not told to install");
    };
    assert_eq!(signed, sky.operators.sign(&ticket));
    let view = sky.unit(UNIT).await;
    assert_eq!(view.state, UnitState::Birth);
    assert_eq!(view.machine_serial.as_deref(), Some("S1"));

    // Nothing is written before the ticket is used.
    let early = sky.progress(&machine, InstallStep::Write).await;
    assert_eq!(early.status(), StatusCode::CONFLICT);
    let enrolment = sky.redeem(&machine, &ticket).await;
    assert_eq!(
        enrolment.identity.to_string(),
        format!("urn:leapserv:{UNIT}:1")
    );
    assert_eq!(enrolment.sky, "https://localhost:8443");
    let view: MachineView = sky.operator().get(&format!("/v1/machines/{code}")).await;
    assert_eq!(view.state, MachineState::Installing);
    for step in [InstallStep::Write, InstallStep::Done] {
        assert_eq!(sky.progress(&machine, step).await.status(), StatusCode::OK);
    }
    let view: MachineView = sky.operator().get(&format!("/v1/machines/{code}")).await;
    assert_eq!(view.state, MachineState::Born);
    let verdict: Verdict = sky
        .factory()
        .get(&format!("/v1/machines/{code}/verdict"))
        .await;
    assert!(matches!(verdict, Verdict::LocalDisk { .. }));

    let unit = sky.device(&machine, &enrolment);
    let reply = unit.check_in(&said(false)).await;
    assert_eq!(sky.unit(UNIT).await.state, UnitState::Unhealthy);
    assert_eq!(reply.configuration, Some(sky.configuration(UNIT, 1)));
    assert!(reply.channel.is_some());
    let mut applied = said(true);
    applied.configuration.applied = 1;
    assert_eq!(unit.check_in(&applied).await.configuration, None);
    let view = sky.unit(UNIT).await;
    assert_eq!(view.state, UnitState::InService);
    assert_eq!(view.last_check_in, Some(applied));

    let kinds = sky.event_kinds().await;
    for kind in [
        "machine-held",
        "machine-approved",
        "ticket-redeemed",
        "install",
        "born",
        "in-service",
        "configuration",
    ] {
        assert!(kinds.iter().any(|k| k == kind), "{kind}: {kinds:?}");
    }
    let events = sky.events().await;
    let numbers: Vec<_> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());

    // It has lived: no second first birth.
    let path = format!("/v1/units/{UNIT}/incarnations");
    let new = NewIncarnation {
        reason: IncarnationReason::Birth,
    };
    let (status, error) = sky.operator().refused(Method::POST, &path, &new).await;
    assert_eq!((status, error.code.as_str()), (409, "conflict"));
    assert!(error.hint.unwrap().contains("replace"));
}

#[tokio::test]
async fn a_ticket_burns_once_and_its_answer_can_be_asked_for_again() {
    let mut sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let ticket = sky.approve(&machine, UNIT, incarnation).await;
    // Two at once: one burns, both get the same papers.
    let (one, two) = tokio::join!(sky.redeem(&machine, &ticket), sky.redeem(&machine, &ticket));
    assert_eq!(one, two);
    sky.restart(edge::clock::now).await;
    assert_eq!(sky.redeem(&machine, &ticket).await, one);

    // A clone with the same serial, UUID and ticket, but its own keys.
    let clone = Machine::new("S1");
    sky.announce(&clone).await;
    let redemption = Redemption {
        ticket: ticket.id.clone(),
        keys: clone.keys.clone(),
        proof: None,
    };
    for code in [machine.code(), clone.code()] {
        let path = format!("/v1/machines/{code}/redeem");
        let (status, error) = sky
            .factory()
            .refused(Method::POST, &path, &redemption)
            .await;
        assert_eq!((status, error.code.as_str()), (403, "refused"));
    }
    let refused = sky.event_kinds().await;
    let refused = refused.iter().filter(|kind| *kind == "ticket-refused");
    assert_eq!(refused.count(), 2);
    // The incarnation is taken, so the clone cannot be approved for it either.
    let path = format!("/v1/machines/{}/ticket", clone.code());
    let second = sky.operators.sign(&sky.ticket(&clone, UNIT, incarnation));
    let (status, error) = sky.operator().refused(Method::PUT, &path, &second).await;
    assert_eq!((status, error.code.as_str()), (409, "conflict"));
}

#[tokio::test]
async fn a_birth_may_be_repeated_before_the_unit_has_lived() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    let first = sky.birth(&machine, UNIT, IncarnationReason::Birth).await;
    // It never came into service; another try makes a new number, and fences the first.
    let second = Machine::new("S2");
    let newborn = sky.birth(&second, UNIT, IncarnationReason::Birth).await;
    assert_eq!(sky.unit(UNIT).await.incarnation.0, 2);
    let (status, error) = first
        .refused(Method::POST, "/v1/checkin", &said(true))
        .await;
    assert_eq!((status, error.code.as_str()), (403, "fenced"));
    newborn.check_in(&said(true)).await;
    assert_eq!(sky.unit(UNIT).await.state, UnitState::InService);
}

#[tokio::test]
async fn approving_another_machine_takes_the_first_ones_unused_ticket() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let (first, second) = (Machine::new("S1"), Machine::new("S2"));
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let ticket = sky.approve(&first, UNIT, incarnation).await;
    sky.approve(&second, UNIT, incarnation).await;
    let view: MachineView = sky
        .operator()
        .get(&format!("/v1/machines/{}", first.code()))
        .await;
    assert_eq!((view.state, view.unit), (MachineState::Held, None));
    let redemption = Redemption {
        ticket: ticket.id,
        keys: first.keys.clone(),
        proof: None,
    };
    let path = format!("/v1/machines/{}/redeem", first.code());
    let (status, _) = sky
        .factory()
        .refused(Method::POST, &path, &redemption)
        .await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn every_ticket_and_every_erase_is_told_with_who_signed_it() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let key = sky.operators.public().id().to_string();
    let (first, second) = (Machine::new("S1"), Machine::new("S2"));
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let withdrawn = sky.approve(&first, UNIT, incarnation).await;
    let mut ticket = sky.approve(&second, UNIT, incarnation).await;
    // A newer one for the same machine.
    ticket.id = "ab".repeat(16);
    ticket.foreign_data = model::ticket::ForeignData::Erase;
    let path = format!("/v1/machines/{}/ticket", second.code());
    let signed = sky.operators.sign(&ticket);
    let operator = sky.operator();
    operator
        .ok::<MachineView>(Method::PUT, &path, &signed)
        .await;
    sky.redeem(&second, &ticket).await;
    for step in [
        InstallStep::Partition,
        InstallStep::Write,
        InstallStep::Done,
    ] {
        assert_eq!(sky.progress(&second, step).await.status(), StatusCode::OK);
    }
    let events = sky.events().await;
    let told = |kind: &str| -> Vec<&model::api::Event> {
        events.iter().filter(|event| event.kind == kind).collect()
    };
    let disk = format!("erasing disk /dev/vda (\"D1\", {} bytes)", 10_u64 << 30);
    let by = format!("{disk} by ticket {} signed by key {key}", ticket.id);
    let approved = told("machine-approved");
    assert_eq!(approved.len(), 3);
    assert!(
        approved[0].message.contains(&withdrawn.id),
        "{:?}",
        approved[0]
    );
    assert!(!approved[0].message.contains("whatever it holds"));
    let expected = format!("{by}, whatever it holds");
    assert!(approved[2].message.contains(&expected), "{:?}", approved[2]);
    // The first machine's, and the second one's own older one.
    let lost: Vec<_> = told("ticket-withdrawn")
        .iter()
        .map(|e| e.machine.clone())
        .collect();
    assert_eq!(lost, [Some(first.code()), Some(second.code())]);
    // Once, with the first step that writes, and each names disk, ticket and key.
    for kind in ["ticket-redeemed", "disk-erased"] {
        let told = told(kind);
        assert_eq!(told.len(), 1, "{kind}");
        assert!(told[0].message.contains(&by), "{:?}", told[0]);
        assert_eq!(told[0].unit, Some(UNIT.parse().unwrap()));
        assert_eq!(told[0].machine, Some(second.code()));
        assert!(told[0].mac.is_some());
    }
}

#[tokio::test]
async fn a_ticket_that_does_not_fit_is_not_taken() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    sky.announce(&machine).await;
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let path = format!("/v1/machines/{}/ticket", machine.code());
    let good = sky.ticket(&machine, UNIT, incarnation);
    let operator = sky.operator();
    let refused = async |ticket: &model::ticket::BirthTicket| {
        let signed = sky.operators.sign(ticket);
        operator.refused(Method::PUT, &path, &signed).await.0
    };

    let forged = sky.releases.sign(&good);
    let (status, error) = operator.refused(Method::PUT, &path, &forged).await;
    assert_eq!((status, error.code.as_str()), (403, "refused"));
    let mut expired = good.clone();
    expired.expires = expired.issued - jiff::SignedDuration::from_secs(1);
    assert_eq!(refused(&expired).await, 403);
    let mut serial = good.clone();
    serial.machine_serial = "S2".into();
    assert_eq!(refused(&serial).await, 403);
    let mut disk = good.clone();
    disk.disk.serial = "D2".into();
    assert_eq!(refused(&disk).await, 403);
    let mut later = good.clone();
    later.incarnation.0 += 1;
    assert_eq!(refused(&later).await, 409);
    let mut stranger = good.clone();
    stranger.unit = "motivatit/houma-9".parse().unwrap();
    assert_eq!(refused(&stranger).await, 404);
    let mut release = good.clone();
    release.release = "2026.12.1".parse().unwrap();
    assert_eq!(refused(&release).await, 409);
    let mut id = good.clone();
    id.id = "../../etc".into();
    assert_eq!(refused(&id).await, 422);
    let unknown = "/v1/machines/0000-0000/ticket";
    let signed = sky.operators.sign(&good);
    assert_eq!(operator.refused(Method::PUT, unknown, &signed).await.0, 404);
    // None of them left a trace: the machine is held, and the good one counts.
    operator
        .ok::<MachineView>(Method::PUT, &path, &signed)
        .await;
    assert_eq!(good.release, RELEASE.parse().unwrap());
}

#[tokio::test]
async fn keys_that_do_not_belong_together_are_not_announced() {
    let sky = Sky::start().await;
    let mut machine = Machine::new("S1");
    machine.keys.public_key = model::Digest::of(b"other");
    let factory = sky.factory();
    let announce = async |machine: &Machine| {
        let body = machine.announcement();
        factory.refused(Method::POST, "/v1/machines", &body).await.0
    };
    assert_eq!(announce(&machine).await, 422);
    machine.keys.csr = "no request".into();
    assert_eq!(announce(&machine).await, 422);
    let mut machine = Machine::new("S1");
    machine.keys.recipient = "ssh-ed25519 AAAA".into();
    assert_eq!(announce(&machine).await, 422);
}
