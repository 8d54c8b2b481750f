//! The client: one method per operation of the API.

use std::{sync::Arc, time::Duration};

use ash_core::sse::Position;
use ash_protocol::message::Decision;
use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue},
    redirect::Policy,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use crate::{
    Agent, CreateSession, Deployment, Error, FrameStream, Health, Kind, Message, QueueEntry, Reconnect, Runner,
    Session, SessionChanges, SessionQuery, StreamOptions, answer,
    cluster::{ClusterError, Way},
    deploy,
    stream::Source,
};

/// The longest wait for a connection: 10 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait for a whole answer that is no stream: 60 s. A message that waits for a sandbox is answered within 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// The longest wait for a deployment, whose files have up to 100 MiB: 10 minutes.
const DEPLOY_TIMEOUT: Duration = Duration::from_mins(10);

/// The longest wait for options to be changed: 3 minutes. An unknown model's name is put to the model API.
const CONFIGURE_TIMEOUT: Duration = Duration::from_mins(3);

/// The header by which an answer is asked for at once (RFC 7240).
const PREFER: &str = "Prefer";

/// The header that makes a repeated request join the first one.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The header that names the namespace that is meant.
#[cfg(feature = "kubernetes")]
const NAMESPACE: reqwest::header::HeaderName = reqwest::header::HeaderName::from_static("ash-namespace");

/// The header that names the last frame that was seen.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// A client of one server. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    reconnect: Reconnect,
    /// What gives each request a token, in place of a key.
    way: Option<Arc<dyn Way>>,
}

#[derive(Deserialize)]
struct OneAgent {
    agent: Agent,
}

#[derive(Deserialize)]
struct ManyAgents {
    agents: Vec<Agent>,
}

#[derive(Deserialize)]
struct OneSession {
    session: Session,
}

#[derive(Deserialize)]
struct OneRunner {
    runner: Runner,
}

#[derive(Deserialize)]
struct ManyRunners {
    runners: Vec<Runner>,
}

#[derive(Deserialize)]
struct OneEntry {
    entry: QueueEntry,
}

#[derive(Deserialize)]
struct ManyEntries {
    entries: Vec<QueueEntry>,
}

#[derive(Deserialize)]
struct ManySessions {
    sessions: Vec<Session>,
}

