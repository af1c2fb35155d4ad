//! The sky in numbers, for Prometheus.

use edge::metrics::{Page, Sample};
use model::api::{MachineState, UnitState};

use super::{machine, unit};
use crate::app::stream::LISTENERS;
use crate::error::Problem;
use crate::sky::Sky;

/// Writes the page.
///
/// # Errors
/// Internal only.
pub async fn page(sky: &Sky) -> Result<String, Problem> {
    let units = unit::list(sky).await?;
    let machines = machine::list(sky).await?;
    let events = sky.store.read().await?.newest_event().await?;
    let mut page = Page::new();
    let states = [
        ("unborn", UnitState::Unborn),
        ("birth", UnitState::Birth),
        ("in-service", UnitState::InService),
        ("unhealthy", UnitState::Unhealthy),
        ("rebirth", UnitState::Rebirth),
    ];
    page.gauge(
        "leap_sky_units",
        "Units by where they stand in life.",
        states.map(|(word, state)| {
            let units = units.iter().filter(|unit| unit.state == state);
            Sample(vec![("state", word)], units.count() as u64)
        }),
    );
    let states = [
        ("held", MachineState::Held),
        ("approved", MachineState::Approved),
        ("installing", MachineState::Installing),
        ("born", MachineState::Born),
        ("failed", MachineState::Failed),
    ];
    page.gauge(
        "leap_sky_machines",
        "Machines by where their birth stands.",
        states.map(|(word, state)| {
            let machines = machines.iter().filter(|machine| machine.state == state);
            Sample(vec![("state", word)], machines.count() as u64)
        }),
    );
    page.counter(
        "leap_sky_check_ins_total",
        "Check-ins taken since the start of the process.",
        [Sample::plain(
            sky.check_ins.load(std::sync::atomic::Ordering::Relaxed),
        )],
    );
    page.counter(
        "leap_sky_events_total",
        "Events since the sky was made.",
        [Sample::plain(events)],
    );
    let free = sky.listeners.available_permits();
    page.gauge(
        "leap_sky_listeners",
        "Who listens to the stream of events.",
        [Sample::plain(LISTENERS.saturating_sub(free) as u64)],
    );
    Ok(page.into_text())
}
