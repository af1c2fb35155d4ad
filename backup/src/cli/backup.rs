//! `leap-backup`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use edge::exit::{Failure, Kind};
use edge::out;
use model::backup::{CopyState, SnapshotRow};

use crate::engine::{self, Engine, Extent, LOCAL, Order, To};
use crate::report;
use crate::repository::short;
use crate::serve;
use crate::site::Site;

/// Back up this unit's sources, copy the backups offsite, bring files back
#[derive(Debug, Parser)]
#[command(name = "leap-backup", version)]
pub struct Cli {
    /// Look for all files under this folder instead of /
    #[arg(long, global = true, default_value = "/", hide = true)]
    root: PathBuf,
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say more; twice, everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Seconds to wait while another process writes
    #[arg(long, global = true, default_value_t = 600)]
    lock_wait: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make secrets and repository where they are missing, and print the public SSH key
    Init,
    /// Back up now, apply the retention and replicate
    Run(Run),
    /// Bring the destinations up to the local repository
    Replicate,
    /// List snapshots, newest first
    Snapshots(From),
    /// Restore files of a snapshot
    Restore(Restore),
    /// Bring the unit's repository to this machine, after a replacement
    Attach(Attach),
    /// Prove that the repository opens and gives back what was put in
    Canary(From),
    /// Tell the state of snapshots, copies and canary
    Status,
    /// Run as a daemon: do what is due
    Serve,
}

#[derive(Debug, Args)]
struct Run {
    /// Only this source
    #[arg(long)]
    source: Vec<String>,
}

#[derive(Debug, Args)]
struct From {
    /// The local repository or the name of a destination
    #[arg(long, default_value = LOCAL)]
    from: String,
}

#[derive(Debug, Args)]
struct Attach {
    /// Return as soon as snapshots can be restored; the daemon fetches the rest
    #[arg(long)]
    lazy: bool,
}

#[derive(Debug, Args)]
struct Restore {
    /// Snapshot id or its beginning, or the newest complete one
    #[arg(long, default_value = "latest")]
    snapshot: String,
    /// The source, where several have snapshots
    #[arg(long)]
    source: Option<String>,
    /// The local repository or the name of a destination
    #[arg(long, default_value = LOCAL)]
    from: String,
    /// Path inside the source; "." is all of it
    #[arg(long, default_value = ".")]
    path: PathBuf,
    /// "source", or an absolute folder on this machine
    #[arg(long)]
    to: PathBuf,
    /// With --to source: this folder there instead of the original place
    #[arg(long)]
    target_path: Option<PathBuf>,
}

impl Restore {
    fn order(self) -> Result<Order, Failure> {
        let usage = |text: &str| Failure::new(Kind::Usage, anyhow::anyhow!("{text}"));
        let to = if self.to.as_os_str() == "source" {
            if self
                .target_path
                .as_ref()
                .is_some_and(|path| !path.is_absolute())
            {
                return Err(usage("--target-path: expected an absolute path"));
            }
            To::Source {
                folder: self.target_path,
            }
        } else if self.target_path.is_some() {
            return Err(usage("--target-path: only goes with --to source"));
        } else if self.to.is_absolute() {
            To::Unit { folder: self.to }
        } else {
            return Err(usage("--to: expected \"source\" or an absolute path"));
        };
        Ok(Order {
            snapshot: self.snapshot,
            source: self.source,
            from: self.from,
            path: self.path,
            to,
        })
    }
}

