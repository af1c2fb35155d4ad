//! The command line as a whole.

use clap::{Parser, Subcommand};
use edge::exit::Failure;

use crate::commands;
use crate::operator::{Globals, Operator};

/// Operate LeapServ: customers, units, machines, releases, backups
#[derive(Debug, Parser)]
#[command(
    name = "leapctl",
    version,
    propagate_version = true,
    infer_long_args = false
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make and show the operator's keys
    #[command(subcommand)]
    Keys(commands::keys::Keys),
    /// Create and list customers
    #[command(subcommand)]
    Customer(commands::customer::Customer),
    /// Create, configure, watch and replace units
    #[command(subcommand)]
    Unit(commands::unit::Unit),
    /// List and approve machines that wait in their installer
    #[command(subcommand)]
    Machine(commands::machine::Machine),
    /// Publish and offer releases
    #[command(subcommand)]
    Release(commands::release::Release),
    /// Show what a channel offers
    #[command(subcommand)]
    Channel(commands::channel::Channel),
    /// Run, list and restore backups
    #[command(subcommand)]
    Backup(commands::backup::Backup),
    /// Watch machines being born
    Birth(commands::birth::Args),
    /// Show what has happened
    Events(commands::events::Args),
    /// Tell the story of one machine's attempts to boot
    Explain(commands::explain::Args),
    /// Listen to machines that boot, and tell in words what they said
    #[command(subcommand)]
    Debug(commands::debug::Debug),
    /// Open what only a recovery key opens
    #[command(subcommand)]
    Secrets(commands::secrets::Secrets),
}

impl Cli {
    /// How many `-v` flags were given.
    pub fn verbosity(&self) -> u8 {
        self.globals.verbose
    }
}

/// Carries out the command.
///
/// # Errors
/// What the command says, with the kind that becomes the exit code.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(edge::exit::Kind::Environment, error))?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    // These need neither a sky nor a settings file that may not exist yet.
    let operator = match &cli.command {
        Command::Keys(commands::keys::Keys::Init(_)) | Command::Debug(_) => {
            Operator::bare(&cli.globals)
        }
        _ => Operator::resolve(cli.globals)?,
    };
    match cli.command {
        Command::Keys(command) => command.run(&operator),
        Command::Customer(command) => command.run(&operator).await,
        Command::Unit(command) => command.run(&operator).await,
        Command::Machine(command) => command.run(&operator).await,
        Command::Release(command) => command.run(&operator).await,
        Command::Channel(command) => command.run(&operator).await,
        Command::Backup(command) => command.run(&operator).await,
        Command::Birth(args) => args.run(&operator).await,
        Command::Events(args) => args.run(&operator).await,
        Command::Explain(args) => args.run(&operator).await,
        Command::Debug(command) => command.run(&operator).await,
        Command::Secrets(command) => command.run(&operator).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every page of help, so that a change of the interface is seen in review.
    #[test]
    fn help_is_what_was_agreed() {
        let mut pages = String::new();
        let mut cli = Cli::command().term_width(100);
        cli.build();
        page(&mut cli, &mut pages);
        crate::golden::assert("help.txt", &pages);
    }

    fn page(command: &mut clap::Command, pages: &mut String) {
        let name = command.get_bin_name().unwrap_or("leapctl").to_owned();
        // The global options stand once, on the first page.
        let top = name == "leapctl";
        let help = command
            .clone()
            .mut_args(|arg| {
                let global = arg.is_global_set();
                arg.hide(global && !top)
            })
            .render_help();
        pages.push_str(&format!("==> {name} --help\n{help}\n"));
        for subcommand in command.get_subcommands_mut() {
            if subcommand.get_name() != "help" {
                page(subcommand, pages);
            }
        }
    }

    #[test]
    fn the_file_of_keys_init_is_not_taken_for_a_url() {
        let line = "leapctl keys init --dir k --sky sky.json";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Keys(commands::keys::Keys::Init(args)) = cli.command else {
            panic!("keys init was not recognised");
        };
        assert_eq!(args.sky, "sky.json");
        let line = "leapctl keys init --dir k";
        assert!(Cli::try_parse_from(line.split(' ')).is_err());
    }
}
