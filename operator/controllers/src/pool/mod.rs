//! The sandboxes of a namespace: warm pools, pods for sessions, and the sweep.

pub(crate) mod decide;
pub(crate) mod demand;
pub(crate) mod events;
mod sweep;
pub(crate) mod wake;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ash_core::{
    agent::Agent as AgentRow,
    id::{AgentId, SandboxId, SessionId},
    opening::{Opening, OpeningReason},
    ports::{OpenEpoch, PodSandbox, PodState},
    session::{PausedReason, SessionEvent},
};
use ash_crd::{Reason, Sandbox, names};
use ash_pods::manifest::{self, Wanted};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::decide::{Observed, PodView, Pool, Step};
use crate::{
    error::{StepError, is_conflict, unless_gone},
    failure::{self, Failure},
    limits::{POOL_BUSY, POOL_IDLE, POOL_LOOK},
    namespace::{Counts, Namespace},
    object::owner,
    runners::Room,
    session,
};

pub(crate) use sweep::keep as sweep;

const KIND: &str = "Pool";

/// The agents of a namespace by their ids.
type Agents<'a> = HashMap<AgentId, &'a AgentRow>;

/// Looks at the sandboxes until told to stop: soon after something happened, and now and then in any case.
pub(crate) async fn keep(namespace: Arc<Namespace>, stop: CancellationToken) {
    let mut busy_until = Instant::now() + POOL_BUSY;
    loop {
        let pause = match look(&namespace).await {
            Ok(acted) => {
                namespace.metrics.look(KIND, "ok");
                namespace.succeeded(KIND, "");
                if acted {
                    busy_until = Instant::now() + POOL_BUSY;
                }
                match (acted, Instant::now() < busy_until) {
                    // What was begun goes on soon, and not before the watch could say so.
                    (true, _) => POOL_LOOK / 2,
                    (false, true) => POOL_LOOK * 4,
                    (false, false) => POOL_IDLE,
                }
            }
            Err(error) => {
                namespace.metrics.look(KIND, error.category());
                tracing::warn!(namespace = %namespace.name, %error, "sandboxes are looked at again");
                namespace.failed(KIND, "")
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            result = timeout(pause, namespace.pool_wake.told()) => {
                if result.is_ok() {
                    busy_until = Instant::now() + POOL_BUSY;
                }
            }
        }
        if namespace.pool_wake.take_urgent() || Instant::now() >= busy_until {
            continue;
        }
        // What comes within this is one look.
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(POOL_LOOK / 10) => {}
        }
    }
}

/// One look: gives whether anything was done.
async fn look(namespace: &Arc<Namespace>) -> Result<bool, StepError> {
    // First the pods, then the rows: a pod has had its row before it was there.
    let mut pods = views(namespace);
    events::ask(namespace, &mut pods).await;
    let rows = namespace.ports.pods.pods(Some(&namespace.tenant())).await?;
    let agents = namespace.ports.store.agents(&namespace.tenant()).await?;
    namespace.runners.see(&namespace.name, &waiting(&rows, &pods));
    count(namespace, &rows);
    let pools = pools(namespace, &agents);
    remember(namespace, &rows, &pods, &pools, &agents);
    let observed = Observed { now: Timestamp::now(), rows: &rows, pods: &pods, pools: &pools };
    let steps = decide::decide(&observed);
    let rows: HashMap<SandboxId, &PodSandbox> = rows.iter().map(|row| (row.id, row)).collect();
    let agents: Agents<'_> = agents.iter().map(|agent| (agent.id, agent)).collect();
    let mut first = Ok(());
    // What the watch does not have is asked for, and that changes nothing as a rule.
    let acted = steps.iter().any(|step| !matches!(step, Step::Over(_, None)));
    // What became of agents that cannot have another pod now: their other pods would fail alike.
    let mut refused = HashSet::new();
    for step in steps {
        let result = match step {
            Step::Add(agent) if refused.contains(&agent) => Ok(()),
            Step::Add(agent) => match agents.get(&agent) {
                Some(agent) => add(namespace, agent, &agents, &mut refused).await,
                None => Ok(()),
            },
            Step::CreatePod(id) => create(namespace, rows[&id], &agents, &mut refused).await,
            Step::Retire(id) => namespace.ports.pods.delete_unclaimed_pod(id).await.map(|_| ()).map_err(Into::into),
            Step::Over(id, failure) => over(namespace, rows[&id], &agents, failure).await,
            Step::DeletePod(name) => delete(namespace, &name).await,
            Step::Label(id, session) => label(namespace, rows[&id], session).await,
            Step::RemoveRow(id) => remove(namespace, rows[&id]).await,
        };
        // The others may go well.
        if let Err(error) = result
            && first.is_ok()
        {
            first = Err(error);
        }
    }
    first.map(|()| acted)
}

