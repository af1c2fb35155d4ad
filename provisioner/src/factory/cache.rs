//! Files of releases and customers' layers, fetched once from the sky.
//!
//! A file stands under its name only when it is what a verified manifest says;
//! until then it has a name of its own and can be gone on with. What is asked
//! for and missing is fetched then and there.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use futures::StreamExt as _;
use jiff::Timestamp;
use model::release::{Artifact, ChannelPointer, CustomerLayer, ReleaseManifest};
use model::trust::TrustError;
use model::{Architecture, CustomerName, Digest, ReleaseVersion, Signed, TrustRoot, Verified};
use sha2::Digest as _;
use slots::writer::{Content, Image, WriteError, Writer};

use super::sky::{SkyClient, SkyError};

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The manifest names no such file.
    #[error("release {version}: no file {path:?}")]
    NoSuchFile {
        /// The release.
        version: ReleaseVersion,
        /// The path asked for.
        path: String,
    },
    /// The sky did not give it.
    #[error("fetch {what}")]
    Sky {
        /// What was fetched.
        what: String,
        /// Why not.
        #[source]
        source: SkyError,
    },
    /// The transfer broke off; it goes on at the next call.
    #[error("fetch {what}: broke off after {bytes} bytes")]
    Broken {
        /// What was fetched.
        what: String,
        /// Bytes that are there.
        bytes: u64,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A document is not signed by whom it must be.
    #[error("{what}: not believed")]
    NotBelieved {
        /// The document.
        what: String,
        /// Why not.
        #[source]
        source: TrustError,
    },
    /// A document is not what it should be.
    #[error("{what}: {problem}")]
    Wrong {
        /// The document or file.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The cache's disk.
    #[error("cache {}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl FetchError {
    /// Says whether there is no such thing, as opposed to not getting at it.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NoSuchFile { .. } => true,
            Self::Sky { source, .. } => source.is_not_found(),
            _ => false,
        }
    }
}

/// The release that machines are given now.
#[derive(Debug, Clone)]
pub struct Current {
    /// Its version.
    pub version: ReleaseVersion,
    /// What machines it is for.
    pub architecture: Architecture,
    /// Whether machines that are born with it enforce its Secure Boot keys from then on.
    pub enrols_keys: bool,
    /// Its installer.
    pub installer: PathBuf,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    sky: SkyClient,
    trust: TrustRoot,
    channel: String,
    /// One fetch at a time for each file.
    busy: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
    manifests: Mutex<HashMap<ReleaseVersion, Arc<Verified<ReleaseManifest>>>>,
    current: RwLock<Option<Current>>,
}

