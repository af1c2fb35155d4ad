//! The factory in numbers, for Prometheus.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use edge::metrics::{Histogram, Page, Sample};
use model::ReleaseVersion;
use pxe::boot::{BootEvent, DhcpOutcome, FileOutcome, Protocol};

use super::birth::Birth;
use super::ledger::MachineRecord;
use super::source::INSTALLER;

/// Seconds from the installer's start to the end of its work.
const BIRTH_SECONDS: &[u64] = &[10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 3600];

/// What is counted from the start of the process.
#[derive(Debug)]
pub struct Metrics {
    /// By protocol and verdict.
    boots: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// By protocol and outcome.
    files: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// By protocol.
    bytes: Mutex<BTreeMap<&'static str, u64>>,
    redeemed: AtomicU64,
    failures: AtomicU64,
    births: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            boots: Mutex::default(),
            files: Mutex::default(),
            bytes: Mutex::default(),
            redeemed: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            births: Histogram::new(BIRTH_SECONDS),
        }
    }
}

fn add<K: Ord>(counts: &Mutex<BTreeMap<K, u64>>, key: K, amount: u64) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(key).or_default();
    *count = count.saturating_add(amount);
}

fn all<K: Ord + Copy>(counts: &Mutex<BTreeMap<K, u64>>) -> Vec<(K, u64)> {
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    counts.iter().map(|(key, count)| (*key, *count)).collect()
}

impl Metrics {
    /// Takes note of what a server has answered.
    pub fn observe(&self, event: &BootEvent) {
        match event {
            BootEvent::Dhcp {
                request, outcome, ..
            } => add(&self.boots, (word(request.protocol), verdict(outcome)), 1),
            BootEvent::File {
                protocol, outcome, ..
            } => {
                let protocol = word(*protocol);
                let (outcome, sent) = match outcome {
                    // Counted when it ends.
                    FileOutcome::Started { .. } => return,
                    FileOutcome::SizeAsked { .. } => ("size-asked", 0),
                    FileOutcome::Done { length, .. } => ("done", *length),
                    FileOutcome::Refused { .. } => ("refused", 0),
                    FileOutcome::Broken { sent, .. } => ("broken", *sent),
                };
                add(&self.files, (protocol, outcome), 1);
                add(&self.bytes, protocol, sent);
            }
        }
    }

    /// A ticket was used.
    pub fn redeemed(&self) {
        self.redeemed.fetch_add(1, Ordering::Relaxed);
    }

    /// A machine was born, so many seconds after its installer's start.
    pub fn born(&self, seconds: u32) {
        self.births.note(seconds.into());
    }

    /// An installer gave up.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the page.
    pub fn page(&self, machines: &[MachineRecord], release: Option<ReleaseVersion>) -> String {
        let mut page = Page::new();
        let states = Birth::WORDS.map(|state| {
            let machines = machines.iter().filter(|it| it.birth.word() == state);
            Sample(vec![("state", state)], machines.count() as u64)
        });
        page.gauge(
            "leap_factory_machines",
            "Machines in the ledger by state.",
            states,
        );
        let untold = machines.iter().filter(|machine| machine.owed.is_some());
        page.gauge(
            "leap_factory_untold_ends",
            "Ended installations that the sky has not taken note of.",
            [Sample::plain(untold.count() as u64)],
        );
        let release = release.map(|release| release.to_string());
        let here = release.iter();
        page.gauge(
            "leap_factory_release_info",
            "The release that is born here.",
            here.map(|release| Sample(vec![("release", release.as_str())], 1)),
        );
        let pairs = |counts: Vec<((&'static str, &'static str), u64)>, second: &'static str| {
            let sample = move |((protocol, word), count)| {
                Sample(vec![("protocol", protocol), (second, word)], count)
            };
            counts.into_iter().map(sample)
        };
        page.counter(
            "leap_factory_boots_total",
            "DHCP messages by protocol and by what the machine was told.",
            pairs(all(&self.boots), "verdict"),
        );
        page.counter(
            "leap_factory_files_total",
            "Wishes for files by protocol and outcome.",
            pairs(all(&self.files), "outcome"),
        );
        let bytes = all(&self.bytes).into_iter();
        page.counter(
            "leap_factory_served_bytes_total",
            "Bytes of files served.",
            bytes.map(|(protocol, count)| Sample(vec![("protocol", protocol)], count)),
        );
        let plain = |count: &AtomicU64| [Sample::plain(count.load(Ordering::Relaxed))];
        page.counter(
            "leap_factory_tickets_redeemed_total",
            "Birth tickets used.",
            plain(&self.redeemed),
        );
        page.counter(
            "leap_factory_birth_failures_total",
            "Installers that gave up.",
            plain(&self.failures),
        );
        page.histogram(
            "leap_factory_birth_seconds",
            "Seconds from an installer's start to a machine that is born.",
            &self.births,
        );
        page.into_text()
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Dhcp => "dhcp",
        Protocol::ProxyDhcp => "proxy-dhcp",
        Protocol::Dhcp6 => "dhcp6",
        Protocol::Tftp => "tftp",
        Protocol::Http => "http",
    }
}