/// The pods that the watch has.
fn views(namespace: &Namespace) -> BTreeMap<SandboxId, PodView> {
    let pods = namespace.pods.state();
    let view = |pod: &Arc<Pod>| {
        let label = |name: &str| pod.labels().get(name).map(String::as_str);
        let id = label(names::SANDBOX_ID)?.parse().ok()?;
        let view = PodView {
            name: pod.name_any(),
            is_terminating: pod.metadata.deletion_timestamp.is_some(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            uid: pod.uid().unwrap_or_default(),
            failure: failure::of_pod(pod),
            preparing_since: failure::preparing_since(pod),
            session: label(names::SESSION_UID).and_then(|uid| uid.parse().ok()),
            is_outdated: !has_image(pod, &namespace.config.installation.bridge_image),
        };
        Some((id, view))
    };
    pods.iter().filter_map(view).collect()
}

/// Sandboxes that no runner has met, with the node that each has. One that does not start, as far as the cluster says, is awaited
/// nowhere.
fn waiting(rows: &[PodSandbox], pods: &BTreeMap<SandboxId, PodView>) -> HashMap<SandboxId, Option<String>> {
    let is_waiting = |row: &&PodSandbox| {
        let starts = pods.get(&row.id).is_none_or(|pod| pod.failure.is_none() && !pod.is_terminating);
        row.state == PodState::Starting && row.runner.is_none() && starts
    };
    let node = |row: &PodSandbox| (row.id, pods.get(&row.id).and_then(|pod| pod.node.clone()));
    rows.iter().filter(is_waiting).map(node).collect()
}

/// Whether a pod has something of an image: a sandbox of an agent's own image has it as an init container.
fn has_image(pod: &Pod, image: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        containers.any(|container| container.image.as_deref() == Some(image))
    })
}

/// Notes what was asked for: each sandbox that a session has taken, or that was made for one, whichever side the session came
/// from. The first look notes what was asked for before this process was, so that a restart does not make pools shrink.
fn count(namespace: &Namespace, rows: &[PodSandbox]) {
    let mut memory = namespace.memory();
    let taken: HashMap<SandboxId, &PodSandbox> =
        rows.iter().filter(|row| row.session.is_some()).map(|row| (row.id, row)).collect();
    memory.counted.retain(|id| taken.contains_key(id));
    let mut new: Vec<&PodSandbox> = taken.into_values().filter(|row| !memory.counted.contains(&row.id)).collect();
    new.sort_by_key(|row| row.changed_at);
    for row in new {
        memory.counted.insert(row.id);
        memory.demand.entry(row.agent).or_default().note(row.changed_at);
    }
}

/// What each agent is to have: those whose resource is there and stays.
fn pools(namespace: &Namespace, agents: &[AgentRow]) -> HashMap<AgentId, Pool> {
    let now = Timestamp::now();
    let mut memory = namespace.memory();
    let known: HashSet<AgentId> = agents.iter().map(|agent| agent.id).collect();
    memory.keep_agents(&known, |name| namespace.has_agent(name));
    let mut pools = HashMap::new();
    for row in agents {
        let Some(agent) = namespace.agent(row.name.as_str()) else { continue };
        if agent.metadata.deletion_timestamp.is_some() {
            continue;
        }
        // Somebody made a version, and may not have come so far as to change the resource.
        if agent.status.as_ref().and_then(|status| status.version) != Some(row.version.number) {
            namespace.trigger_agent(row.name.as_str());
        }
        let warm = &agent.spec.warm;
        let demand = memory.demand.entry(row.id).or_default();
        let target = demand.target(&warm.bounds(), warm.demand_window.to_std(), now);
        let not_before = memory.of_agents.get(&row.id).map(|trouble| trouble.not_before);
        pools.insert(row.id, Pool { version: row.version.number, target, not_before });
    }
    pools
}

