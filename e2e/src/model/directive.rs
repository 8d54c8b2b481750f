//! Reads the directives in a user's text. The grammar is the table in the module above.

use std::time::Duration;

use serde_json::{Map, Value};

/// Longest wait that one directive may ask for; a longer one is refused.
const MAX_WAIT: Duration = Duration::from_mins(10);
/// Most deltas in one burst.
const MAX_BURST_DELTAS: usize = 1_000_000;
/// Most bytes in one burst: more than the longest line that a bridge has to survive (64 MiB).
const MAX_BURST_BYTES: usize = 96 << 20;

/// One step that a text asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Directive {
    /// A text block with this text.
    Text(String),
    /// A text block of `deltas` deltas, each of `bytes` bytes where that is given.
    Burst {
        /// Number of deltas.
        deltas: usize,
        /// Bytes of each delta; without it, the delta's number and a space.
        bytes: Option<usize>,
    },
    /// A thinking block with this text.
    Think(String),
    /// Waits.
    Delay(Duration),
    /// Waits before each following delta of the response.
    Pace(Duration),
    /// Calls a tool.
    Tool {
        /// The tool's name as Claude Code offers it.
        name: String,
        /// Its input.
        input: Value,
        /// Whether it goes out in the same response as the call before it.
        joined: bool,
    },
    /// Says the text of the last tool result.
    Result,
    /// Answers with an HTTP error.
    Error {
        /// HTTP status, 400 to 599.
        status: u16,
        /// Seconds for `Retry-After`.
        retry_after: Option<u32>,
        /// How often per turn; without it, always.
        times: Option<u32>,
    },
    /// Sends an `error` event in the stream and ends it.
    StreamError {
        /// Type of the error, such as `overloaded_error`.
        kind: String,
        /// How often per turn; without it, always.
        times: Option<u32>,
    },
    /// Ends the connection.
    Cut {
        /// After this many deltas of the response; without it, before any byte of an answer.
        after: Option<usize>,
        /// Whether with a TCP reset.
        reset: bool,
        /// How often per turn; without it, always.
        times: Option<u32>,
    },
    /// Ends the turn with this stop reason.
    Stop(String),
    /// Reports these tokens.
    Usage {
        /// Input tokens.
        input: u64,
        /// Output tokens.
        output: u64,
    },
    /// Says the user's texts as a JSON list.
    History,
    /// Says how many texts of the user there are.
    Count,
    /// Says the system prompt.
    EchoSystem,
    /// Says what the request asked for.
    Request,
}

/// A directive that cannot be read; the text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectiveError {
    /// `[[` of a known directive without its `]]`.
    #[error("the directive `{0}` has no end: close it with ]]")]
    Unclosed(String),
    /// The argument does not fit.
    #[error("the directive `{name}` cannot take `{argument}`: {hint}")]
    Argument {
        /// Name of the directive.
        name: String,
        /// What was given.
        argument: String,
        /// What to write instead.
        hint: &'static str,
    },
}

const NAMES: [&str; 17] = [
    "text",
    "burst",
    "think",
    "delay",
    "pace",
    "tool",
    "and-tool",
    "result",
    "error",
    "stream-error",
    "cut",
    "stop",
    "usage",
    "history",
    "count",
    "echo-system",
    "request",
];

/// The directives of `text`, in order; empty when it has none. `[[` before anything but the name of a directive is plain text.
pub fn parse(text: &str) -> Result<Vec<Directive>, DirectiveError> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("[[") {
        rest = &rest[start + 2..];
        let name_end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_end);
        let starts_well = after.is_empty() || after.starts_with([':', ']', ' ']);
        if !NAMES.contains(&name) || !starts_well {
            continue;
        }
        if name == "tool" || name == "and-tool" {
            let (directive, remaining) = tool(name, after)?;
            found.push(directive);
            rest = remaining;
            continue;
        }
        let Some(end) = after.find("]]") else {
            return Err(DirectiveError::Unclosed(name.to_owned()));
        };
        let argument = after[..end].trim_start_matches(':').trim();
        found.push(simple(name, argument)?);
        rest = &after[end + 2..];
    }
    Ok(found)
}

fn refused(name: &str, argument: &str, hint: &'static str) -> DirectiveError {
    DirectiveError::Argument { name: name.to_owned(), argument: argument.chars().take(200).collect(), hint }
}

