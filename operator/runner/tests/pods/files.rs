//! Files of sessions: kept while their pods come and go, and what bridges, storages and pods can do to that.

use ash_core::{
    EntryKind,
    ports::{PodState, Runner as _, RunnerError, StoreError},
    session::{Closing, PausedReason, Session, SessionState},
};
use ash_protocol::{
    frame::Frame,
    message::{Request, Rested},
    tree::{Entry, EntryKind as Kind, EntryPath, Stamp},
    version::ProtocolVersion,
};

use crate::{
    stand_in::StandIn,
    world::{Life, Pod, World, eventually, exists},
};

fn is_lost(session: &Session) -> bool {
    session.state == SessionState::Paused(PausedReason::Lost)
}

/// A session that has lost its pod, with a file that was kept.
async fn with_a_file(world: &World, life: &Life) -> Session {
    let mut pod = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(life, &session, &pod).await.unwrap();
    std::fs::write(pod.folder.join("workspace/made"), "here").unwrap();
    assert_eq!(world.say(life, &session, "[[count]]").await, "messages: 1");
    eventually("a snapshot after the turn", async || {
        world.store.snapshots(session.id).await.unwrap().into_iter().next()
    })
    .await;
    pod.bridge.kill().unwrap();
    world.wait_session(&session, "it has lost its pod", is_lost).await;
    session
}

