//! Starts Claude Code, rehearses it, changes its options, and starts it again when it has ended.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ash_protocol::{
    bound::BridgeBound,
    message::{BridgeEvent, Refusal, RefusalCategory, RestartReason, TurnFailure, Warm},
    options::{SessionOptions, TurnOptions},
};
use serde_json::{Value, value::RawValue};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout, timeout_at},
};
use uuid::Uuid;

use super::{Driver, Warmth};
use crate::{
    claude::{control, process, process::Process, transcript},
    descendants::WaitedFor,
    environment, freezer,
    options::{InForce, Launch, Plan, Step, Wanted, plan},
    report::report,
    shared::refusal,
};

/// How long Claude Code may take to answer `initialize`.
const INITIALIZE: Duration = Duration::from_mins(1);

/// How long it may take to answer another control request. An unknown model's name is put to the model's API.
const CONTROL: Duration = Duration::from_secs(30);

/// How long MCP servers may take to connect before Claude Code goes on without waiting for them. Most take a tenth of a second.
const CONNECT_SERVERS: Duration = Duration::from_secs(10);

/// How long `--version` may take.
const VERSION: Duration = Duration::from_secs(20);

/// Characters of the version that are passed on.
const MAX_VERSION_CHARS: usize = 100;

/// How long one step of a rehearsal may take before the process goes without.
const REHEARSE: Duration = Duration::from_secs(15);

/// Rehearsed messages, each with its `/clear`. Measured: 205 ms to the first partial without, 89 after one, 64 after three.
const REHEARSALS: usize = 3;

/// What a rehearsed message says. The gateway answers it; no model sees it.
const REHEARSED_MESSAGE: &str = "\"ash rehearsal\"";

/// Starts after a death within [`REVIVAL_WINDOW`]; after that the next turn tries again.
const MAX_REVIVALS: usize = 3;

/// The window for [`MAX_REVIVALS`].
const REVIVAL_WINDOW: Duration = Duration::from_mins(1);

/// The pause before the second start after a death; doubled for the third.
const REVIVAL_PAUSE: Duration = Duration::from_millis(250);

/// A start with these options and this conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) resume: Option<Uuid>,
}

/// Why a change did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    /// Claude Code refused it.
    #[error("Claude Code refuses {options}: {message}")]
    Refused { options: &'static str, message: String },
    /// Claude Code does not start, or ended.
    #[error("{0}")]
    Failed(String),
}

impl ChangeError {
    pub(super) fn into_refusal(self) -> Refusal {
        match &self {
            Self::Refused { .. } => refusal(RefusalCategory::OptionRefused, self.to_string()),
            Self::Failed(message) => refusal(RefusalCategory::ClaudeFailed, message),
        }
    }

    pub(super) fn category(&self) -> TurnFailure {
        match self {
            Self::Refused { .. } => TurnFailure::OptionRefused,
            Self::Failed(_) => TurnFailure::ClaudeFailed,
        }
    }
}

impl Driver {
    /// Every option of a turn, with the MCP servers that follow from them.
    pub(super) fn wanted(&self, session: &SessionOptions, turn: &TurnOptions) -> Wanted {
        let read = |path: &str| std::fs::read_to_string(self.workspace.join(path)).ok();
        let none = (serde_json::Map::new(), BTreeMap::new());
        let given = self.in_force.as_ref().map_or(&none.0, InForce::mcp_servers);
        let inherited = self.warmth.as_ref().map_or(&none.1, |warmth| &warmth.warm.environment);
        let needs_folder = !session.environment.is_empty() || !given.is_empty();
        let servers = environment::mcp_servers(
            needs_folder.then(|| read(".mcp.json")).flatten().as_deref(),
            needs_folder.then(|| read(".claude/settings.json")).flatten().as_deref(),
            session.mcp_servers.as_ref(),
            &session.environment,
            inherited,
            given,
        );
        Wanted::new(session, turn, servers)
    }

    /// Looks at the program and prepares what a process needs on disk; returns its version.
    pub(super) async fn prepare(&mut self, warm: &Warm) -> Result<String, Refusal> {
        let version = version(warm, &self.workspace).await.map_err(|message| {
            let message = format!("{} --version: {message}; install Claude Code in the sandbox", warm.program);
            refusal(RefusalCategory::ClaudeFailed, message)
        })?;
        let configuration = transcript::configuration(&warm.environment);
        let home = PathBuf::from(warm.environment.get("HOME").map_or("/", String::as_str));
        let io_refusal = |error: io::Error| refusal(RefusalCategory::Io, format!("{}: {error}", home.display()));
        let environment_file = environment::prepare(&home).map_err(io_refusal)?;
        // Claude Code names the folder after the directory without links in it.
        let directory = std::fs::canonicalize(&self.workspace).unwrap_or_else(|_| self.workspace.clone());
        let transcripts = transcript::folder(&configuration, &directory);
        self.shared.configuration.replace(configuration);
        self.warmth = Some(Warmth {
            warm: warm.clone(),
            answer: None,
            home,
            transcripts,
            environment_file: Some(environment_file),
        });
        Ok(version)
    }

