//! Requests with a Kubernetes token: whose it is and what its bearer may do, as the cluster says, for a short while from memory.
//!
//! The tenant is that of the namespace that the header `Ash-Namespace` names, or else of the token's service account. What a
//! request needs follows from its method and route ([`route`]).

mod cache;
mod route;
mod token;

use std::{collections::BTreeSet, fmt, future::Future, sync::Arc, time::Duration};

use ash_core::{
    id::TenantId,
    ports::{ACCESS_AUDIENCE, ACCESS_GROUP, AccessError, AccessReviews, Who},
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use secrecy::SecretString;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use crate::{
    error::{ApiError, RETRY_SOON_SECONDS},
    hash_key,
    metrics::{Metrics, Review},
};
use cache::{Accepted, Answer, Cache, Known, Question};

pub(crate) use token::Claims;

/// The header that names the namespace.
pub(crate) const NAMESPACE: HeaderName = HeaderName::from_static("ash-namespace");

/// Reviews that are asked for at once. Further ones wait, for [`REVIEW_WAIT`] at the most.
const MAX_REVIEWS: usize = 32;

/// The longest wait for the place of a review; then 503 with `Retry-After`.
const REVIEW_WAIT: Duration = Duration::from_secs(5);

/// The longest name of a namespace (RFC 1123, a label).
const MAX_NAMESPACE_BYTES: usize = 63;

/// How an API takes Kubernetes tokens: [`ApiConfig::access`](crate::ApiConfig::access).
#[derive(Clone)]
pub struct AccessConfig {
    /// Who is asked.
    pub reviews: Arc<dyn AccessReviews>,
    /// The namespaces that are served. Others are refused, whatever somebody may do there.
    pub namespaces: BTreeSet<String>,
    /// The namespace of the default tenant; every other tenant is named like its namespace.
    pub default_namespace: String,
}

impl fmt::Debug for AccessConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessConfig").field("namespaces", &self.namespaces).finish_non_exhaustive()
    }
}

/// Tokens, reviewed and remembered.
pub(crate) struct Access {
    config: AccessConfig,
    cache: Cache,
    places: Semaphore,
    metrics: Metrics,
}

/// Somebody whose token was taken.
#[derive(Clone)]
pub(crate) struct User(Arc<Accepted>);

impl User {
    pub(crate) fn name(&self) -> &str {
        &self.0.who().user
    }
}

impl Access {
    pub(crate) fn new(config: AccessConfig, metrics: Metrics) -> Self {
        Self { config, cache: Cache::default(), places: Semaphore::new(MAX_REVIEWS), metrics }
    }

    /// Whose token it is. One review at a time for a token: those that come meanwhile wait for its answer.
    pub(crate) async fn user(&self, token: &str, claims: &Claims) -> Result<User, ApiError> {
        if !claims.audiences.iter().any(|audience| audience == ACCESS_AUDIENCE) {
            return Err(self.unauthorized(&audience_sentence(claims)));
        }
        let hash = hash_key(token);
        let known = if let Some(known) = self.cache.known(&hash, Instant::now()) {
            known
        } else {
            let _flight = self.cache.flight(hash).await;
            match self.cache.known(&hash, Instant::now()) {
                Some(known) => known,
                None => self.review(hash, token, claims).await,
            }
        };
        match known {
            Known::Accepted(accepted) => Ok(User(accepted)),
            Known::Refused(reason) => Err(self.unauthorized(&format!(
                "the cluster does not accept this token: {reason}; get another with `kubectl create token NAME --namespace \
                 NAMESPACE --audience {ACCESS_AUDIENCE}`"
            ))),
            Known::Failed(error) => Err(error.into()),
        }
    }

    async fn review(&self, hash: [u8; 32], token: &str, claims: &Claims) -> Known {
        let secret = SecretString::from(token);
        let reviewed = self.within_places(self.config.reviews.review(&secret)).await;
        drop(secret);
        let (known, review) = match reviewed {
            Ok(Ok(who)) => (Known::Accepted(Arc::new(Accepted::new(who))), Review::Accepted),
            Ok(Err(reason)) => (Known::Refused(reason.into()), Review::Refused),
            Err(error) => (Known::Failed(error), Review::Failed),
        };
        self.metrics.count_token_review(review);
        let evicted = self.cache.remember(hash, known.clone(), claims.remaining(), Instant::now());
        self.metrics.access_evictions.inc_by(evicted);
        known
    }

    /// The tenant of a request, where its user may make it.
    pub(crate) async fn tenant(
        &self,
        user: &User,
        headers: &HeaderMap,
        method: &Method,
        route: &str,
    ) -> Result<TenantId, ApiError> {
        let who = user.0.who();
        let Some(needed) = route::needed(method, route) else {
            return Err(forbidden("this address takes no Kubernetes token: use an API key"));
        };
        let scope = if needed.namespaced { Some(self.served(headers, who)?) } else { None };
        for verb in needed.verbs {
            let question = Question { verb: *verb, resource: needed.resource, namespace: scope.clone() };
            if !self.may(&user.0, &question).await? {
                return Err(forbidden(missing_right(who, &question)));
            }
        }
        // What has no namespace, runners, is the default tenant's for those with keys.
        Ok(scope.map_or_else(TenantId::default_tenant, |namespace| self.tenant_of(namespace)))
    }

