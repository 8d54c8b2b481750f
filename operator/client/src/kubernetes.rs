//! The way to a server in a cluster: through the API server, with nothing but a kubeconfig.
//!
//! Whoever may ask the API server for a token of a service account speaks for that account. So people with client
//! certificates need no other login, and no token that the API server takes ever reaches Ash.

mod forward;
mod target;
mod token;

use std::sync::Arc;

use async_trait::async_trait;
use kube::{
    Client as Kube, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use secrecy::SecretString;

use crate::{
    Client, Error,
    cluster::{ClusterError, Way},
};
use forward::Forward;
use target::Service;
use token::Tokens;

/// The service account that the Helm chart makes for people.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "ash-client";

/// The namespace that Ash is installed in by default.
pub const DEFAULT_RELEASE_NAMESPACE: &str = "ash-system";

/// The Service of Ash's API.
pub const DEFAULT_RELEASE_SERVICE: &str = "ash";

/// Which cluster, and who to be there.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The kubeconfig's context; its current one otherwise.
    pub context: Option<String>,
    /// The namespace: whose agents and sessions are meant, and where the service account is. The context's otherwise.
    pub namespace: Option<String>,
    /// The service account to speak for.
    pub service_account: String,
    /// The namespace that Ash is installed in.
    pub release_namespace: String,
    /// The Service of its API there.
    pub release_service: String,
    /// The server's address, where it can be reached without the API server; then nothing is forwarded.
    pub url: Option<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            context: None,
            namespace: None,
            service_account: DEFAULT_SERVICE_ACCOUNT.to_owned(),
            release_namespace: DEFAULT_RELEASE_NAMESPACE.to_owned(),
            release_service: DEFAULT_RELEASE_SERVICE.to_owned(),
            url: None,
        }
    }
}

/// A token of its own, and a port where one is forwarded.
#[derive(Debug)]
struct Cluster {
    tokens: Tokens,
    forward: Option<Forward>,
}

#[async_trait]
impl Way for Cluster {
    async fn token(&self) -> Result<SecretString, ClusterError> {
        self.tokens.token().await
    }

    fn refused(&self) {
        self.tokens.forget();
    }

    fn trouble(&self) -> Option<ClusterError> {
        self.forward.as_ref()?.trouble()
    }
}

impl Client {
    /// A client of the server in a cluster: with tokens of a service account, renewed as they end, and through a port of this
    /// machine that leads to a ready pod of the server, and to another when that one goes. Both live as long as the client and
    /// its clones, on the runtime that this is called on.
    pub async fn in_cluster(options: ClusterOptions) -> Result<Self, Error> {
        // Fails only where a provider is there already, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = config(options.context).await?;
        let namespace = options.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let kube = Kube::try_from(config).map_err(|error| ClusterError::Kubeconfig(error.to_string()))?;
        let tokens = Tokens::new(kube.clone(), namespace.clone(), options.service_account);
        // What a person has to do first is said first: without a token there is no use in a connection.
        tokens.token().await?;
        let (url, forward) = if let Some(url) = options.url {
            (url, None)
        } else {
            let service = Service { namespace: options.release_namespace, name: options.release_service };
            let forward = Forward::start(kube, service).await?;
            (format!("http://{}", forward.address()), Some(forward))
        };
        Self::through(&url, &namespace, Arc::new(Cluster { tokens, forward }))
    }
}

async fn config(context: Option<String>) -> Result<Config, ClusterError> {
    let kubeconfig = Kubeconfig::read().map_err(|error| ClusterError::Kubeconfig(error.to_string()))?;
    let known: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    if let Some(name) = &context
        && !known.contains(name)
    {
        return Err(ClusterError::NoContext { name: name.clone(), known });
    }
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| ClusterError::Kubeconfig(error.to_string()))?;
    // As kubectl: no proxy leads to this machine.
    let loopback = |host: &str| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    if config.cluster_url.host().is_some_and(loopback) {
        config.proxy_url = None;
    }
    Ok(config)
}

/// What the API server's refusal, or its silence, means. `missing` is what a 404 does.
fn refusal(
    error: &kube::Error,
    (verb, resource, namespace): (&'static str, &'static str, &str),
    missing: impl FnOnce() -> ClusterError,
) -> ClusterError {
    let kube::Error::Api(status) = error else {
        return ClusterError::Unreachable(root(error));
    };
    let reason = status.message.clone();
    match status.code {
        401 => ClusterError::Unknown(reason),
        403 => ClusterError::Forbidden { verb, resource, namespace: namespace.to_owned(), reason },
        404 => missing(),
        _ => ClusterError::Unreachable(reason),
    }
}

/// The innermost cause: what the system said, without what every layer adds to it.
fn root(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
