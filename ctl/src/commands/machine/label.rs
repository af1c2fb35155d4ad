//! `leapctl machine label`: what is stuck to the box.

use std::path::PathBuf;

use anyhow::anyhow;
use edge::durable::{self, Mode};
use edge::exit::{Classify as _, Failure, Kind, hint};
use model::UnitName;
use model::api::MachineView;
use model::machine::MachineCode;

use crate::label::Label;
use crate::operator::Operator;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The machine's code, or the unit
    #[arg(value_name = "CODE|CUSTOMER/NAME", value_parser = whom)]
    whom: Whom,
    /// Write it as an SVG drawing of 62 by 29 mm instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Whose label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whom {
    Machine(MachineCode),
    Unit(UnitName),
}

fn whom(text: &str) -> Result<Whom, String> {
    if text.contains('/') {
        let unit = text.parse().map(Whom::Unit);
        return unit.map_err(|error: model::id::InvalidId| error.to_string());
    }
    let code = text.parse().map(Whom::Machine);
    code.map_err(|_| "expected a machine's code like 7QK2-M9XD, or CUSTOMER/NAME".into())
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let sky = operator.sky()?;
        let (unit, serial, product) = match &self.whom {
            Whom::Machine(code) => of_machine(sky.machine(code).await?)?,
            Whom::Unit(name) => {
                let serial = sky.unit(name).await?.machine_serial;
                let machines = sky.machines().await?;
                of_unit(name, serial.as_deref(), &machines)?
            }
        };
        let label = Label::new(&unit, &serial, &product).map_err(anyhow::Error::new)?;
        let Some(out) = &self.out else {
            operator.show(&label, Label::terminal);
            return Ok(());
        };
        durable::write(out, label.svg().as_bytes(), Mode::Public).environment()?;
        operator.show(&label, |label| {
            format!("label of {} written to {}", label.unit, out.display())
        });
        Ok(())
    }
}

fn of_machine(machine: MachineView) -> Result<(UnitName, String, String), Failure> {
    let Some(unit) = machine.unit else {
        let error = anyhow!("machine {}: is no unit yet", machine.code);
        let next = format!(
            "leapctl machine approve {} --unit CUSTOMER/NAME",
            machine.code
        );
        return Err(Failure::new(Kind::Refused, hint(error, next)));
    };
    Ok((unit, machine.facts.serial, machine.facts.product))
}

/// Of several machines with the unit's serial, the newest: a box that is born
/// again has a code for each birth.
fn of_unit(
    unit: &UnitName,
    serial: Option<&str>,
    machines: &[MachineView],
) -> Result<(UnitName, String, String), Failure> {
    let Some(serial) = serial else {
        let error = anyhow!("unit {unit}: has no machine yet");
        let next = format!("leapctl machine approve CODE --unit {unit}");
        return Err(Failure::new(Kind::Refused, hint(error, next)));
    };
    let product = machines
        .iter()
        .filter(|machine| machine.unit.as_ref() == Some(unit) && machine.facts.serial == serial)
        .max_by_key(|machine| machine.first_seen)
        .map_or(String::new(), |machine| machine.facts.product.clone());
    Ok((unit.clone(), serial.to_owned(), product))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::birth::tests::machine;

    #[test]
    fn a_label_is_for_a_unit_or_its_machine_and_for_nobody_else() {
        let unit: UnitName = "motivatit/houma-1".parse().unwrap();
        assert_eq!(whom("motivatit/houma-1"), Ok(Whom::Unit(unit.clone())));
        assert_eq!(
            whom("7qk2m9xd"),
            Ok(Whom::Machine("7QK2-M9XD".parse().unwrap()))
        );
        assert!(whom("houma").is_err());
        let mut born = machine("S1", vec![]);
        let refused = of_machine(born.clone()).unwrap_err();
        assert!(refused.to_string().contains("is no unit yet"), "{refused}");
        born.unit = Some(unit.clone());
        let label = (unit.clone(), "S1".to_owned(), born.facts.product.clone());
        assert_eq!(of_machine(born.clone()).unwrap(), label);
        assert_eq!(of_unit(&unit, Some("S1"), &[born]).unwrap(), label);
        assert!(of_unit(&unit, None, &[]).is_err());
        // The sky may have forgotten the machine's facts; the serial is the unit's.
        assert_eq!(of_unit(&unit, Some("S1"), &[]).unwrap().1, "S1");
    }
}
