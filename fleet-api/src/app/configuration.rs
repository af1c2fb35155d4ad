//! Configuration generations. The sky keeps them and cannot make them.

use model::configuration::Configuration;
use model::{Signed, UnitName};

use super::unit::find;
use crate::error::Problem;
use crate::sky::Sky;
use crate::store::NewEvent;

/// Takes the next generation. Repeated, it changes nothing.
///
/// # Errors
/// A signature that does not count, a foreign unit, a generation out of order, a wrong setting.
pub async fn put(
    sky: &Sky,
    unit: &UnitName,
    document: Signed<Configuration>,
) -> Result<(), Problem> {
    let now = sky.now();
    let configuration = sky.trust.verify(&document, now)?;
    let mut session = sky.store.change().await?;
    find(&mut session, unit).await?;
    let newest = session.newest_configuration(unit).await?;
    if newest
        .as_ref()
        .is_some_and(|(_, newest)| *newest == document)
    {
        return Ok(());
    }
    decide(unit, &configuration, newest.map_or(0, |(number, _)| number))?;
    let generation = configuration.generation;
    session
        .insert_configuration(unit, generation, &document, now)
        .await?;
    let message = format!("generation {generation} signed by an operator");
    session
        .append_event(
            NewEvent::new("configuration-signed", message).unit(unit),
            now,
        )
        .await?;
    session.commit().await?;
    Ok(())
}

fn decide(unit: &UnitName, configuration: &Configuration, newest: u64) -> Result<(), Problem> {
    if configuration.unit != *unit {
        return Err(Problem::conflict(format!(
            "configuration of unit {}: sent for unit {unit}",
            configuration.unit
        )));
    }
    let expected = newest.saturating_add(1);
    if configuration.generation != expected {
        return Err(Problem::conflict(format!(
            "configuration of {unit}: generation {} where {expected} is next",
            configuration.generation
        ))
        .hint(format!(
            "somebody else may have changed it: look at generation {newest}, then sign again"
        )));
    }
    configuration
        .settings
        .check()
        .map_err(|wrong| Problem::invalid(format!("configuration of {unit}: settings: {wrong}")))
}

/// Returns the newest generation.
///
/// # Errors
/// Not found.
pub async fn newest(sky: &Sky, unit: &UnitName) -> Result<Signed<Configuration>, Problem> {
    let mut session = sky.store.read().await?;
    find(&mut session, unit).await?;
    let newest = session.newest_configuration(unit).await?;
    newest.map(|(_, document)| document).ok_or_else(|| {
        Problem::not_found(format!("unit {unit}: has no configuration yet"))
            .hint(format!("sign one: leapctl unit configure {unit} FILE.toml"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use model::configuration::{Maintenance, Network, Settings};

    fn configuration(generation: u64) -> Configuration {
        Configuration {
            unit: "motivatit/houma-1".parse().unwrap(),
            generation,
            settings: Settings {
                hostname: "houma-1".into(),
                time_zone: "America/Chicago".into(),
                network: Network::Dhcp {},
                operators: vec![],
                maintenance: Maintenance::default(),
                check_in_seconds: 60,
                backup: None,
            },
        }
    }

    #[test]
    fn generations_come_in_order() {
        let unit = "motivatit/houma-1".parse().unwrap();
        let decide = |generation, newest| {
            decide(&unit, &configuration(generation), newest).map_err(|problem| problem.kind())
        };
        assert_eq!(decide(1, 0), Ok(()));
        assert_eq!(decide(3, 2), Ok(()));
        for (generation, newest) in [(0, 0), (2, 0), (2, 2), (1, 2), (4, 2)] {
            assert_eq!(decide(generation, newest), Err(Kind::Conflict));
        }
    }

    #[test]
    fn a_foreign_unit_and_a_wrong_setting_are_refused() {
        let foreign = "motivatit/houma-2".parse().unwrap();
        let kind = decide(&foreign, &configuration(1), 0).unwrap_err().kind();
        assert_eq!(kind, Kind::Conflict);
        let unit = "motivatit/houma-1".parse().unwrap();
        let mut wrong = configuration(1);
        wrong.settings.hostname = "houma_1".into();
        let problem = decide(&unit, &wrong, 0).unwrap_err();
        assert_eq!(problem.kind(), Kind::Invalid);
        assert!(
            problem.to_string().contains("settings: hostname"),
            "{problem}"
        );
    }
}
