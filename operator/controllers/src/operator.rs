//! Everything that runs while this process is the leader.

use std::{sync::Arc, time::Duration};

use ash_crd::{Agent, Session, names};
use ash_pods::network_policy;
use futures::{Stream, StreamExt as _, future::join_all};
use k8s_openapi::api::{
    core::v1::{Container, Pod, PodSpec},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::PostParams,
    runtime::{
        Config, Controller, Predicate as _, WatchStreamExt as _, controller::Action, predicates, reflector,
        reflector::ObjectRef, watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Metrics, OperatorConfig, Ports, changes,
    error::is_conflict,
    leader::Election,
    limits::{AGENTS_AT_ONCE, FIRST_RETRY, POLICIES, SESSIONS_AT_ONCE},
    namespace::{Namespace, Parts},
    object::Guard,
    pool,
    reconcile::reconcile,
    runners::Runners,
};

/// Objects that wait to be looked at: over it the next full look takes them.
const TRIGGERS: usize = 16_384;
/// How long what is being done may take when the operator stops.
const DRAIN: Duration = Duration::from_secs(2);
/// An operator of which a part failed waits so long before it acts again: longer than others wait between two looks at the lease.
const AFTER_DEFECT: Duration = Duration::from_secs(5);
/// Objects of one page of a listing.
const PAGE: u32 = 500;

/// Waits to be the leader, acts while it is, and waits again, until told to stop.
pub async fn run(client: Client, config: OperatorConfig, ports: Ports, metrics: Metrics, stop: CancellationToken) {
    let config = Arc::new(config);
    let election = Election::new(client.clone(), &config.system_namespace, &config.identity);
    while let Some(lease) = election.acquire(&stop).await {
        tracing::info!(identity = %config.identity, "this operator acts");
        metrics.is_leader.set(1);
        let acting = stop.child_token();
        let keeping = CancellationToken::new();
        let held = async {
            election.hold(lease, &keeping).await;
            acting.cancel();
        };
        let serving = async {
            let failed =
                serve(client.clone(), Arc::clone(&config), ports.clone(), metrics.clone(), acting.clone()).await;
            // The lease is given back when nothing acts any more.
            keeping.cancel();
            failed
        };
        let ((), failed) = tokio::join!(held, serving);
        metrics.is_leader.set(0);
        tracing::info!("this operator waits");
        if failed {
            // Another one first.
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(AFTER_DEFECT) => {}
            }
        }
    }
}

/// Acts until told to stop, or until a part of it fails: gives whether that is so.
async fn serve(
    client: Client,
    config: Arc<OperatorConfig>,
    ports: Ports,
    metrics: Metrics,
    stop: CancellationToken,
) -> bool {
    let runners = Arc::new(Runners::new(client.clone(), &config.system_namespace, Arc::clone(&ports.fleet)));
    let mut tasks = JoinSet::new();
    let mut namespaces = Vec::new();
    for name in &config.namespaces {
        let shared = (client.clone(), Arc::clone(&config), ports.clone(), metrics.clone(), Arc::clone(&runners));
        namespaces.push(start(name.clone(), shared, &stop, &mut tasks));
    }
    tasks.spawn(changes::watch(ports.changes, namespaces, stop.clone()));
    let failed = supervise(&mut tasks, &stop).await;
    // What is half done is found by whoever acts next; what can be ended in a moment, is.
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, ended).await;
    tasks.shutdown().await;
    failed
}

/// Waits until the parts are told to stop. None ends before: where one does, the others are told to stop, and this gives true.
async fn supervise(tasks: &mut JoinSet<()>, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => return false,
        ended = tasks.join_next() => {
            let error = ended.and_then(Result::err).map_or_else(|| "it has ended".to_owned(), |error| error.to_string());
            tracing::error!(error, "a part of the operator failed: all of it begins again");
        }
    }
    stop.cancel();
    true
}

/// Labels, owner, status, node and images are all that is looked at of a pod: the rest would be most of the operator's memory.
fn keep_what_is_looked_at(pod: &mut Pod) {
    pod.managed_fields_mut().clear();
    let Some(spec) = pod.spec.take() else { return };
    let image =
        |container: Container| Container { name: container.name, image: container.image, ..Container::default() };
    pod.spec = Some(PodSpec {
        containers: spec.containers.into_iter().map(image).collect(),
        init_containers: spec.init_containers.map(|containers| containers.into_iter().map(image).collect()),
        node_name: spec.node_name,
        ..PodSpec::default()
    });
}

