//! Begins the turns of messages that wait, in every process that has the store: whoever commits a turn's end looks for the next
//! one, and a sweep finds what nobody looked for. Any number of processes may do it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use ash_core::{
    Entry, EntryKind, Sequence,
    id::{SessionId, TurnId},
    opening::{Opening, OpeningReason},
    ports::{EntryChange, EntryReader, NewMessage, QueueHead, QueueStore, RunnerError, Sent, StoreError},
    queue::{
        BUSY_PAUSE, CLAIM_LEASE, Ending, EntryEvent, Facts, Logged, NO_ROOM_PAUSE, QueueEntry, RETRY_PAUSE, Step, cut,
        step,
    },
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::state::ApiState;

/// How often it is looked for messages whose turn has come without anybody here noticing.
const SWEEP: Duration = Duration::from_secs(1);
/// Sessions with messages that wait that are known of at once. Further ones are found when these have none.
const MAX_KNOWN: u32 = 10_000;
/// Sessions that one sweep looks at; the next one looks at the others.
const MAX_DUE: u32 = 256;
/// Steps in one session without a pause: each entry takes two.
const MAX_STEPS: usize = 128;
/// How often a claim is renewed.
const RENEWAL: Duration = Duration::from_secs(5);

/// Looks after the queues of all sessions until told to stop. Nothing to do where the server keeps none.
pub async fn keep_queues(state: ApiState, stop: impl Future<Output = ()>) {
    let Some(queue) = state.optional.queue.clone() else { return };
    let queues = Arc::clone(&state.queues);
    queue.listen(Arc::new(move |session| queues.hint(session)));
    tokio::pin!(stop);
    let mut next = Instant::now();
    loop {
        let mut due = HashSet::new();
        tokio::select! {
            () = &mut stop => return,
            () = state.queues.hinted() => {}
            () = sleep_until(next) => {
                due = sweep(&state, &*queue).await;
                next = Instant::now() + SWEEP;
            }
        }
        due.extend(state.queues.take_hints());
        for session in due {
            advance_soon(&state, session);
        }
    }
}

/// Which sessions have messages that wait, and in which something is to be done.
async fn sweep(state: &ApiState, queue: &dyn QueueStore) -> HashSet<SessionId> {
    state.queues.begin_sweep();
    let swept = async {
        let known = state.queues.swept(queue.queued_sessions(MAX_KNOWN).await?);
        state.metrics.queued_sessions.set(i64::try_from(known).unwrap_or(i64::MAX));
        if known == 0 {
            return Ok::<_, StoreError>(HashSet::new());
        }
        Ok(queue.due_sessions(MAX_DUE).await?.into_iter().collect())
    };
    swept.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "messages that wait are looked for later");
        HashSet::new()
    })
}

/// Looks after a session's queue behind the caller's back, unless that is being done.
pub(crate) fn advance_soon(state: &ApiState, session: SessionId) {
    let Some(queue) = state.optional.queue.clone() else { return };
    let Some(permit) = state.queues.begin(session) else { return };
    let state = state.clone();
    tokio::spawn(async move {
        let _permit = permit;
        loop {
            if let Err(error) = advance(&state, &*queue, session).await {
                tracing::warn!(%session, %error, "the session's queue is looked at again later");
            }
            if state.queues.end(session) {
                return;
            }
        }
    });
}

/// Does what there is to be done for the first open entry of a session, and for the next, until something else has to happen first.
async fn advance(state: &ApiState, queue: &dyn QueueStore, session: SessionId) -> Result<(), StoreError> {
    for _ in 0..MAX_STEPS {
        let Some(head) = queue.queue_head(session).await? else {
            state.queues.forget(session);
            return Ok(());
        };
        let facts = facts(state, &head).await?;
        let entry = &head.entry;
        match step(entry, &facts) {
            Step::Wait => return Ok(()),
            Step::Claim(fence) => {
                let change =
                    EntryChange { event: EntryEvent::Claim, fence: Some(fence), error: None, pause: CLAIM_LEASE };
                if let Some(claimed) = queue.change_entry(entry, change).await?
                    && !begin(state, queue, claimed).await?
                {
                    return Ok(());
                }
            }
            Step::Resend => {
                if let Some(claimed) = queue.take_over_entry(entry, CLAIM_LEASE).await? {
                    tracing::info!(%session, entry = %entry.id, "a message whose beginning was cut off is sent again");
                    if !begin(state, queue, claimed).await? {
                        return Ok(());
                    }
                }
            }
            Step::Settle(event, reason) => settle(state, queue, entry, event, reason).await?,
        }
    }
    Ok(())
}

