//! Sandboxes that are pods: a session gets a warm one by a claim, or the one that the operator makes for it; bridges are admitted
//! by what the store has.

#![allow(clippy::unwrap_used)]

#[path = "../../store/tests/contract/fixtures.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;
mod support;

use std::sync::{Arc, Mutex};

use ash_coordinator::{FleetRunner, PodsConfig, Registry};
use ash_core::{
    Epoch,
    agent::{Agent, AgentSettings, AgentVersion},
    fleet::{Admitted, OfAgent, OfPod, Place, RunnerId, Send},
    id::{SandboxId, SessionId, TenantId, TurnId},
    name::AgentName,
    opening::{Opening, OpeningReason},
    ports::{
        AgentRequest, CredentialKind, DeployAgent, FleetStore, NewMessage, OpenEpoch, PodIdentity, PodSandbox,
        PodState, ResourceError, Resources, Runner as _, RunnerError, SessionRequest, StoreError,
    },
    session::{Closing, PausedReason, Session, SessionState},
};
use ash_link::{Body, Peer, Service, answer_json, read_json, refuse};
use ash_protocol::{
    fleet::{INCARNATION_HEADER, RUNNER_HEADER, coordinator, runner as path},
    options::TurnOptions,
};
use ash_store::{Keyring, SqliteStore};
use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;

/// The namespace of the default tenant.
const NAMESPACE: &str = "ash-default";

/// A runner that says which sandbox it was named, and takes no message.
#[derive(Default)]
struct Named(Mutex<Vec<(SessionId, Option<SandboxId>)>>, Mutex<Option<AgentVersion>>);

#[async_trait]
impl Service for Named {
    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let called = request.uri().path().to_owned();
        let place: Place = match called.as_str() {
            path::PLACE => read_json(request.into_body()).await.unwrap(),
            path::SEND => read_json::<Send, _>(request.into_body()).await.unwrap().place,
            _ => return refuse(StatusCode::NOT_FOUND, "not asked for here"),
        };
        *self.1.lock().unwrap() = Some(place.agent);
        self.0.lock().unwrap().push((place.session.id, place.sandbox));
        if called == path::PLACE {
            return answer_json(&Ok::<_, RunnerError>(place.session));
        }
        let head: Result<(), RunnerError> = Err(RunnerError::TurnInProgress);
        let frame = ash_protocol::frame::Frame::json(ash_protocol::frame::FrameKind::Reply, 0, &head);
        Response::new(ash_link::pieces(ash_link::frames([frame])))
    }
}

/// An API server that notes who is to be woken.
#[derive(Default)]
struct Woken {
    sessions: Mutex<Vec<(SessionId, Epoch)>>,
    asked: Notify,
    is_away: Mutex<bool>,
}

#[async_trait]
impl Resources for Woken {
    async fn create_session(&self, _: SessionRequest) -> Result<SessionId, ResourceError> {
        Err(ResourceError::Refused("not asked for here".to_owned()))
    }

    async fn suspend_session(&self, _: &TenantId, _: SessionId, _: bool, _: bool) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn configure_session(
        &self,
        _: &TenantId,
        _: SessionId,
        _: &ash_protocol::options::SessionOptions,
        _: &ash_protocol::options::SessionOptions,
    ) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn end_session(&self, _: &TenantId, _: SessionId) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn wake_session(&self, _: &TenantId, id: SessionId, epoch: Epoch) -> Result<(), ResourceError> {
        if *self.is_away.lock().unwrap() {
            return Err(ResourceError::Unavailable("connection refused".to_owned()));
        }
        self.sessions.lock().unwrap().push((id, epoch));
        self.asked.notify_one();
        Ok(())
    }

    async fn check_agent(&self, request: &AgentRequest) -> Result<AgentSettings, ResourceError> {
        Ok(request.settings.clone())
    }

    async fn apply_agent(&self, _: AgentRequest) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn delete_agent(&self, _: &TenantId, _: &AgentName) -> Result<bool, ResourceError> {
        Ok(false)
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    _registry: Arc<Registry>,
    address: String,
    store: Arc<dyn FleetStore>,
    fleet: FleetRunner,
    named: Arc<Named>,
    woken: Arc<Woken>,
    runner: RunnerId,
    agent: Agent,
}

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let keys = Keyring::new(&[secrecy::SecretBox::new(Box::new([7; 32]))]).unwrap();
    let store = SqliteStore::open(&folder.path().join("ash.db")).await.unwrap().with_credential_keys(keys);
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let woken = Arc::new(Woken::default());
    let pods = PodsConfig { default_namespace: NAMESPACE.to_owned(), resources: Some(Arc::clone(&woken) as _) };
    let (registry, address) = support::serve_with(folder.path(), Arc::clone(&store), Some(pods), &stop).await;
    let named = Arc::new(Named::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(ash_link::serve(listener, support::secret(folder.path()), Arc::clone(&named) as _, stop));
    let runner = support::runner("one");
    support::join(folder.path(), &address, &runner, &own, Vec::new()).await;
    let fleet = FleetRunner::new(Arc::clone(&registry));
    let agent = fixtures::agent(&*store, &TenantId::default_tenant()).await;
    Fixture { folder, _registry: registry, address, store, fleet, named, woken, runner, agent }
}

impl Fixture {
    async fn session(&self) -> (Session, AgentVersion) {
        (fixtures::session(&*self.store).await, self.agent.version.clone())
    }

