//! `leap-image keys`

use std::path::PathBuf;

use edge::exit::Failure;
use edge::{clock, out};

use crate::signing::certificate::Certificate;
use crate::signing::set::{self, Wanted};

/// Make a set of Secure Boot keys: PK, KEK and db, with what machines enrol
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// New folder for the keys
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose keys these are: the certificates' names begin with it
    #[arg(long, value_name = "NAME", default_value = "LeapServ")]
    vendor: String,
    /// Key of db that is there already: a file, or pkcs11:… for one on a token
    ///
    /// pkcs11:token=NAME;object=NAME?module-path=FILE&pin-source=file:FILE, as in RFC 7512.
    /// Without module-path LEAP_PKCS11_MODULE names the module, without pin-source
    /// LEAP_PKCS11_PIN holds the PIN.
    #[arg(long, value_name = "FILE|URI")]
    secure_boot_key: Option<String>,
    /// Further certificate for db, like that of the maker of the machines' network cards
    #[arg(long, value_name = "FILE")]
    also: Vec<PathBuf>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let read = |path: &PathBuf| Certificate::read(path);
        let further = self.also.iter().map(read);
        let further = further.collect::<anyhow::Result<Vec<_>>>()?;
        let db = super::key_place(self.secure_boot_key.as_deref())?;
        let wanted = Wanted {
            vendor: &self.vendor,
            db: db.as_ref(),
            further: &further,
            now: clock::now(),
        };
        set::create(&wanted, &self.out)?;
        out::line(format_args!(
            "Secure Boot keys in {}: db signs releases; keep PK.key and KEK.key in a safe",
            self.out.display()
        ));
        Ok(())
    }
}
