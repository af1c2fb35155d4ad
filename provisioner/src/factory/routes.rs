//! The factory's HTTP calls: the installer's, relayed to the sky with the
//! ledger kept; files of releases and layers; stories; boot files.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use model::api::{
    Accepted, Announcement, ApiError, Enrolment, InstallStep, MachineView, Progress, Redemption,
    Verdict,
};
use model::machine::MachineCode;
use model::{CustomerName, MacAddr, ReleaseVersion, TrustRoot};
use pxe::boot::{BootEvent, BootFile, BootSource, NotServed};
use serde::Deserialize;
use serde_json::json;
use slots::http::DiskPath;

use super::birth::{Boot, Event, Refusal};
use super::cache::{Cache, FetchError};
use super::disks::{self, DiskError, DiskShelf};
use super::ledger::{Details, Ledger, LedgerError, MachineRecord};
use super::sky::{SkyClient, SkyError};
use super::source::Bench;
use super::story::Story;

/// The longest that a verdict is waited for.
const WAIT: u64 = 50;
/// How long an installer waits for the sky to take note of its end.
const TELL: Duration = Duration::from_secs(5);
/// The largest body that is taken, in bytes.
const BODY: usize = 256 << 10;
/// Announcements that one address may make in [`WINDOW`].
const ANNOUNCEMENTS: u32 = 30;
/// See [`ANNOUNCEMENTS`].
const WINDOW: Duration = Duration::from_secs(60);

/// What the calls work on.
#[derive(Debug)]
pub struct Factory {
    /// The durable memory of machines.
    pub ledger: Arc<Ledger>,
    /// Files of releases and layers.
    pub cache: Arc<Cache>,
    /// Boot verdicts and stories.
    pub bench: Arc<Bench>,
    /// The sky.
    pub sky: SkyClient,
    /// Whose tickets count.
    pub trust: TrustRoot,
    /// The clock.
    pub clock: fn() -> Timestamp,
    /// Disks of customers.
    pub disks: DiskShelf,
    /// Announcements of each address.
    pub announcements: Announcements,
}

/// Returns the router of all calls.
pub fn router(factory: Arc<Factory>) -> Router {
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/machines", get(machines).post(announce))
        .route("/v1/machines/{machine}/verdict", get(verdict))
        .route("/v1/machines/{machine}/redeem", post(redeem))
        .route("/v1/machines/{machine}/progress", post(progress))
        .route("/v1/machines/{machine}/story", get(story))
        .route("/v1/releases/{version}/{*path}", get(release_file))
        .route("/v1/customers/{customer}/layer.json", get(layer_document))
        .route("/v1/customers/{customer}/layer.raw", get(layer_image))
        .route("/disk/{*path}", get(disk))
        .fallback(boot_file)
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(factory)
}

/// Returns the router of the metrics' own address, which is not the bench's.
pub fn metrics_router(factory: Arc<Factory>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(factory)
}

/// Returns the router of the control socket, which only this machine's root reaches.
pub fn control_router(factory: Arc<Factory>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/machines", get(machines))
        .route("/v1/machines/{machine}/invite", post(invite))
        .route("/v1/machines/{machine}/uninvite", post(uninvite))
        .with_state(factory)
}

/// An error on its way to the caller.
#[derive(Debug)]
struct Refused(StatusCode, ApiError);

