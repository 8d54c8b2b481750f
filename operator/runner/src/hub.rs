//! A session's live state: the tail of its log, its turn, and everybody who waits for either.
//!
//! The hub never waits for the store. Readers hold a position and are woken; what fell out of the tail they read from the log.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ash_core::{
    Entry, EntryKind, Epoch, Sequence,
    chunk::ChunkClass,
    id::{SessionId, TurnId},
    intake::{Admission, Intake, Refused},
    opening::Opening,
    ports::{Batch, LoggedEntry},
    session::{Session, SessionEvent, SessionState},
};
use ash_protocol::message::{BridgeEvent, Resolution};
use tokio::sync::Notify;
use tracing::Span;

use crate::{
    limits::{
        BATCH_BYTES, BATCH_ENTRIES, COMMIT_BYTES, COMMIT_SESSION_BYTES, COMMITTED_TAIL_BYTES, ENDED_TURNS,
        ENTRY_COST_BYTES, MAX_PERMISSION_ID_BYTES, MAX_PERMISSIONS,
    },
    sandbox::Sandbox,
};

/// The live state of one session. There is at most one per session in a process.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) session: SessionId,
    inner: Mutex<Inner>,
    /// Wakes readers and whoever waits for a commit or for the sandbox.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    /// The session as the store has it, but for `last`, which is `committed`.
    row: Session,
    intake: Intake,
    committed: Sequence,
    /// Everything after this position is in `tail`.
    tail_after: Sequence,
    tail: VecDeque<Arc<LoggedEntry>>,
    /// Bytes of the committed part of the tail.
    committed_bytes: usize,
    turn: Option<Turn>,
    /// Turns that ended here, latest last, with the entry before each: a repeat of one joins it though the log may not have it yet.
    ended: VecDeque<Turn>,
    /// The span of the turn: from its reservation to its end.
    span: Option<Span>,
    /// The turn that was in progress when the session began to leave its sandbox; one that is reserved later waits for the
    /// next sandbox.
    leaving_turn: Option<TurnId>,
    permissions: BTreeMap<String, PermissionState>,
    place: Place,
    /// Whether the committer has this hub in its queue.
    queued: bool,
    /// Why the log cannot be written; the next epoch clears it.
    broken: Option<String>,
}

/// Where a session's sandbox is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// It has none.
    None,
    /// One is being started or found for it.
    Starting,
    /// This one.
    Live(Arc<Sandbox>),
    /// This one, whose bridge has not sent its tail again yet: nobody reads live until then.
    Recovering(Arc<Sandbox>),
    /// It is leaving its sandbox.
    Leaving,
}

/// A turn in progress, or about to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) id: TurnId,
    /// The entry before its first one.
    pub(crate) after: Sequence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PermissionState {
    Open,
    Closed,
}

/// What a permission request's answer meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PermissionGate {
    /// It is the first one: pass it on.
    First,
    /// Somebody or something was quicker.
    Closed,
    /// There is no such request.
    Unknown,
}

/// How soon the committer should come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Nothing new.
    None,
    /// Partials only: they may wait for more.
    Later,
    /// A complete message.
    Soon,
    /// The end of a turn, many bytes, or somebody waits for it.
    Now,
}

/// What taking entries led to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) urgency: Urgency,
    pub(crate) turn_ended: bool,
}

/// Why a turn cannot be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// It is now.
    Reserved,
    /// It runs already, from after this entry.
    Joined(Sequence),
    /// Another one runs.
    Busy,
    /// The session's state does not allow one.
    Impossible(SessionState),
}

