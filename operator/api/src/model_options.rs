//! Options about the model that Claude Code would ignore without a word: they are refused by name instead.
//!
//! Which model thinks how is Claude Code's own knowledge. It was observed by setting every model of its catalogue, and names
//! that it does not know, with every option, and by looking at the request to the model. Source: Claude Code 2.1.330 as
//! observed; `e2e/tests/options/models.rs` sees each row of the table again with the program that is pinned.

use ash_bundle::Bundle;
use ash_protocol::claude::VERSION;
use ash_protocol::options::{Effort, SessionOptions, Thinking as Wanted, TurnOptions};
use serde_json::Value;

use crate::agents::MAX_MODEL_BYTES;

/// Where a folder may name a model.
const SETTINGS: &str = ".claude/settings.json";

/// What Claude Code answers to when no model is named anywhere.
const DEFAULT: &str = "default";

/// Names that stand for the newest model of a family.
const ALIASES: [&str; 7] = [DEFAULT, "best", "fable", "haiku", "opus", "opusplan", "sonnet"];

/// What a sub-agent says that takes the session's model.
const INHERITED: &str = "inherit";

/// The ending of a name that asks for the long context; it changes nothing of the model.
const LONG_CONTEXT: &str = "[1m]";

/// Models in whose place Claude Code asks another one, by their whole names.
const REPLACED: [&str; 4] =
    ["claude-opus-4-0", "claude-opus-4-1", "claude-opus-4-1-20250805", "claude-opus-4-20250514"];

/// The model that it asks instead.
const REPLACEMENT: &str = "claude-opus-5-5";

/// How a model thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thinking {
    /// As much as it finds right, always.
    Always,
    /// As much as it finds right, or not at all.
    Switchable,
    /// Within a budget, or not at all.
    Budget,
    /// Never.
    Never,
}

/// Which efforts a model knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Efforts {
    All,
    /// All but `max`, which becomes `high`.
    UpToHigh,
    None,
}

/// By a part of the name with no digit behind it; the first row that fits counts.
const TABLE: [(&str, Thinking, Efforts); 18] = [
    ("opus-5-5", Thinking::Always, Efforts::All),
    ("sonnet-5-5", Thinking::Always, Efforts::All),
    ("haiku-5-5", Thinking::Always, Efforts::All),
    ("fable-5", Thinking::Always, Efforts::All),
    ("mythos-5-1", Thinking::Always, Efforts::All),
    ("mythos-5-2", Thinking::Always, Efforts::All),
    ("opus-4-6", Thinking::Switchable, Efforts::All),
    ("opus-4-7", Thinking::Switchable, Efforts::All),
    ("opus-4-8", Thinking::Switchable, Efforts::All),
    ("sonnet-4-6", Thinking::Switchable, Efforts::All),
    ("opus-4-5", Thinking::Budget, Efforts::UpToHigh),
    ("sonnet-4-5", Thinking::Budget, Efforts::None),
    ("haiku-4-5", Thinking::Budget, Efforts::None),
    ("sonnet-4-0", Thinking::Budget, Efforts::None),
    ("sonnet-4-20250514", Thinking::Budget, Efforts::None),
    ("opus-4-0", Thinking::Budget, Efforts::None),
    ("opus-4-1", Thinking::Budget, Efforts::None),
    ("claude-3-", Thinking::Never, Efforts::None),
];

/// What Claude Code takes a model for that it does not know, and some that it does (`claude-opus-5`, `claude-sonnet-5`).
const OTHERS: (Thinking, Efforts) = (Thinking::Switchable, Efforts::All);

/// Why an option is refused; names it first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "model is not valid: Claude Code {VERSION} asks {REPLACEMENT} in place of {0}: name {REPLACEMENT}, or another model"
    )]
    Replaced(String),
    #[error(
        "thinking is not valid: {0} always thinks, and Claude Code ignores \"disabled\" for it: use effort \"low\" to make it \
         think less, or name another model"
    )]
    AlwaysThinks(String),
    #[error(
        "thinking is not valid: {0} decides itself how much it thinks, and Claude Code ignores budgetTokens for it: use effort \
         instead, or name a model that takes a budget"
    )]
    NoBudget(String),
    #[error(
        "thinking is not valid: {0} thinks within a budget, and Claude Code ignores \"adaptive\" for it: use \"enabled\" with \
         budgetTokens, or name a newer model"
    )]
    NotAdaptive(String),
    #[error("thinking is not valid: {0} does not think: leave thinking out, or name a newer model")]
    NeverThinks(String),
    #[error(
        "effort is not valid: {0} knows no effort, and Claude Code ignores it: leave effort out, or name a newer model"
    )]
    NoEffort(String),
    #[error("effort is not valid: Claude Code makes \"high\" of \"max\" for {0}: use \"high\", or name a newer model")]
    NoMaxEffort(String),
    #[error(
        "{option} is not valid: which model the agent {agent:?} of the folder takes is not known here, and so not whether it \
         knows {option}: name a model"
    )]
    ModelUnknown { option: &'static str, agent: String },
}

