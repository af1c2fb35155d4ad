//! The one daemon on the unit: checks in, and does what the answers ask for.
//!
//! The check-in loop itself only talks, verifies and puts configurations on
//! trial. What takes long runs beside it: the update, the commands, the care
//! for the backup engine. They tell it when there is news.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use edge::durable::{self, Mode};
use model::api::{CheckIn, CheckInReply, HealthCheck, RejectedGeneration, UpdateStatus};
use model::backup::BackupStatus;
use model::command::UnitCommand;
use model::configuration::{Configuration, Settings};
use model::release::ChannelPointer;
use model::{Signed, TrustRoot, UnitName, Verified};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::activate;
use crate::command::{self, Ledger, lock};
use crate::config::Config;
use crate::generation::{self, Store};
use crate::health::{self, GateLog, GateResult, Repository, Said};
use crate::keeper::{self, Keeper};
use crate::mirror::Mirror;
use crate::replace;
use crate::secrets;
use crate::settings::{self, Change};
use crate::site::{Site, read_json};
use crate::sky::{CheckedIn, Sky};
use crate::update::{self, Outcome, Rejected, Running, Work};

/// Between two looks at the second disk of a mirrored system.
const CARE: Duration = Duration::from_secs(20);
/// The longest that one check-in may take.
const CHECK_IN: Duration = Duration::from_secs(20);
/// The longest that one check-in may take while a configuration is on trial.
const TRIAL_CHECK_IN: Duration = Duration::from_secs(5);
/// Between two check-ins before the first configuration says otherwise.
const UNCONFIGURED: Duration = Duration::from_secs(5);
/// The least pause between two check-ins.
const LEAST: Duration = Duration::from_millis(250);
/// The longest pause after failures.
const MOST: Duration = Duration::from_secs(15);
/// The longest pause of a fenced machine.
const FENCED_MOST: Duration = Duration::from_secs(900);
/// Failures after which the backup engine is started without the sky: a
/// unit whose line is down still has to back up.
const ALONE: u32 = 5;

/// Returns the pause after so many failures in a row, without jitter. Pure.
pub fn pause_after(failures: u32) -> Duration {
    // Quick at first: at a start the network comes up while this is tried.
    let steps = failures.saturating_sub(10).min(8);
    (Duration::from_millis(500) * (1 << steps)).min(MOST)
}

/// Returns the pause after so many refusals as a fenced machine. Pure.
pub fn pause_when_fenced(refusals: u32) -> Duration {
    (Duration::from_secs(30) * (1 << refusals.min(6))).min(FENCED_MOST)
}

fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness all units of a fleet call at once; nothing worse.
    let _ = getrandom::fill(&mut byte);
    pause * (900 + u32::from(byte[0]) * 200 / 255) / 1000
}

/// What the keeper of the backup engine has to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct KeeperOrders {
    configured: bool,
    may_run: bool,
    fenced: bool,
    escrow: Option<Option<u64>>,
    /// Rises with new secrets.
    secrets: u64,
    pause: Duration,
}

/// What goes on beside the check-in loop.
struct Beside {
    update: watch::Receiver<UpdateStatus>,
    offers: watch::Sender<Option<Verified<ChannelPointer>>>,
    orders: watch::Sender<KeeperOrders>,
    repository: watch::Receiver<Repository>,
    backup: watch::Receiver<Option<BackupStatus>>,
    commands: mpsc::UnboundedSender<UnitCommand>,
    settings: watch::Sender<Option<Settings>>,
    /// Counts the check-ins that were answered.
    answered: watch::Sender<u64>,
    wake: Arc<Notify>,
}

struct Daemon {
    site: Site,
    config: Config,
    trust: Arc<TrustRoot>,
    sky: Sky,
    me: UnitName,
    boot_id: String,
    slot: String,
    store: Store,
    /// Refused without a trial; told, and not remembered over a restart.
    refused: Option<RejectedGeneration>,
    ledger: Arc<Mutex<Ledger>>,
    said: Said,
    escrow_at_sky: Option<Option<u64>>,
    escrow_sent: Option<u64>,
    fenced: u32,
    beside: Beside,
}

