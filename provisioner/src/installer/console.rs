//! What a person sees: a large plain screen, and on every serial line a text
//! that stays the same from version to version, so that programs can wait for it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::api::InstallStep;
use model::machine::{Finding, MachineCode, Severity};

/// How often the screen is drawn anew at most.
const REPAINT: Duration = Duration::from_millis(300);

/// Columns of a text display.
const WIDTH: usize = 80;
/// So many findings are on the screen.
const FINDINGS: usize = 5;

/// The console. Clones share it.
#[derive(Debug, Clone)]
pub struct Console(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    lines: Vec<Sink>,
    screen: Option<File>,
    view: View,
    last_line: String,
    painted: Option<Instant>,
    began: Instant,
}

#[derive(Debug)]
enum Sink {
    Device(File),
    StandardOutput,
}

/// What is on the screen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct View {
    code: Option<MachineCode>,
    unit: String,
    machine: String,
    findings: Vec<String>,
    step: Option<(InstallStep, u8)>,
    note: String,
    error: Option<(String, String)>,
    question: String,
    seconds: u64,
}

impl Console {
    /// A console on standard output, for tests and for running by hand.
    pub fn standard_output() -> Self {
        Self::of(vec![Sink::StandardOutput], None)
    }

    /// The machine's consoles: lines on every serial one, the screen on the display.
    pub fn of_machine() -> Self {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut names: Vec<&str> = active
            .split_whitespace()
            .filter(|name| *name != "tty0")
            .collect();
        if !names.contains(&"ttyS0") {
            names.push("ttyS0");
        }
        let open = |name: &str| {
            let path = Path::new("/dev").join(name);
            // A terminal that is opened must not become ours: its hang-up would end us.
            let flags = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
            File::options()
                .write(true)
                .custom_flags(flags)
                .open(path)
                .ok()
        };
        let mut lines: Vec<Sink> = names
            .iter()
            .filter_map(|name| open(name))
            .map(Sink::Device)
            .collect();
        let screen = open("tty0");
        if lines.is_empty() && screen.is_none() {
            lines.extend(open("console").map(Sink::Device));
        }
        Self::of(lines, screen)
    }

    /// The terminals at which somebody may type.
    pub fn terminals() -> [&'static str; 2] {
        ["tty0", "ttyS0"]
    }

