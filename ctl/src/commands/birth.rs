//! `leapctl birth`: machines being born, live.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use edge::exit::Failure;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use model::api::{InstallStep, MachineState, MachineView};
use model::machine::MachineCode;
use tokio::time::Instant;

use crate::client::{Listener, Sky, SkyError};
use crate::operator::Operator;
use crate::stream::News;
use crate::view;

/// How long to wait for a stream again after the first failure, and after many.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Between two questions while there is no stream.
const ASK: Duration = Duration::from_secs(2);
/// Between two looks at how fast it goes, on a terminal.
const TICK: Duration = Duration::from_secs(1);

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
        let stop = edge::shutdown::token();
        tokio::select! {
            ended = self.watch(&sky, &mut screen) => Ok(ended?),
            () = stop.cancelled() => Ok(()),
        }
    }

    /// Follows the sky's stream. While there is none (the sky restarts, a proxy
    /// cuts it, an older sky does not know it) it asks, and tries the stream again.
    async fn watch(&self, sky: &Sky, screen: &mut Screen) -> Result<(), SkyError> {
        let mut pause = SHORTEST;
        loop {
            match sky.listen().await {
                Ok(mut listener) => match self.listen(&mut listener, screen).await {
                    Ok(()) => pause = SHORTEST,
                    Err(error) if error.is_passing() => {
                        tracing::warn!(%error, "stream broken, asking instead");
                        pause = SHORTEST;
                    }
                    Err(error) => return Err(error),
                },
                Err(error) if error.is_not_found() => {
                    tracing::info!("this sky has no stream, asking instead");
                    pause = LONGEST;
                }
                Err(error) if error.is_passing() => tracing::warn!(%error, "asking again"),
                Err(error) => return Err(error),
            }
            let again = Instant::now() + pause;
            pause = (pause * 2).min(LONGEST);
            while Instant::now() < again {
                match sky.machines().await {
                    Ok(machines) => machines
                        .into_iter()
                        .for_each(|machine| self.note(screen, machine)),
                    Err(error) if error.is_passing() => tracing::debug!(%error, "no answer"),
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(ASK.min(again.duration_since(Instant::now()))).await;
            }
        }
    }

    /// Shows what the stream tells until it ends.
    async fn listen(&self, listener: &mut Listener, screen: &mut Screen) -> Result<(), SkyError> {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                news = listener.next() => match news? {
                    None => return Ok(()),
                    Some(News::Machine(machine)) => self.note(screen, *machine),
                    Some(News::Event(_)) => {}
                },
                // A machine that tells nothing any more gets slower to see.
                _ = tick.tick() => screen.refresh(),
            }
        }
    }

    fn note(&self, screen: &mut Screen, machine: MachineView) {
        if self.all || screen.knows(&machine.code) || !has_ended(&machine) {
            screen.show(machine);
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
    rates: Rates,
    shown: BTreeMap<MachineCode, Shown>,
}

/// A machine as it is shown.
struct Shown {
    machine: MachineView,
    line: String,
    bar: Option<ProgressBar>,
}

impl Screen {
    fn new(json: bool) -> Self {
        let live = !json && std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self {
            json,
            lines: live.then(MultiProgress::new),
            rates: Rates::default(),
            shown: BTreeMap::new(),
        }
    }

    fn knows(&self, code: &MachineCode) -> bool {
        self.shown.contains_key(code)
    }

    fn show(&mut self, machine: MachineView) {
        let rate = self.rates.note(&machine, Instant::now());
        let line = if self.json {
            serde_json::to_string(&machine).expect("machines are plain JSON values")
        } else {
            view::birth_line(&machine, rate)
        };
        let lines = &self.lines;
        let shown = self.shown.entry(machine.code.clone());
        let shown = shown.or_insert_with(|| Shown {
            machine: machine.clone(),
            line: String::new(),
            bar: lines.as_ref().map(|lines| {
                let style = ProgressStyle::with_template("{spinner} {wide_msg}");
                let bar = lines.add(ProgressBar::new_spinner());
                bar.set_style(style.expect("our template is valid"));
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            }),
        });
        shown.machine = machine;
        if shown.line == line {
            return;
        }
        match &shown.bar {
            Some(bar) => bar.set_message(line.clone()),
            None => edge::out::line(&line),
        }
        shown.line = line;
    }

    /// Tells again how fast it goes, where that changes a line and adds none.
    fn refresh(&mut self) {
        if self.lines.is_some() {
            let machines = self.shown.values().map(|shown| shown.machine.clone());
            for machine in machines.collect::<Vec<_>>() {
                self.show(machine);
            }
        }
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
