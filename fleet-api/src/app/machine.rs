//! Machines in their installer: held, approved, installing, born.

use jiff::{SignedDuration, Timestamp};
use model::MacAddr;
use model::api::{Announcement, InstallStep, MachineState, MachineView, Progress, Verdict};
use model::machine::{MachineCode, MachineFacts};

use super::{pass, tpm};
use crate::auth::Caller;
use crate::error::Problem;
use crate::sky::{Look, Sky};
use crate::store::{MachineRecord, NewEvent, Session, TicketRecord, Topic};

/// Whether a ticket counts at `now`: its incarnation is current, and it is
/// used by its machine or not past its end.
fn counts(ticket: &TicketRecord, now: Timestamp) -> bool {
    ticket.current == ticket.identity.incarnation
        && (ticket.redemption.is_some() || now < ticket.expires)
}

/// Returns where a machine's birth stands.
pub fn state(machine: &MachineRecord, now: Timestamp) -> MachineState {
    let step = machine.progress.as_ref().map(|progress| progress.step);
    match (&machine.ticket, step) {
        (Some(ticket), Some(InstallStep::Done)) if ticket.redemption.is_some() => {
            MachineState::Born
        }
        (_, Some(InstallStep::Failed)) => MachineState::Failed,
        (Some(ticket), _) if ticket.redemption.is_some() => MachineState::Installing,
        (Some(ticket), _) if counts(ticket, now) => MachineState::Approved,
        (_, _) => MachineState::Held,
    }
}

/// Returns what a machine is to do.
///
/// It never leads to an erase: only the ticket in it does.
pub fn verdict(machine: &MachineRecord, now: Timestamp) -> Verdict {
    match &machine.ticket {
        Some(ticket) if state(machine, now) == MachineState::Born => Verdict::LocalDisk {
            reason: format!("this machine is installed as {}", ticket.identity.unit),
        },
        Some(ticket) if counts(ticket, now) => Verdict::Install {
            ticket: ticket.document.clone(),
            credential: None,
        },
        _ => Verdict::Held,
    }
}

/// Takes a machine's announcement. Repeated, it only says that the machine is alive.
///
/// # Errors
/// Keys that do not belong together; another machine with the same code; a pass that is
/// used up.
pub async fn announce(
    sky: &Sky,
    caller: &Caller,
    announcement: &Announcement,
) -> Result<MachineView, Problem> {
    let keys = &announcement.keys;
    let found = tls::ca::csr_public_key(&keys.csr)
        .map_err(|problem| Problem::invalid(format!("keys: {problem:#}")))?;
    if found != keys.public_key {
        return Err(Problem::invalid(format!(
            "keys: the request is of key {found}, expected {}",
            keys.public_key
        )));
    }
    let recipient = &keys.recipient;
    if !recipient.starts_with("age1") || !recipient.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Problem::invalid("keys: recipient: expected age1…"));
    }
    tpm::check(keys)?;
    let code = MachineCode::of(keys);
    let now = sky.now();
    let mut session = sky.store.change().await?;
    match session.machine(&code).await? {
        Some(known) if known.keys.fingerprint() == keys.fingerprint() => {
            pass::check(caller, &known)?;
            session.hear_of_machine(&code, now).await?;
        }
        // A code has 40 bits: found by chance once in a lifetime, or made so.
        Some(_) => {
            return Err(Problem::conflict(format!(
                "machine {code}: another machine has this code"
            ))
            .hint("restart the machine: it makes new keys"));
        }
        None => {
            let came_with = match caller {
                Caller::Installer(pass) => {
                    pass::admit(&mut session, pass).await?;
                    Some(&pass.unit)
                }
                _ => None,
            };
            session
                .insert_machine(&code, announcement, came_with, now)
                .await?;
            let facts = &announcement.facts;
            let with = came_with.map_or_else(String::new, |unit| {
                format!(", with the one-time code of {unit}")
            });
            let message = format!(
                "machine {code} waits for approval: {:?}, serial {:?}{with}",
                facts.product, facts.serial
            );
            let event = NewEvent::new("machine-held", message).machine(&code, first_mac(facts));
            session.append_event(event, now).await?;
            tracing::info!(machine = %code, serial = facts.serial, "machine held");
        }
    }
    let machine = find(&mut session, &code).await?;
    session.commit().await?;
    Ok(view(machine, now))
}

