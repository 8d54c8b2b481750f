//! A runner that is cut off from every coordinator while a turn runs on it, with real processes, the real Claude Code before the
//! scripted model, and two coordinators on one Postgres: it freezes before its sessions go on elsewhere, and comes back to nothing.

use std::time::Duration;

use ash_client::Session;
use ash_e2e::{
    fleet::Runner,
    harness::{
        FleetOptions, TestFleet, Turn, burst, compare_with_log, counted, eventually, let_go_on, pid_of, position,
        stands_still, without_superseded, without_withdrawn,
    },
};
use ash_test_postgres::Postgres;

/// Deltas of a turn that is far from its end when a runner is called lost, and the pause before each.
const LONG: (usize, Duration) = (6000, Duration::from_millis(20));
/// Deltas of a turn that goes on for longer than it takes to freeze, and the pause before each.
const SHORT: (usize, Duration) = (700, Duration::from_millis(20));

async fn fleet(server: &Postgres) -> TestFleet {
    let database = Some(server.url("postgres"));
    let options = FleetOptions { database, second_coordinator: true, partitions: true, ..FleetOptions::default() };
    let fleet = TestFleet::start_with(2, &["--max-sandboxes=4", "--warm=0"], options).await;
    fleet.deploy("simple").await;
    fleet
}

async fn is_frozen(runner: &Runner, frozen: bool) {
    let wanted = if frozen { 1.0 } else { 0.0 };
    eventually(if frozen { "the runner freezes" } else { "the runner goes on" }, async || {
        (runner.metric("ash_runner_frozen").await == Some(wanted)).then_some(())
    })
    .await;
}

/// A session on which a turn of so many deltas runs, with the runner that has it and the process of its Claude Code.
async fn busy(
    fleet: &TestFleet,
    (deltas, pace): (usize, Duration),
) -> (Session, usize, u32, Turn, ash_client::FrameStream) {
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: one]]").await.result().as_deref(), Some("one"));
    let had = fleet.runner_of(&session).await;
    let claude = pid_of(&fleet.runners[had].session_folder(&session.id), "claude").expect("Claude Code runs");
    let sent = fleet.client.send_message(&session.id, &burst(deltas, pace)).await;
    let (mut turn, mut stream) = (Turn::default(), sent.expect("the message is taken"));
    for _ in 0..20 {
        turn.read_until(&mut stream, "text_delta").await;
    }
    (session, had, claude, turn, stream)
}

/// How many calls of the model a runner refused because it may serve nobody.
async fn refused(runner: &Runner) -> Option<f64> {
    runner.metric(r#"ash_gateway_model_requests_total{outcome="Frozen"}"#).await
}

fn last_epoch(turn: &Turn) -> ash_core::Epoch {
    turn.frames.iter().rev().find_map(position).expect("an id").sequence.epoch()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_cut_off_serves_nobody_once_its_session_is_served_elsewhere() {
    let server = Postgres::start();
    let fleet = fleet(&server).await;
    let (session, had, claude, mut turn, stream) = busy(&fleet, LONG).await;
    let (old, other) = (&fleet.runners[had], &fleet.runners[1 - had]);
    assert!(!stands_still(claude));
    old.cut_off();
    is_frozen(old, true).await;
    assert_eq!(fleet.metric("ash_coordinator_runners_lost_total").await, Some(0.0), "before anybody calls it lost");
    eventually("the sandbox stands still", async || stands_still(claude).then_some(())).await;
    assert_eq!(old.metric("ash_gateway_model_calls").await, Some(0.0), "the call of the model is cut");

    // The client's stream stays open: the epoch after the loss says what counts, and ends the turn.
    turn.read_rest(stream).await;
    assert!(turn.error().is_some_and(|error| error.contains("send the message again")), "{:?}", turn.error());
    compare_with_log(&fleet.client, &session, &turn.frames, "a runner cut off").await;
    let next = fleet.say(&session, "[[text: elsewhere]]").await;
    assert_eq!(next.result().as_deref(), Some("elsewhere"), "{:?}", next.error());
    assert!(pid_of(&other.session_folder(&session.id), "claude").is_some());

    // Who goes on all the same gains nothing: Claude Code asks the model again and again, and is told to wait.
    let called = fleet.model.turn_requests();
    assert_eq!(refused(old).await, Some(0.0));
    let_go_on(claude);
    eventually("Claude Code is refused", async || refused(old).await.filter(|times| *times > 0.0)).await;

    old.let_through();
    eventually("its sandbox ends", async || pid_of(&old.session_folder(&session.id), "claude").is_none().then_some(()))
        .await;
    is_frozen(old, false).await;
    fleet.wait_runners(2).await;
    assert!(old.log().contains("served elsewhere"));
    assert_eq!(fleet.model.turn_requests(), called, "it called the model");
    // It wrote nothing: the session is where it was, and its log says what it said.
    let after = fleet.say(&session, "[[text: still there]]").await;
    assert_eq!((after.result().as_deref(), last_epoch(&after)), (Some("still there"), last_epoch(&next)));
    compare_with_log(&fleet.client, &session, &turn.frames, "after its return").await;
    // And it gets new sessions like any other.
    for _ in 0..2 {
        let new = fleet.session_of("simple").await;
        assert_eq!(fleet.say(&new, "[[text: new]]").await.result().as_deref(), Some("new"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_heard_again_in_time_thaws_and_its_turn_ends_well() {
    let server = Postgres::start();
    let fleet = fleet(&server).await;
    let (session, had, claude, mut turn, stream) = busy(&fleet, SHORT).await;
    let runner = &fleet.runners[had];
    runner.cut_off();
    is_frozen(runner, true).await;
    eventually("the sandbox stands still", async || stands_still(claude).then_some(())).await;
    runner.let_through();
    is_frozen(runner, false).await;
    turn.read_rest(stream).await;
    let counting = Turn { frames: without_withdrawn(&turn.frames) };
    assert_eq!(counting.error(), None, "{:?}", counting.names());
    assert_eq!(without_superseded(&counting.frames), counted(SHORT.0));
    assert_eq!(counting.result().as_deref().map(str::trim), Some(counted(SHORT.0).trim()));
    compare_with_log(&fleet.client, &session, &turn.frames, "a runner cut off for a moment").await;
    let folder = runner.session_folder(&session.id);
    assert_eq!(pid_of(&folder, "claude"), Some(claude), "the same process goes on");
    assert_eq!(fleet.metric("ash_coordinator_runners_lost_total").await, Some(0.0));
    assert_eq!(fleet.say(&session, "[[count]]").await.result().as_deref(), Some("3"));
}
