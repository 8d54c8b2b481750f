//! What is printed: results on standard output, everything about them on standard error.
//!
//! A reader that goes away (`ash session list | head`) is no failure: the process ends quietly.

pub(crate) mod listing;
pub(crate) mod text;

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    process::ExitCode,
};

use ash_core::exit;
use ash_link::LinkError;
use serde::Serialize;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Output for people, or for programs.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// A result: its JSON for programs, `people` for people.
    pub(crate) fn result(self, value: &impl Serialize, people: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { people() };
        self.line(&text)
    }

    /// A line on standard output.
    pub(crate) fn line(self, text: &str) -> anyhow::Result<()> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Bytes on standard output, at once.
    #[expect(clippy::unused_self, reason = "who holds an output may print")]
    pub(crate) fn raw(self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        Ok(())
    }
}

/// What went wrong, for programs.
#[derive(Serialize)]
struct Refusal {
    error: String,
    /// The HTTP status, where the server answered with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// What to do next, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Something about the work, on standard error. Where nobody reads it, it is lost.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says what went wrong and what to do next, on standard error; the exit code that goes with it. For programs it is one line,
/// a JSON object.
pub(crate) fn failure(error: &anyhow::Error, json: bool) -> ExitCode {
    let closed = error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe);
    if closed {
        return ExitCode::SUCCESS;
    }
    let code = exit_code(error);
    let from_server = || error.chain().find_map(|cause| cause.downcast_ref::<ash_client::Error>());
    if json {
        let refusal = Refusal {
            error: format!("{error:#}"),
            status: from_server().and_then(ash_client::Error::status),
            hint: from_server().and_then(ash_client::Error::hint),
        };
        if let Ok(line) = serde_json::to_string(&refusal) {
            note(&line);
        }
        return code;
    }
    let colour = text::Style::new(io::stderr().is_terminal());
    note(&format!("{} {}", colour.red("error:"), text::printable(&format!("{error:#}"))));
    if let Some(hint) = from_server().and_then(ash_client::Error::hint) {
        note(&format!("{} {hint}", colour.bold("hint:")));
    }
    code
}

/// What went wrong between two processes has a code of its own: whoever started this one can tell it.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| match cause.downcast_ref::<LinkError>()? {
        LinkError::Secret { .. } => Some(exit::SECRET_REFUSED),
        LinkError::Version { .. } => Some(exit::INCOMPATIBLE),
        _ => None,
    });
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
