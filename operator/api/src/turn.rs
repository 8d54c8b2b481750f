//! A message as a request brings it: its content and the options of its turn.

use ash_core::{
    id::{SessionId, TurnId},
    ports::NewMessage,
    queue::MAX_RETRIES,
};
use ash_protocol::options::{OutputFormat, TurnOptions};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    agents::MAX_MODEL_BYTES,
    error::ApiError,
    fields::{Fields, invalid, on_one_line, without_place},
};

/// What a message can have.
const FIELDS: [&str; 10] = [
    "content",
    "includePartialMessages",
    "model",
    "maxTurns",
    "maxBudgetUsd",
    "effort",
    "thinking",
    "outputFormat",
    "queue",
    "retries",
];

/// A message and how it is answered.
#[derive(Debug)]
#[allow(clippy::struct_field_names, reason = "it is what the runner calls a message, too")]
pub(crate) struct Message {
    /// For the runner.
    pub(crate) message: NewMessage,
    /// Whether the stream has partial messages.
    pub(crate) partials: bool,
    /// Whether it may wait for its turn.
    pub(crate) queue: bool,
    /// Further attempts, of one that may wait.
    pub(crate) retries: u32,
}

/// Reads the body of a message. With an idempotency key, a repeat names the same turn.
pub(crate) fn read(body: &[u8], session: SessionId, idempotency_key: Option<&str>) -> Result<Message, ApiError> {
    let fields = Fields::parse(body)?;
    fields.check_spelling(&FIELDS)?;
    fields.check_spelling_in("thinking", &["type", "budgetTokens"])?;
    fields.check_spelling_in("outputFormat", &["type", "schema"])?;
    let content = content(&fields)?;
    let queue: bool = fields.get("queue")?.unwrap_or_default();
    let retries: u32 = fields.get("retries")?.unwrap_or_default();
    if retries > 0 && !queue {
        return Err(invalid("retries", "only a message that waits is tried again: say \"queue\": true, too"));
    }
    if retries > MAX_RETRIES {
        return Err(invalid("retries", &format!("it is a whole number from 0 to {MAX_RETRIES}")));
    }
    let turn = match idempotency_key {
        Some(key) => TurnId::from_idempotency_key(session, key),
        // The log is asked for the turn of one that waits, as for one with a key.
        None if queue => TurnId::from_idempotency_key(session, &Uuid::new_v4().to_string()),
        None => TurnId::new(),
    };
    Ok(Message {
        message: NewMessage { turn, content, options: options(&fields)? },
        partials: fields.get("includePartialMessages")?.unwrap_or_default(),
        queue,
        retries,
    })
}

fn options(fields: &Fields<'_>) -> Result<TurnOptions, ApiError> {
    let max_turns: Option<u32> = fields.get("maxTurns")?;
    if max_turns == Some(0) {
        return Err(invalid("maxTurns", "it is a whole number from 1"));
    }
    let max_budget_usd: Option<f64> = fields.get("maxBudgetUsd")?;
    if max_budget_usd.is_some_and(|budget| !budget.is_finite() || budget <= 0.0) {
        return Err(invalid("maxBudgetUsd", "it is a number over 0"));
    }
    let mut output_format: Option<OutputFormat> = fields.get("outputFormat")?;
    if let Some(format) = &mut output_format {
        if !format.schema.get().starts_with('{') {
            return Err(invalid("outputFormat", "its schema must be an object"));
        }
        format.schema = on_one_line(&format.schema);
    }
    Ok(TurnOptions {
        model: fields.word("model", MAX_MODEL_BYTES)?,
        max_turns,
        max_budget_usd,
        effort: fields.get("effort")?,
        thinking: fields.get("thinking")?,
        output_format,
    })
}

