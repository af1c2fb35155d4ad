//! `leapctl events`.

use edge::exit::Failure;
use model::UnitName;
use model::api::Event;
use model::machine::MachineCode;

use crate::client::Sky;
use crate::commands::seconds;
use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show what comes until Ctrl-C; as JSON one event a line
    #[arg(long)]
    follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
    /// Only events of this unit
    #[arg(long, value_name = "CUSTOMER/NAME")]
    unit: Option<UnitName>,
    /// Only events of this machine
    #[arg(long, value_name = "CODE")]
    machine: Option<MachineCode>,
    /// Only events of this kind, such as machine-approved; may be repeated
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let sky = operator.sky()?;
        let mut events = so_far(&sky, self.after).await?;
        let mut last = events.last().map_or(self.after, |event| event.number);
        let wanted = |event: &Event| self.wants(event);
        if !self.follow {
            events.retain(wanted);
            operator.show(&events, |events| human(events));
            return Ok(());
        }
        loop {
            for event in events.iter().filter(|event| wanted(event)) {
                if operator.json() {
                    let line = serde_json::to_string(event);
                    edge::out::line(line.expect("events are plain JSON values"));
                } else {
                    edge::out::line(view::event(event));
                }
            }
            last = events.last().map_or(last, |event| event.number);
            events = match sky.events(last, 30).await {
                Ok(events) => events,
                Err(error) if error.is_passing() => {
                    tracing::warn!(%error, "asking again");
                    tokio::time::sleep(seconds(1)).await;
                    Vec::new()
                }
                Err(error) => return Err(error.into()),
            };
        }
    }
}

impl Args {
    fn wants(&self, event: &Event) -> bool {
        (self.unit.is_none() || event.unit == self.unit)
            && (self.machine.is_none() || event.machine == self.machine)
            && (self.kind.is_empty() || self.kind.contains(&event.kind))
    }
}

/// Fetches all events after a number; one answer holds only so many.
pub(super) async fn so_far(sky: &Sky, after: u64) -> Result<Vec<Event>, Failure> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let last = events.last().map_or(after, |event| event.number);
        let more = sky.events(last, 0).await?;
        if more.is_empty() {
            return Ok(events);
        }
        events.extend(more);
    }
}

fn human(events: &[Event]) -> String {
    if events.is_empty() {
        return "nothing has happened".into();
    }
    let lines: Vec<String> = events.iter().map(view::event).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_filters_must_fit_and_several_kinds_may() {
        let event = |kind: &str, unit: Option<&str>| Event {
            number: 1,
            time: jiff::Timestamp::UNIX_EPOCH,
            kind: kind.into(),
            unit: unit.map(|unit| unit.parse().unwrap()),
            machine: None,
            mac: None,
            message: String::new(),
        };
        let mut args = Args {
            follow: false,
            after: 0,
            unit: None,
            machine: None,
            kind: vec![],
        };
        assert!(args.wants(&event("born", None)));
        args.kind = vec!["born".into(), "disk-erased".into()];
        assert!(args.wants(&event("born", None)) && args.wants(&event("disk-erased", None)));
        assert!(!args.wants(&event("install", None)));
        args.unit = Some("a/b".parse().unwrap());
        assert!(args.wants(&event("born", Some("a/b"))));
        assert!(!args.wants(&event("born", Some("a/c"))) && !args.wants(&event("born", None)));
        args.machine = Some("7QK2-M9XD".parse().unwrap());
        assert!(!args.wants(&event("born", Some("a/b"))));
    }
}
