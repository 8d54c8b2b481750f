//! `ash session`: conversations with agents.

use std::{collections::BTreeMap, io::Read, process::ExitCode};

use anyhow::Context;
use ash_client::{Client, CreateSession, Message, PermissionMode, Session, SessionChanges, SessionQuery};
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use crate::{
    chat::{self, MAX_MESSAGE_BYTES},
    output::{Output, listing},
    values,
};

/// What can be done with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Begin a session
    Create(Create),
    /// List sessions
    List {
        /// Of this agent
        #[arg(long)]
        agent: Option<String>,
        /// In this state: starting, active, paused, stopped, ended, error
        #[arg(long)]
        status: Option<String>,
        /// So many at the most
        #[arg(long)]
        limit: Option<u32>,
        /// From this one on
        #[arg(long)]
        offset: Option<u32>,
    },
    /// Show one session
    Get {
        /// Its id
        session: String,
    },
    /// Send a message and print the answer; with --json, every frame of the stream as a line
    Send(Send),
    /// Give a session's sandbox back and refuse messages until it is resumed; a turn in progress is interrupted
    Pause {
        /// Its id
        session: String,
    },
    /// The same under another state, for clients that know it
    Stop {
        /// Its id
        session: String,
    },
    /// Messages that wait for their turn
    #[command(subcommand, arg_required_else_help = true)]
    Queue(Queue),
    /// Change options of a session: on its living Claude Code where that can be, else from its next turn on
    Config(Config),
    /// End the turn in progress; messages that wait run
    Interrupt {
        /// Its id
        session: String,
    },
    /// Let a paused or stopped session go on
    Resume {
        /// Its id
        session: String,
    },
    /// End a session; its history is kept
    End {
        /// Its id
        session: String,
    },
}

/// A session to be made.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The agent's name or slug
    pub(crate) agent: String,
    #[command(flatten)]
    pub(crate) options: SessionArguments,
}

/// Options of a new session.
#[derive(Debug, Args)]
pub(crate) struct SessionArguments {
    /// The model instead of the agent's
    #[arg(long)]
    model: Option<String>,
    /// What a tool call needs before it runs: bypassPermissions, default (asks), acceptEdits, plan
    #[arg(long, value_parser = permission_mode, value_name = "MODE")]
    permission_mode: Option<PermissionMode>,
    /// Tool that runs without asking; can be repeated
    #[arg(long = "allow-tool", value_name = "TOOL")]
    allowed_tools: Vec<String>,
    /// Tool that is not there; can be repeated
    #[arg(long = "disallow-tool", value_name = "TOOL")]
    disallowed_tools: Vec<String>,
    /// Environment variable, KEY=VALUE; KEY alone takes the value that it has here; can be repeated
    #[arg(long, value_parser = values::variable, value_name = "KEY=VALUE")]
    env: Vec<(String, String)>,
    /// What to keep with the session, KEY=VALUE; can be repeated
    #[arg(long, value_parser = values::pair, value_name = "KEY=VALUE")]
    metadata: Vec<(String, String)>,
}

impl SessionArguments {
    /// Whether nothing was asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.model.is_none()
            && self.permission_mode.is_none()
            && self.allowed_tools.is_empty()
            && self.disallowed_tools.is_empty()
            && self.env.is_empty()
            && self.metadata.is_empty()
    }

    /// The request that they make.
    pub(crate) fn request(self, agent: String) -> CreateSession {
        let some = |tools: Vec<String>| (!tools.is_empty()).then_some(tools);
        CreateSession {
            agent,
            model: self.model,
            permission_mode: self.permission_mode,
            allowed_tools: some(self.allowed_tools),
            disallowed_tools: some(self.disallowed_tools),
            extra_env: self.env.into_iter().collect(),
            metadata: self.metadata.into_iter().collect::<BTreeMap<_, _>>(),
            ..CreateSession::default()
        }
    }
}

/// A message to be sent.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The session's id
    session: String,
    /// What to say; without it, standard input to its end
    message: Option<String>,
    /// The model of this turn
    #[arg(long)]
    model: Option<String>,
    /// Model calls of this turn at the most
    #[arg(long)]
    max_turns: Option<u32>,
    /// Where a turn runs, let the message wait for its end
    #[arg(long)]
    queue: bool,
}

/// What can be done with messages that wait.
#[derive(Debug, Subcommand)]
pub(crate) enum Queue {
    /// Queue a message and do not wait for its answer
    Add {
        /// The session's id
        session: String,
        /// What to say; without it, standard input to its end
        message: Option<String>,
        /// How often it is tried again where its turn is cut off
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=5))]
        retries: u32,
    },
    /// List what waits, and what is over of late
    List {
        /// The session's id
        session: String,
    },
    /// Take a message back whose turn has not come
    Delete {
        /// The session's id
        session: String,
        /// The message's id, as the listing has it
        entry: String,
    },
}