impl Refused {
    fn new(status: StatusCode, code: &str, message: impl ToString, hint: Option<&str>) -> Self {
        Self(
            status,
            ApiError {
                code: code.into(),
                message: message.to_string(),
                hint: hint.map(str::to_owned),
                request: None,
            },
        )
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let retry = matches!(
            self.0,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        let mut response = (self.0, Json(self.1)).into_response();
        if retry {
            let value = header::HeaderValue::from_static("5");
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<SkyError> for Refused {
    fn from(error: SkyError) -> Self {
        let (status, body) = error.for_installer();
        if matches!(error, SkyError::Unreachable { .. }) {
            tracing::warn!(problem = chain(&error), "sky not reached");
        }
        Self(status, body)
    }
}

impl From<LedgerError> for Refused {
    fn from(error: LedgerError) -> Self {
        match &error {
            LedgerError::Refused(Refusal::HasDisk) => Self::new(
                StatusCode::CONFLICT,
                "born",
                &error,
                Some("to install it again: leap-provisioner invite MAC"),
            ),
            LedgerError::Refused(_) => Self::new(
                StatusCode::CONFLICT,
                "conflict",
                &error,
                Some("restart the machine: its installer announces itself again"),
            ),
            LedgerError::NoSuchMachine(_) => Self::new(
                StatusCode::NOT_FOUND,
                "not-found",
                &error,
                Some("the installer has to announce the machine first"),
            ),
            LedgerError::Ambiguous(_) => Self::new(StatusCode::CONFLICT, "conflict", &error, None),
            LedgerError::Store(problem) => {
                tracing::error!(%problem, "ledger not written");
                let hint = Some("check the disk of the factory");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", &error, hint)
            }
        }
    }
}

impl From<FetchError> for Refused {
    fn from(error: FetchError) -> Self {
        let text = chain(&error);
        if error.is_not_found() {
            return Self::new(StatusCode::NOT_FOUND, "not-found", text, None);
        }
        tracing::warn!(problem = text, "file not served");
        match error {
            FetchError::NotBelieved { .. } | FetchError::Wrong { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, "refused", text, None)
            }
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unreachable", text, None),
        }
    }
}

impl From<DiskError> for Refused {
    fn from(error: DiskError) -> Self {
        let text = chain(&error);
        match error {
            DiskError::Fetch(error) => error.into(),
            DiskError::NoRelease => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unreachable", text, None)
            }
            DiskError::Compose(_) => {
                tracing::error!(problem = text, "disk not composed");
                let hint = Some("see the factory's log; it needs mke2fs and room in its cache");
                let problem = "the disk could not be composed";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", problem, hint)
            }
        }
    }
}

/// One line of an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

type Shared = State<Arc<Factory>>;
type Peer = ConnectInfo<SocketAddr>;

async fn health(State(factory): Shared) -> Json<serde_json::Value> {
    let release = factory.cache.current().map(|current| current.version);
    Json(json!({ "ok": true, "factory": "leapserv", "release": release }))
}

async fn machines(State(factory): Shared) -> Json<Vec<MachineRecord>> {
    Json(factory.ledger.machines())
}

async fn metrics(State(factory): Shared) -> Response {
    let release = factory.cache.current().map(|current| current.version);
    let machines = factory.ledger.machines();
    let page = factory.bench.metrics.page(&machines, release);
    ([(header::CONTENT_TYPE, edge::metrics::CONTENT_TYPE)], page).into_response()
}

async fn story(State(factory): Shared, Path(mac): Path<MacAddr>) -> Json<Story> {
    Json(factory.bench.story(mac))
}

async fn announce(
    State(factory): Shared,
    ConnectInfo(peer): Peer,
    Json(body): Json<Announcement>,
) -> Result<Json<MachineView>, Refused> {
    if !factory.announcements.allow(peer.ip(), Instant::now()) {
        return Err(Refused::new(
            StatusCode::TOO_MANY_REQUESTS,
            "busy",
            "too many announcements from this address",
            None,
        ));
    }
    let code = MachineCode::of(&body.keys);
    let macs = body.facts.nics.iter().map(|nic| nic.mac).collect();
    let address = Some(peer.ip());
    let tell = |text: String| {
        factory.bench.tell_macs(macs, address, "installer", text);
    };
    let now = (factory.clock)();
    let announced = off_loop(&factory, {
        let (facts, code) = (body.facts.clone(), code.clone());
        move |factory| factory.ledger.announce(&facts, &code, now)
    })
    .await;
    match &announced {
        Ok(record) => tell(format!(
            "announced itself: code {code}, serial {:?}, {} disks; {}",
            record.serial,
            body.facts.disks.len(),
            record.birth.word()
        )),
        Err(problem) => tell(format!("announced itself: refused, {problem}")),
    }
    let record = announced?;
    tracing::info!(machine = record.label(), %code, "machine announced");
    Ok(Json(factory.sky.announce(&body).await?))
}

#[derive(Deserialize)]
struct Wait {
    #[serde(default)]
    wait: u64,
}

async fn verdict(
    State(factory): Shared,
    Path(code): Path<MachineCode>,
    Query(Wait { wait }): Query<Wait>,
) -> Result<Json<Verdict>, Refused> {
    let record = known(&factory, &code)?;
    if let Boot::LocalDisk(reason) = record.birth.boot() {
        return Ok(Json(Verdict::LocalDisk {
            reason: reason.into(),
        }));
    }
    let wait = Duration::from_secs(wait.min(WAIT));
    let verdict = factory.sky.verdict(&code, wait).await?;
    let now = (factory.clock)();
    match &verdict {
        Verdict::Held => {}
        Verdict::LocalDisk { reason } => {
            let event = Event::KeptDisk { code: code.clone() };
            apply(&factory, &code, event, Details::default(), now).await?;
            let text = format!("is told to boot its disk: {reason}");
            factory.bench.tell(&code, None, "sky", text);
        }
        Verdict::Install { ticket, .. } => {
            // The installer verifies for itself. Here it keeps a forged
            // ticket out of the ledger.
            let ticket = factory.trust.verify(ticket, now).map_err(|problem| {
                tracing::error!(%code, %problem, "ticket of the sky is not believed");
                Refused::new(StatusCode::BAD_GATEWAY, "refused", problem, None)
            })?;
            let event = Event::TicketShown {
                code: code.clone(),
                ticket: ticket.id.clone(),
            };
            let details = Details {
                unit: Some(ticket.unit.clone()),
                owed: None,
            };
            apply(&factory, &code, event, details, now).await?;
            let text = format!(
                "is shown ticket {} to become {} with release {}",
                ticket.id, ticket.unit, ticket.release
            );
            factory.bench.tell(&code, None, "sky", text);
        }
    }
    Ok(Json(verdict))
}

async fn redeem(
    State(factory): Shared,
    Path(code): Path<MachineCode>,
    Json(body): Json<Redemption>,
) -> Result<Json<Enrolment>, Refused> {
    if MachineCode::of(&body.keys) != code {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            format!("the keys are not those of code {code}"),
            None,
        ));
    }
    let event = Event::Redeemed {
        code: code.clone(),
        ticket: body.ticket.clone(),
    };
    // Before the ticket is burned: would the ledger take it?
    known(&factory, &code)?
        .birth
        .next(&event)
        .map_err(LedgerError::Refused)?;
    let enrolment = factory.sky.redeem(&code, &body).await?;
    let details = Details {
        unit: Some(enrolment.identity.unit.clone()),
        owed: None,
    };
    apply(&factory, &code, event, details, (factory.clock)()).await?;
    let text = format!("used its ticket: it becomes {}", enrolment.identity);
    factory.bench.tell(&code, None, "installer", text);
    factory.bench.metrics.redeemed();
    tracing::info!(%code, unit = %enrolment.identity.unit, "ticket redeemed");
    Ok(Json(enrolment))
}