    async fn add_pod(&self, session: Option<SessionId>) -> PodSandbox {
        let id = SandboxId::new();
        let pod = PodSandbox {
            id,
            tenant: self.agent.tenant.clone(),
            pod: format!("tester-{id}"),
            pod_uid: None,
            agent: self.agent.id,
            agent_version: self.agent.version.number,
            pool: "default".to_owned(),
            session,
            state: PodState::Starting,
            runner: None,
            node: None,
            created_at: Timestamp::UNIX_EPOCH,
            changed_at: Timestamp::UNIX_EPOCH,
        };
        self.store.add_pod(pod.clone()).await.unwrap();
        pod
    }

    /// A call as the runner makes it.
    async fn call<T: serde::de::DeserializeOwned>(&self, path: &str, body: &(impl serde::Serialize + Sync)) -> T {
        let headers =
            [(RUNNER_HEADER, self.runner.name.to_string()), (INCARNATION_HEADER, self.runner.incarnation.to_string())];
        let peer = Peer::new(&self.address, support::secret(self.folder.path())).unwrap();
        peer.exchange::<Result<T, StoreError>>(path, &headers, support::WAIT, body).await.unwrap().unwrap()
    }

    async fn admit(&self, pod: &PodSandbox, namespace: &str) -> Option<Admitted> {
        let identity = PodIdentity {
            namespace: namespace.to_owned(),
            pod: pod.pod.clone(),
            pod_uid: "uid".to_owned(),
            node: "node".to_owned(),
        };
        self.call(coordinator::ADMIT_POD, &identity).await
    }