/// Options that change in a session's life.
#[derive(Debug, Args)]
pub(crate) struct Config {
    /// The session's id
    session: String,
    /// The model
    #[arg(long)]
    model: Option<String>,
    /// The model as the agent has it
    #[arg(long, conflicts_with = "model")]
    no_model: bool,
    /// Tool that runs without asking, of all that do; can be repeated
    #[arg(long = "allow-tool", value_name = "TOOL")]
    allowed_tools: Vec<String>,
    /// Tool that is not there, of all that are not; can be repeated
    #[arg(long = "disallow-tool", value_name = "TOOL")]
    disallowed_tools: Vec<String>,
    /// What to keep with the session, KEY=VALUE, in place of what is kept; can be repeated
    #[arg(long, value_parser = values::pair, value_name = "KEY=VALUE")]
    metadata: Vec<(String, String)>,
}

impl Config {
    fn changes(self) -> (String, SessionChanges) {
        let some = |tools: Vec<String>| (!tools.is_empty()).then_some(Some(tools));
        let changes = SessionChanges {
            model: if self.no_model { Some(None) } else { self.model.map(Some) },
            allowed_tools: some(self.allowed_tools),
            disallowed_tools: some(self.disallowed_tools),
            metadata: (!self.metadata.is_empty()).then(|| self.metadata.into_iter().collect()),
            ..SessionChanges::default()
        };
        (self.session, changes)
    }
}

/// Carries it out.
pub(crate) async fn run(command: Command, client: Client, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(Create { agent, options }) => {
            let session = client.create_session(&options.request(agent)).await?;
            output.result(&json!({ "session": session }), || session.id.clone())?;
        }
        Command::List { agent, status, limit, offset } => {
            let query = SessionQuery { agent, status, limit, offset };
            let sessions = list(query.clone(), &client).await?;
            output.result(&json!({ "sessions": sessions }), || listing::sessions(&sessions, &query))?;
        }
        Command::Get { session } => {
            let session = client.session(&session).await?;
            output.result(&json!({ "session": session }), || listing::session(&session))?;
        }
        Command::Send(send) => return self::send(send, client, output).await,
        Command::Queue(command) => queue(command, &client, output).await?,
        Command::Config(config) => {
            let (session, changes) = config.changes();
            if changes == SessionChanges::default() {
                anyhow::bail!("name what to change: --model, --no-model, --allow-tool, --disallow-tool or --metadata");
            }
            said(&client.configure_session(&session, &changes).await?, "Changed", output)?;
        }
        Command::Interrupt { session } => {
            client.interrupt(&session).await?;
            output.result(&json!({ "session": { "id": session } }), || format!("Interrupted {session}."))?;
        }
        Command::Pause { session } => said(&client.pause_session(&session).await?, "Paused", output)?,
        Command::Stop { session } => said(&client.stop_session(&session).await?, "Stopped", output)?,
        Command::Resume { session } => said(&client.resume_session(&session).await?, "Resumed", output)?,
        Command::End { session } => said(&client.end_session(&session).await?, "Ended", output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn said(session: &Session, what: &str, output: Output) -> anyhow::Result<()> {
    output.result(&json!({ "session": session }), || format!("{what} {}.", session.id))
}

async fn queue(command: Queue, client: &Client, output: Output) -> anyhow::Result<()> {
    match command {
        Queue::Add { session, message, retries } => {
            let text = message.map_or_else(standard_input, Ok)?;
            let message = Message { retries, ..Message::text(text) };
            let entry = client.queue_message(&session, &message, &Uuid::new_v4().to_string()).await?;
            output.result(&json!({ "entry": entry }), || entry.id.clone())
        }
        Queue::List { session } => {
            let entries = client.queue(&session).await?;
            output.result(&json!({ "entries": entries }), || listing::queue(&entries))
        }
        Queue::Delete { session, entry } => {
            let entry = client.take_back(&session, &entry).await?;
            output.result(&json!({ "entry": entry }), || format!("Took back {}.", entry.id))
        }
    }
}

/// Sessions as asked for. A listing says nothing about an agent that it has nothing of: the server knows whether there is one,
/// and the name to a slug. Sessions of an agent that was deleted are still listed.
async fn list(mut query: SessionQuery, client: &Client) -> anyhow::Result<Vec<Session>> {
    let sessions = client.sessions(&query).await?;
    if let Some(given) = query.agent.as_deref()
        && sessions.is_empty()
    {
        let name = client.agent(given).await?.name;
        if name != given {
            query.agent = Some(name);
            return Ok(client.sessions(&query).await?);
        }
    }
    Ok(sessions)
}

async fn send(send: Send, client: Client, output: Output) -> anyhow::Result<ExitCode> {
    let given = send.message.is_some();
    let text = match send.message {
        Some(text) => text,
        None => standard_input()?,
    };
    let mut message = Message::text(text);
    message.options.model = send.model;
    message.options.max_turns = send.max_turns;
    message.queue = send.queue;
    chat::once(client, send.session, message, given, output).await
}

/// What is on standard input, to its end.
fn standard_input() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_MESSAGE_BYTES + 1)
        .read_to_string(&mut text)
        .context("cannot read the message from standard input")?;
    if text.len() as u64 > MAX_MESSAGE_BYTES {
        anyhow::bail!("the message is longer than {MAX_MESSAGE_BYTES} bytes, which is what a server takes");
    }
    Ok(text)
}

/// A permission mode by its name in the API.
fn permission_mode(text: &str) -> Result<PermissionMode, String> {
    serde_json::from_value(json!(text))
        .map_err(|_| "there are: bypassPermissions, default, acceptEdits, plan".to_owned())
}
