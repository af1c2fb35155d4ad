//! A machine at a customer's: no factory, a unit's one-time code.

use fleet_api::routes::Who;
use jiff::{SignedDuration, Timestamp};
use model::api::{
    Enrolment, IncarnationReason, InstallStep, MachineState, MachineView, Progress, Redemption,
    Verdict,
};
use model::pass::{NewPass, PassCode, PassView};
use reqwest::{Method, StatusCode};

use crate::access::statuses;
use crate::sky::{Caller, Machine, RELEASE, Sky, UNIT, refusal};

const OTHER: &str = "motivatit/houma-2";

/// Makes a code for a unit, as `leapctl unit pass` does, and returns who has it.
async fn holder(sky: &Sky, unit: &str, random: u8) -> Caller {
    let code = PassCode::from_random([random; 8]);
    let new = NewPass {
        hash: code.hash(),
        expires: edge::clock::now() + SignedDuration::from_hours(1),
    };
    let path = format!("/v1/units/{unit}/pass");
    let made: PassView = sky.operator().ok(Method::PUT, &path, &new).await;
    assert_eq!(made.unit.to_string(), unit);
    Caller {
        token: Some(code.as_str().to_owned()),
        ..sky.anyone()
    }
}

async fn announce(caller: &Caller, machine: &Machine) -> Result<MachineView, (u16, String)> {
    let path = "/v1/machines";
    let response = caller
        .send(Method::POST, path, &machine.announcement())
        .await;
    if response.status().is_success() {
        return Ok(response.json().await.unwrap());
    }
    let (status, error) = refusal(response).await;
    Err((status, error.message))
}

#[tokio::test]
async fn a_machine_is_born_without_a_factory_and_the_code_is_its_own_from_then_on() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let installer = holder(&sky, UNIT, 1).await;
    let own: PassView = installer.get("/v1/pass").await;
    assert_eq!(own.unit.to_string(), UNIT);
    let machine = Machine::new("S1");
    let code = machine.code();
    let held = announce(&installer, &machine).await.unwrap();
    assert_eq!(held.state, MachineState::Held);
    assert_eq!(held.pass.unwrap().to_string(), UNIT);
    let manifest = format!("/v1/releases/{RELEASE}/manifest.json");
    assert_eq!(installer.fetch(&manifest).await.status(), StatusCode::OK);

    // A code is no approval.
    let path = format!("/v1/machines/{code}/verdict");
    assert!(matches!(
        installer.get::<Verdict>(&path).await,
        Verdict::Held
    ));
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let ticket = sky.ticket(&machine, UNIT, incarnation);
    let put = format!("/v1/machines/{code}/ticket");
    sky.operator()
        .ok::<MachineView>(Method::PUT, &put, &sky.operators.sign(&ticket))
        .await;
    assert!(matches!(
        installer.get::<Verdict>(&path).await,
        Verdict::Install { .. }
    ));
    // The installer was started anew before it used its ticket: other keys, same code.
    let again = Machine::new("S1");
    announce(&installer, &again).await.unwrap();

    let redemption = Redemption {
        ticket: ticket.id.clone(),
        keys: machine.keys.clone(),
        proof: None,
    };
    let redeem = format!("/v1/machines/{code}/redeem");
    let enrolment: Enrolment = installer.ok(Method::POST, &redeem, &redemption).await;
    assert_eq!(enrolment.identity.unit.to_string(), UNIT);
    let repeated: Enrolment = installer.ok(Method::POST, &redeem, &redemption).await;
    assert_eq!(repeated, enrolment, "an answer that was lost");

    // Nobody else is anything with it now, not even who came with it before.
    let (status, message) = announce(&installer, &Machine::new("S9")).await.unwrap_err();
    assert_eq!(status, 403);
    assert!(
        message.contains(&format!("used by machine {code}")),
        "{message}"
    );
    let before = format!("/v1/machines/{}/verdict", again.code());
    assert_eq!(installer.fetch(&before).await.status(), 403);

    let done = Progress {
        step: InstallStep::Done,
        done: 1,
        total: 1,
        seconds: 60,
        problem: None,
    };
    let path = format!("/v1/machines/{code}/progress");
    let told = installer.send(Method::POST, &path, &done).await;
    assert_eq!(told.status(), StatusCode::OK);
    let view: MachineView = sky.operator().get(&format!("/v1/machines/{code}")).await;
    assert_eq!(view.state, MachineState::Born);
    let kinds = sky.event_kinds().await;
    for kind in ["pass-made", "machine-held", "ticket-redeemed", "born"] {
        assert!(kinds.iter().any(|it| it == kind), "{kind}: {kinds:?}");
    }
}

