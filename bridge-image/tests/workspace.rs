//! The host's commands on the workspace, over the real protocol.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod support;

use std::{fs, os::unix::fs::symlink};

use ash_protocol::message::{ExecDone, FileList, FileRead, RefusalCategory, Request};
use support::{Connection, Sandbox, stand_in};

async fn start() -> (Sandbox, Connection) {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let connection = sandbox.connect().await;
    (sandbox, connection)
}

fn exec(command: &str, timeout_ms: u64, max_output_bytes: u64) -> Request {
    Request::Exec { command: command.to_owned(), timeout_ms, max_output_bytes }
}

#[tokio::test]
async fn commands_run_in_the_workspace_and_end_with_all_they_started() {
    let (mut sandbox, mut connection) = start().await;
    let request = connection.request(exec("echo out; echo err >&2; echo x > made; exit 7", 60_000, 1000)).await;
    let done: ExecDone = connection.answer(&mut sandbox, request).await.unwrap();
    assert_eq!((done.exit_code, done.timed_out, done.truncated), (7, false, false));
    assert_eq!((&connection.data[&request][..], &connection.errors[&request][..]), (&b"out\n"[..], &b"err\n"[..]));
    assert!(connection.data_ended[&request]);
    assert!(sandbox.workspace().join("made").exists());

    let done: ExecDone = connection.ask(&mut sandbox, exec("kill -9 $$", 60_000, 10)).await.unwrap();
    assert_eq!(done.exit_code, 137);

    let request = connection.request(exec("head -c 100000 /dev/zero", 60_000, 1000)).await;
    let done: ExecDone = connection.answer(&mut sandbox, request).await.unwrap();
    assert!(done.truncated);
    assert_eq!(connection.data[&request].len(), 1000);

    let request = connection.request(exec("setsid sh -c 'echo $$; sleep 1000' & wait", 500, 1000)).await;
    let done: ExecDone = connection.answer(&mut sandbox, request).await.unwrap();
    assert!(done.timed_out);
    let pid = String::from_utf8(connection.data[&request].clone()).unwrap();
    assert!(fs::read_link(format!("/proc/{}/exe", pid.trim())).is_err(), "what it started is gone, too");
}

