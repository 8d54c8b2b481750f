//! What is next for an agent: pure.

use std::time::Duration;

use ash_core::agent::{Agent as Row, AgentSettings};
use ash_crd::{
    AgentSpec, AgentStatus, Reason,
    condition::{self, ConditionStatus, ConditionType},
    names,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    failure::Failure,
    limits::{COUNTS, DEPLOYMENT, POLL},
    namespace::Counts,
    object,
};

/// What there is of an agent.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    pub(crate) now: Timestamp,
    pub(crate) name: &'a str,
    pub(crate) generation: i64,
    pub(crate) deleting_since: Option<Timestamp>,
    pub(crate) has_finalizer: bool,
    pub(crate) spec: &'a AgentSpec,
    /// The status as it is now.
    pub(crate) before: &'a AgentStatus,
    pub(crate) row: Option<&'a Row>,
    /// Not looked at while the agent is being deleted.
    pub(crate) made: &'a Made,
    /// None where its sandboxes were not looked at yet.
    pub(crate) counts: Option<Counts>,
    pub(crate) asleep: u32,
    /// What is wrong with its warm sandboxes.
    pub(crate) trouble: Option<&'a Failure>,
    /// When its status was last written, if that is known.
    pub(crate) written: Option<Timestamp>,
    /// Since when its newest version is one that its status does not name, though the resource is as the status says.
    pub(crate) others_version_since: Option<Timestamp>,
}

/// What the spec stands for just now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Made {
    /// Its files and settings.
    Ready(Box<Version>),
    /// It cannot be used, or not yet, for this reason.
    Not(Reason, String),
}

/// A version that could be deployed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Version {
    /// The digest of the files.
    pub(crate) digest: String,
    /// The settings, complete.
    pub(crate) settings: AgentSettings,
    /// The commit that the files are of.
    pub(crate) commit: Option<String>,
}

/// One thing to do. Each can be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    AddFinalizer,
    RemoveFinalizer,
    /// Deletes the agent in the store: its sessions keep their version.
    Forget,
    /// A new version.
    Deploy,
    /// Another slug or description: no version.
    Describe,
}

/// What is next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// What to do now; then look again.
    pub(crate) step: Option<Step>,
    /// The status to write, if one is.
    pub(crate) status: Option<AgentStatus>,
    /// When to look again although nothing happens.
    pub(crate) again: Option<Duration>,
}

/// Decides.
pub(crate) fn decide(observed: &Observed<'_>) -> Decision {
    if let Some(since) = observed.deleting_since {
        let is_late = object::is_late(since, observed.now);
        let step = match (observed.has_finalizer, observed.row) {
            (false, _) => None,
            (true, Some(_)) if !is_late => Some(Step::Forget),
            (true, _) => Some(Step::RemoveFinalizer),
        };
        return Decision { step, status: None, again: None };
    }
    if !observed.has_finalizer {
        return Decision { step: Some(Step::AddFinalizer), status: None, again: None };
    }
    if let Made::Ready(version) = observed.made
        && !observed.row.is_some_and(|row| is_deployed(row, version))
    {
        // A REST deployment makes the version first: the change of the resource is on its way, or never comes.
        let age = observed.others_version_since.map(|since| observed.now.duration_since(since));
        if let Some(left) = age.and_then(|age| remaining(DEPLOYMENT, age)) {
            return Decision { step: None, status: None, again: Some(left) };
        }
        return Decision { step: Some(Step::Deploy), status: None, again: None };
    }
    if let (Made::Ready(_), Some(row)) = (observed.made, observed.row)
        && !is_described(row, observed.spec)
    {
        return Decision { step: Some(Step::Describe), status: None, again: None };
    }
    let status = status(observed);
    let again = polls(observed.spec, observed.made).then_some(POLL);
    if status == *observed.before {
        return Decision { step: None, status: None, again };
    }
    // Counts change with every session: they are written now and then, all else at once.
    let counts_only =
        AgentStatus { warm: status.warm, active: status.active, asleep: status.asleep, ..observed.before.clone() };
    let age = observed.written.map(|at| observed.now.duration_since(at));
    let left = age.and_then(|age| remaining(COUNTS, age));
    match left.filter(|_| counts_only == status) {
        Some(left) => Decision { step: None, status: None, again: Some(left) },
        None => Decision { step: None, status: Some(status), again },
    }
}

/// What is left of a time after so long; `None` where it is over.
fn remaining(time: Duration, age: SignedDuration) -> Option<Duration> {
    Duration::try_from(SignedDuration::try_from(time).ok()? - age).ok().filter(|left| !left.is_zero())
}

/// Whether a version is the newest one already.
fn is_deployed(row: &Row, version: &Version) -> bool {
    row.version.digest == version.digest && row.version.settings == version.settings
}

/// Whether the agent is called what its manifest says. What that does not say stays as REST or an older manifest has it.
fn is_described(row: &Row, spec: &AgentSpec) -> bool {
    let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
    is(&spec.slug, &row.slug) && is(&spec.description, &row.description)
}

/// Whether something that the agent is made from changes without anybody saying so.
fn polls(spec: &AgentSpec, made: &Made) -> bool {
    spec.source.config_map.is_some() || spec.secret_keys().next().is_some() || matches!(made, Made::Not(..))
}

fn status(observed: &Observed<'_>) -> AgentStatus {
    let mut status = observed.before.clone();
    let (generation, now) = (observed.generation, observed.now);
    status.observed_generation = Some(generation);
    status.selector = Some(names::warm_selector(observed.name));
    if let Some(row) = observed.row {
        status.version = Some(row.version.number);
        status.digest = Some(row.version.digest.clone());
    }
    let counts = observed.counts.unwrap_or(Counts { warm: status.warm, active: status.active, target: 0 });
    status.warm = counts.warm;
    status.active = counts.active;
    status.asleep = observed.asleep;
    let (source, reason, message) = match (observed.made, observed.trouble) {
        (Made::Not(reason, message), _) => (ConditionStatus::False, *reason, message.as_str()),
        // Sessions can start in a warm sandbox, whatever is wrong with the next one.
        (Made::Ready(_), Some(trouble)) if counts.warm == 0 => {
            (ConditionStatus::True, trouble.reason, trouble.message.as_str())
        }
        (Made::Ready(_), _) => (ConditionStatus::True, Reason::Deployed, ""),
    };
    if let Made::Ready(version) = observed.made {
        status.commit.clone_from(&version.commit);
    }
    let is_source = |reason| !matches!(reason, Reason::StoreUnavailable | Reason::InternalError);
    if is_source(reason) {
        let (reason, message) =
            if source == ConditionStatus::True { (Reason::Deployed, "") } else { (reason, message) };
        condition::set(&mut status.conditions, ConditionType::SourceReady, source, reason, message, generation, now);
    }
    let target = counts.target.max(observed.spec.warm.min);
    let (pool, why, text) = match observed.trouble {
        _ if counts.warm >= target => (ConditionStatus::True, Reason::Deployed, ""),
        Some(trouble) => (ConditionStatus::False, trouble.reason, trouble.message.as_str()),
        None => (ConditionStatus::False, Reason::Warming, ""),
    };
    condition::set(&mut status.conditions, ConditionType::PoolReady, pool, why, text, generation, now);
    condition::report(&mut status.conditions, reason, message, generation, now);
    status
}

#[cfg(test)]
mod tests;
