//! `leap-image inspect`

use std::path::PathBuf;

use anyhow::Context as _;
use edge::exit::{Failure, Kind};
use edge::{clock, out};
use model::release::ReleaseManifest;
use serde::Serialize;

use crate::release::{self, MANIFEST, readable};
use crate::uki;

/// Check a release's signature and files, and say what it holds
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The release's folder
    release: PathBuf,
    /// Trust root to check the signature against
    #[arg(long, value_name = "FILE")]
    trust_root: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    manifest: ReleaseManifest,
    uki: Vec<UkiSection>,
}

#[derive(Debug, Serialize)]
struct UkiSection {
    name: String,
    size: usize,
    text: Option<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let trust = super::read_trust_root(&self.trust_root)?;
        let signed = release::read_signed::<ReleaseManifest>(&self.release.join(MANIFEST))?;
        let manifest = trust
            .verify(&signed, clock::now())
            .map_err(|error| Failure::new(Kind::Refused, error))?
            .into_inner();
        let images = manifest.components.iter().map(|component| &component.image);
        for artifact in [&manifest.uki, &manifest.boot_loader, &manifest.installer]
            .into_iter()
            .chain(images)
        {
            release::check(&self.release, artifact)?;
        }
        for image in [&manifest.root, &manifest.verity] {
            let file = self.release.join(&image.path);
            crate::segment::read(image, &file, &mut std::io::sink())?;
        }
        let bytes = std::fs::read(self.release.join(&manifest.uki.path)).context("read the UKI")?;
        let sections = uki::sections(&bytes).context("read the UKI")?;
        let uki = sections
            .into_iter()
            .map(|(name, content)| {
                let text = [".osrel", ".cmdline", ".uname"]
                    .contains(&name.as_str())
                    .then(|| String::from_utf8_lossy(content).trim_end().to_owned());
                UkiSection {
                    size: content.len(),
                    text,
                    name,
                }
            })
            .collect();
        let answer = Answer { manifest, uki };
        if self.json {
            out::json(&answer);
        } else {
            print(&answer);
        }
        Ok(())
    }
}

fn print(answer: &Answer) {
    let Answer { manifest, uki } = answer;
    out::line(format_args!(
        "release {} ({}), signed, all files as the manifest says",
        manifest.version, manifest.architecture
    ));
    out::line(format_args!("root hash {}", manifest.root_hash));
    for (name, image) in [("root", &manifest.root), ("verity", &manifest.verity)] {
        out::line(format_args!(
            "{name:10} {:>10}, {} stored in {} segments",
            readable(image.size),
            readable(image.stored_size),
            image.segments.len()
        ));
    }
    for (name, artifact) in [
        ("uki", &manifest.uki),
        ("loader", &manifest.boot_loader),
        ("installer", &manifest.installer),
    ] {
        out::line(format_args!("{name:10} {:>10}", readable(artifact.size)));
    }
    for component in &manifest.components {
        out::line(format_args!(
            "component  {:>10}  {} {}",
            readable(component.image.size),
            component.name,
            component.version
        ));
    }
    for section in uki {
        let text = section.text.as_deref().unwrap_or_default();
        out::line(format_args!(
            "section    {:>10}  {} {}",
            readable(section.size as u64),
            section.name,
            text.replace('\n', " ")
        ));
    }
}