/// Returns all machines.
///
/// # Errors
/// Internal only.
pub async fn list(sky: &Sky) -> Result<Vec<MachineView>, Problem> {
    let now = sky.now();
    let machines = sky.store.read().await?.machines().await?;
    Ok(machines
        .into_iter()
        .map(|machine| view(machine, now))
        .collect())
}

/// Returns one machine.
///
/// # Errors
/// Not found.
pub async fn show(sky: &Sky, code: &MachineCode) -> Result<MachineView, Problem> {
    let machine = find(&mut sky.store.read().await?, code).await?;
    Ok(view(machine, sky.now()))
}

/// Returns what a machine is to do, waiting up to `wait` seconds while it is held.
///
/// # Errors
/// Not found; refused to an installer with another machine's pass.
pub async fn verdict_of(
    sky: &Sky,
    caller: &Caller,
    code: &MachineCode,
    wait: u64,
) -> Result<Verdict, Problem> {
    hear_of(sky, caller, code).await?;
    sky.wait_for(Topic::Machines, wait, || async move {
        let machine = find(&mut sky.store.read().await?, code).await?;
        Ok(match (verdict(&machine, sky.now()), &machine.ticket) {
            (Verdict::Held, _) => Look::Open(Verdict::Held),
            (Verdict::Install { ticket, .. }, Some(known)) => Look::Final(Verdict::Install {
                ticket,
                credential: tpm::challenge(&sky.authority, &known.id, &machine.keys)?,
            }),
            (other, _) => Look::Final(other),
        })
    })
    .await
}

/// How old "last heard of" may be while an installer asks and asks.
const HEARD: SignedDuration = SignedDuration::from_secs(20);

/// Takes note that the installer is there. It announces itself once and then only
/// asks, and who approves must know a machine that waits from one that has gone.
async fn hear_of(sky: &Sky, caller: &Caller, code: &MachineCode) -> Result<(), Problem> {
    let now = sky.now();
    let machine = find(&mut sky.store.read().await?, code).await?;
    pass::check(caller, &machine)?;
    if now.duration_since(machine.last_seen) < HEARD {
        return Ok(());
    }
    let mut session = sky.store.change().await?;
    session.hear_of_machine(code, now).await?;
    Ok(session.commit().await?)
}

/// Takes an installer's progress.
///
/// # Errors
/// Not found; conflict for steps that need a used ticket; refused to an installer with
/// another machine's pass.
pub async fn progress(
    sky: &Sky,
    caller: &Caller,
    code: &MachineCode,
    progress: &Progress,
) -> Result<(), Problem> {
    let now = sky.now();
    let mut session = sky.store.change().await?;
    let machine = find(&mut session, code).await?;
    pass::check(caller, &machine)?;
    if !decide_progress(&machine, progress.step)? {
        return Ok(());
    }
    session.save_progress(code, progress, now).await?;
    if machine.progress.as_ref().map(|before| before.step) != Some(progress.step)
        && let Some(event) = told(&machine, progress)
    {
        if let Some(event) = erased(sky, &machine, progress.step) {
            session.append_event(event, now).await?;
        }
        session.append_event(event, now).await?;
    }
    session.commit().await?;
    Ok(())
}

/// Whether the progress is to be kept: a birth that is done stays done.
fn decide_progress(machine: &MachineRecord, step: InstallStep) -> Result<bool, Problem> {
    let used = machine
        .ticket
        .as_ref()
        .is_some_and(|ticket| ticket.redemption.is_some());
    if !used && !matches!(step, InstallStep::Waiting | InstallStep::Failed) {
        return Err(Problem::conflict(format!(
            "machine {}: has used no ticket, so nothing can be written",
            machine.code
        )));
    }
    let done = machine
        .progress
        .as_ref()
        .is_some_and(|before| before.step == InstallStep::Done);
    Ok(!done)
}

/// The erase, for the audit: with its first step the installer begins to write.
fn erased(sky: &Sky, machine: &MachineRecord, step: InstallStep) -> Option<NewEvent> {
    let ticket = machine.ticket.as_ref()?;
    // The steps rise: whichever is told first, the disk was written before it.
    let begun = machine
        .progress
        .as_ref()
        .is_some_and(|before| !matches!(before.step, InstallStep::Waiting | InstallStep::Failed));
    if begun || matches!(step, InstallStep::Waiting | InstallStep::Failed) {
        return None;
    }
    // As it counted when it was used: by now it may be past its end.
    let then = ticket.expires - SignedDuration::from_secs(1);
    let what = match sky.trust.verify(&ticket.document, then) {
        Ok(ticket) => super::ticket::erasing(&ticket),
        // The trust root is another one by now.
        Err(_) => format!("erasing the disk of ticket {}", ticket.id),
    };
    let (unit, number) = (&ticket.identity.unit, ticket.identity.incarnation);
    let message = format!(
        "machine {} becomes {unit} incarnation {number}, {what}",
        machine.code
    );
    let event = NewEvent::new("disk-erased", message);
    let event = event.machine(&machine.code, first_mac(&machine.facts));
    Some(event.unit(unit))
}

