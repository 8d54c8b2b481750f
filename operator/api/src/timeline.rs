//! The timeline and the messages of a session, out of its log's entries. No I/O.

use ash_core::{Entry, EntryKind, Sequence, opening::Opening};
use ash_protocol::message::BridgeEvent;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// An event of the timeline: its type and its data.
pub(crate) type Event = (&'static str, Value);

/// Every type of event.
pub(crate) const TYPES: [&str; 8] =
    ["text", "tool_start", "tool_result", "reasoning", "error", "turn_complete", "lifecycle", MCP_STATUS];

/// The type that is given only to those who ask for it: older clients do not know it.
pub(crate) const MCP_STATUS: &str = "mcp_status";

/// A message of the history: who said it and the line as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    User,
    Assistant,
}

/// Whose message an entry is: the user's, or one of the assistant's (with its results); `None` for everything else.
pub(crate) fn role(entry: &Entry) -> Option<Role> {
    match entry.kind {
        EntryKind::User => Some(Role::User),
        EntryKind::Claude => match head(&entry.body).kind.as_str() {
            "assistant" | "result" => Some(Role::Assistant),
            _ => None,
        },
        _ => None,
    }
}

/// What every line may say about itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Head {
    #[serde(rename = "type")]
    kind: String,
    /// Claude Code's own id of the line; a user message has its turn's.
    pub(crate) uuid: Option<Uuid>,
    timestamp: Option<Timestamp>,
}

pub(crate) fn head(body: &[u8]) -> Head {
    serde_json::from_slice(body).unwrap_or_default()
}

/// When an entry was written, as far as it says so: the line's own time, or that in the turn's id (a UUID of version 7).
pub(crate) fn time(entry: &Entry) -> Option<Timestamp> {
    if !matches!(entry.kind, EntryKind::User | EntryKind::Claude) {
        return None;
    }
    let head = head(&entry.body);
    head.timestamp.or_else(|| {
        let (seconds, nanoseconds) = head.uuid?.get_timestamp()?.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?).ok()
    })
}

/// An id for what has none: the same each time it is asked for.
pub(crate) fn stable_id(session: Uuid, sequence: Sequence, index: usize) -> Uuid {
    Uuid::new_v5(&session, format!("{sequence}.{index}").as_bytes())
}

/// The events that an entry stands for, in order.
pub(crate) fn events(entry: &Entry) -> Vec<Event> {
    match entry.kind {
        EntryKind::Claude => claude(&entry.body),
        EntryKind::Bridge => bridge(&entry.body),
        EntryKind::Opening => opening(&entry.body),
        EntryKind::User | EntryKind::Partial | EntryKind::Transcript => Vec::new(),
    }
}

fn claude(body: &[u8]) -> Vec<Event> {
    let Ok(line) = serde_json::from_slice::<Value>(body) else {
        return vec![("error", json!({ "error": "Claude Code printed a line that is no message." }))];
    };
    match line["type"].as_str().unwrap_or_default() {
        "assistant" | "user" => {
            let blocks = line["message"]["content"].as_array().map(Vec::as_slice).unwrap_or_default();
            blocks.iter().filter_map(block).collect()
        }
        "result" => {
            let mut events =
                vec![("turn_complete", json!({ "numTurns": line["num_turns"], "result": line["result"] }))];
            let subtype = line["subtype"].as_str().unwrap_or_default();
            if line["is_error"] == true || subtype.starts_with("error") {
                let error = line["result"].as_str().filter(|text| !text.is_empty()).unwrap_or(subtype);
                events.push(("error", json!({ "error": error })));
            }
            events
        }
        _ => Vec::new(),
    }
}

fn block(block: &Value) -> Option<Event> {
    Some(match block["type"].as_str()? {
        "text" => ("text", json!({ "text": block["text"] })),
        "thinking" => ("reasoning", json!({ "text": block["thinking"] })),
        "tool_use" => ("tool_start", json!({ "id": block["id"], "name": block["name"], "input": block["input"] })),
        "tool_result" => (
            "tool_result",
            json!({ "toolUseId": block["tool_use_id"], "content": block["content"], "isError": block["is_error"] == true }),
        ),
        _ => return None,
    })
}

