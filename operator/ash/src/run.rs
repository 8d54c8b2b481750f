//! From a command to what carries it out.

use std::process::ExitCode;

use clap::CommandFactory;
use tokio::runtime::{Builder, Runtime};

use crate::{
    agent,
    arguments::{Cli, Command},
    chat, connection, deploy, fleet, health, operator,
    output::Output,
    runner, serve, session, uninstall,
};

/// Processors for each of the server's threads. What it does between two waits takes microseconds, so a second thread mostly
/// takes over work for whose hand-over both pay (measured on two processors: a quarter more processor time per turn), and the
/// sandboxes need processors, too.
const PROCESSORS_PER_THREAD: usize = 2;

/// Carries out a command. The client needs one thread, the server one for every two processors.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    let output = Output::new(global.json);
    match command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ash", &mut script);
            output.raw(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(arguments) => server()?.block_on(serve::run(*arguments)).map(|()| ExitCode::SUCCESS),
        Command::Operator(arguments) => server()?.block_on(operator::run(*arguments)).map(|()| ExitCode::SUCCESS),
        Command::Runner(arguments) if arguments.command.is_none() => {
            server()?.block_on(runner::run(*arguments)).map(|()| ExitCode::SUCCESS)
        }
        Command::Uninstall(arguments) => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(uninstall::run(arguments, &global, output))
        }
        command => {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = connection::client(&global).await?;
                match command {
                    Command::Deploy(arguments) => deploy::run(arguments, &client, output).await,
                    Command::Chat(arguments) => chat::run(arguments, client, output).await,
                    Command::Agent(command) => agent::run(command, &client, output).await,
                    Command::Session(command) => session::run(command, client, output).await,
                    Command::Runner(arguments) => fleet::run(arguments.command, &client, output).await,
                    Command::Status => fleet::status(&client, output).await,
                    _ => health::run(&client, output).await,
                }
            })
        }
    }
}

fn server() -> std::io::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread().worker_threads(processors.div_ceil(PROCESSORS_PER_THREAD)).enable_all().build()
}
