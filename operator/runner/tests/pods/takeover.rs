//! What the next life of a runner makes of what the one before left, and of what bridges say of it.

use ash_core::{
    Sequence,
    ports::{Append, Runner as _},
    session::{Closing, PausedReason, Session, SessionState},
};
use ash_protocol::{
    frame::Frame,
    message::{Progress, Request, Rested},
    version::ProtocolVersion,
};
use bytes::Bytes;
use tokio::time::timeout;

use crate::{
    stand_in::{StandIn, said},
    world::{DEADLINE, World, is_active, is_ordered},
};

/// The last version of the protocol without snapshots.
const BEFORE_SNAPSHOTS: ProtocolVersion = ProtocolVersion { major: 1, minor: 1 };

fn bound(session: &Session, last: Sequence) -> Progress {
    Progress::Bound { session: session.id.0, epoch: session.epoch, last, turn: None, permissions: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_life_before_wrote_after_its_successor_had_looked_counts() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let (session, mut bridge, pod) = StandIn::claimed(&world, &life).await;
    let entry = |n| said(session.epoch.sequence(n), Bytes::from(format!("{{\"n\":{n}}}")));
    bridge.send(&Frame::event(&entry(2))).await;
    bridge.acknowledged(entry(2).sequence).await;
    drop((life, bridge));

    // The next one has read its sessions when it is started; its bridges come after that.
    let life = world.start().await;
    let late = Append { session: session.id, after: entry(2).sequence, entries: vec![entry(3), entry(4)] };
    world.store.append(vec![late]).await.remove(0).unwrap();
    // The bridge was told so by who wrote it, and has those no more.
    let mut bridge = StandIn::dial(&world, &pod, bound(&session, entry(4).sequence)).await;
    assert_eq!((bridge.welcome.acknowledged, bridge.welcome.overtaken), (entry(4).sequence, false));
    bridge.synced().await;
    bridge.send(&Frame::event(&entry(5))).await;
    bridge.acknowledged(entry(5).sequence).await;
    let row = world.row_of(&session).await;
    assert!(is_active(&row) && row.sandbox == Some(pod.id) && row.epoch == session.epoch, "{row:?}");
    let log = world.log(&life, &session).await;
    assert!(is_ordered(&log));
    let numbers: Vec<u32> = log.iter().map(|entry| entry.sequence.n()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_says_that_it_serves_a_session_which_rests_keeps_nobody_waiting() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    // One that knows no snapshots, and so is not asked for one before it rests.
    let (session, mut bridge, pod) = StandIn::claimed_as(&world, &life, BEFORE_SNAPSHOTS).await;
    let rested = Rested { last: session.last };
    let (paused, _) = tokio::join!(
        life.runner.close(session.clone(), Closing::Pause),
        bridge.answer(|request| matches!(request, Request::Rest {}), &rested),
    );
    let paused = paused.unwrap();
    assert_eq!((paused.state, paused.sandbox), (SessionState::Paused(PausedReason::Person), Some(pod.id)));
    drop((life, bridge));

    let life = world.start().await;
    let mut bridge = StandIn::dial(&world, &pod, bound(&paused, paused.last)).await;
    assert!(bridge.welcome.overtaken);
    bridge.synced().await;
    let resumed = life.runner.resume(world.row_of(&session).await, world.agent.version.clone());
    let resumed = timeout(DEADLINE, resumed).await.expect("nobody waits for ever").unwrap();
    assert!(is_active(&resumed) && resumed.sandbox.is_none(), "{resumed:?}");
}
