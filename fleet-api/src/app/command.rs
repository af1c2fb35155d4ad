//! Commands: kept for the unit, and what became of them.

use model::api::CommandView;
use model::command::UnitCommand;
use model::{Signed, UnitName};

use super::check_id;
use super::unit::find;
use crate::error::Problem;
use crate::sky::{Look, Sky};
use crate::store::{NewEvent, Topic};

/// Takes a command. Repeated, it changes nothing.
///
/// # Errors
/// A signature that does not count, a foreign unit, an id that another command has.
pub async fn put(sky: &Sky, unit: &UnitName, document: Signed<UnitCommand>) -> Result<(), Problem> {
    let now = sky.now();
    let command = sky.trust.verify(&document, now)?;
    check_id("command", &command.id)?;
    if command.unit != *unit {
        return Err(Problem::conflict(format!(
            "command for unit {}: sent for unit {unit}",
            command.unit
        )));
    }
    let mut session = sky.store.change().await?;
    find(&mut session, unit).await?;
    if let Some(known) = session.command(unit, &command.id).await?
        && known.document == document
    {
        return Ok(());
    }
    if session.command_exists(&command.id).await? {
        return Err(Problem::conflict(format!(
            "command {}: another command has this id",
            command.id
        )));
    }
    session
        .insert_command(unit, &command.id, &document, now)
        .await?;
    let message = format!("command {} signed by an operator", command.id);
    session
        .append_event(NewEvent::new("command", message).unit(unit), now)
        .await?;
    session.commit().await?;
    Ok(())
}

/// Returns a command, waiting up to `wait` seconds for its report.
///
/// # Errors
/// Not found.
pub async fn show(sky: &Sky, unit: &UnitName, id: &str, wait: u64) -> Result<CommandView, Problem> {
    sky.wait_for(Topic::Commands, wait, || async move {
        let found = sky.store.read().await?.command(unit, id).await?;
        let found =
            found.ok_or_else(|| Problem::not_found(format!("unit {unit}: no command {id}")))?;
        let view = CommandView {
            id: id.to_owned(),
            delivered: found.delivered,
            report: found.report,
        };
        Ok(if view.report.is_some() {
            Look::Final(view)
        } else {
            Look::Open(view)
        })
    })
    .await
}
