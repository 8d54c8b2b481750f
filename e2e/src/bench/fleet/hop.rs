//! What the way over a coordinator adds: the same runner's part behind a coordinator, and in a standalone server, both on Postgres,
//! both with the stand-in for Claude Code that answers at once.

use std::time::Duration;

use ash_test_postgres::Postgres;

use super::LOG;
use crate::{
    bench::{
        connection::Connection,
        report::Row,
        rows::{Scale, WARM_UP, message, messages_path, pause, ratio},
        statistics::{Times, milliseconds},
    },
    harness::{FleetOptions, TestApp, TestFleet, program},
    model::Script,
};

/// The goals for what it adds, at the median and at the 99th percentile.
const ADDED: (Duration, Duration) = (Duration::from_micros(400), Duration::from_micros(1500));
const FIRST: &[u8] = b"event: message";

pub(crate) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let (of_fleet, of_app) = (Postgres::start(), Postgres::start());
    let options = FleetOptions {
        database: Some(of_fleet.url("postgres")),
        claude: Some(program("stand-in-claude")),
        log: Some(LOG),
        ..FleetOptions::default()
    };
    let fleet = TestFleet::start_with(1, &["--max-sandboxes=4", "--warm=1"], options).await;
    let app = TestApp::builder()
        .log(LOG)
        .model(Script::directives().keep(16))
        .claude(program("stand-in-claude"))
        .variable("ASH_DATABASE_URL", &of_app.url("postgres"))
        .start()
        .await;
    fleet.deploy("simple").await;
    let far = fleet.session_of("simple").await;
    let near = app.session().await;
    let mut over = Connection::open(fleet.address(), fleet.api_key())?;
    let mut direct = Connection::open(app.address(), app.api_key())?;
    let message = message("hello");
    let (mut with_hop, mut without) = (Times::default(), Times::default());
    for number in 0..WARM_UP + scale.turns * 4 {
        let one = direct.send("POST", &messages_path(&near.id), &message, &[FIRST])?.at(0)?;
        pause();
        let other = over.send("POST", &messages_path(&far.id), &message, &[FIRST])?.at(0)?;
        pause();
        if number >= WARM_UP {
            without.push(one);
            with_hop.push(other);
        }
    }
    let added = [50, 99].map(|percent| with_hop.percentile(percent).saturating_sub(without.percentile(percent)));
    Ok(vec![Row {
        what: "one hop more than standalone, Claude Code answers at once: POST to first event",
        measured: format!("+ {} (p99 + {}): {}", milliseconds(added[0]), milliseconds(added[1]), with_hop.summary()),
        beside: format!("standalone on Postgres {}", without.summary()),
        ratio: ratio(with_hop.median(), without.median()),
        reach: "p50 + 0.4 ms, p99 + 1.5 ms",
        reached: added[0] <= ADDED.0 && added[1] <= ADDED.1,
    }])
}