impl Client {
    /// A client of the server at `url` (`http` or `https`), with an API key.
    ///
    /// Makes ring the process's cryptography of rustls where none was chosen yet. A server on loopback is reached directly,
    /// every other one through the proxy that the environment names. Redirects are not followed: a key goes nowhere else.
    pub fn new(url: &str, key: Option<&SecretString>) -> Result<Self, Error> {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            headers.insert(AUTHORIZATION, bearer(key)?);
        }
        Self::build(url, headers, None)
    }

    /// A client of the server at `url` with tokens in the place of a key, for a namespace.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn through(url: &str, namespace: &str, way: Arc<dyn Way>) -> Result<Self, Error> {
        let namespace = HeaderValue::from_str(namespace).map_err(|_| Error::InvalidKey)?;
        Self::build(url, HeaderMap::from_iter([(NAMESPACE, namespace)]), Some(way))
    }

    fn build(url: &str, headers: HeaderMap, way: Option<Arc<dyn Way>>) -> Result<Self, Error> {
        let invalid = |reason: &str| Error::InvalidUrl { url: url.to_owned(), reason: reason.to_owned() };
        let base = Url::parse(url).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(invalid("it begins with neither http:// nor https://"));
        }
        // Fails only where a provider is there already, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true);
        if base.scheme() == "http" {
            // Without TLS there is no need to load the system's certificates, which takes longer than the request.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| Error::Setup(error.to_string()))?;
        Ok(Self { http, base, reconnect: Reconnect::default(), way })
    }

    /// The same client with another way to reconnect streams.
    #[must_use]
    pub fn with_reconnect(mut self, reconnect: Reconnect) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// The server's address.
    pub fn url(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    pub(crate) fn reconnect(&self) -> Reconnect {
        self.reconnect
    }

    /// `GET /health`: needs no key.
    pub async fn health(&self) -> Result<Health, Error> {
        self.json(self.request(Method::GET, &["health"])).await
    }

    /// Deploys an agent. `sent` is told the bytes that went out since it was last told, and the whole number at first.
    pub async fn deploy(
        &self,
        deployment: &Deployment,
        mut sent: impl FnMut(Upload) + Send + 'static,
    ) -> Result<Agent, Error> {
        let body = encode(deployment)?;
        let length = body.len() as u64;
        sent(Upload::Begins(length));
        let request = self
            .request(Method::POST, &["api", "agents"])
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap_stream(deploy::pieces(body, move |bytes| sent(Upload::Sent(bytes)))));
        Ok(self.json_within::<OneAgent>(DEPLOY_TIMEOUT, request).await?.agent)
    }

    /// All agents.
    pub async fn agents(&self) -> Result<Vec<Agent>, Error> {
        Ok(self.json::<ManyAgents>(self.request(Method::GET, &["api", "agents"])).await?.agents)
    }

    /// One agent, by name or slug.
    pub async fn agent(&self, name: &str) -> Result<Agent, Error> {
        Ok(self
            .json::<OneAgent>(self.request(Method::GET, &["api", "agents", name]))
            .await
            .map_err(Kind::Agent.missing(name))?
            .agent)
    }

    /// Deletes an agent with all its versions.
    pub async fn delete_agent(&self, name: &str) -> Result<(), Error> {
        let deleted = self.json::<Value>(self.request(Method::DELETE, &["api", "agents", name])).await;
        deleted.map(drop).map_err(Kind::Agent.missing(name))
    }

    /// Creates a session.
    pub async fn create_session(&self, session: &CreateSession) -> Result<Session, Error> {
        let request = self
            .request(Method::POST, &["api", "sessions"])
            .header(IDEMPOTENCY_KEY, Uuid::new_v4().to_string())
            .json(session);
        Ok(self.json::<OneSession>(request).await.map_err(Kind::Agent.missing(&session.agent))?.session)
    }

    /// Sessions, the newest first.
    pub async fn sessions(&self, query: &SessionQuery) -> Result<Vec<Session>, Error> {
        let mut url = self.address(&["api", "sessions"]);
        let (limit, offset) =
            (query.limit.map(|limit| limit.to_string()), query.offset.map(|offset| offset.to_string()));
        for (name, value) in
            [("agent", &query.agent), ("status", &query.status), ("limit", &limit), ("offset", &offset)]
        {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        Ok(self.json::<ManySessions>(self.http.get(url)).await?.sessions)
    }

    /// One session.
    pub async fn session(&self, id: &str) -> Result<Session, Error> {
        let found = self.json::<OneSession>(self.request(Method::GET, &["api", "sessions", id])).await;
        Ok(found.map_err(Kind::Session.missing(id))?.session)
    }

    /// Ends a session. Its history is kept.
    pub async fn end_session(&self, id: &str) -> Result<Session, Error> {
        let ended = self.json::<OneSession>(self.request(Method::DELETE, &["api", "sessions", id])).await;
        Ok(ended.map_err(Kind::Session.missing(id))?.session)
    }

    /// Pauses a session: messages are refused until it is resumed.
    pub async fn pause_session(&self, id: &str) -> Result<Session, Error> {
        self.change_session(id, "pause").await
    }

    /// Stops a session: as a pause, under another state.
    pub async fn stop_session(&self, id: &str) -> Result<Session, Error> {
        self.change_session(id, "stop").await
    }

    /// Lets a paused or stopped session go on. Refused with 410 where it has ended.
    pub async fn resume_session(&self, id: &str) -> Result<Session, Error> {
        self.change_session(id, "resume").await
    }

    async fn change_session(&self, id: &str, how: &str) -> Result<Session, Error> {
        let changed = self.json::<OneSession>(self.request(Method::POST, &["api", "sessions", id, how])).await;
        Ok(changed.map_err(Kind::Session.missing(id))?.session)
    }

    /// Changes options of a session. What can change on its living Claude Code holds from now on, the rest from its next turn.
    /// Refused with 400 where Claude Code refuses it.
    pub async fn configure_session(&self, id: &str, changes: &SessionChanges) -> Result<Session, Error> {
        let request = self.request(Method::PATCH, &["api", "sessions", id, "config"]).json(changes);
        let changed = self.json_within::<OneSession>(CONFIGURE_TIMEOUT, request).await;
        Ok(changed.map_err(Kind::Session.missing(id))?.session)
    }

    /// Queues a message, without waiting for its turn. Under the key of a message that was queued before, it is that one.
    pub async fn queue_message(&self, session: &str, message: &Message, key: &str) -> Result<QueueEntry, Error> {
        let message = Message { queue: true, ..message.clone() };
        let request = self
            .request(Method::POST, &["api", "sessions", session, "messages"])
            .header(IDEMPOTENCY_KEY, key)
            .header(PREFER, "respond-async")
            .json(&message);
        Ok(self.json::<OneEntry>(request).await.map_err(Kind::Session.missing(session))?.entry)
    }

    /// A session's queue: what waits, in its order, and what is over of late.
    pub async fn queue(&self, session: &str) -> Result<Vec<QueueEntry>, Error> {
        let found = self.json::<ManyEntries>(self.request(Method::GET, &["api", "sessions", session, "queue"])).await;
        Ok(found.map_err(Kind::Session.missing(session))?.entries)
    }

    /// Takes a queued message back. Refused with 409 where its turn has come.
    pub async fn take_back(&self, session: &str, entry: &str) -> Result<QueueEntry, Error> {
        let request = self.request(Method::DELETE, &["api", "sessions", session, "queue", entry]);
        Ok(self.json::<OneEntry>(request).await?.entry)
    }

    /// The runners of a coordinator, by name. A standalone server has none.
    pub async fn runners(&self) -> Result<Vec<Runner>, Error> {
        Ok(self.json::<ManyRunners>(self.request(Method::GET, &["api", "runners"])).await?.runners)
    }

    /// Lets no new sessions go to a runner, or again.
    pub async fn cordon_runner(&self, name: &str, cordoned: bool) -> Result<Runner, Error> {
        let what = if cordoned { "cordon" } else { "uncordon" };
        let changed = self.json::<OneRunner>(self.request(Method::POST, &["api", "runners", name, what])).await;
        Ok(changed.map_err(Kind::Runner.missing(name))?.runner)
    }

    /// Interrupts the turn that is running.
    pub async fn interrupt(&self, id: &str) -> Result<(), Error> {
        let interrupted = self.json::<Value>(self.request(Method::POST, &["api", "sessions", id, "interrupt"])).await;
        interrupted.map(drop).map_err(Kind::Session.missing(id))
    }

    /// Answers a permission request. Refused with 409 where it was answered already.
    pub async fn answer_permission(&self, session: &str, request: &str, decision: &Decision) -> Result<(), Error> {
        let request = self.request(Method::POST, &["api", "sessions", session, "permissions", request]).json(decision);
        self.json::<Value>(request).await.map(drop).map_err(Kind::Session.missing(session))
    }

    /// Sends a message and opens its stream. The message has an `Idempotency-Key`, so that it counts once however often the
    /// connection is cut.
    pub async fn send_message(&self, session: &str, message: &Message) -> Result<FrameStream, Error> {
        self.send_message_as(session, message, &Uuid::new_v4().to_string()).await
    }

    /// The same under a key of the caller's own. Where an error leaves open whether the message was taken, the same message under
    /// the same key joins the turn that it began, or begins it: it counts once.
    pub async fn send_message_as(&self, session: &str, message: &Message, key: &str) -> Result<FrameStream, Error> {
        let source = Source::Message { body: encode(message)?, key: key.to_owned() };
        let options = StreamOptions { follow: false, include_partial_messages: message.include_partial_messages };
        FrameStream::open(self.clone(), session.to_owned(), source, options, None).await
    }

    /// Opens a session's stream after a position (`<sequence>.<k>` or `<sequence>`), or from now on.
    pub async fn stream(
        &self,
        session: &str,
        after: Option<&str>,
        options: StreamOptions,
    ) -> Result<FrameStream, Error> {
        let after = after.map(str::parse).transpose()?;
        FrameStream::open(self.clone(), session.to_owned(), Source::Session, options, after).await
    }

    pub(crate) async fn post_message(&self, session: &str, body: Bytes, key: &str) -> Result<Response, Error> {
        let request = self
            .request(Method::POST, &["api", "sessions", session, "messages"])
            .header(CONTENT_TYPE, "application/json")
            .header(IDEMPOTENCY_KEY, key)
            .body(body);
        self.open(request).await.map_err(Kind::Session.missing(session))
    }

    pub(crate) async fn get_stream(
        &self,
        session: &str,
        after: Option<Position>,
        options: StreamOptions,
    ) -> Result<Response, Error> {
        let mut url = self.address(&["api", "sessions", session, "stream"]);
        for (name, wanted) in [("follow", options.follow), ("includePartialMessages", options.include_partial_messages)]
        {
            if wanted {
                url.query_pairs_mut().append_pair(name, "true");
            }
        }
        let mut request = self.http.get(url);
        if let Some(after) = after {
            request = request.header(LAST_EVENT_ID, after.to_string());
        }
        self.open(request).await.map_err(Kind::Session.missing(session))
    }

    /// Asks for a stream and waits for its headers.
    async fn open(&self, request: RequestBuilder) -> Result<Response, Error> {
        let request = self.authorized(request).await?;
        let sent = request.header(ACCEPT, "text/event-stream").send();
        let response = tokio::time::timeout(ANSWER_TIMEOUT, sent)
            .await
            .map_err(|_| Error::Cut { url: self.url(), reason: "it did not answer in time".to_owned() })?
            .map_err(|error| self.transport(&error))?;
        self.accepted(response).await
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        self.json_within(ANSWER_TIMEOUT, request).await
    }

    async fn json_within<T: DeserializeOwned>(&self, bound: Duration, request: RequestBuilder) -> Result<T, Error> {
        let request = self.authorized(request).await?;
        let response = request.timeout(bound).send().await.map_err(|error| self.transport(&error))?;
        answer::json(self.accepted(response).await?).await
    }

    /// The request with a token, where tokens are used.
    async fn authorized(&self, request: RequestBuilder) -> Result<RequestBuilder, Error> {
        match &self.way {
            Some(way) => Ok(request.header(AUTHORIZATION, bearer(&way.token().await?)?)),
            None => Ok(request),
        }
    }

    async fn accepted(&self, response: Response) -> Result<Response, Error> {
        let accepted = answer::accepted(response).await;
        match (&self.way, accepted) {
            (Some(way), Err(Error::Refused { status: 401, message, .. })) => {
                way.refused();
                Err(ClusterError::TokenRefused(message).into())
            }
            (_, accepted) => accepted,
        }
    }

    /// Why no answer came: what the way through the cluster knows of it, or else what the connection does.
    fn transport(&self, error: &reqwest::Error) -> Error {
        let trouble = self.way.as_ref().and_then(|way| way.trouble());
        trouble.map_or_else(|| answer::transport(&self.base, error), Error::Cluster)
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http.request(method, self.address(path))
    }

    /// The address of a path whose parts are escaped one by one.
    fn address(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }
}

/// How far a deployment's upload got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// So many bytes will be sent.
    Begins(u64),
    /// So many more bytes were.
    Sent(u64),
}

/// The header of a key or token.
fn bearer(secret: &SecretString) -> Result<HeaderValue, Error> {
    let mut value =
        HeaderValue::from_str(&format!("Bearer {}", secret.expose_secret())).map_err(|_| Error::InvalidKey)?;
    value.set_sensitive(true);
    Ok(value)
}

fn encode(value: &impl Serialize) -> Result<Bytes, Error> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::InvalidAnswer { what: "the request".to_owned(), reason: error.to_string() })?;
    Ok(bytes.into())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
