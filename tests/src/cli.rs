//! The command line of `leap-lab`.

mod bench;
mod bench_births;
mod bench_boot;
mod bench_disks;
mod bench_floor;
mod check_host;
mod console;
mod debug;
mod demo;
mod enter;
mod inside;
mod lab;
mod matrix;
mod reproduce;
mod run;
mod self_test;

use std::future::Future;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand};
use edge::exit::Failure;

use crate::lab::isolation::{self, Inside, Place};

/// Run LeapServ's laboratory: machines with real firmware, in namespaces of their own
#[derive(Debug, Parser)]
#[command(name = "leap-lab", version)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Folder for logs, disks, captures and the report
    #[arg(
        long,
        global = true,
        default_value = "build/demo",
        value_name = "FOLDER"
    )]
    pub build_dir: PathBuf,
    /// Folder with the programs of LeapServ
    #[arg(
        long,
        global = true,
        default_value = "target/release",
        value_name = "FOLDER"
    )]
    pub bin_dir: PathBuf,
    /// Say more; twice, even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    Matrix(matrix::Matrix),
    Lab(lab::Lab),
    Run(run::Run),
    Bench(bench::Bench),
    Reproduce(reproduce::Reproduce),
    BenchDisks(bench_disks::BenchDisks),
    BenchBirths(bench_births::BenchBirths),
    BenchFloor(bench_floor::BenchFloor),
    BenchBoot(bench_boot::BenchBoot),
    ServeBoot(bench_boot::ServeBoot),
    FetchBoot(bench_boot::FetchBoot),
    CheckHost(check_host::CheckHost),
    SelfTest(self_test::SelfTest),
    Inside(inside::InsideArgs),
    Enter(enter::Enter),
    Console(console::Console),
    Debug(debug::Debug),
}

impl Cli {
    /// How much to log.
    #[must_use]
    pub fn verbosity(&self) -> u8 {
        self.options.verbose
    }

    /// Runs the command.
    ///
    /// # Errors
    /// The command's own, with the kind that makes the exit code.
    pub async fn run(self) -> Result<ExitCode, Failure> {
        let options = &self.options;
        match self.command {
            Command::Demo(command) => command.run(options).await,
            Command::Matrix(command) => command.run(options).await,
            Command::Lab(command) => command.run(options).await,
            Command::Run(command) => command.run(options).await,
            Command::Bench(command) => command.run(options).await,
            Command::Reproduce(command) => command.run(options).await,
            Command::BenchDisks(command) => command.run(options).await,
            Command::BenchBirths(command) => command.run(options).await,
            Command::BenchFloor(command) => command.run(options).await,
            Command::BenchBoot(command) => command.run(options).await,
            Command::ServeBoot(command) => command.run().await,
            Command::FetchBoot(command) => Ok(command.run()),
            Command::CheckHost(command) => command.run(options).await,
            Command::SelfTest(command) => command.run(options).await,
            Command::Inside(command) => command.run(options).await,
            Command::Enter(command) => command.run(options).await,
            Command::Console(command) => command.run(options).await,
            Command::Debug(command) => command.run(),
        }
    }
}

impl Options {
    fn place(&self, foreground: bool) -> Place {
        Place {
            build: self.build_dir.clone(),
            foreground,
        }
    }
}

/// Runs `work` inside a laboratory. Outside, this starts the same command line inside and
/// passes its exit code on; inside, it does the work until it is done or interrupted.
async fn in_laboratory<W: Future<Output = Result<ExitCode, Failure>>>(
    place: &Place,
    work: impl FnOnce(std::rc::Rc<Inside>) -> W,
) -> Result<ExitCode, Failure> {
    if !isolation::is_inside() {
        check_host::prepare().await?;
        return Ok(pass_on(isolation::supervise(place).await?));
    }
    let inside = std::rc::Rc::new(Inside::begin().await?);
    let stopped = std::rc::Rc::clone(&inside);
    tokio::select! {
        // To be stopped is an end like any other for work that waits for it.
        biased;
        done = work(inside) => done,
        () = stopped.stopped() => Err(anyhow!("interrupted").into()),
    }
}

/// The exit code of a program that ran for us, with the shell's number for a signal.
fn pass_on(status: ExitStatus) -> ExitCode {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_killed_program_ends_with_the_shells_number() {
        assert_eq!(pass_on(ExitStatus::from_raw(9)), ExitCode::from(137));
        assert_eq!(pass_on(ExitStatus::from_raw(4 << 8)), ExitCode::from(4));
    }
}