async fn progress(
    State(factory): Shared,
    Path(code): Path<MachineCode>,
    Json(body): Json<Progress>,
) -> Result<Json<Accepted>, Refused> {
    let owed = Details {
        unit: None,
        owed: Some(body.clone()),
    };
    let now = (factory.clock)();
    match body.step {
        InstallStep::Done => {
            let event = Event::Done { code: code.clone() };
            let before = known(&factory, &code)?.birth;
            let record = apply(&factory, &code, event, owed, now).await?;
            // An end whose answer was lost is told again.
            if before.word() != record.birth.word() {
                factory.bench.metrics.born(body.seconds);
            }
            let text = format!(
                "is born after {} s; from now on it boots its disk",
                body.seconds
            );
            factory.bench.tell(&code, None, "installer", text);
            tracing::info!(
                machine = record.label(),
                seconds = body.seconds,
                "machine born"
            );
            tell_owed(&factory, &record).await;
        }
        InstallStep::Failed => {
            let event = Event::Failed { code: code.clone() };
            let before = known(&factory, &code)?.birth;
            let record = apply(&factory, &code, event, owed, now).await?;
            if before.word() != record.birth.word() {
                factory.bench.metrics.failed();
            }
            let problem = body.problem.as_deref().unwrap_or("no reason given");
            let text = format!("failed: {problem}");
            factory.bench.tell(&code, None, "installer", text);
            tracing::warn!(machine = record.label(), problem, "installation failed");
            tell_owed(&factory, &record).await;
        }
        step => {
            known(&factory, &code)?;
            let word = serde_json::to_value(step).unwrap_or_default();
            let text = format!("step {}", word.as_str().unwrap_or_default());
            factory.bench.tell(&code, None, "installer", text);
            // Passing news: the next of them makes up for one that is lost.
            if let Err(problem) = factory.sky.progress(&code, &body).await {
                tracing::debug!(%problem, "progress not told to the sky");
            }
        }
    }
    Ok(Json(Accepted {}))
}

