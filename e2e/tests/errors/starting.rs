//! Servers that cannot start: each says why and what to do, ends with 1, and leaves what is there as it was.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use ash_client::Client;
use ash_e2e::harness::TestApp;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{Bare, goes_on, is_root, script};

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_is_missing() {
    let mut server = Bare::new().argument("--claude=/not/there/claude");
    let error = server.refuses().await;
    assert!(error.contains("/not/there/claude is no file: --claude has to name a program"), "{error}");

    // Nowhere at all.
    let bin = tempfile::tempdir().expect("a folder");
    let home = bin.path().to_str().expect("a path").to_owned();
    let mut server = Bare::new().without("--claude").variable("HOME", &home).variable("PATH", &home);
    let error = server.refuses().await;
    assert!(error.contains("Claude Code is not installed: run `make quickstart`"), "{error}");
    assert!(error.contains("--claude PATH"), "{error}");
    assert!(!server.path("data").exists(), "nothing was made before it was known");
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_is_of_another_release() {
    let mut server = Bare::new();
    let other = server.path("other-claude");
    script(&other, "#!/bin/sh\necho '1.0.99 (Claude Code)'\n");
    server = server.argument(format!("--claude={}", other.display()));
    let error = server.refuses().await;
    assert!(error.contains("is Claude Code \"1.0.99\", and this server was made for 2.1.330"), "{error}");
    assert!(error.contains("make quickstart") && error.contains("--any-claude-version"), "{error}");

    // At a person's own risk.
    let mut server = server.argument("--any-claude-version");
    server.start().await;
    assert!(server.log().contains("of another release"), "{}", server.log());
    assert!(server.stop().await.success(), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_cannot_be_run() {
    let mut server = Bare::new();
    let broken = server.path("broken-claude");
    script(&broken, "#!/bin/sh\necho 'libc is too old' >&2\nexit 9\n");
    server = server.argument(format!("--claude={}", broken.display()));
    let error = server.refuses().await;
    assert!(error.contains("--version failed") && error.contains("libc is too old"), "{error}");

    fs::write(&broken, "neither a program nor a script").expect("a file");
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o644)).expect("permissions");
    let error = server.refuses().await;
    assert!(error.contains("cannot be run") && error.contains("--claude PATH"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_is_missing() {
    let mut server = Bare::new().argument("--bridge=/not/there/bridge");
    let error = server.refuses().await;
    assert!(error.contains("/not/there/bridge is no file: --bridge has to name a program"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_is_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let mut server = Bare::new().argument(format!("--listen={address}"));
    let error = server.refuses().await;
    assert!(error.contains(&format!("cannot listen on {address}: stop what listens there")), "{error}");
    assert!(error.contains("--listen"), "{error}");
    drop(taken);
    assert_eq!(server.start().await, address);
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn bubblewrap_is_missing() {
    let mut server = Bare::new().variable("PATH", "/not/there");
    let error = server.refuses().await;
    assert!(error.contains("bubblewrap was not found"), "{error}");
    assert!(error.contains("apt-get install bubblewrap"), "{error}");
}

/// A bubblewrap that leaves a namespace out: best effort starts and says so, strict does not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_protection_is_missing() {
    // Not in a folder for temporary files: the sandbox's user sees none of those.
    let bin = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    fs::set_permissions(bin.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let path = std::env::var("PATH").expect("a PATH");
    let real = std::env::split_paths(&path).map(|folder| folder.join("bwrap")).find(|bwrap| bwrap.is_file());
    let real = real.expect("bubblewrap is installed");
    script(
        &bin.path().join("bwrap"),
        &format!(
            "#!/bin/bash\narguments=()\nfor argument; do\n\
             if [ \"$argument\" = --args ]; then next=1; arguments+=(--args); continue; fi\n\
             if [ \"$next\" = 1 ]; then next=0\n\
             exec {{fd}}< <(grep -zvx -e --unshare-ipc <&\"$argument\"); arguments+=(\"$fd\"); continue; fi\n\
             arguments+=(\"$argument\"); done\nexec {} \"${{arguments[@]}}\"\n",
            real.display()
        ),
    );
    let mut server =
        Bare::new().variable("PATH", &format!("{}:{path}", bin.path().display())).argument("--sandbox-policy=strict");
    let error = server.refuses().await;
    assert!(error.contains("the sandbox policy is strict and these protections are not in force"), "{error}");
    assert!(error.contains("ipc namespace: NOT in force"), "{error}");
    assert!(error.contains("put them in force, or choose the policy best-effort"), "{error}");

    let mut server = server.argument("--sandbox-policy=best-effort");
    server.start().await;
    let log = server.log();
    let missing: Vec<&str> =
        log.lines().filter(|line| line.contains("NOT in force") && line.contains("WARN")).collect();
    assert!(missing.iter().any(|line| line.contains("ipc namespace")), "{log}");
    assert!(server.stop().await.success(), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_is_not_writable() {
    // Something else in its place.
    let mut server = Bare::new();
    fs::write(server.path("data"), "a file").expect("a file");
    let error = server.refuses().await;
    assert!(error.contains("data cannot be used: let this user write it, or name another with --data-dir"), "{error}");
    assert_eq!(fs::read_to_string(server.path("data")).expect("the file"), "a file");

    // Permissions, which say nothing to root: for it, a mount that can only be read.
    let mut server = Bare::new();
    let data = server.path("data");
    fs::create_dir(&data).expect("a folder");
    if is_root() {
        let mount = format!("mount -t tmpfs -o ro none {} && exec \"$0\" \"$@\"", data.display());
        server = server.behind(["unshare", "--mount", "sh", "-c", &mount].map(str::to_owned).to_vec());
    } else {
        fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).expect("permissions");
    }
    let error = server.refuses().await;
    assert!(error.contains("cannot be written"), "{error}");
    assert!(error.contains("let this user write it, or name another directory with --data-dir"), "{error}");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut server = server.behind(Vec::new());
    server.start().await;
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_has_the_data_directory() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let mut server = Bare::new().argument(format!("--data-dir={}", app.data().display()));
    let error = server.refuses().await;
    let pid = app.server_pid();
    assert!(error.contains(&format!("is in use by another server (process {pid})")), "{error}");
    assert!(error.contains("stop that one, or name another directory with --data-dir"), "{error}");
    // The one that has it lost nothing, neither its sandboxes.
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_is_newer() {
    let mut server = Bare::new();
    server.start().await;
    assert!(server.stop().await.success(), "{}", server.log());
    let options = SqliteConnectOptions::new().filename(server.path("data/ash.db"));
    let change = async |statement: &'static str| {
        let mut database = SqliteConnection::connect_with(&options).await.expect("the database");
        sqlx::query(statement).execute(&mut database).await.expect("a change");
        database.close().await.expect("an end");
    };
    change(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99999, 'from the future', TRUE, x'00', 1)",
    )
    .await;
    let error = server.refuses().await;
    assert!(error.contains("was written by a newer release (schema 99999, this one knows"), "{error}");
    assert!(error.contains("update this one, or restore the backup"), "{error}");
    change("DELETE FROM _sqlx_migrations WHERE version = 99999").await;
    server.start().await;
    assert!(server.stop().await.success(), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_damaged() {
    let mut server = Bare::new();
    fs::create_dir(server.path("data")).expect("a folder");
    fs::write(server.path("data/ash.db"), "this is no database, whatever its name says. ".repeat(100)).expect("a file");
    let error = server.refuses().await;
    assert!(error.contains("is damaged") && error.contains("restore it from a backup, or move it away"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_wrong() {
    for (argument, said) in [
        ("--egress-allow=not a host", "--egress-allow not a host"),
        ("--upstream-header=no colon", "number 1 of --upstream-header is not written as NAME: VALUE"),
        ("--upstream-ca-file=/not/there.pem", "/not/there.pem"),
        ("--log=ash=loudly=very", "--log is no filter"),
    ] {
        let error = Bare::new().argument(argument).refuses().await;
        assert!(error.contains(said), "{argument}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_key_is_in_a_file_and_nowhere_else() {
    let mut server = Bare::new();
    let address = server.start().await;
    let file = server.path("data/initial-api-key");
    let key = fs::read_to_string(&file).expect("the first key");
    let key = key.trim();
    assert!(key.starts_with("ash_") && key.len() == 36, "{} characters", key.len());
    assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    let log = server.log();
    assert!(log.contains("initial-api-key"), "it says where the key is: {log}");
    assert!(!log.contains(key), "the key is in the log");

    let url = format!("http://{address}");
    let agents = Client::new(&url, Some(&key.into())).expect("a client").agents().await;
    assert!(agents.is_ok(), "{agents:?}");
    let refused = Client::new(&url, Some(&"ash_wrong".into())).expect("a client").agents().await.expect_err("no key");
    assert_eq!((refused.status(), refused.to_string().as_str()), (Some(401), "Invalid API key"));
    assert!(server.stop().await.success());

    // The same one after a restart; another start makes no other.
    let url = format!("http://{}", server.start().await);
    assert!(Client::new(&url, Some(&key.into())).expect("a client").agents().await.is_ok());
    assert_eq!(fs::read_to_string(&file).expect("the first key").trim(), key);
    assert!(server.stop().await.success());
    // It is in the database as a hash only.
    let database = fs::read(server.path("data/ash.db")).expect("the database");
    assert!(!database.windows(key.len()).any(|window| window == key.as_bytes()), "the key is in the database");
}