/// Runs until `stop` is cancelled and nothing of it is at work any more.
///
/// Work is left where it next waits, as a power cut leaves it.
///
/// # Errors
/// The unit has no identity, or its durable state cannot be used.
pub async fn run(
    site: Site,
    disk: Option<PathBuf>,
    config: Config,
    stop: CancellationToken,
) -> Result<()> {
    let (mut daemon, beside) = Daemon::start(site, disk, config, &stop)?;
    tracing::info!(unit = %daemon.me, "updater runs");
    stop.run_until_cancelled(daemon.check_in_for_ever()).await;
    // What is in the middle of the disk's or a program's doing comes to its end.
    beside.join_all().await;
    Ok(())
}

impl Daemon {
    fn start(
        site: Site,
        disk: Option<PathBuf>,
        config: Config,
        stop: &CancellationToken,
    ) -> Result<(Self, JoinSet<()>)> {
        let trust = Arc::new(site.trust_root()?);
        let sky = Sky::of(&site)?;
        let enrolment = site.enrolment()?;
        let boot_id = site.boot_id()?;
        let now = edge::clock::now();
        let mut store = Store::open(&site, &trust, now)?;
        // Activation has done this; a daemon that was restarted has to, too.
        if store.end_interrupted()?.is_some() {
            settings::write(&site, store.confirmed().map(|one| &one.settings))?;
        }
        let mut rejected = Rejected::read(&site);
        let (_, given_up) = update::given_up(&site)?;
        rejected.learn(&site, &given_up, &GateLog::read(&site))?;
        let slot = Running::find(&site, disk.as_deref())
            .inspect_err(|problem| {
                tracing::error!(
                    problem = format!("{problem:#}"),
                    "no updates: disk not found"
                );
            })
            .map_or_else(|_| "?".to_owned(), |running| running.slot.to_string());

        let wake = Arc::new(Notify::new());
        let ledger = Arc::new(Mutex::new(Ledger::read(&site)));
        let (status, update) = watch::channel(UpdateStatus {
            state: "idle".to_owned(),
            rejected: update::given_up_rows(&site),
            ..UpdateStatus::default()
        });
        let (offers, offered) = watch::channel(None);
        let (orders, ordered) = watch::channel(KeeperOrders::default());
        let (repository_told, repository) = watch::channel(Repository::NotConfigured);
        let (backup_told, backup) = watch::channel(None);
        let (commands, queue) = mpsc::unbounded_channel();
        let (settings, settings_told) =
            watch::channel(store.confirmed().map(|one| one.settings.clone()));
        let (answered, answers) = watch::channel(0);
        let refresh = Arc::new(Notify::new());

        let updating = Updating {
            work: Work {
                site: site.clone(),
                trust: Arc::clone(&trust),
                sky: sky.clone(),
                disk,
                status,
                ledger: Arc::clone(&ledger),
                gate: config.gate(),
            },
            settings: settings_told,
            answers,
            orders: ordered.clone(),
            ledger: Arc::clone(&ledger),
            wake: Arc::clone(&wake),
        };
        let keeping = Keeping {
            site: site.clone(),
            orders: ordered,
            repository: repository_told,
            backup: backup_told,
            refresh: Arc::clone(&refresh),
            wake: Arc::clone(&wake),
        };
        let commanding = command_worker(
            site.clone(),
            Arc::clone(&ledger),
            queue,
            refresh,
            Arc::clone(&wake),
        );
        let mut beside = JoinSet::new();
        spawn(&mut beside, stop, updating.run(offered));
        spawn(&mut beside, stop, keeping.run());
        spawn(&mut beside, stop, commanding);

        let said = Said {
            applied: store.memory().applied,
            rejected: store.memory().rejected.map(|one| one.generation),
            ..Said::default()
        };
        let daemon = Self {
            config,
            trust,
            sky,
            me: enrolment.identity.unit,
            boot_id,
            slot,
            store,
            refused: None,
            ledger,
            said,
            escrow_at_sky: None,
            escrow_sent: None,
            fenced: 0,
            site,
            beside: Beside {
                update,
                offers,
                orders,
                repository,
                backup,
                commands,
                settings,
                answered,
                wake,
            },
        };
        Ok((daemon, beside))
    }

