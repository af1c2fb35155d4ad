//! A machine's way from its facts to its restart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use model::api::{Announcement, Credential, InstallStep, Redemption, Verdict};
use model::machine::{DiskContent, MachineCode, MachineFacts};
use model::release::{CustomerLayer, ReleaseManifest};
use model::ticket::BirthTicket;
use model::trust::TrustError;
use model::{Digest, Signed, TrustRoot, Verified};
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::console::Console;
use super::install::{self, Job, Layer, Paper, Progress};
use super::keys::{self, Keys};
use super::link::{Link, LinkError};
use super::memory::{BadMemory, MemoryTest};
use super::permit::ErasePermit;
use super::{plan, preflight};

/// How often one ticket is tried while only the link is to blame.
const TRIES: u32 = 3;
/// Between two looks for another ticket after a failure.
const RECHECK: Duration = Duration::from_secs(5);
/// How long to try to tell the factory of a failure.
const TELL: Duration = Duration::from_secs(60);
/// A customer's layer is kilobytes; more is a mistake.
const MAX_LAYER: usize = 16 << 20;

/// What a birth needs.
#[derive(Debug)]
pub struct Setup {
    /// Whom to believe.
    pub trust: TrustRoot,
    /// What this machine is.
    pub facts: MachineFacts,
    /// The way to the factory.
    pub link: Link,
    /// What a person sees.
    pub console: Console,
    /// Correction of the machine's clock.
    pub clock: Clock,
    /// How far the machine's clock was off.
    pub clock_was_off: Option<SignedDuration>,
    /// Memory of which a share may be tested, in bytes; none to test none.
    pub free_memory: Option<u64>,
    /// Where the machine's TPM is, if it has one.
    pub tpm: Option<PathBuf>,
    /// A folder in memory.
    pub scratch: PathBuf,
    /// What to do after a failure.
    pub after_failure: AfterFailure,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Show it and wait for another ticket.
    Hold,
    /// End with the error.
    End,
}

/// The machine's clock, corrected.
///
/// A new machine's clock may stand anywhere. The factory's time is taken where
/// the two differ by much; that way a false factory can make an expired ticket
/// look good here. It gains nothing: a ticket is bound to keys that were made a
/// moment ago and are nowhere else, and the sky burns it by its own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    offset: SignedDuration,
}

/// No honest clock is earlier: this program is not older.
const FLOOR: Timestamp = Timestamp::constant(1_793_491_200, 0);
/// How far a clock may be off before it is corrected.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(10);

impl Clock {
    /// Decides how to correct a clock that says `own` where the factory says `told`.
    pub fn corrected(own: Timestamp, told: Option<Timestamp>) -> Self {
        let offset = match told {
            Some(told) if told >= FLOOR && own.duration_until(told).abs() > TOLERANCE => {
                own.duration_until(told)
            }
            _ => SignedDuration::ZERO,
        };
        Self { offset }
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        edge::clock::now()
            .checked_add(self.offset)
            .unwrap_or(Timestamp::MAX)
    }

