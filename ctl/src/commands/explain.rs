//! `leapctl explain`: the story of one machine, from the factory's side and the sky's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use edge::exit::{Classify as _, Failure, Kind, hint};
use jiff::Timestamp;
use model::MacAddr;
use model::api::{Event, MachineView};
use serde::{Deserialize, Serialize};

use super::events::so_far;
use crate::birth::MachineName;
use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The machine's MAC address, serial number or code
    #[arg(value_name = "MAC|SERIAL|CODE")]
    machine: String,
    /// The factory's address, http://HOST:PORT; without it only the sky is asked
    #[arg(
        long,
        env = "LEAPCTL_FACTORY",
        hide_env_values = true,
        value_name = "URL"
    )]
    factory: Option<String>,
}

/// The factory's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Story {
    macs: BTreeSet<MacAddr>,
    state: String,
    boots: String,
    #[serde(default)]
    reason: Option<String>,
    serial: String,
    #[serde(default)]
    unit: Option<String>,
    #[serde(default)]
    code: Option<String>,
    lines: Vec<Line>,
}

/// One thing that happened, wherever it was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    time: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    by: String,
    text: String,
}

/// All that is known.
#[derive(Debug, Serialize)]
struct Explanation {
    machine: Option<MachineView>,
    factory: Option<Story>,
    lines: Vec<Line>,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        // The factory's bench is explained also where no sky is at hand.
        let (machines, events) = match (operator.sky(), &self.factory) {
            (Ok(sky), _) => (sky.machines().await?, so_far(&sky, 0).await?),
            (Err(_), Some(_)) => (Vec::new(), Vec::new()),
            (Err(failure), None) => return Err(failure),
        };
        let machine = find(&self.machine, &machines);
        let mac = self.machine.parse().ok().or_else(|| {
            let nics = &machine?.facts.nics;
            nics.first().map(|nic| nic.mac)
        });
        let story = match (&self.factory, mac) {
            (Some(factory), Some(mac)) => Some(ask(factory, mac).await?),
            _ => None,
        };
        let lines = merge(story.as_ref(), &events, machine, mac);
        if machine.is_none() && lines.is_empty() {
            let next = match &self.factory {
                None => "add --factory URL: what happens before the installer runs is told there",
                Some(_) => {
                    "check that it is powered on, wired to the factory and boots from the network first"
                }
            };
            return Err(Failure::new(
                Kind::Failed,
                hint(
                    anyhow!("machine {}: nobody has heard of it", self.machine),
                    next,
                ),
            ));
        }
        let explanation = Explanation {
            machine: machine.cloned(),
            factory: story,
            lines,
        };
        operator.show(&explanation, human);
        Ok(())
    }
}

/// Pure: the machine that is meant.
fn find<'a>(text: &str, machines: &'a [MachineView]) -> Option<&'a MachineView> {
    let newest = |wanted: &dyn Fn(&&MachineView) -> bool| {
        machines
            .iter()
            .filter(wanted)
            .max_by_key(|machine| machine.last_seen)
    };
    if let Ok(mac) = text.parse::<MacAddr>() {
        return newest(&|machine| machine.facts.nics.iter().any(|nic| nic.mac == mac));
    }
    let name = MachineName::any(text);
    newest(&|machine| Some(&machine.code) == name.code())
        .or_else(|| newest(&|machine| Some(machine.facts.serial.as_str()) == name.serial()))
}

/// Pure: what factory and sky noted, in one order.
fn merge(
    story: Option<&Story>,
    events: &[Event],
    machine: Option<&MachineView>,
    mac: Option<MacAddr>,
) -> Vec<Line> {
    let mut lines = story.map_or(Vec::new(), |story| story.lines.clone());
    let told: BTreeSet<String> = lines.iter().map(|line| line.text.clone()).collect();
    let of_machine = |event: &&Event| {
        let by_code = event.machine.is_some() && event.machine.as_ref() == machine.map(|m| &m.code);
        by_code || (event.mac.is_some() && event.mac == mac)
    };
    lines.extend(
        events
            .iter()
            .filter(of_machine)
            .filter(|event| !told.contains(&event.message))
            .map(|event| Line {
                time: event.time,
                address: None,
                by: "sky".into(),
                text: format!("{}: {}", event.kind, event.message),
            }),
    );
    lines.sort_by_key(|line| line.time);
    lines
}

async fn ask(factory: &str, mac: MacAddr) -> Result<Story, Failure> {
    let url = format!("{}/v1/machines/{mac}/story", factory.trim_end_matches('/'));
    // Plain HTTP: a bench's account of itself holds nothing secret, and nothing is decided by it.
    let call = async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .timeout(Duration::from_secs(10))
            .build()?;
        let response = client.get(&url).send().await?.error_for_status()?;
        response.bytes().await
    };
    let bytes = call
        .await
        .map_err(|error| error.without_url())
        .with_context(|| format!("factory {factory}: no story of {mac}"))
        .map_err(|error| {
            hint(
                error,
                "check --factory, and that leap-provisioner runs there",
            )
        })
        .environment()?;
    let story = serde_json::from_slice(&bytes);
    Ok(story.with_context(|| format!("factory {factory}: story of {mac} is not readable"))?)
}

fn human(explanation: &Explanation) -> String {
    let mut text = String::new();
    if let Some(machine) = &explanation.machine {
        text.push_str(&view::machine(machine, edge::clock::now()));
        text.push('\n');
    }
    if let Some(story) = &explanation.factory {
        let why = story
            .reason
            .as_deref()
            .map_or(String::new(), |reason| format!(": {reason}"));
        text.push_str(&format!(
            "at the factory it is {}; started now, it would boot the {}{why}\n\n",
            story.state,
            story.boots.replace('-', " ")
        ));
    }
    for line in &explanation.lines {
        let from = line
            .address
            .map_or(String::new(), |address| format!(" {address}"));
        text.push_str(&format!(
            "{}  {:<10}{from} {}\n",
            line.time.strftime("%Y-%m-%d %H:%M:%S%.3fZ"),
            line.by,
            line.text
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::birth::tests::machine;

    fn line(second: u32, text: &str) -> Line {
        Line {
            time: format!("2026-11-22T20:00:{second:02}Z").parse().unwrap(),
            address: None,
            by: "dhcp".into(),
            text: text.into(),
        }
    }

    #[test]
    fn factory_and_sky_tell_one_story_in_order() {
        let machine = machine("S1", vec![]);
        let mac = machine.facts.nics[0].mac;
        let story = Story {
            macs: BTreeSet::from([mac]),
            state: "held".into(),
            boots: "installer".into(),
            reason: None,
            serial: "S1".into(),
            unit: None,
            code: None,
            lines: vec![line(1, "asked for an address"), line(9, "asked for a file")],
        };
        let event = |number, code: Option<_>| Event {
            number,
            time: "2026-11-22T20:00:05Z".parse().unwrap(),
            kind: "machine-held".into(),
            unit: None,
            machine: code,
            mac: None,
            message: "waits".into(),
        };
        let events = [event(1, Some(machine.code.clone())), event(2, None)];
        let lines = merge(Some(&story), &events, Some(&machine), Some(mac));
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "asked for an address",
                "machine-held: waits",
                "asked for a file"
            ]
        );
    }

    #[test]
    fn a_machine_is_found_by_mac_serial_and_code() {
        let machines = [machine("S1", vec![])];
        for name in ["52:54:00:12:34:56", "S1", machines[0].code.as_str()] {
            assert_eq!(find(name, &machines), Some(&machines[0]), "{name}");
        }
        assert_eq!(find("S2", &machines), None);
    }
}