type Shared = (Client, Arc<OperatorConfig>, Ports, Metrics, Arc<Runners>);

/// Begins to serve one namespace.
fn start(name: String, shared: Shared, stop: &CancellationToken, tasks: &mut JoinSet<()>) -> Arc<Namespace> {
    let (client, config, ports, metrics, runners) = shared;
    let (agents, agent_writer) = reflector::store::<Guard<Agent>>();
    let (sessions, session_writer) = reflector::store::<Guard<Session>>();
    let (pods, pod_writer) = reflector::store::<Pod>();
    let (look_at_session, session_triggers) = mpsc::channel(TRIGGERS);
    let (look_at_agent, agent_triggers) = mpsc::channel(TRIGGERS);
    let parts = Parts {
        client,
        config,
        ports,
        metrics,
        runners,
        agents: agents.clone(),
        sessions: sessions.clone(),
        pods: pods.clone(),
        look_at_session,
        look_at_agent,
    };
    let namespace = Arc::new(Namespace::new(name, parts));
    let [agents_ready, sessions_ready, pods_ready] = [(); 3].map(|()| CancellationToken::new());

    let agent_stream = watch::<Guard<Agent>>(namespace.api_guarded::<Agent>(), watcher::Config::default())
        .modify(|agent| agent.managed_fields_mut().clear())
        .reflect(agent_writer)
        .inspect(latch(&agents_ready))
        .touched_objects()
        .predicate_filter(
            predicates::generation.combine(predicates::annotations),
            kube::runtime::PredicateConfig::default(),
        );
    let session_stream = watch::<Guard<Session>>(namespace.api_guarded::<Session>(), watcher::Config::default())
        .modify(|session| session.managed_fields_mut().clear())
        .reflect(session_writer)
        .inspect(latch(&sessions_ready))
        .touched_objects()
        .predicate_filter(
            predicates::generation.combine(predicates::annotations),
            kube::runtime::PredicateConfig::default(),
        );

    // Agents first: a session that looks for its agent is to find it.
    tasks.spawn(controller(
        agent_stream,
        agents,
        agent_triggers,
        AGENTS_AT_ONCE,
        Arc::clone(&namespace),
        stop.clone(),
        async {},
        reconcile::<Agent>,
    ));
    let ready = agents_ready.clone().cancelled_owned();
    tasks.spawn(controller(
        session_stream,
        sessions,
        session_triggers,
        SESSIONS_AT_ONCE,
        Arc::clone(&namespace),
        stop.clone(),
        ready,
        reconcile::<Session>,
    ));

    let of_ash = format!("{}={}", names::MANAGED_BY, names::MANAGER);
    let pod_stream = watch::<Pod>(namespace.api(), watcher::Config::default().labels(&of_ash))
        .modify(keep_what_is_looked_at)
        .reflect(pod_writer)
        .inspect(latch(&pods_ready))
        .touched_objects();
    tasks.spawn(watch_pods(pod_stream, Arc::clone(&namespace), stop.clone()));

    let (for_pool, stopping) = (Arc::clone(&namespace), stop.clone());
    tasks.spawn(async move {
        let ready = async {
            agents_ready.cancelled().await;
            sessions_ready.cancelled().await;
            pods_ready.cancelled().await;
        };
        tokio::select! {
            () = stopping.cancelled() => return,
            () = ready => {}
        }
        // The policies are there before the first pod is.
        if !policies(&for_pool, &stopping).await {
            return;
        }
        let kept = keep_policies(Arc::clone(&for_pool), stopping.clone());
        let pool = pool::keep(Arc::clone(&for_pool), stopping.clone());
        let sweep = pool::sweep(for_pool, stopping);
        tokio::join!(kept, pool, sweep);
    });
    namespace
}

/// Notes that a watch has given everything that there was. (`Store::wait_until_ready` wakes the last of its waiters only.)
fn latch<K>(ready: &CancellationToken) -> impl FnMut(&watcher::Result<watcher::Event<K>>) + Send + use<K> {
    let ready = ready.clone();
    move |event| {
        if matches!(event, Ok(watcher::Event::InitDone)) {
            ready.cancel();
        }
    }
}

/// A watch that begins again, with pauses, whatever happens to it.
fn watch<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher(api, config.page_size(PAGE)).default_backoff()
}

