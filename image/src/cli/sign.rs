//! `leap-image sign`

use std::path::PathBuf;

use anyhow::Context as _;
use edge::durable::{self, Mode};
use edge::exit::{Failure, Kind};
use edge::out;

use crate::signing::authenticode::{self, PeError};
use crate::signing::certificate::Certificate;
use crate::signing::{Signer, set};

/// Sign an EFI program for Secure Boot, instead of the signature that it has
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The program
    file: PathBuf,
    /// Folder of Secure Boot keys: its db signs
    #[arg(long, value_name = "DIR", required_unless_present = "certificate")]
    keys: Option<PathBuf>,
    /// Key that signs: a file, or pkcs11:… for one on a token
    ///
    /// pkcs11:token=NAME;object=NAME?module-path=FILE&pin-source=file:FILE, as in RFC 7512.
    /// Without module-path LEAP_PKCS11_MODULE names the module, without pin-source
    /// LEAP_PKCS11_PIN holds the PIN.
    #[arg(long, value_name = "FILE|URI")]
    key: Option<String>,
    /// Certificate of the key
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "keys")]
    certificate: Option<PathBuf>,
    /// Where the signed program goes, instead of into its own place
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let signer = self.signer()?;
        let place = self.file.display();
        let program = std::fs::read(&self.file)
            .with_context(|| format!("read {place}"))
            .map_err(|error| Failure::new(Kind::InvalidInput, error))?;
        let signed = authenticode::sign(&signer, &program).map_err(|error| {
            let foreign = error.is::<PeError>();
            let error = error.context(format!("sign {place}"));
            match foreign {
                true => Failure::new(Kind::InvalidInput, error),
                false => error.into(),
            }
        })?;
        let to = self.out.as_ref().unwrap_or(&self.file);
        durable::write(to, &signed, Mode::Public)?;
        out::line(format_args!(
            "{}: signed as {}, digest {}",
            to.display(),
            signer.certificate().subject(),
            authenticode::digest(&signed).context("look at what was signed")?
        ));
        Ok(())
    }

    fn signer(&self) -> Result<Signer, Failure> {
        let key = super::key_place(self.key.as_deref())?;
        if let Some(folder) = &self.keys {
            return Ok(set::signer(folder, key.as_ref())?);
        }
        let (Some(certificate), Some(key)) = (&self.certificate, key) else {
            let problem = anyhow::anyhow!("expected --keys, or --key and --certificate");
            return Err(Failure::new(Kind::Usage, problem));
        };
        Ok(Signer::new(key.open()?, Certificate::read(certificate)?)?)
    }
}