    /// How much the machine's clock is off, if it is.
    pub fn offset(&self) -> Option<SignedDuration> {
        (!self.offset.is_zero()).then_some(self.offset)
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// A unit was born; restart.
    Born {
        /// The disk that it is on.
        disk: String,
    },
    /// Restart from the disk that is there.
    LocalDisk {
        /// Why.
        reason: String,
    },
}

/// Announces the machine, waits for its ticket, installs.
///
/// # Errors
/// The factory is gone for too long, or, with [`AfterFailure::End`], whatever
/// went wrong. Before a ticket is used, nothing on the machine has changed.
pub async fn birth(setup: &Setup) -> Result<Ending> {
    let Setup { console, link, .. } = setup;
    let mut memory = match setup.free_memory {
        Some(free) => MemoryTest::start(free),
        None => MemoryTest::none(),
    };
    let (keys, place) = make_keys(setup)?;
    let code = MachineCode::of(keys.public());
    console.machine(&describe(&setup.facts));
    for disk in &setup.facts.disks {
        let content = match disk.content {
            DiskContent::Empty => "empty",
            DiskContent::Leapserv => "leapserv",
            DiskContent::Foreign => "foreign",
        };
        console.line(&format!("disk {} {} bytes {content}", disk.path, disk.size));
    }
    let mut facts = setup.facts.clone();
    facts.findings = preflight::check(&facts, setup.clock_was_off, &place);
    console.findings(&facts.findings);
    let announcement = Announcement {
        facts,
        keys: keys.public().clone(),
        installer: env!("CARGO_PKG_VERSION").into(),
    };
    let mut tried: BTreeMap<String, u32> = BTreeMap::new();
    'announce: loop {
        if let Some(ending) = announce(setup, &announcement).await? {
            return Ok(ending);
        }
        console.code(&code);
        console.step(InstallStep::Waiting, 0, 0);
        loop {
            let verdict = match link.verdict(&code).await {
                Ok(verdict) => verdict,
                // The factory or the sky has forgotten us.
                Err(error) if error.is_not_found() => {
                    console.line("unknown to the factory, announcing again");
                    sleep(Duration::from_secs(1)).await;
                    continue 'announce;
                }
                Err(error @ LinkError::Lost { .. }) => return Err(error.into()),
                Err(error) => {
                    fail(setup, &code, error.into(), Tell::Screen).await?;
                    continue;
                }
            };
            match verdict {
                Verdict::Held => {
                    console.step(InstallStep::Waiting, 0, 0);
                    if let Some(bad) = memory.news() {
                        fail(setup, &code, bad.into(), Tell::Everyone).await?;
                    }
                }
                Verdict::LocalDisk { reason } => return Ok(Ending::LocalDisk { reason }),
                Verdict::Install { ticket, credential } => {
                    let name = ticket_name(&ticket);
                    let tries = tried.entry(name).or_default();
                    if *tries >= TRIES {
                        // Shown already; an operator has to give another one.
                        sleep(RECHECK).await;
                        continue;
                    }
                    *tries += 1;
                    let installed = match memory.verdict() {
                        Ok(_) => install(setup, &keys, &code, &ticket, credential.as_ref()).await,
                        Err(bad) => Err(bad.into()),
                    };
                    match installed {
                        Ok(disk) => return Ok(Ending::Born { disk }),
                        Err(error) => {
                            // What is not the link's fault would only happen again.
                            if !is_link(&error) {
                                *tries = TRIES;
                            }
                            fail(setup, &code, error, Tell::Everyone).await?;
                        }
                    }
                }
            }
        }
    }
}

/// In the TPM where there is one that works.
fn make_keys(setup: &Setup) -> Result<(Keys, preflight::Keys)> {
    let place = match setup.tpm.as_deref().map(Keys::generate_in) {
        Some(Ok(keys)) => {
            setup.console.line("keys: made in the TPM");
            return Ok((keys, preflight::Keys::InTpm));
        }
        // The operator sees it, and may well refuse the machine.
        Some(Err(error)) => preflight::Keys::TpmFailed(format!("{error:#}")),
        None => preflight::Keys::NoTpm,
    };
    Ok((Keys::generate().context("make the keys")?, place))
}

async fn announce(setup: &Setup, body: &Announcement) -> Result<Option<Ending>> {
    loop {
        match setup.link.announce(body).await {
            Ok(_) => return Ok(None),
            Err(LinkError::Answered { error, .. }) if error.code == "born" => {
                let reason = error.message;
                return Ok(Some(Ending::LocalDisk { reason }));
            }
            Err(error @ LinkError::Lost { .. }) => return Err(error.into()),
            Err(error) => {
                let code = MachineCode::of(&body.keys);
                fail(setup, &code, error.into(), Tell::Screen).await?;
            }
        }
    }
}

/// To whom a failure is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Screen,
    Everyone,
}

async fn fail(setup: &Setup, code: &MachineCode, error: anyhow::Error, tell: Tell) -> Result<()> {
    let problem = format!("{error:#}");
    setup.console.error(&problem, next_step(&error));
    if tell == Tell::Everyone {
        let report = model::api::Progress {
            step: InstallStep::Failed,
            done: 0,
            total: 0,
            seconds: setup.console.seconds(),
            problem: Some(problem),
        };
        // It waits for people anyway, but not for ever for the link.
        let told = tokio::time::timeout(TELL, setup.link.report(code, &report)).await;
        if !matches!(told, Ok(Ok(()))) {
            setup.console.line("the factory does not know of it");
        }
    }
    match setup.after_failure {
        AfterFailure::End => Err(error),
        AfterFailure::Hold => {
            sleep(RECHECK).await;
            Ok(())
        }
    }
}

/// The ticket's text names it here: nothing in it is believed yet.
fn ticket_name(ticket: &Signed<BirthTicket>) -> String {
    let text = serde_json::to_vec(ticket).unwrap_or_default();
    Digest::of(&text).to_string()
}

fn is_link(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| matches!(cause.downcast_ref(), Some(LinkError::Lost { .. })))
}

