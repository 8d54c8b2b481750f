//! The model's side: where requests go, with which key, through which HTTP client.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, NoProxy, Proxy};
use secrecy::{ExposeSecret as _, SecretString};
use url::{Host as UrlHost, Url};

use crate::egress::{EgressConfig, HostRule, Target, check_address};
use crate::error::ConfigError;
use crate::headers::{X_API_KEY, is_reserved};
use crate::limits::Limits;

/// Connections to one upstream host that are kept open while unused.
pub(crate) const IDLE_CONNECTIONS: usize = 64;

/// Secrets shorter than this are not looked for in answers: they would match by chance.
const SHORTEST_REDACTED: usize = 8;

/// A key of the model API.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Sent as `x-api-key` (`ANTHROPIC_API_KEY`).
    ApiKey(SecretString),
    /// Sent as `Authorization: Bearer` (`ANTHROPIC_AUTH_TOKEN`).
    AuthToken(SecretString),
}

/// The operator's model API.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// `ANTHROPIC_BASE_URL`; a path in it is put before every request's path.
    pub base_url: Url,
    /// The key; without one only sessions with a key of their own can call the model.
    pub credential: Option<Credential>,
    /// `HTTPS_PROXY`: the HTTP proxy that requests to the model go through. May hold a password.
    pub proxy: Option<SecretString>,
    /// `NO_PROXY`: hosts that are reached without it.
    pub no_proxy: Option<String>,
    /// A PEM file with certificate authorities that are trusted besides the system's.
    pub extra_ca: Option<PathBuf>,
    /// Headers that are added to every request to the operator's address.
    pub extra_headers: Vec<(HeaderName, SecretString)>,
}

/// A session's own key, and with it optionally an address. An address never comes without a key:
/// the operator's key goes to the operator's address only.
#[derive(Clone, Debug)]
pub struct UpstreamOverride {
    /// The session's key.
    pub credential: Credential,
    /// Where it is good. Must be public or permitted by the operator, and is reached directly.
    pub base_url: Option<Url>,
}

/// Where one binding's requests go, ready to be sent.
pub(crate) struct UpstreamTarget {
    /// Base address without a trailing slash.
    prefix: String,
    /// The key and the extra headers, marked as sensitive.
    pub(crate) headers: HeaderMap,
    pub(crate) client: Client,
    pub(crate) has_key: bool,
    /// What no answer may show to a sandbox.
    secrets: Vec<SecretString>,
}

impl UpstreamTarget {
    /// The address of a path (which starts with `/`) and its query.
    pub(crate) fn url(&self, path_and_query: &str) -> Option<Url> {
        Url::parse(&format!("{}{path_and_query}", self.prefix)).ok()
    }

    /// The text with every secret taken out; `None` where it held none.
    pub(crate) fn redact(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut redacted: Option<Vec<u8>> = None;
        for secret in &self.secrets {
            let secret = secret.expose_secret().as_bytes();
            let source = redacted.as_deref().unwrap_or(text);
            let mut clean = Vec::new();
            let mut from = 0;
            for at in memchr::memmem::find_iter(source, secret) {
                clean.extend_from_slice(&source[from..at]);
                clean.extend_from_slice(b"[redacted]");
                from = at + secret.len();
            }
            if from > 0 {
                clean.extend_from_slice(&source[from..]);
                redacted = Some(clean);
            }
        }
        redacted
    }
}

/// Both clients and the operator's own target.
pub(crate) struct Upstream {
    operator: Arc<UpstreamTarget>,
    config: UpstreamConfig,
    /// For sessions' own addresses: no proxy, and every looked-up address is checked.
    checked: Client,
    egress: EgressConfig,
}

impl Upstream {
    pub(crate) fn new(config: UpstreamConfig, egress: EgressConfig, limits: &Limits) -> Result<Self, ConfigError> {
        // Another part of the process may have installed it already; that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = client(limits);
        if let Some(proxy) = &config.proxy {
            let no_proxy = config.no_proxy.as_deref().and_then(NoProxy::from_string);
            let proxy = Proxy::all(proxy.expose_secret()).map_err(|_| ConfigError::Proxy)?.no_proxy(no_proxy);
            builder = builder.proxy(proxy);
        }
        let authorities = authorities(&config)?;
        // Only for plain HTTP may the machine be without certificate authorities.
        let proxy = config.proxy.as_ref().map(SecretString::expose_secret);
        let plain_proxy = proxy.is_none_or(|proxy| proxy.starts_with("http://"));
        let plain = config.base_url.scheme() == "http" && plain_proxy;
        let trust = |builder: ClientBuilder, plain: bool| {
            if plain {
                builder.tls_certs_only(authorities.clone())
            } else {
                builder.tls_certs_merge(authorities.clone())
            }
        };
        let built = trust(builder, plain).build().map_err(|error| ConfigError::Client(innermost(&error)))?;
        let resolving = || client(limits).dns_resolver(CheckedResolver { egress: egress.clone() });
        let checked = match trust(resolving(), false).build() {
            Ok(client) => client,
            // Without the system's authorities a session's own https address fails when it is used.
            Err(_) if plain => {
                trust(resolving(), true).build().map_err(|error| ConfigError::Client(innermost(&error)))?
            }
            Err(error) => return Err(ConfigError::Client(innermost(&error))),
        };
        let operator = target(&config.base_url, config.credential.as_ref(), &config.extra_headers, built)?;
        Ok(Self { operator: Arc::new(operator), config, checked, egress })
    }