/// Tells the sky the ends of installations that it has not taken note of.
pub async fn tell_all_owed(factory: &Arc<Factory>) {
    for record in factory.ledger.machines() {
        if record.owed.is_some() {
            tell_owed(factory, &record).await;
        }
    }
}

async fn tell_owed(factory: &Arc<Factory>, record: &MachineRecord) {
    let (Some(owed), Some(code)) = (&record.owed, record.birth.code()) else {
        return;
    };
    let told = tokio::time::timeout(TELL, factory.sky.progress(code, owed)).await;
    let over = match told {
        Ok(Ok(())) => true,
        // The sky has judged; asking again gives the same.
        Ok(Err(SkyError::Answered { status, error })) if status.is_client_error() => {
            tracing::warn!(%code, %status, %error, "the sky refuses the end of an installation");
            true
        }
        Ok(Err(problem)) => {
            tracing::warn!(%code, problem = chain(&problem), "end of an installation not told");
            false
        }
        Err(_) => false,
    };
    if over {
        let id = record.id;
        let settled = off_loop(factory, move |factory| factory.ledger.settle(id)).await;
        if let Err(problem) = settled {
            tracing::warn!(%problem, "ledger not written");
        }
    }
}

async fn invite(
    State(factory): Shared,
    Path(name): Path<String>,
) -> Result<Json<MachineRecord>, Refused> {
    named(
        &factory,
        name,
        Event::Invited,
        "is invited to the installer",
    )
    .await
}

async fn uninvite(
    State(factory): Shared,
    Path(name): Path<String>,
) -> Result<Json<MachineRecord>, Refused> {
    named(&factory, name, Event::Uninvited, "is to stay on its disk").await
}

async fn named(
    factory: &Arc<Factory>,
    name: String,
    event: Event,
    text: &str,
) -> Result<Json<MachineRecord>, Refused> {
    let now = (factory.clock)();
    let record = off_loop(factory, move |factory| {
        factory.ledger.apply_named(&name, &event, now)
    })
    .await?;
    let macs = record.macs.clone();
    factory
        .bench
        .tell_macs(macs, None, "operator", text.to_owned());
    Ok(Json(record))
}

async fn release_file(
    State(factory): Shared,
    Path((version, path)): Path<(ReleaseVersion, String)>,
    ConnectInfo(peer): Peer,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let now = (factory.clock)();
    let file = factory.cache.file(version, &path, now).await?;
    let path = format!("v1/releases/{version}/{path}");
    Ok(serve(&factory, file, peer, &method, &path, &headers).await)
}

