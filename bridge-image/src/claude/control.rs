//! What the bridge writes to Claude Code and what it reads of Claude Code's requests and answers.
//!
//! Source: Claude Code 2.1.330 as observed. A bad line kills it, so every line here is built by a serialiser.

use ash_protocol::message::{Behavior, Decision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

/// What is told to the agent when nobody answered in time.
pub const EXPIRED_MESSAGE: &str = "Nobody answered the permission request in time.";

/// What is told to the agent when a request cannot be put to anybody.
pub const UNANSWERABLE_MESSAGE: &str = "Nobody can be asked for permission now.";

/// A control request that Claude Code sent.
#[derive(Debug, Deserialize)]
pub struct Asked<'a> {
    /// Its id.
    pub request_id: String,
    /// What it asks.
    #[serde(borrow)]
    pub request: AskedRequest<'a>,
}

/// The part of a control request that the bridge understands.
#[derive(Debug, Deserialize)]
pub struct AskedRequest<'a> {
    /// `can_use_tool`, `hook_callback`, ...
    pub subtype: String,
    /// Of `can_use_tool`: the tool.
    #[serde(default)]
    pub tool_name: Option<String>,
    /// Of `can_use_tool`: the tool's input.
    #[serde(borrow, default)]
    pub input: Option<&'a RawValue>,
}

/// A control request that Claude Code takes back.
#[derive(Debug, Deserialize)]
pub struct Cancelled {
    /// Its id.
    pub request_id: String,
}

/// The answer of Claude Code to a control request.
#[derive(Debug)]
pub struct Answered {
    /// The id of the request.
    pub request_id: String,
    /// What it says: a value (`null` where it says nothing) or an error's text.
    pub outcome: Result<Value, String>,
}

#[derive(Deserialize)]
struct ResponseLine {
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    subtype: String,
    request_id: String,
    #[serde(default, rename = "response")]
    value: Value,
    #[serde(default)]
    error: Option<String>,
}

impl Answered {
    /// Reads a `control_response` line.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        let ResponseLine { response } = serde_json::from_slice(line)?;
        let outcome = if response.subtype == "success" {
            Ok(response.value)
        } else {
            Err(response.error.unwrap_or_else(|| format!("Claude Code answered {}", response.subtype)))
        };
        Ok(Self { request_id: response.request_id, outcome })
    }
}

/// A control request of the bridge.
pub fn request(request_id: &str, request: &Value) -> Bytes {
    line(&json!({"type": "control_request", "request_id": request_id, "request": request}))
}

/// An answer to a control request of Claude Code.
pub fn respond(request_id: &str, response: &Value) -> Bytes {
    line(&json!({
        "type": "control_response",
        "response": {"subtype": "success", "request_id": request_id, "response": response},
    }))
}

/// The answer to a control request that the bridge does not know: without one, Claude Code would wait for ever.
pub fn refuse(request_id: &str, subtype: &str) -> Bytes {
    line(&json!({
        "type": "control_response",
        "response": {
            "subtype": "error",
            "request_id": request_id,
            "error": format!("the host does not answer {subtype}"),
        },
    }))
}

/// The answer to `can_use_tool` that denies it.
pub fn deny(message: &str) -> Value {
    json!({"behavior": "deny", "message": message})
}

/// The answer to `can_use_tool` that carries out a decision about a call with this input.
pub fn decide(decision: &Decision, input: &RawValue) -> Value {
    match decision.behavior {
        Behavior::Deny => deny(decision.message.as_deref().unwrap_or("The user denied this tool call.")),
        Behavior::Allow => {
            let input = decision.updated_input.as_deref().unwrap_or(input);
            let mut input: Value = serde_json::from_str(input.get()).unwrap_or_default();
            if let (Some(answers), Value::Object(fields)) = (&decision.answers, &mut input) {
                fields.insert("answers".to_owned(), serde_json::from_str(answers.get()).unwrap_or_default());
            }
            json!({"behavior": "allow", "updatedInput": input})
        }
    }
}

