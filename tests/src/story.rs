//! The whole life of a unit, told with our real programs on the laboratory.
//!
//! Eleven steps from an empty disk to the dead machine that wakes up. Each is what
//! an operator would type, and each is judged from outside the unit where that
//! is possible. [`tell`] is the demo; the laboratory for people and the
//! end-to-end test are the same story, stopped earlier or looked at longer.

mod birth;
pub mod births;
mod centre;
mod death;
pub mod floor;
pub mod matrix;
mod operator;
mod releases;
mod service;
mod updates;
mod world;

use std::path::PathBuf;

use crate::lab::isolation::Inside;
use crate::lab::story::{Output, Report, STEPS, Story};

pub(crate) use releases::{FIRST, Sizes};
pub use world::World;

/// Where the programs, the recipes and the results are.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Folder of LeapServ's programs.
    pub programs: PathBuf,
    /// Folder of the image recipes.
    pub recipes: PathBuf,
    /// Folder for all results.
    pub build: PathBuf,
    /// Folder of downloads and finished image steps, kept between runs.
    pub cache: PathBuf,
}

/// Tells the story up to and with the step `last`, or all of it.
///
/// # Errors
/// The report cannot be written. A step that fails is in the report.
pub async fn tell(
    inside: &Inside,
    stage: &Stage,
    output: Output,
    last: Option<&str>,
) -> anyhow::Result<(Report, Option<World>)> {
    let count = last.map_or(STEPS.len(), |last| {
        STEPS
            .iter()
            .position(|name| *name == last)
            .map_or(STEPS.len(), |at| at + 1)
    });
    let mut story = Story::new(&STEPS[..count], output);
    let mut world = None;
    for name in &STEPS[..count] {
        if let Err(error) = step(name, inside, stage, &mut story, &mut world).await {
            story.say(&edge::exit::render(&error));
            break;
        }
    }
    let report = story.end(&stage.build.join("report.json"))?;
    Ok((report, world))
}

async fn step(
    name: &str,
    inside: &Inside,
    stage: &Stage,
    story: &mut Story,
    world: &mut Option<World>,
) -> anyhow::Result<()> {
    if name == "sky" {
        let made = story
            .step(
                name,
                "Sky: the centre starts, a customer and a unit are created",
                async |step| centre::sky(inside, stage, step).await,
            )
            .await?;
        *world = Some(made);
        return Ok(());
    }
    let world = world.as_mut().expect("the first step makes the world");
    match name {
        "release" => {
            let title = "Release: operating systems are built from Debian's packages";
            story
                .step(name, title, async |step| {
                    releases::build(inside, world, step).await
                })
                .await
        }
        "birth" => {
            let title = "Birth: an empty machine is powered on";
            story
                .step(name, title, async |step| birth::birth(world, step).await)
                .await
        }
        "service" => {
            let title =
                "In service: configuration reaches the unit, and a deadly one is taken back";
            story
                .step(name, title, async |step| {
                    service::service(world, step).await
                })
                .await
        }
        "backup" => {
            let title = "Backup: the photo gallery is pulled, copied offsite, and a photo restored";
            story
                .step(name, title, async |step| service::backup(world, step).await)
                .await
        }
        "update" => {
            let title = "Update: a good release is published";
            story
                .step(name, title, async |step| updates::good(world, step).await)
                .await
        }
        "component" => {
            let title = "Component: the backup engine alone is replaced, without a restart";
            story
                .step(name, title, async |step| {
                    updates::component(inside, world, step).await
                })
                .await
        }
        "bad-release" => {
            let title = "Bad release: the health gate fails, and the unit goes back by itself";
            story
                .step(name, title, async |step| updates::bad(world, step).await)
                .await
        }
        "power-cut" => {
            let title = "Power cut: the machine is killed in the middle of writing an update";
            story
                .step(name, title, async |step| {
                    updates::power_cut(world, step).await
                })
                .await
        }
        "death" => {
            let title = "Death and rebirth: the disk is gone, another machine takes its place";
            story
                .step(name, title, async |step| death::rebirth(world, step).await)
                .await
        }
        "dead-wake" => {
            let title = "The dead wake: the old machine is switched on again";
            story
                .step(name, title, async |step| death::wake(world, step).await)
                .await
        }
        other => anyhow::bail!("no step is called {other}"),
    }
}
