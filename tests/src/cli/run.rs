//! `leap-lab run`: sky and factory for real use on this machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Args;
use edge::durable::{self, Mode};
use edge::exit::{Failure, Kind, hint};
use edge::runner::Tool;

use super::Options;
use crate::lab::process::Recipe;
use crate::lab::server::{Ready, Server};

const SKY_PORT: u16 = 8443;
const FACTORY_PORT: u16 = 8080;

/// Start sky and factory for real use on this machine, until Ctrl-C
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Network interface of the bench, with a static address
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Folder of keys, store, ledger and logs; kept between runs
    #[arg(long, default_value = "build/run", value_name = "FOLDER")]
    dir: PathBuf,
}

impl Run {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let Some(interface) = &self.interface else {
            let error =
                anyhow!("no interface is named: a DHCP server must not guess where it serves");
            let next = "make run INTERFACE=eth1, an interface of the bench with a static address";
            return Err(Failure::new(Kind::Usage, hint(error, next)));
        };
        let (address, prefix) = address_of(interface).await?;
        let dir = std::path::absolute(&self.dir).context("name the folder")?;
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let sky = start_sky(&options.bin_dir, &dir, address).await?;
        let factory = start_factory(&options.bin_dir, &dir, interface, address, prefix).await?;
        edge::out::line(format_args!(
            "the sky answers at https://{address}:{SKY_PORT}"
        ));
        edge::out::line(format_args!("the factory serves the bench on {interface}"));
        edge::out::line("\nIn another terminal:");
        for (name, value) in [
            ("LEAPCTL_SKY", format!("https://{address}:{SKY_PORT}")),
            ("LEAPCTL_KEYS", dir.join("keys").display().to_string()),
            (
                "LEAPCTL_TOKEN_FILE",
                dir.join("sky/tokens/operator").display().to_string(),
            ),
        ] {
            edge::out::line(format_args!("  export {name}={value}"));
        }
        edge::out::line(format_args!("logs: {}; Ctrl-C stops both", dir.display()));
        edge::shutdown::requested().await;
        factory.stop().await?;
        sky.stop().await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The first IPv4 address of an interface, with its prefix length.
async fn address_of(interface: &str) -> anyhow::Result<(Ipv4Addr, u8)> {
    let text = Tool::new("ip")
        .args(["-4", "-json", "address", "show", "dev", interface])
        .text_async()
        .await
        .with_context(|| format!("look at interface {interface}"))?;
    parse_address(&text).ok_or_else(|| {
        hint(
            anyhow!("interface {interface}: has no IPv4 address"),
            format!("ip address add 10.77.0.1/24 dev {interface}"),
        )
    })
}

fn parse_address(json: &str) -> Option<(Ipv4Addr, u8)> {
    let links: serde_json::Value = serde_json::from_str(json).ok()?;
    let info = links
        .as_array()?
        .iter()
        .find_map(|link| link["addr_info"].as_array()?.first())?;
    let prefix = u8::try_from(info["prefixlen"].as_u64()?).ok()?;
    Some((info["local"].as_str()?.parse().ok()?, prefix))
}

async fn start_sky(programs: &Path, dir: &Path, address: Ipv4Addr) -> anyhow::Result<Server> {
    let (sky, keys) = (dir.join("sky"), dir.join("keys"));
    let fleet = programs.join("leap-fleet");
    if !sky.exists() {
        let address = address.to_string();
        Tool::new(&fleet)
            .args(["init", "--name", &address, "--address", &address])
            .args(["--port", &SKY_PORT.to_string(), "--dir"])
            .arg(&sky)
            .run_async()
            .await?;
    }
    if !keys.exists() {
        let leapctl = Tool::new(programs.join("leapctl")).args(["keys", "init", "--dir"]);
        leapctl
            .arg(&keys)
            .arg("--sky")
            .arg(sky.join("sky.json"))
            .run_async()
            .await?;
        let trust = keys.join("trust-root.json");
        Tool::new(&fleet)
            .arg("set-trust")
            .arg(&sky)
            .arg(trust)
            .run_async()
            .await?;
    }
    let tool = Tool::new(&fleet)
        .args(["run", "--config"])
        .arg(sky.join("fleet.toml"));
    let recipe = Recipe::new("leap-fleet", tool, dir.join("leap-fleet.log"));
    Server::start(recipe, Ready::Port((address, SKY_PORT).into())).await
}

async fn start_factory(
    programs: &Path,
    dir: &Path,
    interface: &str,
    address: Ipv4Addr,
    prefix: u8,
) -> anyhow::Result<Server> {
    let file = dir.join("factory.toml");
    // Written once: an operator's changes stay.
    if !file.exists() {
        let text = factory_toml(interface, address, prefix).with_context(|| {
            format!("interface {interface}: a bench needs a network of at least 32 addresses")
        })?;
        durable::write(&file, text.as_bytes(), Mode::Public)?;
    }
    let tool = Tool::new(programs.join("leap-provisioner"));
    let tool = tool.args(["run", "--config"]).arg(&file);
    let recipe = Recipe::new("leap-provisioner", tool, dir.join("leap-provisioner.log"));
    Server::start(recipe, Ready::Port((address, FACTORY_PORT).into())).await
}

/// The factory's configuration: the upper half of the network is given out.
fn factory_toml(interface: &str, address: Ipv4Addr, prefix: u8) -> Option<String> {
    let size = 1u32.checked_shl(32u32.checked_sub(u32::from(prefix))?)?;
    if size < 32 {
        return None;
    }
    let network = u32::from(address) & !(size - 1);
    let (first, last) = (network + size / 2, network + size - 2);
    let own = u32::from(address);
    // Our own address is never given out.
    let last = if (first..=last).contains(&own) {
        own - 1
    } else {
        last
    };
    Some(format!(
        "interface = {interface:?}\naddress = \"{address}\"\nstate = \"factory\"\n\
         channel = \"stable\"\ntrust_root = \"keys/trust-root.json\"\n\n\
         [http]\nport = {FACTORY_PORT}\n\n\
         [dhcp]\nmode = \"server\"\nnetwork = \"{}/{prefix}\"\npool = [\"{}\", \"{}\"]\n\n\
         [sky]\nurl = \"https://{address}:{SKY_PORT}\"\nca = \"sky/ca.crt\"\n\
         token_file = \"sky/tokens/factory\"\n",
        Ipv4Addr::from(network),
        Ipv4Addr::from(first),
        Ipv4Addr::from(last),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_of_an_interface_is_found() {
        let json = r#"[{"ifname":"eth1","addr_info":[{"family":"inet","local":"10.0.0.1","prefixlen":24}]}]"#;
        assert_eq!(parse_address(json), Some(([10, 0, 0, 1].into(), 24)));
        assert_eq!(parse_address(r#"[{"ifname":"eth1","addr_info":[]}]"#), None);
    }

    #[test]
    fn the_upper_half_of_the_network_is_given_out_and_never_our_own_address() {
        let text = factory_toml("eth1", [10, 0, 0, 1].into(), 24).unwrap();
        assert!(
            text.contains("pool = [\"10.0.0.128\", \"10.0.0.254\"]"),
            "{text}"
        );
        let text = factory_toml("eth1", [10, 0, 0, 200].into(), 24).unwrap();
        assert!(
            text.contains("pool = [\"10.0.0.128\", \"10.0.0.199\"]"),
            "{text}"
        );
        assert_eq!(factory_toml("eth1", [10, 0, 0, 1].into(), 30), None);
    }
}
