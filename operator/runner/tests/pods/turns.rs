//! Which turn is in progress is what the bridge says, whoever sent it and whatever became of them.

use ash_core::{
    Entry, EntryFlags, EntryKind,
    id::TurnId,
    ports::{NewMessage, Runner as _, RunnerError},
    session::Session,
};
use ash_protocol::{
    frame::{Frame, FrameKind},
    message::{Progress, Reply, Request},
    options::TurnOptions,
};
use bytes::Bytes;
use serde_json::{json, value::RawValue};
use uuid::Uuid;

use crate::{
    stand_in::StandIn,
    world::{Life, World, eventually},
};

fn message(turn: TurnId, options: TurnOptions) -> NewMessage {
    NewMessage { turn, content: RawValue::from_string("\"hello\"".to_owned()).unwrap(), options }
}

/// What a bridge writes when it admits a turn.
fn begins(session: &Session, n: u32, turn: TurnId) -> Frame {
    let body = json!({ "type": "user", "uuid": turn.0, "message": { "role": "user", "content": "hello" } });
    let sequence = session.epoch.sequence(n);
    Frame::event(&Entry {
        sequence,
        kind: EntryKind::User,
        flags: EntryFlags::default(),
        body: Bytes::from(body.to_string()),
    })
}

fn ends(session: &Session, n: u32) -> Frame {
    let sequence = session.epoch.sequence(n);
    let body = Bytes::from_static(b"{\"type\":\"result\"}");
    Frame::event(&Entry { sequence, kind: EntryKind::Claude, flags: EntryFlags::ENDS_TURN, body })
}

async fn refused(world: &World, life: &Life, session: &Session) -> RunnerError {
    let other = message(TurnId(Uuid::new_v4()), TurnOptions::default());
    let sent = life.runner.send(world.row_of(session).await, world.agent.version.clone(), other).await;
    sent.map(|sent| sent.joined).expect_err("another turn is in progress")
}

/// The bridge says that a turn begins, and that it ends: in between it is in progress, and no other one is taken.
async fn runs_and_ends(world: &World, life: &Life, session: &Session, bridge: &mut StandIn, turn: TurnId) {
    bridge.send(&begins(session, 2, turn)).await;
    bridge.acknowledged(session.epoch.sequence(2)).await;
    assert!(world.is_in_progress(life, session).await);
    assert_eq!(refused(world, life, session).await, RunnerError::TurnInProgress);
    bridge.send(&ends(session, 3)).await;
    bridge.acknowledged(session.epoch.sequence(3)).await;
    assert!(!world.is_in_progress(life, session).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_on_whose_sender_went_away_while_it_was_on_its_way() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let (session, mut bridge, _pod) = StandIn::claimed(&world, &life).await;
    let turn = TurnId(Uuid::new_v4());
    // An option of its own: the bridge's answer is waited for.
    let options = TurnOptions { model: Some("claude-of-its-own".to_owned()), ..TurnOptions::default() };
    let row = world.row_of(&session).await;
    let number = tokio::select! {
        sent = life.runner.send(row, world.agent.version.clone(), message(turn, options)) => {
            panic!("nobody has answered: {:?}", sent.map(|sent| sent.joined));
        }
        number = bridge.asked(|request| matches!(request, Request::Admit(_))) => number,
    };
    assert_eq!(refused(&world, &life, &session).await, RunnerError::TurnInProgress);
    let nothing = RawValue::from_string("null".to_owned()).unwrap();
    bridge.send(&Frame::json(FrameKind::Reply, number, &Reply::Ok(nothing))).await;
    runs_and_ends(&world, &life, &session, &mut bridge, turn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_a_bridge_begins_unasked_is_in_progress() {
    let world = World::with_stand_in().await;
    let life = world.start().await;
    let (session, bridge, pod) = StandIn::claimed(&world, &life).await;
    drop((life, bridge));

    let life = world.start().await;
    let progress = Progress::Bound {
        session: session.id.0,
        epoch: session.epoch,
        last: session.last,
        turn: None,
        permissions: Vec::new(),
    };
    let mut bridge = StandIn::dial(&world, &pod, progress).await;
    bridge.synced().await;
    eventually("nothing is in progress", async || (!world.is_in_progress(&life, &session).await).then_some(())).await;
    let turn = TurnId(Uuid::new_v4());
    runs_and_ends(&world, &life, &session, &mut bridge, turn).await;
}
