//! The first turn of a new session, beside Claude Code alone that was initialised and rehearsed just so; and the session's creation.

use std::{thread, time::Duration};

use anyhow::{Context, ensure};

use super::{PARTIAL, Scale, message, messages_path, pause, ratio, server};
use crate::{
    bench::{alone::Alone, connection::Connection, report::Row, statistics::Times},
    harness::real_claude,
};

/// What Ash may add to the first partial message.
const ADDED: Duration = Duration::from_millis(2);
/// The goal for the creation of a session.
const CREATION: Duration = Duration::from_millis(5);

/// How long both processes rest after they were warmed, as one in a pool does.
const REST: Duration = Duration::from_millis(500);

pub(super) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    // One place: nothing warms the next sandbox while a turn is measured, as nothing does beside the other side.
    let app = server().argument("--max-sandboxes=1").argument("--warm=1").start().await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    let message = message("hello");
    let (mut with_ash, mut without, mut creation) = (Times::default(), Times::default(), Times::default());
    for _ in 0..scale.sessions {
        let mut alone = Alone::start_rehearsed(&real_claude(), &app.model.base_url())?;
        app.wait_warm(1).await;
        let mut connection = Connection::open(app.address(), app.api_key())?;
        thread::sleep(REST);
        without.push(alone.say("hello", PARTIAL)?.seen.context("no partial message")?);
        pause();
        let created = connection.send("POST", "/api/sessions", r#"{"agent":"simple"}"#, &[])?;
        ensure!(created.status == 201, "{}", created.json()?);
        creation.push(created.whole);
        let id = created.json()?["session"]["id"].as_str().context("a session's id")?.to_owned();
        pause();
        let turn = connection.send("POST", &messages_path(&id), &message, &[PARTIAL])?;
        with_ash.push(turn.at(0)?);
        connection.send("DELETE", &format!("/api/sessions/{id}"), "", &[])?;
    }
    Ok(vec![
        Row {
            what: "first turn of a new session from the warm pool: POST to first partial",
            measured: with_ash.summary(),
            beside: format!("CLI alone, rehearsed {}", without.summary()),
            ratio: ratio(with_ash.median(), without.median()),
            reach: "CLI alone, initialised and rehearsed, + 2 ms",
            reached: with_ash.median() <= without.median() + ADDED,
        },
        Row {
            what: "create a session, warm sandbox with the real Claude Code there",
            measured: creation.summary(),
            beside: "–".to_owned(),
            ratio: None,
            reach: "p50 5 ms",
            reached: creation.median() <= CREATION,
        },
    ])
}