    async fn check_in_for_ever(&mut self) -> Infallible {
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let pause = self.turn(&mut failures).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.news(), if self.fenced == 0 => {}
            }
            tokio::time::sleep(LEAST.saturating_sub(begun.elapsed())).await;
        }
    }

    /// One check-in with all that follows from it. Returns the pause before the next.
    async fn turn(&mut self, failures: &mut u32) -> Duration {
        let result = match self.compose(true).await {
            Ok(body) => self.sky.check_in(&body, CHECK_IN).await,
            Err(problem) => Err(problem),
        };
        let pause = match result {
            Ok(CheckedIn::Reply(reply)) => {
                *failures = 0;
                self.unfence();
                self.said.checked_in = Some(edge::clock::now());
                self.said.sky_problem = None;
                match self.answer(*reply).await {
                    Ok(Follow::Soon) => LEAST,
                    Ok(Follow::Later) => jittered(self.interval()),
                    Err(problem) => {
                        tracing::error!(problem = format!("{problem:#}"), "answer not carried out");
                        jittered(self.interval())
                    }
                }
            }
            Ok(CheckedIn::Fenced(message)) => {
                self.fence(&message);
                jittered(pause_when_fenced(self.fenced))
            }
            Err(problem) => {
                *failures += 1;
                let text = format!("{problem:#}");
                if self.said.sky_problem.as_ref() != Some(&text) {
                    tracing::warn!(problem = text, "sky not reached");
                }
                self.said.sky_problem = Some(text);
                jittered(pause_after(*failures))
            }
        };
        self.order(*failures >= ALONE);
        if let Err(problem) = self.publish() {
            tracing::error!(problem = format!("{problem:#}"), "state not written");
        }
        pause
    }

    fn interval(&self) -> Duration {
        self.store.confirmed().map_or(UNCONFIGURED, |one| {
            Duration::from_secs(one.settings.check_in_seconds.into())
        })
    }

    /// Returns when there is something to tell.
    async fn news(&mut self) {
        let gate = async {
            if self.gate_passed() {
                std::future::pending::<()>().await;
            }
            while !self.gate_passed() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let mut repository = self.beside.repository.clone();
        let known = self.said.repository.clone();
        tokio::select! {
            () = self.beside.wake.notified() => {}
            () = gate => {}
            _ = repository.wait_for(|now| *now != known) => {}
        }
        self.said.repository = self.beside.repository.borrow().clone();
        drop(self.publish());
    }

    fn gate_passed(&self) -> bool {
        GateLog::passed(&self.site)
    }

    async fn compose(&mut self, with_backup: bool) -> Result<CheckIn> {
        let addresses = settings::links(&self.site)
            .await
            .map(|links| crate::network::addresses(&links))
            .unwrap_or_default();
        let gate = GateLog::read(&self.site);
        let result = gate.of_boot(&self.boot_id);
        let mut configuration = self.store.status();
        if self.refused.is_some() {
            configuration.rejected.clone_from(&self.refused);
        }
        let escrow = keeper::escrow(&self.site, &self.trust, self.escrow_at_sky)
            .inspect_err(|problem| {
                tracing::error!(problem = format!("{problem:#}"), "no escrow");
            })
            .unwrap_or_default();
        self.escrow_sent = escrow.as_ref().map(|sealed| sealed.version);
        let backup = if with_backup {
            self.beside.backup.borrow().clone()
        } else {
            None
        };
        let reports = lock(&self.ledger).reports();
        Ok(CheckIn {
            release: self.site.release()?,
            revision: activate::active_revision(&self.site)?,
            root_hash: self.site.root_hash()?.to_string(),
            slot: self.slot.clone(),
            boot_id: self.boot_id.clone(),
            healthy: result.is_some_and(|result| result.passed),
            checks: self.checks(result),
            configuration,
            update: self.beside.update.borrow().clone(),
            backup,
            escrow,
            secrets_version: secrets::read(&self.site)?.map(|mine| mine.version),
            reports,
            hostname: self.site.hostname()?,
            addresses,
        })
    }

    /// What the gate has said, or what can be said before it has ended; and in
    /// either case what is not active now.
    fn checks(&self, gate: Option<&GateResult>) -> Vec<HealthCheck> {
        let mut checks =
            gate.map_or_else(|| health::judge(&self.said), |result| result.checks.clone());
        let activation: Option<Vec<HealthCheck>> =
            read_json(&self.site.run("activation.json")).unwrap_or_default();
        for part in activation.into_iter().flatten() {
            match checks.iter_mut().find(|check| check.name == part.name) {
                // Components may have been replaced since.
                Some(check) => *check = part,
                None if !part.ok => checks.push(part),
                None => {}
            }
        }
        checks.extend(Mirror::read(&self.site).map(|mirror| mirror.check()));
        checks
    }

    /// Does what an answer asks for.
    async fn answer(&mut self, reply: CheckInReply) -> Result<Follow> {
        let mut follow = Follow::Later;
        self.beside.answered.send_modify(|count| *count += 1);
        self.escrow_at_sky = Some(reply.escrow_version);
        if lock(&self.ledger)
            .stored(&self.site, &reply.reports_stored)
            .is_err()
        {
            tracing::warn!("reports are told again after a restart");
        }
        match keeper::take_secrets(&self.site, &reply) {
            Ok(true) => {
                tracing::info!("the unit's secrets came from the escrow");
                self.beside.orders.send_modify(|orders| orders.secrets += 1);
                follow = Follow::Soon;
            }
            Ok(false) => {}
            Err(problem) => {
                tracing::error!(problem = format!("{problem:#}"), "secrets not taken");
            }
        }
        // Before the configuration, whose trial may take a while.
        for signed in &reply.commands {
            if self.take_command(signed)? {
                follow = Follow::Soon;
            }
        }
        if let Some(signed) = &reply.configuration
            && self.configure(signed).await?
        {
            follow = Follow::Soon;
        }
        if let Some(signed) = &reply.channel {
            match crate::channel::accept(&self.site, &self.trust, signed, edge::clock::now()) {
                Ok(pointer) => drop(self.beside.offers.send(Some(pointer))),
                Err(problem) => {
                    tracing::error!(problem = format!("{problem:#}"), "channel not believed");
                }
            }
        }
        let mine = secrets::read(&self.site)?.map(|mine| mine.version);
        if mine > reply.escrow_version && self.escrow_sent != mine {
            follow = Follow::Soon;
        }
        Ok(follow)
    }

    /// Takes a command; says whether there is something to report at once.
    fn take_command(&self, signed: &Signed<UnitCommand>) -> Result<bool> {
        let mut ledger = lock(&self.ledger);
        match ledger.judge(&self.trust, &self.me, signed, edge::clock::now()) {
            command::Verdict::Seen => Ok(false),
            command::Verdict::Refused(report) => {
                tracing::warn!(id = report.id, reason = report.message, "command refused");
                ledger.end(&self.site, report)?;
                Ok(true)
            }
            command::Verdict::Run(command) => {
                ledger.begin(&self.site, &command.id)?;
                self.beside
                    .commands
                    .send(command)
                    .ok()
                    .context("the command worker is gone")?;
                Ok(false)
            }
        }
    }

    /// Judges a generation and tries it; says whether there is something to report at once.
    async fn configure(&mut self, signed: &Signed<Configuration>) -> Result<bool> {
        let offered = match self.trust.verify(signed, edge::clock::now()) {
            Ok(offered) => offered.into_inner(),
            Err(problem) => {
                let claimed = generation::claimed_generation(signed);
                return Ok(self.refuse(claimed, problem.to_string()));
            }
        };
        match generation::judge(&self.store.memory(), &self.me, &offered) {
            generation::Verdict::Ignore => Ok(false),
            generation::Verdict::Refuse(reason) => Ok(self.refuse(offered.generation, reason)),
            generation::Verdict::Try => {
                self.refused = None;
                self.said.wanted = Some(offered.generation);
                self.publish()?;
                self.try_generation(signed, &offered).await?;
                let memory = self.store.memory();
                self.said.applied = memory.applied;
                self.said.rejected = memory.rejected.map(|one| one.generation);
                self.beside
                    .settings
                    .send_replace(self.store.confirmed().map(|one| one.settings.clone()));
                Ok(true)
            }
        }
    }

    fn refuse(&mut self, generation: u64, reason: String) -> bool {
        let refusal = Some(RejectedGeneration { generation, reason });
        if self.refused == refusal {
            return false;
        }
        if let Some(refusal) = &refusal {
            tracing::error!(
                generation = refusal.generation,
                reason = refusal.reason,
                "configuration refused"
            );
        }
        self.refused = refusal;
        true
    }

    /// Commit-confirm: what cuts the unit off is taken back.
    async fn try_generation(
        &mut self,
        signed: &Signed<Configuration>,
        offered: &Configuration,
    ) -> Result<()> {
        let generation = offered.generation;
        tracing::info!(generation, "configuration on trial");
        self.store.begin(signed, generation)?;
        match self.prove(&offered.settings).await {
            Ok(()) => {
                self.store.confirm(edge::clock::now())?;
                tracing::info!(generation, "configuration applied");
            }
            Err(problem) => {
                let reason = format!("{problem:#}");
                tracing::error!(generation, reason, "configuration taken back");
                let previous = self.store.confirmed().map(|one| one.settings.clone());
                if settings::write(&self.site, previous.as_ref())? == Change::Network {
                    settings::reload_network(&self.site).await?;
                }
                self.store.reject(generation, reason)?;
            }
        }
        Ok(())
    }

    async fn prove(&mut self, settings: &Settings) -> Result<()> {
        let begun = Instant::now();
        let limit = self.config.confirm();
        settings::choose_port(&self.site)?;
        if settings::write(&self.site, Some(settings))? == Change::Network {
            settings::reload_network(&self.site).await?;
            // networkd works on by itself: an answer over the old address proves nothing.
            while !settings::network_in_force(&self.site, settings).await? {
                if begun.elapsed() >= limit {
                    return Err(anyhow!("network not in force within {} s", limit.as_secs()));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        loop {
            let body = self.compose(false).await?;
            let left = limit.saturating_sub(begun.elapsed());
            let Err(problem) = self.sky.check_in(&body, TRIAL_CHECK_IN.min(left)).await else {
                return Ok(());
            };
            if begun.elapsed() >= limit {
                return Err(problem.context(format!(
                    "sky not reached within {} s with it",
                    limit.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn fence(&mut self, message: &str) {
        self.fenced += 1;
        if self.fenced > 1 {
            return;
        }
        tracing::error!(
            message,
            "this machine is fenced: another one is this unit now"
        );
        self.said.sky_problem = Some(message.to_owned());
        self.said.checked_in = None;
        if let Err(problem) =
            durable::write(&self.site.run("fenced"), message.as_bytes(), Mode::Public)
        {
            tracing::error!(problem = format!("{problem:#}"), "mark not written");
        }
    }

    fn unfence(&mut self) {
        if self.fenced > 0 {
            tracing::warn!("this machine is not fenced any more");
            self.fenced = 0;
            drop(std::fs::remove_file(self.site.run("fenced")));
        }
    }

    /// Tells the keeper of the backup engine what it has to know.
    fn order(&self, alone: bool) {
        let configured = self
            .store
            .confirmed()
            .is_some_and(|one| one.settings.backup.is_some());
        let now = KeeperOrders {
            configured,
            may_run: self.said.checked_in.is_some() || alone,
            fenced: self.fenced > 0,
            escrow: self.escrow_at_sky,
            secrets: self.beside.orders.borrow().secrets,
            pause: (self.interval() / 2).clamp(Duration::from_secs(3), Duration::from_secs(30)),
        };
        self.beside.orders.send_if_modified(|orders| {
            let news = *orders != now;
            *orders = now;
            news
        });
    }

    /// Says to the gate, and to whoever asks for the status, where the unit stands.
    fn publish(&mut self) -> Result<()> {
        self.said.repository = self.beside.repository.borrow().clone();
        durable::write_json(&self.site.run("state.json"), &self.said, Mode::Public)?;
        let update = self.beside.update.borrow().clone();
        durable::write_json(&self.site.run("update.json"), &update, Mode::Public)
    }
}

/// Whether the next check-in is due at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    Soon,
    Later,
}

fn spawn(
    beside: &mut JoinSet<()>,
    stop: &CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let stop = stop.clone();
    beside.spawn(async move {
        stop.run_until_cancelled(task).await;
    });
}

/// The update, beside the check-ins.
struct Updating {
    work: Work,
    settings: watch::Receiver<Option<Settings>>,
    answers: watch::Receiver<u64>,
    orders: watch::Receiver<KeeperOrders>,
    ledger: Arc<Mutex<Ledger>>,
    wake: Arc<Notify>,
}

impl Updating {
    async fn run(mut self, mut offers: watch::Receiver<Option<Verified<ChannelPointer>>>) {
        self.take_back().await;
        let site = &self.work.site;
        replace::tidy(site, &self.work.trust);
        let mut care = tokio::time::interval(CARE);
        care.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = tokio::select! {
                changed = offers.changed() => changed,
                _ = care.tick() => {
                    // What is on trial may be gone after the next start.
                    if GateLog::passed(&self.work.site) {
                        self.work.mirror();
                    }
                    continue;
                }
            };
            if changed.is_err() {
                return;
            }
            let Some(pointer) = offers.borrow_and_update().clone() else {
                continue;
            };
            let mut orders = self.orders.clone();
            let followed = tokio::select! {
                followed = self.work.follow(&pointer) => Some(followed),
                _ = orders.wait_for(|orders| orders.fenced) => None,
            };
            let Some(followed) = followed else {
                self.take_back().await;
                continue;
            };
            match followed {
                Ok(Outcome::Idle(problem)) => self.idle(problem),
                Ok(Outcome::Written) => {
                    self.work.mirror();
                    self.restart(&pointer, &mut offers).await;
                }
                Err(problem) => {
                    let text = format!("{problem:#}");
                    tracing::error!(release = %pointer.release, problem = text, "update not done");
                    self.idle(Some(text));
                }
            }
        }
    }

    /// Ends a trial of components that was left in the middle.
    async fn take_back(&self) {
        if let Err(problem) = replace::resume(&self.work.site, &self.work.trust).await {
            let problem = format!("{problem:#}");
            tracing::error!(problem, "components on trial not taken back");
        }
    }

    fn idle(&self, problem: Option<String>) {
        self.work.status.send_if_modified(|status| {
            let news = status.state != "idle" || status.problem != problem;
            "idle".clone_into(&mut status.state);
            status.target = None;
            status.problem = problem;
            if news {
                self.wake.notify_one();
            }
            news
        });
    }

    /// Waits for the maintenance window and restarts; another offer ends the wait.
    async fn restart(
        &mut self,
        pointer: &Verified<ChannelPointer>,
        offers: &mut watch::Receiver<Option<Verified<ChannelPointer>>>,
    ) {
        let release = pointer.release;
        self.state("waiting", release);
        loop {
            let settings = self.settings.borrow().clone();
            let minutes = settings.as_ref().map_or(Ok(0), |settings| {
                update::minutes_to_window(
                    &settings.maintenance,
                    &settings.time_zone,
                    edge::clock::now(),
                )
            });
            let minutes = minutes.unwrap_or_else(|problem| {
                tracing::error!(
                    problem = format!("{problem:#}"),
                    "no maintenance window known"
                );
                0
            });
            let busy = lock(&self.ledger).is_busy();
            if minutes == 0 && !busy && !self.orders.borrow().fenced {
                break;
            }
            let pause = if busy {
                Duration::from_secs(1)
            } else {
                Duration::from_secs(20)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = offers.changed() => {
                    let other = offers.borrow().as_ref().is_none_or(|now| now.release != release);
                    if changed.is_err() || other {
                        offers.mark_changed();
                        return;
                    }
                }
            }
        }
        self.state("restarting", release);
        // The sky should hear of it, but is not waited for.
        let before = *self.answers.borrow_and_update();
        self.wake.notify_one();
        drop(
            tokio::time::timeout(
                update::GOODBYE,
                self.answers.wait_for(|answered| *answered > before),
            )
            .await,
        );
        tracing::info!(%release, "restarting into the update");
        let reboot = self.work.site.tool("systemctl").arg("reboot");
        if let Err(problem) = reboot.run_async().await {
            self.idle(Some(format!("restart: {problem:#}")));
            return;
        }
        // The service manager stops this process soon.
        tokio::time::sleep(Duration::from_secs(300)).await;
    }

    fn state(&self, state: &str, release: model::ReleaseVersion) {
        self.work.say(|status| {
            state.clone_into(&mut status.state);
            status.target = Some(release);
            status.problem = None;
        });
        self.wake.notify_one();
    }
}

/// The care for the backup engine, beside the check-ins.
struct Keeping {
    site: Site,
    orders: watch::Receiver<KeeperOrders>,
    repository: watch::Sender<Repository>,
    backup: watch::Sender<Option<BackupStatus>>,
    refresh: Arc<Notify>,
    wake: Arc<Notify>,
}

impl Keeping {
    async fn run(mut self) {
        let mut keeper = Keeper::new(&self.site);
        let mut secrets = 0;
        let mut fenced = false;
        loop {
            let orders = *self.orders.borrow_and_update();
            if orders.secrets != secrets {
                secrets = orders.secrets;
                keeper.forget();
            }
            let kept = if orders.fenced {
                let fencing = if fenced { Ok(()) } else { keeper.fence().await };
                fenced = fencing.is_ok();
                fencing.map(|()| Repository::Waiting {
                    reason: "this machine is fenced".to_owned(),
                })
            } else if orders.may_run || !orders.configured {
                fenced = false;
                keeper.keep(orders.configured, orders.escrow).await
            } else {
                Ok(Repository::Waiting {
                    reason: "the sky was not reached yet".to_owned(),
                })
            };
            let (now, pause) = match kept {
                Ok(now) => (now, orders.pause),
                Err(problem) => {
                    let reason = format!("{problem:#}");
                    tracing::error!(reason, "backup engine not ready");
                    (Repository::Waiting { reason }, keeper::AFTER_FAILURE)
                }
            };
            let status = match orders.fenced {
                true => None,
                false => keeper::status(&self.site).await,
            };
            let first = self.backup.borrow().is_none() && status.is_some();
            self.backup.send_replace(status);
            self.repository.send_if_modified(|repository| {
                let news = *repository != now;
                *repository = now;
                news
            });
            if first {
                self.wake.notify_one();
            }
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() { return },
                () = self.refresh.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Carries out commands one after the other.
async fn command_worker(
    site: Site,
    ledger: Arc<Mutex<Ledger>>,
    mut queue: mpsc::UnboundedReceiver<UnitCommand>,
    refresh: Arc<Notify>,
    wake: Arc<Notify>,
) {
    while let Some(command) = queue.recv().await {
        let report = command::carry_out(&site, &command).await;
        if let Err(problem) = lock(&ledger).end(&site, report) {
            tracing::error!(problem = format!("{problem:#}"), "report not stored");
        }
        refresh.notify_one();
        wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failures_are_repeated_quickly_and_many_slowly() {
        assert_eq!(pause_after(1), Duration::from_millis(500));
        assert_eq!(pause_after(10), Duration::from_millis(500));
        assert_eq!(pause_after(12), Duration::from_secs(2));
        assert_eq!(pause_after(u32::MAX), MOST);
        let mut last = Duration::ZERO;
        for failures in 0..50 {
            assert!(pause_after(failures) >= last);
            last = pause_after(failures);
        }
    }

    #[test]
    fn a_fenced_machine_calls_slowly() {
        assert!(pause_when_fenced(1) >= Duration::from_secs(30));
        assert_eq!(pause_when_fenced(u32::MAX), FENCED_MOST);
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(60));
            assert!(pause >= Duration::from_secs(54) && pause <= Duration::from_secs(66));
        }
    }
}
