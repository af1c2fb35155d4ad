//! Keys in a TPM: who has copied everything but the chip has nothing.

use ::tpm::emulator::Emulator;
use ::tpm::{Blob, Credential};
use model::HexBytes;
use model::api::{Enrolment, IncarnationReason, InstallStep, Redemption, Verdict};
use reqwest::{Method, StatusCode};

use crate::sky::{Machine, Sky, UNIT, said};

async fn credential(sky: &Sky, machine: &Machine) -> Credential {
    let path = format!("/v1/machines/{}/verdict", machine.code());
    let Verdict::Install { credential, .. } = sky.factory().get(&path).await else {
        panic!("approved, and not told to install");
    };
    let credential = credential.expect("its keys are in a TPM");
    Credential {
        blob: credential.blob.0,
        secret: credential.secret.0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_with_all_but_the_chip_gets_no_secret_byte() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let (chip, other) = (Emulator::start().unwrap(), Emulator::start().unwrap());
    let machine = Machine::with_tpm("S1", &chip);
    // Facts, addresses, keys, even the wrapped key: all copied, in another chassis.
    let clone = Machine {
        facts: machine.facts.clone(),
        keys: machine.keys.clone(),
        key: machine.key.clone(),
        chip: other.socket(),
    };
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let ticket = sky.approve(&machine, UNIT, incarnation).await;
    let key = Blob::from_pem(&machine.key).unwrap();
    let path = format!("/v1/machines/{}/redeem", machine.code());
    let redemption = |proof: Option<Vec<u8>>| Redemption {
        ticket: ticket.id.clone(),
        keys: machine.keys.clone(),
        proof: proof.map(HexBytes),
    };

    // The clone speaks first: it is told the same, and cannot open it.
    sky.announce(&clone).await;
    let wrapped = credential(&sky, &clone).await;
    let opened = other.open().unwrap().activate(&key, &wrapped);
    assert!(opened.is_err());
    for guess in [None, Some(vec![]), Some(vec![0; 32])] {
        let (status, error) = sky
            .factory()
            .refused(Method::POST, &path, &redemption(guess))
            .await;
        assert_eq!((status, error.code.as_str()), (403, "refused"));
        assert!(error.message.contains("not proven"), "{}", error.message);
    }
    assert!(sky.event_kinds().await.contains(&"ticket-refused".into()));

    let wrapped = credential(&sky, &machine).await;
    let proof = chip.open().unwrap().activate(&key, &wrapped).unwrap();
    let proven = redemption(Some(proof.to_vec()));
    let enrolment: Enrolment = sky.factory().ok(Method::POST, &path, &proven).await;
    // Each credential is another one, and what is in it the same: a lost answer can be
    // asked for again.
    let wrapped_again = credential(&sky, &machine).await;
    assert_ne!(wrapped_again, wrapped);
    let again = chip.open().unwrap().activate(&key, &wrapped_again).unwrap();
    assert_eq!(again, proof);
    let done = sky.progress(&machine, InstallStep::Done).await;
    assert_eq!(done.status(), StatusCode::OK);
    sky.device(&machine, &enrolment).check_in(&said(true)).await;

    // Who has listened and says it all again is given the papers, which are no secret,
    // and is nobody with them.
    let papers: Enrolment = sky.factory().ok(Method::POST, &path, &proven).await;
    assert_eq!(papers, enrolment);
    let refused = sky
        .device(&clone, &papers)
        .try_send(Method::POST, "/v1/checkin", &said(true))
        .await;
    assert!(refused.is_err(), "{refused:?}");
    sky.device(&machine, &enrolment).check_in(&said(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_fit_their_tpm_are_not_taken() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let chip = Emulator::start().unwrap();
    let refused = async |change: &dyn Fn(&mut Machine)| {
        let mut machine = Machine::with_tpm("S1", &chip);
        change(&mut machine);
        let (status, error) = sky
            .factory()
            .refused(Method::POST, "/v1/machines", &machine.announcement())
            .await;
        assert_eq!(status, 422, "{error:?}");
        error.message
    };
    fn areas(machine: &mut Machine) -> &mut model::machine::TpmKeys {
        machine.keys.tpm.as_mut().unwrap()
    }
    // The request is of a key in a file.
    let file = refused(&|machine| {
        let request = tls::ca::device_request().unwrap();
        machine.keys.csr = request.csr;
        machine.keys.public_key = request.public_key;
    });
    assert!(file.await.starts_with("keys: the TPM's key is"));
    // A key that may leave its TPM: the attributes stand behind type and name's algorithm.
    let loose = refused(&|machine| areas(machine).device_key.0[7] &= !0x02);
    assert!(loose.await.contains("cannot leave it"));
    let swapped = refused(&|machine| {
        let areas = areas(machine);
        areas.endorsement_key = areas.device_key.clone();
    });
    assert!(swapped.await.contains("endorsement key"));
    let nonsense = refused(&|machine| areas(machine).endorsement_key.0.truncate(40));
    assert!(nonsense.await.contains("endorsement key: TPM: public area"));
}
