//! The key folder on the operator's machine.
//!
//! | file | what |
//! |---|---|
//! | `root.pem`, `targets.pem`, `configuration.pem` | private signing keys, PKCS #8 PEM, 0600 |
//! | `recovery.age` | the recovery identity: opens the escrow of every unit |
//! | `trust-root.json` | the public halves: whom images, units and the sky believe |
//! | `ca.crt` | the fleet CA's certificate |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret as _;
use anyhow::{Context as _, anyhow};
use edge::durable::{self, Mode};
use edge::exit::{Classify as _, Failure, Kind, hint};
use model::trust::{PublicKey, RoleKeys};
use model::{Role, Signer, TrustRoot};
use serde::{Deserialize, Serialize};

/// What the sky says of itself in `sky.json`; public.
#[derive(Debug, Deserialize)]
pub(crate) struct SkyFile {
    pub(crate) timestamp_public_key: PublicKey,
    pub(crate) ca: String,
}

/// The roles whose private keys lie in the folder.
const HELD: [(Role, &str); 3] = [
    (Role::Root, "root.pem"),
    (Role::Targets, "targets.pem"),
    (Role::Configuration, "configuration.pem"),
];

const RECOVERY: &str = "recovery.age";
const TRUST_ROOT: &str = "trust-root.json";

/// A new set of keys, not yet written.
pub(crate) struct NewKeys {
    signers: Vec<(&'static str, Role, Signer)>,
    recovery: age::x25519::Identity,
}

impl NewKeys {
    /// Makes keys from the system's randomness.
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let mut signers = Vec::new();
        for (role, file) in HELD {
            let mut seed = zeroize::Zeroizing::new([0; 32]);
            getrandom::fill(seed.as_mut()).context("ask the system for randomness")?;
            signers.push((file, role, Signer::from_seed(&seed)));
        }
        Ok(Self {
            signers,
            recovery: age::x25519::Identity::generate(),
        })
    }

    /// Returns whom to trust with these keys and the sky's timestamp key.
    pub(crate) fn trust_root(&self, timestamp: PublicKey) -> TrustRoot {
        let one = |key| RoleKeys {
            keys: vec![key],
            threshold: 1,
        };
        let mut roles: BTreeMap<Role, RoleKeys> = self
            .signers
            .iter()
            .map(|(_, role, signer)| (*role, one(signer.public())))
            .collect();
        roles.insert(Role::Timestamp, one(timestamp));
        TrustRoot {
            version: 1,
            roles,
            recovery: vec![self.recovery.to_public().to_string()],
        }
    }

    /// Writes all of it as a new folder: either the whole of it is there or nothing.
    pub(crate) fn write(&self, dir: &Path, sky: &SkyFile) -> Result<TrustRoot, Failure> {
        if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(taken(dir));
        }
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent)
            .with_context(|| format!("make folder {}", parent.display()))
            .environment()?;
        let work = tempfile::Builder::new()
            .prefix(".new-keys-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .with_context(|| format!("make a folder in {}", parent.display()))
            .environment()?;
        for (file, _, signer) in &self.signers {
            let pem = zeroize::Zeroizing::new(signer.to_pem());
            durable::write(&work.path().join(file), pem.as_bytes(), Mode::Secret)?;
        }
        let recovery = zeroize::Zeroizing::new(format!(
            "# recipient: {}\n{}\n",
            self.recovery.to_public(),
            self.recovery.to_string().expose_secret()
        ));
        durable::write(
            &work.path().join(RECOVERY),
            recovery.as_bytes(),
            Mode::Secret,
        )?;
        durable::write(&work.path().join("ca.crt"), sky.ca.as_bytes(), Mode::Public)?;
        let root = self.trust_root(sky.timestamp_public_key.clone());
        durable::write_json(&work.path().join(TRUST_ROOT), &root, Mode::Public)?;
        // Refused by the kernel when a folder with content stands there meanwhile.
        let path = work.keep();
        durable::rename(&path, dir).map_err(|error| {
            drop(std::fs::remove_dir_all(&path));
            Failure::new(Kind::Environment, error)
        })?;
        Ok(root)
    }
}

fn taken(dir: &Path) -> Failure {
    Failure::new(
        Kind::Refused,
        hint(
            anyhow!(
                "key folder {}: is not empty, and keys are never overwritten",
                dir.display()
            ),
            format!(
                "leapctl keys show --keys {}; or choose another --dir",
                dir.display()
            ),
        ),
    )
}

/// An existing key folder. Files are read when they are needed.
#[derive(Debug, Clone)]
pub(crate) struct KeyFolder {
    dir: PathBuf,
}

impl KeyFolder {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Reads whom to trust.
    pub(crate) fn trust_root(&self) -> Result<TrustRoot, Failure> {
        let path = self.dir.join(TRUST_ROOT);
        let text = self.read(&path)?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: expected a trust root", path.display()))
            .invalid_input()
    }

    /// Reads the private key of a role, which the trust root must name.
    pub(crate) fn signer(&self, role: Role) -> Result<Signer, Failure> {
        let file = HELD
            .iter()
            .find(|(held, _)| *held == role)
            .map_or("timestamp.pem", |(_, file)| file);
        let path = self.dir.join(file);
        let pem = zeroize::Zeroizing::new(self.read(&path)?);
        let signer = Signer::from_pem(&pem)
            .with_context(|| format!("{}: expected a private key in PKCS #8 PEM", path.display()))
            .invalid_input()?;
        let root = self.trust_root()?;
        let named = root
            .roles
            .get(&role)
            .is_some_and(|keys| keys.keys.contains(&signer.public()));
        if named {
            return Ok(signer);
        }
        Err(Failure::new(
            Kind::Refused,
            hint(
                anyhow!(
                    "{}: key {} is not among the {role} keys of the trust root",
                    path.display(),
                    signer.public().id()
                ),
                "nobody would believe its signatures: use the key folder that made the trust root",
            ),
        ))
    }