/// What a person does about an error.
fn next_step(error: &anyhow::Error) -> &'static str {
    let find = |wanted: fn(&(dyn std::error::Error + 'static)) -> Option<&'static str>| {
        error.chain().find_map(wanted)
    };
    let known = find(|cause| match cause.downcast_ref::<TrustError>() {
        Some(TrustError::Expired { .. }) => {
            Some("approve the machine again: the ticket has expired")
        }
        Some(_) => Some("check that installer, sky and operators share one trust root"),
        None => None,
    })
    .or_else(|| {
        find(|cause| {
            use model::ticket::TicketRefusal::{ForeignData, Removable};
            match cause.downcast_ref::<model::ticket::TicketRefusal>() {
                Some(ForeignData { .. }) => {
                    Some("approve again with permission to erase foreign data, or use another disk")
                }
                Some(Removable { .. }) => Some("approve a fixed disk"),
                Some(_) => Some("approve this machine by the code on its screen"),
                None => None,
            }
        })
    })
    .or_else(|| {
        find(|cause| {
            let bad = cause.downcast_ref::<BadMemory>();
            bad.map(|_| "replace the memory, then switch the machine on again")
        })
    })
    .or_else(|| {
        find(|cause| match cause.downcast_ref::<LinkError>() {
            Some(LinkError::Lost { .. }) => {
                Some("check cable, switch and factory; it goes on by itself")
            }
            Some(LinkError::Answered { status, .. }) if status.as_u16() == 401 => {
                Some("ask support for another one-time code, then switch the machine off and on")
            }
            Some(LinkError::Answered { .. }) => Some("look at the factory: leapctl explain MAC"),
            None => None,
        })
    })
    .or_else(|| {
        find(|cause| match cause.downcast_ref::<plan::PlanRefusal>() {
            Some(plan::PlanRefusal::Disk { .. }) => Some("put a larger disk in"),
            Some(plan::PlanRefusal::Firmware(_)) => {
                Some("switch the firmware to UEFI network boot")
            }
            Some(plan::PlanRefusal::Memory { .. }) => Some("put more memory in"),
            Some(_) => Some("approve again with a release for this machine"),
            None => None,
        })
    })
    .or_else(|| {
        find(|cause| {
            use slots::writer::WriteError::{BadSegment, Target};
            match cause.downcast_ref::<slots::writer::WriteError>() {
                Some(BadSegment { .. }) => {
                    Some("the image arrives altered or the disk does not keep it: check both")
                }
                Some(Target { .. }) => Some("the disk fails: replace it, then approve again"),
                _ => None,
            }
        })
    });
    known.unwrap_or("look at the reason above, then approve the machine again")
}

fn describe(facts: &MachineFacts) -> String {
    let serial = match facts.serial.as_str() {
        "" => "no serial",
        serial => serial,
    };
    format!(
        "{serial}, {}, {} CPUs, {} MiB, {} disks, {} ports",
        facts.firmware,
        facts.cpus,
        facts.memory >> 20,
        facts.disks.len(),
        facts.nics.len()
    )
}

async fn install(
    setup: &Setup,
    keys: &Keys,
    code: &MachineCode,
    signed: &Signed<BirthTicket>,
    credential: Option<&Credential>,
) -> Result<String> {
    let Setup {
        trust,
        facts,
        link,
        console,
        clock,
        ..
    } = setup;
    let ticket = trust.verify(signed, clock.now())?;
    let (unit, release) = (ticket.unit.clone(), ticket.release);
    let permit = ErasePermit::grant(ticket, facts, keys.public())?;
    console.unit(&format!("{unit} release {release}"));
    // All that can be refused is refused before the ticket is used.
    let manifest_bytes = link.manifest(release).await?;
    let manifest = believe_manifest(trust, &manifest_bytes, clock.now())?;
    let plan = plan::plan(facts, permit.disks(), permit.ticket(), &manifest)?;
    let disk = plan.disks[0].path.clone();
    for action in &plan.actions {
        tracing::debug!(%action, "planned");
    }
    let layer = fetch_layer(setup, permit.ticket()).await?;
    permit.recheck()?;
    let redemption = Redemption {
        ticket: permit.ticket().id.clone(),
        keys: keys.public().clone(),
        proof: keys.prove(credential).context("prove where the keys are")?,
    };
    let enrolment = link.redeem(code, &redemption).await?;
    keys::check_enrolment(&enrolment, permit.ticket(), keys.public())?;
    let papers = papers(keys, &enrolment, signed)?;
    let progress = Progress::new(console.clone());
    let job = Job {
        plan,
        permit,
        manifest: Arc::new(manifest),
        manifest_bytes,
        layer,
        papers,
        link: link.clone(),
        progress: progress.clone(),
        scratch: setup.scratch.clone(),
    };
    let mentions = tokio::spawn(mention(link.clone(), code.clone(), progress));
    let applied = tokio::task::spawn_blocking(move || install::apply(&job)).await;
    mentions.abort();
    // So that nothing of it comes after the end.
    drop(mentions.await);
    applied.context("the installing thread ended")??;
    console.step(InstallStep::Done, 1, 1);
    let done = model::api::Progress {
        step: InstallStep::Done,
        done: 1,
        total: 1,
        seconds: console.seconds(),
        problem: None,
    };
    if let Err(error) = link.report(code, &done).await {
        // The disk is whole. The factory will hold the machine, and an
        // operator sees it.
        console.error(
            &format!("{:#}", anyhow!(error)),
            "the unit is on its disk, but the factory does not know: boot the disk by hand",
        );
    }
    console.line(&format!("born {unit}"));
    Ok(disk)
}

fn believe_manifest(
    trust: &TrustRoot,
    bytes: &Bytes,
    now: Timestamp,
) -> Result<Verified<ReleaseManifest>> {
    let signed: Signed<ReleaseManifest> =
        serde_json::from_slice(bytes).context("manifest: expected a signed document")?;
    Ok(trust.verify(&signed, now)?)
}

async fn fetch_layer(setup: &Setup, ticket: &BirthTicket) -> Result<Option<Layer>> {
    let customer = ticket.unit.customer();
    let document = match setup.link.layer(customer, "layer.json").await {
        Ok(document) => document,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let signed: Signed<CustomerLayer> =
        serde_json::from_slice(&document).context("customer layer: expected a signed document")?;
    let layer = setup.trust.verify(&signed, setup.clock.now())?;
    ensure!(
        layer.customer == *customer,
        "customer layer: for {}, expected {customer}",
        layer.customer
    );
    let image = setup.link.layer(customer, "layer.raw").await?;
    ensure!(
        image.len() <= MAX_LAYER && Digest::of(&image) == layer.image.sha256,
        "customer layer: the image is not the signed one"
    );
    Ok(Some(Layer { document, image }))
}

fn papers(
    keys: &Keys,
    enrolment: &model::api::Enrolment,
    ticket: &Signed<BirthTicket>,
) -> Result<Vec<Paper>> {
    let paper = |name, content: String, mode| Paper {
        name,
        content: Zeroizing::new(content),
        mode,
    };
    let enrolment_json = serde_json::to_string_pretty(enrolment).context("encode the enrolment")?;
    let ticket_json = serde_json::to_string_pretty(ticket).context("encode the ticket")?;
    Ok(vec![
        paper("device.key", keys.device_key().to_owned(), 0o600),
        paper("age.key", keys.age_key().to_string(), 0o600),
        paper("device.crt", enrolment.certificate.clone(), 0o644),
        paper("ca.crt", enrolment.ca.clone(), 0o644),
        paper("enrolment.json", enrolment_json, 0o644),
        paper("ticket.json", ticket_json, 0o644),
    ])
}

/// Passes progress on, about once a second.
async fn mention(link: Link, code: MachineCode, progress: Progress) {
    let mut watch = progress.watch();
    while watch.changed().await.is_ok() {
        let told = watch.borrow_and_update().clone();
        if let Some(told) = told {
            link.mention(&code, &told).await;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_1970_is_corrected_and_a_good_one_is_left_alone() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let hour = SignedDuration::from_hours(1);
        let second = SignedDuration::from_secs(1);
        assert!(FLOOR < now);
        let offset = |own, told| Clock::corrected(own, told).offset();
        assert!(offset(Timestamp::UNIX_EPOCH, Some(now)).is_some());
        assert_eq!(offset(now - hour, Some(now)), Some(hour));
        assert_eq!(offset(now - second, Some(now)), None);
        assert_eq!(offset(now, None), None);
        // A factory that itself stands in 1970 is not believed.
        assert_eq!(offset(now, Some(Timestamp::UNIX_EPOCH)), None);
    }

    #[test]
    fn each_kind_of_error_has_its_next_step() {
        let expired = TrustError::Expired {
            kind: "ticket",
            expired: FLOOR,
            now: FLOOR,
        };
        let foreign = model::ticket::TicketRefusal::ForeignData {
            id: "1".into(),
            path: "/dev/vda".into(),
        };
        let steps = [
            next_step(&anyhow::Error::new(expired).context("x")),
            next_step(&anyhow::Error::new(foreign)),
            next_step(&anyhow::Error::new(plan::PlanRefusal::Firmware(
                "bios".into(),
            ))),
            next_step(&anyhow::Error::new(BadMemory { wrote: 1, read: 0 })),
            next_step(&anyhow!("something else")),
        ];
        let different: std::collections::BTreeSet<_> = steps.iter().collect();
        assert_eq!(different.len(), steps.len());
    }
}
