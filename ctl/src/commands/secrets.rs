//! `leapctl secrets`.

use std::path::PathBuf;

use edge::durable::{self, Mode};
use edge::exit::{Classify as _, Failure, hint};
use model::UnitName;
use serde::Serialize;

use crate::escrow;
use crate::operator::Operator;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Secrets {
    /// Write a unit's secrets to a file, so that stock restic opens any copy
    OpenEscrow(OpenEscrow),
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("files").required(true).multiple(true).args(["out", "password_file"]))]
pub(crate) struct OpenEscrow {
    /// CUSTOMER/NAME
    unit: UnitName,
    /// The recovery identity; else recovery.age in the key folder
    #[arg(long, value_name = "FILE")]
    recovery: Option<PathBuf>,
    /// Write all secrets as JSON to this file (0600)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the repository's password to this file (0600), for restic --password-file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// What was written; nothing of it is secret.
#[derive(Debug, Serialize)]
struct Outcome {
    unit: UnitName,
    version: u64,
    out: Option<PathBuf>,
    password_file: Option<PathBuf>,
}

impl Secrets {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let Self::OpenEscrow(args) = self;
        args.run(operator).await
    }
}

impl OpenEscrow {
    async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let identity = operator.keys()?.recovery(self.recovery.as_deref())?;
        let sealed = operator.sky()?.escrow(&self.unit).await?;
        let secrets = escrow::open(&sealed, &identity)
            .map_err(|error| hint(error, "give another recovery identity as --recovery FILE"))
            .refused()?;
        if let Some(path) = &self.out {
            durable::write_json(path, &secrets, Mode::Secret).environment()?;
        }
        if let Some(path) = &self.password_file {
            let password = secrets.repository_password.as_bytes();
            durable::write(path, password, Mode::Secret).environment()?;
        }
        let outcome = Outcome {
            unit: self.unit,
            version: secrets.version,
            out: self.out,
            password_file: self.password_file,
        };
        operator.show(&outcome, human);
        Ok(())
    }
}

fn human(outcome: &Outcome) -> String {
    let mut text = format!(
        "{}: escrow version {} opened",
        outcome.unit, outcome.version
    );
    if let Some(path) = &outcome.out {
        text.push_str(&format!("\n  secrets   {}", path.display()));
    }
    if let Some(path) = &outcome.password_file {
        text.push_str(&format!(
            "\n  password  restic --password-file {} -r REPOSITORY snapshots",
            path.display()
        ));
    }
    text.push_str("\nremove what you no longer need");
    text
}