impl Cache {
    /// Opens a cache folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(
        dir: &Path,
        sky: SkyClient,
        trust: TrustRoot,
        channel: String,
    ) -> Result<Self, FetchError> {
        for dir in [dir.join("releases"), dir.join("customers")] {
            std::fs::create_dir_all(&dir).map_err(disk(&dir))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            sky,
            trust,
            channel,
            busy: Mutex::default(),
            manifests: Mutex::default(),
            current: RwLock::new(None),
        })
    }

    /// The release that machines are given now, once its installer is here.
    pub fn current(&self) -> Option<Current> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes up the release of the last run, so that a factory whose sky is
    /// away still knows its machines an installer.
    pub fn resume(&self, now: Timestamp) {
        let Some(pointer) = self.stored_pointer() else {
            return;
        };
        match self.stored_manifest(pointer.release, now) {
            Ok(Some(manifest)) => {
                let installer = self.file_path(pointer.release, &manifest.installer.path);
                if installer.is_file() {
                    self.set_current(&manifest, installer);
                }
            }
            Ok(None) => {}
            Err(problem) => tracing::warn!(%problem, "cached release not used"),
        }
    }

    /// Asks what the channel offers, and fetches the release if it is a new one.
    /// Returns the release when it has changed.
    ///
    /// # Errors
    /// [`FetchError`]; the release before stays.
    pub async fn refresh(&self, now: Timestamp) -> Result<Option<ReleaseVersion>, FetchError> {
        let what = || format!("channel {}", self.channel);
        let signed = self
            .sky
            .channel(&self.channel)
            .await
            .map_err(|source| FetchError::Sky {
                what: what(),
                source,
            })?;
        let pointer =
            self.trust
                .verify(&signed, now)
                .map_err(|source| FetchError::NotBelieved {
                    what: what(),
                    source,
                })?;
        let wrong = |problem: String| FetchError::Wrong {
            what: what(),
            problem,
        };
        if pointer.channel != self.channel {
            return Err(wrong(format!("the sky sent channel {}", pointer.channel)));
        }
        let seen = self.stored_pointer();
        if let Some(seen) = &seen
            && seen.version > pointer.version
        {
            let (old, new) = (seen.version, pointer.version);
            return Err(wrong(format!(
                "version {new} is older than {old}, seen before"
            )));
        }
        let whole = self
            .current()
            .is_some_and(|current| current.version == pointer.release);
        if whole && seen.as_ref() == Some(&*pointer) {
            return Ok(None);
        }
        let manifest = self.manifest(pointer.release, now).await?;
        let stored = self.manifest_path(pointer.release);
        let bytes = std::fs::read(&stored).map_err(disk(&stored))?;
        // A machine is born with the release as it was first published; as a unit it
        // takes the revision of its components.
        if pointer.revision == 0 && Digest::of(&bytes) != pointer.manifest {
            return Err(wrong(format!(
                "manifest of release {} is not the one that the channel names",
                pointer.release
            )));
        }
        // The installer first: machines may be waiting for it.
        let installer = self
            .file(pointer.release, &manifest.installer.path, now)
            .await?;
        let path = self.dir.join("channel.json");
        edge::durable::write_json(&path, &*pointer, edge::durable::Mode::Public)
            .map_err(|problem| disk(&path)(io::Error::other(problem)))?;
        self.set_current(&manifest, installer);
        Ok(Some(pointer.release))
    }

    /// Fetches every file of a release that a machine is born from.
    ///
    /// # Errors
    /// [`FetchError`]: the first file that is not to be had.
    pub async fn prefetch(
        &self,
        version: ReleaseVersion,
        now: Timestamp,
    ) -> Result<(), FetchError> {
        let manifest = self.manifest(version, now).await?;
        for path in birth_files(&manifest) {
            self.file(version, path, now).await?;
        }
        Ok(())
    }

    /// Returns a release's manifest, fetched if it must be.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn manifest(
        &self,
        version: ReleaseVersion,
        now: Timestamp,
    ) -> Result<Arc<Verified<ReleaseManifest>>, FetchError> {
        let path = self.manifest_path(version);
        let _turn = self.turn(&path).await;
        if let Some(manifest) = self.stored_manifest(version, now)? {
            return Ok(manifest);
        }
        let what = format!("manifest of release {version}");
        let bytes = self
            .sky
            .manifest(version)
            .await
            .map_err(|source| FetchError::Sky {
                what: what.clone(),
                source,
            })?;
        let manifest = self.believe_manifest(version, &bytes, now)?;
        edge::durable::write(&path, &bytes, edge::durable::Mode::Public)
            .map_err(|problem| disk(&path)(io::Error::other(problem)))?;
        Ok(self.keep_manifest(version, manifest))
    }

    /// Returns a file of a release, fetched if it must be.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn file(
        &self,
        version: ReleaseVersion,
        path: &str,
        now: Timestamp,
    ) -> Result<PathBuf, FetchError> {
        let manifest = self.manifest(version, now).await?;
        if path == "manifest.json" {
            return Ok(self.manifest_path(version));
        }
        let check = Check::of(manifest, path).ok_or_else(|| FetchError::NoSuchFile {
            version,
            path: path.to_owned(),
        })?;
        let target = self.file_path(version, path);
        self.fetch(&format!("/v1/releases/{version}/{path}"), &target, check)
            .await?;
        Ok(target)
    }

    /// Returns the folder of what disks are composed of.
    pub fn disks(&self) -> PathBuf {
        self.dir.join("disks")
    }

    /// Verifies the document that [`Cache::layer`] has returned.
    ///
    /// # Errors
    /// [`FetchError`]: it is not signed, or another customer's.
    pub fn believe_layer(
        &self,
        customer: &CustomerName,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<Verified<CustomerLayer>, FetchError> {
        let signed = serde_json::from_slice(bytes).map_err(|error| FetchError::Wrong {
            what: format!("layer of customer {customer}"),
            problem: error.to_string(),
        })?;
        self.verify_layer(customer, &signed, now)
    }

    fn verify_layer(
        &self,
        customer: &CustomerName,
        signed: &Signed<CustomerLayer>,
        now: Timestamp,
    ) -> Result<Verified<CustomerLayer>, FetchError> {
        let what = || format!("layer of customer {customer}");
        let layer = self
            .trust
            .verify(signed, now)
            .map_err(|source| FetchError::NotBelieved {
                what: what(),
                source,
            })?;
        if layer.customer != *customer {
            return Err(FetchError::Wrong {
                what: what(),
                problem: format!("signed for customer {}", layer.customer),
            });
        }
        Ok(layer)
    }

    /// Returns a customer's layer document, as new as the sky gives it, and its image.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn layer(
        &self,
        customer: &CustomerName,
        now: Timestamp,
    ) -> Result<(Bytes, PathBuf), FetchError> {
        let what = format!("layer of customer {customer}");
        let dir = self.dir.join("customers").join(customer.as_str());
        let stored = dir.join("layer.json");
        let signed = match self.sky.layer(customer).await {
            Ok(signed) => signed,
            Err(source @ SkyError::Unreachable { .. }) => std::fs::read(&stored)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Signed<CustomerLayer>>(&bytes).ok())
                .ok_or(FetchError::Sky {
                    what: what.clone(),
                    source,
                })?,
            Err(source) => return Err(FetchError::Sky { what, source }),
        };
        let layer = self.verify_layer(customer, &signed, now)?;
        let image = dir.join(format!("{}.raw", layer.image.sha256));
        let check = Check::Whole(layer.image.clone());
        self.fetch(
            &format!("/v1/customers/{customer}/layer.raw"),
            &image,
            check,
        )
        .await?;
        let document = serde_json::to_vec(&signed).expect("an envelope is plain JSON");
        edge::durable::write(&stored, &document, edge::durable::Mode::Public)
            .map_err(|problem| disk(&stored)(io::Error::other(problem)))?;
        Ok((document.into(), image))
    }

    fn set_current(&self, manifest: &ReleaseManifest, installer: PathBuf) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Current {
            version: manifest.version,
            architecture: manifest.architecture,
            enrols_keys: manifest.secure_boot.is_some(),
            installer,
        });
    }

    fn manifest_path(&self, version: ReleaseVersion) -> PathBuf {
        self.file_path(version, "manifest.json")
    }

    fn file_path(&self, version: ReleaseVersion, path: &str) -> PathBuf {
        self.dir
            .join("releases")
            .join(version.to_string())
            .join(path)
    }

    /// What the last run has seen on the channel. It was verified then; a
    /// pointer that has expired since still names an older version than a replay.
    fn stored_pointer(&self) -> Option<ChannelPointer> {
        let bytes = std::fs::read(self.dir.join("channel.json")).ok()?;
        serde_json::from_slice(&bytes)
            .ok()
            .filter(|pointer: &ChannelPointer| pointer.channel == self.channel)
    }

    fn stored_manifest(
        &self,
        version: ReleaseVersion,
        now: Timestamp,
    ) -> Result<Option<Arc<Verified<ReleaseManifest>>>, FetchError> {
        let known = self.manifests.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        if let Some(manifest) = known.get(&version) {
            return Ok(Some(Arc::clone(manifest)));
        }
        drop(known);
        let path = self.manifest_path(version);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk(&path)(error)),
        };
        match self.believe_manifest(version, &bytes, now) {
            Ok(manifest) => Ok(Some(self.keep_manifest(version, manifest))),
            Err(problem) => {
                // Keys may have been rotated since: ask the sky again.
                tracing::warn!(release = %version, %problem, "cached manifest not used");
                Ok(None)
            }
        }
    }

    fn keep_manifest(
        &self,
        version: ReleaseVersion,
        manifest: Verified<ReleaseManifest>,
    ) -> Arc<Verified<ReleaseManifest>> {
        let manifest = Arc::new(manifest);
        let mut known = self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.insert(version, Arc::clone(&manifest));
        manifest
    }

    fn believe_manifest(
        &self,
        version: ReleaseVersion,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<Verified<ReleaseManifest>, FetchError> {
        let what = || format!("manifest of release {version}");
        let wrong = |problem: String| FetchError::Wrong {
            what: what(),
            problem,
        };
        let signed: Signed<ReleaseManifest> =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let manifest =
            self.trust
                .verify(&signed, now)
                .map_err(|source| FetchError::NotBelieved {
                    what: what(),
                    source,
                })?;
        if manifest.version != version {
            return Err(wrong(format!("signed for release {}", manifest.version)));
        }
        // The paths become names of files here.
        let mut paths: Vec<&str> = birth_files(&manifest);
        paths.push(&manifest.installer.path);
        for path in paths {
            let clean = pxe::boot::clean_path(path);
            if clean.as_deref() != Ok(path) || path.contains(".part") || path == "manifest.json" {
                return Err(wrong(format!("bad path {path:?}")));
            }
        }
        Ok(manifest)
    }

    async fn turn(&self, path: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(busy.entry(path.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    async fn fetch(&self, url: &str, target: &Path, check: Check) -> Result<(), FetchError> {
        let _turn = self.turn(target).await;
        if target.is_file() {
            return Ok(());
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = target.with_file_name(name);
        if let Some(dir) = target.parent() {
            std::fs::create_dir_all(dir).map_err(disk(dir))?;
        }
        let expected = check.size();
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&part)
            .map_err(disk(&part))?;
        let mut length = file.metadata().map_err(disk(&part))?.len();
        if length > expected {
            file.set_len(0).map_err(disk(&part))?;
            length = 0;
        }
        if length < expected {
            tracing::info!(file = url, size = expected, from = length, "fetching");
            let answer =
                self.sky
                    .download(url, length)
                    .await
                    .map_err(|source| FetchError::Sky {
                        what: url.to_owned(),
                        source,
                    })?;
            if length > 0 && answer.status() != axum::http::StatusCode::PARTIAL_CONTENT {
                file.set_len(0).map_err(disk(&part))?;
                length = 0;
            }
            let mut body = answer.bytes_stream();
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|source| FetchError::Broken {
                    what: url.to_owned(),
                    bytes: length,
                    source,
                })?;
                length += u64::try_from(piece.len()).expect("a piece in memory");
                if length > expected {
                    break;
                }
                file = blocking(move || file.write_all(&piece).map(|()| file))
                    .await
                    .map_err(disk(&part))?;
            }
        }
        let (checked, from, to) = (part.clone(), part.clone(), target.to_owned());
        let result = blocking(move || {
            file.sync_all()?;
            let verdict = check.judge(&checked)?;
            Ok(verdict)
        })
        .await
        .map_err(disk(&part))?;
        if let Err(problem) = result {
            // Kept, it would be asked for and refused for ever.
            drop(std::fs::remove_file(&part));
            return Err(FetchError::Wrong {
                what: url.to_owned(),
                problem,
            });
        }
        blocking(move || edge::durable::rename(&from, &to).map_err(io::Error::other))
            .await
            .map_err(disk(target))?;
        Ok(())
    }
}

/// The files that a birth needs, but the installer.
fn birth_files(manifest: &ReleaseManifest) -> Vec<&str> {
    let mut paths = vec![
        manifest.root.path.as_str(),
        &manifest.verity.path,
        &manifest.uki.path,
        &manifest.boot_loader.path,
    ];
    paths.extend(manifest.components.iter().map(|c| c.image.path.as_str()));
    paths.extend(manifest.enrolment().map(|artifact| artifact.path.as_str()));
    paths
}

/// What a fetched file must be.
enum Check {
    Whole(Artifact),
    Segments(Arc<Verified<ReleaseManifest>>, Content),
}

impl Check {
    fn of(manifest: Arc<Verified<ReleaseManifest>>, path: &str) -> Option<Self> {
        if manifest.root.path == path {
            return Some(Self::Segments(manifest, Content::Root));
        }
        if manifest.verity.path == path {
            return Some(Self::Segments(manifest, Content::Verity));
        }
        [&manifest.uki, &manifest.boot_loader, &manifest.installer]
            .into_iter()
            .chain(manifest.components.iter().map(|c| &c.image))
            .chain(manifest.enrolment())
            .find(|artifact| artifact.path == path)
            .cloned()
            .map(Self::Whole)
    }

    fn size(&self) -> u64 {
        match self {
            Self::Whole(artifact) => artifact.size,
            Self::Segments(manifest, Content::Root) => manifest.root.stored_size,
            Self::Segments(manifest, Content::Verity) => manifest.verity.stored_size,
        }
    }

    /// Says what is wrong with a file; the outer error is the disk's.
    fn judge(&self, path: &Path) -> io::Result<Result<(), String>> {
        let mut file = std::fs::File::open(path)?;
        let (length, expected) = (file.metadata()?.len(), self.size());
        if length != expected {
            return Ok(Err(format!("{length} bytes, expected {expected}")));
        }
        match self {
            Self::Whole(artifact) => {
                let mut hash = sha2::Sha256::new();
                let mut buffer = vec![0; 1 << 20];
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        read => hash.update(&buffer[..read]),
                    }
                }
                let found = Digest::from(<[u8; 32]>::from(hash.finalize()));
                Ok(if found == artifact.sha256 {
                    Ok(())
                } else {
                    let expected = artifact.sha256;
                    Err(format!("SHA-256 is {found}, expected {expected}"))
                })
            }
            Self::Segments(manifest, content) => {
                let judged = (|| {
                    let image = Image::of(manifest, *content)?;
                    let mut writer = Writer::begin(image, Nowhere, None)?;
                    writer.push_all(&mut file)?;
                    writer.finish().map(drop)
                })();
                match judged {
                    Ok(()) => Ok(Ok(())),
                    Err(WriteError::Source { source, .. }) => Err(source),
                    Err(problem) => Ok(Err(problem.to_string())),
                }
            }
        }
    }
}

/// A target that keeps nothing: the writer's checks are what is wanted.
struct Nowhere;

impl slots::Target for Nowhere {
    fn read_at(&mut self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> u64 {
        u64::MAX
    }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> FetchError + use<> {
    let path = path.to_owned();
    move |source| FetchError::Disk { path, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
