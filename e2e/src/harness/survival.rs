//! What a session goes through with its server, whatever the server's store is.

use super::{TestApp, eventually, pid_of};

/// Has a session go on after its server was killed and after it was stopped, with its conversation and its workspace.
///
/// # Panics
/// When anything of it is not as it was.
pub async fn outlives_its_server(app: &mut TestApp) {
    const READ: &str = r#"[[tool: Bash {"command":"cat note"}]] [[result]]"#;
    let session = app.session().await;
    let kept = async |app: &TestApp, text: &str| {
        let turn = app.say(&session, text).await;
        assert!(turn.result().is_some_and(|text| text.contains("kept")), "{:?} {:?}", turn.result(), turn.error());
    };
    let counted = async |app: &TestApp, count: &str| {
        let turn = app.say(&session, "[[count]]").await;
        assert_eq!(turn.result().as_deref(), Some(count), "{:?} {:?}", turn.names(), turn.error());
    };
    let claude = |app: &TestApp| pid_of(&app.session_folder(&session.id), "claude");

    kept(app, r#"[[tool: Bash {"command":"echo kept > note; cat note"}]] [[result]]"#).await;
    let process = claude(app);
    app.kill();
    app.start_again().await;
    kept(app, READ).await;
    counted(app, "3").await;
    assert_eq!(claude(app), process, "the same process goes on");
    // A graceful stop ends the sandbox; the conversation is put back from the log, and the workspace stays.
    app.stop();
    eventually("the sandbox is gone", async || claude(app).is_none().then_some(())).await;
    app.start_again().await;
    kept(app, READ).await;
    counted(app, "5").await;
}