#[tokio::test]
async fn files_go_in_and_out_as_the_host_grants_it() {
    let (mut sandbox, mut connection) = start().await;
    let content: Vec<u8> = (0..5_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let put = connection.request(Request::PutFile { path: "a/b/file".to_owned(), mode: Some(0o755) }).await;
    connection.send_data(put, &content).await;
    let _: () = connection.answer(&mut sandbox, put).await.unwrap();
    assert_eq!(fs::read(sandbox.workspace().join("a/b/file")).unwrap(), content);

    let get = connection.request(Request::GetFile { path: "a/b/file".to_owned() }).await;
    connection
        .until(&mut sandbox, |_, connection| connection.data.get(&get).is_some_and(|data| data.len() == 1 << 20))
        .await;
    // Another request is answered while this one waits for credit: nothing more came.
    let list: FileList =
        connection.ask(&mut sandbox, Request::ListFiles { path: String::new(), limit: 10 }).await.unwrap();
    assert_eq!((list.files.len(), list.files[0].path.as_str(), list.truncated), (1, "a/b/file", false));
    assert_eq!(connection.data[&get].len(), 1 << 20);
    connection.grant(get, 10_000_000).await;
    let read: FileRead = connection.answer(&mut sandbox, get).await.unwrap();
    assert_eq!((read.size, read.mode), (5_000_000, 0o755));
    assert_eq!(connection.data[&get], content);

    let _: () = connection.ask(&mut sandbox, Request::DeleteFile { path: "a".to_owned() }).await.unwrap();
    assert!(!sandbox.workspace().join("a").exists());
    let gone = connection.ask::<()>(&mut sandbox, Request::DeleteFile { path: "a".to_owned() }).await.unwrap_err();
    assert_eq!(gone.0, RefusalCategory::NotFound);
}

#[tokio::test]
async fn nothing_leaves_the_workspace() {
    let (mut sandbox, mut connection) = start().await;
    fs::write(sandbox.folder.path().join("secret"), "secret").unwrap();
    symlink("../secret", sandbox.workspace().join("link")).unwrap();
    symlink("..", sandbox.workspace().join("up")).unwrap();
    for path in ["link", "up/secret", "../secret", "/etc/passwd", "", "."] {
        let get = connection.ask::<FileRead>(&mut sandbox, Request::GetFile { path: path.to_owned() }).await;
        assert_eq!(get.unwrap_err().0, RefusalCategory::Invalid, "{path}");
    }
    let put = connection.request(Request::PutFile { path: "up/new".to_owned(), mode: None }).await;
    assert_eq!(connection.answer::<()>(&mut sandbox, put).await.unwrap_err().0, RefusalCategory::Invalid);
    let _: () = connection.ask(&mut sandbox, Request::DeleteFile { path: "up".to_owned() }).await.unwrap();
    // A put over a link replaces the link.
    let put = connection.request(Request::PutFile { path: "link".to_owned(), mode: None }).await;
    connection.send_data(put, b"new").await;
    let _: () = connection.answer(&mut sandbox, put).await.unwrap();
    assert_eq!(fs::read_to_string(sandbox.folder.path().join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_to_string(sandbox.workspace().join("link")).unwrap(), "new");
}

#[tokio::test]
async fn a_workspace_moves_as_an_archive() {
    let (mut sandbox, mut connection) = start().await;
    let workspace = sandbox.workspace();
    let long = "folder/".repeat(40);
    fs::create_dir_all(workspace.join(&long)).unwrap();
    fs::create_dir(workspace.join("empty")).unwrap();
    fs::write(workspace.join(&long).join("file"), vec![7; 700_000]).unwrap();
    symlink("folder", workspace.join("link")).unwrap();
    let archive = connection.request(Request::Archive {}).await;
    let _: () = connection.answer(&mut sandbox, archive).await.unwrap();
    let bytes = connection.data[&archive].clone();

    let (mut other, mut connection) = start().await;
    let unpack = connection.request(Request::Unpack { max_bytes: 1_000_000 }).await;
    connection.send_data(unpack, &bytes).await;
    let _: () = connection.answer(&mut other, unpack).await.unwrap();
    assert_eq!(
        fs::read(other.workspace().join("link").join(&long["folder/".len()..]).join("file")).unwrap(),
        vec![7; 700_000]
    );
    assert!(other.workspace().join("empty").is_dir());
    let unpack = connection.request(Request::Unpack { max_bytes: 1000 }).await;
    connection.send_data(unpack, &bytes).await;
    assert_eq!(connection.answer::<()>(&mut other, unpack).await.unwrap_err().0, RefusalCategory::Invalid);
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_and_go_with_their_host() {
    let (mut sandbox, mut connection) = start().await;
    let mut last = 0;
    for _ in 0..16 {
        last = connection.request(exec("echo $$ >> pids; exec sleep 1000", 600_000, 10)).await;
    }
    let pids = || fs::read_to_string(sandbox.folder.path().join("workspace/pids")).unwrap_or_default();
    tokio::time::timeout(support::DEADLINE, async {
        while pids().lines().count() < 16 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let pids = pids();
    let refused = connection.ask::<ExecDone>(&mut sandbox, exec("true", 1000, 10)).await.unwrap_err();
    assert_eq!(refused.0, RefusalCategory::NotReady);
    assert_eq!(last, 16);
    drop(connection);
    let mut connection = sandbox.connect().await;
    for pid in pids.lines() {
        tokio::time::timeout(support::DEADLINE, async {
            while fs::read_link(format!("/proc/{pid}/exe")).is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }
    let done: ExecDone = connection.ask(&mut sandbox, exec("true", 1000, 10)).await.unwrap();
    assert_eq!(done.exit_code, 0);
}