impl Cli {
    /// Starts logging as the command wants it.
    pub fn start_log(&self) {
        match self.command {
            Command::Serve => edge::log::init(self.verbose),
            _ => edge::log::init_quiet(self.verbose),
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// With the kind that decides the exit code.
    pub async fn run(self) -> Result<(), Failure> {
        let site = Site::new(&self.root);
        let wait = Duration::from_secs(self.lock_wait);
        let json = self.json;
        let open = || Engine::open(&site, wait);
        match self.command {
            Command::Init => {
                let made = engine::init(&site, wait).await?;
                say(json, &made, || out::line(&made.ssh_public_key));
                Ok(())
            }
            Command::Run(args) => {
                let ran = open()?.run(&args.source).await?;
                say(json, &ran, || show_run(&ran));
                judged(ran.ok, "the run is not complete")
            }
            Command::Replicate => {
                let done = open()?.replicate().await?;
                say(json, &done, || show_copies(&done.copies));
                judged(done.ok, "too few destinations hold everything")
            }
            Command::Snapshots(args) => {
                let rows = open()?.snapshots(&args.from).await?;
                say(json, &rows, || show_snapshots(&rows));
                Ok(())
            }
            Command::Restore(args) => {
                let restored = open()?.restore(&args.order()?).await?;
                say(json, &restored, || show_restore(&restored));
                Ok(())
            }
            Command::Attach(args) => {
                let extent = if args.lazy {
                    Extent::Metadata
                } else {
                    Extent::Everything
                };
                let attached = open()?.attach(extent).await?;
                say(json, &attached, || show_attach(&attached));
                Ok(())
            }
            Command::Canary(args) => {
                let proven = open()?.canary(&args.from).await?;
                say(json, &proven, || {
                    out::line(format_args!(
                        "canary restored from {} and good",
                        proven.from
                    ));
                });
                Ok(())
            }
            Command::Status => {
                let status = engine::status(&site).await;
                say(json, &status, || {
                    show_snapshots(&status.snapshots);
                    show_copies(&status.copies);
                    if let Some(problem) = &status.problem {
                        out::line(format_args!("problem: {problem}"));
                    }
                });
                Ok(())
            }
            Command::Serve => {
                serve::serve(&site, edge::shutdown::token()).await;
                Ok(())
            }
        }
    }
}

fn say(json: bool, value: &impl serde::Serialize, people: impl FnOnce()) {
    if json {
        out::json(value);
    } else {
        people();
    }
}

fn judged(ok: bool, problem: &str) -> Result<(), Failure> {
    if ok {
        Ok(())
    } else {
        Err(Failure::new(Kind::Failed, anyhow::anyhow!("{problem}")))
    }
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xF_FFFF) * 10) >> 20)
}

fn show_run(run: &report::Run) {
    for source in &run.sources {
        let snapshot = source.snapshot.as_deref().map_or("none", short);
        let mark = if source.partial { " PARTIAL" } else { "" };
        out::line(format_args!(
            "{}: snapshot {snapshot}{mark}, {} files, {}, {} new, {:.1} s",
            source.source,
            source.files,
            mib(source.bytes),
            mib(source.added),
            source.seconds
        ));
        if let Some(problem) = source.error.as_ref().or(source.reason.as_ref()) {
            out::line(format_args!("  {problem}"));
        }
        for entry in &source.ledger.entries {
            out::line(format_args!("  missing {}: {}", entry.path, entry.reason));
        }
    }
    show_copies(&run.copies);
}

fn show_copies(copies: &[CopyState]) {
    for copy in copies {
        let state = match &copy.problem {
            None => "holds everything".to_owned(),
            Some(problem) => format!("is behind: {problem}"),
        };
        out::line(format_args!(
            "{}: {state}, {} files sent, {}",
            copy.destination,
            copy.files_sent,
            mib(copy.bytes_sent)
        ));
    }
}

fn show_snapshots(rows: &[SnapshotRow]) {
    for row in rows {
        out::line(format_args!(
            "{}  {}  {}  {} files  {}  in {}{}",
            short(&row.id),
            row.time.strftime("%Y-%m-%d %H:%M:%S"),
            row.source,
            row.files,
            mib(row.bytes),
            row.copies.join(", "),
            if row.partial { "  PARTIAL" } else { "" }
        ));
    }
}

fn show_restore(restored: &report::Restore) {
    out::line(format_args!(
        "restored {} files, {}, from {} to {} in {:.1} s",
        restored.written.files,
        mib(restored.written.bytes),
        restored.from,
        restored.to,
        restored.seconds
    ));
}

fn show_attach(attached: &report::Attach) {
    let from = attached.from.as_deref().unwrap_or("this machine");
    let rest = if attached.complete {
        ""
    } else {
        "; the packs follow"
    };
    out::line(format_args!(
        "attached from {from}: {} snapshots, {} files fetched in {:.1} s{rest}",
        attached.snapshots, attached.files, attached.seconds
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn target_of_a_restore_is_the_source_or_an_absolute_folder() {
        let parse = |args: &[&str]| {
            let words = ["leap-backup", "restore"].iter().chain(args);
            let Command::Restore(restore) = Cli::try_parse_from(words).unwrap().command else {
                panic!("a restore");
            };
            restore.order()
        };
        assert_eq!(
            parse(&["--to", "source"]).unwrap().to,
            To::Source { folder: None }
        );
        assert!(parse(&["--to", "source", "--target-path", "/x"]).is_ok());
        assert!(parse(&["--to", "/x"]).is_ok());
        for bad in [
            &["--to", "x"][..],
            &["--to", "/x", "--target-path", "/y"],
            &["--to", "source", "--target-path", "y"],
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), Kind::Usage);
        }
    }
}
