//! Step 1: the sky, its vaults, the customer and the unit.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use edge::runner::Tool;

use super::Stage;
use super::operator::Operator;
use super::releases::STABLE;
use super::world::{
    CUSTOMER, UNIT, VAULTS, World, factory_address, files_address, sky_address, vault_address,
};
use crate::lab::accelerator::Accelerator;
use crate::lab::gallery::Gallery;
use crate::lab::isolation::Inside;
use crate::lab::network::{Network, Wiring};
use crate::lab::prerequisites;
use crate::lab::process::{Recipe, run};
use crate::lab::server::{Ready, Server};
use crate::lab::sftp::{FileServer, USER, make_key, public_key};
use crate::lab::story::Step;

pub(super) const SKY_PORT: u16 = 8443;
const VAULT_PORT: u16 = 8444;
/// The key of somebody who may log in to the units.
const COLLEAGUE: &str = "settings/operator-key";

/// Starts the centre and creates customer and unit.
pub(super) async fn sky(inside: &Inside, stage: &Stage, step: &mut Step) -> anyhow::Result<World> {
    let build = &stage.build;
    for old in [
        "sky", "keys", "vaults", "factory", "machines", "settings", "layer", "releases",
    ] {
        remove(&build.join(old))?;
    }
    std::fs::create_dir_all(build.join("settings")).context("make the settings folder")?;
    let network = Network::create("lan0", factory_address(), 24, Wiring::detect()).await?;
    for address in [
        sky_address(),
        vault_address(0),
        vault_address(1),
        files_address(),
    ] {
        network.add_address(address).await?;
    }
    let capturing = vec![network.capture(&build.join("lan0.pcap")).await?];
    step.note("everything below happens in namespaces of its own; nothing reaches your network");

    let (operator, sky) = start_sky(stage, step).await?;
    let mut centre = start_vaults(stage, step).await?;
    centre.push(sky);
    let (files, gallery) = file_server(inside, stage, step).await?;

    operator
        .run(
            step,
            &[
                "customer",
                "create",
                CUSTOMER,
                "--title",
                "Motivatit Seafoods",
            ],
        )
        .await?;
    make_key(&build.join(COLLEAGUE)).await?;
    unit(stage, &operator, &files, step, UNIT, STABLE).await?;
    step.waiting("trying KVM");
    let accelerator = Accelerator::detect(&build.join("tmp")).await?;
    step.rest();
    step.note(&format!("machines will run by {}", accelerator.words()));
    Ok(World {
        stage: stage.clone(),
        network,
        capturing,
        accelerator,
        operator,
        _centre: centre,
        files,
        gallery,
        factory: None,
        machine: None,
        corpse: None,
        ghost: None,
    })
}

/// Creates a unit and configures it.
pub(super) async fn unit(
    stage: &Stage,
    operator: &Operator,
    files: &FileServer,
    step: &mut Step,
    unit: &str,
    channel: &str,
) -> anyhow::Result<()> {
    let create = [
        "unit",
        "create",
        unit,
        "--profile",
        "backup",
        "--channel",
        channel,
    ];
    operator.run(step, &create).await?;
    let hostname = unit.rsplit('/').next().unwrap_or(unit);
    let settings = Settings {
        hostname,
        network: "mode = \"dhcp\"",
        operator_key: public_key(&stage.build.join(COLLEAGUE))?,
        share: files.share(),
        host_key: files.host_key(),
        albums: &["gallery"],
    };
    let file = stage.build.join(format!("settings/{hostname}.toml"));
    settings.write(&file)?;
    let shown = file.display().to_string();
    operator
        .run(step, &["unit", "configure", unit, &shown])
        .await?;
    let view = operator.ask(&["unit", "show", unit]).await?;
    ensure!(
        view["state"] == "unborn",
        "expected an unborn unit, found {}",
        view["state"]
    );
    step.evidence(format!(
        "{unit} exists, unborn, with signed configuration generation {}",
        view["configuration_generation"]
    ));
    Ok(())
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

async fn start_sky(stage: &Stage, step: &mut Step) -> anyhow::Result<(Operator, Server)> {
    let fleet = stage.programs.join("leap-fleet");
    let (sky, keys) = (stage.build.join("sky"), stage.build.join("keys"));
    let text = |path: &Path| path.display().to_string();
    let address = sky_address().to_string();
    let init = [
        "init",
        "--dir",
        &text(&sky),
        "--name",
        &address,
        "--address",
        &address,
        "--port",
        &SKY_PORT.to_string(),
    ];
    step.command("leap-fleet", init);
    run(&fleet.display().to_string(), init).await?;
    let introduction = text(&sky.join("sky.json"));
    let keys_init = [
        "keys",
        "init",
        "--dir",
        &text(&keys),
        "--sky",
        &introduction,
    ];
    step.command("leapctl", keys_init);
    run(&text(&stage.programs.join("leapctl")), keys_init).await?;
    let trust = [
        "set-trust",
        &text(&sky),
        &text(&keys.join("trust-root.json")),
    ];
    step.command("leap-fleet", trust);
    run(&fleet.display().to_string(), trust).await?;
    // The signing keys stand in the operator's folder and nowhere in the sky's.
    let config = text(&sky.join("fleet.toml"));
    step.command("leap-fleet", ["run", "--config", &config]);
    let tool = Tool::new(&fleet).args(["run", "--config", &config]);
    let recipe = Recipe::new("leap-fleet", tool, stage.build.join("leap-fleet.log"));
    let server = Server::start(recipe, Ready::Port((sky_address(), SKY_PORT).into())).await?;
    step.evidence(format!(
        "the sky answers at https://{address}:{SKY_PORT}, store: SQLite"
    ));
    let operator = Operator::new(
        &stage.programs,
        &format!("https://{address}:{SKY_PORT}"),
        &keys,
        &sky.join("ca.crt"),
        &sky.join("tokens/operator"),
    )?;
    Ok((operator, server))
}

async fn start_vaults(stage: &Stage, step: &mut Step) -> anyhow::Result<Vec<Server>> {
    let sky = stage.build.join("sky");
    let mut servers = Vec::new();
    for (index, name) in (0u8..).zip(VAULTS) {
        let folder = stage.build.join("vaults").join(name);
        std::fs::create_dir_all(&folder).context("make a vault's folder")?;
        let address = vault_address(index);
        let paper = folder.join("papers");
        run(
            &stage.programs.join("leap-fleet").display().to_string(),
            [
                "issue",
                "--dir",
                &sky.display().to_string(),
                "--name",
                name,
                "--address",
                &address.to_string(),
                "--out",
                &paper.display().to_string(),
            ],
        )
        .await?;
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map(|path| path.display().to_string())
                .context("name a folder")
        };
        let mut config = String::new();
        writeln!(
            config,
            "name = {name:?}\nlisten = \"{address}:{VAULT_PORT}\""
        )?;
        writeln!(config, "data = {:?}", absolute(&folder.join("data"))?)?;
        writeln!(
            config,
            "certificate = {:?}",
            absolute(&paper.join("server.crt"))?
        )?;
        writeln!(config, "key = {:?}", absolute(&paper.join("server.key"))?)?;
        writeln!(config, "device_ca = {:?}", absolute(&paper.join("ca.crt"))?)?;
        writeln!(
            config,
            "quota_mib = 2048\n\n[sky]\nurl = \"https://{}:{SKY_PORT}\"",
            sky_address()
        )?;
        writeln!(config, "ca = {:?}", absolute(&sky.join("ca.crt"))?)?;
        writeln!(
            config,
            "token_file = {:?}",
            absolute(&sky.join("tokens/vault"))?
        )?;
        let file = folder.join("vault.toml");
        std::fs::write(&file, config).context("write a vault's configuration")?;
        let shown = file.display().to_string();
        step.command("leap-vault", ["serve", "--config", &shown]);
        let tool = Tool::new(stage.programs.join("leap-vault")).args(["serve", "--config", &shown]);
        let log = stage.build.join(format!("leap-vault-{name}.log"));
        let recipe = Recipe::new("leap-vault", tool, log);
        servers.push(Server::start(recipe, Ready::Port((address, VAULT_PORT).into())).await?);
    }
    step.evidence(format!(
        "two offsite vaults answer: {}",
        VAULTS.join(" and ")
    ));
    Ok(servers)
}