    /// The id for the next control request.
    pub(super) fn request_id(&mut self) -> String {
        self.last_request += 1;
        format!("ash-{}", self.last_request)
    }

    /// The conversation to resume, where there is something to resume.
    pub(super) fn resumable(&self) -> Option<Uuid> {
        let session = self.session.as_ref().filter(|session| session.has_conversation)?;
        let transcript = session.transcript.as_ref()?;
        transcript::is_resumable(transcript.path()).then(|| transcript.conversation())
    }

    /// Starts a process and brings it to the options that are wanted.
    pub(super) async fn start(&mut self, start: &Start<'_>) -> Result<(), ChangeError> {
        let Some(warmth) = &self.warmth else { return Err(ChangeError::Failed("it was not warmed".to_owned())) };
        let launch = Launch::new(start.wanted, start.resume);
        let mut environment = warmth.warm.environment.clone();
        environment.extend(launch.environment);
        if let Some(file) = &warmth.environment_file {
            environment.insert("CLAUDE_ENV_FILE".to_owned(), file.to_string_lossy().into_owned());
        }
        let claude = Process::start(&process::Start {
            program: PathBuf::from(&warmth.warm.program),
            arguments: launch.arguments,
            environment,
            directory: self.workspace.clone(),
        })
        .map_err(|error| ChangeError::Failed(error.to_string()))?;
        self.claude = Some(claude);
        self.resumed = start.resume;
        self.conversation = start.resume;
        (self.in_force, self.late_answer) = (None, None);
        self.shared.claude_started();
        if let Err(error) = self.control(&launch.initialize, INITIALIZE).await {
            self.kill().await;
            return Err(match error {
                ControlError::Refused(message) => {
                    ChangeError::Failed(format!("Claude Code refuses to initialize: {message}"))
                }
                ControlError::TimedOut(_, message) | ControlError::Ended(message) => ChangeError::Failed(message),
            });
        }
        let in_force = InForce::started(start.wanted, start.resume.is_some());
        let steps = plan(&in_force, start.wanted);
        self.in_force = Some(in_force);
        match steps {
            Plan::Live(steps) => self.carry_out(steps, start.wanted).await,
            // A process that was just started has spent nothing and was started with all that is fixed.
            Plan::Restart => Err(ChangeError::Failed("the options cannot be reached by a start".to_owned())),
        }
    }

    /// Ends the process in peace and starts another one.
    pub(super) async fn restart(&mut self, start: &Start<'_>) -> Result<(), ChangeError> {
        self.stop().await;
        self.start(start).await
    }

    /// Ends the process in peace, or kills it where it does not end; then its conversation is in the log to its end.
    pub(super) async fn stop(&mut self) {
        if let Some(claude) = &mut self.claude {
            claude.close_input();
            let _ = self.pump(Process::close_time(), |_| false).await;
            self.shared.met_often(BridgeBound::Close, u32::from(self.claude.is_some()));
            self.kill().await;
        }
        self.ship_transcript().await;
    }

    /// Writes that it was started again.
    pub(super) fn restarted(&self, reason: RestartReason) {
        self.event(&BridgeEvent::ClaudeRestarted { reason });
    }

    /// Kills the process with all that it started.
    pub(super) async fn kill(&mut self) {
        if let Some(claude) = self.claude.take() {
            claude.kill().await;
        }
        self.in_force = None;
    }

