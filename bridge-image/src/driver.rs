//! The session: owns Claude Code, decides what becomes of the host's requests, and writes the log.
//!
//! One task. What takes several steps (a start, a change of options) is written as a sequence that goes on reading Claude Code
//! while it waits; requests wait meanwhile.

mod lifecycle;
mod output;
mod requests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ash_protocol::{
    EntryFlags, Epoch, Sequence,
    bound::BridgeBound,
    message::{BridgeEvent, Claimed, Progress, Resolution, RestartReason, TurnFailure, Warm, Warmed},
    options::SessionOptions,
};
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use crate::{
    claude::{
        control,
        partials::Partials,
        process::{self, Process},
        transcript::Transcript,
    },
    link::Command,
    options::InForce,
    shared::Shared,
    turn::Turns,
};

/// How long Claude Code may take to end an interrupted turn before it is killed.
const INTERRUPT: Duration = Duration::from_secs(10);

/// An interrupt that had no effect is repeated: one that comes before Claude Code has begun the turn is lost.
const REPEAT_INTERRUPT: Duration = Duration::from_millis(500);

/// What a warm process is made of.
struct Warmth {
    warm: Warm,
    /// What the host was told.
    answer: Option<Warmed>,
    /// HOME of Claude Code, for the environment file.
    home: PathBuf,
    /// The folder of its transcripts.
    transcripts: PathBuf,
    /// The file for `CLAUDE_ENV_FILE`; none where it could not be written.
    environment_file: Option<PathBuf>,
}

/// An interrupt that waits for its effect.
struct Interrupt {
    give_up: Instant,
    repeat: Instant,
}

/// The session that claimed the sandbox.
struct Session {
    id: Uuid,
    epoch: Epoch,
    how: Claimed,
    options: SessionOptions,
    turns: Turns,
    partials: Partials,
    transcript: Option<Transcript>,
    /// The uuid of the last complete message of the turn, until it was seen in the transcript.
    awaited: Option<String>,
    /// A conversation to go on with: one was given, or a turn has begun.
    has_conversation: bool,
    interrupt: Option<Interrupt>,
    /// Restart between turns.
    restart: Option<RestartReason>,
    /// Claude Code was stopped until the session is bound again.
    rests: bool,
}

/// The task that owns Claude Code.
pub(crate) struct Driver {
    shared: Rc<Shared>,
    commands: mpsc::Receiver<Command>,
    workspace: PathBuf,
    claude: Option<Process>,
    in_force: Option<InForce>,
    warmth: Option<Warmth>,
    session: Option<Session>,
    /// The conversation that Claude Code named last.
    conversation: Option<Uuid>,
    /// The conversation that the running process was started with.
    resumed: Option<Uuid>,
    /// MCP servers that failed, as last heard of, and whether the log has it.
    failed_servers: BTreeMap<String, String>,
    /// The number of the last control request.
    last_request: u64,
    /// The control request that is waited for, and its answer.
    awaited_answer: Option<(String, Option<Result<Value, String>>)>,
    /// The request for MCP servers whose answer takes longer than anybody waits for it.
    late_answer: Option<String>,
    /// Results that were printed while no session was there: rehearsals.
    results: u64,
    /// When Claude Code was started again after a death, lately.
    revivals: VecDeque<Instant>,
}

impl Driver {
    pub(crate) fn new(shared: Rc<Shared>, commands: mpsc::Receiver<Command>, workspace: PathBuf) -> Self {
        Self {
            shared,
            commands,
            workspace,
            claude: None,
            in_force: None,
            warmth: None,
            session: None,
            conversation: None,
            resumed: None,
            failed_servers: BTreeMap::new(),
            last_request: 0,
            awaited_answer: None,
            late_answer: None,
            results: 0,
            revivals: VecDeque::new(),
        }
    }