/// It goes on in a pod, with its file.
async fn goes_on(world: &World, life: &Life, session: &Session, pod: &Pod) {
    world.claim(life, &world.row_of(session).await, pod).await.unwrap();
    assert_eq!(world.say(life, session, "[[count]]").await, "messages: 2");
    assert_eq!(std::fs::read(pod.folder.join("workspace/made")).unwrap(), b"here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_pod_is_gone_has_its_files_in_the_next_one() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let mut pod = world.warm_pod().await;
    let session = world.new_session().await;
    world.claim(&life, &session, &pod).await.unwrap();
    let workspace = pod.folder.join("workspace");
    std::fs::create_dir(workspace.join("folder")).unwrap();
    std::fs::write(workspace.join("folder/made"), "here").unwrap();
    std::fs::remove_file(workspace.join("CLAUDE.md")).unwrap();
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 1");
    let snapshots = async || world.store.snapshots(session.id).await.unwrap();
    eventually("a snapshot after the turn", async || snapshots().await.into_iter().next()).await;
    // While it rests one is taken too, of what was made since.
    std::fs::write(workspace.join("folder/later"), "too").unwrap();
    life.runner.close(world.row_of(&session).await, Closing::Pause).await.unwrap();
    assert_eq!(snapshots().await.len(), 2);
    life.runner.resume(world.row_of(&session).await, world.agent.version.clone()).await.unwrap();
    pod.bridge.kill().unwrap();
    world.wait_session(&session, "it has lost its pod", is_lost).await;

    let next = world.warm_pod().await;
    assert!(exists(&next.folder.join("workspace/CLAUDE.md")), "of the pool");
    world.claim(&life, &world.row_of(&session).await, &next).await.unwrap();
    assert_eq!(world.say(&life, &session, "[[count]]").await, "messages: 2");
    let workspace = next.folder.join("workspace");
    assert_eq!(std::fs::read(workspace.join("folder/made")).unwrap(), b"here");
    assert_eq!(std::fs::read(workspace.join("folder/later")).unwrap(), b"too");
    assert!(!exists(&workspace.join("CLAUDE.md")), "it had removed that");
    let log = world.log(&life, &session).await;
    let openings = log.iter().filter(|entry| entry.kind == EntryKind::Opening);
    let recovered: Vec<_> =
        openings.filter_map(|entry| ash_core::opening::Opening::read(&entry.body).unwrap().recovered).collect();
    assert_eq!(recovered.len(), 1, "{recovered:?}");
    assert!(recovered[0].workspace.is_some() && recovered[0].workspace == recovered[0].conversation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_cannot_restore_gets_no_session_that_has_files() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let session = with_a_file(&world, &life).await;
    let (_bridge, row) = StandIn::warm_as(&world, ProtocolVersion { major: 1, minor: 1 }).await;
    let refused = world.claim_sandbox(&life, &world.row_of(&session).await, row.id).await.unwrap_err();
    assert!(matches!(&refused, RunnerError::Unreachable(why) if why.contains("cannot restore")), "{refused:?}");
    // It goes, so that the next claim gets another one.
    eventually("the old pod is over", async || {
        (world.rows.known.lock().unwrap()[&row.id].state == PodState::Deleting).then_some(())
    })
    .await;
    let pod = world.warm_pod().await;
    goes_on(&world, &life, &session, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_is_away_costs_no_pod_and_no_file() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let session = with_a_file(&world, &life).await;
    let pod = world.warm_pod().await;
    let aside = world.vault().with_extension("aside");
    std::fs::rename(world.vault(), &aside).unwrap();
    std::fs::write(world.vault(), "in the way").unwrap();
    for _ in 0..5 {
        let refused = world.claim(&life, &world.row_of(&session).await, &pod).await.unwrap_err();
        assert!(matches!(&refused, RunnerError::Store(StoreError::Unavailable(_))), "{refused:?}");
    }
    assert_ne!(world.rows.known.lock().unwrap()[&pod.sandbox].state, PodState::Deleting);
    // Another session can use the pod meanwhile, or this one later.
    std::fs::remove_file(world.vault()).unwrap();
    std::fs::rename(&aside, world.vault()).unwrap();
    goes_on(&world, &life, &session, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_without_any_of_the_snapshots_is_the_wrong_one() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let session = with_a_file(&world, &life).await;
    let mut pod = world.warm_pod().await;
    let aside = world.vault().with_extension("aside");
    std::fs::rename(world.vault(), &aside).unwrap();
    std::fs::create_dir(world.vault()).unwrap();
    let refused = world.claim(&life, &world.row_of(&session).await, &pod).await.unwrap_err();
    assert!(matches!(&refused, RunnerError::Unreachable(why) if why.contains("--object-store")), "{refused:?}");
    pod.ended().await;
    assert_eq!(world.store.snapshots(session.id).await.unwrap().len(), 1, "its snapshot is still named");
    std::fs::remove_dir_all(world.vault()).unwrap();
    std::fs::rename(&aside, world.vault()).unwrap();
    let pod = world.warm_pod().await;
    goes_on(&world, &life, &session, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_more_than_a_workspace_may_have_ends_the_snapshot_and_nothing_is_kept() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let (session, mut bridge, _) = StandIn::claimed(&world, &life).await;
    let row = world.row_of(&session).await;
    let pausing = life.runner.close(row.clone(), Closing::Pause);
    let bridge = async {
        let number = bridge.asked(|request| matches!(request, Request::ListTree { .. })).await;
        let stamp = Stamp { inode: 1, changed_ns: 1 };
        let kind = Kind::File { size: 1 << 40, stamp, sparse: false };
        let entry = Entry { path: EntryPath::new(b"large").unwrap(), mode: 0o600, modified_ns: 0, kind };
        let mut line = serde_json::to_vec(&entry).unwrap();
        line.push(b'\n');
        bridge.send(&Frame::data(number, 0, line)).await;
        // It is given up, and the session rests all the same.
        bridge.asked(|request| matches!(request, Request::Cancel { .. })).await;
        bridge.answer(|request| matches!(request, Request::Rest {}), &Rested { last: row.last }).await;
    };
    let (paused, ()) =
        tokio::time::timeout(crate::world::DEADLINE, async { tokio::join!(pausing, bridge) }).await.unwrap();
    assert_eq!(paused.unwrap().state, SessionState::Paused(PausedReason::Person));
    assert_eq!(life.metric("ash_runner_snapshots_failed_total"), 1);
    assert_eq!(std::fs::read_dir(world.vault()).unwrap().count(), 0, "nothing is kept");
    assert_eq!(world.store.snapshots(session.id).await.unwrap(), []);
}
