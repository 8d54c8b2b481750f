//! The controller of sessions.

pub(crate) mod decide;
mod message;
mod row;

use std::{sync::Arc, time::Duration};

use ash_core::{
    Epoch,
    id::{SandboxId, SessionId, TenantId},
    opening::{Opening, OpeningReason},
    ports::{OpenEpoch, PodSandbox, PodState, RunnerError, StoreError},
    session::{Closing, PausedReason, Session as Row, SessionEvent, SessionState},
};
use ash_crd::{
    Reason, Sandbox, Session, SessionStatus,
    condition::{self, ConditionType},
    names,
};
use jiff::{SignedDuration, Timestamp};
use kube::{
    Resource as _, ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use serde_json::json;
use tokio::time::timeout;

use self::decide::{Decision, Observed, Step, Wake};
use crate::{
    error::{StepError, unless_gone},
    event::Events,
    failure::Failure,
    limits::{FINALIZER_BOUND, MAX_REMEMBERED, POLL, SHUT_OUT, START_LOOK, STEPS},
    namespace::{Namespace, Trouble},
    object,
    reconcile::Kind,
    runners::Room,
};

/// What came of a step.
enum Outcome {
    /// Look again.
    Done,
    /// Nothing more can be done now, for this reason.
    Blocked(Reason, String),
}

/// The id of a session: its uid.
pub(crate) fn id(session: &Session) -> Option<SessionId> {
    session.uid()?.parse().ok()
}

impl Kind for Session {
    const NAME: &'static str = "Session";

    async fn look(&self, namespace: &Arc<Namespace>) -> Result<Option<Duration>, StepError> {
        look(namespace, self).await
    }

    async fn tell(&self, namespace: &Namespace, reason: Reason, message: &str) -> Result<(), StepError> {
        let mut status = self.status.clone().unwrap_or_default();
        let generation = self.metadata.generation.unwrap_or_default();
        condition::report(&mut status.conditions, reason, message, generation, Timestamp::now());
        write(namespace, self, &status, None).await
    }
}

async fn look(namespace: &Arc<Namespace>, session: &Session) -> Result<Option<Duration>, StepError> {
    let Some(id) = id(session) else { return Err(StepError::Internal("a Session whose uid is no uuid".to_owned())) };
    let tenant = namespace.tenant();
    let mut has_finalizer = object::has_finalizer(session);
    let default = SessionStatus::default();
    let before = session.status.as_ref().unwrap_or(&default);
    // Before anything is asked that may not answer.
    if object::is_held_up(session) {
        object::set_finalizer(&namespace.api::<Session>(), session, false, serde_json::Value::Null).await?;
        return Ok(None);
    }
    for _ in 0..STEPS {
        let row = namespace.ports.store.session(&tenant, id).await?;
        let sandbox = match &row {
            Some(_) => {
                row::forget_variables(namespace, session, id).await?;
                namespace.ports.pods.pod_of(id).await?
            }
            None => None,
        };
        let message = message::state(namespace, session, id, row.is_some()).await?;
        let on = row.as_ref().and_then(|row| row.sandbox);
        if on.is_some() && on == sandbox.as_ref().map(|sandbox| sandbox.id) {
            // What failed before it is over. One that is deleting is what failed.
            namespace.memory().of_sessions.remove(&id);
        }
        let (trouble, attempts, not_before) = remembered(namespace, id, sandbox.as_ref());
        let trouble = match trouble {
            None => lost_runner(namespace, before, row.as_ref()).await?,
            trouble => trouble,
        };
        let observed = Observed {
            now: Timestamp::now(),
            generation: session.metadata.generation.unwrap_or_default(),
            created_at: object::created_at(session),
            deleting_since: object::deleting_since(session),
            has_finalizer,
            from_rest: session.labels().get(names::ORIGIN).is_some_and(|origin| origin == names::ORIGIN_REST),
            is_stopped: session.annotations().contains_key(names::STOPPED),
            wake: wake(session),
            spec: &session.spec,
            before,
            row: row.as_ref(),
            sandbox: sandbox.as_ref(),
            is_shut_out: is_shut_out(namespace, id, row.as_ref(), sandbox.as_ref()).await?,
            trouble: trouble.as_ref(),
            attempts,
            not_before,
            message,
            url: namespace.config.public_url.as_ref().map(|url| format!("{url}/api/sessions/{id}")),
        };
        let Decision { step, report, again } = decide::decide(&observed);
        let outcome = match step {
            None => {
                if let Some(report) = report {
                    let (reason, text) = with_absence(namespace, sandbox.as_ref(), report).await?;
                    write(namespace, session, &decide::status(&observed, reason, &text), observed.trouble).await?;
                }
                return Ok(again);
            }
            Some(step) => {
                let outcome = act(namespace, session, id, &observed, step).await?;
                match step {
                    Step::AddFinalizer => has_finalizer = true,
                    Step::RemoveFinalizer | Step::RemoveResource => return Ok(None),
                    _ => {}
                }
                outcome
            }
        };
        if let Outcome::Blocked(reason, text) = outcome {
            write(namespace, session, &decide::status(&observed, reason, &text), observed.trouble).await?;
            return Ok(Some(if reason.outcome() == ash_crd::Outcome::Stalled { POLL } else { START_LOOK }));
        }
    }
    Ok(Some(Duration::ZERO))
}

/// What its annotations say about a sandbox that the API asked for.
fn wake(session: &Session) -> Option<Wake> {
    let annotation = |name: &str| session.annotations().get(name).map(String::as_str);
    match annotation(names::WAKE_REQUESTED) {
        Some(epoch) => epoch.parse().ok().map(|epoch| Wake::In(Epoch(epoch))),
        None => annotation(names::WAKE_REQUESTED_AT)?.parse().ok().map(Wake::At),
    }
}

/// What is said of a session that waits for its sandbox, where the sandbox waits for a runner.
async fn with_absence(
    namespace: &Namespace,
    sandbox: Option<&PodSandbox>,
    report: (Reason, String),
) -> Result<(Reason, String), StepError> {
    let waits = matches!(report.0, Reason::Starting | Reason::Resuming) && report.1.is_empty();
    match sandbox.filter(|sandbox| waits && sandbox.runner.is_none()) {
        Some(sandbox) => Ok(namespace.runners.absence(&sandbox.pool).await?.unwrap_or(report)),
        None => Ok(report),
    }
}

fn remembered(
    namespace: &Namespace,
    id: SessionId,
    sandbox: Option<&PodSandbox>,
) -> (Option<Failure>, u32, Option<Timestamp>) {
    let memory = namespace.memory();
    let past = memory.of_sessions.get(&id);
    let now = sandbox.and_then(|sandbox| memory.of_pods.get(&sandbox.id)).cloned();
    let failure = now.or_else(|| past.map(|trouble: &Trouble| trouble.failure.clone()));
    (failure, past.map_or(0, |past| past.attempts), past.map(|past| past.not_before))
}

/// Whether the session's sandbox has waited for a place on its node's runner for so long that it is better made elsewhere.
async fn is_shut_out(
    namespace: &Namespace,
    id: SessionId,
    row: Option<&Row>,
    sandbox: Option<&PodSandbox>,
) -> Result<bool, StepError> {
    let placed = row.and_then(|row| row.sandbox);
    let waiting = sandbox.filter(|sandbox| sandbox.state == PodState::Claimed && placed != Some(sandbox.id));
    let Some((sandbox, runner)) = waiting.and_then(|sandbox| Some((sandbox, sandbox.runner.as_ref()?))) else {
        namespace.memory().unplaced.remove(&id);
        return Ok(false);
    };
    let now = Timestamp::now();
    let since = {
        let mut memory = namespace.memory();
        if memory.unplaced.len() >= MAX_REMEMBERED {
            memory.unplaced.clear();
        }
        let (of, since) = memory.unplaced.entry(id).or_insert((sandbox.id, now));
        if *of != sandbox.id {
            (*of, *since) = (sandbox.id, now);
        }
        *since
    };
    let bound = SignedDuration::try_from(SHUT_OUT).unwrap_or(SignedDuration::MAX);
    Ok(now.duration_since(since) >= bound && namespace.runners.is_better_elsewhere(runner, &sandbox.pool).await?)
}

/// That the session's runner was lost, and the session's sandbox with it.
async fn lost_runner(
    namespace: &Namespace,
    before: &SessionStatus,
    row: Option<&Row>,
) -> Result<Option<Failure>, StepError> {
    let runners = &namespace.runners;
    if let Some(SessionState::Paused(PausedReason::Lost)) = row.map(|row| row.state)
        && before.paused_reason.is_none()
        && let Some(name) = &before.runner
        && !runners.is_registered(name).await?
    {
        let message = format!("the runner {name} is not heard of any more");
        return Ok(Some(Failure { reason: Reason::RunnerLost, message, is_final: true }));
    }
    Ok(None)
}

async fn act(
    namespace: &Arc<Namespace>,
    session: &Session,
    id: SessionId,
    observed: &Observed<'_>,
    step: Step,
) -> Result<Outcome, StepError> {
    let row = || observed.row.ok_or_else(|| StepError::Internal("a session without a row".to_owned()));
    let runner = &namespace.ports.runner;
    match step {
        Step::AddFinalizer => {
            // REST finds it by its uid.
            let labels = json!({ names::SESSION_UID: session.uid(), names::AGENT: session.spec.agent });
            object::set_finalizer(&namespace.api::<Session>(), session, true, labels).await?;
        }
        Step::RemoveFinalizer => {
            object::set_finalizer(&namespace.api::<Session>(), session, false, serde_json::Value::Null).await?;
            // A repeat of the call that made it may have left them once more.
            namespace.memory().forgotten.remove(&id);
            row::forget_variables(namespace, session, id).await?;
            let mut memory = namespace.memory();
            memory.forgotten.remove(&id);
            memory.of_sessions.remove(&id);
            memory.unplaced.remove(&id);
            memory.messages.remove(&id);
        }
        Step::CreateRow => return row::create(namespace, session, id).await,
        Step::FindSandbox => {
            let row = row()?;
            let version = row::version(namespace, row).await?;
            let placed = runner.place(row.clone(), version).await?;
            namespace.pool_wake.soon();
            if placed.sandbox.is_none() && namespace.ports.pods.pod_of(id).await?.is_none() {
                return make_sandbox(namespace, row).await;
            }
        }
        Step::MakeSandbox => {
            return make_sandbox(namespace, row()?).await;
        }
        Step::Place => {
            let row = row()?;
            let version = row::version(namespace, row).await?;
            let placed = runner.place(row.clone(), version).await?;
            if placed.sandbox.is_none() {
                return Ok(Outcome::Blocked(Reason::Starting, "its runner does not take it yet".to_owned()));
            }
        }
        Step::RemoveSandbox => {
            if let Some(sandbox) = observed.sandbox {
                namespace.ports.pods.delete_pod(sandbox.id).await?;
                namespace.pool_wake.soon();
            }
        }
        Step::Suspend(_) | Step::Resume => {
            // What was looked at may be older than what REST has just done to both resource and row.
            let now = namespace.api::<Session>().get_opt(&session.name_any()).await?;
            if now.is_none_or(|now| now.metadata.generation != session.metadata.generation) {
                return Ok(Outcome::Blocked(Reason::Starting, String::new()));
            }
            let row = row()?.clone();
            match step {
                Step::Suspend(closing) => runner.close(row, closing).await?,
                _ => {
                    let version = row::version(namespace, &row).await?;
                    runner.resume(row, version).await?
                }
            };
        }
        Step::Configure => return row::configure(namespace, session, row()?).await,
        Step::End => {
            // A runner that does not answer does not keep the next look from letting the resource go.
            let ended = timeout(FINALIZER_BOUND, runner.close(row()?.clone(), Closing::End)).await;
            ended.map_err(|_| RunnerError::Unreachable("the session's runner does not end it".to_owned()))??;
            if let Some(sandbox) = observed.sandbox {
                namespace.ports.pods.delete_pod(sandbox.id).await?;
            }
            namespace.pool_wake.soon();
        }
        Step::Fail => fail(namespace, row()?, observed.trouble).await?,
        Step::Send => message::send(namespace, session, row()?).await?,
        Step::RemoveResource => {
            let preconditions = Preconditions { uid: session.uid(), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            unless_gone(namespace.api::<Session>().delete(&session.name_any(), &parameters).await)?;
        }
    }
    Ok(Outcome::Done)
}

/// Has a sandbox made for a session: its row, which the pool makes a pod from.
async fn make_sandbox(namespace: &Namespace, row: &Row) -> Result<Outcome, StepError> {
    let version = row::version(namespace, row).await?;
    let pool = Sandbox::from_version(version.settings.sandbox.as_ref()).node_pool;
    if namespace.runners.address(&pool).await?.is_none() {
        let text = format!("there is no Service ash-runner-{pool} in {}", namespace.config.system_namespace);
        return Ok(Outcome::Blocked(Reason::NodePoolNotFound, text));
    }
    let sandbox = new_sandbox(&namespace.tenant(), row.agent_name.as_str(), &version, pool, Some(row.id));
    if namespace.runners.room(&namespace.name, &sandbox.pool, sandbox.id).await? == Room::Full {
        return Ok(Outcome::Blocked(Reason::NoCapacity, String::new()));
    }
    match namespace.ports.pods.add_pod(sandbox).await {
        // Somebody else has had one made.
        Ok(()) | Err(StoreError::Conflict(_)) => {}
        Err(error) => return Err(error.into()),
    }
    tracing::debug!(session = %row.id, "a sandbox is to be made");
    namespace.pool_wake.at_once();
    Ok(Outcome::Done)
}

/// The row of a sandbox that is to be.
pub(crate) fn new_sandbox(
    tenant: &TenantId,
    agent: &str,
    version: &ash_core::agent::AgentVersion,
    pool: String,
    session: Option<SessionId>,
) -> PodSandbox {
    let id = SandboxId::new();
    let now = Timestamp::now();
    PodSandbox {
        id,
        tenant: tenant.clone(),
        pod: ash_pods::manifest::pod_name(agent, id),
        pod_uid: None,
        agent: version.agent,
        agent_version: version.number,
        pool,
        session,
        state: PodState::Starting,
        runner: None,
        node: None,
        created_at: now,
        changed_at: now,
    }
}

/// Puts a session into `error`: no sandbox of it starts. A message tries again.
async fn fail(namespace: &Namespace, row: &Row, trouble: Option<&Failure>) -> Result<(), StepError> {
    let store = &namespace.ports.store;
    let message = trouble.map_or_else(
        || "its sandbox did not start".to_owned(),
        |trouble| format!("{}: {}", trouble.reason.as_str(), trouble.message),
    );
    if let Ok(state) = row.state.after(SessionEvent::Fail)
        && state == SessionState::Error
    {
        let interrupted = store.unfinished_turn(row.id).await?.map(|turn| turn.0);
        let opening = Opening {
            reason: OpeningReason::Failed,
            last_committed: row.last,
            interrupted,
            message: interrupted.map(|_| message.clone()),
            recovered: None,
            sandbox: None,
        };
        let open =
            OpenEpoch { session: row.id, expected: row.epoch, state, error: Some(message), sandbox: None, opening };
        store.open_epoch(open).await?;
    }
    namespace.memory().of_sessions.remove(&row.id);
    Ok(())
}

/// Writes a status where it is another one, and tells people what they care about: the new reason, and why a sandbox was lost.
async fn write(
    namespace: &Namespace,
    session: &Session,
    status: &SessionStatus,
    trouble: Option<&Failure>,
) -> Result<(), StepError> {
    let before = session.status.as_ref();
    if before == Some(status) {
        return Ok(());
    }
    // Asked for where something else is written: nothing is written for a turn.
    let mut status = status.clone();
    if let Some(id) = id(session) {
        match namespace.ports.changes.spent(id).await {
            Ok(spent) => status.set_spent(&spent.unwrap_or_default()),
            // That the store is away is itself something to write: what was spent stays as it was.
            Err(error) => tracing::debug!(session = %id, %error, "what was spent is not known"),
        }
    }
    let status = &status;
    object::write_status(&namespace.api::<Session>(), session, status).await?;
    namespace.metrics.wrote_status(Session::NAME);
    let ready = |status: &SessionStatus| condition::find(&status.conditions, ConditionType::Ready).cloned();
    let (was, is) = (before.and_then(ready), ready(status));
    if let Some(is) = is
        && was.is_none_or(|was| was.reason != is.reason)
        && let Some(reason) = Reason::ALL.iter().find(|reason| reason.as_str() == is.reason)
        && Events::is_told(*reason)
    {
        namespace.events.tell(&session.object_ref(&()), *reason, &is.message).await;
    }
    let is_lost = |status: &SessionStatus| status.paused_reason == Some(PausedReason::Lost.into());
    if let Some(trouble) = trouble
        && is_lost(status)
        && !before.is_some_and(is_lost)
    {
        namespace.events.tell(&session.object_ref(&()), trouble.reason, &trouble.message).await;
    }
    Ok(())
}
