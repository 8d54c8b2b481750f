//! From a request and the directives in its text to the one answer that is due now.

use super::conversation::ModelRequest;
use super::directive::{Directive, DirectiveError, parse};
use super::reply::{Cut, Failure, Reply, Step};
use super::small_talk;

/// The answer to `request`. `strike(index, times)` says whether the directive with that index still fails, and counts that it did.
pub(super) fn plan(request: &ModelRequest, mut strike: impl FnMut(usize, Option<u32>) -> bool) -> Reply {
    let directives = match parse(request.last_text()) {
        Ok(directives) => directives,
        Err(error) => return refusal(&error),
    };
    if directives.is_empty() {
        return small_talk::reply(request);
    }
    let start = position(&directives, request.tool_results.len());
    let mut reply = Reply::new();
    let mut called = false;
    for (index, directive) in directives.into_iter().enumerate().skip(start) {
        if called && !matches!(directive, Directive::Tool { joined: true, .. }) {
            break;
        }
        match directive {
            Directive::Tool { name, input, .. } => {
                called = true;
                reply.steps.push(Step::Tool { name, input });
            }
            Directive::Error { status, retry_after, times } => {
                if strike(index, times) {
                    return fail_with(&reply, Reply::error(status), retry_after);
                }
            }
            Directive::Cut { after, reset, times } => {
                if strike(index, times) {
                    let how = if reset { Cut::Reset } else { Cut::Close };
                    match after {
                        None => return fail_with(&reply, Reply::no_answer(how), None),
                        Some(deltas) => reply.cut = Some((deltas, how)),
                    }
                }
            }
            Directive::StreamError { kind, times } => {
                if strike(index, times) {
                    reply.steps.push(Step::StreamError(kind));
                    return reply;
                }
            }
            Directive::Stop(reason) => {
                reply.stop_reason = Some(reason);
                break;
            }
            Directive::Usage { input, output } => reply.usage = Some((input, output)),
            said => reply.steps.push(said_step(said, request)),
        }
    }
    reply
}

/// Index of the first directive that is still due when `seen` tool results were shown: the one after that many calls.
fn position(directives: &[Directive], seen: usize) -> usize {
    if seen == 0 {
        return 0;
    }
    directives
        .iter()
        .enumerate()
        .filter(|(_, directive)| matches!(directive, Directive::Tool { .. }))
        .nth(seen - 1)
        .map_or(directives.len(), |(index, _)| index + 1)
}

/// The step for a directive that says something or waits; those that decide were handled before.
fn said_step(directive: Directive, request: &ModelRequest) -> Step {
    match directive {
        Directive::Text(text) => Step::Text(text),
        Directive::Burst { deltas, bytes } => Step::Burst { deltas, bytes },
        Directive::Think(text) => Step::Think(text),
        Directive::Delay(wait) => Step::Delay(wait),
        Directive::Pace(wait) => Step::Pace(wait),
        Directive::History => Step::Text(serde_json::Value::from(request.user_texts.clone()).to_string()),
        Directive::Count => Step::Text(request.user_texts.len().to_string()),
        Directive::EchoSystem => Step::Text(request.system.clone()),
        Directive::Request => Step::Text(request.summary().to_string()),
        _ => Step::Text(request.tool_results.last().map_or_else(String::new, |result| result.text.clone())),
    }
}

/// A failure that waits as long as was asked for before it.
fn fail_with(so_far: &Reply, mut failing: Reply, retry_after: Option<u32>) -> Reply {
    failing.steps = so_far.steps.iter().filter(|step| matches!(step, Step::Delay(_))).cloned().collect();
    match retry_after {
        Some(seconds) => failing.retry_after(seconds),
        None => failing,
    }
}

