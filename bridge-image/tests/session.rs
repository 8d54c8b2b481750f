//! A session over the real protocol, with the stand-in for Claude Code doing what the real one does only when it fails.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod support;

use std::{os::fd::AsFd, time::Duration};

use ash_protocol::{
    EntryKind,
    bound::BridgeBound,
    message::{
        BridgeEvent, Decision, Progress, RefusalCategory, Request, Resolution, RestartReason, TurnFailure, Warmed,
    },
    options::{SessionOptions, TurnOptions},
};
use serde_json::json;
use support::{Connection, EPOCH, Sandbox, admit, stand_in};
use uuid::Uuid;

fn allow() -> Decision {
    serde_json::from_value(json!({"behavior": "allow"})).unwrap()
}

fn permissions(sandbox: &Sandbox) -> Vec<String> {
    let ids = sandbox.events().into_iter().filter_map(|event| match event {
        BridgeEvent::PermissionRequest { id, .. } => Some(id),
        _ => None,
    });
    ids.collect()
}

fn failures(sandbox: &Sandbox) -> Vec<(TurnFailure, String)> {
    let failures = sandbox.events().into_iter().filter_map(|event| match event {
        BridgeEvent::TurnFailed { category, message, .. } => Some((category, message)),
        _ => None,
    });
    failures.collect()
}

fn invalid(sandbox: &Sandbox) -> usize {
    sandbox.events().iter().filter(|event| matches!(event, BridgeEvent::InvalidOutput { .. })).count()
}

fn restarts(sandbox: &Sandbox) -> Vec<RestartReason> {
    let restarts = sandbox.events().into_iter().filter_map(|event| match event {
        BridgeEvent::ClaudeRestarted { reason } => Some(reason),
        _ => None,
    });
    restarts.collect()
}

async fn started() -> (Sandbox, Connection) {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let connection = sandbox.session(SessionOptions::default()).await;
    (sandbox, connection)
}

#[tokio::test]
async fn a_warm_sandbox_takes_a_session_and_runs_turns() {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let mut connection = sandbox.connect().await;
    assert!(matches!(connection.hello.progress, Progress::New));
    let port = connection.hello.gateway_port.unwrap();
    let listener = connection.gateway.take().unwrap();
    assert_eq!(
        rustix::net::getsockname(listener.as_fd()).unwrap().try_into(),
        Ok(std::net::SocketAddr::from(([127, 0, 0, 1], port)))
    );

    let mut warm = sandbox.warm();
    warm.rehearse = true;
    let warmed: Warmed = connection.ask(&mut sandbox, Request::Warm(Box::new(warm))).await.unwrap();
    assert!(warmed.rehearsed);
    assert_eq!(
        connection.admit(&mut sandbox, 1, "too early", TurnOptions::default()).await.unwrap_err().0,
        RefusalCategory::NotReady
    );
    let bound = connection.bind(&mut sandbox, SessionOptions::default()).await.unwrap();
    assert_eq!(bound.how, ash_protocol::message::Claimed::Live);
    assert!(sandbox.journal.is_empty(), "nothing of the rehearsal reaches the session");

    let result = connection.turn(&mut sandbox, 1, "[[count]]").await;
    assert_eq!(result["result"], "messages: 1");
    assert_eq!(sandbox.journal[0].kind, EntryKind::User);
    let user: serde_json::Value = serde_json::from_slice(&sandbox.journal[0].body).unwrap();
    assert_eq!(user["uuid"], Uuid::from_u128(1).to_string());
    let result = connection.turn(&mut sandbox, 2, "[[count]] [[burst: 300]]").await;
    assert_eq!(result["result"], "messages: 2");
    assert!(sandbox.partials() > 300);

    // The transcript in the log is the file, and it was complete before the result.
    let (conversation, transcript) = sandbox.transcript().unwrap();
    let file = ash_bridge::claude::transcript::file(
        &ash_bridge::claude::transcript::folder(&sandbox.home().join(".claude"), &sandbox.workspace()),
        conversation,
    );
    assert_eq!(std::fs::read(file).unwrap(), transcript);
    let last = sandbox.journal.last().unwrap();
    assert!(last.ends_turn() && last.kind == EntryKind::Claude);

    // A repeat does nothing, also of a turn that has ended.
    let written = sandbox.journal.len();
    connection.admit(&mut sandbox, 1, "again", TurnOptions::default()).await.unwrap();
    assert_eq!(sandbox.journal.len(), written);
}

