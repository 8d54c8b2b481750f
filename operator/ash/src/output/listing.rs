//! Agents and sessions as tables and as lists of fields.

use ash_client::{Agent, Health, QueueEntry, Runner, Session, SessionQuery};
use comfy_table::{Table, presets::NOTHING};

use crate::output::text::printable;

/// A table of agents.
pub(crate) fn agents(agents: &[Agent]) -> String {
    if agents.is_empty() {
        return "There are no agents. Deploy one: ash deploy ./my-agent --name my-agent".to_owned();
    }
    let rows = agents
        .iter()
        .map(|agent| vec![agent.name.clone(), agent.version.to_string(), time(&agent.updated_at), agent.id.clone()]);
    table(&["NAME", "VERSION", "UPDATED", "ID"], rows)
}

/// One agent.
pub(crate) fn agent(agent: &Agent) -> String {
    fields(&[
        ("name", agent.name.clone()),
        ("version", agent.version.to_string()),
        ("id", agent.id.clone()),
        ("slug", text(&agent.other, "slug")),
        ("description", text(&agent.other, "description")),
        ("model", text(&agent.other, "model")),
        ("created", time(&agent.created_at)),
        ("updated", time(&agent.updated_at)),
    ])
}

/// A table of the sessions that a query found.
pub(crate) fn sessions(sessions: &[Session], query: &SessionQuery) -> String {
    if sessions.is_empty() {
        let such = if query.status.is_some() || query.offset.is_some() { "such " } else { "" };
        let (of, agent) = match query.agent.as_deref().map(printable) {
            Some(agent) => (format!(" of {agent}"), agent),
            None => (String::new(), "AGENT".into()),
        };
        return format!("There are no {such}sessions{of}. Begin one: ash chat {agent}, or ash session create {agent}");
    }
    let rows = sessions.iter().map(|session| {
        vec![session.id.clone(), session.agent_name.clone(), status(session), time(&session.last_active_at)]
    });
    table(&["ID", "AGENT", "STATUS", "LAST ACTIVE"], rows)
}

/// One session.
pub(crate) fn session(session: &Session) -> String {
    fields(&[
        ("id", session.id.clone()),
        ("agent", session.agent_name.clone()),
        ("status", status(session)),
        ("error", text(&session.other, "error")),
        ("model", text(&session.other, "model")),
        ("created", time(&session.created_at)),
        ("last active", time(&session.last_active_at)),
    ])
}

/// A table of a session's queue.
pub(crate) fn queue(entries: &[QueueEntry]) -> String {
    if entries.is_empty() {
        return "No message waits. Queue one: ash session queue add SESSION MESSAGE".to_owned();
    }
    let rows = entries.iter().map(|entry| {
        let said = entry.error.as_deref().unwrap_or(&entry.preview);
        vec![entry.id.clone(), entry.status.clone(), time(&entry.created_at), printable(said).into()]
    });
    table(&["ID", "STATUS", "QUEUED", "MESSAGE"], rows)
}

/// How the server is.
pub(crate) fn health(health: &Health) -> String {
    let pool = &health.pool;
    fields(&[
        ("status", health.status.clone()),
        ("version", health.version.clone()),
        ("up for", format!("{} s", health.uptime)),
        ("sessions", format!("{} active", health.active_sessions)),
        (
            "sandboxes",
            format!(
                "{} of {}: {} running, {} waiting, {} warm, {} warming",
                pool.total, pool.max_capacity, pool.running, pool.waiting, pool.warm, pool.warming
            ),
        ),
    ])
}

/// A table of runners.
pub(crate) fn runners(runners: &[Runner]) -> String {
    if runners.is_empty() {
        return "There are no runners: a standalone server has its sandboxes itself; a coordinator's are started with \
                `ash runner --coordinator URL`."
            .to_owned();
    }
    let rows = runners.iter().map(|runner| {
        vec![
            runner.name.clone(),
            runner_status(runner),
            format!("{}/{}", runner.sessions, runner.capacity),
            text(&runner.other, "pool"),
            text(&runner.other, "node"),
            text(&runner.other, "version"),
            text(&runner.other, "address"),
        ]
    });
    table(&["NAME", "STATUS", "SESSIONS", "POOL", "NODE", "VERSION", "ADDRESS"], rows)
}

fn runner_status(runner: &Runner) -> String {
    match &*runner.status {
        "silent" => format!("silent for {} s", runner.silent_seconds),
        other => other.to_owned(),
    }
}

