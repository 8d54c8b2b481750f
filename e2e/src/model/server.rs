//! The server: a thread of its own that listens on loopback and answers by the script.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::body::ScriptedBody;
use super::connection::{Link, Linked};
use super::conversation::ModelRequest;
use super::plan::plan;
use super::record::{Entry, RecordedRequest, Recorder, RequestKind, Said};
use super::render::{self, Envelope};
use super::reply::{Cut, Failure, Reply};
use super::script::{Answer, Script, Strikes};
use super::small_talk::HELPER_REPLY;

/// Largest body of a request; a larger one gets 413. A message of 50 MB fits.
const MAX_BODY_BYTES: usize = 128 << 20;
/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4_096;
/// Requests that are kept unless the script says otherwise; the oldest are dropped.
const DEFAULT_KEPT_REQUESTS: usize = 10_000;
/// Wait after `accept` failed, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Why the model could not start, or what a test waited for in vain.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The address cannot be listened on.
    #[error("the scripted model cannot listen on {address}: {source}; choose a free port, or port 0 for any")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread or its runtime could not be started.
    #[error("the scripted model cannot start: {0}; is the process short of memory or file descriptors?")]
    Start(io::Error),
    /// What was awaited did not come.
    #[error("{what} did not come within {within:?}; the model was asked {asked} times: {paths}")]
    Deadline {
        /// What was awaited.
        what: String,
        /// How long.
        within: Duration,
        /// Requests of turns until then.
        asked: u64,
        /// The last requests, in short.
        paths: String,
    },
}

