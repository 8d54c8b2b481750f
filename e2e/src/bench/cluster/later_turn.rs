//! Later turns of one conversation in a sandbox pod, beside Claude Code alone on the node.

use std::time::Duration;

use anyhow::Context;

use super::{
    create::{create, end},
    site::Site,
};
use crate::{
    bench::{
        alone::Alone,
        report::Row,
        rows::{PARTIAL, Scale, WARM_UP, message, messages_path, pause, ratio},
        statistics::Times,
    },
    harness::real_claude,
};

const AGENT: &str = "talking";
/// What Ash may add to the first partial message.
const ADDED: Duration = Duration::from_millis(2);

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    site.agent(AGENT, 1)?;
    let mut connection = site.connection()?;
    let (_, id) = create(&mut connection, AGENT)?;
    let mut alone = Alone::start_rehearsed(&real_claude(), &site.model())?;
    // The pod that takes the place of the claimed one is warm.
    site.cluster.eventually("another sandbox is warm", |_| {
        let statement = "SELECT COUNT(*) FROM sandboxes WHERE state = 'starting'";
        (site.query(statement).ok()?.trim() == "0").then_some(())
    });
    let (path, message) = (messages_path(&id), message("hello"));
    let (mut with_ash, mut without) = (Times::default(), Times::default());
    for number in 0..WARM_UP + scale.turns {
        let own = alone.say("hello", PARTIAL)?.seen.context("no partial message")?;
        pause();
        let turn = connection.send("POST", &path, &message, &[PARTIAL])?.at(0)?;
        pause();
        if number >= WARM_UP {
            without.push(own);
            with_ash.push(turn);
        }
    }
    end(&mut connection, &id)?;
    site.forget(AGENT)?;
    Ok(vec![Row {
        what: "later turn, real Claude Code in its pod: POST to first partial",
        measured: with_ash.summary(),
        beside: format!("CLI alone {}", without.summary()),
        ratio: ratio(with_ash.median(), without.median()),
        reach: "CLI alone + 2 ms",
        reached: with_ash.median() <= without.median() + ADDED,
    }])
}
