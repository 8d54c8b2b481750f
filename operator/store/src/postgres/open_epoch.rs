//! Opens epochs: one statement, whose compare-and-set is on the session's row.

use ash_core::{
    Entry, Epoch,
    fence::Fence,
    fleet::RunnerName,
    ports::{OpenEpoch, StoreError},
    session::Session,
};
use jiff::Timestamp;

use super::{Postgres, pool::Lease, retry::Call};
use crate::{
    batch::{next_epoch, overtaken},
    codec::{StoredChunk, encode_now},
    fault::{Fault, Trouble},
    places::is_anothers,
    rows::{self, session_columns},
    sessions::load,
    sql::{Sql, Statement},
    store::Engine as _,
};

/// Takes the next epoch, writes its opening event and ends the turn that it interrupts. Gives the session, or nothing where it is
/// not as expected.
const OPEN: &str = concat!(
    "WITH opened AS ( \
        UPDATE sessions SET epoch = $2, last_sequence = $3, state = $4, paused_reason = $5, error = $6, sandbox = $7, \
            last_active_at = $8, reserved_until = NULL, \
            runner = CASE WHEN $4 = 'ended' THEN NULL ELSE COALESCE(CAST($17 AS TEXT), runner) END \
        WHERE id = $1 AND epoch = $9 AND last_sequence = $10 \
            AND (CAST($16 AS TEXT) IS NULL OR runner IS NULL OR runner = $16 \
                OR (sandbox IS NULL AND COALESCE(reserved_until, 0) <= {now})) RETURNING ",
    session_columns!(),
    " ), stored AS ( \
        INSERT INTO log_chunks (session, batch_last, class, tenant, first_sequence, last_sequence, codec, size, data) \
        SELECT opened.id, $3, $11, opened.tenant, $3, $3, $12, $13, $14 FROM opened \
    ), ended AS ( \
        UPDATE turns SET last_sequence = $3, compactable_since = $8 FROM opened \
        WHERE turns.session = opened.id AND turns.turn = $15 AND turns.last_sequence IS NULL \
    ) SELECT * FROM opened"
);

/// An epoch to be opened.
pub(super) struct Open {
    wanted: OpenEpoch,
    /// The runner that opens it.
    runner: Option<RunnerName>,
    epoch: Epoch,
    entry: Entry,
    chunk: StoredChunk,
    now: Timestamp,
}

impl Open {
    pub(super) fn new(open: OpenEpoch, runner: Option<RunnerName>) -> Result<Self, StoreError> {
        let epoch = next_epoch(open.session, open.expected)?;
        let entry = open.opening.entry(epoch);
        // One entry is one chunk.
        let chunk = encode_now(std::slice::from_ref(&entry)).pop();
        let chunk = chunk.ok_or_else(|| StoreError::Conflict("an opening without its event".to_owned()))?;
        Ok(Self { wanted: open, runner, epoch, entry, chunk, now: rows::now() })
    }

    fn statement(&self) -> Statement {
        let (open, chunk) = (&self.wanted, &self.chunk);
        Statement::at(Postgres::NOW, OPEN)
            .text(open.session)
            .integer(self.epoch.0.into())
            .integer(rows::column(self.entry.sequence))
            .text(open.state.name())
            .optional_text(open.state.paused_reason().map(rows::paused_reason_name))
            .optional_text(open.error.as_deref())
            .optional_text(open.sandbox)
            .integer(self.now.as_millisecond())
            .integer(open.expected.0.into())
            .integer(rows::column(open.opening.last_committed))
            .integer(chunk.chunk.class as i64)
            .integer(chunk.codec.into())
            .integer(rows::length(chunk.size))
            .bytes(chunk.data.clone())
            .optional_text(open.opening.interrupted)
            .optional_text(self.runner.as_ref())
            .optional_text(self.runner.as_ref().filter(|_| open.sandbox.is_some()))
    }

    /// Whether the session is as an earlier try of this call has made it. Sandboxes have ids of their own; of two openings
    /// without one that are alike to the millisecond, either is as good as the other.
    fn has_made(&self, session: &Session) -> bool {
        let open = &self.wanted;
        (session.epoch, session.last, session.last_active_at) == (self.epoch, self.entry.sequence, self.now)
            && (session.state, session.sandbox, &session.error) == (open.state, open.sandbox, &open.error)
    }
}

impl Call for Open {
    type Output = Session;

    // A repeat finds the session as the first try has made it.
    const MAY_REPEAT: bool = true;

    async fn run(&self, lease: &mut Lease<'_>, in_doubt: bool) -> Result<Session, Fault> {
        if let Some(row) = lease.row(self.statement()).await? {
            return rows::session(&row);
        }
        let session = load(lease, self.wanted.session).await?;
        if in_doubt && self.has_made(&session) {
            return Ok(session);
        }
        let is_anothers = match &self.runner {
            Some(runner) => is_anothers(lease, Postgres::NOW, session.id, runner).await?,
            None => false,
        };
        let fence = Fence { epoch: session.epoch, last: session.last };
        let is_as_expected = !is_anothers && fence.opens(self.wanted.expected, self.wanted.opening.last_committed);
        let error = overtaken(session.id, session.epoch, session.last);
        Err(Fault { error, trouble: if is_as_expected { Trouble::Collision } else { Trouble::Other } })
    }
}