    /// The namespace of a request, where it is served.
    fn served(&self, headers: &HeaderMap, who: &Who) -> Result<String, ApiError> {
        let namespace = namespace(headers, who)?.ok_or_else(nameless)?;
        if self.config.namespaces.contains(&namespace) {
            return Ok(namespace);
        }
        Err(forbidden(format!(
            "this server does not serve the namespace {namespace}: name one that it serves in the header Ash-Namespace \
             (`ash --namespace NAME`), or have it added (the Helm chart's value `namespaces`)"
        )))
    }

    fn tenant_of(&self, namespace: String) -> TenantId {
        if namespace == self.config.default_namespace { TenantId::default_tenant() } else { TenantId(namespace) }
    }

    /// The namespace of a tenant, as people know it.
    pub(crate) fn namespace_of<'a>(&'a self, tenant: &'a TenantId) -> &'a str {
        if *tenant == TenantId::default_tenant() { &self.config.default_namespace } else { &tenant.0 }
    }

    async fn may(&self, accepted: &Accepted, question: &Question) -> Result<bool, AccessError> {
        if let Some(answer) = accepted.answer(question, Instant::now()) {
            return answer.into_result();
        }
        let _flight = accepted.flight().await;
        if let Some(answer) = accepted.answer(question, Instant::now()) {
            return answer.into_result();
        }
        let asked =
            self.config.reviews.may(accepted.who(), question.verb, question.resource, question.namespace.as_deref());
        let answer = match self.within_places(asked).await {
            Ok(true) => Answer::Allowed,
            Ok(false) => Answer::Denied,
            Err(error) => Answer::Failed(error),
        };
        self.metrics.count_access_review(match answer {
            Answer::Allowed => Review::Accepted,
            Answer::Denied => Review::Refused,
            Answer::Failed(_) => Review::Failed,
        });
        accepted.remember(question.clone(), answer.clone(), Instant::now());
        answer.into_result()
    }

    /// Asks the cluster, when there is a place for it.
    async fn within_places<T>(&self, asked: impl Future<Output = Result<T, AccessError>>) -> Result<T, AccessError> {
        let _place = self.place().await?;
        let answer = asked.await;
        if let Err(error @ AccessError::Forbidden(_)) = &answer {
            tracing::error!(%error, "no Kubernetes token can be reviewed");
        }
        answer
    }

    async fn place(&self) -> Result<SemaphorePermit<'_>, AccessError> {
        let waited = timeout(REVIEW_WAIT, self.places.acquire()).await;
        waited.ok().and_then(Result::ok).ok_or_else(|| {
            self.metrics.access_reviews_crowded.inc();
            AccessError::Unavailable("too many reviews of tokens are waiting for it".to_owned())
        })
    }

    fn unauthorized(&self, message: &str) -> ApiError {
        self.metrics.auth_failures.inc();
        ApiError::new(StatusCode::UNAUTHORIZED, message)
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("{error}; running turns go on, try again in a moment"))
            .retry_after(RETRY_SOON_SECONDS)
    }
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, message)
}

fn nameless() -> ApiError {
    ApiError::bad_request("which namespace? Name it in the header Ash-Namespace (`ash --namespace NAME`)")
}

/// The namespace that the headers name; without them the service account's. `None` for a user without one.
fn namespace(headers: &HeaderMap, who: &Who) -> Result<Option<String>, ApiError> {
    let named = named_namespace(headers)?;
    Ok(named.or_else(|| who.service_account().map(|(namespace, _)| namespace)).map(ToOwned::to_owned))
}

/// The namespace that the headers name.
pub(crate) fn named_namespace(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(NAMESPACE) else { return Ok(None) };
    let label = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let name = value.to_str().ok().filter(|name| (1..=MAX_NAMESPACE_BYTES).contains(&name.len()));
    let name = name.filter(|name| name.as_bytes().iter().all(label));
    name.map(Some).ok_or_else(|| ApiError::bad_request("the header Ash-Namespace is no name of a namespace"))
}

fn audience_sentence(claims: &Claims) -> String {
    const SHOWN: usize = 200;
    let what = match claims.audiences.as_slice() {
        [] => "names no audience".to_owned(),
        audiences => format!("is for {}", audiences.join(", ").chars().take(SHOWN).collect::<String>()),
    };
    format!(
        "this token {what}; here it has to be for the audience `{ACCESS_AUDIENCE}`: `kubectl create token NAME --namespace \
         NAMESPACE --audience {ACCESS_AUDIENCE}`"
    )
}

/// What is missing, and the line that shows it.
fn missing_right(who: &Who, question: &Question) -> String {
    let Question { verb, resource, namespace } = question;
    let (place, flag) = match namespace {
        Some(namespace) => (format!("in the namespace {namespace}"), format!(" --namespace {namespace}")),
        None => ("in the whole cluster".to_owned(), String::new()),
    };
    let role = if namespace.is_some() { "a Role" } else { "a ClusterRole" };
    format!(
        "{} may not {verb} {resource}.{ACCESS_GROUP} {place}: `kubectl auth can-i {verb} {resource}.{ACCESS_GROUP}{flag} --as {}` \
         shows it; have {role} with this verb bound to it",
        who.user, who.user
    )
}

/// What a bearer token says of itself, where it is one that a cluster could know.
pub(crate) fn claims(token: &str) -> Option<Claims> {
    Claims::read(token)
}
