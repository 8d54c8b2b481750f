//! Messages that wait for their turn, with the real Claude Code: they run next and once, whatever is killed in between, can be
//! listed and taken back, and wait for a person who put their session aside.

use std::collections::BTreeMap;

use ash_client::{Client, FrameStream, Message, QueueEntry, Session};
use ash_e2e::harness::{TestApp, TestFleet, Turn, eventually};
use ash_test_postgres::Postgres;

/// Kills of one run; `ASH_KILL_ROUNDS` asks for more.
const ROUNDS: usize = 6;

/// A message of this name that is answered at once.
fn named(name: &str) -> Message {
    Message::text(format!("({name}) [[text: answer of {name}]]"))
}

fn waiting(name: &str) -> Message {
    Message { queue: true, ..named(name) }
}

/// Begins a turn that runs until it is interrupted.
async fn occupy(client: &Client, session: &Session) -> (Turn, FrameStream) {
    let message = Message::text("[[text: occupied]] [[delay: 600s]] [[text: never]]");
    let mut stream = client.send_message(&session.id, &message).await.expect("the message is taken");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "text_delta").await;
    (turn, stream)
}

async fn free(client: &Client, session: &Session, occupied: (Turn, FrameStream)) {
    client.interrupt(&session.id).await.expect("an interrupt");
    let (mut turn, stream) = occupied;
    turn.read_rest(stream).await;
}

async fn queue(client: &Client, session: &Session, name: &str) -> QueueEntry {
    client.queue_message(&session.id, &named(name), name).await.expect("the message is queued")
}

/// What has become of every message, by its name.
async fn statuses(client: &Client, session: &Session) -> BTreeMap<String, String> {
    let entries = client.queue(&session.id).await.expect("the queue");
    let name = |entry: &QueueEntry| entry.preview.split(['(', ')']).nth(1).unwrap_or_default().to_owned();
    entries.iter().map(|entry| (name(entry), entry.status.clone())).collect()
}

async fn status(client: &Client, session: &Session, name: &str) -> Option<String> {
    statuses(client, session).await.remove(name)
}

async fn settled(client: &Client, session: &Session, name: &str) -> String {
    eventually("the message is over", async || {
        status(client, session, name).await.filter(|status| !matches!(&**status, "pending" | "processing"))
    })
    .await
}

