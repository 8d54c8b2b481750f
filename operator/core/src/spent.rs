//! What a session has spent, as the results of Claude Code say.
//!
//! A `result` has what every model was asked since the one before it (`model_usage_since_last_result`), with what that cost in US
//! dollars, as Claude Code reckons: sub-agents, compaction and calls that were cut included. Its other figures are of no use here:
//! `usage` leaves those out, and `total_cost_usd` begins anew with `/clear` and in a new sandbox, but goes on in a process that
//! resumes in the same one. A bridge is not trusted: what it says is bounded, and counts for its own session only.

use std::collections::HashMap;

use ash_protocol::{Entry, EntryKind};
use memchr::memmem;
use serde::Deserialize;

/// The most tokens of a kind that one result counts with.
pub const MAX_TOKENS_PER_RESULT: i64 = 1_000_000_000;
/// The most that one result counts with: 100,000 US dollars.
pub const MAX_COST_MICROS: i64 = 100_000_000_000;

/// What only a result has. Within a text of a message its quotation marks would be escaped.
const MARK: &[u8] = b"\"model_usage_since_last_result\"";

/// Tokens by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Read by the model, without those of its cache.
    pub input: i64,
    /// Written by the model.
    pub output: i64,
    /// Read from the model's cache.
    pub cache_read: i64,
    /// Put into the model's cache.
    pub cache_creation: i64,
}

/// What a session has spent so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Turns that have ended.
    pub turns: u64,
    /// Tokens.
    pub tokens: Tokens,
    /// What they cost, in millionths of a US dollar, as Claude Code reckons.
    pub cost_micros: i64,
}

/// What entries of a log add to what their session has spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spending {
    /// Tokens.
    pub tokens: Tokens,
    /// What they cost, in millionths of a US dollar.
    pub cost_micros: i64,
    /// Whether the model API refused the credential when it was last asked; none where no turn ends.
    pub refused: Option<bool>,
}

/// What is read of a result.
#[derive(Deserialize)]
struct ResultLine {
    #[serde(default)]
    model_usage_since_last_result: HashMap<String, ModelUsage>,
    #[serde(default)]
    is_error: bool,
    api_error_status: Option<u16>,
}

/// What one model was asked.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelUsage {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_input_tokens: u64,
    cache_creation_input_tokens: u64,
    #[serde(rename = "costUSD")]
    cost_usd: f64,
}

impl Spending {
    /// What these entries add; none where they say nothing about it.
    pub fn of<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> Option<Self> {
        let mut spending = Self::default();
        for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::Claude) {
            if (entry.ends_turn() || memmem::find(&entry.body, MARK).is_some())
                && let Ok(result) = serde_json::from_slice(&entry.body)
            {
                spending.add(&result, entry.ends_turn());
            }
        }
        (spending != Self::default()).then_some(spending)
    }

    fn add(&mut self, line: &ResultLine, ends_turn: bool) {
        let mut own = Self::default();
        for usage in line.model_usage_since_last_result.values() {
            let add = |sum: &mut i64, tokens: u64| {
                let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
                *sum = sum.saturating_add(tokens).min(MAX_TOKENS_PER_RESULT);
            };
            add(&mut own.tokens.input, usage.input_tokens);
            add(&mut own.tokens.output, usage.output_tokens);
            add(&mut own.tokens.cache_read, usage.cache_read_input_tokens);
            add(&mut own.tokens.cache_creation, usage.cache_creation_input_tokens);
            own.cost_micros = (own.cost_micros + micros(usage.cost_usd)).min(MAX_COST_MICROS);
        }
        self.tokens.input += own.tokens.input;
        self.tokens.output += own.tokens.output;
        self.tokens.cache_read += own.tokens.cache_read;
        self.tokens.cache_creation += own.tokens.cache_creation;
        self.cost_micros += own.cost_micros;
        if ends_turn {
            // RFC 9110: 401 is no or a wrong credential, 403 one that may not do this.
            self.refused = Some(line.is_error && matches!(line.api_error_status, Some(401 | 403)));
        }
    }
}

/// US dollars in millionths, within the bound.
fn micros(dollars: f64) -> i64 {
    // The cast saturates, and that of NaN is 0.
    #[allow(clippy::cast_possible_truncation, reason = "clamped")]
    let micros = (dollars * 1e6).round() as i64;
    micros.clamp(0, MAX_COST_MICROS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch};
    use serde_json::{Value, json};

    use super::{MAX_COST_MICROS, MAX_TOKENS_PER_RESULT, Spending, Tokens};

    fn entry(ends: bool, line: &Value) -> Entry {
        let flags = if ends { EntryFlags::ENDS_TURN } else { EntryFlags::default() };
        Entry { sequence: Epoch(1).sequence(2), kind: EntryKind::Claude, flags, body: line.to_string().into() }
    }

    fn model(input: u64, dollars: f64) -> Value {
        json!({ "inputTokens": input, "outputTokens": 2, "cacheReadInputTokens": 3, "cacheCreationInputTokens": 4,
            "webSearchRequests": 0, "costUSD": dollars, "contextWindow": 200_000 })
    }

    #[test]
    fn every_model_of_every_result_counts_whoever_it_ends() {
        let two = json!({ "type": "result", "total_cost_usd": 9.0, "usage": { "input_tokens": 1 },
            "model_usage_since_last_result": { "large": model(10, 0.04), "small": model(5, 0.000_012_4) } });
        let background = json!({ "type": "result", "model_usage_since_last_result": { "small": model(7, 0.01) } });
        let cleared = json!({ "type": "result", "total_cost_usd": 0, "model_usage_since_last_result": {} });
        let told = json!({ "type": "assistant", "message": { "content": "\"model_usage_since_last_result\"" } });
        let entries = [entry(true, &two), entry(false, &background), entry(true, &cleared), entry(false, &told)];
        let tokens = Tokens { input: 22, output: 6, cache_read: 9, cache_creation: 12 };
        assert_eq!(Spending::of(&entries), Some(Spending { tokens, cost_micros: 50_012, refused: Some(false) }));
        assert_eq!(Spending::of(&[entry(false, &told)]), None);
    }

    #[test]
    fn a_credential_that_is_refused_is_noticed_until_a_turn_goes_well() {
        let refused = |status: Value, is_error: bool| {
            let line = json!({ "type": "result", "is_error": is_error, "api_error_status": status });
            Spending::of(&[entry(true, &line)]).unwrap().refused
        };
        assert_eq!(refused(json!(401), true), Some(true));
        assert_eq!(refused(json!(403), true), Some(true));
        assert_eq!(refused(json!(529), true), Some(false));
        assert_eq!(refused(json!(null), false), Some(false));
    }

    #[test]
    fn what_a_bridge_says_is_bounded() {
        let much =
            json!({ "model_usage_since_last_result": { "a": model(u64::MAX, 1e300), "b": model(u64::MAX, 1e300) } });
        let spending = Spending::of(&[entry(true, &much)]).unwrap();
        assert_eq!((spending.tokens.input, spending.cost_micros), (MAX_TOKENS_PER_RESULT, MAX_COST_MICROS));
        let negative = json!({ "model_usage_since_last_result": { "a": { "costUSD": -1 } } });
        assert_eq!(Spending::of(&[entry(true, &negative)]).unwrap().cost_micros, 0);
        assert_eq!(Spending::of(&[entry(true, &json!("no object"))]), None);
    }
}
