//! What the model says to a text without directives: always the same to the same conversation, and pleasant to read.
//!
//! - Text that asks to run something in backticks (``run `date` ``) or asks which files there are calls `Bash`, where that is on
//!   offer, and then says what came back.
//! - Text that asks what was said before quotes the texts before it.
//! - Everything else is answered with `You said: ` and the text.

use serde_json::json;

use super::conversation::ModelRequest;
use super::reply::Reply;

/// Longest quotation, in characters; what is beyond it is replaced by an ellipsis.
const MAX_QUOTED: usize = 2_000;

/// What helper requests (titles, summaries) get.
pub(super) const HELPER_REPLY: &str = "A conversation with the scripted model";

/// The reply to a request whose last text has no directives.
pub(super) fn reply(request: &ModelRequest) -> Reply {
    let text = request.last_text();
    if asks_for_a_summary(text) {
        return Reply::new().text(summary(request));
    }
    if let Some(command) = command(text).filter(|_| request.tools.iter().any(|tool| tool == "Bash")) {
        return match request.tool_results.last() {
            None => Reply::new()
                .text(format!("Let me look: I run `{command}`."))
                .tool("Bash", json!({"command": command, "description": "Look at what is there"})),
            Some(result) if result.is_error => {
                Reply::new().text(format!("The command did not succeed. It said:\n\n{}", quoted(&result.text)))
            }
            Some(result) => Reply::new().text(format!("Here is what came back:\n\n{}", quoted(&result.text))),
        };
    }
    if asks_for_the_past(text) && request.user_texts.len() > 1 {
        let before = &request.user_texts[..request.user_texts.len() - 1];
        let list: Vec<String> =
            before.iter().enumerate().map(|(index, text)| format!("{}. {}", index + 1, quoted(text))).collect();
        return Reply::new().text(format!("Before this you said:\n\n{}", list.join("\n")));
    }
    Reply::new().text(format!("You said: {}", quoted(text)))
}

/// The command that a text asks for.
fn command(text: &str) -> Option<&str> {
    let lower = text.to_lowercase();
    if lower.contains("run `") {
        let start = text.find('`')? + 1;
        let command = text[start..].split('`').next()?.trim();
        return (!command.is_empty()).then_some(command);
    }
    let asks = ["which files", "what files", "list the files", "list files", "look around"];
    asks.iter().any(|phrase| lower.contains(phrase)).then_some("ls -A")
}

fn asks_for_the_past(text: &str) -> bool {
    let lower = text.to_lowercase();
    ["did i say", "did i ask", "did i tell", "do you remember"].iter().any(|phrase| lower.contains(phrase))
}

/// Whether this is Claude Code asking for a compact form of the conversation (`/compact`).
fn asks_for_a_summary(text: &str) -> bool {
    text.contains("create a detailed summary of") && text.contains("<summary>")
}

fn summary(request: &ModelRequest) -> String {
    let before = request.user_texts.len().saturating_sub(1);
    let list: Vec<String> = request.user_texts[..before].iter().map(|text| format!("- {}", quoted(text))).collect();
    format!(
        "<analysis>\nThe texts of the user, in order.\n</analysis>\n\n<summary>\nThe user said:\n{}\n</summary>",
        list.join("\n")
    )
}

fn quoted(text: &str) -> String {
    if text.chars().count() <= MAX_QUOTED {
        return text.to_owned();
    }
    text.chars().take(MAX_QUOTED).chain(" ...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::reply::Step;

    fn said(texts: &[&str], result: Option<&str>) -> Vec<Step> {
        let mut messages: Vec<_> = texts.iter().map(|text| json!({"role": "user", "content": text})).collect();
        if let Some(result) = result {
            messages.push(
                json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": result}]}),
            );
        }
        let body = json!({"model": "m", "tools": [{"name": "Bash"}], "messages": messages});
        reply(&ModelRequest::read(&Bytes::from(body.to_string())).unwrap()).steps
    }

    fn text(text: &str) -> Step {
        Step::Text(text.to_owned())
    }

    #[test]
    fn a_message_is_quoted() {
        assert_eq!(said(&["hello"], None), [text("You said: hello")]);
        assert_eq!(said(&["run ` `"], None), [text("You said: run ` `")]);
    }

    #[test]
    fn a_command_is_run_and_its_result_told() {
        let steps = said(&["Please run `echo hi` for me"], None);
        assert!(matches!(&steps[1], Step::Tool { name, input } if name == "Bash" && input["command"] == "echo hi"));
        assert_eq!(said(&["Please run `echo hi` for me"], Some("hi")), [text("Here is what came back:\n\nhi")]);
        assert!(matches!(&said(&["Which files are here?"], None)[1], Step::Tool { .. }));
    }

    #[test]
    fn the_past_is_remembered() {
        assert_eq!(
            said(&["my name is Ada", "What did I say?"], None),
            [text("Before this you said:\n\n1. my name is Ada")]
        );
    }

    #[test]
    fn a_long_text_is_shortened() {
        let Step::Text(answer) = said(&[&"x".repeat(5_000)], None).remove(0) else { panic!("no text") };
        assert!(answer.ends_with(" ...") && answer.len() < 2_100);
    }
}
