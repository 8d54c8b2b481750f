//! Which snapshots sessions have.

use ash_core::{
    Epoch,
    id::{SessionId, TenantId, TurnId},
    ports::{KEPT_DAMAGED_SNAPSHOTS, KEPT_SNAPSHOTS, SnapshotRow, SnapshotStore, StoreError},
};
use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    fault::Fault,
    rows, sessions,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore, Write},
};

const COLUMNS: &str = "SELECT session, digest, sequence, turn, size, taken_at FROM snapshots";

fn snapshot(row: &impl Columns) -> Result<SnapshotRow, Fault> {
    Ok(SnapshotRow {
        session: rows::parsed(row, "session")?,
        digest: rows::text(row, "digest")?,
        sequence: rows::sequence(row, "sequence")?,
        turn: rows::parsed_option(row, "turn")?,
        size: rows::number(row, "size")?,
        taken_at: rows::time(row, "taken_at")?,
    })
}

/// Adds one, and lets the oldest go.
struct Add {
    epoch: Epoch,
    snapshot: SnapshotRow,
}

impl Write for Add {
    type Output = ();

    const MAY_REPEAT: bool = true;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<(), Fault> {
        let SnapshotRow { session, digest, sequence, turn, size, taken_at } = &self.snapshot;
        let add = Statement::new(
            "INSERT INTO snapshots (session, digest, tenant, sequence, turn, size, taken_at) \
             SELECT sessions.id, $3, sessions.tenant, $4, $5, $6, $7 FROM sessions WHERE sessions.id = $1 AND sessions.epoch = $2 \
             ON CONFLICT (session, digest) DO UPDATE SET sequence = excluded.sequence, turn = excluded.turn, damaged = 0 \
             RETURNING session",
        )
        .text(session)
        .integer(self.epoch.0.into())
        .text(digest)
        .integer(rows::column(*sequence))
        .optional_text(*turn)
        .integer(i64::try_from(*size).unwrap_or(i64::MAX))
        .integer(taken_at.as_millisecond());
        if sql.row(add).await?.is_none() {
            let row = sessions::load(sql, *session).await?;
            return Err(StoreError::Overtaken { session: row.id, epoch: row.epoch, last: row.last }.into());
        }
        for (damaged, kept) in [(0, KEPT_SNAPSHOTS), (1, KEPT_DAMAGED_SNAPSHOTS)] {
            let forget = Statement::new(
                "DELETE FROM snapshots WHERE session = $1 AND damaged = $3 AND digest NOT IN \
                 (SELECT newest.digest FROM snapshots AS newest WHERE newest.session = $1 AND newest.damaged = $3 \
                 ORDER BY newest.sequence DESC, newest.taken_at DESC LIMIT $2)",
            );
            sql.execute(forget.text(session).integer(kept.into()).integer(damaged)).await?;
        }
        Ok(())
    }
}

/// Notes that one is damaged.
struct Damaged {
    session: SessionId,
    digest: String,
}

impl Write for Damaged {
    type Output = ();

    const MAY_REPEAT: bool = true;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<(), Fault> {
        let note = Statement::new("UPDATE snapshots SET damaged = 1 WHERE session = $1 AND digest = $2");
        sql.execute(note.text(self.session).text(&self.digest)).await?;
        Ok(())
    }
}

/// Gives the installation's id; this one where it has none.
struct Installation {
    id: Uuid,
}

impl Write for Installation {
    type Output = Uuid;

    const MAY_REPEAT: bool = true;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Uuid, Fault> {
        let make = Statement::new("INSERT INTO installation (one, id) VALUES (1, $1) ON CONFLICT (one) DO NOTHING");
        sql.execute(make.text(self.id)).await?;
        let found = sql.row(Statement::new("SELECT id FROM installation WHERE one = 1")).await?;
        match found {
            Some(row) => rows::parsed(&row, "id"),
            None => Ok(self.id),
        }
    }
}

#[async_trait]
impl<E: Engine> SnapshotStore for SqlStore<E> {
    async fn last_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        let statement = Statement::new(
            "SELECT turn FROM turns WHERE session = $1 AND last_sequence IS NOT NULL ORDER BY last_sequence DESC LIMIT 1",
        );
        let row = self.engine.reader().row(statement.text(session)).await?;
        Ok(row.map(|row| rows::parsed(&row, "turn")).transpose()?)
    }

    async fn add_snapshot(&self, epoch: Epoch, snapshot: SnapshotRow) -> Result<(), StoreError> {
        self.engine.write(Add { epoch, snapshot }).await
    }

    async fn snapshots(&self, session: SessionId) -> Result<Vec<SnapshotRow>, StoreError> {
        let text = format!("{COLUMNS} WHERE session = $1 ORDER BY sequence DESC, taken_at DESC");
        let found = self.engine.reader().rows(Statement::kept(text).text(session)).await?;
        Ok(found.iter().map(snapshot).collect::<Result<_, _>>()?)
    }

    async fn snapshot_damaged(&self, session: SessionId, digest: &str) -> Result<(), StoreError> {
        self.engine.write(Damaged { session, digest: digest.to_owned() }).await
    }

    async fn installation(&self) -> Result<Uuid, StoreError> {
        self.engine.write(Installation { id: Uuid::new_v4() }).await
    }

    async fn tenants_with_sessions(&self) -> Result<Vec<TenantId>, StoreError> {
        let statement = Statement::new("SELECT DISTINCT tenant FROM sessions ORDER BY tenant");
        let found = self.engine.reader().rows(statement).await?;
        Ok(found.iter().map(|row| Ok(TenantId(rows::text(row, "tenant")?))).collect::<Result<_, Fault>>()?)
    }

    async fn snapshots_of(&self, tenant: &TenantId) -> Result<Vec<(SessionId, String)>, StoreError> {
        let statement =
            Statement::new("SELECT session, digest FROM snapshots WHERE tenant = $1 ORDER BY session, digest");
        let found = self.engine.reader().rows(statement.text(&tenant.0)).await?;
        let named = found.iter().map(|row| Ok((rows::parsed(row, "session")?, rows::text(row, "digest")?)));
        Ok(named.collect::<Result<_, Fault>>()?)
    }
}
