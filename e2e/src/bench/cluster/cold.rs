//! Sessions without a pool, the image being there: from the creation to the first partial message, beside what no sandbox can do
//! without: a pod of the image that becomes `Ready`, and Claude Code that starts and answers.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{create::end, site::Site};
use crate::{
    bench::{
        alone::Alone,
        report::Row,
        rows::{PARTIAL, Scale, message, messages_path, ratio},
        statistics::Times,
    },
    harness::real_claude,
};

const AGENT: &str = "cold";
/// What Ash may add to the sum of both.
const ADDED: Duration = Duration::from_millis(150);

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    site.agent(AGENT, 0)?;
    let mut connection = site.connection()?;
    let (mut cold, mut pod, mut cli, mut both) =
        (Times::default(), Times::default(), Times::default(), Times::default());
    for number in 0..=scale.cold {
        let ready = site.pod_ready()?;
        site.settled(AGENT, 0)?;
        let start = Instant::now();
        let mut alone = Alone::start(&real_claude(), &site.model())?;
        let initialised = start.elapsed();
        let own = initialised + alone.say("hello", PARTIAL)?.seen.context("no partial message")?;
        drop(alone);
        let start = Instant::now();
        let created = connection.send("POST", "/api/sessions", &format!(r#"{{"agent":"{AGENT}"}}"#), &[])?;
        ensure!(created.status == 201, "{}", created.json()?);
        let id = created.json()?["session"]["id"].as_str().context("a session's id")?.to_owned();
        let before = start.elapsed();
        let turn = connection.send("POST", &messages_path(&id), &message("hello"), &[PARTIAL])?;
        // The first one finds nothing in any cache.
        if number > 0 {
            cold.push(before + turn.at(0)?);
            pod.push(ready);
            cli.push(own);
            both.push(ready + own);
        }
        end(&mut connection, &id)?;
        site.settled(AGENT, 0)?;
    }
    site.forget(AGENT)?;
    Ok(vec![Row {
        what: "cold: no pool, image present, POST of the session to first partial",
        measured: cold.summary(),
        beside: format!(
            "{}: pod of the image to Ready {}, CLI's own start to first partial {}",
            both.summary(),
            pod.summary(),
            cli.summary()
        ),
        ratio: ratio(cold.median(), both.median()),
        reach: "pod Ready + CLI's own start + 150 ms",
        reached: cold.median() <= both.median() + ADDED,
    }])
}
