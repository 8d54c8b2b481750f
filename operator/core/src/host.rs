//! Hosts as people and tools name them, and rules that permit them: parsing and matching, without I/O.
//!
//! The API reads an allowlist with this when an agent is deployed, and the gateway when a sandbox asks to connect: what the one
//! accepts the other understands.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest host name, in bytes (RFC 1035).
const MAX_NAME: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035).
const MAX_LABEL: usize = 63;
/// How much of a rule an error shows, in characters.
const MAX_SHOWN: usize = 80;

/// A host as a tool named it: canonical, so that one host has one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A host name: lower case, no trailing dot.
    Name(String),
    /// An address literal.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

impl Host {
    /// Reads a host as it stands in a URL, or says what is wrong with it. Anything that resolvers disagree about is refused: IPv4
    /// in hexadecimal, octal or fewer than four parts, IPv6 with a zone, other characters.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or("the address has no ']'")?;
            if inner.contains('%') {
                return Err("IPv6 zones are not permitted");
            }
            return inner
                .parse::<Ipv6Addr>()
                .map(|address| Self::Address(canonical(IpAddr::V6(address))))
                .map_err(|_| "not an IPv6 address");
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Address(IpAddr::V4(address)));
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err("a host name has 1 to 253 characters");
        }
        let mut last = "";
        for label in name.split('.') {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if label.is_empty() || label.len() > MAX_LABEL || !label.bytes().all(plain) {
                return Err("not a host name (write other scripts as xn--)");
            }
            last = label;
        }
        // URL parsers read every name that ends in a number as IPv4, in many notations.
        let hexadecimal = last
            .strip_prefix("0x")
            .or_else(|| last.strip_prefix("0X"))
            .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("write an IPv4 address as four decimal numbers");
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }
}

/// Where a tunnel shall lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The TCP port, never 0.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

impl Target {
    /// Reads the target of a CONNECT request (`host:port`), or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.contains('@') {
            return Err("a user name is not permitted in the target");
        }
        let (host, port) = text.rsplit_once(':').ok_or("the target has no port")?;
        let port = parse_port(port).ok_or("not a port (1 to 65535)")?;
        Ok(Self { host: Host::parse(host)?, port })
    }
}

fn parse_port(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse::<u16>().ok().filter(|port| *port != 0)
}

/// The IPv4 address behind a mapped or translated one; the address itself otherwise. Networks of
/// a configuration are compared with this, so that a cluster's range is met in every spelling.
pub fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => address,
    }
}

/// A rule that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot read the host rule {rule:?}: {reason}; write name, *.name or an address, with :port, :port,port or :* behind it"
)]
pub struct RuleError {
    /// The beginning of the rule as given.
    pub rule: String,
    /// What is wrong.
    pub reason: &'static str,
}

/// The hosts that a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    One(Host),
    /// Every name below this one, at any depth, not the name itself.
    Below(String),
}

/// Which ports a rule permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every port.
    Any,
    /// These.
    Only(Vec<u16>),
}

impl Ports {
    fn contains(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ports) => ports.contains(&port),
        }
    }
}

/// One permitted host: `name`, `*.name` or an address, with `:port`, `:port,port` or `:*`.
/// Without ports: 443.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    pattern: Pattern,
    ports: Ports,
}

impl HostRule {
    /// Whether the rule permits this target.
    pub fn matches(&self, target: &Target) -> bool {
        if !self.ports.contains(target.port) {
            return false;
        }
        match (&self.pattern, &target.host) {
            (Pattern::One(host), target) => host == target,
            (Pattern::Below(parent), Host::Name(name)) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Pattern::Below(_), Host::Address(_)) => false,
        }
    }
}

