//! What a token says of itself. Nothing of it is believed before the cluster has reviewed it: it only spares questions whose
//! answer is known, and keeps an answer no longer than its token is valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The longest token that is looked at. Kubernetes' own have about 1 KiB.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// The claims that matter here (RFC 7519, section 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Whom it is for.
    pub(crate) audiences: Vec<String>,
    /// When it ends, in seconds since 1970.
    expires: Option<u64>,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    aud: Audiences,
    exp: Option<f64>,
}

/// One audience or many: RFC 7519, section 4.1.3.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Claims {
    /// The claims of a JSON web token: three parts in base64url with dots between, of which the second is a JSON object. `None`
    /// for anything else, such as an API key.
    pub(super) fn read(token: &str) -> Option<Self> {
        let url_safe = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let mut parts = token.split('.');
        let [header, payload, signature] = [parts.next()?, parts.next()?, parts.next()?];
        if token.len() > MAX_TOKEN_BYTES
            || parts.next().is_some()
            || ![header, payload, signature].into_iter().all(url_safe)
        {
            return None;
        }
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
        let Payload { aud, exp } = serde_json::from_slice(&payload).ok()?;
        let audiences = match aud {
            Audiences::One(audience) => vec![audience],
            Audiences::Many(audiences) => audiences,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast saturates; below 0 is long ago"
        )]
        Some(Self { audiences, expires: exp.map(|seconds| seconds as u64) })
    }

    /// How long the token is valid still; for ever where it does not say.
    pub(super) fn remaining(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires.map_or(Duration::MAX, |end| Duration::from_secs(end).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::{Claims, MAX_TOKEN_BYTES};

    fn token(payload: &str) -> String {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(r#"{"alg":"RS256"}"#), part(payload), part("signature"))
    }

    #[test]
    fn claims_are_read() {
        let one = Claims::read(&token(r#"{"aud":"ash"}"#)).unwrap();
        assert_eq!((one.audiences.as_slice(), one.remaining()), (&["ash".to_owned()][..], Duration::MAX));
        let many = Claims::read(&token(r#"{"aud":["a","ash"],"exp":1000,"iss":"x"}"#)).unwrap();
        assert_eq!((many.audiences.len(), many.remaining()), (2, Duration::ZERO));
        assert!(Claims::read(&token(r#"{"exp":1e300}"#)).unwrap().remaining() > Duration::from_secs(1 << 40));
    }

    #[test]
    fn api_keys_are_no_tokens() {
        let long = token(&format!(r#"{{"aud":"{}"}}"#, "x".repeat(MAX_TOKEN_BYTES)));
        for text in [
            "",
            "ash_abc",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "..",
            &token("no JSON"),
            &token("[]"),
            &token("{}").replace('.', "!"),
            &long,
        ] {
            assert_eq!(Claims::read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_read(text in "\\PC{0,200}", payload in "\\PC{0,200}") {
            let _ = Claims::read(&text);
            let _ = Claims::read(&token(&payload));
        }
    }
}
