//! Workspaces that outlive their sandboxes and their folders, with the real Claude Code.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ash_client::Session;
use ash_e2e::harness::{ObjectStorage, TestApp, eventually, pid_of, signal};
use serde_json::Value;

fn bash(command: &str) -> String {
    format!("[[tool: Bash {}]] [[result]]", serde_json::json!({ "command": command }))
}

async fn run(app: &TestApp, session: &Session, command: &str) -> String {
    let turn = app.say(session, &bash(command)).await;
    turn.result().unwrap_or_else(|| panic!("no result: {:?}", turn.names())).trim().to_owned()
}

/// What a server keeps of snapshots, by kind: `segments` or `manifests`.
fn kept(app: &TestApp, kind: &str) -> Vec<PathBuf> {
    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // What is being written has a name of its own until it is whole.
            if path.is_dir() {
                files(&path, found);
            } else if !path.to_string_lossy().contains('#') {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for space in fs::read_dir(app.data().join("snapshots")).into_iter().flatten().flatten() {
        files(&space.path().join(kind), &mut found);
    }
    found
}

/// The newest of some files.
fn newest(files: &[PathBuf]) -> &Path {
    let changed = |path: &&PathBuf| fs::metadata(path).expect("a file").modified().expect("its time");
    files.iter().max_by_key(changed).expect("a file")
}

/// All that the session's history says of where it goes on from.
async fn recovered(app: &TestApp, session: &Session) -> Vec<Value> {
    let path = format!("/api/sessions/{}/events?type=lifecycle&limit=1000", session.id);
    let (status, body) = app.request("GET", &path, None).await;
    assert_eq!(status, 200, "{body}");
    let data = body["events"].as_array().expect("events").iter();
    let data = data.map(|event| serde_json::from_str::<Value>(event["data"].as_str().expect("data")).expect("JSON"));
    data.filter(|data| data["action"] == "recovered").map(|data| data["recovered"].clone()).collect()
}

async fn pause(app: &TestApp, session: &Session) {
    assert_eq!(app.client.pause_session(&session.id).await.expect("an answer").status, "paused");
    assert_eq!(pid_of(&app.session_folder(&session.id), "claude"), None, "its sandbox is gone");
}

async fn resume(app: &TestApp, session: &Session) {
    assert_eq!(app.client.resume_session(&session.id).await.expect("an answer").status, "active");
}

/// Takes away what a session left on this machine: as if it woke on another.
fn lose_folder(app: &TestApp, session: &Session) {
    fs::remove_dir_all(app.session_folder(&session.id)).expect("its folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_session_is_made_again_where_nothing_of_it_is_left() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let make = "mkdir -p deep/er 'odd name' && echo kept > deep/er/note && printf '#!/bin/sh\\necho ran\\n' > run.sh && \
                chmod 750 run.sh && chmod 2711 deep && ln -s deep/er/note link && ln deep/er/note hard && : > empty && \
                truncate -s 32M sparse && printf end >> sparse && head -c 3000000 /dev/urandom > large && \
                touch -d '2001-02-03 04:05:06' run.sh && echo made";
    assert_eq!(run(&app, &session, make).await, "made");
    let look = "ls -lA --time-style=full-iso . deep deep/er | grep -v '^total' | awk '{print $1, $2, $5, $9, $10, $11}' | sha256sum; \
                find . -type f ! -path './.claude/*' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum; stat -c %Y run.sh";
    let before = run(&app, &session, look).await;
    pause(&app, &session).await;
    lose_folder(&app, &session);
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, look).await, before);
    assert_eq!(run(&app, &session, "./run.sh; cat link; readlink link").await, "ran\nkept\ndeep/er/note");
    let workspace = app.session_folder(&session.id).join("workspace");
    let sparse = fs::metadata(workspace.join("sparse")).expect("a file");
    assert!(sparse.blocks() * 512 < sparse.len() / 2, "its holes take room: {} blocks", sparse.blocks());
    assert_eq!(fs::metadata(workspace.join("run.sh")).expect("a file").permissions().mode() & 0o7777, 0o750);
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert!(history.contains("mkdir -p deep/er"), "{history}");
    let said = recovered(&app, &session).await;
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!((&said[0]["workspace"], &said[0]["damaged"]), (&said[0]["conversation"], &Value::from(0)));
    assert!(said[0]["workspace"].is_string(), "{said:?}");
    // What is still there as it was left is not made again.
    pause(&app, &session).await;
    fs::write(workspace.join("left"), "here").expect("a file");
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat left").await, "here");
    assert_eq!(recovered(&app, &session).await.len(), 1);
    // What is there and was left before the session had its sandbox elsewhere is.
    pause(&app, &session).await;
    fs::write(workspace.join("left"), "stale").expect("a file");
    fs::write(app.session_folder(&session.id).join("epoch"), "1").expect("the mark of an earlier epoch");
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat left").await, "here");
    assert_eq!(recovered(&app, &session).await.len(), 2);
    let aside = app.session_folder(&session.id).with_file_name(format!("left-{}", session.id));
    eventually("what was put aside is gone", async || (!aside.exists()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_be_restored_what_was_left_here_is_used() {
    let app = TestApp::start().await;
    let session = app.session().await;
    assert_eq!(run(&app, &session, "echo left > note; cat note").await, "left");
    pause(&app, &session).await;
    // It had its sandbox elsewhere since, and no snapshot of that can be read.
    fs::write(app.session_folder(&session.id).join("epoch"), "1").expect("the mark of an earlier epoch");
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat note").await, "left");
    pause(&app, &session).await;
    fs::write(app.session_folder(&session.id).join("epoch"), "1").expect("the mark of an earlier epoch");
    for manifest in kept(&app, "manifests") {
        fs::write(manifest, "garbage").expect("a manifest");
    }
    resume(&app, &session).await;
    let refused = app.say(&session, &bash("cat note")).await;
    let is_said = refused.error().is_some_and(|error| error.contains("send the message again"));
    // The start behind the resumption may have met it before.
    if is_said || refused.error().is_some() {
        assert!(is_said, "{:?}", refused.error());
        assert_eq!(run(&app, &session, "cat note").await, "left");
    } else {
        assert_eq!(refused.result().expect("a result").trim(), "left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_noticed_and_the_one_before_is_used() {
    let app = TestApp::start().await;
    let session = app.session().await;
    assert_eq!(run(&app, &session, "echo first > note; cat note").await, "first");
    pause(&app, &session).await;
    let first = kept(&app, "segments");
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "echo second > note; cat note").await, "second");
    pause(&app, &session).await;
    // Half of it was written.
    let second: Vec<PathBuf> = kept(&app, "segments").into_iter().filter(|path| !first.contains(path)).collect();
    let damaged = newest(&second);
    let bytes = fs::read(damaged).expect("a segment");
    fs::write(damaged, &bytes[..bytes.len() / 2]).expect("a segment");
    lose_folder(&app, &session);
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat note").await, "first");
    let said = recovered(&app, &session).await;
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["damaged"], 1);
    assert_ne!(said[0]["workspace"], said[0]["conversation"], "the files are of an earlier turn than the conversation");
    assert!(app.metric("ash_runner_snapshots_damaged_total").await >= 1);
    // The next snapshot writes again what was damaged.
    assert_eq!(run(&app, &session, "echo second > note; cat note").await, "second");
    pause(&app, &session).await;
    lose_folder(&app, &session);
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat note").await, "second");
    // Where none is whole, the agent's files are what there is, and that is said.
    pause(&app, &session).await;
    for manifest in kept(&app, "manifests") {
        fs::write(manifest, "garbage").expect("a manifest");
    }
    lose_folder(&app, &session);
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat CLAUDE.md; ls").await.lines().next(), Some("You are a simple agent."));
    let said = recovered(&app, &session).await;
    let last = said.last().expect("a recovery");
    assert!(last["workspace"].is_null() && last["damaged"].as_u64() >= Some(1), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_after_a_turn_and_survives_what_kills_the_server_and_the_sandbox() {
    let mut app = TestApp::start().await;
    let session = app.session().await;
    assert_eq!(run(&app, &session, "echo one > note; cat note").await, "one");
    eventually("a snapshot in the background", async || (!kept(&app, "manifests").is_empty()).then_some(())).await;
    // A turn that changes nothing has the same one.
    let manifests = kept(&app, "manifests").len();
    assert_eq!(run(&app, &session, "cat note").await, "one");
    eventually("a look that finds nothing", async || {
        (app.metric("ash_runner_snapshots_unchanged_total").await > 0).then_some(())
    })
    .await;
    assert_eq!(kept(&app, "manifests").len(), manifests);
    // Killed in the middle of a snapshot of a workspace that takes a moment to read.
    assert_eq!(run(&app, &session, "head -c 200000000 /dev/urandom > large; echo two > note; cat note").await, "two");
    let segments = kept(&app, "segments").len();
    eventually("the middle of a snapshot", async || (kept(&app, "segments").len() > segments + 4).then_some(())).await;
    app.kill();
    let is_whole = kept(&app, "manifests").len() > manifests;
    let folder = app.session_folder(&session.id);
    if let Some(bridge) = pid_of(&folder, "bridge") {
        signal(bridge, "KILL");
    }
    eventually("the sandbox's end", async || pid_of(&folder, "claude").is_none().then_some(())).await;
    app.start_again().await;
    eventually("the loss is known", async || {
        let status = app.client.session(&session.id).await.ok()?.status;
        (status == "paused").then_some(())
    })
    .await;
    lose_folder(&app, &session);
    let woken = app.say(&session, &bash("cat note")).await;
    assert!(woken.names().contains(&"recovered"), "the reader is told: {:?}", woken.names());
    let note = woken.result().expect("a result");
    assert_eq!(note.trim(), if is_whole { "two" } else { "one" });
    let said = recovered(&app, &session).await;
    assert_eq!(said.last().expect("a recovery")["damaged"], 0, "what is half written is no snapshot");
    // It goes on, and stops in good order: the files come along.
    assert_eq!(run(&app, &session, "echo three > note; cat note").await, "three");
    app.stop();
    lose_folder(&app, &session);
    app.start_again().await;
    assert_eq!(run(&app, &session, "cat note").await, "three");
}

/// The objects of a storage.
fn objects(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains(&format!("/{kind}/")) {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_kept_in_a_bucket_and_a_bucket_that_is_away_or_damaged_loses_nothing() {
    let mut storage = ObjectStorage::start();
    let mut builder = TestApp::builder().argument(format!("--object-store={}", storage.url()));
    for (name, value) in storage.variables() {
        builder = builder.variable(name, &value);
    }
    let app = builder.start().await;
    let session = app.session().await;
    assert_eq!(run(&app, &session, "head -c 5000000 /dev/urandom > large; echo one > note; cat note").await, "one");
    let sum = run(&app, &session, "sha256sum < large").await;
    pause(&app, &session).await;
    assert_eq!(kept(&app, "manifests"), [] as [PathBuf; 0], "nothing is in the data directory");
    assert!(!objects(&storage.folder(), "manifests").is_empty());
    lose_folder(&app, &session);
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat note; sha256sum < large").await, format!("one\n{sum}"));
    // The storage is away: turns go on, and what is put aside without a snapshot keeps its folder.
    storage.stop();
    assert_eq!(run(&app, &session, "echo two > note; cat note").await, "two");
    pause(&app, &session).await;
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat note").await, "two");
    pause(&app, &session).await;
    // Without its folder it does not start with nothing: it waits for its files.
    let aside = app.session_folder(&session.id).with_extension("aside");
    fs::rename(app.session_folder(&session.id), &aside).expect("its folder");
    resume(&app, &session).await;
    let refused = app.say(&session, &bash("cat note")).await;
    assert!(refused.error().is_some_and(|error| error.contains("could not be restored")), "{:?}", refused.names());
    storage.start_again();
    assert_eq!(run(&app, &session, "cat note").await, "one");
    // What comes back garbled is noticed.
    assert_eq!(run(&app, &session, "echo three > note; cat note").await, "three");
    let before = objects(&storage.folder(), "segments");
    pause(&app, &session).await;
    let new: Vec<PathBuf> =
        objects(&storage.folder(), "segments").into_iter().filter(|path| !before.contains(path)).collect();
    fs::write(newest(&new), "garbage").expect("an object");
    lose_folder(&app, &session);
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat note").await, "one");
    assert_eq!(recovered(&app, &session).await.last().expect("a recovery")["damaged"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn terabytes_of_holes_are_kept_in_no_time() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let make = "for i in $(seq 200); do truncate -s 9G f$i; done; printf end >> f7; echo made";
    assert_eq!(run(&app, &session, make).await, "made");
    pause(&app, &session).await;
    assert!(app.metric("ash_runner_snapshots_taken_total").await >= 1);
    assert!(app.metric("ash_runner_snapshot_bytes_read_total").await < 10 << 20, "holes are not read");
    lose_folder(&app, &session);
    resume(&app, &session).await;
    let look = "ls | grep -c '^f'; stat -c %s f1 f7; tail -c 3 f7; du -sk . | cut -f1";
    let seen = run(&app, &session, look).await;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..3], ["200", "9663676416", "9663676419"]);
    let (end, used) = lines[3].split_at(3);
    assert!(end == "end" && used.parse::<u64>().expect("KiB") < 10_000, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_storage_has_lost_is_written_again_while_the_files_are_there() {
    let app = TestApp::start().await;
    let session = app.session().await;
    assert_eq!(run(&app, &session, "echo one > a; head -c 3000000 /dev/urandom > large; cat a").await, "one");
    let sum = run(&app, &session, "sha256sum < large").await;
    // One in the background is taken long enough after the change that the file is not read again.
    eventually("a snapshot in the background", async || (!kept(&app, "manifests").is_empty()).then_some(())).await;
    pause(&app, &session).await;
    // As after a power failure.
    for segment in kept(&app, "segments") {
        fs::write(segment, "").expect("a segment");
    }
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "echo two > b; cat b").await, "two");
    pause(&app, &session).await;
    assert!(app.metric("ash_runner_snapshot_segments_lost_total").await >= 1);
    lose_folder(&app, &session);
    resume(&app, &session).await;
    let all = run(&app, &session, "cat a b CLAUDE.md; sha256sum < large").await;
    assert_eq!(all, format!("one\ntwo\nYou are a simple agent.\n{sum}"));
    assert_eq!(recovered(&app, &session).await.last().expect("a recovery")["damaged"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_snapshot_is_whole_the_rest_of_the_newest_is_used_and_nothing_is_removed() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let make = "echo kept > note; head -c 3000000 /dev/urandom > large; ln large other; cat note";
    assert_eq!(run(&app, &session, make).await, "kept");
    pause(&app, &session).await;
    let segments = kept(&app, "segments");
    let of_large: Vec<&PathBuf> =
        segments.iter().filter(|path| fs::metadata(path).expect("a segment").len() > 300_000).collect();
    assert!(!of_large.is_empty());
    for segment in &of_large {
        let mut bytes = fs::read(segment).expect("a segment");
        bytes[1000] ^= 1;
        fs::write(segment, bytes).expect("a segment");
    }
    lose_folder(&app, &session);
    resume(&app, &session).await;
    assert_eq!(run(&app, &session, "cat note; ls large other 2>&1 | grep -c 'No such'").await, "kept\n2");
    let said = recovered(&app, &session).await;
    let last = said.last().expect("a recovery");
    assert!(last["workspace"].is_string() && last["damaged"].as_u64() >= Some(1), "{last}");
    let paths: Vec<&str> = last["paths"].as_array().expect("paths").iter().filter_map(Value::as_str).collect();
    assert_eq!((last["incomplete"].as_u64(), paths), (Some(2), vec!["large", "other"]));
    let now = kept(&app, "segments");
    assert!(segments.iter().all(|segment| now.contains(segment)), "nothing is removed for having been read wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_write_to_the_folder_changes_nothing_in_it() {
    let app = TestApp::start().await;
    let session = app.session().await;
    assert_eq!(run(&app, &session, "echo old > note; cat note").await, "old");
    pause(&app, &session).await;
    let folder = app.session_folder(&session.id);
    fs::write(folder.join("workspace/note"), "newer than any snapshot").expect("a file");
    // The mark of the claim cannot be written.
    fs::create_dir(folder.join("epoch.new")).expect("a folder");
    resume(&app, &session).await;
    let refused = app.say(&session, &bash("cat note")).await;
    assert!(refused.error().is_some(), "{:?}", refused.names());
    fs::remove_dir(folder.join("epoch.new")).expect("the folder");
    assert_eq!(run(&app, &session, "cat note").await, "newer than any snapshot");
    assert_eq!(recovered(&app, &session).await, [] as [Value; 0]);
}