/// What the server is.
pub(crate) fn server(health: &Health, runners: Option<&[Runner]>) -> String {
    let mode = text(&health.other, "mode");
    let ready = |runners: &[Runner]| {
        let ready = runners.iter().filter(|runner| runner.status == "ready").count();
        format!("{ready} ready of {}", runners.len())
    };
    let runners = runners.filter(|_| mode != "standalone").map(ready).unwrap_or_default();
    format!("{}\n{}", fields(&[("mode", mode), ("runners", runners)]), self::health(health)).trim_start().to_owned()
}

fn status(session: &Session) -> String {
    match session.other.get("pausedReason").and_then(|reason| reason.as_str()) {
        Some(reason) if session.status == "paused" => format!("paused ({reason})"),
        _ => session.status.clone(),
    }
}

fn text(other: &serde_json::Map<String, serde_json::Value>, name: &str) -> String {
    other.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
}

/// `2026-01-02T03:04:05.678Z` as `2026-01-02 03:04:05Z`; anything else as it is.
fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => text.to_owned(),
    }
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell).into_owned()));
    }
    trimmed(&table)
}

/// Names and values, without those that have none.
fn fields(fields: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([(*name).to_owned(), printable(value).into_owned()]);
    }
    trimmed(&table)
}

/// The table without the spaces around its lines.
fn trimmed(table: &Table) -> String {
    let lines: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use ash_client::{Agent, Session, SessionQuery};
    use serde_json::json;

    fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap_or_else(|error| panic!("{error}"))
    }

    fn session_value(status: &str, reason: Option<&str>) -> Session {
        parse(json!({
            "id": "0199a000-0000-7000-8000-000000000001", "agentName": "writer", "status": status, "pausedReason": reason,
            "createdAt": "2026-01-02T03:04:05.678Z", "lastActiveAt": "2026-01-02T04:04:05.678Z", "model": "opus",
        }))
    }

    #[test]
    fn sessions() {
        let sessions = [session_value("active", None), session_value("paused", Some("idle"))];
        insta::assert_snapshot!(super::sessions(&sessions, &SessionQuery::default()), @"
        ID                                    AGENT   STATUS         LAST ACTIVE
        0199a000-0000-7000-8000-000000000001  writer  active         2026-01-02 04:04:05Z
        0199a000-0000-7000-8000-000000000001  writer  paused (idle)  2026-01-02 04:04:05Z
        ");
        insta::assert_snapshot!(super::session(&sessions[1]), @"
        id           0199a000-0000-7000-8000-000000000001
        agent        writer
        status       paused (idle)
        model        opus
        created      2026-01-02 03:04:05Z
        last active  2026-01-02 04:04:05Z
        ");
        let none = |query| super::sessions(&[], &query);
        insta::assert_snapshot!(none(SessionQuery::default()), @"There are no sessions. Begin one: ash chat AGENT, or ash session create AGENT");
        let query = SessionQuery { agent: Some("a".into()), status: Some("ended".into()), ..SessionQuery::default() };
        insta::assert_snapshot!(none(query), @"There are no such sessions of a. Begin one: ash chat a, or ash session create a");
    }

    #[test]
    fn agents() {
        let agent: Agent = parse(json!({
            "id": "0199a000-0000-7000-8000-000000000002", "name": "writer", "version": 3, "path": "",
            "createdAt": "2026-01-02T03:04:05.678Z", "updatedAt": "2026-01-02T03:04:05.678Z", "description": "It \u{1b}[2Jwrites.",
        }));
        insta::assert_snapshot!(super::agents(std::slice::from_ref(&agent)), @"
        NAME    VERSION  UPDATED               ID
        writer  3        2026-01-02 03:04:05Z  0199a000-0000-7000-8000-000000000002
        ");
        insta::assert_snapshot!(super::agent(&agent), @"
        name         writer
        version      3
        id           0199a000-0000-7000-8000-000000000002
        description  It [2Jwrites.
        created      2026-01-02 03:04:05Z
        updated      2026-01-02 03:04:05Z
        ");
    }

    #[test]
    fn health() {
        let health = parse(json!({
            "status": "ok", "version": "0.1.0", "activeSessions": 2, "activeSandboxes": 3, "uptime": 61,
            "pool": { "total": 3, "cold": 0, "warming": 1, "warm": 1, "waiting": 0, "running": 1, "maxCapacity": 64 },
        }));
        insta::assert_snapshot!(super::health(&health), @"
        status     ok
        version    0.1.0
        up for     61 s
        sessions   2 active
        sandboxes  3 of 64: 1 running, 0 waiting, 1 warm, 1 warming
        ");
    }
}
