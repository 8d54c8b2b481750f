//! Rows that a turn writes into Postgres, as Postgres counts them.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context, ensure};

use super::{
    create::{create, end},
    site::Site,
};
use crate::bench::{
    report::Row,
    rows::{Scale, message, messages_path},
};

const AGENT: &str = "counted";
/// The turn: 500 deltas as fast as the model can say them, or in one and a half seconds.
const BURST: &str = "[[burst: 500]]";
const PACED: &str = "[[pace: 3ms]] [[burst: 500]]";
/// The goal.
const GOAL: f64 = 5.0;
/// Until a connection that does nothing has told what it wrote: ten seconds (`PGSTAT_IDLE_INTERVAL`), and a margin.
const TOLD: Duration = Duration::from_secs(12);
/// What runners and coordinators say of themselves all the time, whoever talks.
const HEARTBEATS: [&str; 2] = ["runners", "coordinators"];

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    site.agent(AGENT, 1)?;
    let mut connection = site.connection()?;
    let (_, id) = create(&mut connection, AGENT)?;
    let mut say = |text: &str| -> anyhow::Result<()> {
        let turn = connection.send("POST", &messages_path(&id), &message(text), &[b"event: done"])?;
        turn.at(0)?;
        ensure!(turn.frames() >= 500 || text == "hello", "{} frames", turn.frames());
        Ok(())
    };
    say("hello")?;
    site.cluster.eventually("another sandbox is warm", |_| {
        let statement = "SELECT COUNT(*) FROM sandboxes WHERE state = 'starting'";
        (site.query(statement).ok()?.trim() == "0").then_some(())
    });
    let mut of = |text: &str| -> anyhow::Result<(f64, String)> {
        thread::sleep(TOLD);
        let before = written(site)?;
        for _ in 0..scale.counted {
            say(text)?;
            // The turn's end is committed before the next one begins, as between turns of a person.
            thread::sleep(Duration::from_secs(1));
        }
        thread::sleep(TOLD);
        let after = written(site)?;
        let turns = f64::from(u32::try_from(scale.counted)?);
        #[allow(clippy::cast_precision_loss, reason = "a few thousand rows")]
        let per_turn: Vec<(String, f64)> = after
            .iter()
            .map(|(table, count)| (table.clone(), (count - before.get(table).unwrap_or(&0)) as f64 / turns))
            .filter(|(table, count)| *count > 0.0 && !HEARTBEATS.contains(&table.as_str()))
            .collect();
        let said: Vec<String> = per_turn.iter().map(|(table, count)| format!("{table} {count:.1}")).collect();
        Ok((per_turn.iter().map(|(_, count)| count).sum(), said.join(", ")))
    };
    let (burst, of_burst) = of(BURST)?;
    let (paced, of_paced) = of(PACED)?;
    end(&mut connection, &id)?;
    site.forget(AGENT)?;
    Ok(vec![Row {
        what: "database writes per turn of 500 deltas without tools",
        measured: format!("{burst:.1} rows ({of_burst})"),
        beside: format!("the deltas 3 ms apart: {paced:.1} rows ({of_paced})"),
        ratio: None,
        reach: "5 rows",
        reached: burst <= GOAL,
    }])
}

/// Rows that were inserted, updated or deleted since the server began, by table.
fn written(site: &Site<'_>) -> anyhow::Result<BTreeMap<String, i64>> {
    let text = site.query("SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables")?;
    let line = |line: &str| -> anyhow::Result<(String, i64)> {
        let (table, count) = line.split_once('|').context("a table and a number")?;
        Ok((table.to_owned(), count.parse()?))
    };
    text.lines().map(line).collect()
}
