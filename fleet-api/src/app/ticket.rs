//! Birth tickets and the ledger that burns them.

use model::api::{Enrolment, MachineView, Redemption};
use model::machine::{DeviceKeys, MachineCode};
use model::ticket::{BirthTicket, ForeignData};
use model::{Incarnation, Signed, TrustError, Verified};

use super::check_id;
use super::machine::{find, first_mac, view};
use super::{pass, tpm, unit};
use crate::auth::Caller;
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::{MachineRecord, NewEvent, NewTicket, RedemptionRecord, Session, TicketRecord};

/// Takes the operator's approval of a machine. Repeated, it changes nothing.
///
/// # Errors
/// A signature that does not count; a ticket for another machine, for an
/// incarnation that is not current or born already, or for a release that is not stored.
pub async fn put(
    sky: &Sky,
    code: &MachineCode,
    document: Signed<BirthTicket>,
) -> Result<MachineView, Problem> {
    let now = sky.now();
    let ticket = sky.trust.verify(&document, now)?;
    check_id("ticket", &ticket.id)?;
    let mut session = sky.store.change().await?;
    let machine = find(&mut session, code).await?;
    if let Some(known) = session.ticket(&ticket.id).await? {
        if known.machine == *code && known.document == document {
            return Ok(view(machine, now));
        }
        return Err(Problem::conflict(format!(
            "ticket {}: another ticket has this id",
            ticket.id
        )));
    }
    pass::check_approval(&machine, &ticket.unit)?;
    let current = unit::find(&mut session, &ticket.unit).await?.incarnation;
    let identity = model::DeviceIdentity {
        unit: ticket.unit.clone(),
        incarnation: ticket.incarnation,
    };
    let other = session.ticket_of(&identity).await?;
    decide_approval(&ticket, &machine, current, other.as_ref())?;
    let manifest = session
        .release_file(&ticket.release, super::release::MANIFEST)
        .await?;
    if manifest.is_none() {
        return Err(Problem::conflict(format!(
            "ticket {}: release {} is not stored here",
            ticket.id, ticket.release
        ))
        .hint("publish the release first"));
    }
    let new = NewTicket {
        ticket: &ticket,
        document: &document,
    };
    tell_of_withdrawn(&mut session, &machine, other.as_ref(), &ticket.id, now).await?;
    session.insert_ticket(code, new, now).await?;
    let message = format!(
        "machine {code} may become {} incarnation {}, release {}, {}{}",
        ticket.unit,
        ticket.incarnation,
        ticket.release,
        erasing(&ticket),
        match ticket.foreign_data {
            ForeignData::Keep => "",
            ForeignData::Erase => ", whatever it holds",
        },
    );
    let event = NewEvent::new("machine-approved", message)
        .unit(&ticket.unit)
        .machine(code, first_mac(&machine.facts));
    session.append_event(event, now).await?;
    let machine = find(&mut session, code).await?;
    session.commit().await?;
    tracing::info!(machine = %code, unit = %ticket.unit, "machine approved");
    Ok(view(machine, now))
}

/// Says which disks a ticket lets be erased, by which ticket, and who signed it.
pub(super) fn erasing(ticket: &Verified<BirthTicket>) -> String {
    let signers: Vec<String> = ticket.signers().iter().map(ToString::to_string).collect();
    let disks: Vec<String> = ticket
        .disks()
        .map(|disk| {
            format!(
                "disk {} ({:?}, {} bytes)",
                disk.path, disk.serial, disk.size
            )
        })
        .collect();
    format!(
        "erasing {} by ticket {} signed by key {}",
        disks.join(" and "),
        ticket.id,
        signers.join(" and ")
    )
}

/// A new ticket takes the place of the machine's own unused one, and takes the
/// incarnation's unused one back from another machine. Neither goes unsaid.
async fn tell_of_withdrawn(
    session: &mut Session,
    machine: &MachineRecord,
    other: Option<&TicketRecord>,
    by: &str,
    now: jiff::Timestamp,
) -> Result<(), Problem> {
    let holder = match other {
        Some(other) if other.machine != machine.code => session.machine(&other.machine).await?,
        _ => None,
    };
    for holder in [Some(machine), holder.as_ref()].into_iter().flatten() {
        let Some(ticket) = holder.ticket.as_ref().filter(|it| it.redemption.is_none()) else {
            continue;
        };
        if holder.code != machine.code && other.is_none_or(|other| other.id != ticket.id) {
            continue;
        }
        let message = format!(
            "ticket {} counts no more: ticket {by} took its place",
            ticket.id
        );
        let event = NewEvent::new("ticket-withdrawn", message)
            .unit(&ticket.identity.unit)
            .machine(&holder.code, first_mac(&holder.facts));
        session.append_event(event, now).await?;
    }
    Ok(())
}

