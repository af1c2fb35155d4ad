//! `leapctl unit pass`.

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure};
use jiff::{SignedDuration, Timestamp};
use model::UnitName;
use model::pass::{NewPass, PassCode};
use serde::Serialize;

use crate::commands::{after, duration};
use crate::operator::Operator;

/// Make a one-time code: an installer on a stick reaches the sky with it
///
/// Tell it to the people on site; the installer asks for it. It lets the machine announce
/// itself and nothing more: to erase its disk still takes `leapctl machine approve`.
/// A new code takes the place of an older one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME: what a machine may become with it
    unit: UnitName,
    /// How long it counts; at most 7 days
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = duration)]
    valid: SignedDuration,
}

/// The only place where the code is to be read.
#[derive(Debug, Serialize)]
struct Answer {
    unit: UnitName,
    pass: String,
    expires: Timestamp,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .context("ask the system for randomness")
            .environment()?;
        let code = PassCode::from_random(random);
        let new = NewPass {
            hash: code.hash(),
            expires: after(edge::clock::now(), self.valid)?,
        };
        let view = operator.sky()?.put_pass(&self.unit, &new).await?;
        let answer = Answer {
            unit: view.unit,
            pass: code.as_str().to_owned(),
            expires: view.expires,
        };
        operator.show(&answer, |answer| {
            format!(
                "one-time code for {}, until {}:\n\n    {}\n\nnext: the installer on the \
                 stick asks for it, and then shows the code for leapctl machine approve",
                answer.unit,
                answer.expires.strftime("%Y-%m-%d %H:%M UTC"),
                answer.pass
            )
        });
        Ok(())
    }
}