    /// Serves until the link has ended.
    pub(crate) async fn run(&mut self) {
        loop {
            self.drain().await;
            self.restart_between_turns().await;
            let stalled = self.shared.is_stalled();
            let deadline = self.next_deadline();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                progress = progress(&mut self.claude, !stalled) => if progress == process::Progress::Ended {
                    self.ended().await;
                },
                () = self.shared.room.notified(), if stalled => {}
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.deadline_passed().await;
                }
            }
        }
    }

    /// Takes the lines that were read, as long as the log has room.
    async fn drain(&mut self) {
        while !self.shared.is_stalled() {
            let Some(piece) = self.claude.as_mut().and_then(Process::next_piece) else { return };
            self.piece(piece).await;
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let session = self.session.as_ref()?;
        let interrupt = session.interrupt.as_ref().map(|interrupt| interrupt.repeat.min(interrupt.give_up));
        let expiry = session.turns.next_expiry_ms().map(|at| {
            let left = u64::try_from(at.saturating_sub(now_ms())).unwrap_or(0);
            // A far one is looked at again after a day.
            Instant::now() + Duration::from_millis(left.min(86_400_000))
        });
        interrupt.into_iter().chain(expiry).min()
    }

    async fn deadline_passed(&mut self) {
        let Some(session) = &mut self.session else { return };
        for id in session.turns.expire(now_ms()) {
            self.write(control::respond(&id, &control::deny(control::EXPIRED_MESSAGE)));
            self.resolved(id, Resolution::Expired);
        }
        let now = Instant::now();
        let Some(interrupt) = self.session.as_mut().and_then(|session| session.interrupt.as_mut()) else { return };
        if interrupt.give_up <= now {
            self.shared.met(BridgeBound::Interrupt);
            self.kill().await;
            self.fail_turn(
                TurnFailure::ClaudeDied,
                format!("Claude Code did not end the turn within {} s after an interrupt", INTERRUPT.as_secs()),
            )
            .await;
            self.revive().await;
        } else if interrupt.repeat <= now {
            interrupt.repeat = now + REPEAT_INTERRUPT;
            self.shared.met(BridgeBound::RepeatInterrupt);
            self.send_interrupt();
        }
    }

    /// Tells the link how far the session got.
    fn publish(&self) {
        let progress = match (&self.session, &self.warmth) {
            (Some(session), _) if session.rests => {
                Progress::Resting { session: session.id, epoch: session.epoch, last: Sequence::START }
            }
            (Some(session), _) => Progress::Bound {
                session: session.id,
                epoch: session.epoch,
                last: Sequence::START,
                turn: session.turns.running().cloned(),
                permissions: session.turns.open_permissions(),
            },
            (None, Some(warmth)) if warmth.answer.is_some() => Progress::Warm,
            (None, _) => Progress::New,
        };
        self.shared.set_progress(progress);
    }

    fn event(&self, event: &BridgeEvent) {
        self.shared.append_event(event, EntryFlags::default());
    }

    fn resolved(&self, id: String, resolution: Resolution) {
        self.event(&BridgeEvent::PermissionResolved { id, resolution });
        self.publish();
    }

    /// Closes the turn in progress: nothing waits for an answer any more. The entry that ends it follows.
    fn close_turn(&mut self) -> Option<Uuid> {
        let session = self.session.as_mut()?;
        (session.interrupt, session.awaited) = (None, None);
        session.partials.settle();
        let withdrawn = session.turns.withdraw_all();
        self.shared.met_often(BridgeBound::FinishedTurns, u32::from(session.turns.forgets()));
        let ended = session.turns.end();
        for id in withdrawn {
            self.event(&BridgeEvent::PermissionResolved { id, resolution: Resolution::Withdrawn });
        }
        self.count_met();
        ended
    }

    /// Tells the host which bounds the turn met.
    fn count_met(&mut self) {
        if let Some(claude) = &mut self.claude {
            let met = claude.take_met();
            self.shared.met_often(BridgeBound::ReadPace, met.reads_put_off);
            self.shared.met_often(BridgeBound::ErrorBytes, met.errors_dropped);
        }
        self.shared.tell_bounds();
    }

    /// Ends the turn in progress without a result.
    async fn fail_turn(&mut self, category: TurnFailure, message: String) {
        self.ship_transcript().await;
        if let Some(turn) = self.close_turn() {
            let failed = BridgeEvent::TurnFailed { turn, category, message };
            self.shared.append_event(&failed, EntryFlags::ENDS_TURN);
        }
        self.publish();
    }

    fn write(&mut self, line: bytes::Bytes) {
        if let Some(claude) = &mut self.claude {
            claude.write(line);
        }
    }
}

/// What Claude Code does next; never, where there is none.
async fn progress(claude: &mut Option<Process>, read: bool) -> process::Progress {
    match claude {
        Some(claude) => claude.progress(read).await,
        None => std::future::pending().await,
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
