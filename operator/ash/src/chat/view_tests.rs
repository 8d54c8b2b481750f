use ash_client::Frame;
use serde_json::{Value, json};

use super::{Shown, View};
use crate::output::text::Style;

fn show(view: &mut View, frames: &[(&str, Value)]) -> Shown {
    let mut all = Shown::default();
    for (event, data) in frames {
        let frame = Frame { event: (*event).into(), data: data.to_string(), id: Some("4294967298.0".into()) };
        let event = frame.read().unwrap_or_else(|error| panic!("{error}"));
        let shown = view.show(&frame, &event);
        all.output.push_str(&shown.output);
        all.note = all.note.or(shown.note);
    }
    all
}

fn assistant(text: &str) -> (&'static str, Value) {
    ("message", json!({ "type": "assistant", "message": { "content": [{ "type": "text", "text": text }] } }))
}

fn delta(text: &str) -> (&'static str, Value) {
    ("text_delta", json!({ "delta": text }))
}

#[test]
fn a_turn_with_a_tool_on_a_terminal() {
    let frames = [
        ("session_start", json!({ "sessionId": "s", "version": "0" })),
        ("thinking_delta", json!({ "delta": "hm" })),
        ("thinking_delta", json!({ "delta": "hm, well" })),
        delta("I look "),
        delta("around."),
        assistant("I look around."),
        ("tool_use", json!({ "id": "t", "name": "Bash", "input": { "command": "ls\n-la", "description": "Lists" } })),
        ("tool_result", json!({ "tool_use_id": "t", "content": "\na.txt\nb.txt\nc.txt\n" })),
        ("tool_use", json!({ "id": "u", "name": "Odd", "input": { "n": 1 } })),
        ("tool_result", json!({ "tool_use_id": "u", "content": [{ "type": "text", "text": "no" }], "is_error": true })),
        delta("Three files.\n"),
        assistant("Three files.\n"),
        assistant("This came without deltas."),
        ("turn_complete", json!({ "numTurns": 2, "result": "…" })),
        ("done", json!({ "sessionId": "s" })),
    ];
    insta::assert_snapshot!(show(&mut View::terminal(Style::PLAIN), &frames).output, @r#"
    Thinking …
    I look around.
    ● Bash ls -la
      a.txt (2 more lines)
    ● Odd {"n":1}
      no
    Three files.
    This came without deltas.
    "#);
}

#[test]
fn what_goes_wrong_on_a_terminal() {
    let frames = [
        delta("Half a sen"),
        ("replaced", json!({ "from": "1", "to": "2" })),
        delta("A whole sentence."),
        ("mcp_status", json!({ "servers": { "files": "failed" } })),
        ("claude_restarted", json!({ "reason": "x" })),
        ("withdrawn", json!({ "after": "1" })),
        ("error", json!({ "error": "It \u{1b}[2Jbroke." })),
        ("done", json!({})),
    ];
    insta::assert_snapshot!(show(&mut View::terminal(Style::PLAIN), &frames).output, @"
    Half a sen
    The model is asked again; what follows stands for the text above.
    A whole sentence.
    MCP servers that are not connected: files (failed)
    Claude Code was started again.
    The server was lost, and with it the end of what is shown here: the agent does not remember it.
    error: It [2Jbroke.
    ");
}

#[test]
fn an_interrupted_turn_has_no_error() {
    let mut view = View::terminal(Style::PLAIN);
    view.interrupted();
    let shown =
        show(&mut view, &[delta("So"), ("error", json!({ "error": "error_during_execution" })), ("done", json!({}))]);
    assert_eq!(shown.output, "So\nInterrupted.\n");
}

#[test]
fn a_pipe_gets_texts_alone() {
    let frames = [
        ("tool_use", json!({ "id": "t", "name": "Bash", "input": {} })),
        assistant("One."),
        (
            "message",
            json!({ "type": "assistant", "parent_tool_use_id": "t", "message": { "content": [{ "type": "text", "text": "sub" }] } }),
        ),
        ("message", json!({ "type": "user", "message": { "content": [{ "type": "text", "text": "mine" }] } })),
        ("something_new", json!({})),
        assistant("Two."),
        ("error", json!({ "error": "It broke." })),
    ];
    let shown = show(&mut View::plain(), &frames);
    assert_eq!((shown.output.as_str(), shown.note.as_deref()), ("One.\nTwo.\n", Some("error: It broke.")));
}

fn piece(text: &str, parent: Option<&str>) -> (&'static str, Value) {
    let event = json!({ "type": "content_block_delta", "delta": { "type": "text_delta", "text": text } });
    ("message", json!({ "type": "stream_event", "parent_tool_use_id": parent, "event": event }))
}

#[test]
fn a_pipe_gets_texts_as_they_are_written_and_each_once() {
    let mut view = View::plain();
    let mut shown = |frames: &[(&str, Value)]| show(&mut view, frames);
    assert_eq!(shown(&[delta("On"), piece("On", None)]).output, "On");
    assert_eq!(shown(&[piece("sub", Some("t")), piece("e\n.", None), assistant("One\n.")]).output, "e\n.\n");
    assert_eq!(shown(&[assistant("Two.")]).output, "Two.\n");
    let replaced = shown(&[piece("Half", None), ("replaced", json!({ "from": "1", "to": "2" }))]);
    assert_eq!(replaced.output, "Half\n");
    assert!(replaced.note.is_some_and(|note| note.contains("asked again")));
    assert_eq!(shown(&[piece("Thr", None), assistant("API Error")]).output, "Thr\nAPI Error\n");
    let failed = shown(&[piece("Four", None), ("error", json!({ "error": "It broke." })), ("done", json!({}))]);
    assert_eq!((failed.output.as_str(), failed.note.as_deref()), ("Four\n", Some("error: It broke.")));
}

#[test]
fn a_lost_connection_is_said_in_every_view_and_never_among_the_results() {
    let mut terminal = View::terminal(Style::new(false));
    show(&mut terminal, &[delta("Half of a")]);
    assert_eq!(terminal.lost("cut").output, "\nConnection lost, reconnecting … (cut)\n");
    assert_eq!(terminal.resumed(Some("4294967298.0")).output, "Connection lost, resumed after event 4294967298.0.\n");
    for mut view in [View::plain(), View::frames()] {
        for shown in [view.lost("cut"), view.resumed(Some("4294967298.0")), view.resumed(None)] {
            assert_eq!(shown.output, "");
            assert!(shown.note.is_some_and(|note| note.contains("Connection lost")));
        }
    }
}

#[test]
fn a_program_gets_every_frame() {
    let shown = show(&mut View::frames(), &[delta("x"), ("done", json!({ "sessionId": "s" }))]);
    insta::assert_snapshot!(shown.output, @r#"
    {"event":"text_delta","id":"4294967298.0","data":{"delta":"x"}}
    {"event":"done","id":"4294967298.0","data":{"sessionId":"s"}}
    "#);
}