/// What decides about an entry, with what its turn came to.
async fn facts(state: &ApiState, head: &QueueHead) -> Result<Facts, StoreError> {
    let attempt = match (head.begun, head.ended) {
        (_, Some(ended)) => Logged::Ended(ending(state, head.entry.session, ended).await?),
        (Some(_), None) => Logged::Begun,
        (None, None) => Logged::Nothing,
    };
    let QueueHead { state, epoch, has_sandbox, turn_runs, is_due, .. } = *head;
    Ok(Facts { state, epoch, has_sandbox, turn_runs, attempt, is_due })
}

/// What the entry at which a turn ended says of it. A page may begin before it.
async fn ending(state: &ApiState, session: SessionId, ended: Sequence) -> Result<Ending, StoreError> {
    let page = state.store.read(session, Sequence(ended.0.saturating_sub(1)), 0).await?;
    let last = page.entries.iter().find(|entry| entry.sequence == ended);
    Ok(last.map_or(Ending::Result, Ending::of))
}

async fn settle(
    state: &ApiState,
    queue: &dyn QueueStore,
    entry: &QueueEntry,
    event: EntryEvent,
    reason: Option<String>,
) -> Result<(), StoreError> {
    let pause = if event == EntryEvent::Retry { RETRY_PAUSE } else { Duration::ZERO };
    if let Some(entry) = queue.change_entry(entry, EntryChange { event, fence: None, error: reason, pause }).await? {
        tracing::debug!(session = %entry.session, entry = %entry.id, status = entry.state.name(), "a queued message");
        if !entry.state.is_open() {
            state.metrics.queue_settled(entry.state);
        }
        state.queues.changed();
    }
    Ok(())
}

/// What a claimed message met.
enum Met {
    /// It was taken: this reads its turn.
    Turn(Sent),
    /// It was not begun, and waits again for so long at least.
    Later(Duration),
    /// Nothing can be made of it.
    Never(String),
    /// It may have begun: looked at again when the pause is over.
    Unknown,
}

/// Sends a claimed message; true where there is something more to be done in its session at once.
async fn begin(state: &ApiState, queue: &dyn QueueStore, claimed: QueueEntry) -> Result<bool, StoreError> {
    let sent = {
        let sending = send(state, queue, &claimed);
        tokio::pin!(sending);
        loop {
            tokio::select! {
                sent = &mut sending => break sent?,
                () = sleep(RENEWAL) => drop(queue.renew_entry(&claimed, CLAIM_LEASE).await),
            }
        }
    };
    let release = |pause| EntryChange { event: EntryEvent::Release, fence: None, error: None, pause };
    match sent {
        Met::Turn(sent) => {
            state.metrics.queue_begun.inc();
            match watch(queue, &claimed, sent.reader).await {
                Begun::Yes => Ok(false),
                Begun::Later => {
                    queue.change_entry(&claimed, release(NO_ROOM_PAUSE)).await?;
                    Ok(false)
                }
                Begun::Never(reason, may_retry) => {
                    if let Step::Settle(event, reason) = cut(&claimed, &reason, may_retry) {
                        settle(state, queue, &claimed, event, reason).await?;
                    }
                    Ok(true)
                }
            }
        }
        Met::Later(pause) => {
            queue.change_entry(&claimed, release(pause)).await?;
            Ok(false)
        }
        Met::Never(reason) => {
            settle(state, queue, &claimed, EntryEvent::Fail, Some(reason)).await?;
            Ok(true)
        }
        Met::Unknown => {
            queue.renew_entry(&claimed, NO_ROOM_PAUSE).await?;
            Ok(false)
        }
    }
}

