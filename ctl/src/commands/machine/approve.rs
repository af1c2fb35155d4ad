//! `leapctl machine approve`: the permission to erase a disk.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use edge::exit::{Failure, Kind, hint};
use jiff::SignedDuration;
use model::api::{IncarnationReason, MachineState, MachineView, UnitState, UnitView};
use model::machine::MachineCode;
use model::release::ReleaseManifest;
use model::ticket::{BirthTicket, ForeignData, TicketRefusal};
use model::{Digest, Incarnation, ReleaseVersion, Role, Signed, Signer, TrustRoot, UnitName};
use serde::Serialize;

use crate::birth::{self, MachineName, Terms};
use crate::client::Sky;
use crate::commands::{after, believe, duration, random_id, seconds};
use crate::condition::Judgement;
use crate::follow::{self, Newborn};
use crate::operator::Operator;
use crate::release_folder::MANIFEST;
use crate::replacement;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The code on the machine's screen
    #[arg(required_unless_present = "serial", conflicts_with = "serial")]
    code: Option<MachineCode>,
    /// The machine's serial number instead; waits until it announces itself
    #[arg(long)]
    serial: Option<String>,
    /// The unit that the machine becomes
    #[arg(long, value_name = "CUSTOMER/NAME")]
    unit: UnitName,
    #[command(flatten)]
    ticket: TicketArgs,
    /// Show how the installation goes, until the unit is in service
    #[arg(long)]
    wait: bool,
    /// How long to wait for the machine, and then for the unit, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,
}

/// What a birth ticket permits, as the operator says it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TicketArgs {
    /// The disk to erase, by serial or path; else the smallest fixed one of at least 12 GiB.
    /// Given twice: two disks that mirror each other
    #[arg(long, value_name = "SERIAL|PATH")]
    pub(crate) disk: Vec<String>,
    /// Mirror the system on the two smallest fixed disks of like size
    #[arg(long, conflicts_with = "disk")]
    pub(crate) mirrored: bool,
    /// Erase the disk although it holds data that is not ours
    #[arg(long)]
    pub(crate) erase_foreign: bool,
    /// The release to install; else the one that the unit's channel offers
    #[arg(long, value_name = "VERSION")]
    pub(crate) release: Option<ReleaseVersion>,
    /// How long the ticket may be used
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = duration)]
    pub(crate) valid: SignedDuration,
}

/// All that is needed to sign a ticket, found before anything was changed.
#[derive(Debug)]
pub(crate) struct Permission<'a> {
    args: &'a TicketArgs,
    signer: Signer,
    release: ReleaseVersion,
}

impl<'a> Permission<'a> {
    /// Finds the release that is to be installed on `unit`, and that the sky has it.
    pub(crate) async fn prepare(
        args: &'a TicketArgs,
        sky: &Sky,
        root: &TrustRoot,
        signer: Signer,
        unit: &UnitView,
    ) -> Result<Self, Failure> {
        let (release, expected) = match args.release {
            Some(release) => (release, None),
            None => {
                let channel = &unit.channel;
                let signed = sky.channel(channel).await?;
                let pointer = believe(root, &signed, &format!("channel {channel}"))?;
                // A machine is born with the release as it was first published; as a
                // unit it takes the revision of its components.
                let expected = (pointer.revision == 0).then_some(pointer.manifest);
                (pointer.release, expected)
            }
        };
        let failed =
            |next: &str, message: String| Failure::new(Kind::Failed, hint(anyhow!(message), next));
        let bytes = sky.release_file(release, MANIFEST).await?.ok_or_else(|| {
            let next = "leapctl release publish DIR";
            failed(next, format!("release {release}: the sky does not have it"))
        })?;
        if expected.is_some_and(|expected| expected != Digest::of(&bytes)) {
            let message = format!("release {release}: its manifest is not what the channel offers");
            return Err(failed(
                "leapctl release publish DIR --channel NAME",
                message,
            ));
        }
        let manifest: Signed<ReleaseManifest> = serde_json::from_slice(&bytes)
            .with_context(|| format!("release {release}: expected a signed manifest"))?;
        believe(root, &manifest, &format!("release {release}"))?;
        Ok(Self {
            args,
            signer,
            release,
        })
    }