/// Reads `: Name {json}]]`, the JSON by its own grammar so that it may hold `]]`; gives back what follows.
fn tool<'a>(name: &str, after: &'a str) -> Result<(Directive, &'a str), DirectiveError> {
    const HINT: &str =
        "write the tool's name and its input as a JSON object, as in [[tool: Bash {\"command\":\"ls\"}]]";
    let argument = after.trim_start_matches(':').trim_start();
    let tool_end = argument.find(|c: char| c.is_whitespace() || c == '{' || c == ']').unwrap_or(argument.len());
    let (tool_name, remaining) = argument.split_at(tool_end);
    let remaining = remaining.trim_start();
    if tool_name.is_empty() {
        return Err(refused(name, argument, HINT));
    }
    let (input, remaining) = if remaining.starts_with('{') {
        let mut values = serde_json::Deserializer::from_str(remaining).into_iter::<Map<String, Value>>();
        let input = values.next().and_then(Result::ok).ok_or_else(|| refused(name, argument, HINT))?;
        (input, remaining[values.byte_offset()..].trim_start())
    } else {
        (Map::new(), remaining)
    };
    let remaining = remaining.strip_prefix("]]").ok_or_else(|| refused(name, argument, HINT))?;
    let directive =
        Directive::Tool { name: tool_name.to_owned(), input: Value::Object(input), joined: name == "and-tool" };
    Ok((directive, remaining))
}

fn simple(name: &str, argument: &str) -> Result<Directive, DirectiveError> {
    Ok(match name {
        "text" => Directive::Text(argument.to_owned()),
        "think" => Directive::Think(argument.to_owned()),
        "burst" => burst(argument).ok_or_else(|| {
            refused(
                name,
                argument,
                "write the number of deltas (1 to 1000000) and, if wanted, the bytes of each; 96 MiB at most",
            )
        })?,
        "delay" | "pace" => {
            let wait = duration(argument)
                .ok_or_else(|| refused(name, argument, "write a time such as 50ms or 2s, 600s at most"))?;
            if name == "delay" { Directive::Delay(wait) } else { Directive::Pace(wait) }
        }
        "error" => error(argument).ok_or_else(|| {
            refused(name, argument, "write a status from 400 to 599, then retry-after=SECONDS and xN if wanted")
        })?,
        "stream-error" => stream_error(argument)
            .ok_or_else(|| refused(name, argument, "write the type of the error, then xN if wanted"))?,
        "cut" => cut(argument).ok_or_else(|| {
            refused(name, argument, "write a number of deltas or `before`, then `reset` and xN if wanted")
        })?,
        "stop" => Directive::Stop(if argument.is_empty() { "end_turn".to_owned() } else { argument.to_owned() }),
        "usage" => {
            usage(argument).ok_or_else(|| refused(name, argument, "write the input tokens and the output tokens"))?
        }
        "result" => Directive::Result,
        "history" => Directive::History,
        "count" => Directive::Count,
        "echo-system" => Directive::EchoSystem,
        _ => Directive::Request,
    })
}

fn burst(argument: &str) -> Option<Directive> {
    let mut words = argument.split_whitespace();
    let deltas: usize = words.next()?.parse().ok()?;
    let bytes: Option<usize> = words.next().map(str::parse).transpose().ok()?;
    let fits = (1..=MAX_BURST_DELTAS).contains(&deltas)
        && bytes.is_none_or(|bytes| bytes > 0 && bytes.checked_mul(deltas).is_some_and(|all| all <= MAX_BURST_BYTES));
    (fits && words.next().is_none()).then_some(Directive::Burst { deltas, bytes })
}

fn duration(argument: &str) -> Option<Duration> {
    let wait = if let Some(number) = argument.strip_suffix("ms") {
        Duration::from_millis(number.trim().parse().ok()?)
    } else if let Some(number) = argument.strip_suffix('s') {
        Duration::from_secs(number.trim().parse().ok()?)
    } else {
        Duration::from_millis(argument.parse().ok()?)
    };
    (wait <= MAX_WAIT).then_some(wait)
}

fn times(word: &str) -> Option<u32> {
    word.strip_prefix('x')?.parse().ok()
}

fn error(argument: &str) -> Option<Directive> {
    let mut words = argument.split_whitespace();
    let status: u16 = words.next()?.parse().ok()?;
    if !(400..=599).contains(&status) {
        return None;
    }
    let (mut retry_after, mut limit) = (None, None);
    for word in words {
        if let Some(seconds) = word.strip_prefix("retry-after=") {
            retry_after = Some(seconds.parse().ok()?);
        } else {
            limit = Some(times(word)?);
        }
    }
    Some(Directive::Error { status, retry_after, times: limit })
}

fn stream_error(argument: &str) -> Option<Directive> {
    let mut words = argument.split_whitespace();
    let kind = words.next()?.to_owned();
    let limit = match words.next() {
        None => None,
        Some(word) => Some(times(word)?),
    };
    words.next().is_none().then_some(Directive::StreamError { kind, times: limit })
}

