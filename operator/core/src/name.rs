//! Names that people give, and what is allowed in them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest name: 63 characters, as a Kubernetes label has (RFC 1123), so that an agent can move to a cluster unrenamed.
pub const MAX_NAME_CHARACTERS: usize = 63;

/// The name of an agent: lower- and upper-case ASCII letters, digits, `-`, `_` and `.`; begins and ends with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentName(String);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name for an agent: use 1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
)]
pub struct InvalidName(String);

impl AgentName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text, MAX_NAME_CHARACTERS) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(text.chars().take(80).collect()))
        }
    }
}

/// Whether a text is written as a name, with so many characters at the most.
pub(crate) fn is_name(text: &str, max_characters: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= max_characters
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| allowed(*byte))
}

impl TryFrom<String> for AgentName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AgentName> for String {
    fn from(name: AgentName) -> Self {
        name.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::AgentName;

    #[test]
    fn names() {
        for good in ["a", "my-agent", "My.Agent_2", &"a".repeat(63)] {
            assert!(good.parse::<AgentName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "../a", "a/b", "ä", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad}");
        }
    }
}
