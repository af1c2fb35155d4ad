//! The daemon: does what is due, forever.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Extent};
use crate::schedule::{Due, due};
use crate::site::Site;
use crate::state::State;

/// How often configuration and state are looked at; the updater and the
/// command line change them.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a failure is left alone.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
/// How long the daemon waits for a command that holds the lock.
const LOCK_WAIT: Duration = Duration::from_secs(3600);

/// Runs until `stop` is cancelled. A unit that is not set up yet is waited for.
pub async fn serve(site: &Site, stop: CancellationToken) {
    tracing::info!("backup daemon runs");
    let mut waiting = String::new();
    loop {
        let pause = tokio::select! {
            () = stop.cancelled() => return,
            pause = step(site, &mut waiting) => pause,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Does one thing that is due and says how long to pause.
async fn step(site: &Site, waiting: &mut String) -> Duration {
    let opened = Engine::open(site, LOCK_WAIT).and_then(|engine| engine.ready().map(|()| engine));
    let engine = match opened {
        Ok(engine) => engine,
        Err(error) => {
            // Said once, not every few seconds.
            let told = format!("{error:#}");
            if *waiting != told {
                tracing::info!(reason = told, "waiting");
                *waiting = told;
            }
            return LOOK_EVERY;
        }
    };
    waiting.clear();
    let done = if engine.is_filling() {
        engine.attach(Extent::Everything).await.map(drop)
    } else {
        match due(engine.config(), &State::read(site), edge::clock::now()) {
            Due::Run(sources) => engine.run(&sources).await.map(drop),
            Due::Replicate => engine.replicate().await.map(drop),
            Due::Nothing(_) => return LOOK_EVERY,
        }
    };
    match done {
        Ok(()) => Duration::ZERO,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "work that was due failed");
            AFTER_FAILURE
        }
    }
}
