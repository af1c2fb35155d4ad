//! The folder with a vendor's Secure Boot keys.
//!
//! | file | what |
//! |---|---|
//! | `PK.key`, `KEK.key`, `db.key` | private keys, PKCS #8 PEM, 0600; `db.key` is missing when it lies on a token |
//! | `PK.crt`, `KEK.crt`, `db.crt` | their certificates |
//! | `PK.auth`, `KEK.auth`, `db.auth` | what a machine in setup mode enrols |
//!
//! A build needs `db.key`, `db.crt` and the three `.auth` files. `PK.key` and `KEK.key`
//! belong into a safe.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use edge::durable::{self, Mode};
use edge::exit::{self, Kind};
use jiff::Timestamp;
use model::release::SecureBootKeys;
use zeroize::Zeroizing;

use super::Signer;
use super::certificate::{Certificate, Purpose, Validity};
use super::key::{self, FileKey, Key, KeyPlace};
use super::variables::{self, Variable};
use crate::release::Draft;

/// Machines stand for a long time, and firmware does not look at the date.
const YEARS: u8 = 30;

/// What a new set is made of.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Whose keys these are: the common names begin with it.
    pub vendor: &'a str,
    /// The key of `db`, when it is there already.
    pub db: Option<&'a KeyPlace>,
    /// Whose programs start beside ours.
    pub further: &'a [Certificate],
    /// Now: the certificates' first moment and the variables' time.
    pub now: Timestamp,
}

/// Makes a set of keys as a new folder: the whole of it is there or nothing.
///
/// # Errors
/// Kind `Refused` when there is something already; keys are never overwritten.
pub fn create(wanted: &Wanted<'_>, out: &Path) -> anyhow::Result<()> {
    if out.symlink_metadata().is_ok() {
        return Err(exit::hint(
            exit::marked(
                Kind::Refused,
                format!(
                    "{}: is there already, and keys are never overwritten",
                    out.display()
                ),
            ),
            "name a new folder with --out",
        ));
    }
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let draft = tempfile::Builder::new()
        .prefix(".keys-")
        .tempdir_in(parent)
        .with_context(|| format!("make a folder in {}", parent.display()))?;
    let place = |name: String| draft.path().join(name);

    let mut signers = Vec::new();
    for variable in Variable::ALL {
        let name = variable.name();
        let (key, pem): (Box<dyn Key>, Option<Zeroizing<String>>) = match (variable, wanted.db) {
            (Variable::Db, Some(place)) => (place.open()?, None),
            _ => {
                let pem = key::generate()?;
                (Box::new(FileKey::from_pem(&pem)?), Some(pem))
            }
        };
        let purpose = Purpose {
            name: &format!("{} {name}", wanted.vendor),
            validity: Validity {
                from: wanted.now,
                years: YEARS,
            },
        };
        let certificate = Certificate::self_signed(key.as_ref(), &purpose)?;
        if let Some(pem) = pem {
            durable::write(&place(format!("{name}.key")), pem.as_bytes(), Mode::Secret)?;
        }
        let text = certificate.pem();
        durable::write(&place(format!("{name}.crt")), text.as_bytes(), Mode::Public)?;
        signers.push((variable, Signer::new(key, certificate)?));
    }
    let signer_of = |variable: Variable| {
        let found = signers.iter().find(|(of, _)| *of == variable);
        found
            .map(|(_, signer)| signer)
            .context("a set has every key")
    };
    // Firmware only shows the owner; all that one set enrols has the same.
    let digest = signer_of(Variable::Pk)?.certificate().digest();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    let owner = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    for variable in Variable::ALL {
        let mut certificates = vec![signer_of(variable)?.certificate()];
        if variable == Variable::Db {
            certificates.extend(wanted.further);
        }
        let content = variables::certificates(owner, &certificates)?;
        let authority = signer_of(variable.authority())?;
        let signed = variables::enrolment(variable, &content, wanted.now, authority)?;
        durable::write(&place(auth_file(variable)), &signed, Mode::Public)?;
    }
    durable::rename(draft.path(), out)?;
    // It has another name now, and nothing is left to remove.
    let _ = draft.keep();
    Ok(())
}

fn auth_file(variable: Variable) -> String {
    format!("{}.auth", variable.name())
}

/// What a build needs of a set.
#[derive(Debug)]
pub struct SecureBoot {
    /// Signs programs.
    pub signer: Signer,
    enrolment: BTreeMap<Variable, Vec<u8>>,
}

