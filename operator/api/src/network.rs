//! Where an agent's sandboxes may connect to, as a deployment says it.

use ash_core::{
    agent::NetworkPolicy,
    host::{HostRule, RuleError},
};

use crate::{
    error::ApiError,
    fields::{Fields, invalid},
};

/// Hosts that an allowlist may have.
const MAX_HOSTS: usize = 256;

/// The longest rule: a host name (RFC 1035, section 2.3.4) and a hundred ports or so.
const MAX_HOST_BYTES: usize = 1024;

/// The policy in the field `network`: `{"mode": "model" | "public"}` or `{"mode": "allowlist", "hosts": [...]}`; the default
/// where there is none.
pub(crate) fn policy(fields: &Fields<'_>) -> Result<NetworkPolicy, ApiError> {
    let policy: NetworkPolicy = fields.get("network")?.unwrap_or_default();
    if let NetworkPolicy::Allowlist { hosts } = &policy {
        if hosts.len() > MAX_HOSTS {
            return Err(invalid("network", &format!("more than {MAX_HOSTS} hosts")));
        }
        let invalid = |error: RuleError| invalid("network", &error.to_string());
        hosts.iter().try_for_each(|host| check(host)).map_err(invalid)?;
    }
    Ok(policy)
}

fn check(host: &str) -> Result<(), RuleError> {
    if host.len() > MAX_HOST_BYTES {
        return Err(RuleError { rule: host.chars().take(80).collect(), reason: "it is too long" });
    }
    host.parse::<HostRule>().map(drop)
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn hosts() {
        for host in [
            "github.com",
            "*.github.com",
            "github.com:22",
            "github.com:22,443",
            "*.a.b:*",
            "10.0.0.1:80",
            "[fd00::1]:80",
        ] {
            assert!(check(host).is_ok(), "{host}");
        }
        let long = format!("x:{}", "1,".repeat(600));
        for host in
            ["", "*", "a..b", "http://x", "x:0", "x:y", "x:99999", "a.*.b", "a b", "127.1", "0x7f.1", "a/b", &long]
        {
            assert!(check(host).is_err(), "{host}");
        }
    }
}
