//! `ash chat`: a live conversation on a terminal, or a message per line in a pipe.

mod ahead;
mod asking;
mod conversation;
mod input;
mod view;

use std::{io::IsTerminal, process::ExitCode};

use anyhow::bail;
use ash_client::{Client, Message};
use clap::Args;

use crate::{
    chat::{
        conversation::{Conversation, Outcome},
        input::Input,
        view::View,
    },
    output::{Output, note, text::Style},
    session::SessionArguments,
};

pub(crate) use input::MAX_MESSAGE_BYTES;

/// The exit code of what was ended by Ctrl-C: 128 and the signal's number.
const INTERRUPTED: u8 = 130;

/// Whom to talk with.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The agent's name or slug
    agent: String,
    /// Go on with this session instead of a new one
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    #[command(flatten)]
    options: SessionArguments,
}

/// Holds a conversation until the input ends, or the person leaves.
pub(crate) async fn run(arguments: Arguments, client: Client, output: Output) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && !output.is_json();
    let session = match arguments.session {
        Some(id) => {
            if !arguments.options.is_empty() {
                bail!("a session keeps the options that it was made with: leave them out, or leave out --session");
            }
            let session = client.session(&id).await?;
            let agent = client.agent(&arguments.agent).await?;
            if session.agent_name != agent.name {
                bail!("session {id} is one of agent {}: ash chat {0} --session {id}", session.agent_name);
            }
            session.id
        }
        None => client.create_session(&arguments.options.request(arguments.agent.clone())).await?.id,
    };
    if terminal {
        let style = Style::new(true);
        note(
            &style.dim(&format!("Session {session} of {}. Ctrl-C interrupts a turn, Ctrl-D leaves.", arguments.agent)),
        );
    }
    let mut conversation = Conversation::new(client, session.clone(), view(output, terminal), Input::start(), output)?;
    let outcome = converse(&mut conversation, terminal, output).await;
    if terminal {
        note(&format!("Go on with it: ash chat {} --session {session}", arguments.agent));
    }
    Ok(code(outcome?))
}

/// One turn after the other. In a pipe a turn that fails is the last one.
async fn converse(conversation: &mut Conversation, terminal: bool, output: Output) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Done;
    while let Some(line) = conversation.line(terminal.then_some("> ")).await? {
        if line.trim().is_empty() {
            continue;
        }
        match conversation.turn(&message(line, !output.is_json())).await {
            Ok(Outcome::Left) => return Ok(Outcome::Left),
            Ok(ended) => outcome = ended,
            // A refusal (a turn that runs, no capacity) leaves the conversation where it was.
            Err(error) if terminal && error.downcast_ref::<ash_client::Error>().is_some() => {
                crate::output::failure(&error, output.is_json());
                outcome = Outcome::Failed;
            }
            Err(error) => return Err(error),
        }
        if outcome == Outcome::Failed && !terminal {
            break;
        }
    }
    Ok(if terminal { Outcome::Done } else { outcome })
}

/// Sends one message and shows its turn. `may_ask`: standard input is free, so a person there can be asked.
pub(crate) async fn once(
    client: Client,
    session: String,
    mut message: Message,
    may_ask: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stdout().is_terminal() && !output.is_json();
    message.include_partial_messages = true;
    let ask = may_ask && terminal && std::io::stdin().is_terminal();
    let input = if ask { Input::start() } else { Input::nobody() };
    let view = view(output, terminal);
    let mut conversation = Conversation::new(client, session, view, input, output)?.without_waiting();
    Ok(code(conversation.turn(&message).await?))
}

/// A message; a program that reads a whole conversation gets each text once, everybody else as it is written, too.
fn message(text: String, partials: bool) -> Message {
    Message { include_partial_messages: partials, ..Message::text(text) }
}

fn view(output: Output, terminal: bool) -> View {
    if output.is_json() {
        View::frames()
    } else if terminal {
        View::terminal(Style::new(true))
    } else {
        View::plain()
    }
}

fn code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
        Outcome::Left => INTERRUPTED.into(),
    }
}
