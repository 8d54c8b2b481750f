//! Ids. Each is a type of its own, so that one is never taken for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id: UUID version 7, so that ids made later sort later (RFC 9562, section 5.7).
            #[allow(clippy::new_without_default, reason = "a default id that differs each time would surprise")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id!(
    /// An agent, whatever its name and version.
    AgentId
);
uuid_id!(
    /// A session.
    SessionId
);
uuid_id!(
    /// A sandbox.
    SandboxId
);
uuid_id!(
    /// A turn: the uuid of its user message.
    TurnId
);
uuid_id!(
    /// An API key.
    KeyId
);

impl TurnId {
    /// The turn that an `Idempotency-Key` names within a session: UUID version 5 of the key in the session's namespace, so
    /// that a repeat of the request names the same turn, on any coordinator.
    pub fn from_idempotency_key(session: SessionId, key: &str) -> Self {
        Self(Uuid::new_v5(&session.0, key.as_bytes()))
    }

    /// The turn of an attempt, from 1, at what this turn is the first attempt at: a turn of its own for each, the same one
    /// wherever it is asked for.
    #[must_use]
    pub fn of_attempt(self, attempt: u32) -> Self {
        if attempt <= 1 { self } else { Self(Uuid::new_v5(&self.0, format!("attempt {attempt}").as_bytes())) }
    }
}

/// A tenant: whose something is. Every row of the store names one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub String);

impl TenantId {
    /// The tenant of a server that serves only one.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
