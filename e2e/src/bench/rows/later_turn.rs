//! Later turns of one conversation, beside Claude Code alone: time to the first partial message, and processor time.

use std::time::Duration;

use anyhow::Context;

use super::{BRIDGE, CLAUDE, PARTIAL, Scale, WARM_UP, message, messages_path, pause, ratio, server};
use crate::{
    bench::{
        alone::Alone,
        connection::Connection,
        processes::cpu,
        report::Row,
        statistics::{Times, milliseconds},
    },
    harness::{pid_of, real_claude},
};

/// What Ash may add to the first partial message.
const ADDED: Duration = Duration::from_millis(1);
/// What Ash may add in processor time.
const ADDED_CPU: Duration = Duration::from_millis(2);

pub(super) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let app = server().start().await;
    let session = app.session().await;
    app.wait_warm(1).await;
    let mut alone = Alone::start_rehearsed(&real_claude(), &app.model.base_url())?;
    let mut connection = Connection::open(app.address(), app.api_key())?;
    let (path, message) = (messages_path(&session.id), message("hello"));
    for _ in 0..WARM_UP {
        alone.say("hello", PARTIAL)?;
        connection.send("POST", &path, &message, &[])?;
        pause();
    }
    let sandbox = app.session_folder(&session.id);
    let pid = |name: &str| pid_of(&sandbox, name).with_context(|| format!("no {name} in the sandbox"));
    let processes = [app.server_pid(), pid(BRIDGE)?, pid(CLAUDE)?, alone.pid()];
    let before: Vec<Duration> = processes.iter().map(|pid| cpu(*pid)).collect::<Result<_, _>>()?;
    let (mut with_ash, mut without) = (Times::default(), Times::default());
    for _ in 0..scale.turns {
        without.push(alone.say("hello", PARTIAL)?.seen.context("no partial message")?);
        pause();
        with_ash.push(connection.send("POST", &path, &message, &[PARTIAL])?.at(0)?);
        pause();
    }
    let turns = u32::try_from(scale.turns)?;
    let after: Vec<Duration> = processes.iter().map(|pid| cpu(*pid)).collect::<Result<_, _>>()?;
    let per_turn: Vec<Duration> =
        after.iter().zip(before).map(|(after, before)| after.saturating_sub(before) / turns).collect();
    let (ash, cli) = (per_turn[..3].iter().sum::<Duration>(), per_turn[3]);
    Ok(vec![
        Row {
            what: "later turn, real Claude Code: POST to first partial",
            measured: with_ash.summary(),
            beside: format!("CLI alone {}", without.summary()),
            ratio: ratio(with_ash.median(), without.median()),
            reach: "CLI alone + 1 ms",
            reached: with_ash.median() <= without.median() + ADDED,
        },
        Row {
            what: "CPU outside the model per turn",
            measured: format!(
                "{} (server {}, bridge {}, Claude Code {})",
                milliseconds(ash),
                milliseconds(per_turn[0]),
                milliseconds(per_turn[1]),
                milliseconds(per_turn[2])
            ),
            beside: format!("CLI alone {}", milliseconds(cli)),
            ratio: ratio(ash, cli),
            reach: "CLI alone + 2 ms",
            reached: ash <= cli + ADDED_CPU,
        },
    ])
}
