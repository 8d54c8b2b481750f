//! What a pod's token says of itself. Nothing of it is believed before the API server has reviewed it: it only spares questions
//! whose answer is known.
//!
//! The claims: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#schema-for-service-account-private-claims>.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::limits::EXPIRED_TOKEN_SECONDS;

/// The claims that matter here (RFC 7519, section 4.1).
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    /// Seconds since 1970.
    exp: Option<f64>,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Kubernetes,
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

/// What Kubernetes says in a token of whom it was made for.
#[derive(Default, Deserialize)]
struct Kubernetes {
    /// The pod's node; older API servers do not say it here.
    node: Option<Node>,
}

#[derive(Deserialize)]
struct Node {
    name: String,
}

/// Why a token proves nothing to the runner of this node at this time (seconds since 1970), as far as can be seen without asking
/// anybody.
///
/// # Errors
/// The reason, as a sentence's part.
pub(super) fn look(token: &str, audience: &str, node: &str, now: u64) -> Result<(), String> {
    let claims = claims(token).ok_or("the token is refused: it is no token of a pod")?;
    let is_meant = match &claims.aud {
        Audiences::One(one) => one == audience,
        Audiences::Many(many) => many.iter().any(|one| one == audience),
    };
    if !is_meant {
        return Err("the token is refused: it is not meant for runners".to_owned());
    }
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
    let has_expired = claims.exp.is_some_and(|end| end + (EXPIRED_TOKEN_SECONDS as f64) < now as f64);
    if has_expired {
        return Err("the token is refused: it has expired".to_owned());
    }
    match claims.kubernetes.node {
        Some(of) if of.name != node => Err(elsewhere(&of.name, node)),
        _ => Ok(()),
    }
}

/// What a bridge of another node's pod is told.
pub(super) fn elsewhere(of: &str, node: &str) -> String {
    format!("the pod is on node {of}, this runner serves {node}")
}

/// The claims of a JSON web token: the second of three parts with dots between.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let [_, payload, _] = [parts.next()?, parts.next()?, parts.next()?];
    if parts.next().is_some() {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::{EXPIRED_TOKEN_SECONDS, look};

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    fn refusal(payload: &str) -> Option<String> {
        look(&token(payload), "ash-runner", "n1", 10_000).err()
    }

    #[test]
    fn what_may_prove_a_pod_is_asked_about() {
        for payload in [
            r#"{"aud":["ash-runner"],"exp":10000}"#,
            r#"{"aud":"ash-runner","exp":10000.5,"kubernetes.io":{}}"#,
            r#"{"aud":["other","ash-runner"],"kubernetes.io":{"node":{"name":"n1","uid":"u"},"namespace":"team"}}"#,
        ] {
            assert_eq!(refusal(payload), None, "{payload}");
        }
        let end = 10_000 - EXPIRED_TOKEN_SECONDS;
        assert_eq!(refusal(&format!(r#"{{"aud":"ash-runner","exp":{end}}}"#)), None, "clocks may differ");
    }

    #[test]
    fn what_proves_nothing_for_certain_is_not() {
        for (payload, why) in [
            ("{}", "not meant for runners"),
            (r#"{"aud":["https://kubernetes.default.svc"]}"#, "not meant for runners"),
            (r#"{"aud":"ash-runner","exp":9000}"#, "expired"),
            (r#"{"aud":"ash-runner","exp":-1e300}"#, "expired"),
            (r#"{"aud":"ash-runner","kubernetes.io":{"node":{"name":"n2"}}}"#, "on node n2"),
            (r#"{"aud":7}"#, "no token"),
            ("[]", "no token"),
        ] {
            assert!(refusal(payload).is_some_and(|said| said.contains(why)), "{payload}");
        }
        for text in ["", "nonsense", "a.b", "a.b.c", "a.b.c.d", "..", &format!("{}.x", token("{}"))] {
            assert!(look(text, "ash-runner", "n1", 0).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_looked_at(text in "\\PC{0,200}", payload in "\\PC{0,200}") {
            let _ = look(&text, "ash-runner", "n1", 0);
            let _ = look(&token(&payload), "ash-runner", "n1", 0);
        }
    }
}