impl Hub {
    pub(crate) fn new(row: Session) -> Self {
        let last = row.last;
        Self {
            session: row.id,
            inner: Mutex::new(Inner {
                intake: Intake::new(row.epoch, last),
                committed: last,
                tail_after: last,
                tail: VecDeque::new(),
                committed_bytes: 0,
                turn: None,
                ended: VecDeque::new(),
                span: None,
                leaving_turn: None,
                permissions: BTreeMap::new(),
                place: Place::None,
                queued: false,
                broken: None,
                row,
            }),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held leaves plain data that every method can go on with.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session as it is now.
    pub(crate) fn session(&self) -> Session {
        let inner = self.lock();
        Session { last: inner.committed, ..inner.row.clone() }
    }

    /// Replaces what is known of the session beside its log (its options, for example).
    pub(crate) fn update_session(&self, change: impl FnOnce(&mut Session)) {
        change(&mut self.lock().row);
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.lock().row.epoch
    }

    pub(crate) fn place(&self) -> Place {
        self.lock().place.clone()
    }

    pub(crate) fn set_place(&self, place: Place) {
        self.lock().place = place;
        self.changed.notify_waiters();
    }

    /// Takes the right to find the session a sandbox: true for one caller while it has none.
    pub(crate) fn begin_starting(&self) -> bool {
        let mut inner = self.lock();
        let free = matches!(inner.place, Place::None);
        if free {
            inner.place = Place::Starting;
        }
        free
    }

    /// The sandbox, where the session has one and it is synchronised.
    pub(crate) fn live(&self) -> Option<Arc<Sandbox>> {
        match &self.lock().place {
            Place::Live(sandbox) => Some(Arc::clone(sandbox)),
            _ => None,
        }
    }

    /// Takes the session off this sandbox, if it is still on it: true for one caller.
    pub(crate) fn begin_leaving(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut inner = self.lock();
        let on_it = matches!(&inner.place, Place::Live(here) | Place::Recovering(here) if Arc::ptr_eq(here, sandbox));
        if on_it {
            inner.place = Place::Leaving;
            inner.leaving_turn = inner.turn.map(|turn| turn.id);
        }
        on_it
    }

    /// Takes the session off this sandbox only if no turn runs or is about to: true for one caller.
    pub(crate) fn begin_leaving_idle(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut inner = self.lock();
        let on_it = matches!(&inner.place, Place::Live(here) if Arc::ptr_eq(here, sandbox)) && inner.turn.is_none();
        if on_it {
            inner.place = Place::Leaving;
            inner.leaving_turn = inner.turn.map(|turn| turn.id);
        }
        on_it
    }

    /// Reserves the turn, so that a second message meets a running one.
    pub(crate) fn reserve_turn(&self, id: TurnId) -> Reserve {
        let mut inner = self.lock();
        if let Some(turn) = inner.ended.iter().find(|turn| turn.id == id) {
            return Reserve::Joined(turn.after);
        }
        if let Err(impossible) = inner.row.state.after(SessionEvent::Message) {
            return Reserve::Impossible(impossible.0);
        }
        match inner.turn {
            Some(turn) if turn.id == id => Reserve::Joined(turn.after),
            Some(_) => Reserve::Busy,
            None => {
                let after = inner.last();
                inner.begin_turn(Turn { id, after });
                inner.permissions.clear();
                // The new turn tries to write again; why the one before it failed is no news to its readers.
                inner.broken = None;
                Reserve::Reserved
            }
        }
    }

    /// Gives a reservation back that led to nothing.
    pub(crate) fn release_turn(&self, id: TurnId) {
        let mut inner = self.lock();
        if inner.turn.is_some_and(|turn| turn.id == id) {
            inner.end_turn("given up before it began");
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Takes over what the store, and later the bridge, knows of the turn after the host was restarted.
    pub(crate) fn restore_turn(&self, turn: Option<Turn>, permissions: Vec<String>) {
        let mut inner = self.lock();
        if let Some(turn) = turn {
            inner.begin_turn(turn);
        }
        inner.permissions =
            permissions.into_iter().take(MAX_PERMISSIONS).map(|id| (id, PermissionState::Open)).collect();
    }

    /// The turn that was in progress when the session began to leave its sandbox.
    pub(crate) fn leaving_turn(&self) -> Option<TurnId> {
        self.lock().leaving_turn
    }

    pub(crate) fn turn(&self) -> Option<Turn> {
        self.lock().turn
    }

    /// Closes a permission request for all but the first answer.
    pub(crate) fn close_permission(&self, id: &str) -> PermissionGate {
        match self.lock().permissions.get_mut(id) {
            None => PermissionGate::Unknown,
            Some(PermissionState::Closed) => PermissionGate::Closed,
            Some(state) => {
                *state = PermissionState::Closed;
                PermissionGate::First
            }
        }
    }

    /// Opens a permission request again whose answer never reached the bridge.
    pub(crate) fn reopen_permission(&self, id: &str) {
        if let Some(state) = self.lock().permissions.get_mut(id) {
            *state = PermissionState::Open;
        }
    }

    /// Takes entries from the bridge and wakes readers.
    pub(crate) fn take(&self, entries: Vec<Entry>) -> Result<Taken, Refused> {
        let mut taken = Taken { urgency: Urgency::None, turn_ended: false };
        let mut inner = self.lock();
        for entry in entries {
            if inner.intake.admit(&entry)? == Admission::Repeated {
                continue;
            }
            let urgency = match ChunkClass::of(entry.kind) {
                _ if entry.ends_turn() => Urgency::Now,
                ChunkClass::Complete => Urgency::Soon,
                _ => Urgency::Later,
            };
            taken.urgency = taken.urgency.max(urgency);
            if entry.kind == EntryKind::Bridge {
                inner.note_bridge_event(&entry);
            }
            if entry.ends_turn() {
                // A tail that comes again after a restart may hold the end of the turn before the one that runs.
                if inner.turn.is_none_or(|turn| entry.sequence > turn.after) {
                    inner.end_turn("ended");
                }
                taken.turn_ended = true;
            }
            inner.tail.push_back(Arc::new(LoggedEntry::new(entry)));
        }
        if inner.intake.pending_bytes() > COMMIT_BYTES {
            taken.urgency = taken.urgency.max(Urgency::Now);
        }
        drop(inner);
        self.changed.notify_waiters();
        Ok(taken)
    }

    /// Takes over a new epoch that the store opened: what was not committed is withdrawn, an interrupted turn is over.
    pub(crate) fn open_epoch(&self, row: Session, opening: &Opening, place: Place) {
        let interrupted = opening.interrupted.map(TurnId);
        let opening = opening.entry(row.epoch);
        let mut inner = self.lock();
        let committed = inner.committed;
        while inner.tail.back().is_some_and(|logged| logged.entry.sequence > committed) {
            inner.tail.pop_back();
        }
        // A claim may report an earlier turn as interrupted while the next one is reserved already.
        if interrupted.is_some() && inner.turn.map(|turn| turn.id) == interrupted {
            inner.end_turn("interrupted");
        }
        inner.intake = Intake::new(row.epoch, opening.sequence);
        inner.committed = opening.sequence;
        inner.committed_bytes += opening.body.len() + ENTRY_COST_BYTES;
        if let Some(turn) = &mut inner.turn {
            turn.after = opening.sequence;
        }
        inner.tail.push_back(Arc::new(LoggedEntry::new(opening)));
        inner.row = row;
        inner.place = place;
        inner.broken = None;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Puts the hub into the committer's queue: true when it was not there.
    pub(crate) fn queue(&self) -> bool {
        !std::mem::replace(&mut self.lock().queued, true)
    }

    /// The entries to commit next and the one that they follow. Takes the hub off the committer's queue.
    pub(crate) fn uncommitted(&self) -> (Sequence, Vec<Entry>) {
        let mut inner = self.lock();
        inner.queued = false;
        let mut bytes = 0;
        let start = inner.tail.partition_point(|logged| logged.entry.sequence <= inner.committed);
        let entries = inner
            .tail
            .range(start..)
            .map(|logged| &logged.entry)
            .take_while(|entry| {
                let fits = bytes == 0 || bytes + entry.body.len() <= COMMIT_SESSION_BYTES;
                bytes += entry.body.len().max(1);
                fits
            })
            .cloned()
            .collect();
        (inner.committed, entries)
    }

    /// Says that everything up to `last` is committed. True when there is more to commit.
    pub(crate) fn committed(&self, last: Sequence) -> bool {
        let mut inner = self.lock();
        if last <= inner.committed || last.epoch() != inner.row.epoch {
            return inner.last() > inner.committed;
        }
        let from = inner.tail.partition_point(|logged| logged.entry.sequence <= inner.committed);
        let to = inner.tail.partition_point(|logged| logged.entry.sequence <= last);
        let bytes: usize = inner.tail.range(from..to).map(|logged| logged.entry.body.len() + ENTRY_COST_BYTES).sum();
        inner.intake.committed(bytes);
        inner.committed = last;
        inner.committed_bytes += bytes;
        let keep = if inner.turn.is_some() { COMMITTED_TAIL_BYTES } else { 0 };
        inner.trim(keep);
        let more = inner.last() > inner.committed;
        drop(inner);
        self.changed.notify_waiters();
        more
    }

    /// Says that the log cannot be written: readers end with this message, the turn is over. Takes the session off its sandbox,
    /// where it has one, in the same moment, so that no next turn gets there, and gives it: it has to be abandoned.
    pub(crate) fn fail(&self, message: String) -> Option<Arc<Sandbox>> {
        let mut inner = self.lock();
        let abandoned = match &inner.place {
            Place::Live(sandbox) | Place::Recovering(sandbox) => Some(Arc::clone(sandbox)),
            _ => None,
        };
        if abandoned.is_some() {
            inner.place = Place::Leaving;
            inner.leaving_turn = inner.turn.map(|turn| turn.id);
        }
        inner.broken = Some(message);
        inner.end_turn("failed: its log cannot be written");
        drop(inner);
        self.changed.notify_waiters();
        abandoned
    }

    /// Whether everything taken is committed, and if not, whether that is still to be hoped for.
    pub(crate) async fn wait_committed(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.lock();
                if inner.last() <= inner.committed {
                    return true;
                }
                if inner.broken.is_some() {
                    return false;
                }
            }
            changed.await;
        }
    }

    /// Waits until no turn runs or is about to.
    pub(crate) async fn wait_idle(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().turn.is_none() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the session is not on its way between two places, and says where it is.
    pub(crate) async fn wait_settled(&self) -> Place {
        self.wait_place(|place| !matches!(place, Place::Starting | Place::Leaving | Place::Recovering(_))).await
    }

    /// Waits until the session is not on its way off a sandbox, nor finding one again, and says where it is.
    pub(crate) async fn wait_settled_or_starting(&self) -> Place {
        self.wait_place(|place| !matches!(place, Place::Leaving | Place::Recovering(_))).await
    }

    /// Waits until a session whose host was restarted has its bridge back, or has lost it: only then is its turn known.
    pub(crate) async fn wait_recovered(&self) {
        self.wait_place(|place| !matches!(place, Place::Recovering(_))).await;
    }

    /// Waits until a turn has begun, or is over: true where it has begun and runs.
    pub(crate) async fn wait_begun(&self, id: TurnId) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let inner = self.lock();
                match inner.turn.filter(|turn| turn.id == id) {
                    None => return false,
                    Some(turn) if inner.intake.last() > turn.after => return true,
                    Some(_) => {}
                }
            }
            changed.await;
        }
    }

    async fn wait_place(&self, is_meant: impl Fn(&Place) -> bool) -> Place {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let place = self.place();
            if is_meant(&place) {
                return place;
            }
            changed.await;
        }
    }