    /// Where a binding's requests go.
    pub(crate) fn target(&self, own: Option<&UpstreamOverride>) -> Result<Arc<UpstreamTarget>, ConfigError> {
        let Some(own) = own else {
            return Ok(self.operator.clone());
        };
        let made = match &own.base_url {
            None => target(
                &self.config.base_url,
                Some(&own.credential),
                &self.config.extra_headers,
                self.operator.client.clone(),
            )?,
            Some(base) => {
                let client = self.client_for(base)?;
                target(base, Some(&own.credential), &[], client)?
            }
        };
        Ok(Arc::new(made))
    }

    /// The client for a session's own address. A literal address is never looked up, so it is
    /// checked here; a name that the operator permits needs no check.
    fn client_for(&self, base: &Url) -> Result<Client, ConfigError> {
        let port = base.port_or_known_default().ok_or(ConfigError::BaseUrl)?;
        let address = match base.host().ok_or(ConfigError::BaseUrl)? {
            UrlHost::Ipv4(address) => Some(IpAddr::V4(address)),
            UrlHost::Ipv6(address) => Some(IpAddr::V6(address)),
            UrlHost::Domain(_) => None,
        };
        if let Some(address) = address {
            let named = Target { host: crate::egress::Host::Address(address), port };
            let exempt = |rule: &HostRule| rule.matches(&named);
            if !self.egress.allow.hosts.iter().any(exempt) {
                check_address(&self.egress, address)
                    .map_err(|reason| ConfigError::TargetRefused(reason.to_string()))?;
            }
        } else if let Some(UrlHost::Domain(name)) = base.host() {
            let named = Target { host: crate::egress::Host::Name(name.trim_end_matches('.').to_owned()), port };
            if self.egress.allow.hosts.iter().any(|rule| rule.matches(&named)) {
                return Ok(self.operator.client.clone());
            }
        }
        Ok(self.checked.clone())
    }
}

fn client(limits: &Limits) -> ClientBuilder {
    Client::builder()
        .no_proxy()
        // A redirect would carry the key to another host.
        .redirect(reqwest::redirect::Policy::none())
        // Claude retries by itself and shows that it does.
        .retry(reqwest::retry::never())
        .referer(false)
        // One connection per call: on a shared HTTP/2 connection a few sandboxes that do not read
        // would use up the window of all others.
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(limits.upstream_connect)
        .read_timeout(limits.upstream_silence)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
}

fn authorities(config: &UpstreamConfig) -> Result<Vec<Certificate>, ConfigError> {
    let Some(path) = &config.extra_ca else {
        return Ok(Vec::new());
    };
    let failed = |reason: String| ConfigError::CaFile { path: path.display().to_string(), reason };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| failed(innermost(&error)))?;
    if found.is_empty() {
        return Err(failed("no certificate in it".to_owned()));
    }
    Ok(found)
}

fn target(
    base: &Url,
    credential: Option<&Credential>,
    extra: &[(HeaderName, SecretString)],
    client: Client,
) -> Result<UpstreamTarget, ConfigError> {
    let plain = matches!(base.scheme(), "http" | "https")
        && base.has_host()
        && base.username().is_empty()
        && base.password().is_none()
        && base.query().is_none()
        && base.fragment().is_none();
    if !plain {
        return Err(ConfigError::BaseUrl);
    }
    let mut headers = HeaderMap::new();
    let mut secrets = Vec::new();
    for (name, value) in extra {
        if is_reserved(name) {
            return Err(ConfigError::ReservedHeader(name.to_string()));
        }
        headers.append(name, sensitive(value, name.as_str())?);
        secrets.push(value.clone());
    }
    match credential {
        Some(Credential::ApiKey(key)) => {
            headers.insert(X_API_KEY, sensitive(key, "the API key")?);
            secrets.push(key.clone());
        }
        Some(Credential::AuthToken(token)) => {
            let bearer = SecretString::from(format!("Bearer {}", token.expose_secret()));
            headers.insert(AUTHORIZATION, sensitive(&bearer, "the auth token")?);
            secrets.push(token.clone());
        }
        None => {}
    }
    secrets.retain(|secret| secret.expose_secret().len() >= SHORTEST_REDACTED);
    Ok(UpstreamTarget {
        prefix: base.as_str().trim_end_matches('/').to_owned(),
        headers,
        client,
        has_key: credential.is_some(),
        secrets,
    })
}

fn sensitive(value: &SecretString, name: &str) -> Result<HeaderValue, ConfigError> {
    let mut value =
        HeaderValue::from_str(value.expose_secret()).map_err(|_| ConfigError::HeaderValue(name.to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The cause at the bottom, without the address that the outer errors carry.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Looks names up as usual and refuses those with an address where sandboxes may not go.
struct CheckedResolver {
    egress: EgressConfig,
}

impl reqwest::dns::Resolve for CheckedResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let egress = self.egress.clone();
        async move {
            let found = egress.resolver.resolve(name.as_str().to_owned()).await?;
            for address in &found {
                check_address(&egress, *address).map_err(|reason| reason.to_string())?;
            }
            let addresses = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        }
        .boxed()
    }
}