    fn of(lines: Vec<Sink>, screen: Option<File>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            lines,
            screen,
            view: View::default(),
            last_line: String::new(),
            painted: None,
            began: Instant::now(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the installer started.
    pub fn seconds(&self) -> u32 {
        u32::try_from(self.lock().began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Says one line, unless it is the one that was said last.
    pub fn line(&self, text: &str) {
        self.lock().line(text);
    }

    /// Says one line that stands on the screen too until there is another.
    pub fn note(&self, text: &str) {
        let mut inner = self.lock();
        inner.view.note = text.to_owned();
        inner.line(text);
        inner.paint(true);
    }

    /// Shows what machine this is.
    pub fn machine(&self, text: &str) {
        let mut inner = self.lock();
        inner.view.machine = text.to_owned();
        inner.line(&format!("machine {text}"));
    }

    /// Shows what is wanting.
    pub fn findings(&self, findings: &[Finding]) {
        let mut inner = self.lock();
        inner.view.findings.clear();
        for finding in findings {
            let mark = match finding.severity {
                Severity::Stops => "STOPS",
                Severity::Matters => "NOTE",
            };
            let text = &finding.text;
            inner.line(&format!("finding {} {text}", mark.to_lowercase()));
            inner.view.findings.push(format!("  {mark:<10}{text}"));
        }
    }

    /// Shows the code that the operator types.
    pub fn code(&self, code: &MachineCode) {
        let mut inner = self.lock();
        inner.view.code = Some(code.clone());
        inner.line(&format!("code {code}"));
        inner.paint(true);
    }

    /// Shows what the machine becomes.
    pub fn unit(&self, text: &str) {
        let mut inner = self.lock();
        inner.view.unit = text.to_owned();
        inner.line(&format!("unit {text}"));
    }

    /// Shows a step and how far it is.
    pub fn step(&self, step: InstallStep, done: u64, total: u64) {
        let percent = percent(done, total);
        let mut inner = self.lock();
        let before = inner.view.step;
        inner.view.step = Some((step, percent));
        inner.view.question.clear();
        // Every fifth per cent is a line: a serial console is slow.
        let line = match before {
            Some((old, old_percent)) => old != step || old_percent / 5 != percent / 5,
            None => true,
        };
        if line {
            inner.view.note.clear();
            if step == InstallStep::Waiting {
                inner.line("step waiting");
            } else {
                inner.view.error = None;
                inner.line(&format!("step {} {percent}%", word(step)));
            }
        }
        inner.paint(before.map(|(old, _)| old) != Some(step));
    }

    /// Asks for what is to be typed; the next step takes the question off the screen.
    pub fn ask(&self, question: &str) {
        let mut inner = self.lock();
        question.clone_into(&mut inner.view.question);
        // Asked again, it is said again.
        inner.last_line.clear();
        inner.line(&format!("type {question}"));
        inner.paint(true);
    }

    /// Shows what went wrong and what to do next.
    pub fn error(&self, problem: &str, next: &str) {
        let mut inner = self.lock();
        inner.view.error = Some((problem.to_owned(), next.to_owned()));
        inner.line(&format!("error {}", problem.replace('\n', " ")));
        inner.line(&format!("next {next}"));
        inner.paint(true);
    }
}

fn percent(done: u64, total: u64) -> u8 {
    // Nothing to do is not done yet: its end is told by the next step.
    let share = u128::from(done) * 100 / u128::from(total.max(1));
    u8::try_from(share.min(100)).expect("at most 100")
}

/// The step's word, as on the wire.
pub fn word(step: InstallStep) -> &'static str {
    match step {
        InstallStep::Waiting => "waiting",
        InstallStep::Partition => "partition",
        InstallStep::Write => "write",
        InstallStep::Boot => "boot",
        InstallStep::Identity => "identity",
        InstallStep::Verify => "verify",
        InstallStep::Done => "done",
        InstallStep::Failed => "failed",
    }
}

impl Inner {
    fn line(&mut self, text: &str) {
        if self.last_line == text {
            return;
        }
        text.clone_into(&mut self.last_line);
        for sink in &mut self.lines {
            match sink {
                // A console that is not there any more stops nothing.
                Sink::Device(file) => drop(write!(file, "leapserv: {text}\r\n")),
                Sink::StandardOutput => edge::out::line(format_args!("leapserv: {text}")),
            }
        }
    }

    fn paint(&mut self, now: bool) {
        let due = self.painted.is_none_or(|last| last.elapsed() >= REPAINT);
        if !now && !due {
            return;
        }
        self.painted = Some(Instant::now());
        self.view.seconds = self.began.elapsed().as_secs();
        if let Some(screen) = &mut self.screen {
            drop(screen.write_all(render(&self.view).as_bytes()));
        }
    }
}

/// The whole screen as text for a terminal.
fn render(view: &View) -> String {
    let mut lines = vec![
        format!(
            "  L E A P S E R V   I N S T A L L E R   {}",
            env!("CARGO_PKG_VERSION")
        ),
        String::new(),
    ];
    match (&view.code, view.unit.as_str()) {
        (_, unit) if !unit.is_empty() => lines.push(format!("  UNIT      {unit}")),
        (Some(code), _) => {
            lines.push("  Approve this machine:  leapctl machine approve CODE --unit UNIT".into());
            lines.push(String::new());
            lines.extend(large(code.as_str()));
            lines.push(String::new());
        }
        (None, _) => {}
    }
    if let Some(code) = &view.code {
        lines.push(format!("  CODE      {code}"));
    }
    lines.push(format!("  MACHINE   {}", view.machine));
    // The screen has 25 lines; the serial line has had all of them.
    for finding in view.findings.iter().take(FINDINGS) {
        lines.push(finding.chars().take(WIDTH).collect());
    }
    if let Some((step, percent)) = view.step {
        let full = usize::from(percent) * 30 / 100;
        let bar = format!("[{}{}]", "#".repeat(full), "-".repeat(30 - full));
        let progress = match step {
            InstallStep::Waiting | InstallStep::Done | InstallStep::Failed => String::new(),
            _ => format!("  {bar} {percent:3} %"),
        };
        lines.push(format!(
            "  STEP      {}{progress}   {} s",
            word(step).to_uppercase(),
            view.seconds
        ));
    }
    if !view.note.is_empty() {
        lines.push(format!("  NOW       {}", view.note));
    }
    if let Some((problem, next)) = &view.error {
        lines.push(String::new());
        lines.push(format!(
            "  ERROR     {}",
            problem.replace('\n', "\r\n            ")
        ));
        lines.push(format!("  NEXT      {next}"));
    }
    if !view.question.is_empty() {
        lines.push(String::new());
        lines.push(format!("  TYPE      {}", view.question));
        // What is typed stands behind it.
        return format!("\x1b[2J\x1b[H\r\n{}\r\n\r\n  > ", lines.join("\r\n"));
    }
    format!("\x1b[2J\x1b[H\r\n{}\r\n", lines.join("\r\n"))
}

/// The letters of a code, three by five dots each.
const FONT: [(char, [u8; 5]); 33] = [
    ('0', [7, 5, 5, 5, 7]),
    ('1', [2, 6, 2, 2, 7]),
    ('2', [7, 1, 7, 4, 7]),
    ('3', [7, 1, 7, 1, 7]),
    ('4', [5, 5, 7, 1, 1]),
    ('5', [7, 4, 7, 1, 7]),
    ('6', [7, 4, 7, 5, 7]),
    ('7', [7, 1, 1, 2, 2]),
    ('8', [7, 5, 7, 5, 7]),
    ('9', [7, 5, 7, 1, 7]),
    ('A', [2, 5, 7, 5, 5]),
    ('B', [6, 5, 6, 5, 6]),
    ('C', [3, 4, 4, 4, 3]),
    ('D', [6, 5, 5, 5, 6]),
    ('E', [7, 4, 6, 4, 7]),
    ('F', [7, 4, 6, 4, 4]),
    ('G', [3, 4, 5, 5, 3]),
    ('H', [5, 5, 7, 5, 5]),
    ('J', [1, 1, 1, 5, 2]),
    ('K', [5, 5, 6, 5, 5]),
    ('M', [5, 7, 7, 5, 5]),
    ('N', [6, 5, 5, 5, 5]),
    ('P', [6, 5, 6, 4, 4]),
    ('Q', [2, 5, 5, 6, 3]),
    ('R', [6, 5, 6, 5, 5]),
    ('S', [3, 4, 2, 1, 6]),
    ('T', [7, 2, 2, 2, 2]),
    ('V', [5, 5, 5, 5, 2]),
    ('W', [5, 5, 7, 7, 5]),
    ('X', [5, 5, 2, 5, 5]),
    ('Y', [5, 5, 2, 2, 2]),
    ('Z', [7, 1, 2, 4, 7]),
    ('-', [0, 0, 7, 0, 0]),
];

fn large(text: &str) -> Vec<String> {
    let mut rows = vec![String::from("   "); 5];
    for letter in text.chars() {
        let glyph = FONT.iter().find(|(known, _)| *known == letter);
        let Some((_, dots)) = glyph else { continue };
        for (row, dots) in rows.iter_mut().zip(dots) {
            for bit in [4, 2, 1] {
                row.push_str(if dots & bit > 0 { "##" } else { "  " });
            }
            row.push_str("  ");
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_of_a_code_can_be_drawn() {
        for letter in "0123456789ABCDEFGHJKMNPQRSTVWXYZ-".chars() {
            let ink: String = large(&letter.to_string()).concat();
            assert!(ink.contains('#'), "{letter}");
        }
        let glyphs: std::collections::BTreeSet<_> = FONT.iter().map(|(_, dots)| dots).collect();
        assert_eq!(glyphs.len(), FONT.len(), "two letters look alike");
    }

    #[test]
    fn the_screen_fits_a_text_display() {
        let view = View {
            code: Some("7QK2-M9XD".parse().unwrap()),
            machine: "serial LAB-0001, 2 CPUs, 2 GiB".into(),
            findings: vec![format!("  NOTE      {}", "long ".repeat(30)); 9],
            step: Some((InstallStep::Waiting, 0)),
            note: "and so on".into(),
            error: Some(("something".into(), "do this".into())),
            ..View::default()
        };
        let text = render(&view);
        assert!(text.lines().count() <= 25);
        for line in text.lines() {
            assert!(line.trim_end().len() <= 80, "{line}");
        }
        assert!(text.contains("7QK2-M9XD") && text.contains("NEXT      do this"));
    }

    #[test]
    fn a_step_of_unknown_length_is_not_done() {
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(1, 2), 50);
        assert_eq!(percent(u64::MAX, 1), 100);
    }
}
