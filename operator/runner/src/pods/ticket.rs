//! Tickets: what a bridge that was proven once proves its next connections with, so that it comes back while the API server is
//! away.
//!
//! A ticket says which sandbox is in which pod on which node, and in which epoch it was given, signed with a key that every life of
//! the runner on the node has. It lets nobody in whom the store does not know: what it names is looked up like what a token names.

use ash_core::{Epoch, id::SandboxId, ports::PodIdentity};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretBox};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::limits::TICKET_SECONDS;

/// What is said to be signed, so that no other use of the key signs a ticket.
const PURPOSE: &[u8] = b"ash bridge ticket 1\n";

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Claims {
    /// The sandbox in the pod.
    pub(crate) sandbox: SandboxId,
    /// The pod, with its node.
    pub(crate) pod: PodIdentity,
    /// The epoch in which its session had it; 0 without one.
    pub(crate) epoch: Epoch,
    /// Seconds since 1970 after which it is worth nothing.
    pub(crate) expires: u64,
}

/// Why a ticket is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TicketError {
    #[error("this is no ticket of this runner: prove the pod with its token")]
    Forged,
    #[error("the ticket has expired: prove the pod with its token")]
    Expired,
    #[error("the ticket is of another node: prove the pod with its token")]
    OtherNode,
}

/// Signs and reads tickets.
pub(crate) struct Tickets {
    key: SecretBox<[u8; 32]>,
    node: String,
}

impl Tickets {
    pub(crate) fn new(key: SecretBox<[u8; 32]>, node: String) -> Self {
        Self { key, node }
    }

    fn mac(&self, payload: &[u8]) -> Option<Hmac<Sha256>> {
        // A key of any length is one for HMAC.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose_secret()).ok()?;
        mac.update(PURPOSE);
        mac.update(payload);
        Some(mac)
    }

    /// A ticket for a pod, for an hour from `now` on (seconds since 1970).
    pub(crate) fn issue(&self, sandbox: SandboxId, pod: &PodIdentity, epoch: Epoch, now: u64) -> Option<String> {
        let claims = Claims { sandbox, pod: pod.clone(), epoch, expires: now.saturating_add(TICKET_SECONDS) };
        let payload = serde_json::to_vec(&claims).ok()?;
        let proof = self.mac(&payload)?.finalize().into_bytes();
        Some(format!("{}.{}", URL_SAFE_NO_PAD.encode(payload), URL_SAFE_NO_PAD.encode(proof)))
    }

    /// What a ticket says, where it is one of this node and has not expired.
    pub(crate) fn read(&self, ticket: &str, now: u64) -> Result<Claims, TicketError> {
        let (payload, proof) = ticket.split_once('.').ok_or(TicketError::Forged)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TicketError::Forged)?;
        let proof = URL_SAFE_NO_PAD.decode(proof).map_err(|_| TicketError::Forged)?;
        let mac = self.mac(&payload).ok_or(TicketError::Forged)?;
        // In constant time.
        mac.verify_slice(&proof).map_err(|_| TicketError::Forged)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TicketError::Forged)?;
        if claims.pod.node != self.node {
            return Err(TicketError::OtherNode);
        }
        if claims.expires <= now {
            return Err(TicketError::Expired);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{Epoch, PodIdentity, SandboxId, SecretBox, TICKET_SECONDS, TicketError, Tickets};

    fn tickets(key: u8, node: &str) -> Tickets {
        Tickets::new(SecretBox::new(Box::new([key; 32])), node.to_owned())
    }

    fn pod(node: &str) -> PodIdentity {
        PodIdentity { namespace: "team".into(), pod: "agent-1".into(), pod_uid: "u-1".into(), node: node.into() }
    }

    const SANDBOX: SandboxId = SandboxId(Uuid::from_u128(7));

    #[test]
    fn a_ticket_holds_for_an_hour_on_its_node_under_its_key() {
        let here = tickets(1, "n1");
        let ticket = here.issue(SANDBOX, &pod("n1"), Epoch(4), 1000).unwrap();
        let claims = here.read(&ticket, 1000 + TICKET_SECONDS - 1).unwrap();
        assert_eq!((claims.sandbox, claims.epoch, &claims.pod), (SANDBOX, Epoch(4), &pod("n1")));
        assert_eq!(here.read(&ticket, 1000 + TICKET_SECONDS), Err(TicketError::Expired));
        assert_eq!(tickets(1, "n2").read(&ticket, 1000), Err(TicketError::OtherNode));
        assert_eq!(tickets(2, "n1").read(&ticket, 1000), Err(TicketError::Forged));
        assert!(ticket.len() < 1024, "it fits a line");
    }

    proptest! {
        #[test]
        fn nothing_but_a_ticket_is_one(text in "\\PC{0,300}") {
            prop_assert_eq!(tickets(1, "n1").read(&text, 0), Err(TicketError::Forged));
        }

        #[test]
        fn a_changed_ticket_is_none(at in 0usize..600, with in any::<u8>()) {
            let here = tickets(1, "n1");
            let ticket = here.issue(SANDBOX, &pod("n1"), Epoch(4), 1000).unwrap();
            let mut bytes = ticket.clone().into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            let changed = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(here.read(&changed, 1000), Err(TicketError::Forged));
        }
    }
}
