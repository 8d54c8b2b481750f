//! What is next for the sandboxes of a namespace: pure. Rows are the truth; a pod without a row is nobody's.

use std::collections::{BTreeMap, HashMap, HashSet};

use ash_core::{
    id::{AgentId, SandboxId, SessionId},
    ports::{PodSandbox, PodState},
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    failure::Failure,
    limits::{PODS_AT_ONCE, REFILL_AFTER, REFILL_PART, START_BOUND, TELL_AFTER, WARM_STARTING},
};

/// What there is in a namespace.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) now: Timestamp,
    /// Every row. Read after the pods were: a pod has had its row before it was there.
    pub(crate) rows: &'a [PodSandbox],
    pub(crate) pods: &'a BTreeMap<SandboxId, PodView>,
    /// The agents that are to have warm sandboxes.
    pub(crate) pools: &'a HashMap<AgentId, Pool>,
}

/// A pod, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodView {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) is_terminating: bool,
    /// The node that it was given.
    pub(crate) node: Option<String>,
    pub(crate) failure: Option<Failure>,
    /// Since when its node prepares it, where nothing of it has started.
    pub(crate) preparing_since: Option<Timestamp>,
    /// The session that its labels name.
    pub(crate) session: Option<SessionId>,
    /// Its bridge is of another image than the installation's: from before an upgrade.
    pub(crate) is_outdated: bool,
}

/// What an agent is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    /// The version that new sessions get.
    pub(crate) version: u32,
    /// Warm sandboxes of it.
    pub(crate) target: u32,
    /// No new one is tried before: the last ones failed.
    pub(crate) not_before: Option<Timestamp>,
}

/// One thing to do. Each can be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Adds a row for a warm sandbox, then its pod.
    Add(AgentId),
    /// Makes the pod of a row.
    CreatePod(SandboxId),
    /// A warm sandbox that is not wanted any more: by compare-and-set.
    Retire(SandboxId),
    /// Its pod has failed, or is gone: nobody gets it any more.
    Over(SandboxId, Option<Failure>),
    /// Its pod is to go.
    DeletePod(String),
    /// The pod's labels and owner are to be those of the session that has it.
    Label(SandboxId, SessionId),
    /// Its pod is gone: the session that had it is told, where it still believes in it, and the row goes.
    RemoveRow(SandboxId),
}

/// Decides.
pub(crate) fn decide(observed: &Observed<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut creations = 0;
    for row in observed.rows {
        let pod = observed.pods.get(&row.id);
        if let Some(step) = of_row(observed, row, pod) {
            if matches!(step, Step::CreatePod(_)) {
                creations += 1;
                if creations > PODS_AT_ONCE {
                    continue;
                }
            }
            steps.push(step);
        }
    }
    let known: HashSet<SandboxId> = observed.rows.iter().map(|row| row.id).collect();
    for (id, pod) in observed.pods {
        if !known.contains(id) && !pod.is_terminating {
            steps.push(Step::DeletePod(pod.name.clone()));
        }
    }
    for (agent, pool) in observed.pools {
        of_pool(observed, *agent, pool, PODS_AT_ONCE.saturating_sub(creations), &mut steps);
    }
    steps
}

fn of_row(observed: &Observed<'_>, row: &PodSandbox, pod: Option<&PodView>) -> Option<Step> {
    let age = |since: Timestamp| observed.now.duration_since(since);
    let signed = |bound| SignedDuration::try_from(bound).unwrap_or(SignedDuration::MAX);
    match (row.state, pod) {
        (PodState::Deleting, Some(pod)) if pod.is_terminating => None,
        (PodState::Deleting, Some(pod)) => Some(Step::DeletePod(pod.name.clone())),
        // A runner that lives commits what it has, and says itself why the sandbox is over.
        (PodState::Deleting, None) if row.session.is_some() && age(row.changed_at) < signed(TELL_AFTER) => None,
        (PodState::Deleting, None) => Some(Step::RemoveRow(row.id)),
        (_, Some(pod)) if pod.is_terminating => Some(Step::Over(row.id, pod.failure.clone())),
        (_, Some(PodView { failure: Some(failure), .. })) if failure.is_final => {
            Some(Step::Over(row.id, Some(failure.clone())))
        }
        (PodState::Starting, Some(pod)) if age(row.created_at) >= signed(START_BOUND) => {
            let bound = START_BOUND.as_secs();
            let failure = pod.failure.clone().unwrap_or(Failure {
                reason: ash_crd::Reason::SandboxFailed,
                message: format!("the sandbox did not start within {bound} s"),
                is_final: true,
            });
            Some(Step::Over(row.id, Some(failure)))
        }
        (PodState::Claimed, Some(pod)) if pod.session != row.session => {
            row.session.map(|session| Step::Label(row.id, session))
        }
        (_, Some(_)) if is_unwanted(observed, row) => Some(Step::Retire(row.id)),
        (_, Some(_)) => None,
        // A pod whose bridge was admitted is not made a second time.
        (_, None) if row.pod_uid.is_some() || row.state != PodState::Starting => Some(Step::Over(row.id, None)),
        (_, None) if is_unwanted(observed, row) => Some(Step::Retire(row.id)),
        (_, None) => Some(Step::CreatePod(row.id)),
    }
}