    /// Reads the recovery identity from `file`, or from this folder.
    pub(crate) fn recovery(&self, file: Option<&Path>) -> Result<age::x25519::Identity, Failure> {
        let inside = self.dir.join(RECOVERY);
        let path = file.unwrap_or(&inside);
        let text = zeroize::Zeroizing::new(self.read(path)?);
        recovery_identity(&text)
            .ok_or_else(|| anyhow!("{}: expected a line AGE-SECRET-KEY-1…", path.display()))
            .invalid_input()
    }

    fn read(&self, path: &Path) -> Result<String, Failure> {
        std::fs::read_to_string(path)
            .with_context(|| format!("read {}", path.display()))
            .map_err(|error| {
                let hinted = hint(
                    error,
                    "give the folder that leapctl keys init made as --keys DIR",
                );
                Failure::new(Kind::Environment, hinted)
            })
    }

    /// Tells what is in the folder, nothing of it secret.
    pub(crate) fn overview(&self) -> Result<Overview, Failure> {
        let root = self.trust_root()?;
        let mut roles = Vec::new();
        for (role, keys) in &root.roles {
            let file = HELD.iter().find(|(held, _)| held == role);
            let held = file.is_some_and(|(_, file)| self.dir.join(file).exists());
            roles.push(RoleOverview {
                role: *role,
                keys: keys.keys.iter().map(|key| key.id().to_string()).collect(),
                threshold: keys.threshold,
                private_key: match (file, held) {
                    (Some((_, file)), true) => Some(self.dir.join(file)),
                    _ => None,
                },
            });
        }
        let recovery = self.dir.join(RECOVERY);
        Ok(Overview {
            folder: self.dir.clone(),
            version: root.version,
            roles,
            recovery: root.recovery,
            recovery_identity: recovery.exists().then_some(recovery),
        })
    }
}

/// Finds the identity in the text of an `age` identity file.
fn recovery_identity(text: &str) -> Option<age::x25519::Identity> {
    text.lines()
        .map(str::trim)
        .find(|line| line.starts_with("AGE-SECRET-KEY-"))?
        .parse()
        .ok()
}

/// What is in a key folder.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    folder: PathBuf,
    version: u64,
    roles: Vec<RoleOverview>,
    recovery: Vec<String>,
    recovery_identity: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct RoleOverview {
    role: Role,
    keys: Vec<String>,
    threshold: u32,
    private_key: Option<PathBuf>,
}

impl Overview {
    /// As a person reads it.
    pub(crate) fn human(&self) -> String {
        let mut text = format!("trust root {} in {}\n", self.version, self.folder.display());
        for role in &self.roles {
            let held = match &role.private_key {
                Some(path) => format!("private key {}", path.display()),
                None if role.role == Role::Timestamp => "held by the sky".into(),
                None => "private key is not here".into(),
            };
            let keys = role.keys.join(" ");
            let name = role.role.to_string();
            let _ = writeln!(
                text,
                "  {name:<14} {keys}  {} of {}  {held}",
                role.threshold,
                role.keys.len()
            );
        }
        for recipient in &self.recovery {
            let _ = writeln!(text, "  {:<14} {recipient}", "recovery");
        }
        if let Some(path) = &self.recovery_identity {
            let _ = writeln!(
                text,
                "\n{} opens every escrow: move it and root.pem to a place that is offline",
                path.display()
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sky() -> SkyFile {
        SkyFile {
            timestamp_public_key: Signer::from_seed(&[9; 32]).public(),
            ca: "-----BEGIN CERTIFICATE-----".into(),
        }
    }

    #[test]
    fn new_keys_are_readable_again_and_by_the_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("a/keys");
        let root = NewKeys::generate().unwrap().write(&dir, &sky()).unwrap();
        let folder = KeyFolder::new(&dir);
        assert_eq!(folder.trust_root().unwrap(), root);
        for role in [Role::Root, Role::Targets, Role::Configuration] {
            let signer = folder.signer(role).unwrap();
            assert_eq!(root.roles[&role].keys, [signer.public()]);
        }
        let identity = folder.recovery(None).unwrap();
        assert_eq!(root.recovery, [identity.to_public().to_string()]);
        for file in [
            "root.pem",
            "targets.pem",
            "configuration.pem",
            "recovery.age",
        ] {
            let mode = std::fs::metadata(dir.join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert_eq!(
            std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn keys_are_never_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("keys");
        NewKeys::generate().unwrap().write(&dir, &sky()).unwrap();
        let before = std::fs::read(dir.join("root.pem")).unwrap();
        let failure = NewKeys::generate()
            .unwrap()
            .write(&dir, &sky())
            .unwrap_err();
        assert_eq!(failure.kind(), Kind::Refused);
        assert_eq!(std::fs::read(dir.join("root.pem")).unwrap(), before);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_nobody_trusts_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("keys");
        NewKeys::generate().unwrap().write(&dir, &sky()).unwrap();
        let other = Signer::from_seed(&[1; 32]).to_pem();
        std::fs::write(dir.join("configuration.pem"), other).unwrap();
        let failure = KeyFolder::new(&dir)
            .signer(Role::Configuration)
            .unwrap_err();
        assert_eq!(failure.kind(), Kind::Refused);
    }
}