    /// The last entry there is, committed or not.
    pub(crate) fn last(&self) -> Sequence {
        self.lock().last()
    }

    /// The next change; for readers, which look first.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// What a reader at `position` gets.
    pub(crate) fn after(&self, position: Sequence) -> Tail {
        let inner = self.lock();
        if let Some(message) = &inner.broken {
            return Tail::Broken(message.clone());
        }
        if position < inner.tail_after {
            return Tail::InLog;
        }
        if matches!(inner.place, Place::Recovering(_)) {
            return Tail::Nothing;
        }
        let start = inner.tail.partition_point(|logged| logged.entry.sequence <= position);
        let mut bytes = 0;
        let mut through = position;
        let mut batch = Batch::new();
        for logged in inner.tail.range(start..) {
            bytes += logged.entry.body.len();
            if !batch.is_empty() && (bytes > BATCH_BYTES || batch.len() >= BATCH_ENTRIES) {
                break;
            }
            through = logged.entry.sequence;
            if logged.entry.kind != EntryKind::Transcript {
                batch.push(Arc::clone(logged));
            }
        }
        if through > position { Tail::Entries { batch, through } } else { Tail::Nothing }
    }

    /// Whether a reader at `position` has something to come: entries, or a turn that runs or is about to.
    pub(crate) fn expects_more(&self, position: Sequence) -> bool {
        let inner = self.lock();
        inner.turn.is_some() || inner.last() > position || matches!(inner.place, Place::Recovering(_) | Place::Leaving)
    }
}

