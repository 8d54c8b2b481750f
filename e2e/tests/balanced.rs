//! Two coordinators on one Postgres database behind `HAProxy`, with the configuration that people get, as real processes with the real
//! Claude Code before the scripted model: whichever coordinator serves a client is killed, and the client goes on at the other one.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ash_client::{Client, FrameStream, Step, StreamOptions};
use ash_e2e::harness::{DEADLINE, TestFleet, Turn, burst, check_order, compare_with_log, counted, eventually, program};
use ash_test_postgres::Postgres;
use tokio::time::timeout;

/// Deltas of a turn that is disturbed, and the pause before each.
const DELTAS: usize = 300;
const PACE: Duration = Duration::from_millis(5);
/// Readers of one session, and what they read: slower, because each of them has all of it on the processors of one machine.
const READERS: u64 = 200;
const READ_DELTAS: usize = 200;
const READ_PACE: Duration = Duration::from_millis(30);

/// What a client saw of a turn, and of its connection.
#[derive(Debug, Default)]
struct Seen {
    turn: Turn,
    lost: u64,
    resumed: u64,
    /// Frames that came twice over the wire.
    repeated: u64,
}

impl Seen {
    /// Reads on through the turn's `done`, and counts every text delta on the way.
    async fn read(&mut self, stream: &mut FrameStream, deltas: &AtomicU64) {
        loop {
            let step = timeout(DEADLINE, stream.step()).await;
            let step = step.unwrap_or_else(|_| panic!("the stream says no more after {:?}", self.turn.names()));
            match step.expect("the stream goes on").expect("the stream resumes by itself") {
                Step::Frame(frame) => {
                    let (is_delta, is_done) = (frame.event == "text_delta", frame.event == "done");
                    self.turn.frames.push(frame);
                    deltas.fetch_add(u64::from(is_delta), Ordering::SeqCst);
                    if is_done {
                        break;
                    }
                }
                Step::Lost { .. } => self.lost += 1,
                Step::Resumed { .. } => self.resumed += 1,
            }
        }
        self.repeated = stream.repeated();
    }

    /// The turn came whole, in order, and nothing of it twice.
    fn check(&self, deltas: usize, what: &str) {
        assert_eq!((self.turn.error(), self.turn.deltas()), (None, counted(deltas)), "{what}: {:?}", self.turn.names());
        assert!(!self.turn.names().contains(&"withdrawn"), "{what}: {:?}", self.turn.names());
        check_order(&self.turn.frames);
        assert_eq!((self.repeated, self.lost), (0, self.resumed), "{what}");
    }
}

/// Waits until so many deltas were counted.
async fn come(deltas: &AtomicU64, count: u64) {
    eventually("the turn is on its way", async || (deltas.load(Ordering::SeqCst) >= count).then_some(())).await;
}

/// Starts the coordinator again that was killed, and waits until the balancer asks both.
async fn bring_back(fleet: &mut TestFleet, number: usize) {
    if number == 0 {
        fleet.start_coordinator().await;
    } else {
        fleet.start_other().await;
    }
    eventually("the balancer takes both for ready", async || {
        (fleet.balancer.as_ref()?.ready().await? == 2).then_some(())
    })
    .await;
}