#[derive(Serialize)]
struct UserLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: UserMessage<'a>,
    parent_tool_use_id: Option<&'static str>,
    session_id: &'static str,
    uuid: Uuid,
}

#[derive(Serialize)]
struct UserMessage<'a> {
    role: &'static str,
    content: &'a RawValue,
}

/// A user message, without the newline: the body of the log's entry, too.
///
/// A newline in the raw content (JSON allows it between its tokens) would cut the line, so it becomes a space.
pub fn user(content: &RawValue, uuid: Uuid) -> Bytes {
    let message = UserMessage { role: "user", content };
    let line = UserLine { kind: "user", message, parent_tool_use_id: None, session_id: "", uuid };
    let mut line = serde_json::to_vec(&line).unwrap_or_default();
    for byte in &mut line {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    line.into()
}

/// The fields of a `result` that say whose it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ResultLine {
    /// The user message that the result answers.
    pub user_message_uuid: Option<Uuid>,
    /// All user messages that the result answers.
    pub user_message_uuids: Option<Vec<Uuid>>,
    /// Who began it where that was no user, such as a task in the background that has ended.
    pub origin: Option<serde::de::IgnoredAny>,
}

impl ResultLine {
    /// Whether the result ends this turn: it names it, or nothing and nobody else.
    pub fn ends(&self, turn: Uuid) -> bool {
        match (&self.user_message_uuid, &self.user_message_uuids) {
            (None, None) => self.origin.is_none(),
            (one, all) => *one == Some(turn) || all.as_ref().is_some_and(|all| all.is_empty() || all.contains(&turn)),
        }
    }
}

fn line(value: &Value) -> Bytes {
    // Displaying a JSON value cannot fail.
    value.to_string().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::message::Decision;
    use serde_json::{Value, json, value::RawValue};
    use uuid::Uuid;

    use super::{Answered, ResultLine, decide, user};

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn a_user_line_is_one_line_and_keeps_its_content() {
        let line = user(&raw("[\n{\"type\":\"text\",\"text\":\"a\\nb\"}\r\n]"), Uuid::from_u128(7));
        assert!(!line.contains(&b'\n'));
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["message"]["content"][0]["text"], "a\nb");
        assert_eq!(value["uuid"], "00000000-0000-0000-0000-000000000007");
    }

    #[test]
    fn answers_join_the_input_of_the_question() {
        let decision: Decision =
            serde_json::from_value(json!({"behavior": "allow", "answers": {"Why?": "So"}})).unwrap();
        let answer = decide(&decision, &raw(r#"{"questions":[1]}"#));
        assert_eq!(answer, json!({"behavior": "allow", "updatedInput": {"questions": [1], "answers": {"Why?": "So"}}}));
    }

    #[test]
    fn a_denial_says_why() {
        let decision: Decision = serde_json::from_value(json!({"behavior": "deny", "message": "no"})).unwrap();
        assert_eq!(decide(&decision, &raw("{}")), json!({"behavior": "deny", "message": "no"}));
    }

    #[test]
    fn responses_are_read() {
        let line =
            br#"{"type":"control_response","response":{"subtype":"success","request_id":"r","response":{"a":1}}}"#;
        assert_eq!(Answered::parse(line).unwrap().outcome, Ok(json!({"a": 1})));
        let line = br#"{"type":"control_response","response":{"subtype":"error","request_id":"r","error":"no"}}"#;
        assert_eq!(Answered::parse(line).unwrap().outcome, Err("no".to_owned()));
    }

    #[test]
    fn a_result_says_whose_it_is() {
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let result = |json: Value| serde_json::from_value::<ResultLine>(json).unwrap();
        assert!(result(json!({})).ends(ours));
        assert!(result(json!({"user_message_uuid": null})).ends(ours));
        assert!(result(json!({"user_message_uuids": [other, ours]})).ends(ours));
        assert!(!result(json!({"user_message_uuid": other})).ends(ours));
        assert!(!result(json!({"origin": {"kind": "task-notification"}})).ends(ours));
    }
}