    /// Carries steps out, one after the other. What was done before a refusal stays done and is known to be.
    pub(super) async fn carry_out(&mut self, steps: Vec<Step>, wanted: &Wanted) -> Result<(), ChangeError> {
        for step in steps {
            if let (Step::Environment(variables), Some(warmth)) = (&step, &self.warmth) {
                environment::write(&warmth.home, variables)
                    .map_err(|error| ChangeError::Refused { options: step.options(), message: error.to_string() })?;
            }
            if let Some(request) = step.request() {
                let is_servers = matches!(step, Step::McpServers(_));
                match self.control(&request, if is_servers { CONNECT_SERVERS } else { CONTROL }).await {
                    Ok(answer) if is_servers => self.servers_answered(&answer),
                    Ok(_) => {}
                    // The rest of the set is in force; what fails later is said in the late answer.
                    Err(ControlError::TimedOut(id, _)) if is_servers => self.late_answer = Some(id),
                    Err(ControlError::Refused(message)) => {
                        return Err(ChangeError::Refused { options: step.options(), message });
                    }
                    Err(ControlError::TimedOut(_, message) | ControlError::Ended(message)) => {
                        return Err(ChangeError::Failed(message));
                    }
                }
            }
            if let Some(in_force) = &mut self.in_force {
                in_force.carried_out(&step, wanted);
            }
        }
        Ok(())
    }

    /// What became of the MCP servers that were given to Claude Code.
    pub(super) fn servers_answered(&mut self, answer: &Value) {
        if let Some(errors) = answer.get("errors").and_then(Value::as_object) {
            let failed = errors.keys().map(|name| (name.clone(), "failed".to_owned())).collect();
            self.servers_failed(failed);
        }
    }

    /// Sends a control request and waits for its answer.
    async fn control(&mut self, request: &Value, limit: Duration) -> Result<Value, ControlError> {
        let id = self.request_id();
        self.write(control::request(&id, request));
        self.awaited_answer = Some((id, None));
        let pumped = self.pump(limit, |driver| matches!(&driver.awaited_answer, Some((_, Some(_))))).await;
        match (self.awaited_answer.take(), pumped) {
            (Some((_, Some(answer))), _) => answer.map_err(ControlError::Refused),
            (Some((id, None)), Err(message)) if self.claude.is_some() => {
                let of_servers = limit == CONNECT_SERVERS;
                self.shared.met(if of_servers { BridgeBound::ConnectServers } else { BridgeBound::Control });
                Err(ControlError::TimedOut(id, message))
            }
            (_, pumped) => Err(ControlError::Ended(pumped.err().unwrap_or_default())),
        }
    }

    /// Reads Claude Code until something is true, it ends, or the time is up; the error is for a person.
    ///
    /// Reads beyond the log's bound, too: what is printed between turns is little.
    pub(super) async fn pump(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        let mut until = Instant::now() + limit;
        loop {
            while let Some(piece) = self.claude.as_mut().and_then(Process::next_piece) {
                self.piece(piece).await;
                if done(self) {
                    return Ok(());
                }
            }
            let Some(claude) = &mut self.claude else { return Err("Claude Code does not run".to_owned()) };
            match timeout_at(until, claude.progress(true)).await {
                Ok(process::Progress::Output) => {}
                Ok(process::Progress::Ended) => return Err(self.bury().await),
                Err(_) => {
                    if let Some(later) = freezer::postponed(until, limit) {
                        until = later;
                        continue;
                    }
                    let last = claude.error_text();
                    let last = if last.is_empty() { last } else { format!("; it said last: {last}") };
                    return Err(format!("Claude Code did not answer within {} s{last}", limit.as_secs()));
                }
            }
        }
    }

    /// Takes the last of what an ended process printed; returns how it ended, for a person.
    async fn bury(&mut self) -> String {
        while let Some(piece) = self.claude.as_mut().and_then(Process::next_piece) {
            self.piece(piece).await;
        }
        if let Some(piece) = self.claude.as_mut().and_then(Process::last_piece) {
            self.piece(piece).await;
        }
        let obituary = self.claude.as_ref().map(Process::obituary).unwrap_or_default();
        self.kill().await;
        format!("Claude Code ended ({obituary})")
    }

    /// The process ended by itself.
    pub(super) async fn ended(&mut self) {
        let message = self.bury().await;
        report("claude_ended", &message);
        if self.session.as_ref().is_some_and(|session| session.turns.running().is_some()) {
            self.fail_turn(TurnFailure::ClaudeDied, message).await;
        } else {
            self.ship_transcript().await;
        }
        self.revive().await;
    }

    /// Starts a process that died again, within bounds; after them the next turn does.
    pub(super) async fn revive(&mut self) {
        let Some(session) = self.session.as_ref().filter(|session| !session.rests) else { return };
        let options = session.options.clone();
        let mut pause = REVIVAL_PAUSE;
        while take_revival(&mut self.revivals, Instant::now()) {
            let wanted = self.wanted(&options, &TurnOptions::default());
            let resume = self.resumable();
            match self.start(&Start { wanted: &wanted, resume }).await {
                Ok(()) => return self.restarted(RestartReason::Died),
                Err(error) => report("claude_start_failed", &error.to_string()),
            }
            sleep(pause).await;
            pause *= 2;
        }
        self.shared.met(BridgeBound::Revivals);
        self.kill().await;
    }