fn decide_approval(
    ticket: &BirthTicket,
    machine: &MachineRecord,
    current: Incarnation,
    other: Option<&TicketRecord>,
) -> Result<(), Problem> {
    let unit = &ticket.unit;
    if current == Incarnation(0) || ticket.incarnation != current {
        return Err(Problem::conflict(format!(
            "ticket {}: for incarnation {} of {unit}, {current} is current",
            ticket.id, ticket.incarnation
        ))
        .hint("begin an incarnation first, then sign a ticket for it"));
    }
    ticket
        .permits(&machine.facts, &machine.keys)
        .map_err(|refusal| Problem::refused(refusal.to_string()))?;
    if let Some(born) = other.filter(|other| other.redemption.is_some()) {
        return Err(Problem::conflict(format!(
            "unit {unit}: incarnation {current} was born on machine {} already",
            born.machine
        ))
        .hint(
            "begin a new incarnation: a birth can be repeated, a unit that has lived is replaced",
        ));
    }
    // One set of keys must not speak for two units.
    if let Some(used) = machine
        .ticket
        .as_ref()
        .filter(|used| used.redemption.is_some() && used.current == used.identity.incarnation)
    {
        return Err(Problem::conflict(format!(
            "machine {}: is {} already",
            machine.code, used.identity.unit
        ))
        .hint("restart the machine into its installer: it makes new keys and shows a new code"));
    }
    Ok(())
}

