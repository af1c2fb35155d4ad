//! What the steps of the story share: the places, the servers, the machines.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Context as _;
use model::api::UnitView;

use super::Stage;
use super::operator::Operator;
use crate::lab::accelerator::Accelerator;
use crate::lab::gallery::Tree;
use crate::lab::isolation::search_path;
use crate::lab::machine::Machine;
use crate::lab::network::{Capturing, Network, Port, host};
use crate::lab::server::Server;
use crate::lab::sftp::FileServer;
use crate::lab::story::Step;

/// The unit of the story.
pub(crate) const UNIT: &str = "motivatit/houma-1";
/// Its customer.
pub(crate) const CUSTOMER: &str = "motivatit";
/// The offsite destinations.
pub(crate) const VAULTS: [&str; 2] = ["baton-rouge", "atlanta"];

/// Address of the factory; the bridge's own.
pub(crate) fn factory_address() -> Ipv4Addr {
    host(1)
}

/// Address of the sky.
pub(crate) fn sky_address() -> Ipv4Addr {
    host(2)
}

/// Address of a vault.
pub(crate) fn vault_address(index: u8) -> Ipv4Addr {
    host(10 + index)
}

/// Address of the customer's file server.
pub(crate) fn files_address() -> Ipv4Addr {
    host(30)
}

/// Everything that was started and made so far.
#[derive(Debug)]
pub struct World {
    pub(crate) stage: Stage,
    pub(crate) network: Network,
    pub(crate) capturing: Vec<Capturing>,
    pub(crate) accelerator: Accelerator,
    pub(crate) operator: Operator,
    /// Held so that they live as long as the story.
    pub(crate) _centre: Vec<Server>,
    pub(crate) files: FileServer,
    pub(crate) gallery: Tree,
    pub(crate) factory: Option<Server>,
    pub(crate) machine: Option<Powered>,
    /// The dead machine as it lay there.
    pub(crate) corpse: Option<Machine>,
    /// The machine that woke up from the dead.
    pub(crate) ghost: Option<Powered>,
}

/// A machine with its plugs.
#[derive(Debug)]
pub(crate) struct Powered {
    pub(crate) machine: Machine,
    pub(crate) ports: Vec<Port>,
}

impl Powered {
    /// Plugs a machine in and powers it on.
    pub(crate) async fn on(
        machine: Machine,
        network: &Network,
        accelerator: Accelerator,
    ) -> anyhow::Result<Self> {
        let name = format!("{}-0", machine.hardware().name);
        let port = network.port(&name).await?;
        Self::plugged(machine, port, accelerator).await
    }

    /// Powers a machine on whose one plug is in this port.
    pub(crate) async fn plugged(
        mut machine: Machine,
        port: Port,
        accelerator: Accelerator,
    ) -> anyhow::Result<Self> {
        let mut ports = vec![port];
        machine.power_on(accelerator, &mut ports).await?;
        Ok(Self { machine, ports })
    }

    /// Cuts the power and pulls the plugs.
    pub(crate) async fn off(mut self) -> anyhow::Result<Machine> {
        self.machine.power_cut().await?;
        for port in self.ports {
            port.remove().await?;
        }
        Ok(self.machine)
    }
}

impl World {
    /// The variables that make `leapctl` work in a shell of the laboratory, wherever that
    /// stands.
    ///
    /// # Errors
    /// The folder that we run in has no name.
    pub fn environment(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut environment = self.operator.environment().clone();
        let programs = std::path::absolute(&self.stage.programs).context("name the programs")?;
        let (search, path) = search_path();
        environment.insert(
            search.to_owned(),
            format!("{}:{}", programs.display(), path.to_string_lossy()),
        );
        Ok(environment)
    }

    /// The unit as the sky shows it.
    pub(crate) async fn unit(&self) -> anyhow::Result<UnitView> {
        let answer = self.operator.ask(&["unit", "show", UNIT]).await?;
        serde_json::from_value(answer).context("unit show: expected a unit")
    }

    /// Waits for conditions of the unit as an operator does, and returns the unit.
    pub(crate) async fn wait_for(
        &self,
        step: &mut Step,
        conditions: &[&str],
        seconds: u32,
    ) -> anyhow::Result<UnitView> {
        self.operator
            .wait_for(step, UNIT, conditions, seconds)
            .await
    }

    /// The machine that serves as the unit now.
    pub(crate) fn machine(&mut self) -> anyhow::Result<&mut Machine> {
        Ok(&mut self
            .machine
            .as_mut()
            .context("no machine is born yet")?
            .machine)
    }

    /// Folder of the story's settings files.
    pub(crate) fn settings(&self) -> PathBuf {
        self.stage.build.join("settings")
    }

    /// A program of ours.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.stage.programs.join(name)
    }
}