fn bridge(body: &[u8]) -> Vec<Event> {
    match serde_json::from_slice(body) {
        Ok(BridgeEvent::TurnFailed { message, .. } | BridgeEvent::InvalidOutput { message }) => {
            vec![("error", json!({ "error": message }))]
        }
        Ok(BridgeEvent::ClaudeRestarted { reason }) => {
            vec![("lifecycle", json!({ "action": "claude_restarted", "reason": reason }))]
        }
        Ok(BridgeEvent::PermissionRequest { id, tool_name, .. }) => {
            vec![("lifecycle", json!({ "action": "permission_request", "id": id, "toolName": tool_name }))]
        }
        Ok(BridgeEvent::PermissionResolved { id, resolution }) => {
            vec![("lifecycle", json!({ "action": "permission_resolved", "id": id, "resolution": resolution }))]
        }
        Ok(BridgeEvent::McpServersFailed { servers }) => vec![(MCP_STATUS, json!({ "servers": servers }))],
        Ok(BridgeEvent::Superseded { .. }) | Err(_) => Vec::new(),
    }
}

fn opening(body: &[u8]) -> Vec<Event> {
    let Ok(opening) = Opening::read(body) else { return Vec::new() };
    let mut events = vec![("lifecycle", json!({ "action": opening.reason, "message": opening.message }))];
    if opening.interrupted.is_some() {
        let message = opening.message.as_deref().unwrap_or("The turn was interrupted.");
        events.push(("error", json!({ "error": message })));
    }
    if let Some(recovered) = &opening.recovered {
        events.push(("lifecycle", json!({ "action": "recovered", "recovered": recovered })));
    }
    events
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::{Entry, EntryKind, Epoch};
    use ash_protocol::EntryFlags;
    use bytes::Bytes;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{Role, events, role, time};

    fn entry(kind: EntryKind, body: &str) -> Entry {
        let body = Bytes::copy_from_slice(body.as_bytes());
        Entry { sequence: Epoch(1).sequence(2), kind, flags: EntryFlags::default(), body }
    }

    #[test]
    fn each_block_is_an_event() {
        let line = r#"{"type":"assistant","message":{"content":[{"type":"thinking","thinking":"t"},{"type":"text","text":"x"},
            {"type":"tool_use","id":"1","name":"Bash","input":{"a":1}},{"type":"novel"}]}}"#;
        let entry = entry(EntryKind::Claude, line);
        let kinds: Vec<_> = events(&entry).into_iter().map(|event| event.0).collect();
        assert_eq!(kinds, ["reasoning", "text", "tool_start"]);
        assert_eq!(role(&entry), Some(Role::Assistant));
    }

    #[test]
    fn a_failed_turn_is_complete_and_an_error() {
        let line = r#"{"type":"result","subtype":"success","is_error":true,"num_turns":1,"result":"API Error"}"#;
        let events = events(&entry(EntryKind::Claude, line));
        assert_eq!(events[0].0, "turn_complete");
        assert_eq!(events[1], ("error", serde_json::json!({ "error": "API Error" })));
    }

    #[test]
    fn a_turn_tells_its_time() {
        let line = format!(r#"{{"type":"user","uuid":"{}"}}"#, Uuid::now_v7());
        let written = time(&entry(EntryKind::User, &line)).unwrap();
        assert!(written.as_second() > 1_600_000_000);
        assert_eq!(role(&entry(EntryKind::User, &line)), Some(Role::User));
        assert_eq!(time(&entry(EntryKind::Claude, r#"{"type":"x","uuid":"not"}"#)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_panic(kind in 0u8..=5, body in "\\PC{0,100}") {
            let entry = entry(EntryKind::from_byte(kind).unwrap(), &body);
            let _ = (events(&entry), role(&entry), time(&entry));
        }
    }
}
