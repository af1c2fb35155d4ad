//! `leapctl release publish`.

use std::path::PathBuf;

use anyhow::anyhow;
use edge::exit::{Failure, Kind, hint};
use edge::progress::Bar;
use model::release::{ChannelPointer, manifest_path};
use model::{Digest, ReleaseVersion};
use serde::Serialize;

use super::offer::{offer, title};
use crate::birth::size;
use crate::client::Sky;
use crate::operator::Operator;
use crate::release_folder::{MANIFEST, ReleaseFolder};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that leap-image has made
    dir: PathBuf,
    /// Offer it on this channel once all of it is stored; else nothing is offered
    #[arg(long)]
    channel: Option<String>,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Outcome {
    release: ReleaseVersion,
    revision: u32,
    manifest: Digest,
    files_sent: usize,
    files_there: usize,
    bytes_sent: u64,
    offered: Option<ChannelPointer>,
    seconds: u64,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let begun = tokio::time::Instant::now();
        let root = operator.keys()?.trust_root()?;
        let sky = operator.sky()?;
        let (dir, trusted, now) = (self.dir.clone(), root.clone(), edge::clock::now());
        // Hashing hundreds of megabytes would hold up everything else.
        let folder =
            tokio::task::spawn_blocking(move || ReleaseFolder::verify(&dir, &trusted, now))
                .await
                .map_err(|error| Failure::new(Kind::Failed, error))??;
        let (release, revision) = (folder.manifest.version, folder.manifest.revision);
        let missing = missing(&sky, &folder).await?;
        let bytes_sent = missing.iter().map(|(_, size)| size).sum();
        let bar = Bar::bytes(&format!("upload {release}"), bytes_sent);
        for (file, _) in &missing {
            let stored_as = stored_as(file, revision);
            sky.store_release_file(release, &stored_as, &folder.path(file), &bar)
                .await?;
        }
        bar.finish();
        let offered = match &self.channel {
            Some(channel) => Some(offer(&sky, &root, channel, (release, revision)).await?),
            None => None,
        };
        let outcome = Outcome {
            release,
            revision,
            manifest: Digest::of(&folder.manifest_bytes),
            files_sent: missing.len(),
            files_there: folder.files.len() - missing.len(),
            bytes_sent,
            offered,
            seconds: begun.elapsed().as_secs(),
        };
        operator.show(&outcome, human);
        Ok(())
    }
}

/// Returns under which path the sky keeps a file: the manifests of all
/// revisions of a version lie beside one another.
fn stored_as(file: &str, revision: u32) -> String {
    match file {
        MANIFEST => manifest_path(revision),
        file => file.to_owned(),
    }
}

/// Returns the files that the sky does not have yet, in their order.
///
/// A file that is there was compared with its digest by the sky, or will be
/// when the release is offered; so its size tells it from a torn upload.
async fn missing(sky: &Sky, folder: &ReleaseFolder) -> Result<Vec<(String, u64)>, Failure> {
    let release = folder.manifest.version;
    let mut missing = Vec::new();
    for (file, size) in &folder.files {
        if file == MANIFEST {
            let revision = folder.manifest.revision;
            match sky
                .release_file(release, &stored_as(file, revision))
                .await?
            {
                Some(there) if there != folder.manifest_bytes => {
                    return Err(Failure::new(
                        Kind::Refused,
                        hint(
                            anyhow!(
                                "{}: the sky has another release of this version and revision",
                                title(release, revision)
                            ),
                            "neither is ever used twice: build it with a higher number",
                        ),
                    ));
                }
                Some(_) => {}
                None => missing.push((file.clone(), *size)),
            }
        } else if sky.release_file_size(release, file).await? != Some(*size) {
            missing.push((file.clone(), *size));
        }
    }
    Ok(missing)
}

fn human(outcome: &Outcome) -> String {
    let mut text = format!(
        "{}: {} files sent ({}), {} were there, {} s",
        title(outcome.release, outcome.revision),
        outcome.files_sent,
        size(outcome.bytes_sent),
        outcome.files_there,
        outcome.seconds
    );
    match &outcome.offered {
        Some(pointer) => text.push_str(&format!(
            "\noffered on channel {} (version {})",
            pointer.channel, pointer.version
        )),
        None => {
            let revision = match outcome.revision {
                0 => String::new(),
                revision => format!(" --revision {revision}"),
            };
            text.push_str(&format!(
                "\nnot offered; next: leapctl release offer {}{revision} --channel stable",
                outcome.release
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revisions_manifest_goes_beside_that_of_the_release() {
        assert_eq!(stored_as(MANIFEST, 0), "manifest.json");
        assert_eq!(stored_as(MANIFEST, 2), "revisions/2/manifest.json");
        assert_eq!(stored_as("root.zst", 2), "root.zst");
    }
}
