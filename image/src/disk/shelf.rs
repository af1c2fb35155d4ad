//! The disks of all customers of a release, composed when they are asked for.
//!
//! A disk costs less than a millisecond, so no disk is kept but the last few
//! that were asked for. What is kept of each customer is the identity of its
//! disk. A layer that is new or has changed since counts with the next request.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure, Kind};
use model::{CustomerName, Digest, TrustRoot};
use slots::extents::Map;
use slots::http::DiskPath;
use slots::serve::{Disks, NotServed};
use slots::stock::Stock;

/// Disks that are kept composed.
const RECENT: usize = 64;

/// A release and the folder of its customers' layers.
#[derive(Debug)]
pub struct Shelf {
    stock: Stock,
    layers: PathBuf,
    trust: TrustRoot,
    recent: Mutex<VecDeque<(DiskPath, Digest, Arc<Map>)>>,
}

/// What composing all of them gave.
#[derive(Debug, Default)]
pub struct Composed {
    /// The identity of each customer's disk.
    pub disks: BTreeMap<CustomerName, Digest>,
    /// The most bytes of memory that one disk took for itself alone.
    pub most_bytes: usize,
    /// Layers that are not to be used, and why.
    pub bad: Vec<(CustomerName, Failure)>,
}

impl Shelf {
    /// Puts a release and a folder with a folder for each customer's layer together.
    pub fn new(stock: Stock, layers: PathBuf, trust: TrustRoot) -> Self {
        Self {
            stock,
            layers,
            trust,
            recent: Mutex::default(),
        }
    }

    /// Returns the release.
    pub fn stock(&self) -> &Stock {
        &self.stock
    }

    /// Composes the disk of every customer once, on all processors.
    ///
    /// # Errors
    /// Kind `InvalidInput`: the folder cannot be read.
    pub fn compose_all(&self, progress: &(dyn Fn() + Sync)) -> Result<Composed, Failure> {
        let mut customers = self.customers().invalid_input()?;
        customers.sort();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut composed = Composed::default();
            while let Some(customer) = customers.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.compose(customer) {
                    Ok(disk) => {
                        composed.most_bytes = composed.most_bytes.max(disk.own_memory());
                        composed.disks.insert(customer.clone(), disk.id());
                    }
                    Err(failure) => composed.bad.push((customer.clone(), failure)),
                }
                progress();
            }
            composed
        };
        let width = thread::available_parallelism().map_or(1, usize::from);
        let parts: Vec<Composed> = thread::scope(|scope| {
            let threads: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("composing does not panic"))
                .collect()
        });
        let mut all = Composed::default();
        for part in parts {
            all.disks.extend(part.disks);
            all.bad.extend(part.bad);
            all.most_bytes = all.most_bytes.max(part.most_bytes);
        }
        Ok(all)
    }

    /// The folders that have a customer's name. Others are somebody else's.
    fn customers(&self) -> anyhow::Result<Vec<CustomerName>> {
        let describe = || format!("read the layers' folder {}", self.layers.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.layers).with_context(describe)? {
            let name = entry.with_context(describe)?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse().ok()));
        }
        Ok(found)
    }

    fn compose(&self, customer: &CustomerName) -> Result<Map, Failure> {
        let layer = super::layer(&self.trust, &self.folder(customer), Some(customer))?;
        self.stock.disk(&layer, None).map_err(super::classify)
    }

    fn folder(&self, customer: &CustomerName) -> PathBuf {
        self.layers.join(customer.as_str())
    }
}

impl Disks for Shelf {
    fn disk(&self, path: &DiskPath) -> Result<Arc<Map>, NotServed> {
        let folder = self.folder(&path.customer);
        let document = std::fs::read(folder.join("layer.json"))
            .map_err(|_| NotServed::NotFound(format!("customer {}: no layer", path.customer)))?;
        let digest = Digest::of(&document);
        let known = |recent: &VecDeque<(DiskPath, Digest, Arc<Map>)>| {
            let found = recent
                .iter()
                .find(|(at, of, _)| at == path && *of == digest);
            found.map(|(_, _, disk)| Arc::clone(disk))
        };
        if let Some(disk) = known(&self.recent.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(disk);
        }
        let failed = |failure: Failure| NotServed::Failed(failure.to_string());
        let layer = super::layer(&self.trust, &folder, Some(&path.customer)).map_err(failed)?;
        let disk = self.stock.disk(&layer, path.unit.as_ref());
        let disk = Arc::new(disk.map_err(|error| failed(super::classify(error)))?);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|(at, _, _)| at != path);
        recent.push_front((path.clone(), digest, Arc::clone(&disk)));
        recent.truncate(RECENT);
        Ok(disk)
    }
}

/// Returns the most memory that this process has had, in bytes.
///
/// # Errors
/// Kind `Environment`: the kernel does not say.
pub fn peak_memory() -> Result<u64, Failure> {
    let path = Path::new("/proc/self/status");
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read {}", path.display()))
        .environment()?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| {
            let odd = anyhow::anyhow!("{}: expected a line VmHWM", path.display());
            Failure::new(Kind::Environment, odd)
        })
}