impl SecureBoot {
    /// Opens what a build needs of a set; the key of `db` may be elsewhere.
    ///
    /// # Errors
    /// Kind `InvalidInput` when something is missing or does not fit together.
    pub fn open(folder: &Path, key: Option<&KeyPlace>) -> anyhow::Result<Self> {
        let signer = signer(folder, key)?;
        let mut enrolment = BTreeMap::new();
        for variable in Variable::ALL {
            let path = folder.join(auth_file(variable));
            let invalid = |problem: &str| {
                let place = path.display();
                exit::marked(Kind::InvalidInput, format!("{place}: {problem}"))
            };
            let bytes = std::fs::read(&path).map_err(|error| invalid(&error.to_string()))?;
            let certificate = signer.certificate().der();
            // A fleet born with this would not start what is signed here.
            if variable == Variable::Db
                && !bytes.windows(certificate.len()).any(|at| at == certificate)
            {
                return Err(invalid("does not enrol the certificate db.crt"));
            }
            enrolment.insert(variable, bytes);
        }
        Ok(Self { signer, enrolment })
    }

    /// Puts what machines enrol into a release.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub fn ship(&self, draft: &mut Draft) -> anyhow::Result<SecureBootKeys> {
        let mut ship = |variable: Variable| {
            let bytes = self.enrolment.get(&variable).expect("opening reads each");
            draft.write(&format!("keys/{}", auth_file(variable)), bytes)
        };
        Ok(SecureBootKeys {
            pk: ship(Variable::Pk)?,
            kek: ship(Variable::Kek)?,
            db: ship(Variable::Db)?,
        })
    }
}

/// Opens the key of `db` in a set, or elsewhere, with its certificate.
///
/// # Errors
/// Kind `InvalidInput` when one is missing or they do not belong together.
pub fn signer(folder: &Path, key: Option<&KeyPlace>) -> anyhow::Result<Signer> {
    let name = Variable::Db.name();
    let certificate = Certificate::read(&folder.join(format!("{name}.crt")))?;
    let file = folder.join(format!("{name}.key"));
    let key = match key {
        Some(place) => place.open()?,
        None if !file.exists() => {
            let missing = format!("{}: no such key", file.display());
            return Err(exit::hint(
                exit::marked(Kind::InvalidInput, missing),
                "when it lies on a token, name it with --secure-boot-key pkcs11:…",
            ));
        }
        None => KeyPlace::File(file).open()?,
    };
    Signer::new(key, certificate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::authenticode;
    use std::os::unix::fs::PermissionsExt as _;

    fn wanted(further: &[Certificate]) -> Wanted<'_> {
        Wanted {
            vendor: "Test",
            db: None,
            further,
            now: "2026-11-23T00:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn a_set_is_whole_secret_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/set");
        let other = crate::signing::tests::signer().certificate().clone();
        create(&wanted(std::slice::from_ref(&other)), &out).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                (entry.file_name().into_string().unwrap(), mode)
            })
            .collect();
        names.sort();
        let expected = ["KEK", "PK", "db"].map(|name| {
            [("auth", 0o644), ("crt", 0o644), ("key", 0o600)]
                .map(|(kind, mode)| (format!("{name}.{kind}"), mode))
        });
        assert_eq!(names, expected.concat());

        let before = std::fs::read(out.join("PK.key")).unwrap();
        let error = create(&wanted(&[]), &out).unwrap_err();
        assert!(error.to_string().contains("never overwritten"), "{error}");
        assert_eq!(std::fs::read(out.join("PK.key")).unwrap(), before);
        assert_eq!(std::fs::read_dir(out.parent().unwrap()).unwrap().count(), 1);

        let set = SecureBoot::open(&out, None).unwrap();
        let program = authenticode::tests::program();
        authenticode::sign(&set.signer, &program).unwrap();
        let db = std::fs::read(out.join("db.auth")).unwrap();
        assert!(db.ends_with(other.der()));
    }

    #[test]
    fn a_set_that_would_not_start_what_it_signs_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        create(&wanted(&[]), &one).unwrap();
        create(&wanted(&[]), &two).unwrap();
        std::fs::copy(one.join("db.auth"), two.join("db.auth")).unwrap();
        let error = SecureBoot::open(&two, None).unwrap_err().to_string();
        assert!(error.contains("db.auth: does not enrol"), "{error}");
        std::fs::remove_file(two.join("db.key")).unwrap();
        let error = exit::render(&SecureBoot::open(&two, None).unwrap_err());
        assert!(error.contains("--secure-boot-key pkcs11:"), "{error}");
        let foreign = KeyPlace::File(one.join("db.key"));
        let error = SecureBoot::open(&two, Some(&foreign)).unwrap_err();
        assert!(error.to_string().contains("another key"), "{error}");
    }
}
