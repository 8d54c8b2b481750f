//! Ash on the command line: the server, and the client of its API.

mod agent;
mod arguments;
mod chat;
mod connection;
mod deploy;
mod health;
mod output;
mod run;
mod serve;
mod session;
mod settings;
mod values;

use std::process::ExitCode;

fn main() -> ExitCode {
    match arguments::read(std::env::args_os()).and_then(run::run) {
        Ok(code) => code,
        Err(error) => output::failure(&error),
    }
}
