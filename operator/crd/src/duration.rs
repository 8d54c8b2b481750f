//! Lengths of time as a manifest writes them: `90s`, `15m`, `1h30m`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The longest text, as the schema has it: three numbers of six digits with their units.
const MAX_CHARACTERS: usize = 21;

/// A length of time in whole seconds. Written back as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    text: String,
    seconds: u64,
}

/// Why a text is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no length of time: use whole hours, minutes and seconds, such as 90s, 15m or 1h30m")]
pub struct InvalidDuration(String);

impl Duration {
    /// So many seconds.
    pub fn from_secs(seconds: u64) -> Self {
        Self { text: format!("{seconds}s"), seconds }
    }

    /// So many minutes.
    pub fn from_minutes(minutes: u64) -> Self {
        Self { text: format!("{minutes}m"), seconds: minutes.saturating_mul(60) }
    }

    /// As the standard library has it.
    pub fn to_std(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.seconds)
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDuration(text.chars().take(80).collect());
        if text.is_empty() || text.len() > MAX_CHARACTERS {
            return Err(invalid());
        }
        let mut seconds = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().ok().filter(|_| digits <= 6).ok_or_else(invalid)?;
            let unit = match rest.as_bytes().get(digits) {
                Some(b'h') => 3600,
                Some(b'm') => 60,
                Some(b's') => 1,
                _ => return Err(invalid()),
            };
            // Three numbers of six digits: far from the bounds of the type.
            seconds += number * unit;
            rest = &rest[digits + 1..];
        }
        Ok(Self { text: text.to_owned(), seconds })
    }
}

impl TryFrom<String> for Duration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.text
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": MAX_CHARACTERS })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::Duration;

    #[test]
    fn lengths() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("1h1m1s", 3661)] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!((duration.to_std().as_secs(), duration.to_string()), (seconds, text.to_owned()));
        }
        for bad in ["", "s", "15", "-1s", "1d", "1.5h", "1h ", "1234567s", "ä", "1ä", "15M"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in ".*") {
            let _ = text.parse::<Duration>();
        }

        #[test]
        fn seconds_round_trip(seconds in 0_u64..1_000_000) {
            let text = Duration::from_secs(seconds).to_string();
            prop_assert_eq!(text.parse::<Duration>().unwrap().to_std().as_secs(), seconds);
        }
    }
}
