//! What becomes of a line that Claude Code printed.

use std::{collections::BTreeMap, time::Duration};

use ash_protocol::{
    EntryFlags, EntryKind,
    bound::BridgeBound,
    claude::Line,
    message::{BridgeEvent, Resolution, RestartReason},
};
use bytes::Bytes;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Driver, now_ms};
use crate::{
    claude::{
        control::{self, Answered, Asked, Cancelled, ResultLine},
        lines::{Piece, readable},
        transcript::Transcript,
    },
    report::report,
};

/// How long a result waits for its message to appear in the transcript. Seen to be there at once, a hundred times of a
/// hundred; where it is not, the result goes out without it and the next turn ships what is missing.
const TRANSCRIPT_WAIT: Duration = Duration::from_millis(250);

/// How often the transcript is looked at meanwhile.
const TRANSCRIPT_LOOK: Duration = Duration::from_millis(5);

/// The fields of `system/init` that are acted on.
#[derive(Deserialize)]
struct Init {
    session_id: Uuid,
    #[serde(default)]
    mcp_servers: Vec<Server>,
}

#[derive(Deserialize)]
struct Server {
    name: String,
    status: String,
}

#[derive(Deserialize)]
struct Message {
    uuid: String,
    #[serde(default)]
    parent_tool_use_id: Option<String>,
}

impl Driver {
    /// Takes one piece of Claude Code's output.
    pub(super) async fn piece(&mut self, piece: Piece) {
        match piece {
            Piece::Line(line) => self.line(line).await,
            Piece::TooLong(head) => {
                self.shared.met(BridgeBound::Line);
                self.invalid(format!(
                    "Claude Code printed a line of more than {} bytes; it was dropped. It begins: {}",
                    ash_protocol::entry::MAX_LINE_BYTES,
                    readable(&head)
                ));
            }
            Piece::Unfinished(part) => {
                self.invalid(format!("Claude Code's output ended within a line that begins: {}", readable(&part)));
            }
        }
    }

    fn invalid(&self, message: String) {
        if self.session.is_none() {
            report("invalid_output", "Claude Code printed something that is no message while it was warmed");
        }
        self.event(&BridgeEvent::InvalidOutput { message });
    }

    async fn line(&mut self, line: Bytes) {
        let Ok(parsed) = Line::parse(&line) else {
            return self.invalid(format!("Claude Code printed a line that is no message: {}", readable(&line)));
        };
        match parsed {
            Line::Partial => self.partial(line),
            Line::Result { .. } => self.result(line).await,
            Line::ControlRequest => self.asked(&line),
            Line::ControlResponse => self.answered(&line),
            Line::ControlCancelRequest => self.cancelled(&line),
            Line::KeepAlive => {}
            Line::System(subtype) => {
                if subtype == "init" {
                    self.init(&line).await;
                }
                self.log(EntryKind::Claude, EntryFlags::default(), line);
            }
            Line::Other(kind) => {
                let (is_assistant, is_user) = (kind == "assistant", kind == "user");
                if is_assistant {
                    self.message(&line);
                }
                self.log(EntryKind::Claude, EntryFlags::default(), line);
                if is_user {
                    // A tool has answered: a good time to save what a long turn did so far.
                    self.ship_transcript().await;
                }
            }
        }
    }

    fn log(&self, kind: EntryKind, flags: EntryFlags, line: Bytes) {
        if self.session.is_some() {
            self.shared.append(kind, flags, line);
        }
    }

    fn partial(&mut self, line: Bytes) {
        let Some(session) = &mut self.session else { return };
        if let Some(superseded) = session.partials.before(&line, self.shared.next_sequence()) {
            let (from, to) = (superseded.from, superseded.to);
            self.event(&BridgeEvent::Superseded { from, to });
        }
        self.shared.append(EntryKind::Partial, EntryFlags::default(), line);
    }

    /// A complete block of a message.
    fn message(&mut self, line: &[u8]) {
        let Some(session) = &mut self.session else { return };
        let Ok(message) = serde_json::from_slice::<Message>(line) else { return };
        // Sub-agents have transcripts of their own.
        if message.parent_tool_use_id.is_none() {
            session.awaited = Some(message.uuid);
            session.partials.settle();
        }
    }

    async fn init(&mut self, line: &[u8]) {
        let Ok(init) = serde_json::from_slice::<Init>(line) else { return };
        if self.conversation != Some(init.session_id) {
            self.ship_transcript().await;
            self.conversation = Some(init.session_id);
        }
        if let (Some(session), Some(warmth)) = (&mut self.session, &self.warmth)
            && session.transcript.as_ref().map(Transcript::conversation) != Some(init.session_id)
        {
            session.transcript = Some(Transcript::new(&warmth.transcripts, init.session_id, 0));
        }
        let is_failed = |server: &Server| matches!(server.status.as_str(), "failed" | "needs-auth");
        let failed =
            init.mcp_servers.into_iter().filter(is_failed).map(|server| (server.name, server.status)).collect();
        self.servers_failed(failed);
    }

