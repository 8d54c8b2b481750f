//! Text for a terminal: without control characters, in few colours.

use std::borrow::Cow;

/// The text without control characters but line breaks and tabs. What agents and tools write must not drive the terminal
/// (move its cursor, set its clipboard or title).
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let drives = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if text.contains(drives) { Cow::Owned(text.replace(drives, "")) } else { Cow::Borrowed(text) }
}

/// The text on one line of at most `characters` characters.
pub(crate) fn short(text: &str, characters: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = printable(&line);
    if line.chars().count() <= characters {
        line.into_owned()
    } else {
        line.chars().take(characters.saturating_sub(1)).chain(['…']).collect()
    }
}

/// Colours, where there is a terminal and nobody said `NO_COLOR`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// The style of a stream that is a terminal or is not. Source of `NO_COLOR`: no-color.org.
    pub(crate) fn new(terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: terminal && !refused }
    }

    /// No colours.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::{printable, short};

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(printable("a\x1b]52;c;eA==\x07b\r\n\tc\u{9b}2J"), "a]52;c;eA==b\n\tc2J");
        assert_eq!(printable("plain"), "plain");
    }

    #[test]
    fn one_line() {
        assert_eq!(short("a\n  b\tc", 10), "a b c");
        assert_eq!(short("äöüäöü", 4), "äöü…");
    }
}