async fn layer_document(
    State(factory): Shared,
    Path(customer): Path<CustomerName>,
) -> Result<Response, Refused> {
    let (document, _) = factory.cache.layer(&customer, (factory.clock)()).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
}

async fn layer_image(
    State(factory): Shared,
    Path(customer): Path<CustomerName>,
    ConnectInfo(peer): Peer,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let (_, image) = factory.cache.layer(&customer, (factory.clock)()).await?;
    let path = format!("v1/customers/{customer}/layer.raw");
    Ok(serve(&factory, image, peer, &method, &path, &headers).await)
}

async fn disk(
    State(factory): Shared,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let path: DiskPath = format!("/disk/{path}")
        .parse()
        .map_err(|problem| Refused::new(StatusCode::NOT_FOUND, "not-found", problem, None))?;
    let now = (factory.clock)();
    let disk = factory.disks.disk(&factory.cache, &path, now).await?;
    Ok(disks::respond(disk, &headers))
}

async fn boot_file(State(factory): Shared, ConnectInfo(peer): Peer, request: Request) -> Response {
    let source: Arc<dyn BootSource> = Arc::clone(&factory.bench) as _;
    let (method, headers) = (request.method(), request.headers());
    pxe::http::respond(source, peer.ip(), method, request.uri().path(), headers).await
}

/// Serves one file that was looked up already, with `pxe`'s ranges.
async fn serve(
    factory: &Arc<Factory>,
    file: std::path::PathBuf,
    peer: SocketAddr,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Response {
    let source = Arc::new(OneFile {
        file,
        bench: Arc::clone(&factory.bench),
    });
    pxe::http::respond(source, peer.ip(), method, path, headers).await
}

struct OneFile {
    file: std::path::PathBuf,
    bench: Arc<Bench>,
}

impl BootSource for OneFile {
    fn decide(&self, request: &pxe::boot::BootRequest) -> pxe::boot::BootAnswer {
        self.bench.decide(request)
    }

    fn open(&self, _: IpAddr, _: &str) -> Result<BootFile, NotServed> {
        Ok(BootFile::Path(self.file.clone()))
    }

    fn observe(&self, event: &BootEvent) {
        self.bench.observe(event);
    }
}

fn known(factory: &Factory, code: &MachineCode) -> Result<MachineRecord, Refused> {
    let record = factory.ledger.by_code(code);
    Ok(record.ok_or_else(|| LedgerError::NoSuchMachine(code.to_string()))?)
}

async fn apply(
    factory: &Arc<Factory>,
    code: &MachineCode,
    event: Event,
    details: Details,
    now: Timestamp,
) -> Result<MachineRecord, LedgerError> {
    let code = code.clone();
    off_loop(factory, move |factory| {
        factory.ledger.apply(&code, &event, details, now)
    })
    .await
}

/// Runs what waits for the disk beside the event loop.
async fn off_loop<T: Send + 'static>(
    factory: &Arc<Factory>,
    work: impl FnOnce(&Factory) -> T + Send + 'static,
) -> T {
    let factory = Arc::clone(factory);
    tokio::task::spawn_blocking(move || work(&factory))
        .await
        .expect("the ledger does not panic")
}

/// Announcements of each address, so that one machine in a fit cannot keep the
/// ledger and the sky busy.
#[derive(Debug, Default)]
pub struct Announcements(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl Announcements {
    fn allow(&self, peer: IpAddr, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (began, _)| now.duration_since(*began) < WINDOW);
        let (_, count) = all.entry(peer).or_insert((now, 0));
        *count += 1;
        *count <= ANNOUNCEMENTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_flood_and_does_not_starve_another() {
        let announcements = Announcements::default();
        let now = Instant::now();
        let [noisy, quiet] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let allowed = (0..100).filter(|_| announcements.allow(noisy, now)).count();
        assert_eq!(allowed, 30);
        assert!(announcements.allow(quiet, now));
        assert!(announcements.allow(noisy, now + WINDOW));
    }
}
