//! The runner's port, in process.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use ash_core::{
    agent::AgentVersion,
    fleet::{Held, ModelKey},
    id::{SandboxId, SessionId},
    meter::LogFull,
    opening::{Opening, OpeningReason},
    ports::{EntryReader, Load, NewMessage, Runner, RunnerError, RunnerStore, Sent},
    session::{Closing, PausedReason, Session, SessionEvent, SessionState},
    sse::Position,
};
use ash_gateway::Gateway;
use ash_protocol::{
    Sequence,
    message::{Claimed, Decision, RefusalCategory, Request},
    options::SessionOptions,
};
use async_trait::async_trait;
use futures::future::join_all;
use prometheus_client::registry::Registry;
use serde::de::IgnoredAny;
use tokio::{
    net::TcpListener,
    time::{Duration, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::Backend,
    bridge::RequestError,
    commit, freezer,
    hub::{PermissionGate, Place, Reservation, Reserve},
    lifecycle::{WAKE_RESUMED, close, open_without_sandbox, rest, save_and_close, wake},
    limits::{BRIDGE_ANSWER, BRIDGE_AWAY, SANDBOX_END},
    metrics::Metrics,
    options::{bounded, effective},
    pods,
    pool::{self, Room},
    reader::HubReader,
    recovery,
    sandbox::{EndReason, Sandbox},
    shared::{RunnerConfig, Shared},
    turns::{self, NoSandbox},
};

/// A runner in this process.
pub struct LocalRunner {
    shared: Arc<Shared>,
}

impl LocalRunner {
    /// Starts the runner's tasks and finds the sandboxes of the server before this one. Returns when every session that had a
    /// sandbox is known; their bridges reconnect behind it.
    pub async fn start(
        config: RunnerConfig,
        backend: Backend,
        gateway: Gateway,
        store: Arc<dyn RunnerStore>,
        registry: &mut Registry,
    ) -> Result<Self, RunnerError> {
        let metrics = Arc::new(Metrics::default());
        metrics.register(registry);
        config.serves_until.into_iter().for_each(|until| gateway.serve_until(until));
        let shared = Arc::new(Shared::new(config, backend, gateway, store, metrics));
        shared.snapshots.register(registry);
        tokio::spawn(commit::run(Arc::clone(&shared.queue), Arc::clone(&shared.store), Arc::clone(&shared.metrics)));
        recovery::recover(&shared).await?;
        tokio::spawn(pool::sweep(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Lets running turns end for at most so long, then puts every session to sleep and ends all sandboxes. Turns that still
    /// run are interrupted, and reported so. With `handover` the sandboxes stay for the next server.
    pub async fn shut_down(&self, within: Duration, handover: bool) {
        // Pods dial whoever comes next.
        let handover = handover || self.shared.backend.pods().is_some();
        let hubs: Vec<_> = self.shared.sandboxes().iter().filter_map(|sandbox| sandbox.hub()).collect();
        if !handover {
            let _ = timeout(within, join_all(hubs.iter().map(|hub| hub.wait_idle()))).await;
            let running = hubs.iter().filter(|hub| hub.turn().is_some()).count();
            self.shared.metrics.turns_stopped.inc_by(running as u64);
        }
        self.shared.closing.cancel();
        self.shared.places.close();
        if handover {
            for hub in &hubs {
                self.shared.queue.push(hub, crate::hub::Urgency::Now);
            }
            let _ = timeout(crate::limits::FLUSH_WAIT, join_all(hubs.iter().map(|hub| hub.wait_committed()))).await;
            self.shared.silent.cancel();
            return;
        }
        let sandboxes = self.shared.sandboxes();
        join_all(sandboxes.iter().map(|sandbox| async {
            if let Some(hub) = sandbox.hub() {
                hub.begin_leaving(sandbox);
            }
            save_and_close(&self.shared, sandbox, EndReason::Asleep(PausedReason::Drained)).await;
        }))
        .await;
        // Only now: how an interrupted turn ended is for its readers too.
        self.shared.silent.cancel();
    }

    /// Another life of the runner serves its sessions: ends what is left here, which nobody can want to keep, and writes nothing.
    /// Pods stay, and dial that one.
    pub async fn abandon(&self) {
        self.freeze();
        self.shared.closing.cancel();
        self.shared.places.close();
        if self.shared.backend.pods().is_none() {
            let sandboxes = self.shared.sandboxes();
            let kills = sandboxes.iter().map(|sandbox| async {
                if let Err(error) = sandbox.enclosure.kill().await {
                    self.shared.metrics.kills_failed.inc();
                    tracing::error!(sandbox = %sandbox.id, %error, "a sandbox could not be killed");
                }
            });
            join_all(kills).await;
        }
        self.shared.silent.cancel();
    }

    /// It may serve until then.
    pub fn serve_until(&self, until: Instant) {
        self.shared.gateway.serve_until(until);
        self.shared.standing.set(until);
    }

    /// Whether it may serve now.
    pub fn serves(&self) -> bool {
        self.shared.standing.serves()
    }

    /// Serves nobody any more: no reader, no call of the model, no tunnel; the sandboxes are stopped.
    pub fn freeze(&self) {
        freezer::freeze(&self.shared);
    }

    /// Goes on after [`freeze`](Self::freeze), until then.
    pub fn thaw(&self, until: Instant) {
        freezer::thaw(&self.shared, until);
    }

    /// Whether it stops, and takes nothing new.
    pub fn is_closing(&self) -> bool {
        self.shared.closing.is_cancelled()
    }

    /// Takes the connections of pods' bridges, until `stop`. Returns at once where sandboxes are no pods.
    pub async fn serve_bridges(&self, listener: TcpListener, stop: CancellationToken) {
        if let Some(pods) = self.shared.backend.pods() {
            pods::serve_bridges(Arc::clone(&self.shared), Arc::clone(pods), listener, stop).await;
        }
    }

    /// Gives a session the warm pod that a coordinator claimed for it.
    ///
    /// # Errors
    /// [`RunnerError::Unreachable`] where that is not here, or over: another one is to be claimed.
    pub async fn claim(&self, session: Session, sandbox: SandboxId) -> Result<Session, RunnerError> {
        pods::claim(&self.shared, session, sandbox).await
    }

    /// Asks a session's bridge for something that it does at once. One that does not answer is not to be relied on any more: its
    /// sandbox is ended.
    async fn ask(&self, sandbox: &Sandbox, request: &Request) -> Result<(), RequestError> {
        let answer = sandbox.bridge.call_within::<IgnoredAny>(request, BRIDGE_ANSWER).await;
        if let Err(error @ RequestError::Silent(_)) = &answer {
            self.shared.metrics.bridges_silent.inc();
            sandbox.end_with(EndReason::Failed(error.to_string()));
        }
        answer.map(|_| ())
    }

    /// The sessions that have a sandbox here.
    pub(crate) fn held(&self) -> Vec<Held> {
        let sandboxes = self.shared.sandboxes();
        let held = |sandbox: &Arc<Sandbox>| Some(Held { session: sandbox.session()?, sandbox: sandbox.id });
        sandboxes.iter().filter_map(held).collect()
    }

    /// Ends the sandbox of a session that is another's now: nothing that it writes can be kept.
    pub(crate) fn disown(&self, session: SessionId) {
        let Some(hub) = self.shared.existing_hub(session) else { return };
        tracing::warn!(%session, "the session is served elsewhere now: its sandbox here ends");
        // At once: it must not go on for a moment while it is being ended.
        for sandbox in self.shared.sandboxes().iter().filter(|sandbox| sandbox.session() == Some(session)) {
            self.shared.gateway.remove(ash_gateway::SandboxId(sandbox.id.0));
        }
        if let Some(sandbox) = hub.fail("the session is served by another runner now".to_owned()) {
            sandbox.abandon();
        }
    }

    /// Keeps a session's key of the model API, and gives it to its gateway where that has another.
    pub fn keep_model_key(&self, session: SessionId, key: Option<&ModelKey>) {
        if !self.shared.config.model_keys.set(session, key) {
            return;
        }
        let Some(hub) = self.shared.existing_hub(session) else { return };
        let Some(sandbox) = hub.live() else { return };
        let binding = crate::lifecycle::binding(&self.shared, &sandbox, &hub.session());
        if let Err(error) = self.shared.gateway.rebind(ash_gateway::SandboxId(sandbox.id.0), binding) {
            tracing::warn!(%session, %error, "the gateway did not take a session's key of the model API");
        }
    }

    /// Takes a session off its sandbox for a person. One whose files would go with its pod rests there, until it is ended.
    async fn put_aside(&self, sandbox: &Arc<Sandbox>, hub: &Arc<crate::hub::Hub>, closing: Closing) {
        let reason = EndReason::Closed(closing);
        if self.shared.backend.pods().is_some() && closing != Closing::End {
            rest(&self.shared, sandbox, hub, reason).await;
        } else {
            save_and_close(&self.shared, sandbox, reason).await;
        }
    }

    /// Starts a sandbox for a session behind the answer, where there is room; without, its next message finds it one. Pods come
    /// by themselves.
    fn start_behind(&self, hub: Arc<crate::hub::Hub>, agent: AgentVersion) {
        if self.shared.backend.pods().is_some() {
            return hub.set_place(Place::None);
        }
        let Ok(place) = Arc::clone(&self.shared.places).try_acquire_owned() else {
            hub.set_place(Place::None);
            return;
        };
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            if let Err(error) = turns::start_for(&shared, &hub, &agent, Room::Place(place)).await {
                turns::give_up(&shared, &hub, NoSandbox::Failed(error)).await;
            }
        });
    }

    /// Opens the epoch of a person's wish for a session without a sandbox.
    async fn open_without_sandbox(
        &self,
        hub: &Arc<crate::hub::Hub>,
        state: SessionState,
        reason: OpeningReason,
    ) -> Result<Session, RunnerError> {
        let opening = Opening {
            reason,
            last_committed: hub.session().last,
            interrupted: hub.turn().map(|turn| turn.id.0),
            message: None,
            recovered: None,
            sandbox: None,
        };
        let opened = open_without_sandbox(&self.shared, hub, state, None, opening).await;
        opened.ok_or_else(|| {
            RunnerError::Internal(format!("the session cannot become {}: its log cannot be written", state.name()))
        })
    }

    fn reader(&self, hub: Arc<crate::hub::Hub>, after: Sequence) -> Box<dyn EntryReader> {
        let (store, standing) = (Arc::clone(&self.shared.store), Arc::clone(&self.shared.standing));
        Box::new(HubReader::new(hub, store, after, self.shared.silent.clone(), standing))
    }
}

#[async_trait]
impl Runner for LocalRunner {
    fn prepare(&self, agent: AgentVersion) {
        pool::prepare(&self.shared, &agent);
    }

    fn forget(&self, agent: &AgentVersion) {
        pool::forget(&self.shared, agent);
    }

    async fn place(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        let hub = self.shared.hub(&session).await?;
        // A pod comes by itself, or is claimed by name.
        if self.shared.backend.pods().is_some() || !hub.begin_starting() {
            return Ok(hub.session());
        }
        if let Some(sandbox) = pool::claim_warm(&self.shared, &agent, &hub) {
            self.shared.pre_warm_hits.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = turns::bind_or_end(&self.shared, &sandbox, &hub, Claimed::Live).await {
                // The session is durable: its first message finds it another sandbox.
                tracing::warn!(session = %hub.session, %error, "a warm sandbox could not be given to a session");
                hub.set_place(Place::None);
            }
            return Ok(hub.session());
        }
        self.start_behind(hub, agent);
        Ok(session)
    }

    async fn send(&self, session: Session, agent: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError> {
        if self.shared.closing.is_cancelled() {
            return Err(RunnerError::ShuttingDown);
        }
        let hub = self.shared.hub(&session).await?;
        hub.wait_recovered().await;
        let row = hub.session();
        row.state.after(SessionEvent::Message).map_err(|impossible| RunnerError::State(impossible.0))?;
        // Only an id that was made from an idempotency key can name a turn of the past.
        if message.turn.0.get_version_num() == 5
            && let Some(turn) = self.shared.store.turn(row.id, message.turn).await?
        {
            let after = Sequence(turn.first.0.saturating_sub(1));
            return Ok(Sent { joined: true, reader: self.reader(hub, after) });
        }
        let after = match hub.reserve_turn(message.turn) {
            Reserve::Joined(after) => return Ok(Sent { joined: true, reader: self.reader(hub, after) }),
            Reserve::Busy => return Err(RunnerError::TurnInProgress),
            Reserve::Impossible(state) => return Err(RunnerError::State(state)),
            Reserve::Full(LogFull { quota_bytes }) => return Err(RunnerError::LogFull { quota_bytes }),
            Reserve::Reserved => hub.last(),
        };
        let reader = self.reader(Arc::clone(&hub), after);
        // A message that is refused, or given up while it waits for a place, takes its reservation back.
        let reservation = Reservation::new(hub, message.turn);
        let message = NewMessage { options: bounded(&agent.settings, message.options), ..message };
        turns::begin(&self.shared, agent, message, reservation).await?;
        Ok(Sent { joined: false, reader })
    }

    async fn read(&self, session: &Session, after: Position) -> Result<Box<dyn EntryReader>, RunnerError> {
        Ok(self.reader(self.shared.hub(session).await?, after.entries_after()))
    }

    async fn interrupt(&self, session: SessionId) -> Result<bool, RunnerError> {
        let Some(hub) = self.shared.existing_hub(session) else { return Ok(false) };
        hub.wait_recovered().await;
        let Some(turn) = hub.turn() else { return Ok(false) };
        // A turn whose sandbox is still being found is interrupted as soon as it has begun.
        if !hub.wait_begun(turn.id).await {
            return Ok(false);
        }
        let Some(sandbox) = hub.live() else { return Ok(false) };
        match self.ask(&sandbox, &Request::Interrupt { turn: Some(turn.id.0) }).await {
            Ok(()) | Err(RequestError::Gone) => Ok(true),
            Err(error) => Err(RunnerError::Internal(error.to_string())),
        }
    }

    async fn answer(&self, session: SessionId, permission: &str, decision: Decision) -> Result<(), RunnerError> {
        let hub = self.shared.existing_hub(session).ok_or(RunnerError::UnknownPermission)?;
        hub.wait_recovered().await;
        match hub.close_permission(permission) {
            PermissionGate::Unknown => return Err(RunnerError::UnknownPermission),
            PermissionGate::Closed => return Err(RunnerError::PermissionClosed),
            PermissionGate::First => {}
        }
        // A session that is off its sandbox has no request that anything could answer.
        let sandbox = hub.live().ok_or(RunnerError::PermissionClosed)?;
        let request = Request::Answer { permission: permission.to_owned(), decision };
        match self.ask(&sandbox, &request).await {
            Ok(()) => Ok(()),
            Err(RequestError::Refused(refusal)) if refusal.category == RefusalCategory::UnknownPermission => {
                Err(RunnerError::PermissionClosed)
            }
            Err(error) => {
                hub.reopen_permission(permission);
                Err(RunnerError::Internal(error.to_string()))
            }
        }
    }

    async fn configure(&self, session: SessionId, options: SessionOptions) -> Result<(), RunnerError> {
        let Some(hub) = self.shared.existing_hub(session) else { return Ok(()) };
        // One that is on its way to a sandbox may be given what it had before.
        let place = timeout(BRIDGE_AWAY, hub.wait_settled()).await.unwrap_or_else(|_| hub.place());
        if let Place::Live(sandbox) = place {
            let options = effective(&sandbox.agent.settings, &options);
            match self.ask(&sandbox, &Request::Configure { options }).await {
                // The next sandbox is given what the store has.
                Ok(()) | Err(RequestError::Gone) => {}
                Err(RequestError::Refused(refusal)) if refusal.category == RefusalCategory::OptionRefused => {
                    return Err(RunnerError::OptionRefused(refusal.message));
                }
                Err(error) => return Err(RunnerError::Internal(error.to_string())),
            }
        }
        hub.update_session(|row| row.options = options);
        Ok(())
    }

    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError> {
        let hub = self.shared.hub(&session).await?;
        let state = loop {
            // A bridge that does not come back after a restart of its host does not keep its session from being closed.
            let patience = if closing == Closing::End { SANDBOX_END } else { BRIDGE_AWAY };
            let place = timeout(patience, hub.wait_settled()).await.unwrap_or_else(|_| hub.place());
            let before = hub.session().state;
            let state = before.after(closing.event()).map_err(|impossible| RunnerError::State(impossible.0))?;
            match place {
                Place::Resting(_) if before == state => return Ok(hub.session()),
                Place::Live(sandbox) | Place::Recovering(sandbox) | Place::Resting(sandbox) => {
                    // Where somebody else was first, it is waited for until the session is off it, or rests.
                    let is_first = hub.begin_leaving(&sandbox);
                    if is_first {
                        self.put_aside(&sandbox, &hub, closing).await;
                    }
                }
                // A bridge that does not let its session rest does not keep it from being ended either.
                Place::Leaving(sandbox) if closing == Closing::End => {
                    close(&self.shared.metrics, &sandbox, EndReason::Closed(closing)).await;
                }
                _ if before == state => return Ok(hub.session()),
                _ if hub.begin_starting() => break state,
                _ => {}
            }
        };
        let closed = self.open_without_sandbox(&hub, state, closing.reason()).await?;
        if closing == Closing::End {
            hub.close_meter();
        }
        Ok(closed)
    }

    async fn resume(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        let hub = self.shared.hub(&session).await?;
        let state = loop {
            hub.wait_recovered().await;
            let before = hub.session().state;
            let state = before.after(SessionEvent::Resume).map_err(|impossible| RunnerError::State(impossible.0))?;
            if before == state {
                return Ok(hub.session());
            }
            match hub.wait_settled().await {
                Place::Resting(sandbox) if hub.begin_waking(&sandbox) => {
                    if let Err(error) = wake(&self.shared, &sandbox, &hub, WAKE_RESUMED).await {
                        let message = error.to_string();
                        turns::give_up(&self.shared, &hub, NoSandbox::Failed(error)).await;
                        return Err(RunnerError::Unreachable(message));
                    }
                    return Ok(hub.session());
                }
                // Somebody else wakes it.
                Place::Resting(_) => {}
                // Somebody else has woken it since.
                Place::Live(_) | Place::Recovering(_) if hub.session().state != before => {}
                // It is about to leave its sandbox, or to rest.
                Place::Live(_) | Place::Recovering(_) => hub.wait_moving().await,
                _ if hub.begin_starting() => break state,
                _ => {}
            }
        };
        let resumed = self.open_without_sandbox(&hub, state, OpeningReason::Resumed).await?;
        if hub.begin_starting() {
            self.start_behind(hub, agent);
        }
        Ok(resumed)
    }

    fn load(&self) -> Load {
        pool::load(&self.shared)
    }
}