fn cut(argument: &str) -> Option<Directive> {
    let mut words = argument.split_whitespace();
    let after = match words.next()? {
        "before" => None,
        number => Some(number.parse().ok()?),
    };
    let (mut reset, mut limit) = (false, None);
    for word in words {
        if word == "reset" {
            reset = true;
        } else {
            limit = Some(times(word)?);
        }
    }
    Some(Directive::Cut { after, reset, times: limit })
}

fn usage(argument: &str) -> Option<Directive> {
    let mut words = argument.split_whitespace();
    let input = words.next()?.parse().ok()?;
    let output = words.next()?.parse().ok()?;
    words.next().is_none().then_some(Directive::Usage { input, output })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Directive {
        let mut all = parse(text).unwrap();
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn plain_text_has_none() {
        for text in ["hello", "", "a [[b]] c", "[[", "[[[", "[[unknown: 5]]", "if [[ -f x ]]; then", "x[[texture: a]]"]
        {
            assert_eq!(parse(text).unwrap(), vec![], "{text}");
        }
    }

    #[test]
    fn each_directive_is_read() {
        assert_eq!(one("say [[text: hello there ]] please"), Directive::Text("hello there".into()));
        assert_eq!(one("[[burst: 2000]]"), Directive::Burst { deltas: 2000, bytes: None });
        assert_eq!(one("[[burst: 3 64]]"), Directive::Burst { deltas: 3, bytes: Some(64) });
        assert_eq!(one("[[think: well]]"), Directive::Think("well".into()));
        assert_eq!(one("[[delay: 50ms]]"), Directive::Delay(Duration::from_millis(50)));
        assert_eq!(one("[[delay: 2s]]"), Directive::Delay(Duration::from_secs(2)));
        assert_eq!(one("[[pace: 7]]"), Directive::Pace(Duration::from_millis(7)));
        assert_eq!(one("[[result]]"), Directive::Result);
        assert_eq!(one("[[stop]]"), Directive::Stop("end_turn".into()));
        assert_eq!(one("[[stop: max_tokens]]"), Directive::Stop("max_tokens".into()));
        assert_eq!(one("[[usage: 10 20]]"), Directive::Usage { input: 10, output: 20 });
        assert_eq!(one("[[error: 401]]"), Directive::Error { status: 401, retry_after: None, times: None });
        assert_eq!(
            one("[[error: 429 retry-after=3 x2]]"),
            Directive::Error { status: 429, retry_after: Some(3), times: Some(2) }
        );
        assert_eq!(
            one("[[stream-error: overloaded_error x1]]"),
            Directive::StreamError { kind: "overloaded_error".into(), times: Some(1) }
        );
        assert_eq!(one("[[cut: 5]]"), Directive::Cut { after: Some(5), reset: false, times: None });
        assert_eq!(one("[[cut: 5 reset x1]]"), Directive::Cut { after: Some(5), reset: true, times: Some(1) });
        assert_eq!(one("[[cut: before x1]]"), Directive::Cut { after: None, reset: false, times: Some(1) });
        assert_eq!(one("[[history]]"), Directive::History);
        assert_eq!(one("[[count]]"), Directive::Count);
        assert_eq!(one("[[echo-system]]"), Directive::EchoSystem);
        assert_eq!(one("[[request]]"), Directive::Request);
    }

    #[test]
    fn the_input_of_a_tool_may_hold_brackets() {
        assert_eq!(
            one(r#"[[tool: Bash {"command":"if [[ -f x ]]; then :; fi","list":[[1]]}]]"#),
            Directive::Tool {
                name: "Bash".into(),
                input: json!({"command": "if [[ -f x ]]; then :; fi", "list": [[1]]}),
                joined: false
            }
        );
        assert_eq!(
            one("[[and-tool: mcp__server__ping]]"),
            Directive::Tool { name: "mcp__server__ping".into(), input: json!({}), joined: true }
        );
    }

    #[test]
    fn several_come_in_order() {
        let all = parse(r#"[[think: a]] and [[tool: Read {"file_path":"x"}]][[text: b]]"#).unwrap();
        assert!(matches!(all.as_slice(), [Directive::Think(_), Directive::Tool { .. }, Directive::Text(_)]));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for text in [
            "[[burst: 0]]",
            "[[burst: many]]",
            "[[burst: 1000000 1000000]]",
            "[[delay: soon]]",
            "[[delay: 601s]]",
            "[[error: 200]]",
            "[[error: 529 twice]]",
            "[[cut: ]]",
            "[[cut: 5 y1]]",
            "[[usage: 1]]",
            "[[tool: Bash {\"a\"]]",
            "[[tool: ]]",
            "[[tool: Bash {} ",
            "[[text: never closed",
            "[[text",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
