//! Rows as Ash's types, and the other way. What is stored is checked when it is read: a broken row is an error, not a panic.

use std::{fmt::Display, str::FromStr};

use crate::{fault::Fault, sql::Columns};
use ash_core::{
    Epoch, Sequence,
    agent::{Agent, AgentVersion},
    id::TenantId,
    ports::StoreError,
    session::{PausedReason, Session, SessionState},
};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

/// The columns of [`session`], for a `SELECT`.
macro_rules! session_columns {
    () => {
        "sessions.id, sessions.tenant, sessions.agent, sessions.agent_name, sessions.agent_version, sessions.state, \
         sessions.paused_reason, sessions.error, sessions.sandbox, sessions.epoch, sessions.last_sequence, \
         sessions.created_at, sessions.last_active_at, sessions.options, sessions.metadata, sessions.credential, \
         sessions.model_refused"
    };
}
pub(crate) use session_columns;

/// The columns of [`agent`], for a `SELECT`.
macro_rules! agent_columns {
    () => {
        "agents.tenant, agents.id, agents.name, agents.slug, agents.description, agents.created_at, agents.updated_at, \
         agent_versions.agent, agent_versions.number, agent_versions.digest, agent_versions.settings"
    };
}
pub(crate) use agent_columns;

/// A session's state, of the columns that are called so.
pub(crate) fn session_state(row: &impl Columns, state: &str, reason: &str) -> Result<SessionState, Fault> {
    let state = text(row, state)?;
    let reason = row.text(reason)?.as_deref().map(paused_reason).transpose()?;
    SessionState::from_parts(&state, reason)
        .ok_or_else(|| Fault::damaged(format!("a session has the unknown state {state:?}")))
}

pub(crate) fn session(row: &impl Columns) -> Result<Session, Fault> {
    Ok(Session {
        id: parsed(row, "id")?,
        tenant: TenantId(text(row, "tenant")?),
        agent: parsed(row, "agent")?,
        agent_name: parsed(row, "agent_name")?,
        agent_version: number(row, "agent_version")?,
        state: session_state(row, "state", "paused_reason")?,
        error: row.text("error")?,
        sandbox: parsed_option(row, "sandbox")?,
        options: json(row, "options")?,
        metadata: json(row, "metadata")?,
        model_refused: number::<i64>(row, "model_refused")? != 0,
        credential: parsed_option(row, "credential")?,
        epoch: Epoch(number(row, "epoch")?),
        last: sequence(row, "last_sequence")?,
        created_at: time(row, "created_at")?,
        last_active_at: time(row, "last_active_at")?,
    })
}

pub(crate) fn agent(row: &impl Columns) -> Result<Agent, Fault> {
    Ok(Agent {
        id: parsed(row, "id")?,
        tenant: TenantId(text(row, "tenant")?),
        name: parsed(row, "name")?,
        slug: row.text("slug")?,
        description: row.text("description")?,
        version: agent_version(row)?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
    })
}

pub(crate) fn agent_version(row: &impl Columns) -> Result<AgentVersion, Fault> {
    Ok(AgentVersion {
        agent: parsed(row, "agent")?,
        tenant: TenantId(text(row, "tenant")?),
        number: number(row, "number")?,
        digest: text(row, "digest")?,
        settings: json(row, "settings")?,
    })
}

/// A text column as an id or a name.
pub(crate) fn parsed<T: FromStr<Err: Display>>(row: &impl Columns, column: &str) -> Result<T, Fault> {
    present(parsed_option(row, column)?, column)
}

/// A text column that is never `NULL`.
pub(crate) fn text(row: &impl Columns, column: &str) -> Result<String, Fault> {
    present(row.text(column)?, column)
}

fn present<T>(value: Option<T>, column: &str) -> Result<T, Fault> {
    value.ok_or_else(|| Fault::damaged(format!("{column} is missing")))
}

pub(crate) fn parsed_option<T: FromStr<Err: Display>>(row: &impl Columns, column: &str) -> Result<Option<T>, Fault> {
    row.text(column)?.map(|text| text.parse().map_err(|error| Fault::damaged(format!("{column}: {error}")))).transpose()
}

/// An integer column as a smaller or unsigned type.
pub(crate) fn number<T: TryFrom<i64>>(row: &impl Columns, column: &str) -> Result<T, Fault> {
    present(optional_number(row, column)?, column)
}

/// As [`number`], of a column that may be `NULL`.
pub(crate) fn optional_number<T: TryFrom<i64>>(row: &impl Columns, column: &str) -> Result<Option<T>, Fault> {
    let Some(value) = row.integer(column)? else { return Ok(None) };
    T::try_from(value).map(Some).map_err(|_| Fault::damaged(format!("{column} is {value}")))
}

pub(crate) fn sequence(row: &impl Columns, column: &str) -> Result<Sequence, Fault> {
    number(row, column).map(Sequence)
}

pub(crate) fn time(row: &impl Columns, column: &str) -> Result<Timestamp, Fault> {
    let milliseconds = number(row, column)?;
    Timestamp::from_millisecond(milliseconds).map_err(|error| Fault::damaged(format!("{column}: {error}")))
}

fn json<T: DeserializeOwned>(row: &impl Columns, column: &str) -> Result<T, Fault> {
    let text = text(row, column)?;
    // The error names the place and not the content, which may be secret.
    serde_json::from_str(&text)
        .map_err(|error| Fault::damaged(format!("{column}: line {}, column {}", error.line(), error.column())))
}

/// A value of ours as JSON text.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String, Fault> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Conflict(format!("it cannot be stored as JSON: {error}")).into())
}

/// Now, as exactly as the store keeps times.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// A sequence as a column. Sequences end at 2^53.
pub(crate) fn column(sequence: Sequence) -> i64 {
    i64::try_from(sequence.0).unwrap_or(i64::MAX)
}

/// A length as a column.
pub(crate) fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

pub(crate) fn paused_reason_name(reason: PausedReason) -> &'static str {
    match reason {
        PausedReason::Person => "person",
        PausedReason::Idle => "idle",
        PausedReason::Evicted => "evicted",
        PausedReason::Drained => "drained",
        PausedReason::Lost => "lost",
    }
}

fn paused_reason(name: &str) -> Result<PausedReason, Fault> {
    Ok(match name {
        "person" => PausedReason::Person,
        "idle" => PausedReason::Idle,
        "evicted" => PausedReason::Evicted,
        "drained" => PausedReason::Drained,
        "lost" => PausedReason::Lost,
        other => return Err(Fault::damaged(format!("a session is paused for the unknown reason {other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::session::SessionState;

    use super::{now, paused_reason, paused_reason_name};

    #[test]
    fn every_reason_comes_back() {
        for reason in SessionState::ALL.into_iter().filter_map(SessionState::paused_reason) {
            assert_eq!(paused_reason(paused_reason_name(reason)).unwrap(), reason);
        }
        assert!(paused_reason("bored").is_err());
    }

    #[test]
    fn times_are_as_exact_as_they_are_stored() {
        assert_eq!(now().subsec_nanosecond() % 1_000_000, 0);
    }
}