#[tokio::test]
async fn one_turn_at_a_time_and_an_interrupt_ends_it() {
    let (mut sandbox, mut connection) = started().await;
    connection.admit(&mut sandbox, 1, "[[hang]]", TurnOptions::default()).await.unwrap();
    connection.admit(&mut sandbox, 1, "[[hang]]", TurnOptions::default()).await.unwrap();
    let busy = connection.admit(&mut sandbox, 2, "next", TurnOptions::default()).await.unwrap_err();
    assert_eq!(busy.0, RefusalCategory::TurnInProgress);
    let _: () = connection.ask(&mut sandbox, Request::Interrupt { turn: Some(Uuid::from_u128(9)) }).await.unwrap();
    let _: () = connection.ask(&mut sandbox, Request::Interrupt { turn: Some(Uuid::from_u128(1)) }).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    assert_eq!(sandbox.results()[0]["subtype"], "error_during_execution");
    let _: () = connection.ask(&mut sandbox, Request::Interrupt { turn: None }).await.unwrap();
    assert_eq!(connection.turn(&mut sandbox, 2, "next").await["subtype"], "success");
}

#[tokio::test]
async fn a_turn_that_no_interrupt_ends_is_ended_by_force() {
    let (mut sandbox, mut connection) = started().await;
    connection.admit(&mut sandbox, 1, "[[stubborn]]", TurnOptions::default()).await.unwrap();
    let _: () = connection.ask(&mut sandbox, Request::Interrupt { turn: None }).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    assert_eq!(failures(&sandbox)[0].0, TurnFailure::ClaudeDied);
    assert_eq!(connection.turn(&mut sandbox, 2, "[[count]]").await["result"], "messages: 2");
}

#[tokio::test]
async fn bad_output_is_an_event_and_never_an_end() {
    let (mut sandbox, mut connection) = started().await;
    let result = connection.turn(&mut sandbox, 1, "[[garbage]] [[long: 70000000]] [[long: 3000000]] end").await;
    assert_eq!(result["subtype"], "success");
    assert_eq!(invalid(&sandbox), 2);
    assert!(sandbox.journal.iter().any(|entry| entry.body.len() > 3_000_000), "a long line within the bound passes");
    // Half a line at the end of the process: an event, a failed turn, and a session that goes on.
    let failed = connection.turn(&mut sandbox, 2, "[[half]]").await;
    assert_eq!(failed["turn_failed"]["category"], "claude_died");
    assert_eq!(invalid(&sandbox), 3);
    assert_eq!(connection.turn(&mut sandbox, 3, "[[count]]").await["result"], "messages: 3");
    assert_eq!(connection.bounds.get(&BridgeBound::Line), Some(&1), "the host is told of the line that was dropped");
}

#[tokio::test]
async fn a_death_fails_the_turn_and_the_conversation_goes_on() {
    let (mut sandbox, mut connection) = started().await;
    connection.turn(&mut sandbox, 1, "first").await;
    let failed = connection.turn(&mut sandbox, 2, "[[exit: 3]]").await;
    let message = failed["turn_failed"]["message"].as_str().unwrap();
    assert!(message.contains('3') && message.contains("the stand-in was told to exit"), "{message}");
    connection.until(&mut sandbox, |sandbox, _| !restarts(sandbox).is_empty()).await;
    assert_eq!(restarts(&sandbox), [RestartReason::Died]);
    assert_eq!(connection.turn(&mut sandbox, 3, "[[count]]").await["result"], "messages: 3");

    // Between turns: the same without a failed turn. Deaths beyond the bound wait for the next turn.
    for round in 0..4_u128 {
        let pid = sandbox.claude_pid().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let turn = connection.turn(&mut sandbox, 10 + round, "[[count]]").await;
        // Whether the turn began before or after the death was noticed, it ends, and the next one is well.
        if turn.get("turn_failed").is_some() {
            let turn = connection.turn(&mut sandbox, 20 + round, "[[count]]").await;
            assert_eq!(turn["subtype"], "success", "{turn}");
        }
    }
}

#[tokio::test]
async fn a_host_that_comes_back_gets_everything_once() {
    let (mut sandbox, mut connection) = started().await;
    connection.admit(&mut sandbox, 1, "[[burst: 3000]] [[permission: Bash {}]]", TurnOptions::default()).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.partials() > 100).await;
    connection.acknowledges = false;
    connection.until(&mut sandbox, |sandbox, _| sandbox.partials() > 200).await;
    drop(connection);
    // A host that says something else than a welcome is left, and dialled again.
    let mut other = sandbox
        .connect_as(|mut welcome| {
            welcome.protocol.major += 1;
            welcome
        })
        .await;
    assert!(!other.step(&mut sandbox).await);

    let mut connection = sandbox.connect().await;
    let Progress::Bound { epoch, turn, .. } = connection.hello.progress.clone() else { panic!() };
    assert_eq!((epoch, turn.unwrap().first), (EPOCH, EPOCH.sequence(2)));
    connection.until(&mut sandbox, |sandbox, connection| connection.synced && !permissions(sandbox).is_empty()).await;
    drop(connection);
    // The request is still open for the next host.
    let mut connection = sandbox.connect().await;
    let Progress::Bound { permissions, .. } = connection.hello.progress.clone() else { panic!() };
    let answer = Request::Answer { permission: permissions[0].clone(), decision: allow() };
    let _: () = connection.ask(&mut sandbox, answer).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    assert_eq!(sandbox.results()[0]["result"], "allowed");
    assert_eq!(sandbox.partials(), 3000 + 6);
}

