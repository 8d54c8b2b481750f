//! kill -9 of the server, the bridge and Claude Code, each in the middle of a turn, at moments that a seed chooses.
//!
//! What the client saw is compared with the log, and the log with what the model said: nothing is lost, nothing comes twice, and
//! what is withdrawn is withdrawn as the rules of the log say.

use std::time::Duration;

use ash_client::{Message, Session};
use ash_e2e::harness::{
    TestApp, Turn, burst, check_order, compare_with_log, counted, eventually, outlives_its_server, pid_of, position,
    signal, without_superseded, without_withdrawn,
};

/// Rounds of one run; `ASH_KILL_ROUNDS` asks for more.
const ROUNDS: usize = 50;
/// Deltas of a turn, and the pause before each.
const DELTAS: usize = 300;
const PACE: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Server,
    Bridge,
    Claude,
    ServerAndBridge,
    ServerAndClaude,
}

const VICTIMS: [Victim; 5] =
    [Victim::Server, Victim::Bridge, Victim::Claude, Victim::ServerAndBridge, Victim::ServerAndClaude];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_no_event_is_lost_or_doubled() {
    let seed = std::env::var("ASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let rounds = std::env::var("ASH_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    eprintln!("ASH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut app = TestApp::builder().argument("--max-sandboxes=8").start().await;
    let mut session = app.session().await;
    // A first turn, so that the conversation is there to be kept.
    assert_eq!(app.say(&session, "[[text: begin]]").await.error(), None);
    for round in 0..rounds {
        let victim = VICTIMS[round % VICTIMS.len()];
        let after = random.usize(1..DELTAS * 2);
        eprintln!("round {round}: {victim:?} after {after} frames");
        let before = app.client.session(&session.id).await.expect("the session");
        assert_eq!(before.id, session.id);
        let turn = disturbed_turn(&mut app, &session, victim, after).await;
        if victim == Victim::ServerAndBridge && is_unwritten(&turn) {
            assert!(turn.names().contains(&"withdrawn"), "round {round}: {:?}", turn.names());
        } else {
            compare_with_log(&app.client, &session, &turn.frames, &format!("round {round}")).await;
            check_against_model(&app, &turn, victim, round);
        }
        // The session goes on, with its conversation.
        let next = app.say(&session, "[[text: still here]]").await;
        assert_eq!(next.error(), None, "round {round}: {:?}", next.names());
        assert_eq!(next.result().as_deref(), Some("still here"), "round {round}");
        if round % 10 == 9 {
            app.client.end_session(&session.id).await.expect("an end");
            session = app.session_of("simple").await;
        }
    }
}

/// What a sandbox that died with its server had in its home is of no use to anybody; its workspace is its session's.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_died_with_its_server_leaves_its_workspace_only() {
    let mut app = TestApp::start().await;
    let session = app.session().await;
    let text = r#"[[tool: Bash {"command":"echo kept > note"}]] [[text: written]]"#;
    assert_eq!(app.say(&session, text).await.result().as_deref(), Some("written"));
    let folder = app.session_folder(&session.id);
    assert!(folder.join("home").exists());
    kill(&mut app, &session, Victim::ServerAndBridge).await;
    assert!(!folder.join("home").exists());
    assert!(folder.join("workspace/note").exists());
    assert_eq!(app.say(&session, "[[text: still here]]").await.result().as_deref(), Some("still here"));
}

/// A turn in whose middle something is killed.
async fn disturbed_turn(app: &mut TestApp, session: &Session, victim: Victim, after: usize) -> Turn {
    let stream = app.client.send_message(&session.id, &burst(DELTAS, PACE)).await.expect("the message is taken");
    Turn::read_while(stream, async |frames| {
        if frames == after {
            kill(app, session, victim).await;
        }
    })
    .await
}

async fn kill(app: &mut TestApp, session: &Session, victim: Victim) {
    let folder = app.session_folder(&session.id);
    let of_sandbox = |comm: &str| {
        if let Some(pid) = pid_of(&folder, comm) {
            signal(pid, "KILL");
        }
    };
    let server_too = matches!(victim, Victim::Server | Victim::ServerAndBridge | Victim::ServerAndClaude);
    if server_too {
        app.kill();
    }
    match victim {
        Victim::Server => {}
        // The bridge's process is named after the place where it is bound in the sandbox.
        Victim::Bridge | Victim::ServerAndBridge => of_sandbox("bridge"),
        Victim::Claude | Victim::ServerAndClaude => of_sandbox("claude"),
    }
    if server_too {
        app.start_again().await;
    }
}

/// Whether nothing of a turn counts: whoever had it died before any of it was written.
fn is_unwritten(turn: &Turn) -> bool {
    without_withdrawn(&turn.frames).iter().all(|frame| position(frame).is_none())
}

/// Every delta is one that the model said, in its order; a turn that ended well has them all.
fn check_against_model(app: &TestApp, turn: &Turn, victim: Victim, round: usize) {
    let counting = Turn { frames: without_withdrawn(&turn.frames) };
    let text = without_superseded(&counting.frames);
    let said = counted(DELTAS);
    if counting.error().is_none() {
        assert_eq!(text, said, "round {round}: {victim:?}");
        assert_eq!(counting.result().as_deref().map(str::trim), Some(said.trim()), "round {round}: {victim:?}");
    } else {
        assert!(said.starts_with(&text), "round {round}: {victim:?}: {text}");
        assert_ne!(victim, Victim::Server, "round {round}: a server's death ends no turn: {:?}", counting.error());
    }
    assert!(app.model.turn_requests() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_is_found_again_between_turns() {
    outlives_its_server(&mut TestApp::start().await).await;
}

/// A moment of a session's way back from eviction, seen in its folder.
#[derive(Debug, Clone, Copy)]
enum Waking {
    /// The message is taken.
    Taken,
    /// The sandbox has a process.
    Sandbox,
    /// Claude Code runs.
    Claude,
    /// The turn says something.
    Answering,
}

/// What the model was last shown of what the user said, in order.
fn shown(app: &TestApp) -> Vec<String> {
    let request = app.last_request();
    let messages = request["messages"].as_array().expect("messages").clone();
    let users = messages.iter().filter(|message| message["role"] == "user");
    // After an interrupt Claude Code may put two texts into one message.
    let texts = users.map(|message| message["content"].to_string());
    let names = |text: String| {
        text.split("(turn-").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect::<Vec<_>>()
    };
    texts.flat_map(names).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_waking_is_cut_off_has_its_whole_conversation() {
    let mut app = TestApp::builder().argument("--max-sandboxes=1").argument("--warm=0").start().await;
    let session = app.session().await;
    let other = app.session_of("simple").await;
    let mut said = Vec::new();
    let text = |name: &str| format!("(turn-{name}) [[text: answer]]");
    for name in ["one", "two"] {
        assert_eq!(app.say(&session, &text(name)).await.error(), None);
        said.push(name.to_owned());
    }
    for (round, moment) in [Waking::Taken, Waking::Sandbox, Waking::Claude, Waking::Answering].into_iter().enumerate() {
        // The other session takes the only sandbox.
        assert_eq!(app.say(&other, "[[text: mine]]").await.error(), None);
        let evicted = app.client.session(&session.id).await.expect("the session");
        assert_eq!((evicted.status.as_str(), &evicted.other["pausedReason"]), ("paused", &"evicted".into()));
        let folder = app.session_folder(&session.id);

        let name = format!("cut-{round}");
        let message = Message { include_partial_messages: true, ..Message::text(text(&name)) };
        let mut stream = app.client.send_message(&session.id, &message).await.expect("the message is taken");
        let mut turn = Turn::default();
        match moment {
            Waking::Taken => {}
            Waking::Sandbox => eventually("a sandbox", async || has_process(&folder).then_some(())).await,
            Waking::Claude => eventually("Claude Code", async || pid_of(&folder, "claude").map(drop)).await,
            Waking::Answering => drop(turn.read_until(&mut stream, "text_delta").await),
        }
        app.kill();
        app.start_again().await;
        turn.read_rest(stream).await;
        check_order(&turn.frames);
        let counting = Turn { frames: without_withdrawn(&turn.frames) };
        if counting.error().is_none() {
            said.push(name);
        }
        let next = format!("after-{round}");
        let turn = app.say(&session, &text(&next)).await;
        assert_eq!(turn.error(), None, "{moment:?}: {:?}", turn.names());
        said.push(next);
        // The turn that was cut off may be in the conversation although it failed; nothing else may be missing or more.
        let shown: Vec<String> =
            shown(&app).into_iter().filter(|name| said.contains(name) || !name.starts_with("cut-")).collect();
        assert_eq!(shown, said, "{moment:?}");
    }
}

/// Whether a sandbox's first process is there.
fn has_process(folder: &std::path::Path) -> bool {
    ["bwrap", "bridge"].iter().any(|name| pid_of(folder, name).is_some())
}