impl FromStr for HostRule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let failed = |reason| RuleError { rule: text.chars().take(MAX_SHOWN).collect(), reason };
        let (host, ports) = match text.rsplit_once(':') {
            // The colon of an IPv6 literal without ports stands before the bracket.
            Some((host, ports)) if !ports.contains(']') => (host, Some(ports)),
            _ => (text, None),
        };
        let ports = match ports {
            None => Ports::Only(vec![443]),
            Some("*") => Ports::Any,
            Some(list) => Ports::Only(
                list.split(',')
                    .map(|port| parse_port(port).ok_or_else(|| failed("ports are 1 to 65535 or *")))
                    .collect::<Result<_, _>>()?,
            ),
        };
        let pattern = match host.strip_prefix("*.") {
            None => Pattern::One(Host::parse(host).map_err(failed)?),
            Some(parent) => match Host::parse(parent).map_err(failed)? {
                Host::Name(name) => Pattern::Below(name),
                Host::Address(_) => return Err(failed("* stands before a name only")),
            },
        };
        Ok(Self { pattern, ports })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> Result<Target, &'static str> {
        Target::parse(text)
    }

    #[test]
    fn one_spelling_for_one_host() {
        for (text, expected) in [
            ("GitHub.com:443", "github.com:443"),
            ("github.com.:443", "github.com:443"),
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("1.2.3.4.:80", "1.2.3.4:80"),
            ("[::1]:22", "[::1]:22"),
            ("[0:0:0:0:0:0:0:1]:22", "[::1]:22"),
            ("[::ffff:10.0.0.1]:22", "10.0.0.1:22"),
            ("my_host-1:8080", "my_host-1:8080"),
        ] {
            assert_eq!(target(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn odd_literals_are_refused() {
        for text in [
            "2130706433:80",
            "0x7f000001:80",
            "0X7F000001:80",
            "0x7f.1:80",
            "127.1:80",
            "0177.0.0.1:80",
            "127.0.0.0x1:80",
            "0x:80",
            "1.2.3.4.5:80",
            "256.0.0.1:80",
            "127.0.0.01:80",
            "::1:80",
            "[fe80::1%25eth0]:80",
            "[fe80::1%eth0]:80",
            "[::1:80",
            "user@example.com:443",
            "user:password@example.com:443",
            "example.com",
            "example.com:",
            "example.com:0",
            "example.com:65536",
            "example.com:+443",
            "example..com:443",
            ".example.com:443",
            ".:443",
            ":443",
            "exa%6dple.com:443",
            "exämple.com:443",
        ] {
            assert!(target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rules() {
        for (rule, text, expected) in [
            ("github.com", "github.com:443", true),
            ("github.com", "GITHUB.COM.:443", true),
            ("github.com", "github.com:22", false),
            ("github.com", "api.github.com:443", false),
            ("github.com:22,443", "github.com:22", true),
            ("github.com:*", "github.com:9", true),
            ("*.github.com", "api.github.com:443", true),
            ("*.github.com", "a.b.github.com:443", true),
            ("*.github.com", "github.com:443", false),
            ("*.github.com", "evilgithub.com:443", false),
            ("*.github.com", "github.com.evil.org:443", false),
            ("10.0.0.1:5432", "10.0.0.1:5432", true),
            ("10.0.0.1:5432", "[::ffff:10.0.0.1]:5432", true),
            ("[fd00::1]", "[fd00:0::1]:443", true),
            ("[fd00::1]:80", "[fd00::1]:80", true),
        ] {
            let parsed: HostRule = rule.parse().unwrap();
            assert_eq!(parsed.matches(&target(text).unwrap()), expected, "{rule} {text}");
        }
        for rule in ["", "*", "*.", "*.*.com", "a b", "github.com:x", "github.com:0", "*.10.0.0.1"] {
            assert!(rule.parse::<HostRule>().is_err(), "{rule}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_canonical(text in "[\\[\\]0-9a-fA-Fx.:%_-]{0,40}") {
            if let Ok(host) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(&host.to_string()), Ok(host));
            }
        }
    }
}