fn verdict(outcome: &DhcpOutcome) -> &'static str {
    match outcome {
        DhcpOutcome::Replied {
            boot_file: Some(file),
            ..
        } if file.ends_with(INSTALLER) => "installer",
        DhcpOutcome::Replied {
            boot_file: Some(_), ..
        } => "local-disk-program",
        DhcpOutcome::Replied { note: Some(_), .. } => "local-disk",
        DhcpOutcome::Replied { .. } => "address",
        DhcpOutcome::Noted { .. } => "noted",
        DhcpOutcome::Dropped { .. } => "no-answer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn file(protocol: Protocol, outcome: FileOutcome) -> BootEvent {
        BootEvent::File {
            protocol,
            peer: [10, 0, 0, 9].into(),
            path: INSTALLER.into(),
            outcome,
        }
    }

    fn replied(boot_file: Option<&str>, note: Option<&str>) -> DhcpOutcome {
        DhcpOutcome::Replied {
            message: pxe::boot::DhcpMessage::V4(pxe::dhcp::options::MessageType::Ack),
            address: None,
            boot_file: boot_file.map(str::to_owned),
            note: note.map(str::to_owned),
        }
    }

    #[test]
    fn files_are_counted_once_and_broken_ones_by_what_was_sent() {
        let metrics = Metrics::default();
        let done = FileOutcome::Done {
            length: 1000,
            elapsed: Duration::from_secs(1),
            resent: 0,
        };
        let broken = FileOutcome::Broken {
            sent: 24,
            reason: "gone".into(),
        };
        for outcome in [FileOutcome::Started { length: 1000 }, done, broken] {
            metrics.observe(&file(Protocol::Tftp, outcome));
        }
        let page = metrics.page(&[], None);
        for line in [
            "leap_factory_files_total{protocol=\"tftp\",outcome=\"broken\"} 1\n",
            "leap_factory_files_total{protocol=\"tftp\",outcome=\"done\"} 1\n",
            "leap_factory_served_bytes_total{protocol=\"tftp\"} 1024\n",
        ] {
            assert!(page.contains(line), "{line}{page}");
        }
        assert!(!page.contains("http"), "{page}");
    }

    #[test]
    fn births_failures_and_every_state_stand_on_the_page() {
        let metrics = Metrics::default();
        metrics.redeemed();
        metrics.redeemed();
        metrics.born(42);
        metrics.failed();
        let page = metrics.page(&[], Some("2026.11.1".parse().unwrap()));
        for line in [
            "leap_factory_machines{state=\"held\"} 0\n",
            "leap_factory_machines{state=\"invited\"} 0\n",
            "leap_factory_release_info{release=\"2026.11.1\"} 1\n",
            "leap_factory_tickets_redeemed_total 2\n",
            "leap_factory_birth_failures_total 1\n",
            "leap_factory_birth_seconds_bucket{le=\"30\"} 0\n",
            "leap_factory_birth_seconds_bucket{le=\"45\"} 1\n",
            "leap_factory_birth_seconds_sum 42\n",
        ] {
            assert!(page.contains(line), "{line}{page}");
        }
    }

    #[test]
    fn a_verdict_is_what_the_machine_was_told() {
        let table = [
            (
                replied(Some("http://10.0.0.1:8080/boot/installer.efi"), None),
                "installer",
            ),
            (replied(Some("boot/local.efi"), None), "local-disk-program"),
            (replied(None, Some("boots its disk")), "local-disk"),
            (replied(None, None), "address"),
            (
                DhcpOutcome::Dropped {
                    reason: "other".into(),
                },
                "no-answer",
            ),
            (
                DhcpOutcome::Noted {
                    note: "release".into(),
                },
                "noted",
            ),
        ];
        for (outcome, word) in table {
            assert_eq!(verdict(&outcome), word);
        }
    }
}
