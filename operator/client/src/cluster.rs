//! A server in a cluster: what a client asks of the way to it, and what can go wrong there.

use std::fmt;

use async_trait::async_trait;
use secrecy::SecretString;

/// The way to a server in a cluster.
#[async_trait]
pub(crate) trait Way: fmt::Debug + Send + Sync {
    /// A token for the next request.
    async fn token(&self) -> Result<SecretString, ClusterError>;

    /// The server took the token for none: the next one is asked for anew.
    fn refused(&self);

    /// Why connections fail at present, where the way knows it.
    fn trouble(&self) -> Option<ClusterError>;
}

/// Why a server in a cluster cannot be reached, or no token be had for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// No kubeconfig can be read.
    #[error("no kubeconfig can be used: {0}")]
    Kubeconfig(String),
    /// The kubeconfig has no such context.
    #[error("the kubeconfig has no context {name:?}")]
    NoContext {
        /// The one that was named.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The API server does not answer.
    #[error("the cluster does not answer: {0}")]
    Unreachable(String),
    /// The API server does not know the person.
    #[error("the cluster does not know you: {0}")]
    Unknown(String),
    /// The person may not do what is needed.
    #[error("you may not {verb} {resource} in the namespace {namespace}: {reason}")]
    Forbidden {
        /// The verb of a role.
        verb: &'static str,
        /// The resource of a role.
        resource: &'static str,
        /// Where.
        namespace: String,
        /// What the API server said.
        reason: String,
    },
    /// There is no account to speak for.
    #[error("there is no service account {name} in the namespace {namespace}")]
    NoServiceAccount {
        /// Where.
        namespace: String,
        /// The account.
        name: String,
    },
    /// Ash is not where it is looked for.
    #[error("there is no Service {name} in the namespace {namespace}")]
    NoService {
        /// Where.
        namespace: String,
        /// The Service.
        name: String,
    },
    /// The Service has no pod that could be talked with.
    #[error("no pod behind the Service {name} in the namespace {namespace} is ready")]
    NoReadyPod {
        /// Where.
        namespace: String,
        /// The Service.
        name: String,
    },
    /// The Service says no port that a connection can be forwarded to.
    #[error("the Service {name} in the namespace {namespace} has no port of its pods: {reason}")]
    NoPort {
        /// Where.
        namespace: String,
        /// The Service.
        name: String,
        /// What is missing.
        reason: String,
    },
    /// A connection to a pod could not be made, or broke.
    #[error("the connection through the cluster to pod {pod} failed: {reason}")]
    Forward {
        /// The pod.
        pod: String,
        /// What was said.
        reason: String,
    },
    /// The server took the token for none.
    #[error("the server does not take your token: {0}")]
    TokenRefused(String),
    /// This machine gives no port to listen on.
    #[error("no port of this machine can be listened on: {0}")]
    Listen(String),
}

impl ClusterError {
    /// What the person can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Kubeconfig(_) => "name a file in KUBECONFIG, or put it at ~/.kube/config".to_owned(),
            Self::NoContext { known, .. } if known.is_empty() => "it has none at all: which file does KUBECONFIG name?".to_owned(),
            Self::NoContext { known, .. } => format!("it has {} (--context or ASH_CONTEXT)", known.join(", ")),
            Self::Unreachable(_) => "does `kubectl get --raw=/readyz` answer with the same context?".to_owned(),
            Self::Unknown(_) => "does `kubectl auth whoami` say who you are with the same context? You may have to log in again".to_owned(),
            Self::Forbidden { verb, resource, namespace, .. } => format!(
                "`kubectl auth can-i {verb} {resource} --namespace {namespace}` shows it; have a Role with it bound to you, or name \
                 another namespace"
            ),
            Self::NoServiceAccount { namespace, name } => format!(
                "make it with `kubectl create serviceaccount {name} --namespace {namespace}` and bind it a Role for agents and \
                 sessions of ash.dev (the Helm chart makes ash-client), or name another with --service-account or --namespace"
            ),
            Self::NoService { .. } => {
                "where is Ash installed? Say so with --release-namespace and --release-service, or give its address with --url".to_owned()
            }
            Self::NoReadyPod { namespace, .. } => format!("`kubectl get pods --namespace {namespace}` shows what they wait for"),
            Self::NoPort { .. } => "is that the Service of Ash's API? Say which with --release-service".to_owned(),
            Self::Forward { .. } => "try again; another pod is taken where there is one".to_owned(),
            Self::TokenRefused(_) => {
                "does the server take tokens of this cluster (`ash serve --kubernetes-auth`)? Without that, use --url and --api-key".to_owned()
            }
            Self::Listen(_) => "are there too many open files or connections?".to_owned(),
        }
    }

    /// Whether the same can succeed later without anybody changing anything.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::NoReadyPod { .. } | Self::Forward { .. })
    }
}
