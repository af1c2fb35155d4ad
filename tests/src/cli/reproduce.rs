//! `leap-lab reproduce`: the same bytes twice.

use std::process::ExitCode;

use clap::Args;
use edge::exit::Failure;
use edge::out;

use super::Options;
use super::demo::Material;
use crate::reproduce;

/// Build a release and a customer's disk twice, under different circumstances, and compare every byte
///
/// The hashes are recorded in the build folder; a later run with the same programs,
/// recipes, keys and packages is compared with them too.
#[derive(Debug, Args)]
pub(super) struct Reproduce {
    #[command(flatten)]
    material: Material,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Reproduce {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let stage = self.material.stage(options);
        let outcome = tokio::task::spawn_blocking(move || reproduce::run(&stage))
            .await
            .map_err(anyhow::Error::from)??;
        let recorded = outcome.since_recorded.as_deref();
        let same = outcome.differences.is_empty() && recorded.is_none_or(<[_]>::is_empty);
        if self.json {
            out::json(&outcome);
        } else {
            let [first, second] = outcome.seconds;
            let count = outcome.record.outputs.len();
            out::line(format_args!(
                "built twice, in {first:.0} s and as another user elsewhere in {second:.0} s"
            ));
            tell("the two builds", count, &outcome.differences);
            match recorded {
                Some(differences) => tell("the recorded run and this one", count, differences),
                None => out::line("no run with these inputs was recorded before"),
            }
        }
        Ok(if same {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn tell(what: &str, count: usize, differences: &[String]) {
    if differences.is_empty() {
        out::line(format_args!(
            "{what}: {count} outputs are the same, byte for byte"
        ));
    } else {
        out::line(format_args!("{what} differ in {}", differences.join(", ")));
    }
}