/// The coordinator that has the only stream.
async fn the_one_that_serves(fleet: &TestFleet) -> usize {
    eventually("one stream is open", async || {
        let (serving, open) = fleet.busiest().await;
        (open == 1).then_some(serving)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_behind_haproxy_goes_on_when_the_coordinator_that_serves_it_is_killed() {
    let server = Postgres::start();
    let mut fleet = TestFleet::start_balanced(&server.url("postgres"), 2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: begin]]").await.error(), None);
    for round in 0..3 {
        let balanced: Client = fleet.balanced().clone();
        let mut stream = balanced.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken");
        let deltas = Arc::new(AtomicU64::new(0));
        let counting = Arc::clone(&deltas);
        let reading = tokio::spawn(async move {
            let mut seen = Seen::default();
            seen.read(&mut stream, &counting).await;
            seen
        });
        come(&deltas, 30 * (round + 1)).await;
        let serving = the_one_that_serves(&fleet).await;
        fleet.coordinators[serving].kill();
        let seen = reading.await.expect("a reader that reads to the end");
        let what = format!("round {round}");
        seen.check(DELTAS, &what);
        assert_eq!(seen.resumed, 1, "{what}");
        compare_with_log(&balanced, &session, &seen.turn.frames, &what).await;
        bring_back(&mut fleet, serving).await;
    }
    let counted = balanced_say(&fleet, &session.id, "[[count]]").await;
    assert_eq!(counted.result().as_deref(), Some("5"), "{:?}", counted.error());
}

async fn balanced_say(fleet: &TestFleet, session: &str, text: &str) -> Turn {
    let message = ash_client::Message::text(text);
    Turn::read(fleet.balanced().send_message(session, &message).await.expect("the message is taken")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_readers_of_one_session_lose_and_double_nothing_when_a_coordinator_is_killed() {
    let server = Postgres::start();
    let mut fleet = TestFleet::start_balanced(&server.url("postgres"), 1, &["--max-sandboxes=2", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    let begun = fleet.say(&session, "[[text: begin]]").await;
    assert_eq!(begun.error(), None);
    let seen = begun.frames.last().and_then(|frame| frame.id.clone());
    let options = StreamOptions { follow: true, include_partial_messages: true };
    let mut streams = Vec::new();
    for _ in 0..READERS {
        streams.push(fleet.balanced().stream(&session.id, seen.as_deref(), options).await.expect("a stream"));
    }
    let deltas = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let deltas = Arc::clone(&deltas);
            tokio::spawn(async move {
                let mut seen = Seen::default();
                seen.read(&mut stream, &deltas).await;
                seen
            })
        })
        .collect();
    let balanced = fleet.balanced().clone();
    let message = burst(READ_DELTAS, READ_PACE);
    let mut stream = balanced.send_message(&session.id, &message).await.expect("the message is taken");
    let sender = tokio::spawn(async move {
        let mut seen = Seen::default();
        seen.read(&mut stream, &AtomicU64::new(0)).await;
        seen
    });
    come(&deltas, READERS * 20).await;
    let (busiest, open) = fleet.busiest().await;
    assert_eq!(open, READERS + 1);
    fleet.coordinators[busiest].kill();
    let sent = sender.await.expect("a sender that reads to the end");
    sent.check(READ_DELTAS, "the sender");
    compare_with_log(&balanced, &session, &sent.turn.frames, "the sender").await;
    let mut resumed = 0;
    let mut first: Option<Turn> = None;
    for (number, reader) in readers.into_iter().enumerate() {
        let seen = reader.await.expect("a reader that reads to the end");
        let what = format!("reader {number}");
        seen.check(READ_DELTAS, &what);
        resumed += u64::from(seen.resumed > 0);
        if let Some(first) = &first {
            assert_eq!(seen.turn.frames, first.frames, "{what} and the first one");
        } else {
            compare_with_log(&balanced, &session, &seen.turn.frames, &what).await;
            first = Some(seen.turn);
        }
    }
    // Half of them were at the coordinator that was killed, the others noticed nothing.
    assert!((READERS / 4..=READERS * 3 / 4).contains(&resumed), "{resumed} of {READERS} were resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chat_of_a_person_goes_on_and_says_that_it_was_resumed() {
    let server = Postgres::start();
    let mut fleet = TestFleet::start_balanced(&server.url("postgres"), 1, &["--max-sandboxes=2", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let address = fleet.balancer.as_ref().expect("a balancer").address;
    let mut chat = Command::new(program("ash"))
        .args(["chat", "simple"])
        .env_clear()
        .env("ASH_URL", format!("http://{address}"))
        .env("ASH_API_KEY", fleet.api_key())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ash starts");
    let line = format!("[[pace: {}ms]] [[burst: {DELTAS}]]\n", PACE.as_millis() * 2);
    chat.stdin.take().expect("its input").write_all(line.as_bytes()).expect("a line");
    eventually("the model answers", async || (fleet.model.turn_requests() > 0).then_some(())).await;
    let serving = the_one_that_serves(&fleet).await;
    fleet.coordinators[serving].kill();
    let output = tokio::task::spawn_blocking(move || chat.wait_with_output()).await.expect("a thread");
    let output = output.expect("ash ends");
    let (said, noted) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said} {noted}");
    assert_eq!(said.trim(), counted(DELTAS).trim());
    assert!(noted.contains("Connection lost, reconnecting") && noted.contains("Connection lost, resumed"), "{noted}");
}
