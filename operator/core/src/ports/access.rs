//! Who a Kubernetes token belongs to, and what its bearer may do, as the cluster says it. Standalone there may be none.
//!
//! Tokens and rights are the cluster's own: nobody has to learn a second set of them. Ash's kinds are those of the group
//! `ash.dev`; two more, [`AccessResource::Credentials`] and [`AccessResource::Runners`], are no kinds of the API server and
//! exist in roles only.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use secrecy::SecretString;

/// The audience of tokens for Ash's API. The API server takes no such token, and Ash none without it: neither can use what was
/// given to the other.
pub const ACCESS_AUDIENCE: &str = "ash";

/// The API group of [`AccessResource`], in roles.
pub const ACCESS_GROUP: &str = "ash.dev";

/// What every service account is called by, before `NAMESPACE:NAME`.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Whose token it is: the fields of a `TokenReview` that a `SubjectAccessReview` wants to have back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The user's name; of a service account `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// What tells users of one name apart.
    pub uid: Option<String>,
    /// The user's groups.
    pub groups: Vec<String>,
    /// What else the authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Who {
    /// The namespace and name of a service account; `None` for another user.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty()).then_some((namespace, name))
    }
}

/// What somebody wants to do, in the words of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Make one.
    Create,
    /// Change one, or talk with it.
    Update,
    /// Delete or end one.
    Delete,
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        })
    }
}

/// What somebody wants to do it to: a resource of [`ACCESS_GROUP`], in the words of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessResource {
    /// Agents of a namespace.
    Agents,
    /// Sessions of a namespace.
    Sessions,
    /// Stored credentials of a namespace: in roles only.
    Credentials,
    /// Runners, which have no namespace: in cluster roles only.
    Runners,
}

impl fmt::Display for AccessResource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Agents => "agents",
            Self::Sessions => "sessions",
            Self::Credentials => "credentials",
            Self::Runners => "runners",
        })
    }
}

/// Why the cluster did not say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The API server does not answer. HTTP 503 with `Retry-After`.
    #[error("the Kubernetes API server does not answer: {0}")]
    Unavailable(String),
    /// The API server does not let this server ask. HTTP 503, and a line in the log: its operator has to act.
    #[error(
        "the Kubernetes API server does not let this server review tokens: {0}; its service account needs `create` on \
         tokenreviews.authentication.k8s.io and subjectaccessreviews.authorization.k8s.io (the Helm chart grants both)"
    )]
    Forbidden(String),
}

/// Reviews by the cluster.
#[async_trait]
pub trait AccessReviews: Send + Sync {
    /// Whose token it is, where it is valid for [`ACCESS_AUDIENCE`]; the reason why not otherwise.
    async fn review(&self, token: &SecretString) -> Result<Result<Who, String>, AccessError>;

    /// Whether somebody may do something in a namespace; without one, in the whole cluster.
    async fn may(
        &self,
        who: &Who,
        verb: Verb,
        resource: AccessResource,
        namespace: Option<&str>,
    ) -> Result<bool, AccessError>;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::Who;

    #[test]
    fn service_accounts_have_a_namespace() {
        let who = |user: &str| Who { user: user.to_owned(), uid: None, groups: Vec::new(), extra: BTreeMap::new() };
        assert_eq!(who("system:serviceaccount:team:ci").service_account(), Some(("team", "ci")));
        for user in ["", "ci", "system:serviceaccount:", "system:serviceaccount:team", "system:serviceaccount::ci"] {
            assert_eq!(who(user).service_account(), None, "{user}");
        }
    }
}
