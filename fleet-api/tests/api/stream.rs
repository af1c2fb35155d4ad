//! The stream of events and machines, as any client of server-sent events reads it.

use std::time::Duration;

use fleet_api::app::stream::LISTENERS;
use model::api::{Event, IncarnationReason, InstallStep, MachineState, MachineView};
use reqwest::{Method, Response, StatusCode};

use crate::sky::{Machine, Sky, UNIT, refusal, said};

/// A message: name, id, data.
type Message = (String, Option<u64>, String);

struct Reader {
    response: Response,
    text: String,
}

impl Reader {
    async fn open(sky: &Sky, path: &str, last: Option<u64>) -> Self {
        let mut request = sky.operator().request(Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            text: String::new(),
        }
    }

    /// Returns the next message; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = message.lines();
                    lines.find_map(|line| {
                        line.strip_prefix(name).map(|value| value.trim().to_owned())
                    })
                };
                let found = field("data:").map(|data| {
                    let id = field("id:").map(|id| id.parse().unwrap());
                    (field("event:").unwrap(), id, data)
                });
                self.text = rest.to_owned();
                match found {
                    Some(found) => return Some(found),
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.response.chunk());
            let chunk = chunk.await.expect("news within a minute").unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn event(&mut self) -> Event {
        let (name, id, data) = self.next().await.unwrap();
        assert_eq!(name, "event");
        let event: Event = serde_json::from_str(&data).unwrap();
        assert_eq!(id, Some(event.number));
        event
    }

    async fn machine(&mut self) -> MachineView {
        loop {
            let (name, id, data) = self.next().await.unwrap();
            if name == "machine" {
                assert_eq!(id, None);
                return serde_json::from_str(&data).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn events_come_as_they_happen_and_go_on_where_a_listener_stopped() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let before = sky.events().await;
    let mut reader = Reader::open(&sky, "/v1/events/stream?after=0", None).await;
    for expected in &before {
        assert_eq!(reader.event().await, *expected);
    }
    let machine = Machine::new("S1");
    sky.announce(&machine).await;
    let held = reader.event().await;
    assert_eq!(held.kind, "machine-held");
    drop(reader);
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    sky.approve(&machine, UNIT, incarnation).await;
    // What was seen wins over where it once began.
    let path = "/v1/events/stream?after=0";
    let mut reader = Reader::open(&sky, path, Some(held.number)).await;
    let mut expected = sky.events().await;
    expected.retain(|event| event.number > held.number);
    assert!(expected.len() >= 2);
    for expected in &expected {
        assert_eq!(reader.event().await, *expected);
    }
    // Without a beginning: only what is still to come.
    let mut reader = Reader::open(&sky, "/v1/events/stream", None).await;
    sky.announce(&Machine::new("S2")).await;
    assert_eq!(reader.event().await.kind, "machine-held");
}

#[tokio::test]
async fn a_machine_is_told_at_first_and_whenever_it_changes() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let machine = Machine::new("S1");
    let incarnation = sky.begin(UNIT, IncarnationReason::Birth).await;
    let ticket = sky.approve(&machine, UNIT, incarnation).await;
    let mut reader = Reader::open(&sky, "/v1/events/stream?machines=true", None).await;
    let told = reader.machine().await;
    assert_eq!(
        (told.code, told.state),
        (machine.code(), MachineState::Approved)
    );
    sky.redeem(&machine, &ticket).await;
    sky.progress(&machine, InstallStep::Write).await;
    // Several changes may be told as one.
    let mut told = reader.machine().await;
    while told.progress.is_none() {
        told = reader.machine().await;
    }
    assert_eq!(told.progress.unwrap().step, InstallStep::Write);
    assert_eq!(told.state, MachineState::Installing);
    sky.progress(&machine, InstallStep::Done).await;
    while told.state != MachineState::Born {
        told = reader.machine().await;
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_sky_and_is_refused_where_it_is_not_understood() {
    let mut sky = Sky::start().await;
    let mut reader = Reader::open(&sky, "/v1/events/stream?machines=true", None).await;
    let begun = std::time::Instant::now();
    sky.restart(edge::clock::now).await;
    while reader.next().await.is_some() {}
    // It does not hold up the end of the process, which gives calls ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(9));
    let operator = sky.operator();
    for path in ["/v1/events/stream?since=1", "/v1/events/stream?after=-1"] {
        let (status, error) = refusal(operator.fetch(path).await).await;
        assert_eq!(
            (status, error.code.as_str()),
            (400, "bad-request"),
            "{path}"
        );
    }
    let request = operator.request(Method::GET, "/v1/events/stream");
    let response = request.header("last-event-id", "yesterday").send().await;
    assert_eq!(refusal(response.unwrap()).await.0, 400);
}

#[tokio::test]
async fn the_metrics_tell_units_machines_and_check_ins() {
    let sky = Sky::start().await;
    sky.prepare().await;
    sky.add_unit("motivatit/houma-2").await;
    let unit = sky
        .birth(&Machine::new("S1"), UNIT, IncarnationReason::Birth)
        .await;
    unit.check_in(&said(true)).await;
    sky.announce(&Machine::new("S2")).await;
    let _listener = Reader::open(&sky, "/v1/events/stream", None).await;
    let response = sky.operator().fetch("/v1/metrics").await;
    assert_eq!(
        response.headers()["content-type"],
        edge::metrics::CONTENT_TYPE
    );
    let page = response.text().await.unwrap();
    for line in [
        "leap_sky_units{state=\"unborn\"} 1\n",
        "leap_sky_units{state=\"in-service\"} 1\n",
        "leap_sky_units{state=\"rebirth\"} 0\n",
        "leap_sky_machines{state=\"held\"} 1\n",
        "leap_sky_machines{state=\"born\"} 1\n",
        "leap_sky_check_ins_total 1\n",
        "leap_sky_listeners 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
}

#[tokio::test]
async fn only_so_many_listen_and_a_seat_is_free_again_when_one_leaves() {
    let sky = Sky::start().await;
    let mut readers = Vec::new();
    for _ in 0..LISTENERS {
        readers.push(Reader::open(&sky, "/v1/events/stream", None).await);
    }
    let operator = sky.operator();
    let (status, error) = refusal(operator.fetch("/v1/events/stream").await).await;
    assert_eq!((status, error.code.as_str()), (503, "busy"));
    // The sky notices when it next writes, so news have to come.
    readers.clear();
    let waited = async {
        let mut number = 0;
        while operator.fetch("/v1/events/stream").await.status() != StatusCode::OK {
            number += 1;
            sky.announce(&Machine::new(&format!("S{number}"))).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waited).await;
    waited.expect("a seat within a minute");
}