#[tokio::test]
async fn the_first_answer_wins_and_expiry_denies() {
    let (mut sandbox, mut connection) = started().await;
    connection.admit(&mut sandbox, 1, "[[permission: Bash {}]]", TurnOptions::default()).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| !permissions(sandbox).is_empty()).await;
    let answer = || Request::Answer { permission: "permission-1".to_owned(), decision: allow() };
    let _: () = connection.ask(&mut sandbox, answer()).await.unwrap();
    let second = connection.ask::<()>(&mut sandbox, answer()).await.unwrap_err();
    assert_eq!(second.0, RefusalCategory::UnknownPermission);
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;

    let Request::Admit(mut short) = admit(2, "[[permission: Bash {}]]", TurnOptions::default()) else { panic!() };
    short.permission_timeout_ms = 50;
    let _: () = connection.ask(&mut sandbox, Request::Admit(short)).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 2).await;
    assert_eq!(sandbox.results()[1]["result"], "denied");
    let resolutions: Vec<_> = sandbox
        .events()
        .into_iter()
        .filter_map(|event| match event {
            BridgeEvent::PermissionResolved { resolution, .. } => Some(resolution),
            _ => None,
        })
        .collect();
    assert_eq!(resolutions, [Resolution::Allowed, Resolution::Expired]);

    connection.admit(&mut sandbox, 3, "[[permission: Bash {}]]", TurnOptions::default()).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| permissions(sandbox).len() == 3).await;
    let _: () = connection.ask(&mut sandbox, Request::Interrupt { turn: None }).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 3).await;
    assert!(matches!(
        sandbox.events().last(),
        Some(BridgeEvent::PermissionResolved { resolution: Resolution::Withdrawn, .. })
    ));
}

#[tokio::test]
async fn options_that_are_refused_are_named() {
    let (mut sandbox, mut connection) = started().await;
    let options = TurnOptions { model: Some("refused".to_owned()), ..TurnOptions::default() };
    let refused = connection.admit(&mut sandbox, 1, "x", options).await.unwrap_err();
    assert_eq!(refused.0, RefusalCategory::OptionRefused);
    assert!(refused.1.contains("model"), "{}", refused.1);
    assert!(sandbox.journal.is_empty(), "a turn that was refused never began");
    let options = TurnOptions { max_turns: Some(3), ..TurnOptions::default() };
    connection.turn(&mut sandbox, 1, "x").await;
    assert_eq!(connection.turn_with(&mut sandbox, 2, "[[count]]", options).await["result"], "messages: 2");
    assert_eq!(restarts(&sandbox), [RestartReason::Options]);
}

#[tokio::test]
async fn a_process_over_its_memory_bound_is_restarted_between_turns() {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let mut connection = sandbox.connect().await;
    let mut warm = sandbox.warm();
    warm.memory_bound_bytes = 50 << 20;
    let _: Warmed = connection.ask(&mut sandbox, Request::Warm(Box::new(warm))).await.unwrap();
    connection.bind(&mut sandbox, SessionOptions::default()).await.unwrap();
    connection.turn(&mut sandbox, 1, "[[memory: 100000000]]").await;
    connection.until(&mut sandbox, |sandbox, _| restarts(sandbox) == [RestartReason::Memory]).await;
    assert_eq!(connection.turn(&mut sandbox, 2, "[[count]]").await["result"], "messages: 2");
}

#[tokio::test]
async fn claude_is_not_read_while_too_much_is_unacknowledged() {
    let (mut sandbox, mut connection) = started().await;
    connection.acknowledges = false;
    let text = "[[long: 40000000]] ".repeat(4);
    connection.admit(&mut sandbox, 1, &text, TurnOptions::default()).await.unwrap();
    connection
        .until(&mut sandbox, |_, connection| connection.status.as_ref().is_some_and(|status| status.stalled))
        .await;
    let longs = |sandbox: &Sandbox| sandbox.journal.iter().filter(|entry| entry.body.len() > 1_000_000).count();
    connection.until(&mut sandbox, |sandbox, _| longs(sandbox) == 2).await;
    assert_eq!(sandbox.turns_ended(), 0);
    connection.acknowledges = true;
    connection.acknowledge(sandbox.journal.last().unwrap().sequence).await;
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    assert_eq!(longs(&sandbox), 4);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let mut connection = sandbox.connect().await;
    let mut warm = sandbox.warm();
    warm.program = "/nowhere/claude".to_owned();
    let failed = connection.ask::<Warmed>(&mut sandbox, Request::Warm(Box::new(warm))).await.unwrap_err();
    assert_eq!(failed.0, RefusalCategory::ClaudeFailed);
    assert!(failed.1.contains("/nowhere/claude"), "{}", failed.1);
}