    /// MCP servers that are not connected; written when that changes.
    pub(super) fn servers_failed(&mut self, servers: BTreeMap<String, String>) {
        if servers == self.failed_servers {
            return;
        }
        if self.session.is_some() && !servers.is_empty() {
            self.event(&BridgeEvent::McpServersFailed { servers: servers.clone() });
        }
        self.failed_servers = servers;
    }

    async fn result(&mut self, line: Bytes) {
        let Some(session) = &self.session else {
            self.results += 1;
            return;
        };
        let whose: ResultLine = serde_json::from_slice(&line).unwrap_or_default();
        let ends_turn = session.turns.running().is_some_and(|turn| whose.ends(turn.id));
        // What came with it leaves before the transcript is read.
        tokio::task::yield_now().await;
        let until = Instant::now() + TRANSCRIPT_WAIT;
        self.ship_transcript().await;
        let is_behind = |driver: &Self| {
            driver.session.as_ref().is_some_and(|session| session.awaited.is_some() && session.transcript.is_some())
        };
        while is_behind(self) && Instant::now() < until {
            sleep(TRANSCRIPT_LOOK).await;
            self.ship_transcript().await;
        }
        self.shared.met_often(BridgeBound::Transcript, u32::from(is_behind(self)));
        if !ends_turn {
            return self.log(EntryKind::Claude, EntryFlags::default(), line);
        }
        self.close_turn();
        self.log(EntryKind::Claude, EntryFlags::ENDS_TURN, line);
        self.watch_memory();
        self.publish();
    }

    /// Asks for a restart where Claude Code has grown over its bound.
    fn watch_memory(&mut self) {
        let (Some(claude), Some(warmth)) = (&mut self.claude, &self.warmth) else { return };
        claude.release();
        let resident = claude.resident_bytes();
        if resident > warmth.warm.memory_bound_bytes {
            report("claude_memory", &format!("Claude Code holds {resident} bytes; it is restarted"));
            if let Some(session) = &mut self.session {
                session.restart = Some(RestartReason::Memory);
            }
        }
    }

    /// Writes what Claude Code appended to its transcript into the log.
    pub(super) async fn ship_transcript(&mut self) {
        let Some(session) = &mut self.session else { return };
        let Some(transcript) = &mut session.transcript else { return };
        loop {
            match transcript.next_part() {
                Ok(Some(body)) => {
                    if session.awaited.as_ref().is_some_and(|uuid| memmem::find(&body, uuid.as_bytes()).is_some()) {
                        session.awaited = None;
                    }
                    self.shared.append(EntryKind::Transcript, EntryFlags::default(), body);
                    tokio::task::yield_now().await;
                }
                Ok(None) => return,
                Err(error) => return report("transcript_unreadable", &error.to_string()),
            }
        }
    }

    fn asked(&mut self, line: &[u8]) {
        let Ok(Asked { request_id, request }) = serde_json::from_slice::<Asked<'_>>(line) else {
            return self.invalid(format!("Claude Code asked something that cannot be read: {}", readable(line)));
        };
        if request.subtype != "can_use_tool" {
            return self.write(control::refuse(&request_id, &request.subtype));
        }
        let input = request.input.map_or_else(|| RawValue::NULL.to_owned(), RawValue::to_owned);
        let asked = self.session.as_mut().and_then(|session| session.turns.ask(&request_id, input.clone(), now_ms()));
        let Some((turn, expires_at_ms)) = asked else {
            self.shared.met(BridgeBound::OpenPermissions);
            return self.write(control::respond(&request_id, &control::deny(control::UNANSWERABLE_MESSAGE)));
        };
        let tool_name = request.tool_name.unwrap_or_default();
        self.event(&BridgeEvent::PermissionRequest { id: request_id, turn, tool_name, input, expires_at_ms });
        self.publish();
    }

    fn answered(&mut self, line: &[u8]) {
        let Ok(answered) = Answered::parse(line) else { return };
        if self.late_answer.as_ref() == Some(&answered.request_id) {
            self.late_answer = None;
            if let Ok(answer) = &answered.outcome {
                self.servers_answered(answer);
            }
        }
        if let Some((id, answer)) = &mut self.awaited_answer
            && *id == answered.request_id
        {
            *answer = Some(answered.outcome);
        }
    }

    fn cancelled(&mut self, line: &[u8]) {
        let Ok(Cancelled { request_id }) = serde_json::from_slice(line) else { return };
        if self.session.as_mut().is_some_and(|session| session.turns.take(&request_id).is_some()) {
            self.resolved(request_id, Resolution::Withdrawn);
        }
    }
}
