//! `leap-lab bench`: our figures, beside a peer's from the same run.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edge::durable::{self, Mode};
use edge::exit::Failure;
use edge::out;

use super::Options;
use super::demo::{Demo, Material};
use crate::bench::{self, Figure};
use crate::lab::isolation;
use crate::lab::story::Report;

/// Tell the whole life once, build a release cold and warm, and print the seconds
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(flatten)]
    material: Material,
    /// Answer in JSON as well as in figures.json
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let stage = self.material.stage(options);
        let code = Demo::whole(self.material).run(options).await?;
        // Inside, the story was all: releases are built on the host's network.
        if isolation::is_inside() || code != ExitCode::SUCCESS {
            return Ok(code);
        }
        let path = options.build_dir.join("report.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let report: Report = serde_json::from_slice(&text)
            .with_context(|| format!("{}: expected a report", path.display()))?;
        let mut figures = bench::of_story(&report);
        figures.extend(bench::builds(&stage)?);
        let material = bench::compose::Material::of_story(&stage)?;
        figures.extend(bench::compose::compose(&material).await?);
        let file = options.build_dir.join("figures.json");
        durable::write_json(&file, &figures, Mode::Public)?;
        if self.json {
            out::json(&figures);
        } else {
            out::line(table(&figures).trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn table(figures: &[Figure]) -> String {
    let cell = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
    let mut text =
        String::from("| what | ours | peer | ours / peer | aim |\n|---|---|---|---|---|\n");
    for figure in figures {
        let peer = figure.peer.filter(|peer| *peer != 0.0);
        let ratio = peer.map(|peer| figure.ours / peer);
        text.push_str(&format!(
            "| {} ({}) | {:.1} | {} | {} | {} |\n",
            figure.what,
            figure.unit,
            figure.ours,
            cell(figure.peer),
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            cell(figure.aim),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_beside_its_peer_and_its_aim() {
        let figure = Figure {
            what: "release build, cold".to_owned(),
            unit: "s",
            ours: 30.0,
            peer: Some(20.0),
            aim: None,
        };
        let text = table(&[figure]);
        assert!(
            text.ends_with("| release build, cold (s) | 30.0 | 20.0 | 1.50 |  |\n"),
            "{text}"
        );
    }
}
