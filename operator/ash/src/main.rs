//! Ash on the command line: the server, and the client of its API.

mod agent;
mod arguments;
mod chat;
mod connection;
mod deploy;
mod fleet;
mod health;
mod operator;
mod output;
mod run;
mod runner;
mod serve;
mod session;
mod settings;
mod uninstall;
mod values;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match arguments::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return output::failure(&error, false),
    };
    let json = cli.global.json;
    run::run(cli).unwrap_or_else(|error| output::failure(&error, json))
}
