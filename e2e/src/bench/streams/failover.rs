//! A coordinator behind the load balancer is killed: until its clients have the next event from the other one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ash_client::{FrameStream, Message, Step, StreamOptions};
use ash_test_postgres::Postgres;

use crate::{
    bench::{
        report::Row,
        rows::Scale,
        statistics::{Times, milliseconds},
    },
    harness::{FleetOptions, TestFleet, Turn, eventually},
};

/// Clients that read one session.
const READERS: usize = 200;
/// The pause before each text delta, and how many there are of a turn: 10 s.
const PACE: Duration = Duration::from_millis(20);
const DELTAS: usize = 500;
/// Deltas that all of them have seen when the coordinator is killed.
const SEEN: usize = 50;
/// The goal: so long after the load balancer noticed.
const RESUMED: Duration = Duration::from_secs(1);

pub(crate) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let postgres = Postgres::start();
    let options = FleetOptions {
        database: Some(postgres.url("postgres")),
        second_coordinator: true,
        balancer: true,
        log: Some(super::LOG),
        ..FleetOptions::default()
    };
    let mut fleet = TestFleet::start_with(1, &["--max-sandboxes=2", "--warm=0"], options).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await.id;
    let (mut times, mut noticed) = (Times::default(), Times::default());
    for _ in 0..scale.kills {
        round(&mut fleet, &session, &mut times, &mut noticed).await?;
    }
    let (resumed, slowest) = (times.percentile(99), noticed.percentile(100));
    Ok(vec![Row {
        what: "a coordinator killed: from the kill to the next event from the other one, through HAProxy",
        measured: format!("{} of {} clients in {} rounds", times.summary(), times.len(), scale.kills),
        beside: format!("HAProxy calls it down after {} at most", milliseconds(slowest)),
        ratio: None,
        reach: "p99 1 s after the load balancer notices",
        // From the kill on: whatever the load balancer needs is part of it.
        reached: resumed <= RESUMED,
    }])
}

async fn round(fleet: &mut TestFleet, session: &str, times: &mut Times, noticed: &mut Times) -> anyhow::Result<()> {
    let options = StreamOptions { follow: true, include_partial_messages: true };
    // Behind the end of a turn, which may not be in the log yet.
    let begun = Turn::read(fleet.balanced().send_message(session, &Message::text("[[text: begin]]")).await?).await;
    let seen = begun.frames.last().and_then(|frame| frame.id.clone());
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let stream = fleet.balanced().stream(session, seen.as_deref(), options).await?;
        readers.push(tokio::spawn(read(stream)));
    }
    let text = format!("[[pace: {}ms]] [[burst: {DELTAS}]]", PACE.as_millis());
    let mut sent = fleet.balanced().send_message(session, &Message::text(text)).await?;
    let mut turn = Turn::default();
    for _ in 0..SEEN {
        turn.read_until(&mut sent, "text_delta").await;
    }
    let (busiest, _) = fleet.busiest().await;
    let kill = Instant::now();
    fleet.coordinators[busiest].kill();
    eventually("the balancer notices", async || (fleet.balancer.as_ref()?.ready().await? == 1).then_some(())).await;
    noticed.push(kill.elapsed());
    let mut affected = 0;
    for reader in readers {
        for next in reader.await?? {
            affected += 1;
            times.push(next.duration_since(kill));
        }
    }
    ensure!(affected > 0, "nobody was at the coordinator that was killed");
    drop(sent);
    if busiest == 0 {
        fleet.start_coordinator().await;
    } else {
        fleet.start_other().await;
    }
    eventually("the balancer has both", async || (fleet.balancer.as_ref()?.ready().await? == 2).then_some(())).await;
    Ok(())
}

/// Reads to the turn's end: when the first event came after each loss of the connection.
async fn read(mut stream: FrameStream) -> anyhow::Result<Vec<Instant>> {
    let mut resumed = Vec::new();
    let mut is_lost = false;
    loop {
        match stream.step().await.context("a stream that follows does not end")?? {
            Step::Frame(frame) => {
                if frame.id.is_some() && std::mem::take(&mut is_lost) {
                    resumed.push(Instant::now());
                }
                if frame.event == "done" {
                    ensure!(stream.repeated() == 0, "a frame came twice");
                    return Ok(resumed);
                }
            }
            Step::Lost { .. } => is_lost = true,
            Step::Resumed { .. } => {}
        }
    }
}