#[tokio::test]
async fn a_conversation_is_put_back_and_goes_on() {
    let (mut sandbox, mut connection) = started().await;
    connection.turn(&mut sandbox, 1, "first").await;
    let (conversation, transcript) = sandbox.transcript().unwrap();

    let mut woken = Sandbox::start(stand_in(), &[]);
    let mut connection = woken.connect().await;
    let restore = connection.request(Request::RestoreTranscript { conversation }).await;
    connection.send_data(restore, &transcript).await;
    let _: () = connection.answer(&mut woken, restore).await.unwrap();
    let mut warm = woken.warm();
    (warm.rehearse, warm.resume) = (true, Some(conversation));
    let warmed: Warmed = connection.ask(&mut woken, Request::Warm(Box::new(warm))).await.unwrap();
    assert!(!warmed.rehearsed);
    let bind = ash_protocol::message::Bind {
        tenant: "default".to_owned(),
        session: Uuid::from_u128(1),
        epoch: EPOCH,
        options: SessionOptions::default(),
        resume: Some(conversation),
        transcript_offset: transcript.len() as u64,
    };
    let bound: ash_protocol::message::Bound = connection.ask(&mut woken, Request::Bind(Box::new(bind))).await.unwrap();
    assert_eq!(bound.how, ash_protocol::message::Claimed::Live);
    assert_eq!(connection.turn(&mut woken, 2, "[[count]]").await["result"], "messages: 2");
    let part = woken.journal.iter().find(|entry| entry.kind == EntryKind::Transcript).unwrap();
    let (head, _) = ash_protocol::message::TranscriptPart::split(&part.body).unwrap();
    assert_eq!((head.conversation, head.offset), (conversation, transcript.len() as u64));
}

#[tokio::test]
async fn a_shutdown_lets_the_turn_end_and_leaves_nobody() {
    let (mut sandbox, mut connection) = started().await;
    connection.admit(&mut sandbox, 1, "[[permission: Bash {}]]", TurnOptions::default()).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| !permissions(sandbox).is_empty()).await;
    let _: () = connection.ask(&mut sandbox, Request::Shutdown { deadline_ms: 60_000 }).await.unwrap();
    let claude = sandbox.claude_pid().unwrap();
    let answer = Request::Answer { permission: "permission-1".to_owned(), decision: allow() };
    let _: () = connection.ask(&mut sandbox, answer).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    while connection.step(&mut sandbox).await {}
    assert!(sandbox.exited().await.success());
    assert!(!std::path::Path::new(&format!("/proc/{claude}/exe")).exists());
}

#[tokio::test]
async fn sigterm_and_a_newer_epoch_end_the_bridge() {
    let (mut sandbox, mut connection) = started().await;
    let bridge = rustix::process::Pid::from_raw(i32::try_from(sandbox.bridge.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(bridge, rustix::process::Signal::TERM).unwrap();
    while connection.step(&mut sandbox).await {}
    assert!(sandbox.exited().await.success());

    let (mut sandbox, connection) = started().await;
    drop(connection);
    let mut connection = sandbox
        .connect_as(|mut welcome| {
            welcome.overtaken = true;
            welcome
        })
        .await;
    while connection.step(&mut sandbox).await {}
    assert!(sandbox.exited().await.success());
    assert_eq!(sandbox.claude_pid(), None);
}

#[tokio::test]
async fn a_turn_goes_on_without_a_host() {
    let (mut sandbox, mut connection) = started().await;
    connection.request(admit(1, "[[burst: 2000]]", TurnOptions::default())).await;
    connection.until(&mut sandbox, |sandbox, _| sandbox.partials() > 2).await;
    drop(connection);
    let folder = ash_bridge::claude::transcript::folder(&sandbox.home().join(".claude"), &sandbox.workspace());
    let is_done = || {
        let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        std::fs::read_to_string(file).unwrap().contains("assistant")
    };
    tokio::time::timeout(support::DEADLINE, async {
        while !is_done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let mut connection = sandbox.connect().await;
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    assert_eq!(sandbox.partials(), 2000 + 6);
}