    /// Writes a ticket, or says why this machine gets none.
    pub(crate) fn ticket(
        &self,
        machine: &MachineView,
        unit: &UnitName,
        incarnation: Incarnation,
    ) -> Result<BirthTicket, Failure> {
        let refused = |error: anyhow::Error| Failure::new(Kind::Refused, error);
        if !birth::keys_are_the_codes(machine) {
            return Err(refused(hint(
                anyhow!(
                    "machine {}: the sky shows other keys than those that this code stands for",
                    machine.code
                ),
                "compare the code with the machine's screen; the sky may be in hostile hands",
            )));
        }
        let disks = match self.args.mirrored {
            true => birth::choose_pair(&machine.facts, 0),
            false => birth::choose_disks(&machine.facts, &self.args.disk),
        };
        let disks = disks
            .map_err(|error| refused(hint(error, "name another disk with --disk SERIAL|PATH")))?;
        let now = edge::clock::now();
        let ticket = birth::ticket(
            machine,
            disks,
            Terms {
                id: random_id()?,
                unit: unit.clone(),
                incarnation,
                release: self.release,
                foreign_data: if self.args.erase_foreign {
                    ForeignData::Erase
                } else {
                    ForeignData::Keep
                },
                issued: now,
                expires: after(now, self.args.valid)?,
            },
        );
        // The installer's own rule: what it would refuse is not signed.
        match ticket.permits(&machine.facts, &machine.keys) {
            Ok(_) => Ok(ticket),
            Err(refusal @ TicketRefusal::ForeignData { .. }) => Err(refused(hint(
                refusal,
                "look at the disk, then name another one with --disk or add --erase-foreign",
            ))),
            Err(refusal) => Err(refused(refusal.into())),
        }
    }

    /// Signs a ticket and hands it to the machine through the sky.
    pub(crate) async fn give(
        &self,
        sky: &Sky,
        machine: &MachineView,
        ticket: &BirthTicket,
    ) -> Result<(), Failure> {
        sky.approve(&machine.code, &self.signer.sign(ticket))
            .await?;
        Ok(())
    }
}

/// Waits until the machine stands in its installer.
pub(crate) async fn await_machine(
    sky: &Sky,
    name: &MachineName,
    unit: &UnitName,
    timeout: Duration,
) -> Result<MachineView, Failure> {
    let machines = follow::until(
        &format!("wait for {name}"),
        timeout,
        async || sky.machines().await,
        |machines| judge(name, unit, machines),
    )
    .await?;
    name.find(&machines)
        .cloned()
        .ok_or_else(|| Failure::new(Kind::Failed, anyhow!("{name}: has gone away")))
}

/// Pure: whether the machine can be given a ticket for `unit`.
fn judge(name: &MachineName, unit: &UnitName, machines: &[MachineView]) -> Judgement {
    let Some(machine) = name.find(machines) else {
        return Judgement::NotYet("has not announced itself yet; is it powered on?".into());
    };
    match (machine.state, &machine.unit) {
        (MachineState::Held, _) => Judgement::Met,
        (_, Some(other)) if other != unit => {
            Judgement::Never(format!("is already approved for unit {other}"))
        }
        (MachineState::Approved, _) => Judgement::Met,
        (state, _) => Judgement::Never(format!(
            "its ticket is used already, its state is {}",
            crate::view::machine_word(state)
        )),
    }
}

/// A unit that has lived is replaced, with its secrets, and never born again.
pub(crate) fn refuse_lived(unit: &UnitView) -> Result<(), Failure> {
    // Whether an unhealthy unit has ever lived, the sky alone knows.
    if matches!(unit.state, UnitState::InService | UnitState::Rebirth) {
        return Err(Failure::new(
            Kind::Refused,
            hint(
                anyhow!("unit {}: has lived already", unit.unit),
                format!("leapctl unit replace {} --machine CODE", unit.unit),
            ),
        ));
    }
    Ok(())
}