async fn file_server(
    inside: &Inside,
    stage: &Stage,
    step: &mut Step,
) -> anyhow::Result<(FileServer, crate::lab::gallery::Tree)> {
    let sshd = prerequisites::sshd(&stage.build.join("cache")).await?;
    let log = stage.build.join("sshd.log");
    let files = FileServer::start(inside, &sshd, (files_address(), 22).into(), &log).await?;
    let gallery = Gallery::default();
    let tree = gallery.write(&files.share().join("gallery"))?;
    Gallery {
        seed: 7,
        photos: 12,
        ..gallery
    }
    .write(&files.share().join("invoices"))?;
    own(files.share()).await?;
    step.evidence(format!(
        "the customer's file server (OpenSSH) holds {} photos, {} MiB",
        tree.len(),
        gallery.total_size() >> 20
    ));
    Ok((files, tree))
}

/// The share belongs to the account that the unit logs in with.
pub(super) async fn own(share: &Path) -> anyhow::Result<()> {
    run("chown", ["-R".as_ref(), USER.as_ref(), share.as_os_str()])
        .await
        .map(drop)
}

/// What the operator writes down for the unit.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    pub(super) hostname: &'a str,
    pub(super) network: &'a str,
    pub(super) operator_key: String,
    pub(super) share: &'a Path,
    pub(super) host_key: &'a str,
    pub(super) albums: &'a [&'a str],
}

impl Settings<'_> {
    /// Writes the TOML file.
    pub(super) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let mut text = format!(
            "hostname = {:?}\ntime_zone = \"America/Chicago\"\noperators = [{:?}]\n\
             check_in_seconds = 2\n\n[network]\n{}\n\n\
             [maintenance]\nfrom = \"00:00\"\nto = \"00:00\"\n\n\
             [backup]\ncopies_required = 2\n\
             schedule = {{ every_minutes = 1440 }}\n\
             retention = {{ last = 24, daily = 14, weekly = 8, monthly = 12 }}\n",
            self.hostname, self.operator_key, self.network,
        );
        for album in self.albums {
            write!(
                text,
                "\n[[backup.sources]]\nname = {album:?}\nkind = \"sftp\"\nhost = \"{}\"\n\
                 user = {USER:?}\npath = {:?}\nhost_key = {:?}\n",
                files_address(),
                self.share.join(album).display().to_string(),
                self.host_key,
            )?;
        }
        for (index, vault) in (0u8..).zip(VAULTS) {
            write!(
                text,
                "\n[[backup.destinations]]\nname = {vault:?}\nurl = \"https://{}:{VAULT_PORT}\"\n",
                vault_address(index),
            )?;
        }
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
    }
}

/// `https://HOST:PORT` of a vault.
pub(super) fn vault_url(index: u8) -> String {
    format!("https://{}:{VAULT_PORT}", vault_address(index))
}

/// `https://HOST:PORT` of the sky.
pub(super) fn sky_url() -> String {
    let address: Ipv4Addr = sky_address();
    format!("https://{address}:{SKY_PORT}")
}
