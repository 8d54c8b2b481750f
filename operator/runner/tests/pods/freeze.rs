//! A runner that nobody answers: it stops its pods through their bridges, and serves nobody.

use std::time::{Duration, Instant};

use ash_core::{
    EntryKind, Sequence,
    ports::{EntryReader, Runner as _},
    session::Session,
    sse::Position,
};
use ash_protocol::{
    message::{Bound, Claimed, Progress, Request},
    version::ProtocolVersion,
};
use tokio::time::timeout;

use crate::{
    stand_in::StandIn,
    world::{DEADLINE, Life, World, eventually, is_stopped},
};

const LONG: Duration = Duration::from_secs(3600);

fn is_freeze(request: &Request) -> bool {
    matches!(request, Request::Freeze {})
}

fn is_thaw(request: &Request) -> bool {
    matches!(request, Request::Thaw {})
}

async fn reader(life: &Life, session: &Session) -> Box<dyn EntryReader> {
    life.runner.read(session, Position::after(Sequence::START)).await.unwrap()
}

/// Whether a reader is given something, and not told at once that there is no more.
async fn gives(reader: &mut dyn EntryReader) -> bool {
    timeout(DEADLINE, reader.next()).await.unwrap().unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_runner_stops_its_pods_and_serves_no_reader() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let (session, mut bridge, row) = StandIn::claimed(&world, &life).await;
    let mut open = reader(&life, &session).await;
    assert!(gives(&mut *open).await);
    let waiting = tokio::spawn(async move { gives(&mut *open).await });

    life.runner.freeze();
    assert!(!life.runner.serves());
    assert!(!waiting.await.unwrap(), "an open reader ends, so that its client looks elsewhere");
    assert!(!gives(&mut *reader(&life, &session).await).await);
    bridge.answer(is_freeze, &()).await;
    assert_eq!((life.metric("ash_runner_frozen"), life.metric("ash_runner_freezes_total")), (1, 1));

    // A bridge that dials anew has everything go on by itself: it is told again.
    drop(bridge);
    let (id, epoch, last) = (session.id.0, session.epoch, session.last);
    let bound = Progress::Bound { session: id, epoch, last, turn: None, permissions: Vec::new() };
    let mut bridge = StandIn::dial(&world, &row, bound).await;
    bridge.answer(is_freeze, &()).await;

    life.runner.thaw(Instant::now() + LONG);
    bridge.answer(is_thaw, &()).await;
    assert!(life.runner.serves() && gives(&mut *reader(&life, &session).await).await);
    assert_eq!(life.metric("ash_runner_frozen"), 0);
    // Also when nobody has come to freeze it: what counts is the time.
    life.runner.serve_until(Instant::now());
    assert!(!life.runner.serves() && !gives(&mut *reader(&life, &session).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_is_not_asked_for_what_it_does_not_know() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let row = world.row(None);
    let old = ProtocolVersion { major: 1, minor: 2 };
    let mut bridge = StandIn::dial_as(&world, &row, Progress::Warm, old).await;
    eventually("the pod is warm", async || (life.runner.load().warm == 1).then_some(())).await;
    life.runner.freeze();
    life.runner.thaw(Instant::now() + LONG);
    let session = world.new_session().await;
    world.claim_sandbox(&life, &session, row.id).await.unwrap();
    let bound = Bound { how: Claimed::Live };
    let before = bridge.answer(|request| matches!(request, Request::Bind(_)), &bound).await;
    assert!(!before.iter().any(|request| is_freeze(request) || is_thaw(request)), "{before:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_in_a_pod_stands_still_and_goes_on_and_the_next_life_continues_it() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let pod = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    let mut turn = world.send(&life, &session, "[[burst: 20000]] [[hang]]").await.unwrap();
    turn.until(|entry| entry.kind == EntryKind::Partial).await;
    let claude = eventually("Claude Code is found", async || pod.process("stand-in-claude")).await;
    life.runner.freeze();
    eventually("it stands still", async || is_stopped(claude).then_some(())).await;
    life.runner.thaw(Instant::now() + LONG);
    eventually("it goes on", async || (!is_stopped(claude)).then_some(())).await;

    life.runner.freeze();
    eventually("it stands still", async || is_stopped(claude).then_some(())).await;
    drop(life);
    let life = world.start().await;
    eventually("it goes on for the next life", async || (!is_stopped(claude)).then_some(())).await;
    assert!(life.runner.interrupt(session.id).await.unwrap());
    eventually("the turn is over", async || (!world.is_in_progress(&life, &session).await).then_some(())).await;
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 2");
}
