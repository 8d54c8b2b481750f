//! A coordinator and runners as real processes, with the real Claude Code before the scripted model: conversations, neighbours
//! that do not read, placement, and what happens when a process is killed, has another secret, or another version.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use ash_client::{Behavior, CreateSession, Decision, Event, Message, PermissionMode, Session, StreamOptions};
use ash_e2e::harness::{
    MODEL_KEY, TestFleet, Turn, burst, check_order, compare_with_log, counted, eventually, pid_of, position, program,
    signal, without_withdrawn,
};

/// Deltas of a turn that is disturbed, and the pause before each.
const DELTAS: usize = 300;
const PACE: Duration = Duration::from_millis(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_through_a_runner_and_a_reader_that_does_not_read_hurts_nobody() {
    let fleet = TestFleet::start(2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    let turn = fleet.say(&session, r#"[[tool: Bash {"command":"echo kept > note; cat note"}]] [[result]]"#).await;
    assert!(turn.result().is_some_and(|text| text.contains("kept")), "{:?} {:?}", turn.error(), turn.names());
    compare_with_log(&fleet.client, &session, &turn.frames, "tool").await;
    assert_eq!(fleet.say(&session, "[[count]]").await.result().as_deref(), Some("2"));
    let runner = &fleet.runners[fleet.runner_of(&session).await];
    assert!(runner.session_folder(&session.id).join("workspace/note").is_file());

    // Streams of 8 MB that nobody reads: more than the sockets and the windows of a stream hold.
    let mut unread = Vec::new();
    for _ in 0..4 {
        let after = Some("0");
        unread.push(
            fleet
                .client
                .stream(&session.id, after, StreamOptions { include_partial_messages: true, follow: true })
                .await,
        );
    }
    let neighbour = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&neighbour, "[[text: not held up]]").await.result().as_deref(), Some("not held up"));
    let large = Message { include_partial_messages: true, ..Message::text("[[burst: 2000 4096]] [[text: end]]") };
    let unread_turn = fleet.client.send_message(&session.id, &large).await.expect("the message is taken");
    for number in 0..3 {
        let turn = fleet.say(&neighbour, &format!("[[text: answer {number}]]")).await;
        assert_eq!(turn.result(), Some(format!("answer {number}")), "{:?}", turn.error());
    }
    drop((unread, unread_turn));

    // The key of the model API was used, and is nowhere where it must not be.
    assert!(fleet.model.turn_requests() > 0);
    for runner in &fleet.runners {
        assert!(!runner.log().contains(MODEL_KEY), "a runner's log has the model key");
        assert!(!holds(&runner.data(), MODEL_KEY.as_bytes()), "a runner's disk has the model key");
        assert!(runner.metrics().await.contains("ash_runner_coordinator_answers 1"), "{}", runner.metrics().await);
    }
    assert!(!fleet.coordinator_log().contains(MODEL_KEY));
    // Ending it is a call like any other.
    let ended = fleet.client.end_session(&session.id).await.expect("an end");
    assert_eq!(ended.status, "ended");
}

/// Whether any file beneath a folder holds these bytes. What a sandbox removes meanwhile has none.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => holds(&entry.path(), bytes),
        Ok(kind) if kind.is_file() => {
            fs::read(entry.path()).is_ok_and(|content| memchr::memmem::find(&content, bytes).is_some())
        }
        _ => false,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_sessions_at_once_spread_over_both_runners() {
    let fleet = TestFleet::start(2, &["--max-sandboxes=12", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let made: Vec<Session> = futures::future::join_all((0..20).map(|_| fleet.session_of("simple"))).await;
    let mut counted: BTreeMap<usize, usize> = BTreeMap::new();
    for session in &made {
        *counted.entry(fleet.runner_of(session).await).or_default() += 1;
    }
    assert_eq!(counted, BTreeMap::from([(0, 10), (1, 10)]));
    // All of them answer.
    let answers = futures::future::join_all(made.iter().map(|session| fleet.say(session, "[[text: here]]"))).await;
    for answer in answers {
        assert_eq!(answer.result().as_deref(), Some("here"), "{:?}", answer.error());
    }
}

/// What the client saw is what the log has, whatever was withdrawn on the way.
async fn check(fleet: &TestFleet, session: &Session, turn: &Turn, what: &str) {
    check_order(&turn.frames);
    compare_with_log(&fleet.client, session, &turn.frames, what).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_runner_is_killed_answers_on_the_other_with_its_conversation() {
    let mut fleet = TestFleet::start(2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: one]]").await.result().as_deref(), Some("one"));
    let had = fleet.runner_of(&session).await;
    let mut stream = fleet.client.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken");
    let mut turn = Turn::default();
    for _ in 0..20 {
        turn.read_until(&mut stream, "text_delta").await;
    }
    fleet.runners[had].kill_with_node();
    // The stream stays open: the epoch after the loss says what of it counts, and ends the turn.
    turn.read_rest(stream).await;
    assert!(turn.error().is_some_and(|error| error.contains("send the message again")), "{:?}", turn.error());
    check(&fleet, &session, &turn, "a runner killed").await;
    let deltas = Turn { frames: without_withdrawn(&turn.frames) }.deltas();
    assert!(counted(DELTAS).starts_with(&deltas), "{deltas}");
    let turn = fleet.say(&session, "[[text: still here]]").await;
    assert_eq!(turn.result().as_deref(), Some("still here"), "{:?}", turn.error());
    assert_ne!(fleet.runner_of(&session).await, had);
    let request = fleet.model.requests().last().expect("a request of a turn").json().to_string();
    assert!(request.contains("[[text: one]]"), "the conversation went along");
    // Back again, it holds nothing that is not its own, and gets new sessions.
    fleet.runners[had].start();
    fleet.wait_runners(2).await;
    assert_eq!(fleet.say(&session, "[[count]]").await.error(), None);
}

/// Its process is stopped, its sandbox is not: what is cut off from its coordinator goes on writing until it hears of its loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_comes_back_gives_up_what_is_served_elsewhere() {
    let fleet = TestFleet::start(2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: one]]").await.result().as_deref(), Some("one"));
    let had = fleet.runner_of(&session).await;
    let mut stream = fleet.client.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken");
    let mut turn = Turn::default();
    for _ in 0..20 {
        turn.read_until(&mut stream, "text_delta").await;
    }
    signal(fleet.runners[had].pid(), "STOP");
    turn.read_rest(stream).await;
    assert!(turn.error().is_some_and(|error| error.contains("send the message again")), "{:?}", turn.error());
    check(&fleet, &session, &turn, "a runner stopped").await;
    let next = fleet.say(&session, "[[text: elsewhere]]").await;
    assert_eq!(next.result().as_deref(), Some("elsewhere"), "{:?}", next.error());
    let epoch = |turn: &Turn| turn.frames.iter().rev().find_map(position).expect("an id").sequence.epoch();
    let before = epoch(&next);
    signal(fleet.runners[had].pid(), "CONT");
    eventually("the sandbox of the runner that was lost ends", async || {
        pid_of(&fleet.runners[had].session_folder(&session.id), "claude").is_none().then_some(())
    })
    .await;
    fleet.wait_runners(2).await;
    assert!(fleet.runners[had].log().contains("served elsewhere"));
    // Its return opened no epoch: the session is where it was, and nothing of the lost turn came into its log.
    let next = fleet.say(&session, "[[text: still there]]").await;
    assert_eq!((next.result().as_deref(), epoch(&next)), (Some("still there"), before));
    assert_ne!(fleet.runner_of(&session).await, had);
    compare_with_log(&fleet.client, &session, &turn.frames, "after its return").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_starts_again_finds_its_sandboxes() {
    let mut fleet = TestFleet::start(1, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: one]]").await.result().as_deref(), Some("one"));
    let mut stream = fleet.client.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken");
    let mut turn = Turn::default();
    for _ in 0..20 {
        turn.read_until(&mut stream, "text_delta").await;
    }
    fleet.runners[0].kill();
    fleet.runners[0].start();
    turn.read_rest(stream).await;
    assert_eq!(turn.error(), None, "a runner's death ends no turn: {:?}", turn.names());
    check(&fleet, &session, &turn, "a runner started again").await;
    assert_eq!(fleet.say(&session, "[[text: two]]").await.result().as_deref(), Some("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_killed_in_the_middle_of_turns_loses_and_doubles_nothing() {
    let mut fleet = TestFleet::start(2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let sessions = [fleet.session_of("simple").await, fleet.session_of("simple").await];
    for session in &sessions {
        assert_eq!(fleet.say(session, "[[text: begin]]").await.error(), None);
    }
    for round in 0..3 {
        let mut streams = Vec::new();
        for session in &sessions {
            streams.push(
                fleet.client.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken"),
            );
        }
        let mut turns = vec![Turn::default(); streams.len()];
        for (turn, stream) in turns.iter_mut().zip(&mut streams) {
            for _ in 0..10 * (round + 1) {
                turn.read_until(stream, "text_delta").await;
            }
        }
        fleet.kill_coordinator();
        fleet.start_coordinator().await;
        for ((mut turn, stream), session) in turns.into_iter().zip(streams).zip(&sessions) {
            turn.read_rest(stream).await;
            assert_eq!(turn.error(), None, "round {round}: {:?}", turn.names());
            assert_eq!(turn.deltas(), counted(DELTAS), "round {round}");
            check(&fleet, session, &turn, &format!("round {round}")).await;
        }
    }
    for session in &sessions {
        assert_eq!(fleet.say(session, "[[count]]").await.result().as_deref(), Some("5"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_puts_sessions_to_sleep_and_the_other_runner_wakes_them() {
    let mut fleet = TestFleet::start(2, &["--max-sandboxes=4", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: one]]").await.error(), None);
    let had = fleet.runner_of(&session).await;
    fleet.runners[had].stop();
    let row = fleet.client.session(&session.id).await.expect("the session");
    assert_eq!((row.status.as_str(), &row.other["pausedReason"]), ("paused", &"drained".into()));
    assert!(fleet.coordinator_log().contains("deregistered"));
    assert_eq!(fleet.say(&session, "[[count]]").await.result().as_deref(), Some("2"));
    assert_ne!(fleet.runner_of(&session).await, had);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_refused_and_a_changed_one_taken() {
    let mut fleet = TestFleet::start(1, &["--max-sandboxes=2", "--warm=0"]).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    assert_eq!(fleet.say(&session, "[[text: one]]").await.error(), None);
    // A runner with another secret ends, and says why; it never had a key.
    let other = fleet.secret_file().with_file_name("other");
    fs::write(&other, "o".repeat(40)).expect("a file");
    let folder = fleet.secret_file().with_file_name("stranger");
    let output = Command::new(program("ash"))
        .args(["runner", "--name=stranger", "--listen=127.0.0.1:0"])
        .arg(format!("--coordinator=http://{}", fleet.fleet_address()))
        .arg(format!("--fleet-secret-file={}", other.display()))
        .arg(format!("--data-dir={}", folder.display()))
        .arg(format!("--claude={}", ash_e2e::harness::real_claude().display()))
        .env("ANTHROPIC_BASE_URL", fleet.model.base_url())
        .output()
        .expect("a runner that ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("--fleet-secret-file"), "{errors}");
    // The file changes while both run: what is open goes on, and what is opened has the new secret.
    fleet.write_secret(&["n".repeat(40)]);
    eventually("both took the new secret", async || {
        let both = fleet.coordinator_log().contains("the shared secret was changed")
            && fleet.runners[0].log().contains("the shared secret was changed");
        both.then_some(())
    })
    .await;
    assert_eq!(fleet.say(&session, "[[count]]").await.result().as_deref(), Some("2"));
    fleet.add_runner(&["--max-sandboxes=2", "--warm=0"]);
    fleet.wait_runners(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_name_a_newer_one_has_ends() {
    let fleet = TestFleet::start(1, &["--max-sandboxes=2", "--warm=0"]).await;
    let folder = fleet.secret_file().with_file_name("successor");
    let mut successor = Command::new(program("ash"))
        .args(["runner", "--name=runner-0", "--listen=127.0.0.1:0"])
        .arg(format!("--coordinator=http://{}", fleet.fleet_address()))
        .arg(format!("--fleet-secret-file={}", fleet.secret_file().display()))
        .arg(format!("--data-dir={}", folder.display()))
        .arg(format!("--claude={}", ash_e2e::harness::real_claude().display()))
        .env("ANTHROPIC_BASE_URL", fleet.model.base_url())
        .spawn()
        .expect("a second runner");
    eventually("the first one has ended", async || {
        let log = fleet.runners[0].log();
        (log.contains("another process serves under this runner's name now") && log.contains("stopped")).then_some(())
    })
    .await;
    successor.kill().expect("it runs");
    successor.wait().expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_its_keys_says_what_to_give() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    fs::write(&secret, "s".repeat(40)).expect("a file");
    let secret = format!("--fleet-secret-file={}", secret.display());
    let key = ("ASH_TOKEN_KEY", "0f".repeat(32));
    let credentials = ("ASH_CREDENTIAL_KEY", "1e".repeat(32));
    for (arguments, environment, said) in [
        (vec![secret.clone()], vec![], "ASH_TOKEN_KEY"),
        (vec![secret.clone()], vec![("ASH_TOKEN_KEY", "short".to_owned())], "64 hexadecimal digits"),
        (vec![], vec![key.clone()], "--fleet-secret-file"),
        (vec![secret.clone()], vec![key.clone()], "ASH_CREDENTIAL_KEY"),
        (vec![secret.clone()], vec![key.clone(), credentials.clone()], "ASH_API_KEY"),
    ] {
        let output = Command::new(program("ash"))
            .args(["serve", "--mode=coordinator", "--listen=127.0.0.1:0", "--fleet-listen=127.0.0.1:0"])
            .arg(format!("--data-dir={}", folder.path().join("data").display()))
            .args(arguments)
            .env_clear()
            .envs(environment)
            .output()
            .expect("a coordinator that ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(said), "{said}: {errors}");
    }
    assert!(!folder.path().join("data/initial-api-key").exists() && !folder.path().join("data/gateway.key").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_sandboxes_approvals_and_interrupts_go_through_a_runner() {
    let mut fleet = TestFleet::start(2, &["--max-sandboxes=4", "--warm=1"]).await;
    fleet.deploy("simple").await;
    let warm = async |fleet: &TestFleet| {
        eventually("a warm sandbox on each runner", async || {
            let health = fleet.client.health().await.ok()?;
            (health.pool.warm == 2).then_some(())
        })
        .await;
    };
    warm(&fleet).await;
    // A coordinator that starts again finds them as they are, and says nothing new.
    fleet.kill_coordinator();
    fleet.start_coordinator().await;
    fleet.wait_runners(2).await;
    warm(&fleet).await;
    let create = CreateSession {
        agent: "simple".to_owned(),
        permission_mode: Some(PermissionMode::Default),
        ..CreateSession::default()
    };
    let session = fleet.client.create_session(&create).await.expect("a session");
    let message = Message::text(r#"[[tool: Bash {"command":"echo allowed > written; cat written"}]] [[result]]"#);
    let mut stream = fleet.client.send_message(&session.id, &message).await.expect("the message is taken");
    let mut turn = Turn::default();
    let Event::PermissionRequest { id, .. } = turn.read_until(&mut stream, "permission_request").await else {
        panic!("{:?}", turn.names())
    };
    let refused = fleet.client.send_message(&session.id, &Message::text("me too")).await.expect_err("a turn runs");
    assert_eq!(refused.status(), Some(409), "{refused}");
    let allowed = Decision { behavior: Behavior::Allow, updated_input: None, answers: None, message: None };
    fleet.client.answer_permission(&session.id, &id, &allowed).await.expect("the first answer");
    let again = fleet.client.answer_permission(&session.id, &id, &allowed).await.expect_err("the second answer");
    assert_eq!(again.status(), Some(409), "{again}");
    turn.read_rest(stream).await;
    assert_eq!(turn.result().as_deref().map(str::trim), Some("allowed"), "{:?}", turn.error());

    let message = Message::text("[[text: never to its end]] [[delay: 600s]] [[text: never]]");
    let mut stream = fleet.client.send_message(&session.id, &message).await.expect("the message is taken");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "text_delta").await;
    fleet.client.interrupt(&session.id).await.expect("an interrupt");
    turn.read_rest(stream).await;
    assert!(turn.error().is_some(), "{:?}", turn.names());
    assert_eq!(fleet.say(&session, "[[text: and on]]").await.result().as_deref(), Some("and on"));
    let metrics = fleet.runners[fleet.runner_of(&session).await].metrics().await;
    assert!(metrics.contains(r#"ash_runner_claims_total{how="Live"} 1"#), "{metrics}");
    fleet.client.end_session(&session.id).await.expect("an end");
}