    /// Restarts a process that grew over its bound, when no turn runs.
    pub(super) async fn restart_between_turns(&mut self) {
        let Some(session) = &mut self.session else { return };
        if session.turns.running().is_some() {
            return;
        }
        let Some(reason) = session.restart.take() else { return };
        let options = session.options.clone();
        let wanted = self.wanted(&options, &TurnOptions::default());
        let resume = self.resumable();
        match self.restart(&Start { wanted: &wanted, resume }).await {
            Ok(()) => self.restarted(reason),
            Err(error) => report("claude_start_failed", &error.to_string()),
        }
    }

    /// Runs messages that nobody wrote, so that the first real one is fast. Says whether it came to its end; a process that
    /// died over it is an error.
    pub(super) async fn rehearse(&mut self) -> Result<bool, ChangeError> {
        let Ok(message) = serde_json::from_str::<Box<RawValue>>(REHEARSED_MESSAGE) else { return Ok(false) };
        let Ok(clear) = serde_json::from_str::<Box<RawValue>>("\"/clear\"") else { return Ok(false) };
        for _ in 0..REHEARSALS {
            for content in [&message, &clear] {
                let before = self.results;
                self.write(control::user(content, Uuid::new_v4()));
                let rehearsed = self.conversation;
                if let Err(error) = self.pump(REHEARSE, |driver| driver.results > before).await {
                    report("rehearsal_failed", &error);
                    self.shared.met(BridgeBound::Rehearse);
                    return self.start_after_rehearsal(error).await;
                }
                if rehearsed != self.conversation {
                    self.forget(rehearsed);
                }
            }
        }
        Ok(true)
    }

    /// A rehearsal that did not come to its end may end later, in a session: the process is replaced.
    async fn start_after_rehearsal(&mut self, _reason: String) -> Result<bool, ChangeError> {
        self.kill().await;
        let Some(options) = self.warmth.as_ref().map(|warmth| warmth.warm.options.clone()) else { return Ok(false) };
        let wanted = self.wanted(&options, &TurnOptions::default());
        self.start(&Start { wanted: &wanted, resume: None }).await?;
        Ok(false)
    }

    /// Removes the transcript of a rehearsal.
    fn forget(&self, conversation: Option<Uuid>) {
        if let (Some(conversation), Some(warmth)) = (conversation, &self.warmth) {
            // Claude Code may not have written it.
            let _ = std::fs::remove_file(transcript::file(&warmth.transcripts, conversation));
        }
    }
}

/// Why a control request has no answer.
enum ControlError {
    /// Claude Code refused it.
    Refused(String),
    /// It did not answer the request of this id in time.
    TimedOut(String, String),
    /// It ended.
    Ended(String),
}

/// Whether one more start after a death is within the bound; counts it.
fn take_revival(revivals: &mut VecDeque<Instant>, now: Instant) -> bool {
    while revivals.front().is_some_and(|at| now.duration_since(*at) > REVIVAL_WINDOW) {
        revivals.pop_front();
    }
    let within = revivals.len() < MAX_REVIVALS;
    if within {
        revivals.push_back(now);
    }
    within
}

/// What `--version` prints.
async fn version(warm: &Warm, directory: &Path) -> Result<String, String> {
    let child = Command::new(&warm.program)
        .arg("--version")
        .env_clear()
        .envs(&warm.environment)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let _waited_for = child.id().map(WaitedFor::new);
    child.id().into_iter().for_each(freezer::started);
    let output = match timeout(VERSION, child.wait_with_output()).await {
        Ok(output) => output.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer within {} s", VERSION.as_secs())),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().chars().take(MAX_VERSION_CHARS).collect::<String>();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}; it said: {}", output.status, text(&output.stderr)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::time::Instant;

    use super::{MAX_REVIVALS, REVIVAL_WINDOW, take_revival};

    #[test]
    fn revivals_are_bounded_within_their_window() {
        let (mut revivals, start) = (VecDeque::new(), Instant::now());
        for _ in 0..MAX_REVIVALS {
            assert!(take_revival(&mut revivals, start));
        }
        assert!(!take_revival(&mut revivals, start + REVIVAL_WINDOW / 2));
        assert!(take_revival(&mut revivals, start + REVIVAL_WINDOW * 2));
    }
}
