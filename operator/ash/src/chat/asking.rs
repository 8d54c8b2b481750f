//! A permission request, from the question to the decision. Decides, without I/O.

use ash_client::{Behavior, Decision};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::output::text::printable;

/// The tool through which an agent asks a person something.
const QUESTION_TOOL: &str = "AskUserQuestion";

/// What an agent is told whose tool call was refused.
const DENIED: &str = "The user refused this tool call.";

/// What an agent is told where nobody can be asked.
const NOBODY: &str = "Nobody is there who could allow this tool call.";

/// A question of the agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    #[serde(rename = "question")]
    text: String,
    #[serde(default)]
    options: Vec<Choice>,
    #[serde(default)]
    multi_select: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Choice {
    label: String,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Questions {
    questions: Vec<Question>,
}

/// An open permission request.
#[derive(Debug)]
pub(super) struct Asking {
    /// The request's id.
    pub(super) id: String,
    tool: String,
    input: Value,
    /// Questions that are still to be answered; none for a plain request for consent.
    questions: Vec<Question>,
    answers: Map<String, Value>,
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) enum Step {
    /// It was not understood: ask again.
    Again,
    /// There is another question.
    Next,
    /// Everything is said.
    Decided(Decision),
}

impl Asking {
    /// A request to show.
    pub(super) fn new(id: String, tool: String, input: Value) -> Self {
        let questions = match serde_json::from_value::<Questions>(input.clone()) {
            Ok(Questions { questions }) if tool == QUESTION_TOOL => questions,
            _ => Vec::new(),
        };
        Self { id, tool, input, questions, answers: Map::new() }
    }

    /// What to ask.
    pub(super) fn text(&self) -> String {
        let Some(question) = self.questions.first() else {
            let input = serde_json::to_string_pretty(&self.input).unwrap_or_default();
            return format!("{} wants to run with\n{}\nAllow it? [y/n] ", printable(&self.tool), printable(&input));
        };
        let mut text = format!("{}\n", printable(&question.text));
        for (index, choice) in question.options.iter().enumerate() {
            let separator = if choice.description.is_empty() { "" } else { " – " };
            let line = format!("  {}. {}{separator}{}\n", index + 1, choice.label, choice.description);
            text.push_str(&printable(&line));
        }
        text.push_str(match (question.options.is_empty(), question.multi_select) {
            (true, _) => "Answer: ",
            (false, false) => "Number, or an answer in your own words: ",
            (false, true) => "Numbers with commas between, or an answer in your own words: ",
        });
        text
    }

    /// Takes a line as the answer.
    pub(super) fn answer(&mut self, line: &str) -> Step {
        let line = line.trim();
        if self.questions.is_empty() {
            return match line.to_lowercase().as_str() {
                "y" | "yes" => Step::Decided(decision(Behavior::Allow, None, None)),
                "n" | "no" => Step::Decided(decision(Behavior::Deny, None, Some(DENIED))),
                _ => Step::Again,
            };
        }
        let Some(answer) = self.questions[0].read(line) else { return Step::Again };
        let question = self.questions.remove(0);
        self.answers.insert(question.text, Value::String(answer));
        if self.questions.is_empty() {
            let answers = std::mem::take(&mut self.answers);
            Step::Decided(decision(Behavior::Allow, serde_json::value::to_raw_value(&answers).ok(), None))
        } else {
            Step::Next
        }
    }

    /// The decision where nobody can be asked.
    pub(super) fn nobody() -> Decision {
        decision(Behavior::Deny, None, Some(NOBODY))
    }
}

impl Question {
    /// A line as an answer: numbers stand for their choices, everything else for itself.
    fn read(&self, line: &str) -> Option<String> {
        if line.is_empty() {
            return None;
        }
        let numbers: Option<Vec<usize>> = line.split(',').map(|part| part.trim().parse().ok()).collect();
        let Some(numbers) = numbers.filter(|_| !self.options.is_empty()) else { return Some(line.to_owned()) };
        if numbers.len() > 1 && !self.multi_select {
            return None;
        }
        let chosen =
            numbers.iter().map(|number| self.options.get(number.checked_sub(1)?).map(|choice| choice.label.as_str()));
        Some(chosen.collect::<Option<Vec<_>>>()?.join(", "))
    }
}

fn decision(behavior: Behavior, answers: Option<Box<RawValue>>, message: Option<&str>) -> Decision {
    Decision { behavior, updated_input: None, answers, message: message.map(ToOwned::to_owned) }
}

#[cfg(test)]
mod tests {
    use ash_client::Behavior;
    use serde_json::json;

    use super::{Asking, Step};

    #[test]
    fn consent_is_yes_or_no() {
        let mut asking = Asking::new("1".into(), "Bash".into(), json!({ "command": "rm -r x" }));
        assert!(asking.text().contains(r#""command": "rm -r x""#), "{}", asking.text());
        for line in ["", "maybe", "yess"] {
            assert!(matches!(asking.answer(line), Step::Again));
        }
        let Step::Decided(decision) = asking.answer(" Y ") else { panic!("no decision") };
        assert_eq!(decision.behavior, Behavior::Allow);
        let Step::Decided(decision) = asking.answer("no") else { panic!("no decision") };
        assert_eq!(decision.behavior, Behavior::Deny);
        assert!(decision.message.is_some());
    }

    #[test]
    fn questions_are_asked_one_by_one() {
        let input = json!({ "questions": [
            { "question": "Which colour?", "options": [{ "label": "Red" }, { "label": "Blue", "description": "as the sky" }] },
            { "question": "Which sizes?", "options": [{ "label": "S" }, { "label": "M" }], "multiSelect": true },
        ]});
        let mut asking = Asking::new("1".into(), "AskUserQuestion".into(), input);
        insta::assert_snapshot!(asking.text(), @"
        Which colour?
          1. Red
          2. Blue – as the sky
        Number, or an answer in your own words:
        ");
        for line in ["", "3", "0", "1,2"] {
            assert!(matches!(asking.answer(line), Step::Again), "{line}");
        }
        assert!(matches!(asking.answer("2"), Step::Next));
        let Step::Decided(decision) = asking.answer("1, 2") else { panic!("no decision") };
        let answers = decision.answers.map(|answers| answers.get().to_owned());
        assert_eq!(answers.as_deref(), Some(r#"{"Which colour?":"Blue","Which sizes?":"S, M"}"#));
    }

    #[test]
    fn a_question_takes_words_too() {
        let input = json!({ "questions": [{ "question": "Which?", "options": [{ "label": "Red" }] }] });
        let mut asking = Asking::new("1".into(), "AskUserQuestion".into(), input);
        let Step::Decided(decision) = asking.answer("green, please") else { panic!("no decision") };
        assert_eq!(
            decision.answers.map(|answers| answers.get().to_owned()).as_deref(),
            Some(r#"{"Which?":"green, please"}"#)
        );
    }
}
