//! Sessions that REST calls create from a warm pool, beside the API server's own creation of such a resource.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::site::Site;
use crate::bench::{
    connection::Connection,
    report::Row,
    rows::{Scale, ratio},
    statistics::Times,
};

/// The agent, and its warm sandboxes.
const AGENT: &str = "created";
const WARM: u32 = 3;
/// What Ash may add to the API server's own creation.
const ADDED: Duration = Duration::from_millis(8);
/// Creations before the first that counts.
const WARM_UP: usize = 2;

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    site.agent(AGENT, WARM)?;
    let mut connection = site.connection()?;
    let (mut with_ash, mut without) = (Times::default(), Times::default());
    for number in 0..WARM_UP + scale.on_cluster {
        site.settled(AGENT, WARM)?;
        let own = site.create_unserved(AGENT)?;
        let (time, id) = create(&mut connection, AGENT)?;
        if number >= WARM_UP {
            without.push(own);
            with_ash.push(time);
        }
        end(&mut connection, &id)?;
    }
    site.forget(AGENT)?;
    Ok(vec![Row {
        what: "create by REST from a warm pool: POST to 201",
        measured: with_ash.summary(),
        beside: format!("the API server's own create {}", without.summary()),
        ratio: ratio(with_ash.median(), without.median()),
        reach: "the API server's own + 8 ms",
        reached: with_ash.median() <= without.median() + ADDED,
    }])
}

/// Creates a session that is active when it is answered; how long it took, and its id.
pub(super) fn create(connection: &mut Connection, agent: &str) -> anyhow::Result<(Duration, String)> {
    let created = connection.send("POST", "/api/sessions", &format!(r#"{{"agent":"{agent}"}}"#), &[])?;
    let body = created.json()?;
    ensure!(created.status == 201 && body["session"]["status"] == "active", "{body}");
    Ok((created.whole, body["session"]["id"].as_str().context("a session's id")?.to_owned()))
}

/// Ends a session.
pub(super) fn end(connection: &mut Connection, id: &str) -> anyhow::Result<()> {
    let ended = connection.send("DELETE", &format!("/api/sessions/{id}"), "", &[])?;
    ensure!(ended.status == 200, "{}", ended.json()?);
    Ok(())
}
