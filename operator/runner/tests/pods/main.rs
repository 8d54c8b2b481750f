//! Pods without Kubernetes: bridges that dial a runner over the network, prove themselves, are claimed, rest, are woken, and find
//! the next life of their runner.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod files;
mod freeze;
mod hostile;
mod stand_in;
mod stoppable;
mod takeover;
mod turns;
mod world;

use std::time::Duration;

use ash_core::{
    EntryKind,
    ports::{PodState, Runner as _, RunnerError},
    session::{Closing, PausedReason, SessionState},
};
use world::{World, eventually, exists, is_active, is_ordered, result_of, valid};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_warmed_claimed_rested_woken_paused_and_ended() {
    let mut world = World::with_stand_in().await;
    world.idle_timeout = Duration::from_secs(1);
    let life = world.start().await;
    let mut pod = world.warm_pod().await;
    assert!(exists(&pod.folder.join("workspace/CLAUDE.md")), "the bundle is unpacked");
    let session = world.new_session().await;
    let claimed = world.claim(&life, &session, &pod).await.unwrap();
    assert_eq!((claimed.state, claimed.sandbox), (SessionState::Active, Some(pod.sandbox)));
    let again = life.runner.claim(session.clone(), pod.sandbox).await.unwrap();
    assert_eq!(again.epoch, claimed.epoch, "a repeat does nothing");
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 1");

    // Nobody uses it for a while: it rests, and keeps its pod.
    let resting = |session: &ash_core::session::Session| session.state == SessionState::Paused(PausedReason::Idle);
    let rested = world.wait_session(&session, "it rests", resting).await;
    assert_eq!((rested.sandbox, rested.epoch), (Some(pod.sandbox), claimed.epoch.next().unwrap()));
    assert_eq!(life.runner.load().cold, 1);
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 2", "its conversation goes on");
    let woken = world.row_of(&session).await;
    assert!(is_active(&woken) && woken.sandbox == Some(pod.sandbox) && woken.epoch > rested.epoch);

    // A person pauses it, in the middle of a turn.
    let mut turn = world.send(&life, &session, "[[hang]]").await.unwrap();
    turn.until(|entry| entry.kind == EntryKind::User).await;
    let paused = life.runner.close(world.row_of(&session).await, Closing::Pause).await.unwrap();
    assert_eq!((paused.state, paused.sandbox), (SessionState::Paused(PausedReason::Person), Some(pod.sandbox)));
    assert!(matches!(world.send(&life, &session, "no").await, Err(RunnerError::State(_))));
    let resumed = life.runner.resume(paused, world.agent.version.clone()).await.unwrap();
    assert!(is_active(&resumed) && resumed.sandbox == Some(pod.sandbox), "{resumed:?}\n{}", pod.log());
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 4");

    let ended = life.runner.close(world.row_of(&session).await, Closing::End).await.unwrap();
    assert_eq!((ended.state, ended.sandbox), (SessionState::Ended, None));
    pod.ended().await;
    world.wait_state(&pod, PodState::Deleting).await;
    assert_eq!(world.reason(&pod), None, "nobody has to be told why");
    let log = world.log(&life, &session).await;
    assert!(is_ordered(&log));
    assert_eq!(log.iter().filter(|entry| entry.ends_turn()).count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_killed_in_a_turn_loses_nothing_also_without_an_api_server() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let pod = world.warm_pod().await;
    let other = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    let mut turn =
        world.send(&life, &session, "[[burst: 20000]] [[permission: Bash {\"command\":\"x\"}]]").await.unwrap();
    turn.until(|entry| entry.kind == EntryKind::Partial).await;
    *world.reviews.away.lock().unwrap() = true;
    drop(life);

    let life = world.start().await;
    let row = world.row_of(&session).await;
    let mut reader = life.runner.read(&row, ash_core::sse::Position::after(ash_core::Sequence::START)).await.unwrap();
    let mut entries = Vec::new();
    let mut permission = None;
    while !entries.iter().any(ash_core::Entry::ends_turn) {
        let batch = tokio::time::timeout(world::DEADLINE, reader.next()).await.unwrap().unwrap().unwrap();
        entries.extend(batch.iter().map(|logged| logged.entry.clone()));
        let asked = entries.iter().find(|entry| entry.body.starts_with(b"{\"permission_request\""));
        if let (None, Some(asked)) = (&permission, asked) {
            let asked: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
            let id = asked["permission_request"]["id"].as_str().unwrap().to_owned();
            let allow = serde_json::from_value(serde_json::json!({ "behavior": "allow" })).unwrap();
            life.runner.answer(session.id, &id, allow).await.unwrap();
            permission = Some(id);
        }
    }
    let last = entries.iter().find(|entry| entry.ends_turn()).unwrap();
    assert_eq!(result_of(last), "allowed", "the turn went on");
    let openings = entries.iter().filter(|entry| entry.kind == EntryKind::Opening).count();
    assert_eq!(openings, 1, "the epoch is the same");
    assert!(is_ordered(&entries));
    let numbers: Vec<u32> = entries.iter().map(|entry| entry.sequence.n()).collect();
    let partials = entries.iter().filter(|entry| entry.kind == EntryKind::Partial).count();
    assert!(partials >= 20_000, "{partials} of 20000, up to {:?}", numbers.last());

    // The warm one came back too, and can be claimed.
    let next = world.new_session().await;
    world.claim(&life, &next, &other).await.unwrap();
    assert_eq!(world.say(&life, &next, "[[count]]").await, "messages: 1");
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pauses_or_resumes_at_once_is_answered() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let pod = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    for round in 1..=10 {
        world.say(&life, &session, "[[count]]").await;
        let row = world.row_of(&session).await;
        let paused = (0..3).map(|_| life.runner.close(row.clone(), Closing::Pause));
        let paused = tokio::time::timeout(world::DEADLINE, futures::future::join_all(paused)).await.unwrap();
        for row in paused {
            assert_eq!(row.unwrap().state, SessionState::Paused(PausedReason::Person), "round {round}");
        }
        let row = world.row_of(&session).await;
        let resumed = (0..3).map(|_| life.runner.resume(row.clone(), world.agent.version.clone()));
        let resumed = tokio::time::timeout(world::DEADLINE, futures::future::join_all(resumed)).await.unwrap();
        for row in resumed {
            assert!(is_active(&row.unwrap()), "round {round}");
        }
    }
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 11");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_lets_no_session_rest_keeps_none_from_being_ended() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let pod = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    world.say(&life, &session, "[[count]]").await;
    pod.stop();
    let row = world.row_of(&session).await;
    let pausing = life.runner.close(row.clone(), Closing::Pause);
    let ending = life.runner.close(row, Closing::End);
    let (_, ended) = tokio::time::timeout(world::DEADLINE, async { tokio::join!(pausing, ending) }).await.unwrap();
    assert_eq!(ended.unwrap().state, SessionState::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_rests_is_found_resting_by_the_next_life() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let pod = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    world.say(&life, &session, "[[count]]").await;
    let stopped = life.runner.close(world.row_of(&session).await, Closing::Stop).await.unwrap();
    assert_eq!((stopped.state, stopped.sandbox), (SessionState::Stopped, Some(pod.sandbox)));
    drop(life);
    let life = world.start().await;
    let resumed = life.runner.resume(world.row_of(&session).await, world.agent.version.clone()).await.unwrap();
    assert!(is_active(&resumed) && resumed.sandbox == Some(pod.sandbox), "{resumed:?}\n{}", pod.log());
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_pod_is_told_and_one_made_for_the_session_goes_on_with_the_conversation() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let mut pod = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    world.say(&life, &session, "[[count]]").await;
    pod.bridge.kill().unwrap();
    let lost = |session: &ash_core::session::Session| session.state == SessionState::Paused(PausedReason::Lost);
    assert_eq!(world.wait_session(&session, "it is lost", lost).await.sandbox, None);
    world.wait_state(&pod, PodState::Deleting).await;
    assert!(world.reason(&pod).is_some());
    // There is none for it here, and the runner makes none: whoever sent the message sees to it.
    assert!(matches!(world.send(&life, &session, "early").await, Err(RunnerError::Unreachable(_))));

    let row = world.row(Some(session.id));
    let next = world.pod(&row, &valid(&row, world::NODE));
    world.wait_session(&session, "it has the pod", |session| session.sandbox == Some(next.sandbox)).await;
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 2");
    assert!(exists(&next.folder.join("workspace/CLAUDE.md")));

    // Lost again, it takes a warm one that is there: with its conversation too.
    drop(next);
    world.wait_session(&session, "it is lost again", lost).await;
    let warm = world.warm_pod().await;
    let claimed = world.claim(&life, &session, &warm).await.unwrap();
    assert_eq!(claimed.sandbox, Some(warm.sandbox));
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_claude_in_a_pod_is_rehearsed_claimed_rested_and_woken() {
    let mut world = World::with_claude().await;
    world.idle_timeout = Duration::from_secs(1);
    let life = world.start().await;
    let pod = world.warm_pod().await;
    assert!(world.model.requests().is_empty(), "a rehearsal reaches no model");
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    assert_eq!(world.say(&life, &session, "[[text: hello from the pod]]").await, "hello from the pod");
    let resting = |session: &ash_core::session::Session| session.state == SessionState::Paused(PausedReason::Idle);
    world.wait_session(&session, "it rests", resting).await;
    let history = world.say(&life, &session, "[[history]]").await;
    assert!(history.contains("hello from the pod"), "{history}");
    // Its runner is killed between turns, and its pod found by the next one.
    drop(life);
    let life = world.start().await;
    assert_eq!(world.say(&life, &session, "[[text: here again]]").await, "here again");
    let key = world.model.requests();
    assert!(!key.is_empty());
    drop(pod);
    eventually("it is lost with its pod", async || {
        let row = world.row_of(&session).await;
        row.sandbox.is_none().then_some(())
    })
    .await;
}
