//! The program as a person or a script runs it: exit codes, and what goes where.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::TcpListener,
    process::{Command, Output, Stdio},
};

fn ash(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_ash"))
        .args(arguments)
        .env_clear()
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_server_that_is_not_there_is_an_error_with_a_hint() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = ash(&["session", "list", "--url", &format!("http://{address}")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    assert!(said.starts_with(&format!("error: cannot reach http://{address}: ")), "{said}");
    assert!(said.contains("hint: is `ash serve` running"), "{said}");
}

#[test]
fn usage_errors_have_a_code_of_their_own() {
    for arguments in [&["nonsense"][..], &["chat"], &["session"], &["serve", "--memory", "much"]] {
        let output = ash(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn bounds_with_which_no_sandbox_starts_are_refused_before_the_server_starts() {
    for (arguments, said) in [
        (["serve", "--memory", "5"], "no sandbox starts with less than 8MiB"),
        (["serve", "--cpus", "0.001"], "between 0.01 and 1024"),
    ] {
        let output = ash(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

#[test]
fn a_program_gets_an_error_as_one_json_object() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = ash(&["--json", "session", "list", "--url", &format!("http://{address}")]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(said["error"].as_str().unwrap().starts_with("cannot reach"), "{said}");
    assert!(said["hint"].as_str().unwrap().contains("ash serve"), "{said}");
    assert_eq!(said.get("status"), None);
}

#[test]
fn completion_comes_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = ash(&["completion", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("session"), "{shell}");
    }
}

#[test]
fn a_folder_that_is_no_agent_is_refused_before_anybody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("README.md"), "no agent").unwrap();
    let output = ash(&["deploy", folder.path().to_str().unwrap(), "--url", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("CLAUDE.md"), "{said}");
}

#[test]
fn a_config_file_with_a_wrong_key_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ash.yaml");
    fs::write(&file, "lisen: 127.0.0.1:4100\n").unwrap();
    let output = ash(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("`lisen` is no setting"), "{said}");
}