/// Notes what is wrong and how many there are, and has those looked at whom it concerns.
fn remember(
    namespace: &Namespace,
    rows: &[PodSandbox],
    pods: &BTreeMap<SandboxId, PodView>,
    pools: &HashMap<AgentId, Pool>,
    agents: &[AgentRow],
) {
    let failures: HashMap<SandboxId, Failure> =
        pods.iter().filter_map(|(id, pod)| Some((*id, pod.failure.clone()?))).collect();
    let mut counts: HashMap<AgentId, Counts> = HashMap::new();
    for (agent, pool) in pools {
        counts.entry(*agent).or_default().target = pool.target;
    }
    let mut concerned: HashSet<SessionId> = HashSet::new();
    let mut stuck: HashMap<AgentId, Failure> = HashMap::new();
    let mut memory = namespace.memory();
    for row in rows {
        let of_agent = counts.entry(row.agent).or_default();
        match (row.state, row.session) {
            (PodState::Warm, None) => of_agent.warm += 1,
            (PodState::Claimed, Some(_)) => of_agent.active += 1,
            (PodState::Starting, Some(_)) if row.pod_uid.is_some() => of_agent.active += 1,
            _ => {}
        }
        let failure = failures.get(&row.id);
        if let Some(session) = row.session
            && failure != memory.of_pods.get(&row.id)
        {
            concerned.insert(session);
        }
        if let (Some(failure), None, PodState::Starting) = (failure, row.session, row.state) {
            stuck.insert(row.agent, failure.clone());
        }
    }
    let mut looked: HashSet<AgentId> = HashSet::new();
    for (agent, failure) in stuck {
        if memory.of_agents.get(&agent).is_none_or(|trouble| trouble.failure != failure) {
            let trouble = crate::namespace::Trouble { failure, attempts: 0, not_before: Timestamp::now() };
            memory.of_agents.insert(agent, trouble);
            looked.insert(agent);
        }
    }
    for (agent, now) in &counts {
        let before = memory.counts.get(agent);
        if before != Some(now) {
            looked.insert(*agent);
        }
        // One that is warm proves that they can be.
        if now.warm > 0 && now.warm >= now.target && memory.of_agents.remove(agent).is_some() {
            looked.insert(*agent);
        }
    }
    memory.counts = counts;
    memory.of_pods = failures;
    drop(memory);
    for agent in agents.iter().filter(|agent| looked.contains(&agent.id)) {
        namespace.trigger_agent(agent.name.as_str());
    }
    trigger(namespace, &concerned);
}

/// Has sessions looked at, by their ids.
pub(crate) fn trigger(namespace: &Namespace, ids: &HashSet<SessionId>) {
    if ids.is_empty() {
        return;
    }
    for found in namespace.sessions.state() {
        if let Ok(resource) = &found.0
            && session::id(resource).is_some_and(|id| ids.contains(&id))
        {
            namespace.trigger_session(&resource.name_any());
        }
    }
}

/// A warm sandbox more: its row, then its pod.
async fn add(
    namespace: &Namespace,
    agent: &AgentRow,
    agents: &Agents<'_>,
    refused: &mut HashSet<AgentId>,
) -> Result<(), StepError> {
    let pool = Sandbox::from_version(agent.version.settings.sandbox.as_ref()).node_pool;
    if namespace.runners.address(&pool).await?.is_none() {
        let text = format!("there is no Service ash-runner-{pool} in {}", namespace.config.system_namespace);
        refused.insert(agent.id);
        let row = session::new_sandbox(&namespace.tenant(), agent.name.as_str(), &agent.version, pool, None);
        failed(namespace, &row, agents, Failure { reason: Reason::NodePoolNotFound, message: text, is_final: false });
        return Ok(());
    }
    let row = session::new_sandbox(&namespace.tenant(), agent.name.as_str(), &agent.version, pool, None);
    namespace.ports.pods.add_pod(row.clone()).await?;
    create(namespace, &row, agents, refused).await
}

