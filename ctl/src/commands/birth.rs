//! `leapctl birth`: machines being born, live.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use edge::exit::Failure;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use model::api::{InstallStep, MachineState, MachineView};
use model::machine::MachineCode;
use tokio::time::Instant;

use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show every change until Ctrl-C; as JSON one machine a line
    #[arg(long)]
    watch: bool,
    /// Also show machines whose birth has ended
    #[arg(long)]
    all: bool,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let sky = operator.sky()?;
        if !self.watch {
            let mut machines = sky.machines().await?;
            machines.retain(|machine| self.all || !has_ended(machine));
            operator.show(&machines, |machines| human(machines));
            return Ok(());
        }
        let mut screen = Screen::new(operator.json());
        let mut rates = Rates::default();
        loop {
            match sky.machines().await {
                Ok(machines) => {
                    for machine in machines {
                        let rate = rates.note(&machine, Instant::now());
                        if self.all || screen.knows(&machine.code) || !has_ended(&machine) {
                            screen.show(machine, rate);
                        }
                    }
                }
                Err(error) if error.is_passing() => tracing::warn!(%error, "asking again"),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn has_ended(machine: &MachineView) -> bool {
    matches!(machine.state, MachineState::Born | MachineState::Failed)
}

fn human(machines: &[MachineView]) -> String {
    if machines.is_empty() {
        return "no machine is being born".into();
    }
    let lines: Vec<String> = machines
        .iter()
        .map(|machine| view::birth_line(machine, None))
        .collect();
    lines.join("\n")
}

/// How fast each machine writes.
#[derive(Debug, Default)]
struct Rates(BTreeMap<MachineCode, Sample>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    step: InstallStep,
    since: Instant,
    from: u64,
}

impl Rates {
    /// Returns bytes a second since the machine's step began, once that can be told.
    fn note(&mut self, machine: &MachineView, now: Instant) -> Option<u64> {
        let progress = machine.progress.as_ref()?;
        let first = Sample {
            step: progress.step,
            since: now,
            from: progress.done,
        };
        let sample = self.0.entry(machine.code.clone()).or_insert(first);
        if sample.step != progress.step || progress.done < sample.from {
            *sample = first;
        }
        let millis = u64::try_from(now.duration_since(sample.since).as_millis()).ok()?;
        let bytes = progress.done - sample.from;
        (millis >= 1000 && progress.total > 0).then(|| bytes.saturating_mul(1000) / millis)
    }
}

/// Where the machines are shown: on a terminal each has its own line that
/// changes; elsewhere each change is a new line.
struct Screen {
    json: bool,
    lines: Option<MultiProgress>,
    shown: BTreeMap<MachineCode, (String, Option<ProgressBar>)>,
}

impl Screen {
    fn new(json: bool) -> Self {
        let live = !json && std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self {
            json,
            lines: live.then(MultiProgress::new),
            shown: BTreeMap::new(),
        }
    }

    fn knows(&self, code: &MachineCode) -> bool {
        self.shown.contains_key(code)
    }

    fn show(&mut self, machine: MachineView, rate: Option<u64>) {
        let line = if self.json {
            serde_json::to_string(&machine).expect("machines are plain JSON values")
        } else {
            view::birth_line(&machine, rate)
        };
        let entry = self.shown.entry(machine.code).or_insert_with(|| {
            let bar = self.lines.as_ref().map(|lines| {
                let style = ProgressStyle::with_template("{spinner} {wide_msg}");
                let bar = lines.add(ProgressBar::new_spinner());
                bar.set_style(style.expect("our template is valid"));
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            });
            (String::new(), bar)
        });
        if entry.0 == line {
            return;
        }
        match &entry.1 {
            Some(bar) => bar.set_message(line.clone()),
            None => edge::out::line(&line),
        }
        entry.0 = line;
    }
}

#[cfg(test)]
mod tests {
    use model::api::Progress;

    use super::*;
    use crate::birth::tests::machine;

    #[test]
    fn a_rate_is_told_from_the_steps_own_start() {
        let mut rates = Rates::default();
        let begun = Instant::now();
        let at = |step, done| {
            let mut machine = machine("S1", vec![]);
            machine.progress = Some(Progress {
                step,
                done,
                total: 400 << 20,
                seconds: 1,
                problem: None,
            });
            machine
        };
        let write = |mib: u64| at(InstallStep::Write, mib << 20);
        let second = Duration::from_secs(1);
        assert_eq!(rates.note(&write(10), begun), None);
        assert_eq!(rates.note(&write(60), begun + second * 2), Some(25 << 20));
        let verify = at(InstallStep::Verify, 0);
        assert_eq!(rates.note(&verify, begun + second * 3), None);
    }
}