/// Makes `machine` the first machine of `unit`: begins an incarnation unless one
/// waits for a machine, signs the ticket and hands it over.
pub(crate) async fn approve(
    sky: &Sky,
    permission: &Permission<'_>,
    unit: &UnitView,
    machine: &MachineView,
) -> Result<(Incarnation, BirthTicket), Failure> {
    // Refuses what it can before an incarnation is begun.
    permission.ticket(machine, &unit.unit, unit.incarnation)?;
    let machines = sky.machines().await?;
    let incarnation = match replacement::unborn_incarnation(unit, &machines) {
        Some(incarnation) => incarnation,
        None => {
            let begun = sky.begin_incarnation(&unit.unit, IncarnationReason::Birth);
            begun.await?.incarnation
        }
    };
    let ticket = permission.ticket(machine, &unit.unit, incarnation)?;
    permission.give(sky, machine, &ticket).await?;
    Ok((incarnation, ticket))
}

/// What was permitted.
#[derive(Debug, Serialize)]
pub(crate) struct Approval {
    pub(crate) unit: UnitName,
    pub(crate) incarnation: Incarnation,
    pub(crate) machine: MachineCode,
    pub(crate) ticket: BirthTicket,
    /// The unit's state, if it was waited for.
    pub(crate) state: Option<UnitState>,
    /// Seconds from the command's start.
    pub(crate) seconds: u64,
}

impl Approval {
    /// As a person reads it.
    pub(crate) fn human(&self) -> String {
        let ticket = &self.ticket;
        let mut text = format!(
            "machine {} (serial {}) may become {} incarnation {}\n  {}\n  release  {}\n  \
             ticket   {} until {}",
            self.machine,
            ticket.machine_serial,
            self.unit,
            self.incarnation,
            erased(ticket),
            ticket.release,
            ticket.id,
            ticket.expires,
        );
        match self.state {
            Some(state) => text.push_str(&format!(
                "\n  {} after {} s",
                crate::view::state_word(state),
                self.seconds
            )),
            None => text.push_str("\nfollow it with leapctl birth --watch"),
        }
        text
    }
}

