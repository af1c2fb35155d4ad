//! `leapctl unit show`.

use std::io::IsTerminal as _;
use std::time::Duration;

use edge::exit::Failure;
use model::UnitName;

use crate::client::Sky;
use crate::commands::seconds;
use crate::condition::Condition;
use crate::follow;
use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CUSTOMER/NAME
    unit: UnitName,
    /// Show it again whenever something changes, until Ctrl-C
    #[arg(long, conflicts_with = "wait")]
    watch: bool,
    /// Wait for a condition first; repeat for several, one after the other
    ///
    /// A state (unborn, birth, in-service, unhealthy, rebirth), configuration[=GENERATION],
    /// configuration-rejected[=GENERATION], backup[=SOURCE], release=VERSION,
    /// release-rejected=VERSION or fenced
    #[arg(long, value_name = "CONDITION")]
    wait: Vec<Condition>,
    /// How long to wait for each condition, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let sky = operator.sky()?;
        if self.watch {
            return watch(operator, &sky, &self.unit).await;
        }
        let mut unit = sky.unit(&self.unit).await?;
        for condition in &self.wait {
            unit = follow::until(
                &format!("{}: wait for {condition}", self.unit),
                seconds(self.timeout),
                async || sky.unit(&self.unit).await,
                |unit| condition.judge(unit),
            )
            .await?;
        }
        operator.show(&unit, |unit| view::unit(unit, edge::clock::now()));
        Ok(())
    }
}

async fn watch(operator: &Operator, sky: &Sky, name: &UnitName) -> Result<(), Failure> {
    let redraw = std::io::stdout().is_terminal() && !operator.json();
    let mut shown = None;
    loop {
        match sky.unit(name).await {
            Ok(unit) => {
                if redraw {
                    let page = view::unit(&unit, edge::clock::now());
                    // Home, then clear to the end: no flicker as from a full clear.
                    edge::out::line(format_args!("\x1b[H\x1b[J{page}"));
                } else if shown.as_ref() != Some(&unit) {
                    operator.show(&unit, |unit| view::unit(unit, edge::clock::now()) + "\n");
                    shown = Some(unit);
                }
            }
            Err(error) if error.is_passing() => tracing::warn!(%error, "asking again"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
