//! Where an agent's sandboxes may connect to, as a deployment says it.

use ash_core::agent::NetworkPolicy;

use crate::{
    error::ApiError,
    fields::{Fields, invalid},
};

/// Hosts that an allowlist may have.
const MAX_HOSTS: usize = 256;

/// The longest host name (RFC 1035, section 2.3.4) with a port.
const MAX_HOST_BYTES: usize = 253 + 6;

/// The policy in the field `network`: `{"mode": "model" | "public"}` or `{"mode": "allowlist", "hosts": [...]}`; the default
/// where there is none.
pub(crate) fn policy(fields: &Fields<'_>) -> Result<NetworkPolicy, ApiError> {
    let policy: NetworkPolicy = fields.get("network")?.unwrap_or_default();
    if let NetworkPolicy::Allowlist { hosts } = &policy {
        if hosts.len() > MAX_HOSTS {
            return Err(invalid("network", &format!("more than {MAX_HOSTS} hosts")));
        }
        if let Some(host) = hosts.iter().find(|host| !is_host(host)) {
            let host: String = host.chars().take(80).collect();
            let reason = format!("{host:?} is no host: use name, *.name, name:port or *.name:port");
            return Err(invalid("network", &reason));
        }
    }
    Ok(policy)
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let valid_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    let name = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |part: &str| {
        (1..=63).contains(&part.len())
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= MAX_HOST_BYTES && valid_port && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::is_host;

    #[test]
    fn hosts() {
        for host in ["github.com", "*.github.com", "github.com:22", "*.a.b:8443", "localhost", "10.0.0.1:80"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", "*", "a..b", "http://x", "x:0", "x:y", "x:99999", "a.*.b", "a b", "-a", "[::1]", "a/b"] {
            assert!(!is_host(host), "{host}");
        }
    }
}
