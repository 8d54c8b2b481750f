//! Sessions that are applied, one at a time, until they are `Ready`.

use std::time::Duration;

use super::site::Site;
use crate::bench::{
    report::Row,
    rows::{Scale, ratio},
    statistics::Times,
};

/// The agent, and its warm sandboxes.
const AGENT: &str = "applied";
const WARM: u32 = 3;
/// The goal at the median.
const WITHIN: Duration = Duration::from_millis(100);
/// Applications before the first that counts.
const WARM_UP: usize = 2;

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    site.agent(AGENT, WARM)?;
    let (mut ready, mut seen) = (Times::default(), Times::default());
    for number in 0..WARM_UP + scale.on_cluster {
        site.settled(AGENT, WARM)?;
        let own = site.apply_until_seen(AGENT)?;
        let (time, name) = site.apply_until_ready(AGENT)?;
        if number >= WARM_UP {
            seen.push(own);
            ready.push(time);
        }
        site.delete(&name);
    }
    site.forget(AGENT)?;
    Ok(vec![Row {
        what: "server-side apply of a Session by a Kubernetes client to `Ready`, warm, one at a time",
        measured: ready.summary(),
        beside: format!(
            "the API server's own, apply to watch event {}; agent-sandbox: p50 171 ms, min 62 ms",
            seen.summary()
        ),
        ratio: ratio(ready.median(), seen.median()),
        reach: "p50 100 ms",
        reached: ready.median() <= WITHIN,
    }])
}