/// A running scripted model. Dropping it ends the server and cuts its connections.
#[derive(Debug)]
pub struct ScriptedModel {
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ScriptedModel {
    /// Starts on a free port of loopback.
    pub fn start(script: Script) -> Result<Self, ModelError> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    /// Starts on this address, such as that of a model that was dropped before.
    pub fn start_on(address: SocketAddr, script: Script) -> Result<Self, ModelError> {
        let listen_error = |source| ModelError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(listen_error)?;
        listener.set_nonblocking(true).map_err(listen_error)?;
        let local = listener.local_addr().map_err(listen_error)?;
        let state = Arc::new(State {
            recorder: Recorder::new(script.keep.unwrap_or(DEFAULT_KEPT_REQUESTS)),
            queue: Mutex::new(script.queue),
            answer: script.answer,
            key: script.key,
            strikes: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ModelError::Start)?;
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("scripted-model".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    tokio::select! {
                        () = serve(listener, serving) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(ModelError::Start)?;
        Ok(Self { address: local, state, stop: Some(stop), thread: Some(thread) })
    }

    /// What belongs into `ANTHROPIC_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a reply to the end of the queue.
    pub fn push(&self, reply: Reply) {
        self.state.queue().push_back(reply);
    }

    /// Replies that still wait in the queue.
    pub fn queued(&self) -> usize {
        self.state.queue().len()
    }

    /// The requests of turns, oldest first (those that are kept).
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.all_requests().into_iter().filter(|request| request.kind == RequestKind::Turn).collect()
    }

    /// Requests of every kind, oldest first (those that are kept).
    pub fn all_requests(&self) -> Vec<RecordedRequest> {
        self.state.recorder.all()
    }

    /// Number of requests of turns ever, also of those that are no longer kept.
    pub fn turn_requests(&self) -> u64 {
        self.state.recorder.turns()
    }

    /// Forgets the recorded requests; [`Self::turn_requests`] goes on counting.
    pub fn clear(&self) {
        self.state.recorder.clear();
    }

    /// Waits until there were `count` requests of turns in all; gives those that are kept.
    pub async fn wait_for_requests(&self, count: u64, within: Duration) -> Result<Vec<RecordedRequest>, ModelError> {
        let mut changes = self.state.recorder.subscribe();
        let enough = async { while self.turn_requests() < count && changes.changed().await.is_ok() {} };
        match tokio::time::timeout(within, enough).await {
            Ok(()) => Ok(self.requests()),
            Err(_) => Err(self.missed(format!("request {count}"), within)),
        }
    }

    /// Waits until a kept request of any kind fits, looking again whenever one comes, gets its status, or is finished.
    pub async fn wait_for(
        &self,
        what: &str,
        within: Duration,
        fits: impl Fn(&RecordedRequest) -> bool,
    ) -> Result<RecordedRequest, ModelError> {
        let mut changes = self.state.recorder.subscribe();
        let found = async {
            loop {
                changes.mark_unchanged();
                if let Some(request) = self.all_requests().into_iter().find(|request| fits(request)) {
                    return Some(request);
                }
                if changes.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout(within, found).await {
            Ok(Some(request)) => Ok(request),
            _ => Err(self.missed(what.to_owned(), within)),
        }
    }

    fn missed(&self, what: String, within: Duration) -> ModelError {
        let all = self.all_requests();
        let last = all.iter().rev().take(10).rev();
        let paths: Vec<String> = last
            .map(|request| format!("{} {} {} {:?}", request.number, request.method, request.path, request.kind))
            .collect();
        ModelError::Deadline { what, within, asked: self.turn_requests(), paths: paths.join(", ") }
    }
}

impl Drop for ScriptedModel {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread ends at its next poll; a panic in it was printed already and must not become a second one here.
            let _ = thread.join();
        }
    }
}

struct State {
    recorder: Arc<Recorder>,
    queue: Mutex<VecDeque<Reply>>,
    answer: Option<Answer>,
    key: Option<String>,
    strikes: Mutex<Strikes>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("recorder", &self.recorder).finish_non_exhaustive()
    }
}

impl State {
    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Reply>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(&self, request: &ModelRequest, conversation: &str) -> Reply {
        if request.is_helper() {
            return Reply::new().text(HELPER_REPLY);
        }
        if let Some(reply) = self.queue().pop_front() {
            return reply;
        }
        match &self.answer {
            Some(answer) => answer(request),
            None => plan(request, |index, times| {
                let mut strikes = self.strikes.lock().unwrap_or_else(PoisonError::into_inner);
                strikes.strike(request, conversation, index, times)
            }),
        }
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<State>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    connection(stream, state).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    // Without it the first delta would wait for the acknowledgement of the head. Where it is refused, it is only slower.
    let _ = stream.set_nodelay(true);
    let link = Arc::new(Link::default());
    let io = TokioIo::new(Linked::new(stream, Arc::clone(&link)));
    let service = service_fn(move |request| handle(request, Arc::clone(&state), Arc::clone(&link)));
    // A cut and a client that goes away both end here as an error; both are recorded already.
    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, service).await;
}

/// The connection is to end without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the script ends the connection before an answer; remove its `cut: before` to get one")]
struct NoAnswer;

async fn handle(
    request: Request<Incoming>,
    state: Arc<State>,
    link: Arc<Link>,
) -> Result<Response<ScriptedBody>, NoAnswer> {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let read = Limited::new(body, MAX_BODY_BYTES).collect().await;
    let (body, readable) = match read {
        Ok(collected) => (collected.to_bytes(), true),
        Err(_) => (Bytes::new(), false),
    };
    let path = head.uri.path();
    let is_message = head.method == Method::POST && path == "/v1/messages";
    let message = is_message.then(|| ModelRequest::read(&body));
    let kind = match (&message, &head.method, path) {
        (Some(Ok(request)), _, _) if request.is_helper() => RequestKind::Helper,
        (Some(_), _, _) => RequestKind::Turn,
        (None, &Method::POST, "/v1/messages/count_tokens") => RequestKind::CountTokens,
        (None, &Method::HEAD | &Method::GET, "/api/hello") => RequestKind::Hello,
        _ => RequestKind::Other,
    };
    let body_len = body.len();
    let recorded = RecordedRequest {
        number: 0,
        kind,
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: lower_case_map(&head.headers),
        body,
        at,
        said: Said::default(),
    };
    let key_fits = state.key.as_deref().is_none_or(|key| recorded.api_key() == Some(key));
    let conversation = recorded.headers.get("x-claude-code-session-id").cloned().unwrap_or_default();
    let entry = state.recorder.add(recorded);
    let responder = Responder { link, entry };

    if !readable {
        return Ok(responder.error(413, None, "the request is larger than this model reads (128 MiB)"));
    }
    match (message, kind) {
        (_, RequestKind::Hello) => Ok(responder.json(StatusCode::OK, None, Bytes::new())),
        _ if !key_fits => Ok(responder.error(401, None, "invalid x-api-key")),
        (Some(Ok(request)), _) => {
            let reply = state.reply(&request, &conversation);
            responder.answer(&request, reply).await
        }
        (Some(Err(message)), _) => Ok(responder.error(400, None, &message)),
        (None, RequestKind::CountTokens) => {
            let tokens = (body_len / 4).max(1);
            Ok(responder.json(StatusCode::OK, None, Bytes::from(format!(r#"{{"input_tokens":{tokens}}}"#))))
        }
        _ => {
            Ok(responder.error(404, None, "this model knows POST /v1/messages, its count_tokens, and HEAD /api/hello"))
        }
    }
}

fn lower_case_map(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        map.entry(name.as_str().to_owned())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    map
}

/// Builds the response to one request.
struct Responder {
    link: Arc<Link>,
    entry: Entry,
}

impl Responder {
    async fn answer(self, request: &ModelRequest, mut reply: Reply) -> Result<Response<ScriptedBody>, NoAnswer> {
        let hold = reply.take_hold();
        if !hold.is_zero() {
            tokio::time::sleep(hold).await;
        }
        match &reply.failure {
            Some(Failure::Status { status, retry_after, message }) => {
                return Ok(self.error(*status, *retry_after, message));
            }
            Some(Failure::Cut(how)) => return self.no_answer(*how),
            None => {}
        }
        let envelope = Envelope { model: &request.model, request_bytes: request.body.len() };
        if request.stream {
            let frames = render::stream(&reply, envelope);
            self.entry.status(200);
            let body = ScriptedBody::streamed(frames, self.link, self.entry);
            return Ok(with_head(body, StatusCode::OK, None, "text/event-stream; charset=utf-8"));
        }
        if let Some((_, how)) = reply.cut {
            return self.no_answer(how);
        }
        let (message, wait, said) = render::whole(&reply, envelope);
        tokio::time::sleep(wait).await;
        self.entry.status(200);
        let body = ScriptedBody::whole(Bytes::from(message.to_string()), said, self.link, self.entry);
        Ok(with_head(body, StatusCode::OK, None, "application/json"))
    }

    fn no_answer(self, how: Cut) -> Result<Response<ScriptedBody>, NoAnswer> {
        if how == Cut::Reset {
            self.link.end_with_reset();
        }
        Err(NoAnswer)
    }

    fn error(self, status: u16, retry_after: Option<u32>, message: &str) -> Response<ScriptedBody> {
        let body = render::error_body(render::error_kind(status), message);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.json(status, retry_after, Bytes::from(body))
    }

    fn json(self, status: StatusCode, retry_after: Option<u32>, bytes: Bytes) -> Response<ScriptedBody> {
        self.entry.status(status.as_u16());
        if bytes.is_empty() {
            self.entry.finished();
        }
        let body = ScriptedBody::whole(bytes, Vec::new(), self.link, self.entry);
        with_head(body, status, retry_after, "application/json")
    }
}

fn with_head(
    body: ScriptedBody,
    status: StatusCode,
    retry_after: Option<u32>,
    content_type: &'static str,
) -> Response<ScriptedBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
    }
    response
}