    fn last(&self) -> Option<(SessionId, Option<SandboxId>)> {
        self.named.0.lock().unwrap().last().copied()
    }
}

fn message() -> NewMessage {
    let content = RawValue::from_string("\"hi\"".to_owned()).unwrap();
    NewMessage { turn: TurnId::new(), content, options: TurnOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_claims_a_warm_pod_and_its_runner_is_told_which() {
    let fixture = fixture().await;
    let pod = fixture.add_pod(None).await;
    for namespace in ["elsewhere", "default"] {
        assert!(fixture.admit(&pod, namespace).await.is_none(), "{namespace} is not the default tenant's");
    }
    let admitted = fixture.admit(&pod, NAMESPACE).await.unwrap();
    assert_eq!((admitted.pod.id, admitted.agent), (pod.id, fixture.agent.version.clone()));
    assert!(admitted.placed.is_none());
    let of = OfPod { sandbox: pod.id, reason: None };
    assert!(fixture.call::<bool>(coordinator::POD_WARM, &of).await);
    let (session, version) = fixture.session().await;
    fixture.fleet.place(session.clone(), version.clone()).await.unwrap();
    assert_eq!(fixture.last(), Some((session.id, Some(pod.id))));
    // Its first message names it again; nobody else has it.
    assert_eq!(
        fixture.fleet.send(session.clone(), version.clone(), message()).await.unwrap_err(),
        RunnerError::TurnInProgress
    );
    assert_eq!(fixture.last(), Some((session.id, Some(pod.id))));
    let (other, version) = fixture.session().await;
    assert_eq!(
        fixture.fleet.place(other.clone(), version).await.unwrap(),
        other,
        "none is warm: the operator makes one"
    );
    assert_eq!(fixture.last(), Some((session.id, Some(pod.id))));
    // Over, it is nobody's.
    fixture.fleet.close(session.clone(), Closing::End).await.unwrap();
    assert_eq!(fixture.store.pod_of(session.id).await.unwrap(), None);
    assert!(!fixture.call::<bool>(coordinator::POD_OVER, &of).await, "that was known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_a_pod_asks_for_one_once_in_each_epoch_and_waits_for_it() {
    let fixture = Arc::new(fixture().await);
    let (session, version) = fixture.session().await;
    let sending = {
        let (fixture, session) = (Arc::clone(&fixture), session.clone());
        tokio::spawn(async move { fixture.fleet.send(session, version, message()).await.map(|_| ()) })
    };
    fixture.woken.asked.notified().await;
    // Its pod came and was lost before it took the message.
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: session.last,
        interrupted: None,
        message: None,
        recovered: None,
        sandbox: None,
    };
    let state = SessionState::Paused(PausedReason::Lost);
    let open = OpenEpoch { session: session.id, expected: session.epoch, state, error: None, sandbox: None, opening };
    let session = fixture.store.open_epoch(open).await.unwrap();
    fixture.woken.asked.notified().await;
    // What the operator does: a row, a pod, whose bridge dials.
    let pod = fixture.add_pod(Some(session.id)).await;
    let admitted = fixture.admit(&pod, NAMESPACE).await.unwrap();
    assert_eq!(admitted.placed.unwrap().session, session);
    assert_eq!(sending.await.unwrap(), Err(RunnerError::TurnInProgress));
    assert_eq!(fixture.last(), Some((session.id, Some(pod.id))));
    let asked = [(session.id, Epoch::NONE), (session.id, session.epoch)];
    assert_eq!(*fixture.woken.sessions.lock().unwrap(), asked);
    // Away, the API server is named.
    *fixture.woken.is_away.lock().unwrap() = true;
    let (session, version) = fixture.session().await;
    let error = fixture.fleet.send(session, version, message()).await.unwrap_err();
    assert!(matches!(&error, RunnerError::Unreachable(why) if why.contains("Kubernetes")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_an_ended_session_is_not_wanted() {
    let fixture = fixture().await;
    let (session, _) = fixture.session().await;
    let pod = fixture.add_pod(Some(session.id)).await;
    fixture.fleet.close(session.clone(), Closing::End).await.unwrap();
    assert!(fixture.admit(&pod, NAMESPACE).await.is_none());
    let again = fixture.add_pod(Some(session.id)).await;
    assert!(fixture.admit(&again, NAMESPACE).await.is_none(), "also one that was made later");
    assert!(fixture.store.pods(None).await.unwrap().iter().all(|pod| pod.state == PodState::Deleting));
}

/// What the operator makes of an agent with a variable out of a Secret.
async fn with_secret_variables(fixture: &Fixture) -> AgentVersion {
    let deploy = DeployAgent {
        tenant: fixture.agent.tenant.clone(),
        name: fixture.agent.name.clone(),
        slug: None,
        description: None,
        settings: AgentSettings {
            env: [("PLAIN".to_owned(), "1".to_owned())].into(),
            secret_environment: Some("environment/tester".to_owned()),
            ..AgentSettings::default()
        },
        digest: fixture.agent.version.digest.clone(),
        bundle: bytes::Bytes::from_static(b"bundle"),
    };
    fixture.store.deploy_agent(deploy).await.unwrap().version
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_variables_reach_runners_and_nothing_else() {
    let mut fixture = fixture().await;
    let version = with_secret_variables(&fixture).await;
    fixture.agent.version = version.clone();
    let session = fixtures::session(&*fixture.store).await;
    let later = fixture.fleet.send(session.clone(), version.clone(), message()).await.unwrap_err();
    assert!(matches!(&later, RunnerError::OptionRefused(why) if why.contains("environment/tester")), "{later:?}");
    let secret = secrecy::SecretBox::new(br#"{"TOKEN":"sesame"}"#.to_vec().into_boxed_slice());
    let tenant = &fixture.agent.tenant;
    fixture.store.put_credential(tenant, "environment/tester", CredentialKind::Custom, &secret).await.unwrap();
    let pod = fixture.add_pod(None).await;
    let admitted = fixture.admit(&pod, NAMESPACE).await.unwrap();
    let whole = [("PLAIN".to_owned(), "1".to_owned()), ("TOKEN".to_owned(), "sesame".to_owned())].into();
    assert_eq!(admitted.agent.settings.env, whole, "Claude Code of a warm pod has them");
    assert!(!format!("{admitted:?}").contains("sesame"));
    assert_eq!(admitted.agent.settings.idle_seconds, None, "as the runner has it");
    let of = OfPod { sandbox: pod.id, reason: None };
    assert!(fixture.call::<bool>(coordinator::POD_WARM, &of).await);
    let own = Session { agent_version: version.number, ..session };
    fixture.fleet.place(own.clone(), version.clone()).await.unwrap();
    assert_eq!(fixture.last(), Some((own.id, Some(pod.id))));
    assert_eq!(fixture.named.1.lock().unwrap().take().unwrap().settings.env, whole);
    let _ = fixture.fleet.send(own, version.clone(), message()).await.unwrap_err();
    assert_eq!(fixture.named.1.lock().unwrap().take().unwrap().settings.env, whole);
    fixture.store.set_idle_timeout(tenant, version.agent, std::time::Duration::from_secs(77)).await.unwrap();
    let of = OfAgent { tenant: tenant.clone(), agent: version.agent, number: version.number };
    let found: Option<AgentVersion> = fixture.call(coordinator::AGENT_VERSION, &of).await;
    let found = found.unwrap().settings;
    assert_eq!(found.env, whole, "who takes a sandbox over has them");
    assert_eq!(found.idle_seconds, Some(77), "and how long it may be idle now");
    let stored = fixture.store.agent_version(tenant, version.agent, version.number).await.unwrap();
    assert_eq!(stored, Some(version), "the store has them encrypted only");
}
