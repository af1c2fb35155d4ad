//! `leap-lab lab`: a laboratory that is left running for a person.

use std::process::ExitCode;

use clap::Args;
use edge::exit::Failure;

use super::demo::Material;
use super::{Options, in_laboratory};
use crate::lab::prerequisites;
use crate::lab::story::{Output, STEPS};
use crate::story;

/// Start a laboratory with a unit in service, and leave it running until Ctrl-C
#[derive(Debug, Args)]
pub(super) struct Lab {
    #[command(flatten)]
    material: Material,
    /// Tell the story up to this step, and stay there
    #[arg(
        long,
        default_value = "birth",
        value_parser = clap::builder::PossibleValuesParser::new(STEPS),
        value_name = "STEP"
    )]
    until: String,
}

impl Lab {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let place = options.place(false);
        if !crate::lab::isolation::is_inside() {
            super::check_host::prepare().await?;
            prerequisites::sshd(&place.build.join("cache")).await?;
        }
        in_laboratory(&place, async |inside| {
            let stage = self.material.stage(options);
            let (report, world) =
                story::tell(&inside, &stage, Output::detect(), Some(&self.until)).await?;
            let Some(world) = world.filter(|_| report.ok) else {
                return Ok(ExitCode::FAILURE);
            };
            inside.ready(world.environment()?).await?;
            let program = options.bin_dir.join("leap-lab");
            let (program, build) = (program.display(), options.build_dir.display());
            let lab = format!("{program} --build-dir {build}");
            edge::out::line("\nThe laboratory is running. In another terminal:");
            edge::out::line(format_args!(
                "  {lab} enter                  a shell with leapctl at hand"
            ));
            edge::out::line(format_args!(
                "  {lab} console houma-a        the machine's console"
            ));
            edge::out::line("Ctrl-C ends it, and everything in it.");
            inside.stopped().await;
            drop(world);
            edge::out::line("The laboratory is gone; its logs, disks and captures are kept.");
            Ok(ExitCode::SUCCESS)
        })
        .await
    }
}