fn told(machine: &MachineRecord, progress: &Progress) -> Option<NewEvent> {
    let after = format!("after {} s", progress.seconds);
    let event = match progress.step {
        InstallStep::Waiting => return None,
        InstallStep::Done => NewEvent::new("born", format!("installed {after}, restarting")),
        InstallStep::Failed => {
            let problem = progress.problem.as_deref().unwrap_or("no reason given");
            NewEvent::new("install-failed", format!("gave up {after}: {problem}"))
        }
        step => NewEvent::new("install", format!("{} {after}", word(step))),
    };
    let event = event.machine(&machine.code, first_mac(&machine.facts));
    Some(match &machine.ticket {
        Some(ticket) => event.unit(&ticket.identity.unit),
        None => event,
    })
}

fn word(step: InstallStep) -> &'static str {
    match step {
        InstallStep::Waiting => "waiting",
        InstallStep::Partition => "partition",
        InstallStep::Write => "write",
        InstallStep::Boot => "boot",
        InstallStep::Identity => "identity",
        InstallStep::Verify => "verify",
        InstallStep::Done => "done",
        InstallStep::Failed => "failed",
    }
}

/// The address by which people find a machine on the bench: the first port with link.
pub(super) fn first_mac(facts: &MachineFacts) -> Option<MacAddr> {
    let linked = facts.nics.iter().find(|nic| nic.link);
    linked.or(facts.nics.first()).map(|nic| nic.mac)
}

/// Returns a machine's record.
pub(super) async fn find(
    session: &mut Session,
    code: &MachineCode,
) -> Result<MachineRecord, Problem> {
    session.machine(code).await?.ok_or_else(|| {
        Problem::not_found(format!("machine {code}: has not announced itself"))
            .hint("compare the code with the machine's screen: it is new at each start")
    })
}