/// Notes a failure, and has whoever it concerns looked at.
fn failed(namespace: &Namespace, row: &PodSandbox, agents: &Agents<'_>, failure: Failure) {
    namespace.sandbox_failed(row, failure, Timestamp::now());
    if let Some(session) = row.session {
        trigger(namespace, &HashSet::from([session]));
    }
    if let Some(agent) = agents.get(&row.agent) {
        namespace.trigger_agent(agent.name.as_str());
    }
}

/// The pod of a row.
async fn create(
    namespace: &Namespace,
    row: &PodSandbox,
    agents: &Agents<'_>,
    refused: &mut HashSet<AgentId>,
) -> Result<(), StepError> {
    let version = namespace.ports.store.agent_version(&row.tenant, row.agent, row.agent_version).await?;
    let Some(version) = version else {
        namespace.ports.pods.delete_pod(row.id).await?;
        return Ok(());
    };
    let sandbox = Sandbox::from_version(version.settings.sandbox.as_ref());
    let Some(host) = namespace.runners.address(&row.pool).await? else {
        let text = format!("there is no Service ash-runner-{} in {}", row.pool, namespace.config.system_namespace);
        failed(namespace, row, agents, Failure { reason: Reason::NodePoolNotFound, message: text, is_final: false });
        return Ok(());
    };
    let near = match namespace.runners.room(&namespace.name, &row.pool, row.id).await? {
        Room::Near(node) => Some(node),
        Room::NoRunner | Room::Full => None,
    };
    let session = match row.session {
        Some(id) => find_session(namespace, id),
        None => None,
    };
    if row.session.is_some() && session.is_none() {
        // Its resource is gone: the sweep, or its finalizer, takes the row.
        return Ok(());
    }
    // Sessions of an agent that was deleted go on.
    let agent_name = match (agents.get(&row.agent), &session) {
        (Some(agent), _) => agent.name.as_str().to_owned(),
        (None, Some(session)) => session.spec.agent.clone(),
        (None, None) => return Ok(()),
    };
    let owned_by = match &session {
        Some(session) => owner(session),
        None => namespace.agent(&agent_name).as_ref().and_then(owner),
    };
    let names = session.as_ref().map(|session| (session.name_any(), session.uid().unwrap_or_default()));
    let wanted = Wanted {
        id: row.id,
        namespace: &namespace.name,
        agent: &agent_name,
        version: row.agent_version,
        sandbox: &sandbox,
        session: names.as_ref().map(|(name, uid)| (name.as_str(), uid.as_str())),
        owner: owned_by,
        host: &host,
        preferred_node: near.as_deref(),
    };
    let pod = manifest::pod(&namespace.config.installation, &wanted);
    match namespace.api::<Pod>().create(&PostParams::default(), &pod).await {
        Ok(_) => {
            namespace.metrics.pods_created.inc();
            tracing::debug!(sandbox = %row.id, pod = row.pod, "its pod is made");
            Ok(())
        }
        // It is there; the watch has not said so yet.
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => match failure::of_refusal(&error) {
            Some(mut failure) => {
                // The next one has another name, and the same to say.
                failure.message = failure.message.replace(&row.pod, &agent_name);
                refused.insert(row.agent);
                namespace.ports.pods.delete_pod(row.id).await?;
                namespace.metrics.sandboxes_failed.inc();
                failed(namespace, row, agents, failure);
                Ok(())
            }
            None => Err(error.into()),
        },
    }
}

fn find_session(namespace: &Namespace, id: SessionId) -> Option<ash_crd::Session> {
    let found = namespace.sessions.find(|found| found.0.as_ref().is_ok_and(|found| session::id(found) == Some(id)))?;
    found.0.as_ref().ok().cloned()
}

