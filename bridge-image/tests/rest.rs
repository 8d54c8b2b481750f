//! A session that rests: Claude Code is stopped, the workspace and the conversation stay, and a newer epoch wakes it.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod support;

use ash_protocol::{
    message::{Claimed, Progress, RefusalCategory, Request, Rested},
    options::{SessionOptions, TurnOptions},
};
use support::{Connection, EPOCH, Sandbox, admit, stand_in};
use uuid::Uuid;

async fn rest(connection: &mut Connection, sandbox: &mut Sandbox) -> Rested {
    connection.ask(sandbox, Request::Rest {}).await.unwrap()
}

#[tokio::test]
async fn a_session_rests_and_is_woken_in_a_newer_epoch() {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let mut connection = sandbox.connect().await;
    let early = connection.ask::<Rested>(&mut sandbox, Request::Rest {}).await.unwrap_err();
    assert_eq!(early.0, RefusalCategory::NotReady, "nobody is here");
    drop(connection);
    let mut connection = sandbox.session(SessionOptions::default()).await;
    assert_eq!(connection.turn(&mut sandbox, 1, "[[count]]").await["result"], "messages: 1");

    // Between turns only.
    connection.admit(&mut sandbox, 2, "[[hang]]", TurnOptions::default()).await.unwrap();
    let busy = connection.ask::<Rested>(&mut sandbox, Request::Rest {}).await.unwrap_err();
    assert_eq!(busy.0, RefusalCategory::TurnInProgress);
    let _: () = connection.ask(&mut sandbox, Request::Interrupt { turn: None }).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 2).await;

    let rested = rest(&mut connection, &mut sandbox).await;
    connection.until(&mut sandbox, |sandbox, _| sandbox.journal.last().unwrap().sequence == rested.last).await;
    assert_eq!(sandbox.claude_pid(), None, "Claude Code is stopped");
    assert_eq!(rest(&mut connection, &mut sandbox).await.last, rested.last, "a repeat does nothing");
    let refused = connection.ask::<()>(&mut sandbox, admit(3, "hello", TurnOptions::default())).await.unwrap_err();
    assert_eq!(refused.0, RefusalCategory::NotReady);
    drop(connection);

    // A host that was started anew learns that it rests. The epoch that it had wakes nobody.
    let mut connection = sandbox.connect().await;
    let resting = Progress::Resting { session: Uuid::from_u128(1), epoch: EPOCH, last: rested.last };
    assert_eq!(connection.hello.progress, resting);
    let refused = connection.bind(&mut sandbox, SessionOptions::default()).await.unwrap_err();
    assert_eq!(refused.0, RefusalCategory::NotReady);
    sandbox.epoch = EPOCH.next().unwrap();
    let bound = connection.bind(&mut sandbox, SessionOptions::default()).await.unwrap();
    assert_eq!(bound.how, Claimed::Restarted);
    let result = connection.turn(&mut sandbox, 3, "[[count]]").await;
    assert_eq!(result["result"], "messages: 3", "the conversation goes on");
    // Also of a turn from before the rest.
    let written = sandbox.journal.len();
    connection.admit(&mut sandbox, 1, "again", TurnOptions::default()).await.unwrap();
    assert_eq!(sandbox.journal.len(), written);
    drop(connection);
    let connection = sandbox.connect().await;
    assert!(matches!(connection.hello.progress, Progress::Bound { epoch, .. } if epoch == sandbox.epoch));
}
