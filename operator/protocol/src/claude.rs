//! The envelope of a line that Claude Code prints: just enough of it to act on, the rest stays bytes.
//!
//! Claude Code's lines are passed through byte for byte. What is read of them, and why, stands in the variants of [`Line`].
//! Source: Claude Code 2.1.330 as observed.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The release of Claude Code that this release of Ash was made and tested with: what stands in
/// `bridge-image/claude-code.version`, which the scripts install.
pub const VERSION: &str = include_str!("../../../bridge-image/claude-code.version").trim_ascii();

/// How most lines of a busy turn begin; they are recognised without being parsed.
const PARTIAL_PREFIX: &[u8] = br#"{"type":"stream_event","#;

/// A line of Claude Code, by what is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// `stream_event`: a partial message.
    Partial,
    /// `result`: the turn has ended.
    Result {
        /// Whether it failed (`is_error`; the subtype says `success` for a failed model call too).
        is_error: bool,
    },
    /// `control_request`: Claude Code asks its host.
    ControlRequest,
    /// `control_response`: the answer to a request of ours.
    ControlResponse,
    /// `control_cancel_request`: Claude Code takes a request back.
    ControlCancelRequest,
    /// `keep_alive`: nothing to pass on.
    KeepAlive,
    /// `system` with its subtype.
    System(Cow<'a, str>),
    /// `assistant`, `user` and whatever else there is: passed on.
    Other(Cow<'a, str>),
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    subtype: Option<Cow<'a, str>>,
    #[serde(default)]
    is_error: bool,
}

/// Why a line is no message of Claude Code.
#[derive(Debug, thiserror::Error)]
#[error("not a JSON object with a type: {0}")]
pub struct InvalidLine(#[from] serde_json::Error);

impl<'a> Line<'a> {
    /// Reads the envelope of a line (without its newline).
    pub fn parse(line: &'a [u8]) -> Result<Self, InvalidLine> {
        if line.starts_with(PARTIAL_PREFIX) && line.ends_with(b"}") {
            return Ok(Self::Partial);
        }
        let envelope: Envelope<'a> = serde_json::from_slice(line)?;
        Ok(match envelope.kind.as_ref() {
            "stream_event" => Self::Partial,
            "result" => Self::Result { is_error: envelope.is_error },
            "control_request" => Self::ControlRequest,
            "control_response" => Self::ControlResponse,
            "control_cancel_request" => Self::ControlCancelRequest,
            "keep_alive" => Self::KeepAlive,
            "system" => Self::System(envelope.subtype.unwrap_or_default()),
            _ => Self::Other(envelope.kind),
        })
    }
}

/// A `stream_event` line, as far as frames are made of it.
#[derive(Debug, Deserialize)]
pub struct PartialLine<'a> {
    /// The model's own event.
    #[serde(borrow)]
    pub event: PartialEvent<'a>,
}

/// An event of the model's stream.
#[derive(Debug, Deserialize)]
pub struct PartialEvent<'a> {
    /// `message_start`, `content_block_delta`, ...
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// Of a `content_block_delta`: `{"type": "text_delta", "text": ...}` and its like.
    #[serde(borrow, default)]
    pub delta: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Line;

    #[test]
    fn the_type_may_stand_anywhere() {
        let line = br#"{"usage":{"type":"x"},"type":"result","subtype":"success","is_error":true}"#;
        assert_eq!(Line::parse(line).unwrap(), Line::Result { is_error: true });
        let line = br#"{"uuid":"1","type":"stream_event","event":{}}"#;
        assert_eq!(Line::parse(line).unwrap(), Line::Partial);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for line in [&b"hello"[..], b"", b"[]", b"{}", b"{\"type\":1}", b"{\"type\":\"stream_event\",\"x\":"] {
            assert!(Line::parse(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn unknown_types_flow_through() {
        assert_eq!(Line::parse(br#"{"type":"novelty"}"#).unwrap(), Line::Other("novelty".into()));
    }
}
