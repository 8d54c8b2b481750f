//! A sandbox's only way out: the model API with the real key put in, and an egress proxy.
//!
//! A sandbox has a network of its own with nothing in it but a loopback device. Its bridge listens
//! there and hands the listening socket to the host, which gives it to [`Gateway::attach`]. What
//! comes in over it is either a request to the model API or a CONNECT to somewhere else; both are
//! answered by what the sandbox is bound to at that moment, and both need the sandbox's token.
//!
//! Pods reach it over the network instead ([`Gateway::serve_network`]): whose a connection is, its
//! token says.
//!
//! Nothing here stores anything: bindings are told to the gateway by the runner, and told again
//! after a restart. Until then a valid token gets 529, which Claude retries.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accept;
mod answer;
mod body;
mod egress;
mod error;
mod headers;
mod id;
mod lease;
mod limits;
mod metrics;
mod model;
mod network;
mod phase;
mod registry;
mod rehearsal;
mod serve;
mod token;
mod upstream;
mod usage;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::registry::Registry as MetricsRegistry;
use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use egress::{
    AddressClass, EgressConfig, EgressPolicy, EgressRefusal, EgressSink, Host, HostRule, Network, OperatorAllow, Ports,
    RefusalReason, Resolve, RuleError, SystemResolver, Target, classify,
};
pub use error::{AttachError, BindError, ConfigError, TokenError};
pub use id::{Epoch, SandboxId, SessionId, TenantId};
pub use limits::Limits;
pub use serve::Attachment;
pub use token::{KEY_LENGTH, TOKEN_PREFIX, TokenSigner};
pub use upstream::{Credential, UpstreamConfig, UpstreamOverride};
pub use usage::{TokenUsage, UsageReport, UsageSink};

use phase::Holder;
use serve::{Shared, accept_loop};

/// What the gateway is built from.
pub struct GatewayConfig {
    /// The model API.
    pub upstream: UpstreamConfig,
    /// The egress proxy.
    pub egress: EgressConfig,
    /// The bounds.
    pub limits: Limits,
}

/// What a claim binds a sandbox to.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Whose session.
    pub tenant: TenantId,
    /// Which session.
    pub session: SessionId,
    /// The claim's epoch.
    pub epoch: Epoch,
    /// What the sandbox may reach besides the model.
    pub egress: EgressPolicy,
    /// The session's own model key, and address; the operator's where there is none.
    pub upstream: Option<UpstreamOverride>,
}

/// The gateway of one process. Clones share everything.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

impl Gateway {
    /// Sets up the HTTP clients; connects to nothing yet.
    pub fn new(
        config: GatewayConfig,
        signer: TokenSigner,
        usage: Arc<dyn UsageSink>,
        refusals: Arc<dyn EgressSink>,
    ) -> Result<Self, ConfigError> {
        let limits = config.limits;
        let upstream = upstream::Upstream::new(config.upstream, config.egress.clone(), &limits)?;
        Ok(Self {
            shared: Arc::new(Shared {
                signer,
                registry: registry::Registry::new(limits),
                upstream,
                egress: config.egress,
                limits,
                metrics: metrics::Metrics::default(),
                usage,
                refusals,
                lookups: Arc::new(Semaphore::new(limits.all_lookups)),
                lease: lease::Lease::default(),
            }),
        })
    }

    /// Registers the gateway's metrics, all under `ash_gateway_`.
    pub fn register_metrics(&self, registry: &mut MetricsRegistry) {
        self.shared.metrics.register(registry);
    }

    /// The token that goes into the sandbox's environment. It exists before any binding.
    pub fn token(&self, sandbox: SandboxId) -> SecretString {
        self.shared.signer.sign(sandbox)
    }

    /// Serves a sandbox on a listening socket of its own network, until the attachment is dropped.
    /// Has to be called inside a tokio runtime.
    pub fn attach(&self, sandbox: SandboxId, listener: TcpListener) -> Result<Attachment, AttachError> {
        let address = listener.local_addr()?;
        let listener = Arc::new(listener);
        let connections = accept::Connections::of(Arc::clone(&listener))?;
        let cut = CancellationToken::new();
        let accepting = accept_loop(self.shared.clone(), sandbox, connections, cut.clone());
        tokio::spawn(accepting);
        tracing::debug!(%sandbox, %address, "serving a sandbox");
        Ok(Attachment { address, cut, listener })
    }

    /// Serves every sandbox that comes over the network with its token, until `stop`. Its pods are told where that is.
    pub async fn serve_network(&self, listener: tokio::net::TcpListener, stop: CancellationToken) {
        network::accept_network(self.shared.clone(), listener, stop).await;
    }

    /// The sandbox exists and has no session: its model calls are rehearsed, tunnels refused.
    /// Repeating it changes nothing.
    pub fn register_unclaimed(&self, sandbox: SandboxId) -> Result<(), BindError> {
        self.shared.registry.register(sandbox)?;
        self.count();
        Ok(())
    }

    /// A session claims the sandbox. A sandbox serves one session in its life: one that is bound,
    /// or was to another session, is refused; one released by the same session needs a newer epoch.
    pub fn bind(&self, sandbox: SandboxId, binding: Binding) -> Result<(), BindError> {
        self.bound(sandbox, binding, false)
    }

    /// The same session again: with the same epoch the settings change and what is open goes on;
    /// with a newer one what is open is cut; an older one is refused. Also right for a sandbox
    /// that this process does not know yet (after a restart).
    pub fn rebind(&self, sandbox: SandboxId, binding: Binding) -> Result<(), BindError> {
        self.bound(sandbox, binding, true)
    }

    /// The claim is over: everything is refused with 403 and what is open is cut. An older epoch
    /// than the bound one is refused.
    pub fn release(&self, sandbox: SandboxId, epoch: Epoch) -> Result<(), BindError> {
        self.shared.registry.release(sandbox, epoch)
    }

    /// Forgets a sandbox that no longer exists, and cuts what it has open.
    pub fn remove(&self, sandbox: SandboxId) {
        self.shared.registry.remove(sandbox);
        self.count();
    }

    /// Cuts the model calls and tunnels that the sandbox has open; its binding stays.
    pub fn cut(&self, sandbox: SandboxId) {
        self.shared.registry.cut(Some(sandbox));
    }

    /// Cuts the model calls, tunnels and connections of every sandbox; the bindings stay.
    pub fn cut_all(&self) {
        self.shared.registry.cut(None);
        self.shared.lease.cut_connections();
    }

    /// Answers until then only, by the monotonic clock, which is looked at with every request: after that model calls get 529 and
    /// tunnels 503. Without this it answers for ever. What is open by then goes on: [`cut_all`](Self::cut_all) ends it.
    pub fn serve_until(&self, until: Instant) {
        self.shared.lease.set(until);
    }

    fn bound(&self, sandbox: SandboxId, binding: Binding, again: bool) -> Result<(), BindError> {
        let upstream = self.shared.upstream.target(binding.upstream.as_ref())?;
        let holder = Holder { tenant: binding.tenant, session: binding.session, epoch: binding.epoch };
        tracing::debug!(%sandbox, session = %holder.session, epoch = %holder.epoch, "bound");
        self.shared.registry.bind(sandbox, holder, binding.egress, upstream, again)?;
        self.count();
        Ok(())
    }

    fn count(&self) {
        let known = i64::try_from(self.shared.registry.len()).unwrap_or(i64::MAX);
        self.shared.metrics.sandboxes.set(known);
    }
}