/// The content: a text, or content blocks, as they came, on one line. Only its outline is looked at; the model API knows what
/// a block must have.
fn content(fields: &Fields<'_>) -> Result<Box<RawValue>, ApiError> {
    #[derive(Deserialize)]
    struct Block {
        #[serde(rename = "type")]
        kind: String,
    }

    let raw = fields.raw("content").ok_or_else(|| ApiError::bad_request("content is missing"))?;
    match raw.get().as_bytes().first() {
        Some(b'"') if raw.get() != "\"\"" => {}
        Some(b'[') => {
            let blocks: Vec<Block> = serde_json::from_str(raw.get()).map_err(|error| {
                invalid("content", &format!("a content block is not valid: {}", without_place(&error)))
            })?;
            if blocks.iter().all(|block| block.kind.is_empty()) {
                return Err(invalid("content", "it is empty"));
            }
        }
        Some(b'"') => return Err(invalid("content", "it is empty")),
        _ => return Err(invalid("content", "it must be a text or a list of content blocks")),
    }
    Ok(on_one_line(raw))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::id::SessionId;
    use ash_protocol::options::{Effort, Thinking};
    use uuid::Uuid;

    use super::read;

    const SESSION: SessionId = SessionId(Uuid::nil());

    #[test]
    fn every_option_is_read() {
        let body = r#"{"content":[{"type":"text","text":"x"}],"includePartialMessages":true,"model":"m","maxTurns":3,
            "maxBudgetUsd":0.5,"effort":"max","thinking":{"type":"enabled","budgetTokens":1024},
            "outputFormat":{"type":"json_schema","schema":{
            "type":"object"}},"queue":false,"unknown":1}"#;
        let message = read(body.as_bytes(), SESSION, None).unwrap();
        assert!(message.partials);
        let options = message.message.options;
        assert_eq!((options.model.as_deref(), options.max_turns), (Some("m"), Some(3)));
        assert_eq!((options.max_budget_usd, options.effort), (Some(0.5), Some(Effort::Max)));
        assert_eq!(options.thinking, Some(Thinking::Enabled { budget_tokens: Some(1024) }));
        assert!(!options.output_format.unwrap().schema.get().contains('\n'));
    }

    #[test]
    fn what_cannot_take_effect_is_refused_by_name() {
        for (body, name) in [
            (r"{}", "content is missing"),
            (r#"{"content":null}"#, "content is missing"),
            (r#"{"content":""}"#, "content"),
            (r#"{"content":[]}"#, "content"),
            (r#"{"content":["x"]}"#, "content"),
            (r#"{"content":[{}]}"#, "content"),
            (r#"{"content":7}"#, "content"),
            (r#"{"content":"x","queue":"yes"}"#, "queue"),
            (r#"{"content":"x","retries":1}"#, "retries"),
            (r#"{"content":"x","queue":true,"retries":6}"#, "retries"),
            (r#"{"content":"x","maxTurns":0}"#, "maxTurns"),
            (r#"{"content":"x","maxTurns":-1}"#, "maxTurns"),
            (r#"{"content":"x","maxBudgetUsd":0}"#, "maxBudgetUsd"),
            (r#"{"content":"x","effort":"huge"}"#, "effort"),
            (r#"{"content":"x","thinking":{"type":"maybe"}}"#, "thinking"),
            (r#"{"content":"x","thinking":true}"#, "thinking"),
            (r#"{"content":"x","outputFormat":{"type":"xml","schema":{}}}"#, "outputFormat"),
            (r#"{"content":"x","outputFormat":{"type":"json_schema","schema":1}}"#, "outputFormat"),
            (r#"{"content":"x","outputFormat":{"type":"json_schema"}}"#, "outputFormat"),
            (r#"{"content":"x","model":""}"#, "model"),
            (r#"{"content":"x","max_turns":1}"#, "max_turns is not a field: did you mean maxTurns?"),
            (
                r#"{"content":"x","thinking":{"type":"enabled","budget_tokens":9}}"#,
                "thinking.budget_tokens is not a field",
            ),
            (r#"{"content":"x","outputFormat":{"type":"json_schema","schemas":{}}}"#, "outputFormat.schemas is not"),
            (r#"{"content":"x","includePartialMessages":"yes"}"#, "includePartialMessages"),
        ] {
            let error = format!("{:?}", read(body.as_bytes(), SESSION, None).unwrap_err());
            assert!(error.contains(&format!("\"{name}")), "{body}: {error}");
        }
    }

    #[test]
    fn a_repeat_names_the_same_turn() {
        let turn = |key| read(br#"{"content":"x"}"#, SESSION, key).unwrap().message.turn;
        assert_eq!(turn(Some("k")), turn(Some("k")));
        assert_ne!(turn(Some("k")), turn(Some("l")));
        assert_ne!(turn(None), turn(None));
    }

    #[test]
    fn one_that_waits_is_found_again_by_its_turn() {
        let message = read(br#"{"content":"x","queue":true,"retries":2}"#, SESSION, None).unwrap();
        assert!(message.queue);
        assert_eq!((message.retries, message.message.turn.0.get_version_num()), (2, 5));
        assert!(!read(br#"{"content":"x","queue":false}"#, SESSION, None).unwrap().queue);
    }

    #[test]
    fn content_passes_as_it_came() {
        let message =
            read(b"{\"content\":[\n{\"type\":\"text\",\"text\":\"a\\nb\",\"n\":1.0e2}]}", SESSION, None).unwrap();
        assert_eq!(message.message.content.get(), "[ {\"type\":\"text\",\"text\":\"a\\nb\",\"n\":1.0e2}]");
    }
}
