//! A full disk: the turn fails and says why, the server stays up, what was acknowledged is there, and with space it goes on.

use std::{fs::File, io::Write, path::PathBuf};

use ash_e2e::harness::{TestApp, TestAppBuilder, eventually, program};
use serde_json::Value;

use crate::support::{goes_on, is_root, refused_with_key};

/// Size of the small disk: room for a database and a workspace, filled in no time.
const DISK: &str = "48m";

/// A server whose folder is on a small disk of its own mounts, which only its process and those beneath it see.
fn on_a_small_disk() -> TestAppBuilder {
    let mount = format!("mount -t tmpfs -o size={DISK},mode=0755 none \"$ASH_TEST_DATA\"");
    let script = if is_root() {
        format!("mkdir -p \"$ASH_TEST_DATA\" && {mount} && exec \"$0\" \"$@\"")
    } else {
        // Mounts need a user namespace, and the server must not take itself for root in it.
        let identity = "--map-user=$ASH_TEST_USER --map-group=$ASH_TEST_GROUP";
        format!("mkdir -p \"$ASH_TEST_DATA\" && {mount} && exec unshare --user {identity} \"$0\" \"$@\"")
    };
    let namespaces: &[&str] = if is_root() { &["--mount"] } else { &["--map-root-user", "--mount"] };
    let command = [&["unshare"], namespaces, &["sh", "-c", &script]].concat();
    TestApp::builder().behind(command.into_iter().map(str::to_owned).collect())
}

/// A file that takes what is left of the disk.
struct Filler(PathBuf);

impl Filler {
    fn new(app: &TestApp) -> Self {
        let data = app.data();
        let inside = data.strip_prefix("/").expect("an absolute path");
        let path = PathBuf::from(format!("/proc/{}/root", app.server_pid())).join(inside).join("filler");
        let mut file = File::create(&path).expect("a file on the small disk");
        let block = vec![0x55; 64 << 10];
        let mut size = block.len();
        // The last bytes too, in ever smaller pieces.
        while size > 0 {
            while file.write_all(&block[..size]).is_ok() {}
            size /= 2;
        }
        Self(path)
    }

    fn remove(self) {
        std::fs::remove_file(self.0).expect("the filler goes");
    }
}

async fn history(app: &TestApp, id: &str) -> Value {
    let (status, history) = app.request("GET", &format!("/api/sessions/{id}/messages"), None).await;
    assert_eq!(status, 200, "{history}");
    history
}

/// A stand-in for Claude Code takes a message that is surely longer than what the database has in reserve in its files.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_fails_and_the_server_stays_up() {
    let app = on_a_small_disk().claude(program("stand-in-claude")).start().await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "said before").await.error(), None);
    app.wait_written().await;
    let before = history(&app, &session.id).await;
    assert!(before.to_string().contains("said before"), "{before}");

    let filler = Filler::new(&app);
    let turn = app.say(&session, &format!("said on a full disk: {} [[hang]]", random_text(8 << 20))).await;
    let error = turn.error().expect("an error frame");
    assert_eq!(
        error,
        "the turn failed: the database cannot write: its disk is full; free some space, what was acknowledged is kept"
    );
    assert_eq!(turn.names().last(), Some(&"done"), "{:?}", turn.names());
    assert_eq!(app.client.health().await.expect("the server is up").status, "ok");
    let after = history(&app, &session.id).await;
    let (before, after) = (before["messages"].as_array(), after["messages"].as_array());
    assert_eq!(after, before, "what was acknowledged is there");
    eventually("the withdrawn tail is counted", async || {
        (app.metric("ash_runner_tails_withdrawn_total").await == 1).then_some(())
    })
    .await;

    filler.remove();
    let turn = app.say(&session, "[[count]]").await;
    let result = turn.result();
    assert_eq!((result.as_deref(), turn.error()), (Some("messages: 2"), None), "{:?}", turn.names());
    let other = app.session_of("simple").await;
    assert_eq!(app.say(&other, "[[count]]").await.result().as_deref(), Some("messages: 1"));
}

/// Text that no compression makes much smaller.
fn random_text(length: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(length).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_to_be_stored_is_refused() {
    let app = on_a_small_disk().argument("--warm=0").start().await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "[[text: said before]]").await.error(), None);
    app.wait_written().await;
    let filler = Filler::new(&app);
    let file = serde_json::json!({ "path": "CLAUDE.md", "content": random_text(8 << 20) });
    let body = serde_json::json!({ "name": "large", "files": [file] }).to_string();
    let refused = refused_with_key(&app, "POST", "/api/agents", body).await;
    assert_eq!((refused.status, refused.retry_after), (503, Some(60)), "{refused:?}");
    assert_eq!(
        refused.sentence,
        "the database cannot write: its disk is full; free some space, what was acknowledged is kept"
    );
    filler.remove();
    assert_eq!(app.client.agents().await.expect("the agents").len(), 1);
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_wake_says_why_and_wakes_later() {
    let app = on_a_small_disk().argument("--max-sandboxes=1").start().await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "[[text: said before]]").await.error(), None);
    let other = app.session_of("simple").await;
    goes_on(&app, &other).await;
    app.wait_written().await;

    let filler = Filler::new(&app);
    let turn = app.say(&session, "[[text: never]]").await;
    let error = turn.error().expect("an error frame");
    assert!(error.contains("disk is full") || error.contains("No space left"), "{error}");
    assert_eq!((turn.result(), turn.names().last()), (None, Some(&"done")), "{:?}", turn.names());

    filler.remove();
    goes_on(&app, &session).await;
    let turn = app.say(&session, "[[history]]").await;
    let texts = turn.result().expect("a result");
    assert!(texts.contains("said before") && !texts.contains("never"), "{texts}");
    goes_on(&app, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_for_a_moment_loses_nothing() {
    let app = on_a_small_disk().start().await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "[[text: said before]]").await.error(), None);
    app.wait_written().await;
    let filler = Filler::new(&app);
    let turn = app.say(&session, "[[text: said meanwhile]]").await;
    assert_eq!(turn.error(), None);
    filler.remove();
    eventually("what was said is in the log", async || {
        history(&app, &session.id).await.to_string().contains("said meanwhile").then_some(())
    })
    .await;
    let turn = app.say(&session, "[[count]]").await;
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("3"), None), "{:?}", turn.names());
}
