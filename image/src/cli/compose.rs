//! `leap-image compose`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure, Kind, hint, marked};
use edge::out;
use edge::progress::Bar;
use model::pass::StickSettings;
use model::{CustomerName, Digest, ReleaseVersion, UnitName};
use serde::Serialize;
use slots::extents::Map;
use slots::stock::{self, StoredLayer};

use super::stock::StockArgs;
use crate::disk::{self, Draft, Format, shelf};
use crate::release::readable;

/// Compose a bootable disk image from a release and a customer's layer
///
/// Formats: raw (sparse), raw.zst (zstd, can be seeked), qcow2, vmdk (monolithicSparse),
/// and usb: a stick that starts the release's installer and carries the release and the
/// layer. With --sky and --sky-ca the installer reaches the sky itself, with a one-time code
/// (`leapctl unit pass`), where there is no factory; without them it looks for a factory. The
/// release comes over the network either way.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    stock: StockArgs,
    /// The customer layer's folder
    #[arg(long, value_name = "DIR", required_unless_present = "layers")]
    layer: Option<PathBuf>,
    /// Folder with the folder of each customer's layer
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "layer",
        requires = "customer"
    )]
    layers: Option<PathBuf>,
    /// The customer; another one's layer is refused
    #[arg(long)]
    customer: Option<CustomerName>,
    /// The unit: its disk gets GUIDs of its own
    #[arg(long, value_name = "CUSTOMER/NAME")]
    unit: Option<UnitName>,
    /// raw, raw.zst, qcow2, vmdk or usb
    #[arg(long, default_value_t = Format::Raw)]
    format: Format,
    /// For a stick: where the installer finds the sky, https://HOST:PORT
    #[arg(long, value_name = "URL", requires = "sky_ca")]
    sky: Option<String>,
    /// For a stick: the CA of the sky's certificate (PEM), ca.crt in the sky's folder
    #[arg(long, value_name = "FILE", requires = "sky")]
    sky_ca: Option<PathBuf>,
    /// The disk image to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    out: PathBuf,
    release: ReleaseVersion,
    customer: &'a CustomerName,
    unit: Option<&'a UnitName>,
    format: &'static str,
    /// Size of the disk in bytes.
    size: u64,
    /// Bytes that the file takes on the medium.
    stored: u64,
    /// Equal identities mean equal disks.
    identity: Digest,
    /// Seconds from the release laid ready to the composed disk.
    composed: f64,
    /// Seconds of writing it.
    written: f64,
    /// The most memory that was taken, in bytes.
    peak_memory: u64,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let trust = self.stock.trust()?;
        let (manifest, bytes) = disk::manifest(&trust, &self.stock.release)?;
        let layer = self.layer(&trust)?;
        let settings = self.settings()?;
        // Before the work of composing: a place that cannot be written is told at once.
        let draft = Draft::new(&self.out)?;
        let begun;
        let composed = if self.format == Format::Usb {
            begun = Instant::now();
            stock::stick(
                &manifest,
                &bytes,
                &self.stock.release,
                &layer,
                settings.as_ref(),
            )
        } else {
            let stock = self.stock.open(&trust)?;
            begun = Instant::now();
            stock.disk(&layer, self.unit.as_ref())
        };
        let disk: Map = composed.map_err(disk::classify)?;
        let composed = begun.elapsed().as_secs_f64();
        let bar = Bar::bytes("write", disk.size());
        let begun = Instant::now();
        let stored = draft.write(&disk, self.format, &mut |at| bar.set(at))?;
        bar.finish();
        let answer = Answer {
            out: self.out,
            release: manifest.version,
            customer: &layer.document().customer,
            unit: self.unit.as_ref(),
            format: self.format.as_str(),
            size: disk.size(),
            stored,
            identity: disk.id(),
            composed,
            written: begun.elapsed().as_secs_f64(),
            peak_memory: shelf::peak_memory()?,
        };
        if self.json {
            out::json(&answer);
        } else {
            out::line(format_args!(
                "{}: release {} for {}, {} ({} as {})",
                answer.out.display(),
                answer.release,
                answer.customer,
                readable(answer.size),
                readable(answer.stored),
                answer.format
            ));
        }
        Ok(())
    }

    /// Where the installer of a stick finds the sky.
    fn settings(&self) -> Result<Option<StickSettings>, Failure> {
        let (Some(sky), Some(file)) = (&self.sky, &self.sky_ca) else {
            return Ok(None);
        };
        if self.format != Format::Usb {
            let odd = format!("--sky: is for --format usb, not for {}", self.format);
            return Err(marked(Kind::Usage, odd).into());
        }
        let sky = sky.trim_end_matches('/').to_owned();
        if !sky.starts_with("https://") || sky.len() == "https://".len() {
            let odd = format!("--sky {sky:?}: expected https://HOST:PORT");
            return Err(marked(Kind::Usage, odd).into());
        }
        let ca = std::fs::read_to_string(file)
            .with_context(|| format!("read {}", file.display()))
            .environment()?;
        if !ca.contains("-----BEGIN CERTIFICATE-----") || ca.contains("PRIVATE KEY") {
            let odd = format!("{}: expected a certificate (PEM) alone", file.display());
            return Err(hint(
                marked(Kind::InvalidInput, odd),
                "ca.crt in the sky's folder is the one",
            )
            .into());
        }
        Ok(Some(StickSettings { sky, ca }))
    }

    fn layer(&self, trust: &model::TrustRoot) -> Result<StoredLayer, Failure> {
        let unit = self.unit.as_ref().map(UnitName::customer);
        if let (Some(customer), Some(owner)) = (&self.customer, unit)
            && customer != owner
        {
            let odd = format!("--unit: of customer {owner}, where --customer is {customer}");
            return Err(marked(Kind::Usage, odd).into());
        }
        let customer = self.customer.as_ref().or(unit);
        let folder = match (&self.layer, &self.layers, customer) {
            (Some(folder), _, _) => folder.clone(),
            (None, Some(layers), Some(customer)) => layers.join(customer.as_str()),
            _ => {
                let missing = marked(Kind::Usage, "which layer is not said");
                return Err(hint(
                    missing,
                    "name --layer DIR, or --layers DIR and --customer C",
                )
                .into());
            }
        };
        disk::layer(trust, &folder, customer)
    }
}
