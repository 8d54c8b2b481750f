//! Two coordinators on one Postgres database, with runners that know both, as real processes with the real Claude Code before the
//! scripted model: any of them serves any session, one may die in the middle of a turn, and a runner is lost only by the rule.

use std::time::Duration;

use ash_client::{CreateSession, FrameStream, Message, Session, StreamOptions};
use ash_e2e::harness::{TestFleet, Turn, burst, check_order, compare_with_log, counted, eventually, signal};
use ash_test_postgres::Postgres;
use serde_json::{Value, json};

/// Deltas of a turn that is disturbed, and the pause before each.
const DELTAS: usize = 300;
const PACE: Duration = Duration::from_millis(3);
/// Longer than a runner may be silent (15 s), with the slack of a second in what is shown.
const LOST_FOR_LONG: u64 = 20;

const PARTIALS: StreamOptions = StreamOptions { include_partial_messages: true, follow: false };

/// The stream of a session at the second coordinator, after the last frame that a turn has.
async fn resumed(fleet: &TestFleet, session: &Session, turn: &Turn) -> FrameStream {
    let last = turn.frames.iter().rev().find_map(|frame| frame.id.clone());
    fleet.other().stream(&session.id, last.as_deref(), PARTIALS).await.expect("a stream")
}

async fn runners(fleet: &TestFleet) -> Vec<Value> {
    let (status, answer) = fleet.request("GET", "/api/runners", None).await;
    assert_eq!(status, 200, "{answer}");
    answer["runners"].as_array().cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_coordinator_is_served_by_the_other() {
    let server = Postgres::start();
    let fleet = TestFleet::start_on(&server.url("postgres"), 2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    // A reader at the second one follows what is said at the first, from before the first message on.
    let follow = StreamOptions { follow: true, ..PARTIALS };
    let mut followed = fleet.other().stream(&session.id, Some("0"), follow).await.expect("a stream");
    let turn = fleet.say(&session, "[[text: one]]").await;
    assert_eq!(turn.result().as_deref(), Some("one"), "{:?}", turn.error());
    let mut seen = Turn::default();
    seen.read_until(&mut followed, "done").await;
    drop(followed);
    assert_eq!((seen.result(), seen.deltas()), (turn.result(), turn.deltas()));
    compare_with_log(fleet.other(), &session, &turn.frames, "said at the first").await;

    // The second one sends to it, reads a turn that the first one began, interrupts it, and ends the session.
    let sent = fleet.other().send_message(&session.id, &Message::text("[[count]]")).await.expect("it is taken");
    assert_eq!(Turn::read(sent).await.result().as_deref(), Some("2"));
    let long = Message::text("[[text: to be cut off]] [[delay: 600s]] [[text: never]]");
    let mut stream = fleet.client.send_message(&session.id, &long).await.expect("the message is taken");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "text_delta").await;
    let first = turn.frames.iter().position(|frame| frame.id.is_some()).expect("an id");
    let begun = Turn { frames: turn.frames[..=first].to_vec() };
    assert!(begun.deltas().is_empty(), "{:?}", begun.names());
    let mut read = resumed(&fleet, &session, &begun).await;
    Turn::default().read_until(&mut read, "text_delta").await;
    fleet.other().interrupt(&session.id).await.expect("an interrupt");
    turn.read_rest(stream).await;
    assert!(turn.error().is_some(), "{:?}", turn.names());
    assert_eq!(fleet.other().end_session(&session.id).await.expect("an end").status, "ended");
    assert_eq!(fleet.client.session(&session.id).await.expect("the session").status, "ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_coordinator_is_killed_goes_on_at_the_other() {
    let server = Postgres::start();
    let mut fleet = TestFleet::start_on(&server.url("postgres"), 2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let sessions = [fleet.session_of("simple").await, fleet.session_of("simple").await];
    for session in &sessions {
        assert_eq!(fleet.say(session, "[[text: begin]]").await.error(), None);
    }
    let mut turns = Vec::new();
    for session in &sessions {
        let mut stream =
            fleet.client.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken");
        let mut turn = Turn::default();
        for _ in 0..20 {
            turn.read_until(&mut stream, "text_delta").await;
        }
        turns.push((turn, stream));
    }
    fleet.kill_coordinator();
    for ((mut turn, stream), session) in turns.into_iter().zip(&sessions) {
        drop(stream);
        turn.read_rest(resumed(&fleet, session, &turn).await).await;
        assert_eq!((turn.error(), turn.deltas()), (None, counted(DELTAS)), "{:?}", turn.names());
        check_order(&turn.frames);
        compare_with_log(fleet.other(), session, &turn.frames, "a coordinator killed").await;
        let sent = fleet.other().send_message(&session.id, &Message::text("[[count]]")).await.expect("it is taken");
        assert_eq!(Turn::read(sent).await.result().as_deref(), Some("3"));
    }
    // The first one comes back, and knows everything.
    fleet.start_coordinator().await;
    assert_eq!(fleet.say(&sessions[0], "[[count]]").await.result().as_deref(), Some("4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_is_lost_only_when_no_coordinator_can_have_heard_it() {
    let server = Postgres::start();
    let mut fleet = TestFleet::start_on(&server.url("postgres"), 2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: one]]").await.error(), None);
    let had = fleet.runner_of(&session).await;
    // Until it is in the log its runner's loss would withdraw it.
    eventually("its turn is in the log", async || {
        (fleet.runners[had].metric("ash_runner_unwritten_sessions").await == Some(0.0)).then_some(())
    })
    .await;
    // The second coordinator is stopped: for all that the first one knows, it hears the runner and cannot write.
    signal(fleet.other_pid(), "STOP");
    fleet.runners[had].kill_with_node();
    let silent = |runners: &[Value]| {
        let name = format!("runner-{had}");
        runners.iter().find(|runner| runner["name"] == name.as_str()).map(|runner| runner["silentSeconds"].as_u64())
    };
    eventually("the runner is silent for longer than it may be, and still there", async || {
        let seconds = silent(&runners(&fleet).await).expect("nobody calls it lost").unwrap_or(0);
        (seconds > LOST_FOR_LONG).then_some(())
    })
    .await;
    assert_eq!(fleet.metric("ash_coordinator_runners_lost_total").await, Some(0.0));
    signal(fleet.other_pid(), "CONT");
    eventually("it is lost now", async || silent(&runners(&fleet).await).is_none().then_some(())).await;
    assert_eq!(fleet.say(&session, "[[count]]").await.result().as_deref(), Some("2"));
    assert_ne!(fleet.runner_of(&session).await, had);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_sessions_pass_by_a_cordoned_runner_and_use_their_own_key() {
    let server = Postgres::start();
    let fleet = TestFleet::start_on(&server.url("postgres"), 2, &["--max-sandboxes=8", "--warm=0"]).await;
    fleet.deploy("simple").await;
    assert!(fleet.ash(&["runner", "cordon", "runner-0"]).contains("No new sessions"));
    let listed = fleet.ash(&["runner", "list"]);
    assert!(listed.contains("runner-0  cordoned") && listed.contains("runner-1  ready"), "{listed}");
    let status = fleet.ash(&["status"]);
    assert!(status.contains("coordinator") && status.contains("1 ready of 2"), "{status}");
    // Each of these at its own coordinator, which may not have heard of the cordon yet.
    for _ in 0..2 {
        let session = fleet.session_of("simple").await;
        assert_eq!(fleet.runner_of(&session).await, 1);
        let create = CreateSession { agent: "simple".to_owned(), ..CreateSession::default() };
        let session = fleet.other().create_session(&create).await.expect("a session");
        assert_eq!(fleet.runner_of(&session).await, 1);
    }
    let unknown = fleet.request("POST", "/api/runners/nobody/cordon", None).await;
    assert_eq!(unknown.0, 404, "{}", unknown.1);
    fleet.ash(&["runner", "uncordon", "runner-0"]);

    let body = json!({ "type": "anthropic", "key": "sk-of-a-customer", "label": "main" });
    let (status, answer) = fleet.request("POST", "/api/credentials", Some(body)).await;
    assert_eq!((status, &answer["credential"]["label"]), (201, &json!("main")), "{answer}");
    let id = answer["credential"]["id"].as_str().expect("an id").to_owned();
    let create =
        CreateSession { agent: "simple".to_owned(), credential_id: Some(id.clone()), ..CreateSession::default() };
    let session = fleet.other().create_session(&create).await.expect("a session");
    assert_eq!(fleet.say(&session, "[[text: paid for]]").await.result().as_deref(), Some("paid for"));
    let keys: Vec<_> = fleet.model.requests().iter().filter_map(|one| one.api_key().map(ToOwned::to_owned)).collect();
    assert!(keys.contains(&"sk-of-a-customer".to_owned()), "{keys:?}");
    let (_, listed) = fleet.request("GET", "/api/credentials", None).await;
    assert!(!listed.to_string().contains("sk-of-a-customer") && listed.to_string().contains(&id), "{listed}");
    assert!(!fleet.coordinator_log().contains("sk-of-a-customer"));
    assert_eq!(fleet.request("DELETE", &format!("/api/credentials/{id}"), None).await, (200, json!({})));
    let create = CreateSession { agent: "simple".to_owned(), credential_id: Some(id), ..CreateSession::default() };
    assert_eq!(fleet.client.create_session(&create).await.expect_err("it is gone").status(), Some(404));
}
