//! The documents of a release: what tells about it and is signed with it.

use std::path::Path;

use anyhow::Context as _;
use edge::exit::{self, Kind as Fault};
use model::release::{Artifact, ReleaseManifest};

use crate::block::FilePart;
use crate::contents::{KERNEL_CONFIG, LOCK};
use crate::erofs::Image;
use crate::lock::Lock;
use crate::owners::{FILES, Files};
use crate::recipe::Recipe;
use crate::release::Draft;
use crate::sbom::{self, Bill};
use crate::sizes::{self, SIZES, Sizes};
use crate::steps::root::STATUS;

/// What the documents are made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The lock.
    pub lock: &'a Lock,
    /// The manifest, complete but for the documents.
    pub manifest: &'a ReleaseManifest,
    /// The root step's folder.
    pub root: &'a Path,
    /// The kernel step's folder.
    pub kernel: &'a Path,
    /// The `Cargo.lock` that our programs were built with.
    pub cargo_lock: Option<&'a Path>,
    /// The folder of releases, where the one before may be.
    pub out: &'a Path,
}

/// Writes the documents into the draft of a release and checks its budget.
///
/// # Errors
/// When an input cannot be read, or a budget is exceeded.
pub fn write(inputs: &Inputs<'_>, draft: &mut Draft) -> anyhow::Result<Vec<Artifact>> {
    let Inputs {
        recipe,
        lock,
        manifest,
        ..
    } = *inputs;
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let files_json = read(&inputs.root.join(FILES))?;
    let files: Files = serde_json::from_slice(&files_json).context("read whose the files are")?;
    let sizes = Sizes::new(sizes::outputs(manifest), &files);
    let before = sizes::newest_before(inputs.out, manifest.version);
    sizes::check_budget(&recipe.budget, &sizes, before.as_ref())
        .map_err(|message| exit::marked(Fault::Failed, message))?;

    let status = read(&inputs.root.join(STATUS))?;
    let mut bill = Bill::new(
        recipe,
        lock,
        manifest,
        &String::from_utf8_lossy(&status),
        &files,
    )?;
    let root = FilePart::open(&inputs.root.join("root")).context("open the root image")?;
    let root = Image::open(root).context("read the root image")?;
    bill.add_programs(None, &recipe.root.binaries, &root)
        .context("read the root image")?;
    for component in &manifest.components {
        let Some(wanted) = recipe.components.get(&component.name) else {
            continue;
        };
        let image = crate::contents::extension(&draft.path(&component.image.path))?;
        bill.add_programs(Some(&component.name), &wanted.binaries, &image)
            .with_context(|| format!("read the component {}", component.name))?;
    }
    if let Some(path) = inputs.cargo_lock {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        bill.crates = sbom::parse_cargo_lock(&text).map_err(|problem| {
            exit::marked(
                Fault::InvalidInput,
                format!("{}: {problem}", path.display()),
            )
        })?;
    }

    // A fixed level: the same files must give the same bytes on every machine.
    let packed = zstd::bulk::compress(&files_json, 19).context("compress whose the files are")?;
    let pretty = |value: &serde_json::Value| -> anyhow::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(value).context("write a bill of materials")?;
        bytes.push(b'\n');
        Ok(bytes)
    };
    let sizes_json = serde_json::to_vec_pretty(&sizes).context("write the sizes")?;
    let mut documents: Vec<Artifact> = draft.record().cloned().into_iter().collect();
    documents.extend([
        draft.write(LOCK, lock.to_json().as_bytes())?,
        draft.write("packages.txt", lock.text().as_bytes())?,
        draft.write(sbom::SPDX, &pretty(&sbom::spdx::document(&bill))?)?,
        draft.write(
            sbom::CYCLONE_DX,
            &pretty(&sbom::cyclonedx::document(&bill))?,
        )?,
        draft.write(KERNEL_CONFIG, &read(&inputs.kernel.join("config"))?)?,
        draft.write(&format!("{FILES}.zst"), &packed)?,
        draft.write(SIZES, &sizes_json)?,
    ]);
    Ok(documents)
}