/// What a reader gets from a hub.
#[derive(Debug)]
pub(crate) enum Tail {
    /// These entries, up to here.
    Entries { batch: Batch, through: Sequence },
    /// Nothing yet.
    Nothing,
    /// What it needs is in the log only.
    InLog,
    /// The log cannot be written.
    Broken(String),
}

impl Inner {
    fn last(&self) -> Sequence {
        self.intake.last().max(self.committed)
    }

    fn begin_turn(&mut self, turn: Turn) {
        if self.turn.is_none_or(|current| current.id != turn.id) {
            let span = tracing::info_span!("turn", session = %self.row.id, turn = %turn.id);
            span.in_scope(|| tracing::debug!("begins"));
            self.span = Some(span);
        }
        self.turn = Some(turn);
    }

    fn end_turn(&mut self, how: &'static str) {
        if let Some(turn) = self.turn.take()
            && self.last() > turn.after
        {
            self.ended.push_back(turn);
            if self.ended.len() > ENDED_TURNS {
                self.ended.pop_front();
            }
        }
        if let Some(span) = self.span.take() {
            span.in_scope(|| tracing::debug!(how, "over"));
        }
    }

    fn trim(&mut self, keep: usize) {
        while self.committed_bytes > keep || keep == 0 {
            let Some(front) = self.tail.front().filter(|front| front.entry.sequence <= self.committed) else { break };
            self.tail_after = front.entry.sequence;
            self.committed_bytes = self.committed_bytes.saturating_sub(front.entry.body.len() + ENTRY_COST_BYTES);
            self.tail.pop_front();
        }
        if self.tail.is_empty() {
            self.tail.shrink_to(16);
        }
    }

    fn note_bridge_event(&mut self, entry: &Entry) {
        match serde_json::from_slice::<BridgeEvent>(&entry.body) {
            // A bridge keeps to these bounds; whoever impersonates one only loses answers to its own requests.
            Ok(BridgeEvent::PermissionRequest { id, .. })
                if id.len() <= MAX_PERMISSION_ID_BYTES && self.permissions.len() < MAX_PERMISSIONS =>
            {
                self.permissions.insert(id, PermissionState::Open);
            }
            Ok(BridgeEvent::PermissionResolved { id, resolution }) => {
                tracing::debug!(permission = %id, ?resolution, "a permission request was decided");
                if !matches!(resolution, Resolution::Allowed | Resolution::Denied) || self.permissions.contains_key(&id)
                {
                    self.permissions.insert(id, PermissionState::Closed);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