/// What the ledger does with a redemption.
#[derive(Debug)]
enum Use<'a> {
    /// It burns the ticket.
    First(&'a TicketRecord),
    /// The same keys ask again: the same answer.
    Again(&'a Enrolment),
}

/// Burns a ticket and answers with the newborn's papers.
///
/// # Errors
/// Not found, and every refusal; a refusal is recorded as an event.
pub async fn redeem(
    sky: &Sky,
    caller: &Caller,
    code: &MachineCode,
    redemption: &Redemption,
) -> Result<Enrolment, Problem> {
    let now = sky.now();
    let mut session = sky.store.change().await?;
    let machine = find(&mut session, code).await?;
    pass::check(caller, &machine)?;
    let ticket = session.ticket(&redemption.ticket).await?;
    let born = match &ticket {
        Some(ticket) => session.ticket_of(&ticket.identity).await?,
        None => None,
    };
    let verified = ticket
        .as_ref()
        .map(|ticket| sky.trust.verify(&ticket.document, now));
    let permitted = match &verified {
        Some(Ok(ticket)) => erasing(ticket),
        _ => String::new(),
    };
    let decision = decide_use(
        redemption,
        &machine,
        ticket.as_ref(),
        verified,
        born.as_ref(),
    );
    let decision = decision.and_then(|decision| {
        let (keys, proof) = (&machine.keys, redemption.proof.as_ref());
        tpm::check_proof(&sky.authority, &redemption.ticket, keys, proof)?;
        Ok(decision)
    });
    let mac = first_mac(&machine.facts);
    let ticket = match decision {
        Ok(Use::Again(enrolment)) => return Ok(enrolment.clone()),
        Ok(Use::First(ticket)) => ticket,
        Err(problem) => {
            let event = NewEvent::new("ticket-refused", problem.to_string()).machine(code, mac);
            let event = match &ticket {
                Some(ticket) => event.unit(&ticket.identity.unit),
                None => event,
            };
            session.append_event(event, now).await?;
            session.commit().await?;
            tracing::warn!(machine = %code, %problem, "ticket refused");
            return Err(problem);
        }
    };
    let keys = &machine.keys;
    let certificate = sky
        .authority
        .device_certificate(&keys.csr, &ticket.identity, keys.public_key, now)
        .map_err(|problem| Problem::internal(problem.context("sign a device certificate")))?;
    let used = RedemptionRecord {
        fingerprint: keys.fingerprint(),
        enrolment: Enrolment {
            identity: ticket.identity.clone(),
            certificate,
            ca: sky.authority.certificate().to_owned(),
            sky: sky.url.clone(),
        },
    };
    session.insert_redemption(ticket, &used, now).await?;
    if let Caller::Installer(pass) = caller {
        session.use_pass(&pass.unit, code).await?;
    }
    let unit = &ticket.identity.unit;
    let message = format!(
        "ticket {} is used: machine {code} becomes {unit} incarnation {}, {permitted}",
        ticket.id, ticket.identity.incarnation
    );
    let event = NewEvent::new("ticket-redeemed", message)
        .unit(unit)
        .machine(code, mac);
    session.append_event(event, now).await?;
    session.commit().await?;
    tracing::info!(machine = %code, %unit, "ticket redeemed");
    Ok(used.enrolment)
}

fn decide_use<'a>(
    redemption: &Redemption,
    machine: &MachineRecord,
    ticket: Option<&'a TicketRecord>,
    verified: Option<Result<Verified<BirthTicket>, TrustError>>,
    born: Option<&TicketRecord>,
) -> Result<Use<'a>, Problem> {
    let id = &redemption.ticket;
    let code = &machine.code;
    let (Some(ticket), Some(verified)) = (ticket, verified) else {
        return Err(Problem::refused(format!(
            "ticket {id:?}: not known here, asked for by machine {code}"
        )));
    };
    if ticket.machine != *code {
        return Err(Problem::refused(format!(
            "ticket {id}: made for machine {}, not for {code}",
            ticket.machine
        )));
    }
    check_keys(id, &redemption.keys, machine)?;
    if ticket.identity.incarnation != ticket.current {
        return Err(super::fence::fenced(&ticket.identity, ticket.current));
    }
    // Before the ticket's age: an answer that was lost may be asked for late.
    if let Some(used) = &ticket.redemption {
        if used.fingerprint == redemption.keys.fingerprint() {
            return Ok(Use::Again(&used.enrolment));
        }
        return Err(Problem::refused(format!(
            "ticket {id}: used by other device keys"
        )));
    }
    if machine.ticket.as_ref().is_none_or(|valid| valid.id != *id) {
        return Err(Problem::refused(format!(
            "ticket {id}: a newer ticket took its place"
        )));
    }
    if let Some(born) = born.filter(|born| born.redemption.is_some()) {
        return Err(Problem::conflict(format!(
            "unit {}: incarnation {} was born on machine {} already",
            born.identity.unit, born.identity.incarnation, born.machine
        )));
    }
    let document = verified?;
    document
        .permits(&machine.facts, &redemption.keys)
        .map_err(|refusal| Problem::refused(refusal.to_string()))?;
    Ok(Use::First(ticket))
}