/// Refuses the name of a model in whose place Claude Code would ask another one.
pub(crate) fn check_name(model: Option<&str>) -> Result<(), Refused> {
    match model {
        Some(model) if REPLACED.contains(&plain(model).as_str()) => Err(Refused::Replaced(model.to_owned())),
        _ => Ok(()),
    }
}

/// Refuses what the model of a turn would not be asked for. `agent_model` is that of the agent's version.
pub(crate) fn check_turn(
    session: &SessionOptions,
    agent_model: Option<&str>,
    turn: &TurnOptions,
) -> Result<(), Refused> {
    check_name(turn.model.as_deref())?;
    let named = turn.model.as_deref().or(session.model.as_deref()).or(agent_model);
    let brought = |agent: &String| session.subagents.as_ref().is_some_and(|agents| agents.contains_key(agent));
    // The model of an agent that came with the session is the session's.
    if let (None, Some(agent)) = (named, session.initial_agent.as_ref().filter(|agent| !brought(agent))) {
        let option = if turn.thinking.is_some() { "thinking" } else { "effort" };
        let any = turn.thinking.is_some() || turn.effort.is_some();
        return if any { Err(Refused::ModelUnknown { option, agent: agent.clone() }) } else { Ok(()) };
    }
    let model = named.unwrap_or(DEFAULT);
    let (thinking, efforts) = known(model);
    let model = || if model == DEFAULT { "the default model".to_owned() } else { model.to_owned() };
    match (turn.thinking, thinking) {
        (Some(Wanted::Disabled {}), Thinking::Always) => return Err(Refused::AlwaysThinks(model())),
        (Some(Wanted::Enabled { budget_tokens: Some(_) }), Thinking::Always | Thinking::Switchable) => {
            return Err(Refused::NoBudget(model()));
        }
        (Some(Wanted::Adaptive {}), Thinking::Budget) => return Err(Refused::NotAdaptive(model())),
        (Some(Wanted::Enabled { .. } | Wanted::Adaptive {}), Thinking::Never) => {
            return Err(Refused::NeverThinks(model()));
        }
        _ => {}
    }
    match (turn.effort, efforts) {
        (Some(_), Efforts::None) => Err(Refused::NoEffort(model())),
        (Some(Effort::Max), Efforts::UpToHigh) => Err(Refused::NoMaxEffort(model())),
        _ => Ok(()),
    }
}

/// The model that the agent's own folder names, which Claude Code uses where nobody names another. Told here, it holds as any
/// other agent's model does: Claude Code alone forgets it when it is told to go back to its default.
pub(crate) fn of_folder(bundle: &Bundle) -> Option<String> {
    let settings: Value = serde_json::from_slice(&bundle.file(SETTINGS)?.bytes).ok()?;
    let named = [&settings["env"]["ANTHROPIC_MODEL"], &settings["model"]];
    named.into_iter().filter_map(Value::as_str).find(|model| is_name(model)).map(ToOwned::to_owned)
}

/// The model of the sub-agent that leads a session, where the session brought that sub-agent. Claude Code uses it where nobody
/// names another, and forgets it as it does a folder's.
pub(crate) fn of_initial_agent(options: &SessionOptions) -> Option<String> {
    let agent = options.subagents.as_ref()?.get(options.initial_agent.as_ref()?)?;
    agent.get("model")?.as_str().filter(|model| *model != INHERITED && is_name(model)).map(ToOwned::to_owned)
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_MODEL_BYTES && !text.chars().any(char::is_control)
}

fn plain(model: &str) -> String {
    let name = model.to_ascii_lowercase();
    name.strip_suffix(LONG_CONTEXT).map_or(name.clone(), ToOwned::to_owned)
}