/// Returns a machine as the operator sees it.
pub(super) fn view(machine: MachineRecord, now: Timestamp) -> MachineView {
    MachineView {
        state: state(&machine, now),
        unit: machine.ticket.map(|ticket| ticket.identity.unit),
        pass: machine.pass,
        code: machine.code,
        facts: machine.facts,
        keys: machine.keys,
        progress: machine.progress,
        first_seen: machine.first_seen,
        last_seen: machine.last_seen,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::RedemptionRecord;
    use jiff::ToSpan as _;
    use model::api::Enrolment;
    use model::machine::{DeviceKeys, DiskContent, DiskFacts};
    use model::ticket::{BirthTicket, ForeignData, TicketDisk};
    use model::{DeviceIdentity, Digest, Incarnation, Signer};

    pub(crate) const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    pub(crate) fn keys() -> DeviceKeys {
        DeviceKeys {
            csr: String::new(),
            public_key: Digest::of(b"key"),
            recipient: "age1x".into(),
            tpm: None,
        }
    }

    pub(crate) fn machine() -> MachineRecord {
        MachineRecord {
            code: MachineCode::of(&keys()),
            facts: MachineFacts {
                serial: "S1".into(),
                uuid: "u1".into(),
                product: "Box".into(),
                cpu: String::new(),
                cpus: 2,
                memory: 1 << 30,
                disks: vec![DiskFacts {
                    path: "/dev/vda".into(),
                    serial: "D1".into(),
                    model: String::new(),
                    size: 10 << 30,
                    removable: false,
                    content: DiskContent::Empty,
                    health: None,
                }],
                nics: vec![],
                firmware: "uefi".into(),
                secure_boot: false,
                tpm: false,
                findings: vec![],
            },
            keys: keys(),
            progress: None,
            first_seen: NOW,
            last_seen: NOW,
            ticket: None,
            pass: None,
        }
    }

    pub(crate) fn birth_ticket() -> BirthTicket {
        BirthTicket {
            id: "0a".repeat(16),
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(1),
            machine_serial: "S1".into(),
            machine_uuid: "u1".into(),
            device_keys: keys().fingerprint(),
            disk: TicketDisk {
                path: "/dev/vda".into(),
                serial: "D1".into(),
                size: 10 << 30,
            },
            mirror: None,
            release: "2026.11.1".parse().unwrap(),
            foreign_data: ForeignData::Keep,
            issued: NOW,
            expires: NOW + 1.hour(),
        }
    }

    pub(crate) fn ticket() -> TicketRecord {
        let ticket = birth_ticket();
        TicketRecord {
            id: ticket.id.clone(),
            machine: MachineCode::of(&keys()),
            identity: DeviceIdentity {
                unit: ticket.unit.clone(),
                incarnation: ticket.incarnation,
            },
            document: Signer::from_seed(&[1; 32]).sign(&ticket),
            expires: ticket.expires,
            current: Incarnation(1),
            redemption: None,
        }
    }

    pub(crate) fn used() -> TicketRecord {
        let ticket = ticket();
        TicketRecord {
            redemption: Some(RedemptionRecord {
                fingerprint: keys().fingerprint(),
                enrolment: Enrolment {
                    identity: ticket.identity.clone(),
                    certificate: "certificate".into(),
                    ca: "ca".into(),
                    sky: "https://sky".into(),
                },
            }),
            ..ticket
        }
    }

    fn with(ticket: Option<TicketRecord>, step: Option<InstallStep>) -> MachineRecord {
        MachineRecord {
            ticket,
            progress: step.map(|step| Progress {
                step,
                done: 0,
                total: 0,
                seconds: 1,
                problem: None,
            }),
            ..machine()
        }
    }

    /// Every combination of ticket and last step, so that none is forgotten.
    #[test]
    fn only_a_ticket_that_counts_leads_to_an_installation() {
        use InstallStep::{Done, Failed, Partition, Waiting};
        let fenced = |ticket: TicketRecord| TicketRecord {
            current: Incarnation(2),
            ..ticket
        };
        let expired = |ticket: TicketRecord| TicketRecord {
            expires: NOW,
            ..ticket
        };
        let tickets = [
            (None, false),
            (Some(ticket()), true),
            (Some(expired(ticket())), false),
            (Some(fenced(ticket())), false),
            (Some(used()), true),
            (Some(expired(used())), true),
            (Some(fenced(used())), false),
        ];
        for (ticket, good) in tickets {
            for step in [
                None,
                Some(Waiting),
                Some(Partition),
                Some(Failed),
                Some(Done),
            ] {
                let machine = with(ticket.clone(), step);
                let born = state(&machine, NOW) == MachineState::Born;
                match verdict(&machine, NOW) {
                    Verdict::Install { .. } => assert!(good && !born, "{machine:?}"),
                    Verdict::LocalDisk { .. } => assert!(born, "{machine:?}"),
                    Verdict::Held => assert!(!good && !born, "{machine:?}"),
                }
            }
        }
    }

    #[test]
    fn states_follow_ticket_and_progress() {
        use InstallStep::{Done, Failed, Partition, Waiting};
        let state = |ticket, step| state(&with(ticket, step), NOW);
        assert_eq!(state(None, None), MachineState::Held);
        assert_eq!(state(None, Some(Waiting)), MachineState::Held);
        assert_eq!(state(None, Some(Failed)), MachineState::Failed);
        assert_eq!(state(Some(ticket()), Some(Waiting)), MachineState::Approved);
        assert_eq!(state(Some(used()), Some(Waiting)), MachineState::Installing);
        assert_eq!(
            state(Some(used()), Some(Partition)),
            MachineState::Installing
        );
        assert_eq!(state(Some(used()), Some(Failed)), MachineState::Failed);
        assert_eq!(state(Some(used()), Some(Done)), MachineState::Born);
        // Told without a used ticket, it is no birth.
        assert_eq!(state(Some(ticket()), Some(Done)), MachineState::Approved);
    }

    #[test]
    fn progress_needs_a_used_ticket_and_never_undoes_a_birth() {
        use InstallStep::{Done, Partition, Verify, Waiting};
        assert!(decide_progress(&with(None, None), Waiting).unwrap());
        assert!(decide_progress(&with(Some(ticket()), None), Partition).is_err());
        assert!(decide_progress(&with(Some(used()), None), Partition).unwrap());
        assert!(!decide_progress(&with(Some(used()), Some(Done)), Verify).unwrap());
    }
}