/// The names of the messages that the model is shown, in their order.
async fn shown(client: &Client, session: &Session) -> Vec<String> {
    let history = eventually("a turn of one's own", async || {
        let stream = client.send_message(&session.id, &Message::text("[[history]]")).await.ok()?;
        Turn::read(stream).await.result()
    })
    .await;
    history.split("(m-").skip(1).filter_map(|rest| Some(format!("m-{}", rest.split_once(')')?.0))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_waits_for_its_turn_is_listed_and_is_taken_back() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let occupied = occupy(&app.client, &session).await;
    let refused = app.client.send_message(&session.id, &named("m-refused")).await.expect_err("a turn runs");
    assert_eq!(refused.status(), Some(409), "{refused}");

    let one = queue(&app.client, &session, "m-one").await;
    let two = queue(&app.client, &session, "m-two").await;
    assert_eq!(queue(&app.client, &session, "m-one").await.id, one.id, "a repeat is the same");
    let three = app.client.send_message_as(&session.id, &waiting("m-three"), "m-three").await.expect("a stream");
    let four = app.client.send_message_as(&session.id, &waiting("m-four"), "m-four").await.expect("a stream");
    let entries = app.client.queue(&session.id).await.expect("the queue");
    assert!(entries.iter().all(|entry| entry.status == "pending"), "{entries:?}");
    assert!(entries.is_sorted_by_key(|entry| entry.position), "{entries:?}");
    assert_eq!(entries.len(), 4);
    for _ in 0..2 {
        assert_eq!(app.client.take_back(&session.id, &two.id).await.expect("taken back").status, "cancelled");
    }
    // Whoever waits for one that is taken back is told.
    app.client.take_back(&session.id, &entries[3].id).await.expect("taken back");
    let told = Turn::read(four).await;
    assert_eq!(told.names().last(), Some(&"done"), "{:?}", told.names());
    assert_eq!(told.error().as_deref(), Some("It was taken back."));

    free(&app.client, &session, occupied).await;
    let answered = Turn::read(three).await;
    assert_eq!(answered.result().as_deref(), Some("answer of m-three"), "{:?}", answered.error());
    assert!(!answered.deltas().contains("m-one"), "nothing of another's turn: {}", answered.deltas());
    assert_eq!(settled(&app.client, &session, "m-three").await, "completed");
    assert_eq!(shown(&app.client, &session).await, ["m-one", "m-three"]);
    let expected = [("m-four", "cancelled"), ("m-one", "completed"), ("m-three", "completed"), ("m-two", "cancelled")];
    let expected = expected.map(|(name, status)| (name.to_owned(), status.to_owned()));
    assert_eq!(statuses(&app.client, &session).await, BTreeMap::from(expected));

    let over = app.client.take_back(&session.id, &one.id).await.expect_err("its turn has come");
    assert_eq!(over.status(), Some(409), "{over}");
    let unknown = app.client.take_back(&session.id, &session.id).await.expect_err("there is none");
    assert_eq!(unknown.status(), Some(404), "{unknown}");
    // A repeat reads the turn that there was; one with nothing before it begins at once.
    let again = app.client.send_message_as(&session.id, &waiting("m-three"), "m-three").await.expect("a stream");
    assert_eq!(Turn::read(again).await.result().as_deref(), Some("answer of m-three"));
    let alone = app.send(&session, &waiting("m-five")).await;
    assert_eq!(alone.result().as_deref(), Some("answer of m-five"), "{:?}", alone.error());
    assert_eq!(shown(&app.client, &session).await, ["m-one", "m-three", "m-five"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_outlives_its_server_and_runs_once() {
    let mut app = TestApp::builder().argument("--shutdown-timeout=1s").start().await;
    let session = app.session().await;
    let occupied = occupy(&app.client, &session).await;
    for name in ["m-one", "m-two"] {
        queue(&app.client, &session, name).await;
    }
    let three = app.client.send_message_as(&session.id, &waiting("m-three"), "m-three").await.expect("a stream");
    app.kill();
    app.start_again().await;
    let names = ["m-one", "m-three", "m-two"].map(|name| (name.to_owned(), "pending".to_owned()));
    assert_eq!(statuses(&app.client, &session).await, BTreeMap::from(names));
    free(&app.client, &session, occupied).await;
    // The stream that was cut with the server goes on by itself.
    let answered = Turn::read(three).await;
    assert_eq!(answered.result().as_deref(), Some("answer of m-three"), "{:?}", answered.error());
    assert_eq!(shown(&app.client, &session).await, ["m-one", "m-two", "m-three"]);
    // A graceful stop leaves what waits to the next server, which wakes the session for it.
    let occupied = occupy(&app.client, &session).await;
    queue(&app.client, &session, "m-four").await;
    app.stop();
    drop(occupied);
    app.start_again().await;
    assert_eq!(settled(&app.client, &session, "m-four").await, "completed");
    assert_eq!(shown(&app.client, &session).await, ["m-one", "m-two", "m-three", "m-four"]);
}

/// The server is killed while a message that waited is being begun, at every moment that can be seen from outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_beginning_is_cut_off_begins_at_most_once() {
    let rounds = std::env::var("ASH_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut app = TestApp::start().await;
    let session = app.session().await;
    let mut completed = Vec::new();
    for round in 0..rounds {
        let occupied = occupy(&app.client, &session).await;
        let name = format!("m-{round}");
        queue(&app.client, &session, &name).await;
        let (kill_at_once, client) = (round % 2 == 0, app.client.clone());
        client.interrupt(&session.id).await.expect("an interrupt");
        if !kill_at_once {
            eventually("it is being begun", async || {
                status(&client, &session, &name).await.filter(|status| status != "pending")
            })
            .await;
        }
        app.kill();
        drop(occupied);
        app.start_again().await;
        let settled = settled(&app.client, &session, &name).await;
        let shown = shown(&app.client, &session).await;
        let times = shown.iter().filter(|shown| **shown == name).count();
        eprintln!("round {round}: {settled}, shown {times} times");
        if settled == "completed" {
            completed.push(name);
            assert_eq!(times, 1, "round {round}: {shown:?}");
        }
        assert!(times <= 1, "round {round}: {shown:?}");
    }
    // A server's death alone ends no turn, and nothing that waits.
    assert_eq!(completed.len(), rounds);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_stays_while_a_person_has_put_its_session_aside() {
    let mut app = TestApp::start().await;
    let session = app.session().await;
    let (_turn, _stream) = occupy(&app.client, &session).await;
    queue(&app.client, &session, "m-one").await;
    assert_eq!(app.client.pause_session(&session.id).await.expect("an answer").status, "paused");
    let refused = app.client.queue_message(&session.id, &named("m-two"), "m-two").await.expect_err("it is paused");
    assert_eq!(refused.status(), Some(400), "{refused}");
    app.kill();
    app.start_again().await;
    // Where the turn's end came before the pause, it may have been claimed: then it waits again when the claim is over.
    eventually("it waits", async || status(&app.client, &session, "m-one").await.filter(|status| status == "pending"))
        .await;
    assert_eq!(app.client.stop_session(&session.id).await.expect("an answer").status, "stopped");
    // Another session's queue is looked after meanwhile: this one was looked at, and left alone.
    let other = app.session_of("simple").await;
    queue(&app.client, &other, "m-other").await;
    assert_eq!(settled(&app.client, &other, "m-other").await, "completed");
    assert_eq!(status(&app.client, &session, "m-one").await.as_deref(), Some("pending"));
    app.client.resume_session(&session.id).await.expect("an answer");
    assert_eq!(settled(&app.client, &session, "m-one").await, "completed");
    assert_eq!(shown(&app.client, &session).await, ["m-one"]);

    let (_turn, _stream) = occupy(&app.client, &session).await;
    queue(&app.client, &session, "m-three").await;
    app.client.end_session(&session.id).await.expect("an end");
    assert_eq!(settled(&app.client, &session, "m-three").await, "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_wakes_its_session_when_there_is_room() {
    let app = TestApp::builder().argument("--max-sandboxes=1").argument("--warm=0").start().await;
    let (session, other) = (app.session().await, app.session().await);
    app.say(&session, "(m-first) [[text: mine]]").await;
    // The other one takes the only sandbox, and keeps it.
    let occupied = occupy(&app.client, &other).await;
    assert_eq!(app.client.session(&session.id).await.expect("the session").status, "paused");
    queue(&app.client, &session, "m-second").await;
    free(&app.client, &other, occupied).await;
    assert_eq!(settled(&app.client, &session, "m-second").await, "completed");
    assert_eq!(shown(&app.client, &session).await, ["m-first", "m-second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_has_its_bounds() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let occupied = occupy(&app.client, &session).await;
    let first = queue(&app.client, &session, "m-0").await;
    for number in 1..32 {
        queue(&app.client, &session, &format!("m-{number}")).await;
    }
    let full = app.client.queue_message(&session.id, &named("m-32"), "m-32").await.expect_err("it is full");
    assert_eq!(full.status(), Some(429), "{full}");
    app.client.take_back(&session.id, &first.id).await.expect("taken back");
    queue(&app.client, &session, "m-32").await;
    let large = Message::text("x".repeat((8 << 20) + 1));
    let refused = app.client.queue_message(&session.id, &large, "large").await.expect_err("it is too large");
    assert_eq!(refused.status(), Some(413), "{refused}");
    assert!(app.metric("ash_api_queue_full_total").await >= 1);
    for entry in app.client.queue(&session.id).await.expect("the queue") {
        if entry.status == "pending" {
            app.client.take_back(&session.id, &entry.id).await.expect("taken back");
        }
    }
    free(&app.client, &session, occupied).await;
    assert_eq!(shown(&app.client, &session).await, Vec::<String>::new());
}

/// Two coordinators on Postgres: one queues, the other one goes on when it is killed; and a runner that is lost takes nothing of what
/// waits with it.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_fleet_any_coordinator_begins_what_waits() {
    let server = Postgres::start();
    let mut fleet = TestFleet::start_on(&server.url("postgres"), 2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    let occupied = occupy(&fleet.client, &session).await;
    queue(&fleet.client, &session, "m-one").await;
    let followed = fleet.other().send_message_as(&session.id, &waiting("m-two"), "m-two").await.expect("a stream");
    free(fleet.other(), &session, occupied).await;
    let answered = Turn::read(followed).await;
    assert_eq!(answered.result().as_deref(), Some("answer of m-two"), "{:?}", answered.error());
    assert_eq!(shown(&fleet.client, &session).await, ["m-one", "m-two"]);

    // The runner that the session is on is gone before its turn has come.
    let had = fleet.runner_of(&session).await;
    let (_turn, _stream) = occupy(&fleet.client, &session).await;
    queue(&fleet.client, &session, "m-three").await;
    fleet.runners[had].kill_with_node();
    assert_eq!(settled(&fleet.client, &session, "m-three").await, "completed");
    assert_ne!(fleet.runner_of(&session).await, had);

    // So is the coordinator that took it. It is the last to go: nobody calls a runner lost that it may have heard.
    let other = fleet.other().clone();
    let occupied = occupy(&other, &session).await;
    queue(&fleet.client, &session, "m-four").await;
    fleet.kill_coordinator();
    free(&other, &session, occupied).await;
    assert_eq!(settled(&other, &session, "m-four").await, "completed");
    assert_eq!(shown(&other, &session).await, ["m-one", "m-two", "m-three", "m-four"]);
}