fn check_keys(id: &str, keys: &DeviceKeys, machine: &MachineRecord) -> Result<(), Problem> {
    if keys.fingerprint() == machine.keys.fingerprint() {
        return Ok(());
    }
    Err(Problem::refused(format!(
        "ticket {id}: asked for with other device keys than machine {}'s",
        machine.code
    )))
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::{NOW, birth_ticket, keys, machine, ticket, used};
    use super::*;
    use crate::error::Kind;
    use model::trust::RoleKeys;
    use model::{Digest, Role, Signer, TrustRoot};

    fn approve(
        change: impl Fn(&mut BirthTicket, &mut MachineRecord),
        current: u32,
        other: Option<TicketRecord>,
    ) -> Result<(), Kind> {
        let (mut ticket, mut machine) = (birth_ticket(), machine());
        change(&mut ticket, &mut machine);
        decide_approval(&ticket, &machine, Incarnation(current), other.as_ref())
            .map_err(|problem| problem.kind())
    }

    #[test]
    fn approval_is_for_this_machine_and_the_current_incarnation() {
        assert_eq!(approve(|_, _| {}, 1, None), Ok(()));
        assert_eq!(approve(|_, _| {}, 1, Some(ticket())), Ok(()));
        assert_eq!(approve(|_, _| {}, 2, None), Err(Kind::Conflict));
        assert_eq!(approve(|_, _| {}, 0, None), Err(Kind::Conflict));
        let zero = |ticket: &mut BirthTicket, _: &mut MachineRecord| {
            ticket.incarnation = Incarnation(0);
        };
        assert_eq!(approve(zero, 0, None), Err(Kind::Conflict));
        let serial = |_: &mut BirthTicket, machine: &mut MachineRecord| {
            machine.facts.serial = "S2".into();
        };
        assert_eq!(approve(serial, 1, None), Err(Kind::Refused));
        let uuid = |_: &mut BirthTicket, machine: &mut MachineRecord| {
            machine.facts.uuid = "u2".into();
        };
        assert_eq!(approve(uuid, 1, None), Err(Kind::Refused));
        let clone = |_: &mut BirthTicket, machine: &mut MachineRecord| {
            machine.keys.public_key = Digest::of(b"clone");
        };
        assert_eq!(approve(clone, 1, None), Err(Kind::Refused));
    }

    #[test]
    fn an_incarnation_is_born_once_and_a_machine_is_one_unit() {
        assert_eq!(approve(|_, _| {}, 1, Some(used())), Err(Kind::Conflict));
        let taken = |_: &mut BirthTicket, machine: &mut MachineRecord| {
            machine.ticket = Some(used());
        };
        assert_eq!(approve(taken, 1, None), Err(Kind::Conflict));
        let fenced = |_: &mut BirthTicket, machine: &mut MachineRecord| {
            machine.ticket = Some(TicketRecord {
                current: Incarnation(2),
                ..used()
            });
        };
        assert_eq!(approve(fenced, 1, None), Ok(()));
    }

    fn verified(now: jiff::Timestamp) -> Option<Result<Verified<BirthTicket>, TrustError>> {
        let signer = Signer::from_seed(&[1; 32]);
        let keys = RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        let root = TrustRoot {
            version: 1,
            roles: [(Role::Configuration, keys)].into(),
            recovery: vec![],
        };
        Some(root.verify(&ticket().document, now))
    }

    fn redemption(keys: DeviceKeys) -> Redemption {
        Redemption {
            ticket: birth_ticket().id,
            keys,
            proof: None,
        }
    }

    fn holding(ticket: TicketRecord) -> MachineRecord {
        MachineRecord {
            ticket: Some(ticket),
            ..machine()
        }
    }

    #[test]
    fn a_ticket_burns_once_and_answers_the_same_keys_again() {
        let (fresh, burned) = (ticket(), used());
        let own = redemption(keys());
        let first = decide_use(&own, &holding(ticket()), Some(&fresh), verified(NOW), None);
        assert!(matches!(first, Ok(Use::First(_))));
        // Long after its end.
        let late = verified(NOW + jiff::SignedDuration::from_hours(48));
        let again = decide_use(&own, &holding(used()), Some(&burned), late, Some(&burned));
        assert!(matches!(again, Ok(Use::Again(_))));
    }

    #[test]
    fn every_other_use_is_refused() {
        let fresh = ticket();
        let own = redemption(keys());
        let mut clone = keys();
        clone.public_key = Digest::of(b"clone");
        let refused = |redemption: &Redemption,
                       machine: &MachineRecord,
                       ticket: Option<&TicketRecord>,
                       now| {
            let verified = ticket.and_then(|_| verified(now));
            decide_use(redemption, machine, ticket, verified, None)
                .unwrap_err()
                .kind()
        };
        let holder = holding(ticket());
        let burned = used();
        assert_eq!(refused(&own, &holder, None, NOW), Kind::Refused);
        let other = redemption(clone.clone());
        assert_eq!(refused(&other, &holder, Some(&fresh), NOW), Kind::Refused);
        assert_eq!(refused(&other, &holder, Some(&burned), NOW), Kind::Refused);
        let late = birth_ticket().expires;
        assert_eq!(refused(&own, &holder, Some(&fresh), late), Kind::Refused);
        assert_eq!(refused(&own, &machine(), Some(&fresh), NOW), Kind::Refused);
        let foreign = MachineRecord {
            code: MachineCode::of(&clone),
            keys: clone,
            ..holding(ticket())
        };
        assert_eq!(refused(&other, &foreign, Some(&fresh), NOW), Kind::Refused);
        let fenced = TicketRecord {
            current: Incarnation(2),
            ..used()
        };
        assert_eq!(refused(&own, &holder, Some(&fenced), NOW), Kind::Fenced);
    }
}