#[tokio::test]
async fn a_code_speaks_for_its_own_machines_and_its_own_unit() {
    let sky = Sky::start().await;
    sky.prepare().await;
    sky.add_unit(OTHER).await;
    sky.add_unit("dentist/front").await;
    let one = holder(&sky, UNIT, 1).await;
    let two = holder(&sky, OTHER, 2).await;
    let allowed = |who: &[Who]| who.contains(&Who::Installer) || who.contains(&Who::Anyone);
    statuses(&one, allowed, (403, "refused")).await;

    let machine = Machine::new("S1");
    announce(&one, &machine).await.unwrap();
    let behind_a_factory = Machine::new("S2");
    sky.announce(&behind_a_factory).await;
    for (caller, machine) in [(&two, &machine), (&one, &behind_a_factory)] {
        let path = format!("/v1/machines/{}/verdict", machine.code());
        let (status, error) = refusal(caller.fetch(&path).await).await;
        assert_eq!(status, 403);
        assert!(error.message.contains("did not come with"), "{error}");
        // Nor does the announcement, repeated by somebody else, change whose it is.
        assert_eq!(announce(caller, machine).await.unwrap_err().0, 403);
    }
    // An operator who mistakes the unit is told.
    let incarnation = sky.begin(OTHER, IncarnationReason::Birth).await;
    let ticket = sky
        .operators
        .sign(&sky.ticket(&machine, OTHER, incarnation));
    let path = format!("/v1/machines/{}/ticket", machine.code());
    let (status, error) = refusal(sky.operator().send(Method::PUT, &path, &ticket).await).await;
    assert_eq!(status, 409);
    assert!(error.message.contains(UNIT), "{error}");
    let layer = one.fetch("/v1/customers/dentist/layer.json").await;
    assert_eq!(layer.status(), 403);
}

#[tokio::test]
async fn a_code_ends_by_its_time_or_by_the_next_one_and_is_nowhere_in_the_sky() {
    fn in_two_hours() -> Timestamp {
        edge::clock::now() + SignedDuration::from_hours(2)
    }
    let mut sky = Sky::start().await;
    sky.prepare().await;
    let first = holder(&sky, UNIT, 1).await;
    let second = holder(&sky, UNIT, 2).await;
    assert_eq!(refusal(first.fetch("/v1/pass").await).await.0, 401);
    announce(&second, &Machine::new("S1")).await.unwrap();
    let text = second.token.clone().unwrap();
    let grep = edge::runner::Tool::new("grep")
        .args(["--recursive", "--text", "--files-with-matches", &text])
        .arg(sky.place());
    assert!(grep.run().is_err(), "the code itself is kept");

    sky.restart(in_two_hours).await;
    let late = Caller {
        token: second.token,
        ..sky.anyone()
    };
    let (status, error) = refusal(late.fetch("/v1/pass").await).await;
    assert_eq!(status, 401);
    assert!(error.message.contains("expired"), "{error}");
    assert!(error.hint.unwrap().contains("leapctl unit pass"));
}

#[tokio::test]
async fn a_code_is_no_way_to_fill_the_sky() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let installer = holder(&sky, UNIT, 1).await;
    for number in 0..32 {
        let machine = Machine::new(&format!("S{number}"));
        announce(&installer, &machine).await.unwrap();
    }
    let (status, message) = announce(&installer, &Machine::new("S32"))
        .await
        .unwrap_err();
    assert_eq!(status, 403);
    assert!(message.contains("32 installers"), "{message}");
    // The next code is a new beginning.
    let next = holder(&sky, UNIT, 2).await;
    announce(&next, &Machine::new("S33")).await.unwrap();
}