async fn send(state: &ApiState, queue: &dyn QueueStore, claimed: &QueueEntry) -> Result<Met, StoreError> {
    let Some(message) = queue.queued_message(claimed.session, claimed.id).await? else { return Ok(Met::Unknown) };
    let Some(session) = state.store.session(&claimed.tenant, claimed.session).await? else {
        return Ok(Met::Never("The session is gone.".to_owned()));
    };
    let version = state.store.agent_version(&session.tenant, session.agent, session.agent_version).await?;
    let Some(version) = version else { return Ok(Met::Never("The session's agent is gone.".to_owned())) };
    let message = NewMessage { turn: claimed.turn(), content: message.content, options: message.options };
    Ok(match state.runner.send(session, version, message).await {
        Ok(sent) => Met::Turn(sent),
        Err(error) => {
            tracing::debug!(session = %claimed.session, entry = %claimed.id, %error, "a queued message does not begin yet");
            met(&error)
        }
    })
}

/// What is made of a refusal: only where nothing can have begun the message waits again.
fn met(error: &RunnerError) -> Met {
    match error {
        RunnerError::TurnInProgress | RunnerError::State(_) => Met::Later(BUSY_PAUSE),
        RunnerError::NoCapacity { .. }
        | RunnerError::ShuttingDown
        | RunnerError::Untrusted
        | RunnerError::Incompatible => Met::Later(NO_ROOM_PAUSE),
        RunnerError::LogFull { .. }
        | RunnerError::OptionRefused(_)
        | RunnerError::PermissionClosed
        | RunnerError::UnknownPermission => Met::Never(error.to_string()),
        RunnerError::Unreachable(_) | RunnerError::Store(_) | RunnerError::Internal(_) => Met::Unknown,
    }
}

/// Whether a turn that was taken has begun.
pub(super) enum Begun {
    /// It has, or the log has to say what became of it.
    Yes,
    /// Not yet: its session left its sandbox in peace before that, or was put aside.
    Later,
    /// It was cut off before that, for this reason. Another attempt may do better where that is `true`.
    Never(String, bool),
}

/// Waits until a turn has begun, keeping the claim meanwhile.
async fn watch(queue: &dyn QueueStore, claimed: &QueueEntry, mut reader: Box<dyn EntryReader>) -> Begun {
    let turn = claimed.turn();
    let mut renewal = Instant::now() + RENEWAL;
    loop {
        let batch = tokio::select! {
            next = reader.next() => match next {
                Ok(Some(batch)) => batch,
                _ => return Begun::Yes,
            },
            () = sleep_until(renewal) => {
                // Where the store does not answer, the claim ends by itself.
                if matches!(queue.renew_entry(claimed, CLAIM_LEASE).await, Ok(false)) {
                    return Begun::Yes;
                }
                renewal = Instant::now() + RENEWAL;
                continue;
            }
        };
        if let Some(begun) = batch.iter().find_map(|logged| begun(&logged.entry, turn)) {
            return begun;
        }
    }
}

/// What an entry says of a turn that has not begun before it; `None` where it says nothing.
pub(super) fn begun(entry: &Entry, turn: TurnId) -> Option<Begun> {
    if entry.kind != EntryKind::Opening {
        return (entry.begins_turn() == Some(turn.0)).then_some(Begun::Yes);
    }
    let opening = Opening::read(&entry.body).ok().filter(|opening| opening.interrupted == Some(turn.0))?;
    Some(match (opening.reason, Ending::of(entry)) {
        // Everything that the bridge had written was written before this: the turn was not among it.
        (OpeningReason::Asleep | OpeningReason::Suspended, _) => Begun::Later,
        (_, Ending::Cut(reason, may_retry)) => Begun::Never(reason, may_retry),
        (_, Ending::Result) => Begun::Yes,
    })
}