/// A sandbox whose pod failed or is gone. What the watch does not have may only be late, so the API server is asked.
async fn over(
    namespace: &Namespace,
    row: &PodSandbox,
    agents: &Agents<'_>,
    failure: Option<Failure>,
) -> Result<(), StepError> {
    if failure.is_none()
        && let Some(pod) = namespace.api::<Pod>().get_opt(&row.pod).await?
    {
        let is_own = row.pod_uid.is_none() || row.pod_uid == pod.metadata.uid;
        if is_own && pod.metadata.deletion_timestamp.is_none() && failure::of_pod(&pod).is_none() {
            return Ok(());
        }
    }
    namespace.ports.pods.delete_pod(row.id).await?;
    namespace.metrics.sandboxes_failed.inc();
    let failure = failure.unwrap_or(Failure {
        reason: Reason::NodeLost,
        message: format!("the pod {} is gone", row.pod),
        is_final: true,
    });
    tracing::info!(namespace = %namespace.name, pod = %row.pod, reason = failure.reason.as_str(), message = %failure.message, "a sandbox is over");
    failed(namespace, row, agents, failure);
    Ok(())
}

async fn delete(namespace: &Namespace, name: &str) -> Result<(), StepError> {
    unless_gone(namespace.api::<Pod>().delete(name, &DeleteParams::default()).await)?;
    Ok(())
}

/// A pod that was warm becomes its session's: it does not go with its agent any more, and people see whose it is.
async fn label(namespace: &Namespace, row: &PodSandbox, session: SessionId) -> Result<(), StepError> {
    let Some(session) = find_session(namespace, session) else { return Ok(()) };
    let labels = json!({ names::WARM: null, names::SESSION: session.name_any(), names::SESSION_UID: session.uid() });
    let owners: Vec<_> = owner(&session).into_iter().collect();
    let patch = json!({ "metadata": { "labels": labels, "ownerReferences": owners } });
    let parameters =
        PatchParams { field_manager: Some(names::FIELD_MANAGER_OPERATOR.into()), ..PatchParams::default() };
    let patched = namespace.api::<Pod>().patch_metadata(&row.pod, &parameters, &Patch::Merge(patch)).await;
    unless_gone(patched)?;
    Ok(())
}

/// The pod is gone. A session that is still on the sandbox is told, then the row goes.
async fn remove(namespace: &Namespace, row: &PodSandbox) -> Result<(), StepError> {
    if namespace
        .api::<Pod>()
        .get_opt(&row.pod)
        .await?
        .is_some_and(|pod| pod.labels().get(names::SANDBOX_ID) == Some(&row.id.to_string()))
    {
        // The watch is late.
        return delete(namespace, &row.pod).await;
    }
    if let Some(id) = row.session {
        lose(namespace, id, row.id).await?;
    }
    namespace.ports.pods.remove_pod(row.id).await?;
    Ok(())
}

/// Takes a session off a sandbox that is gone, where it is still on it.
async fn lose(namespace: &Namespace, id: SessionId, sandbox: SandboxId) -> Result<(), StepError> {
    let store = &namespace.ports.store;
    let Some(row) = store.session(&namespace.tenant(), id).await? else { return Ok(()) };
    if row.sandbox != Some(sandbox) {
        return Ok(());
    }
    let interrupted = store.unfinished_turn(id).await?.map(|turn| turn.0);
    let message = "The session's sandbox was lost in the middle of the turn; send the message again.";
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: row.last,
        interrupted,
        message: interrupted.map(|_| message.to_owned()),
        recovered: None,
        sandbox: None,
    };
    let state = row.state.after(SessionEvent::Pause(PausedReason::Lost)).unwrap_or(row.state);
    let open = OpenEpoch { session: id, expected: row.epoch, state, error: None, sandbox: None, opening };
    // Where somebody else was faster, the next look sees what there is.
    store.open_epoch(open).await?;
    trigger(namespace, &HashSet::from([id]));
    Ok(())
}
