//! Reads the turn of a message that waits, from its beginning on; ends with a sentence where it does not begin.

use std::{sync::Arc, time::Duration};

use ash_core::{
    EntryKind, Sequence,
    id::{SessionId, TurnId},
    opening::Opening,
    ports::{Batch, EntryReader, LoggedEntry, ReadError},
    queue::{EntryState, QueueEntry},
    session::Session,
    sse::Position,
};
use async_trait::async_trait;
use http::StatusCode;
use tokio::{sync::watch, time::sleep};

use super::dispatch::{Begun, begun};
use crate::{error::ApiError, serve::closed, state::ApiState};

/// How often it is looked whether a message that somebody waits for was taken back elsewhere.
const LOOK: Duration = Duration::from_secs(2);

/// A reader of an entry's first turn. `session` was read before `entry`: if the turn is not in the log yet, it begins behind the
/// session's last entry.
pub(super) async fn reader(
    state: &ApiState,
    session: Session,
    entry: &QueueEntry,
) -> Result<Box<dyn EntryReader>, ApiError> {
    let turn = entry.id;
    let logged = state.store.turn(session.id, turn).await?;
    if logged.is_none()
        && let Some(reason) = over(entry)
    {
        return Err(ApiError::new(StatusCode::CONFLICT, reason));
    }
    let after = logged.map_or(session.last, |turn| Sequence(turn.first.0.saturating_sub(1)));
    let inner = state.runner.read(&session, Position::after(after)).await?;
    let closing = state.closing.subscribe();
    Ok(Box::new(QueuedReader { inner, state: state.clone(), session: session.id, turn, begun: None, closing }))
}

/// Why an entry's turn does not begin any more, where the log has nothing of it.
fn over(entry: &QueueEntry) -> Option<String> {
    match entry.state {
        EntryState::Cancelled | EntryState::Failed => {
            Some(entry.error.clone().unwrap_or_else(|| "It was taken back.".to_owned()))
        }
        EntryState::Pending | EntryState::Processing | EntryState::Completed => None,
    }
}

struct QueuedReader {
    inner: Box<dyn EntryReader>,
    state: ApiState,
    session: SessionId,
    turn: TurnId,
    /// The entry that began the turn.
    begun: Option<Sequence>,
    closing: watch::Receiver<bool>,
}

/// What came next of a message that waits.
enum Next {
    Batch(Option<Batch>),
    Look,
    Closing,
}

impl QueuedReader {
    /// Leaves out what comes before the turn, or before the opening that says that it will not begin.
    fn skip_to_the_beginning(&mut self, batch: Batch) -> Option<Batch> {
        let says =
            |logged: &Arc<LoggedEntry>| matches!(begun(&logged.entry, self.turn), Some(Begun::Yes | Begun::Never(..)));
        let begins_at = batch.iter().position(says)?;
        let rest: Batch = batch.into_iter().skip(begins_at).collect();
        self.begun = rest.first().map(|logged| logged.entry.sequence);
        self.note_withdrawal(&rest);
        Some(rest)
    }

    /// A turn whose beginning does not count any more has not begun.
    fn note_withdrawal(&mut self, batch: &Batch) {
        for logged in batch.iter().filter(|logged| logged.entry.kind == EntryKind::Opening) {
            let opening = Opening::read(&logged.entry.body).ok();
            let withdraws = |opening: &Opening| {
                opening.interrupted != Some(self.turn.0)
                    && self.begun.is_some_and(|begun| opening.last_committed < begun)
            };
            if opening.as_ref().is_some_and(withdraws) {
                self.begun = None;
            }
        }
    }
}

/// Why the turn of an entry does not begin any more.
async fn look(state: &ApiState, session: SessionId, turn: TurnId) -> Result<Option<String>, ReadError> {
    let Some(queue) = &state.optional.queue else { return Ok(None) };
    let entry = queue.queue_entry(session, turn).await?;
    let reason = match &entry {
        Some(entry) => over(entry),
        None => Some("It is over, and too much has come since to say how.".to_owned()),
    };
    // What is in the log is said by the log.
    if reason.is_some() && state.store.turn(session, turn).await?.is_some() {
        return Ok(None);
    }
    Ok(reason)
}

#[async_trait]
impl EntryReader for QueuedReader {
    async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        loop {
            if self.begun.is_some() {
                let batch = self.inner.next().await?;
                if let Some(batch) = &batch {
                    self.note_withdrawal(batch);
                }
                return Ok(batch);
            }
            let changed = self.state.queues.next_change();
            let next = tokio::select! {
                biased;
                batch = self.inner.next() => Next::Batch(batch?),
                () = changed => Next::Look,
                () = sleep(LOOK) => Next::Look,
                () = closed(&mut self.closing) => Next::Closing,
            };
            match next {
                Next::Batch(Some(batch)) => {
                    if let Some(batch) = self.skip_to_the_beginning(batch) {
                        return Ok(Some(batch));
                    }
                }
                // The session has ended, and its queue with it: or the server stops.
                Next::Batch(None) => {
                    return match look(&self.state, self.session, self.turn).await? {
                        Some(reason) => Err(ReadError::NotBegun(reason)),
                        None => Ok(None),
                    };
                }
                Next::Look => {
                    if let Some(reason) = look(&self.state, self.session, self.turn).await? {
                        return Err(ReadError::NotBegun(reason));
                    }
                }
                // Whoever waits asks the next server, with the same key.
                Next::Closing => return Ok(None),
            }
        }
    }

    fn position(&self) -> Sequence {
        self.inner.position()
    }

    fn turn_in_progress(&self) -> bool {
        true
    }
}