fn known(model: &str) -> (Thinking, Efforts) {
    let name = plain(model);
    if ALIASES.contains(&name.as_str()) {
        return (Thinking::Always, Efforts::All);
    }
    let fits = |part: &str| {
        name.split_once(part)
            .is_some_and(|(_, rest)| part.ends_with('-') || !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    TABLE.into_iter().find(|(part, _, _)| fits(part)).map_or(OTHERS, |(_, thinking, efforts)| (thinking, efforts))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_bundle::Bundle;
    use ash_protocol::options::{SessionOptions, TurnOptions};
    use serde_json::json;

    use super::{Efforts, Thinking, check_name, check_turn, known, of_folder, of_initial_agent};

    #[test]
    fn every_spelling_of_a_model_is_known() {
        for (name, expected) in [
            ("Opus", (Thinking::Always, Efforts::All)),
            ("sonnet[1m]", (Thinking::Always, Efforts::All)),
            ("claude-fable-5-2", (Thinking::Always, Efforts::All)),
            ("claude-opus-4-6[1m]", (Thinking::Switchable, Efforts::All)),
            ("CLAUDE-SONNET-4-5", (Thinking::Budget, Efforts::None)),
            ("claude-haiku-4-5-20251001", (Thinking::Budget, Efforts::None)),
            ("us.anthropic.claude-opus-4-5-v1", (Thinking::Budget, Efforts::UpToHigh)),
            ("us.anthropic.claude-opus-4-1-20250805-v1:0", (Thinking::Budget, Efforts::None)),
            ("claude-3-5-haiku-20241022", (Thinking::Never, Efforts::None)),
            ("claude-opus-4-10", (Thinking::Switchable, Efforts::All)),
            ("claude-sonnet-4-9", (Thinking::Switchable, Efforts::All)),
            ("claude-opus-5", (Thinking::Switchable, Efforts::All)),
            ("my-own-model", (Thinking::Switchable, Efforts::All)),
        ] {
            assert_eq!(known(name), expected, "{name}");
        }
    }

    #[test]
    fn the_model_of_the_turn_is_asked_then_the_sessions_then_the_agents() {
        let session =
            |model: Option<&str>| SessionOptions { model: model.map(Into::into), ..SessionOptions::default() };
        let turn = |turn| serde_json::from_value::<TurnOptions>(turn).unwrap();
        let off = || json!({ "type": "disabled" });
        let old = Some("claude-sonnet-4-5");
        for (session_model, agent_model, options, refused) in [
            (None, None, json!({ "thinking": off() }), Some("thinking")),
            (None, old, json!({ "thinking": off() }), None),
            (Some("opus"), old, json!({ "thinking": off() }), Some("thinking")),
            (Some("opus"), None, json!({ "thinking": off(), "model": "claude-sonnet-4-5" }), None),
            (None, old, json!({ "effort": "low" }), Some("effort")),
            (None, None, json!({ "effort": "max", "thinking": { "type": "adaptive" } }), None),
            (None, None, json!({ "thinking": { "type": "enabled" } }), None),
            (None, None, json!({ "model": "claude-opus-4-1" }), Some("model")),
        ] {
            let checked = check_turn(&session(session_model), agent_model, &turn(options.clone()));
            let name = checked.as_ref().err().map(|error| error.to_string().split(' ').next().unwrap().to_owned());
            assert_eq!(name.as_deref(), refused, "{session_model:?} {agent_model:?} {options}");
        }
        assert!(check_name(Some("Claude-Opus-4-0[1m]")).is_err());
        assert!(check_name(Some("us.anthropic.claude-opus-4-1-20250805-v1:0")).is_ok());
    }

    #[test]
    fn what_leads_the_session_may_name_its_model() {
        let options = |value| serde_json::from_value::<SessionOptions>(value).unwrap();
        let own = |model| json!({ "initialAgent": "a", "subagents": { "a": { "prompt": "p", "model": model } } });
        assert_eq!(of_initial_agent(&options(own("haiku"))).as_deref(), Some("haiku"));
        assert_eq!(of_initial_agent(&options(own("inherit"))), None);
        assert_eq!(of_initial_agent(&options(json!({ "initialAgent": "of-the-folder" }))), None);
        let effort = serde_json::from_value(json!({ "effort": "low" })).unwrap();
        let unknown = check_turn(&options(json!({ "initialAgent": "of-the-folder" })), None, &effort);
        assert!(unknown.unwrap_err().to_string().contains("name a model"));
        assert_eq!(check_turn(&options(own("inherit")), None, &effort), Ok(()));
    }

    #[test]
    fn a_folder_names_its_model_in_its_settings() {
        let folder = |settings: &str| {
            let file = |path: &str, text: &str| (path.to_owned(), text.as_bytes().to_vec());
            of_folder(&Bundle::from_files([file("CLAUDE.md", ""), file(".claude/settings.json", settings)]).unwrap())
        };
        assert_eq!(folder(r#"{"model":"haiku"}"#).as_deref(), Some("haiku"));
        assert_eq!(folder(r#"{"model":"haiku","env":{"ANTHROPIC_MODEL":"opus"}}"#).as_deref(), Some("opus"));
        for nothing in ["{}", "[]", "x", r#"{"model":1}"#, r#"{"model":" "}"#] {
            assert_eq!(folder(nothing), None, "{nothing}");
        }
    }
}
