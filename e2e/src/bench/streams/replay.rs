//! A long log, read from its beginning by one reader.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ash_test_postgres::Postgres;
use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{coordinator, ids::Ids};
use crate::{
    bench::{
        processes::resident_bytes,
        report::Row,
        rows::{Scale, mebibytes},
        statistics::{Times, milliseconds},
    },
    harness::{TestApp, eventually, program},
    model::Script,
};

/// Text deltas of one turn; each is an entry.
const BURST: usize = 2000;
/// Times that it is read.
const READS: usize = 5;
/// The goals: events per second, and what the server may grow by.
const PER_SECOND: f64 = 200_000.0;
const GROWTH: u64 = 32 << 20;

/// What came of the reads.
struct Replayed {
    entries: usize,
    times: Times,
    growth: u64,
}

impl Replayed {
    #[allow(clippy::cast_precision_loss, reason = "hundreds of thousands")]
    fn per_second(&self) -> f64 {
        self.entries as f64 / self.times.median().as_secs_f64()
    }
}

pub(crate) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let turns = scale.replayed.div_ceil(BURST);
    let burst = format!("[[burst: {BURST}]]");
    let app = TestApp::builder()
        .log(super::LOG)
        .model(Script::directives().keep(16))
        .claude(program("stand-in-claude"))
        .argument("--compact-after=1h")
        .start()
        .await;
    let session = app.session().await;
    for _ in 0..turns {
        app.say(&session, &burst).await;
    }
    let near = replay(app.address(), app.api_key(), &session.id, app.server_pid(), turns * BURST).await?;
    drop(app);
    let postgres = Postgres::start();
    let fleet = coordinator(postgres.url("postgres"), 2, true).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    for _ in 0..turns {
        fleet.say(&session, &burst).await;
    }
    let far = replay(fleet.address(), fleet.api_key(), &session.id, fleet.coordinators[0].pid(), turns * BURST).await?;
    Ok(vec![Row {
        what: "replay of 100,000 events to a reader",
        measured: format!(
            "{:.0}/s ({} events in {}), the server grows by {:.0} MiB",
            near.per_second(),
            near.entries,
            milliseconds(near.times.median()),
            mebibytes(near.growth)
        ),
        beside: format!(
            "a coordinator, from Postgres: {:.0}/s, grows by {:.0} MiB",
            far.per_second(),
            mebibytes(far.growth)
        ),
        ratio: None,
        reach: "200,000/s, memory bounded (32 MiB)",
        reached: near.per_second() >= PER_SECOND && near.growth.max(far.growth) <= GROWTH,
    }])
}

/// Reads the whole log, several times, once it is written.
async fn replay(address: SocketAddr, key: &str, session: &str, pid: u32, at_least: usize) -> anyhow::Result<Replayed> {
    eventually("all is in the log", async || {
        let (entries, _) = read(address, key, session).await.ok()?;
        (entries >= at_least).then_some(())
    })
    .await;
    let before = resident_bytes(pid)?;
    // The kernel counts the peak anew from here on.
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the peak of the memory cannot be counted anew")?;
    let (mut times, mut entries) = (Times::default(), 0);
    for _ in 0..READS {
        let (count, time) = read(address, key, session).await?;
        entries = count;
        times.push(time);
    }
    Ok(Replayed { entries, times, growth: peak_bytes(pid)?.saturating_sub(before) })
}

/// Reads a session's stream from its beginning to its end: the entries that had frames, and the time that it took.
async fn read(address: SocketAddr, key: &str, session: &str) -> anyhow::Result<(usize, Duration)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET /api/sessions/{session}/stream?after=0&includePartialMessages=true HTTP/1.1\r\nhost: {address}\r\n\
         authorization: Bearer {key}\r\nconnection: close\r\n\r\n"
    );
    let mut piece = vec![0; 256 << 10];
    let (mut ids, mut entries, mut last) = (Ids::default(), 0, 0);
    let start = Instant::now();
    stream.write_all(request.as_bytes()).await?;
    let mut is_first = true;
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            break;
        }
        if std::mem::take(&mut is_first) {
            ensure!(memmem::find(&piece[..count], b" 200 ").is_some(), "refused");
        }
        ids.feed(&piece[..count], |entry, _| {
            entries += usize::from(entry != last);
            last = entry;
        });
    }
    Ok((entries, start.elapsed()))
}

/// The most that was resident of a process since that was counted anew, in bytes.
fn peak_bytes(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
