//! Values on the command line and in the config file: how they are written.

use std::{convert::Infallible, fmt, str::FromStr, time::Duration};

use jiff::SignedDuration;
use secrecy::SecretString;
use serde_json::{Map, Value};

/// A secret: never printed, not even where it is refused.
#[expect(clippy::unnecessary_wraps, reason = "clap asks for a result")]
pub(crate) fn secret(text: &str) -> Result<SecretString, Infallible> {
    Ok(text.into())
}

/// A span of time: `90s`, `15m`, `1h30m`, or seconds alone. Not negative.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || "write it like 30s, 15m or 1h30m".to_owned();
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let duration: SignedDuration = text.parse().map_err(|_| invalid())?;
    Duration::try_from(duration).map_err(|_| invalid())
}

/// A number of bytes: `512MiB`, `2GiB`, `2G` (the same), or bytes alone. At least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(u64);

impl Size {
    /// How many bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "ki" | "kib" => 10,
            "m" | "mi" | "mib" => 20,
            "g" | "gi" | "gib" => 30,
            "t" | "ti" | "tib" => 40,
            _ => return Err("write it like 512MiB or 2GiB".to_owned()),
        };
        let number: u64 = number.parse().map_err(|_| "write it like 512MiB or 2GiB".to_owned())?;
        number
            .checked_mul(1 << shift)
            .filter(|bytes| *bytes > 0)
            .map(Self)
            .ok_or_else(|| "it is 0 or too large".to_owned())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")]
            .into_iter()
            .find(|(shift, _)| self.0.trailing_zeros() >= *shift && self.0 > 0)
            .unwrap_or((0, ""));
        write!(formatter, "{}{unit}", self.0 >> shift)
    }
}

/// The smallest memory of a sandbox: with less, none starts.
const SMALLEST_MEMORY: Size = Size(8 << 20);

/// Memory of a sandbox: a [`Size`] of at least 8 MiB.
pub(crate) fn memory(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size.bytes() < SMALLEST_MEMORY.bytes() {
        return Err(format!("no sandbox starts with less than {SMALLEST_MEMORY}: give more, such as 2GiB"));
    }
    Ok(size)
}

/// Memory for what sessions wrote and the log has not: a [`Size`] in which the longest line fits.
pub(crate) fn log_memory(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size.bytes() < ash_runner::MIN_LOG_MEMORY_BYTES {
        let least = Size(ash_runner::MIN_LOG_MEMORY_BYTES.div_ceil(1 << 20) << 20);
        return Err(format!("the longest line of Claude Code has to fit: give {least} or more"));
    }
    Ok(size)
}

/// Processors, in parts: `0.5`, `2`. From 0.01, which is the least that a control group takes, to 1024; counted in thousandths.
pub(crate) fn processors(text: &str) -> Result<u32, String> {
    let number: f64 = text.parse().map_err(|_| "write it like 2 or 0.5".to_owned())?;
    if !(0.01..=1024.0).contains(&number) {
        return Err("it has to be between 0.01 and 1024".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 10 and 1,024,000")]
    Ok((number * 1000.0).round() as u32)
}

/// `KEY=VALUE`, or `KEY` with the value that the variable has here (so that a secret is in no list of processes).
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, std::env::var(text).map_err(|_| format!("{text} is not set here; write {text}=VALUE"))?),
    };
    if name.is_empty() { Err("write it like KEY=VALUE".to_owned()) } else { Ok((name.to_owned(), value)) }
}

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "write it like KEY=VALUE".to_owned())
}

/// A JSON object.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::{Size, duration, log_memory, memory, pair, processors, variable};

    #[test]
    fn durations() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1h30m").unwrap(), Duration::from_mins(90));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        for text in ["", "-1s", "soon", "1 fortnight"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("512MiB", 512 << 20), ("2G", 2 << 30), ("1 KiB", 1024)] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "0", "MiB", "1.5GiB", "99999999999TiB", "-1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["1", "512MiB", "2GiB", "1025", "3KiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn memory_with_which_no_sandbox_starts_is_refused() {
        assert_eq!(memory("8MiB").unwrap().bytes(), 8 << 20);
        for text in ["5", "8191KiB"] {
            assert!(memory(text).unwrap_err().contains("less than 8MiB"), "{text}");
        }
        assert!(memory("much").is_err());
    }

    #[test]
    fn memory_in_which_a_line_does_not_fit_is_refused() {
        assert_eq!(log_memory("65MiB").unwrap().bytes(), 65 << 20);
        for text in ["64MiB", "1"] {
            assert!(log_memory(text).unwrap_err().contains("65MiB"), "{text}");
        }
    }

    #[test]
    fn processors_are_counted_in_thousandths() {
        assert_eq!(processors("1.5").unwrap(), 1500);
        assert_eq!(processors("0.01").unwrap(), 10);
        for text in ["0", "0.009", "-1", "NaN", "inf", "2000"] {
            assert!(processors(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert!(pair("a").is_err() && pair("=b").is_err());
        assert_eq!(variable("A=").unwrap(), ("A".to_owned(), String::new()));
        assert_eq!(variable("CARGO_PKG_NAME").unwrap().1, "ash");
        assert!(variable("THIS_IS_NOT_SET").is_err());
    }
}
