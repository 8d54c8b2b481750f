//! Bursts of partial messages: what each frame costs, and whether Ash keeps up with Claude Code.

use std::time::Duration;

use anyhow::Context;

use super::{BRIDGE, PARTIAL, Scale, message, messages_path, pause, ratio, server, server_with_stand_in};
use crate::{
    bench::{alone::Alone, connection::Connection, processes::cpu, report::Row, statistics::Times},
    harness::{pid_of, real_claude},
};

/// A burst of text deltas.
const BURST: &str = "[[burst: 2000]]";
/// Bursts of the stand-in per burst of Claude Code: processor time is counted in steps of 10 ms.
const MORE: usize = 5;
/// The goal: a frame's processor time.
const FRAME: Duration = Duration::from_micros(1);
/// What counts as as fast: a part of the time, a tenth, is the measurement's own.
const AS_FAST: f64 = 1.1;

pub(super) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    Ok(vec![per_frame(scale).await?, burst(scale).await?])
}

async fn per_frame(scale: Scale) -> anyhow::Result<Row> {
    let app = server_with_stand_in().start().await;
    let session = app.session().await;
    app.wait_warm(1).await;
    let mut connection = Connection::open(app.address(), app.api_key())?;
    let (path, message) = (messages_path(&session.id), message(BURST));
    connection.send("POST", &path, &message, &[])?;
    let bridge = pid_of(&app.session_folder(&session.id), BRIDGE).context("no bridge runs")?;
    let used = || anyhow::Ok((cpu(app.server_pid())?, cpu(bridge)?));
    let before = used()?;
    let mut frames = 0;
    let mut times = Times::default();
    for _ in 0..scale.bursts * MORE {
        let answer = connection.send("POST", &path, &message, &[])?;
        frames += answer.frames();
        times.push(answer.whole);
        pause();
    }
    let after = used()?;
    let frames = u32::try_from(frames)?;
    let (server, bridge) = (after.0.saturating_sub(before.0) / frames, after.1.saturating_sub(before.1) / frames);
    Ok(Row {
        what: "relay: CPU per SSE frame",
        measured: format!(
            "{} ns (server {}, bridge {})",
            (server + bridge).as_nanos(),
            server.as_nanos(),
            bridge.as_nanos()
        ),
        beside: format!("a burst of 4,000 frames takes {}", times.summary()),
        ratio: None,
        reach: "1 µs",
        reached: server + bridge <= FRAME,
    })
}

async fn burst(scale: Scale) -> anyhow::Result<Row> {
    let app = server().start().await;
    let session = app.session().await;
    app.wait_warm(1).await;
    let mut alone = Alone::start_rehearsed(&real_claude(), &app.model.base_url())?;
    let mut connection = Connection::open(app.address(), app.api_key())?;
    let (path, message) = (messages_path(&session.id), message(BURST));
    let (mut with_ash, mut without) = (Times::default(), Times::default());
    for round in 0..=scale.bursts {
        let turn = alone.say(BURST, PARTIAL)?;
        pause();
        let answer = connection.send("POST", &path, &message, &[PARTIAL, b"event: turn_complete"])?;
        pause();
        if round > 0 {
            without.push(turn.whole.saturating_sub(turn.seen.context("no partial message")?));
            with_ash.push(answer.at(1)?.saturating_sub(answer.at(0)?));
        }
    }
    let ratio = ratio(with_ash.median(), without.median());
    Ok(Row {
        what: "a burst of 2,000 deltas of the real Claude Code: first partial to result",
        measured: with_ash.summary(),
        beside: format!("CLI alone {}", without.summary()),
        ratio,
        reach: "as fast as the CLI prints it",
        reached: ratio.is_some_and(|ratio| ratio <= AS_FAST),
    })
}
