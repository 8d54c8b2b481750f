//! The version of the protocol and the rule by which two sides agree on one.

use serde::{Deserialize, Serialize};

/// The version that this crate speaks.
///
/// The major number changes when a peer of the old one could misread a frame; the minor when something was added that an
/// older peer may ignore.
pub const CURRENT: ProtocolVersion = ProtocolVersion { major: 1, minor: 3 };

/// The minor version with which bridges stop and continue what is in their sandbox ([`Freeze`](crate::message::Request::Freeze)).
pub const FREEZES: u16 = 3;

/// A version of the protocol between host and bridge, sent by both sides in their first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolVersion {
    /// Incompatible generations.
    pub major: u16,
    /// Additions within a generation.
    pub minor: u16,
}

impl ProtocolVersion {
    /// Whether a peer that speaks `self` knows what came with minor version `minor` of the current generation.
    pub fn knows(self, minor: u16) -> bool {
        self.major == CURRENT.major && self.minor >= minor
    }

    /// Whether a host that speaks `self` can serve a bridge that speaks `bridge`.
    ///
    /// A newer host serves an older bridge of the same generation, because sandboxes outlive the host that started them; an
    /// older host cannot serve a newer bridge.
    pub fn serves(self, bridge: Self) -> bool {
        self.major == bridge.major && bridge.minor <= self.minor
    }
}

#[cfg(test)]
mod tests {
    use super::ProtocolVersion;

    fn version(major: u16, minor: u16) -> ProtocolVersion {
        ProtocolVersion { major, minor }
    }

    #[test]
    fn a_newer_host_serves_an_older_bridge_of_its_generation() {
        assert!(version(1, 3).serves(version(1, 0)));
        assert!(!version(1, 0).serves(version(1, 3)));
        assert!(!version(2, 0).serves(version(1, 9)));
    }
}