fn refusal(error: &DirectiveError) -> Reply {
    Reply {
        failure: Some(Failure::Status { status: 400, retry_after: None, message: error.to_string() }),
        ..Reply::default()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;

    /// A request whose last text is `text`, with this many tool results after it.
    fn request(text: &str, results: usize) -> ModelRequest {
        let mut messages = vec![
            json!({"role": "user", "content": "earlier"}),
            json!({"role": "assistant", "content": "yes"}),
            json!({"role": "user", "content": text}),
        ];
        for index in 0..results {
            messages.push(
                json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]}),
            );
            messages.push(json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": format!("result {index}")}]}));
        }
        let body = json!({"model": "m", "system": "be brief", "tools": [{"name": "Bash"}], "messages": messages});
        ModelRequest::read(&Bytes::from(body.to_string())).unwrap()
    }

    fn always(_: usize, _: Option<u32>) -> bool {
        true
    }

    fn never(_: usize, _: Option<u32>) -> bool {
        false
    }

    const TWO_TOOLS: &str = r#"[[text: a]] [[tool: Bash {"n":1}]] [[text: b]] [[tool: Bash {"n":2}]] [[and-tool: Bash {"n":3}]] [[text: c]]"#;

    #[test]
    fn the_position_follows_from_the_results_shown() {
        let tool = |n: u32| Step::Tool { name: "Bash".into(), input: json!({"n": n}) };
        let text = |text: &str| Step::Text(text.into());
        assert_eq!(plan(&request(TWO_TOOLS, 0), never).steps, [text("a"), tool(1)]);
        assert_eq!(plan(&request(TWO_TOOLS, 1), never).steps, [text("b"), tool(2), tool(3)]);
        assert_eq!(plan(&request(TWO_TOOLS, 3), never).steps, [text("c")]);
        assert_eq!(plan(&request(TWO_TOOLS, 4), never).steps, []);
    }

    #[test]
    fn a_call_that_got_only_part_of_its_results_goes_on_with_the_rest() {
        assert_eq!(
            plan(&request(TWO_TOOLS, 2), never).steps,
            [Step::Tool { name: "Bash".into(), input: json!({"n": 3}) }]
        );
    }

    #[test]
    fn errors_strike_as_often_as_told() {
        let mut struck = Vec::new();
        let mut strike = |index: usize, times: Option<u32>| {
            let before = struck.iter().filter(|&&other| other == index).count();
            let strikes = times.is_none_or(|times| before < times as usize);
            if strikes {
                struck.push(index);
            }
            strikes
        };
        let request = request("[[error: 529 x1]] [[error: 500 x1]] [[text: ok]]", 0);
        let status = |reply: &Reply| match &reply.failure {
            Some(Failure::Status { status, .. }) => Some(*status),
            _ => None,
        };
        assert_eq!(status(&plan(&request, &mut strike)), Some(529));
        assert_eq!(status(&plan(&request, &mut strike)), Some(500));
        let last = plan(&request, &mut strike);
        assert_eq!((status(&last), last.steps.len()), (None, 1));
    }

    #[test]
    fn an_error_after_a_tool_waits_for_its_result() {
        let text = "[[tool: Bash]] [[delay: 5ms]] [[error: 401]]";
        assert!(plan(&request(text, 0), always).failure.is_none());
        let mut after = plan(&request(text, 1), always);
        assert!(matches!(after.failure, Some(Failure::Status { status: 401, .. })));
        assert_eq!(after.take_hold().as_millis(), 5);
    }

    #[test]
    fn a_cut_belongs_to_its_response() {
        let reply = plan(&request("[[burst: 9]] [[cut: 5 reset x1]]", 0), always);
        assert_eq!(reply.cut, Some((5, Cut::Reset)));
        assert_eq!(plan(&request("[[burst: 9]] [[cut: 5 x1]]", 0), never).cut, None);
        assert_eq!(plan(&request("[[cut: before]]", 0), always).failure, Some(Failure::Cut(Cut::Close)));
    }

    #[test]
    fn it_can_say_what_it_was_shown() {
        let said = |text: &str| match plan(&request(text, 1), never).steps.pop() {
            Some(Step::Text(text)) => text,
            other => format!("{other:?}"),
        };
        let history: Vec<String> = serde_json::from_str(&said("[[tool: Bash]][[history]]")).unwrap();
        assert_eq!(history, ["earlier", "[[tool: Bash]][[history]]"]);
        assert_eq!(said("[[tool: Bash]][[count]]"), "2");
        assert_eq!(said("[[tool: Bash]][[echo-system]]"), "be brief");
        assert_eq!(said("[[tool: Bash]][[result]]"), "result 0");
        let shown: Value = serde_json::from_str(&said("[[tool: Bash]][[request]]")).unwrap();
        assert_eq!((&shown["model"], &shown["tools"]), (&json!("m"), &json!(["Bash"])));
    }

    #[test]
    fn nothing_follows_a_stop() {
        let reply = plan(&request("[[text: a]] [[stop: max_tokens]] [[text: b]]", 0), never);
        assert_eq!((reply.steps.len(), reply.stop_reason.as_deref()), (1, Some("max_tokens")));
    }

    #[test]
    fn a_malformed_directive_is_refused_in_words() {
        let reply = plan(&request("[[delay: soon]]", 0), never);
        assert!(
            matches!(reply.failure, Some(Failure::Status { status: 400, message, .. }) if message.contains("soon"))
        );
    }
}