/// What is lost, as a person reads it.
fn erased(ticket: &BirthTicket) -> String {
    let disks: Vec<String> = ticket
        .disks()
        .map(|disk| format!("{} ({})", disk.path, birth::size(disk.size)))
        .collect();
    match ticket.mirror {
        None => format!("disk     {} is erased", disks.join("")),
        Some(_) => format!("disks    {} are erased, and mirrored", disks.join(" and ")),
    }
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let begun = tokio::time::Instant::now();
        let (sky, keys) = (operator.sky()?, operator.keys()?);
        let root = keys.trust_root()?;
        let signer = keys.signer(Role::Configuration)?;
        let unit = sky.unit(&self.unit).await?;
        refuse_lived(&unit)?;
        let permission = Permission::prepare(&self.ticket, &sky, &root, signer, &unit).await?;
        let machine = self.machine(&sky).await?;
        let (incarnation, ticket) = approve(&sky, &permission, &unit, &machine).await?;
        let mut approval = Approval {
            unit: self.unit.clone(),
            incarnation,
            machine: machine.code.clone(),
            ticket,
            state: None,
            seconds: 0,
        };
        if self.wait {
            let newborn = Newborn {
                unit: self.unit.clone(),
                incarnation,
                machine: machine.code.clone(),
            };
            let unit = follow::birth(&sky, &newborn, seconds(self.timeout)).await?;
            approval.state = Some(unit.state);
        }
        approval.seconds = begun.elapsed().as_secs();
        operator.show(&approval, Approval::human);
        Ok(())
    }

    async fn machine(&self, sky: &Sky) -> Result<MachineView, Failure> {
        let name = match (&self.code, &self.serial) {
            (Some(code), _) => {
                // A code is read from a screen, so the machine is there or it is a mistake.
                sky.machine(code).await?;
                MachineName::Code(code.clone())
            }
            (None, serial) => MachineName::Serial(serial.clone().unwrap_or_default()),
        };
        await_machine(sky, &name, &self.unit, seconds(self.timeout)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::birth::tests::{disk, machine};

    fn permission(args: &TicketArgs) -> Permission<'_> {
        Permission {
            args,
            signer: Signer::from_seed(&[1; 32]),
            release: "2026.11.1".parse().unwrap(),
        }
    }

    fn args() -> TicketArgs {
        TicketArgs {
            disk: Vec::new(),
            mirrored: false,
            erase_foreign: false,
            release: None,
            valid: SignedDuration::from_hours(1),
        }
    }

    #[test]
    fn foreign_data_is_erased_only_when_the_operator_says_so() {
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        let mut used = disk("/dev/vda", "D1", 20);
        used.content = model::machine::DiskContent::Foreign;
        let machine = machine("S1", vec![used]);
        let mut args = args();
        let failure = permission(&args)
            .ticket(&machine, &unit, Incarnation(1))
            .unwrap_err();
        assert_eq!(failure.kind(), Kind::Refused);
        assert!(edge::exit::render(failure.error()).contains("--erase-foreign"));
        args.erase_foreign = true;
        let ticket = permission(&args).ticket(&machine, &unit, Incarnation(1));
        assert_eq!(ticket.unwrap().foreign_data, ForeignData::Erase);
    }

    #[test]
    fn a_mirror_takes_two_disks_and_erases_both() {
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        let disks = |serials: [&str; 3]| {
            let path = ["/dev/sda", "/dev/sdb", "/dev/sdc"].into_iter();
            let sizes = [120, 4000, 4001];
            let disks = path.zip(serials).zip(sizes);
            disks
                .map(|((path, serial), size)| disk(path, serial, size))
                .collect()
        };
        let machine = machine("S1", disks(["D1", "D2", "D3"]));
        let ticket = |args: &TicketArgs| {
            let ticket = permission(args).ticket(&machine, &unit, Incarnation(1));
            ticket
                .map(|ticket| erased(&ticket))
                .map_err(|failure| failure.to_string())
        };
        let named = |names: &[&str]| TicketArgs {
            disk: names.iter().map(ToString::to_string).collect(),
            ..args()
        };
        // Not the small one with a large one.
        let mirrored = TicketArgs {
            mirrored: true,
            ..args()
        };
        let both = "disks    /dev/sdb (3.9 TiB) and /dev/sdc (3.9 TiB) are erased, and mirrored";
        assert_eq!(ticket(&mirrored).unwrap(), both);
        assert_eq!(ticket(&named(&["D2", "/dev/sdc"])).unwrap(), both);
        assert_eq!(
            ticket(&args()).unwrap(),
            "disk     /dev/sda (120 GiB) is erased"
        );
        assert!(
            ticket(&named(&["D2", "/dev/sdb"]))
                .unwrap_err()
                .contains("named twice")
        );
        assert!(
            ticket(&named(&["D1", "D2", "D3"]))
                .unwrap_err()
                .contains("3 are named")
        );
        let one = crate::birth::tests::machine("S1", vec![disk("/dev/sda", "D1", 120)]);
        let refusal = permission(&mirrored).ticket(&one, &unit, Incarnation(1));
        let refusal = refusal.unwrap_err().to_string();
        assert!(
            refusal.contains("no two fixed disks of at least 12 GiB"),
            "{refusal}"
        );
    }

    #[test]
    fn a_machine_whose_keys_were_swapped_gets_no_ticket() {
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        let mut machine = machine("S1", vec![disk("/dev/vda", "D1", 20)]);
        machine.keys.recipient = "age1hostile".into();
        let failure = permission(&args())
            .ticket(&machine, &unit, Incarnation(1))
            .unwrap_err();
        assert_eq!(failure.kind(), Kind::Refused);
    }

    #[test]
    fn a_machine_is_waited_for_until_it_is_held() {
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        let name = MachineName::Serial("S1".into());
        assert!(matches!(judge(&name, &unit, &[]), Judgement::NotYet(_)));
        let mut machine = machine("S1", vec![]);
        assert_eq!(judge(&name, &unit, &[machine.clone()]), Judgement::Met);
        machine.state = MachineState::Approved;
        machine.unit = Some(unit.clone());
        assert_eq!(judge(&name, &unit, &[machine.clone()]), Judgement::Met);
        machine.unit = Some("motivatit/houma-2".parse().unwrap());
        assert!(matches!(
            judge(&name, &unit, &[machine]),
            Judgement::Never(_)
        ));
    }
}
