//! The command line of `leap-provisioner`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use edge::exit::{Classify as _, Failure, Kind};
use model::api::ApiError;

use super::config::{Config, OtherServer};
use super::ledger::MachineRecord;

/// Give birth to units on the bench: DHCP, TFTP, HTTP boot and the installer's way to the sky
#[derive(Debug, Parser)]
#[command(name = "leap-provisioner", version)]
pub struct Cli {
    /// Configuration file
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/etc/leapserv/provisioner.toml",
        env = "LEAP_PROVISIONER_CONFIG"
    )]
    config: PathBuf,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the factory until SIGTERM or Ctrl-C
    Run {
        /// Start although another DHCP server answers on the interface
        #[arg(long)]
        beside_other_dhcp_server: bool,
    },
    /// Check the configuration file and what it names
    CheckConfig,
    /// List the machines of the ledger
    Machines {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a machine that has its disk boot the installer again; nothing is erased without a ticket
    Invite {
        /// MAC address, serial number, UUID, code or unit
        machine: String,
    },
    /// Take an invitation back: the machine boots its disk
    Uninvite {
        /// MAC address, serial number, UUID, code or unit
        machine: String,
    },
}

/// Runs a command.
///
/// # Errors
/// With the exit code's kind.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let mut config = Config::read(&cli.config)?;
    let runtime = tokio::runtime::Runtime::new()
        .context("start the runtime")
        .environment()?;
    match cli.command {
        Command::CheckConfig => {
            edge::out::line(format_args!("{}: good", cli.config.display()));
            Ok(())
        }
        Command::Run {
            beside_other_dhcp_server,
        } => {
            if beside_other_dhcp_server {
                config.other_server = OtherServer::Allow;
            }
            let ended = runtime.block_on(async {
                let stop = edge::shutdown::token();
                super::daemon::run(config, stop).await
            });
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            ended
        }
        Command::Machines { json } => {
            let socket = config.control_socket();
            let machines: Vec<MachineRecord> = runtime.block_on(call(&socket, None))?;
            if json {
                edge::out::json(&machines);
            } else {
                for record in machines {
                    edge::out::line(row(&record));
                }
            }
            Ok(())
        }
        Command::Invite { machine } => {
            let record = runtime.block_on(name(&config, &machine, "invite"))?;
            edge::out::line(format_args!(
                "{}: boots the installer when it is started next",
                record.label()
            ));
            Ok(())
        }
        Command::Uninvite { machine } => {
            let record = runtime.block_on(name(&config, &machine, "uninvite"))?;
            edge::out::line(format_args!("{}: boots its disk", record.label()));
            Ok(())
        }
    }
}

fn row(record: &MachineRecord) -> String {
    let mac = record
        .macs
        .first()
        .map_or_else(String::new, ToString::to_string);
    let code = record
        .birth
        .code()
        .map_or("-", model::machine::MachineCode::as_str);
    let unit = record
        .unit
        .as_ref()
        .map_or_else(|| "-".to_owned(), ToString::to_string);
    let serial = if record.serial.is_empty() {
        "-"
    } else {
        &record.serial
    };
    format!(
        "{mac:17}  {:10}  {code:9}  {serial:20}  {unit}",
        record.birth.word()
    )
}

async fn name(config: &Config, machine: &str, what: &str) -> Result<MachineRecord, Failure> {
    // A unit's name holds a slash, which is a separator in a path.
    let machine = machine.replace('/', "%2F");
    let path = format!("{machine}/{what}");
    call(&config.control_socket(), Some(&path)).await
}

/// Calls the running factory: lists machines, or posts to one.
async fn call<T: serde::de::DeserializeOwned>(
    socket: &Path,
    post: Option<&str>,
) -> Result<T, Failure> {
    tls::install_provider();
    let client = reqwest::Client::builder()
        .tls_certs_only([])
        .unix_socket(socket)
        .build()
        .context("make a client")?;
    let base = "http://localhost/v1/machines";
    let request = match post {
        None => client.get(base),
        Some(path) => client.post(format!("{base}/{path}")),
    };
    let answer = request
        .timeout(std::time::Duration::from_secs(10))
        .send()
        .await
        .with_context(|| format!("call the factory at {}", socket.display()))
        .map_err(|error| edge::exit::hint(error, "start it: leap-provisioner run"))
        .environment()?;
    let status = answer.status();
    let bytes = answer.bytes().await.context("read the factory's answer")?;
    if status.is_success() {
        return Ok(serde_json::from_slice(&bytes).context("read the factory's answer")?);
    }
    let error: ApiError = serde_json::from_slice(&bytes).context("read the factory's answer")?;
    let hint = error.hint.clone();
    let error = anyhow::Error::new(error);
    Err(Failure::new(
        Kind::Refused,
        match hint {
            Some(text) => edge::exit::hint(error, text),
            None => error,
        },
    ))
}