/// Nobody's, and of no agent or of another version than its newest.
fn is_unwanted(observed: &Observed<'_>, row: &PodSandbox) -> bool {
    let is_current = observed.pools.get(&row.agent).is_some_and(|pool| pool.version == row.agent_version);
    row.session.is_none() && matches!(row.state, PodState::Starting | PodState::Warm) && !is_current
}

fn of_pool(observed: &Observed<'_>, agent: AgentId, pool: &Pool, room: usize, steps: &mut Vec<Step>) {
    let is_of_pool = |row: &&PodSandbox| {
        row.agent == agent
            && row.agent_version == pool.version
            && row.session.is_none()
            && matches!(row.state, PodState::Starting | PodState::Warm)
    };
    // One whose pod the watch does not have may be there all the same: it counts until that is known.
    let is_over = |row: &&PodSandbox| {
        steps.iter().any(|step| matches!(step, Step::Over(id, Some(_)) | Step::Retire(id) if *id == row.id))
    };
    let mut rows: Vec<&PodSandbox> = observed.rows.iter().filter(is_of_pool).filter(|row| !is_over(row)).collect();
    let target = pool.target as usize;
    if rows.len() > target {
        // Those that are not ready first, then the oldest: what was rehearsed last stays.
        rows.sort_by_key(|row| (row.state == PodState::Warm, row.created_at, row.id));
        let surplus = rows.len() - target;
        steps.extend(rows.into_iter().take(surplus).map(|row| Step::Retire(row.id)));
        return;
    }
    if pool.not_before.is_some_and(|at| at > observed.now) {
        return;
    }
    let starting: Vec<_> = rows.iter().filter(|row| row.state == PodState::Starting).collect();
    // While the cluster says what is wrong with one, another one would have it, too.
    let is_stuck = starting.iter().any(|row| observed.pods.get(&row.id).is_some_and(|pod| pod.failure.is_some()));
    if is_stuck {
        return;
    }
    // One by one, and each only once the one before has its successor: a new image that does not start empties no pool.
    if rows.len() == target && starting.is_empty() {
        let is_outdated = |row: &&PodSandbox| observed.pods.get(&row.id).is_some_and(|pod| pod.is_outdated);
        steps.extend(rows.iter().copied().find(is_outdated).map(|row| Step::Retire(row.id)));
        return;
    }
    if is_being_claimed(observed, agent, rows.len() - starting.len(), target) {
        return;
    }
    let missing = (target - rows.len()).min(WARM_STARTING.saturating_sub(starting.len())).min(room);
    steps.extend(std::iter::repeat_n(Step::Add(agent), missing));
}

/// Whether sessions are taking sandboxes at this moment and enough are left: those that are to follow wait until that is over,
/// because a pod that starts takes the processors from the sessions that begin.
fn is_being_claimed(observed: &Observed<'_>, agent: AgentId, warm: usize, target: usize) -> bool {
    let lately = SignedDuration::try_from(REFILL_AFTER).unwrap_or(SignedDuration::ZERO);
    let was_claimed = |row: &PodSandbox| {
        row.agent == agent
            && row.state == PodState::Claimed
            && observed.now.duration_since(row.changed_at).abs() < lately
    };
    warm >= (target / REFILL_PART).max(1) && observed.rows.iter().any(was_claimed)
}

#[cfg(test)]
mod tests;
