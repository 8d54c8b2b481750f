//! An agent that takes its bridge's place at a restarted server, with everything right in its greeting.

use std::{fs, path::Path};

use ash_client::Session;
use ash_e2e::harness::{TestApp, Turn, eventually};
use serde_json::json;

use super::{FIND_BRIDGE, bash};

/// Stops the bridge as soon as the server is gone, and greets the next one in its place: with a listener of its own, and the
/// greeting that the test wrote. What a test adds goes on from there, with `host`, `listener`, `port` and `bridge`.
const TAKE_PLACE: &str = r#"
import array, json, os, signal, socket, struct, time

def told(name):
    while not os.path.exists("/workspace/" + name):
        time.sleep(0.01)

def tell(name):
    open("/workspace/" + name, "w").close()

def frame(kind, body=b""):
    return struct.pack("<IBBBBQ", len(body), kind, 0, 0, 0, 0) + body

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(64)
port = listener.getsockname()[1]
bridge, stopped = int(os.environ["bridge"]), False
tell("ready")
while True:
    host = socket.socket(socket.AF_UNIX)
    try:
        host.connect("/run/ash/bridge.sock")
        if stopped:
            break
    except OSError:
        if not stopped:
            os.kill(bridge, signal.SIGSTOP)
            stopped = True
    host.close()
    time.sleep(0.01)

hello = json.loads(os.environ["hello"])
hello["gatewayPort"] = port
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))]
host.sendmsg([frame(1, json.dumps(hello).encode())], rights)
tell("welcome" if host.recv(65536)[4:5] == b"\x02" else "refused")
"#;

/// Has the session's agent take its bridge's place, for which the server is killed and started again, and then go on with
/// this program in Python, whose end would end the connection. Returns when the server has taken the greeting.
///
/// # Panics
/// When it has not.
pub(crate) async fn take_the_bridges_place(app: &mut TestApp, session: &Session, program: &str) {
    let workspace = app.session_folder(&session.id).join("workspace");
    let turn = app.say(session, "[[text: begun]]").await;
    assert_eq!(turn.error(), None);
    // The greeting tells how far the log is: the turn in which the program starts has a file's name in it instead.
    let script = format!(
        "{FIND_BRIDGE}cat >hostile.py <<'END'\n{TAKE_PLACE}{program}\nEND\n\
         (while ! [ -e hello ]; do sleep 0.05; done; hello=$(cat hello) bridge=$bridge exec python3 hostile.py) \
         >log 2>&1 </dev/null &"
    );
    let output = bash(app, session, &script).await;
    assert!(!output.contains("no bridge"), "{output}");
    let session = app.client.session(&session.id).await.expect("the session");
    let turn = app.say(&session, "[[text: last]]").await;
    fs::write(workspace.join("hello.new"), hello(&session, &turn)).expect("a file");
    fs::rename(workspace.join("hello.new"), workspace.join("hello")).expect("a file");
    appears(&workspace, "ready").await;
    app.kill();
    app.start_again().await;
    appears(&workspace, "welcome").await;
}

/// The greeting of the session's bridge after this turn, without its port.
fn hello(session: &Session, turn: &Turn) -> String {
    let last = turn.frames.iter().rev().find_map(|frame| frame.id.as_deref()).expect("an id");
    let last: u64 = last.split_once('.').expect("a position").0.parse().expect("a sequence");
    let sandbox = session.other["sandboxId"].as_str().expect("a sandbox");
    json!({
        "protocol": { "major": 1, "minor": 0 }, "bridge": "0.1.0", "sandbox": sandbox,
        "progress": {
            "phase": "bound", "session": session.id, "epoch": last >> 32, "last": last, "turn": null, "permissions": [],
        },
    })
    .to_string()
}

/// Waits until the program has written this file.
///
/// # Panics
/// When it does not, or the server refused it.
pub(crate) async fn appears(workspace: &Path, name: &str) {
    eventually(name, async || {
        assert!(!workspace.join("refused").exists(), "the server does not take the impersonator for the bridge");
        workspace.join(name).exists().then_some(())
    })
    .await;
}
