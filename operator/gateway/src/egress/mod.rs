//! What a sandbox may reach through its proxy: the decisions, without I/O.
//!
//! Two questions, in this order: does the policy admit the host by name and port, and does every
//! address of that host lie where sandboxes may go. A connection is made to exactly the addresses
//! that were checked; no name is resolved twice.

mod address;
pub(crate) mod resolve;
mod rule;
pub(crate) mod tunnel;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use address::{AddressClass, classify};
pub use resolve::{Resolve, SystemResolver};
pub use rule::{Host, HostRule, Network, Ports, RuleError, Target};

use crate::id::{Epoch, SandboxId, SessionId, TenantId};

/// What a session's sandbox may reach besides the model API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EgressPolicy {
    /// Nothing.
    Model,
    /// These hosts, where their addresses are public.
    Allowlist(Vec<HostRule>),
    /// Every public address, every port.
    #[default]
    Public,
}

/// What the operator permits beyond public addresses. It lifts the check of the address; whether
/// a session may reach the host at all is still its policy's decision.
#[derive(Clone, Debug, Default)]
pub struct OperatorAllow {
    /// Hosts whose addresses are not checked.
    pub hosts: Vec<HostRule>,
    /// Networks that count as public, on every port.
    pub networks: Vec<Network>,
}

/// The egress proxy's configuration, the same for every sandbox.
#[derive(Clone)]
pub struct EgressConfig {
    /// Exceptions.
    pub allow: OperatorAllow,
    /// Networks that are never reached although public: those of the cluster and of the host.
    pub forbidden: Vec<Network>,
    /// Where names are looked up.
    pub resolver: Arc<dyn Resolve>,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self { allow: OperatorAllow::default(), forbidden: Vec::new(), resolver: Arc::new(SystemResolver) }
    }
}

/// Why a host was refused. The words are for the tool in the sandbox and the session's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The target cannot be read; says why.
    Malformed(&'static str),
    /// The session may reach the model only.
    ModelOnly,
    /// The host and port are not on the session's list.
    NotListed,
    /// An address of the host is not public.
    NotPublic(IpAddr, AddressClass),
    /// An address of the host lies in a network that the operator forbids.
    Forbidden(IpAddr),
    /// An address of the host is this server's own.
    OwnAddress(IpAddr),
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => formatter.write_str(why),
            Self::ModelOnly => formatter.write_str("this agent may reach the model only (egress mode model)"),
            Self::NotListed => formatter.write_str("host and port are not on this agent's egress allowlist"),
            Self::NotPublic(address, class) => {
                write!(formatter, "{address} is not a public address ({class})")
            }
            Self::Forbidden(address) => {
                write!(formatter, "{address} is in a network that the operator forbids")
            }
            Self::OwnAddress(address) => {
                write!(formatter, "{address} is an address of the server itself")
            }
        }
    }
}

/// A host that a tool wanted to reach and may not.
#[derive(Clone, Debug)]
pub struct EgressRefusal {
    /// Whose session.
    pub tenant: TenantId,
    /// Which session.
    pub session: SessionId,
    /// Under which claim.
    pub epoch: Epoch,
    /// From which sandbox.
    pub sandbox: SandboxId,
    /// `host:port` as the tool gave it, printable, at most 256 bytes.
    pub target: String,
    /// Why.
    pub reason: RefusalReason,
}

/// Takes refused hosts, for the session's log. Called from a connection's task: it must not block.
/// At most 20 per minute and binding; the rest is only counted.
pub trait EgressSink: Send + Sync + 'static {
    /// A host was refused.
    fn refused(&self, refusal: EgressRefusal);
}

/// Whether a host may be looked up at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// The operator has named this host: its addresses are not checked.
    pub(crate) exempt: bool,
}

/// The first question: policy, host and port.
pub(crate) fn admit(policy: &EgressPolicy, allow: &OperatorAllow, target: &Target) -> Result<Admitted, RefusalReason> {
    match policy {
        EgressPolicy::Model => return Err(RefusalReason::ModelOnly),
        EgressPolicy::Allowlist(rules) => {
            if !rules.iter().any(|rule| rule.matches(target)) {
                return Err(RefusalReason::NotListed);
            }
        }
        EgressPolicy::Public => {}
    }
    Ok(Admitted { exempt: allow.hosts.iter().any(|rule| rule.matches(target)) })
}

/// The second question: one address of an admitted host. A host is refused as soon as one of its
/// addresses is: an answer that mixes public and private ones is how rebinding starts.
pub(crate) fn check_address(config: &EgressConfig, address: IpAddr) -> Result<(), RefusalReason> {
    let within = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
    if within(&config.allow.networks) {
        return Ok(());
    }
    if within(&config.forbidden) {
        return Err(RefusalReason::Forbidden(address));
    }
    match classify(address) {
        AddressClass::Public => Ok(()),
        class => Err(RefusalReason::NotPublic(address, class)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    #[test]
    fn the_mode_decides_first() {
        let allow = OperatorAllow { hosts: vec!["git.internal:22".parse().unwrap()], networks: Vec::new() };
        let listed = EgressPolicy::Allowlist(vec!["*.example.org".parse().unwrap()]);
        let git = target("git.internal:22");
        assert_eq!(admit(&EgressPolicy::Model, &allow, &git), Err(RefusalReason::ModelOnly));
        assert_eq!(admit(&listed, &allow, &git), Err(RefusalReason::NotListed));
        assert_eq!(admit(&EgressPolicy::Public, &allow, &git), Ok(Admitted { exempt: true }));
        assert_eq!(admit(&listed, &allow, &target("a.example.org:443")), Ok(Admitted { exempt: false }));
    }

    #[test]
    fn networks_of_the_operator_come_before_the_classes() {
        let config = EgressConfig {
            allow: OperatorAllow { hosts: Vec::new(), networks: vec!["10.1.0.0/16".parse().unwrap()] },
            forbidden: vec!["34.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
            ..EgressConfig::default()
        };
        let check = |text: &str| check_address(&config, text.parse().unwrap());
        assert_eq!(check("10.1.2.3"), Ok(()));
        assert_eq!(check("::ffff:10.1.2.3"), Ok(()));
        assert!(matches!(check("34.1.1.1"), Err(RefusalReason::Forbidden(_))));
        assert!(matches!(check("64:ff9b::34.1.1.1"), Err(RefusalReason::Forbidden(_))));
        assert!(matches!(check("127.0.0.1"), Err(RefusalReason::NotPublic(..))));
        assert_eq!(check("1.1.1.1"), Ok(()));
    }
}