/// Looks at every object of a kind when it changes, or when somebody asks for it.
#[allow(clippy::too_many_arguments, reason = "called twice, in one place")]
async fn controller<K, F, R>(
    stream: impl Stream<Item = watcher::Result<Guard<K>>> + Send + 'static,
    store: reflector::Store<Guard<K>>,
    triggers: mpsc::Receiver<ObjectRef<Guard<K>>>,
    at_once: u16,
    namespace: Arc<Namespace>,
    stop: CancellationToken,
    ready: impl Future<Output = ()> + Send + 'static,
    look: F,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    F: Fn(Arc<Guard<K>>, Arc<Namespace>) -> R + Send + Sync + Clone + 'static,
    R: Future<Output = Action> + Send + 'static,
{
    tokio::select! {
        () = stop.cancelled() => return,
        () = ready => {}
    }
    let triggers = futures::stream::unfold(triggers, |mut triggers| async move {
        let next = triggers.recv().await?;
        Some((next, triggers))
    });
    let stopping = stop.clone();
    Controller::for_stream(stream, store)
        .with_config(Config::default().concurrency(at_once))
        .reconcile_on(triggers)
        .graceful_shutdown_on(async move { stopping.cancelled().await })
        .run(
            move |object, namespace| {
                let look = look.clone();
                async move { Ok::<_, std::convert::Infallible>(look(object, namespace).await) }
            },
            |_, _, _| Action::requeue(FIRST_RETRY),
            namespace,
        )
        // An object that is gone when its turn comes has nothing to be looked at.
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn watch_pods(
    stream: impl Stream<Item = watcher::Result<Pod>> + Send + 'static,
    namespace: Arc<Namespace>,
    stop: CancellationToken,
) {
    let mut stream = std::pin::pin!(stream);
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = stream.next() => next,
        };
        match next {
            Some(Ok(pod)) => {
                namespace.pool_wake.soon();
                let label = |name: &str| pod.labels().get(name).map(String::as_str);
                if label(names::COMPONENT) == Some(names::GIT_CLONE)
                    && let Some(agent) = label(names::AGENT)
                {
                    namespace.trigger_agent(agent);
                }
            }
            Some(Err(error)) => tracing::warn!(namespace = %namespace.name, %error, "the watch of pods begins again"),
            None => return,
        }
    }
}

/// Makes the policies that are not there, until it works; false where told to stop. One that somebody made stands: the chart
/// makes them with the installation's own values.
async fn policies(namespace: &Namespace, stop: &CancellationToken) -> bool {
    let parameters = PostParams { field_manager: Some(names::FIELD_MANAGER_OPERATOR.into()), ..PostParams::default() };
    loop {
        let policies = network_policy::policies(&namespace.name, &namespace.config.system_namespace);
        let api = namespace.api::<NetworkPolicy>();
        let applied = policies.map(|policy| {
            let (api, parameters) = (api.clone(), parameters.clone());
            async move {
                if api.get_opt(&policy.name_any()).await?.is_some() {
                    return Ok(());
                }
                match api.create(&parameters, &policy).await {
                    Err(error) if is_conflict(&error) => Ok(()),
                    made => made.map(|_| ()),
                }
            }
        });
        let result: Result<Vec<()>, kube::Error> = join_all(applied).await.into_iter().collect();
        match result {
            Ok(_) => {
                namespace.succeeded("NetworkPolicy", "");
                return true;
            }
            Err(error) => {
                tracing::error!(namespace = %namespace.name, %error, "no pod is made before the policies are there");
                let pause = namespace.failed("NetworkPolicy", "");
                tokio::select! {
                    () = stop.cancelled() => return false,
                    () = sleep(pause) => {}
                }
            }
        }
    }
}

async fn keep_policies(namespace: Arc<Namespace>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(POLICIES) => {}
        }
        if !policies(&namespace, &stop).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::supervise;

    #[tokio::test]
    async fn when_one_part_fails_all_begin_again() {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let stopped = stop.clone();
        tasks.spawn(async move { stopped.cancelled().await });
        tasks.spawn(async { panic!("a defect, on purpose") });
        assert!(supervise(&mut tasks, &stop).await);
        assert!(stop.is_cancelled());
        assert!(tasks.join_next().await.is_some_and(|ended| ended.is_ok()), "the other one stops");
        assert!(!supervise(&mut tasks, &stop).await, "told to stop, it has not failed");
    }
}
