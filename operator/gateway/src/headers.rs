//! Which headers go from the sandbox to the model and back.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

/// Where Claude puts its key.
pub(crate) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers that belong to one connection (RFC 9110, 7.6.1), and those of proxies.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ]
    .contains(name)
}

/// Headers that the gateway decides about; neither a sandbox nor the operator's extra headers set
/// them.
pub(crate) fn is_reserved(name: &HeaderName) -> bool {
    is_hop_by_hop(name) || [HOST, CONTENT_LENGTH, EXPECT, ACCEPT_ENCODING].contains(name)
}

/// Names that a `Connection` header declares to be of this connection only.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

/// What the model gets: the sandbox's headers without its token and without those of its
/// connection, then ours. The body's length follows from the body.
pub(crate) fn to_upstream(from: &HeaderMap, ours: &HeaderMap) -> HeaderMap {
    let dropped = named_by_connection(from);
    let mut headers = HeaderMap::with_capacity(from.len() + ours.len() + 1);
    for (name, value) in from {
        let credential = [X_API_KEY, AUTHORIZATION, COOKIE].contains(name);
        if !credential && !is_reserved(name) && !dropped.contains(name) {
            headers.append(name, value.clone());
        }
    }
    for name in ours.keys() {
        headers.remove(name);
    }
    for (name, value) in ours {
        headers.append(name, value.clone());
    }
    // A compressed stream could not be counted; nothing is decompressed on the way.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// What the sandbox gets: the model's headers without those of its connection, without cookies of
/// the operator's account, and without any that shows a secret.
pub(crate) fn to_sandbox(from: &HeaderMap, shows_secret: impl Fn(&[u8]) -> bool) -> HeaderMap {
    let dropped = named_by_connection(from);
    let mut headers = HeaderMap::with_capacity(from.len());
    for (name, value) in from {
        let kept = !is_hop_by_hop(name) && *name != SET_COOKIE && !dropped.contains(name);
        if kept && !shows_secret(value.as_bytes()) {
            headers.append(name, value.clone());
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_token_is_exchanged_for_the_key() {
        let from = map(&[
            ("x-api-key", "ash-sbx-token"),
            ("authorization", "Bearer ash-sbx-token"),
            ("proxy-authorization", "Basic x"),
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("x-team", "forged"),
            ("anthropic-beta", "a"),
            ("anthropic-beta", "b"),
            ("content-length", "3"),
            ("accept-encoding", "gzip, br"),
        ]);
        let ours = map(&[("x-api-key", "real"), ("x-team", "blue")]);
        let sent = to_upstream(&from, &ours);
        assert_eq!(sent["x-api-key"], "real");
        assert_eq!(sent["x-team"], "blue");
        assert_eq!(sent["accept-encoding"], "identity");
        assert_eq!(sent.get_all("anthropic-beta").iter().count(), 2);
        for name in ["authorization", "proxy-authorization", "connection", "x-private"] {
            assert!(!sent.contains_key(name), "{name}");
        }
        assert_eq!(sent.len(), 5);
    }

    #[test]
    fn the_answer_keeps_what_it_says() {
        let from = map(&[
            ("retry-after", "7"),
            ("request-id", "req_1"),
            ("set-cookie", "a=b"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("x-echo", "the real key"),
            ("transfer-encoding", "chunked"),
        ]);
        let back = to_sandbox(&from, |value| value == b"the real key");
        assert_eq!(back.len(), 2);
        assert_eq!(back["retry-after"], "7");
    }
}
