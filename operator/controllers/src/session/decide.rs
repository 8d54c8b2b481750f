//! What is next for a session: pure.

use std::time::Duration;

use ash_core::{
    Epoch,
    ports::{PodSandbox, PodState},
    session::{Closing, PausedReason, Session as Row, SessionState},
};
use ash_crd::{
    Reason, SessionSpec, SessionStatus,
    condition::{self, ConditionStatus, ConditionType},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    failure::Failure,
    limits::{ATTEMPTS, REST_HEAD_START, START_LOOK},
    object,
};

/// What a session says whose credential was refused.
const MODEL_REFUSED: &str = "the model API answered 401 or 403 to the session's last turn";

/// What there is of a session.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is something else that was seen")]
pub(crate) struct Observed<'a> {
    pub(crate) now: Timestamp,
    pub(crate) generation: i64,
    pub(crate) created_at: Timestamp,
    pub(crate) deleting_since: Option<Timestamp>,
    pub(crate) has_finalizer: bool,
    /// A REST call made it, and gives it its sandbox.
    pub(crate) from_rest: bool,
    /// REST stopped it rather than paused it.
    pub(crate) is_stopped: bool,
    /// That the API asked for a sandbox.
    pub(crate) wake: Option<Wake>,
    pub(crate) spec: &'a SessionSpec,
    /// The status as it is now.
    pub(crate) before: &'a SessionStatus,
    pub(crate) row: Option<&'a Row>,
    /// Its sandbox that is not deleting.
    pub(crate) sandbox: Option<&'a PodSandbox>,
    /// Its runner has no place for it, and another one has.
    pub(crate) is_shut_out: bool,
    /// What is wrong with its sandbox, or was with the one before.
    pub(crate) trouble: Option<&'a Failure>,
    /// Sandboxes of it that failed one after another.
    pub(crate) attempts: u32,
    /// No other is tried before.
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) message: Message,
    pub(crate) url: Option<String>,
}

/// That the API asked for a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// In this epoch of the session's log. Nobody's clock has a say.
    In(Epoch),
    /// At this time: by an API process of the release before.
    At(Timestamp),
}

impl Wake {
    /// Whether the session is still as it was then: what has changed since was the answer.
    fn holds(self, row: &Row) -> bool {
        match self {
            Self::In(epoch) => epoch == row.epoch,
            Self::At(at) => at > row.last_active_at,
        }
    }
}

/// How far the first message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// There is none.
    None,
    /// It is not in the log.
    Waiting,
    /// It is being sent.
    Sending,
    /// It is in the log.
    Taken,
    /// It was refused for good.
    Failed(String),
}

/// One thing to do. Each can be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    AddFinalizer,
    RemoveFinalizer,
    CreateRow,
    /// Claims a warm sandbox, or has one made.
    FindSandbox,
    /// Has one made: a session that slept is not new any more.
    MakeSandbox,
    /// The sandbox was claimed, and its runner does not know it.
    Place,
    RemoveSandbox,
    Suspend(Closing),
    Resume,
    /// Options were changed in the resource.
    Configure,
    End,
    /// No sandbox could be started.
    Fail,
    Send,
    /// The resource's time is over.
    RemoveResource,
}

/// What is next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// What to do now; then look again.
    pub(crate) step: Option<Step>,
    /// The reason of `Ready`, with a sentence. None: nothing is written any more.
    pub(crate) report: Option<(Reason, String)>,
    /// When to look again although nothing happens.
    pub(crate) again: Option<Duration>,
}

impl Decision {
    fn step(step: Step, reason: Reason) -> Self {
        Self { step: Some(step), report: Some((reason, String::new())), again: None }
    }

    fn rest(reason: Reason, message: impl Into<String>) -> Self {
        Self { step: None, report: Some((reason, message.into())), again: None }
    }

    fn again(mut self, after: Duration) -> Self {
        self.again = Some(after);
        self
    }
}

/// Decides.
pub(crate) fn decide(observed: &Observed<'_>) -> Decision {
    if let Some(since) = observed.deleting_since {
        return deletion(observed, since);
    }
    let row = match observed.row {
        Some(row) if row.state == SessionState::Ended => return ended(observed, ""),
        Some(row) => row,
        None if observed.spec.end => return ended(observed, "The session ended before it began."),
        None if !observed.has_finalizer => return Decision::step(Step::AddFinalizer, Reason::Starting),
        // Only the API knows with which key it was asked for.
        None if is_for_the_api(observed) => {
            return Decision { step: None, report: None, again: Some(REST_HEAD_START) };
        }
        None => return Decision::step(Step::CreateRow, Reason::Starting),
    };
    if !observed.has_finalizer {
        return Decision::step(Step::AddFinalizer, Reason::Starting);
    }
    if observed.spec.end {
        return Decision::step(Step::End, Reason::Ending);
    }
    let is_suspended = matches!(row.state, SessionState::Stopped | SessionState::Paused(PausedReason::Person));
    if observed.spec.suspend != is_suspended {
        let closing = if observed.is_stopped { Closing::Stop } else { Closing::Pause };
        let step = if observed.spec.suspend { Step::Suspend(closing) } else { Step::Resume };
        return Decision::step(step, if observed.spec.suspend { Reason::Suspended } else { Reason::Resuming });
    }
    if is_suspended {
        return with_changes(observed, row, Decision::rest(Reason::Suspended, ""));
    }
    with_changes(observed, row, serving(observed, row))
}

/// Where there is nothing else to do, the session is given the options that its resource has by now.
fn with_changes(observed: &Observed<'_>, row: &Row, decision: Decision) -> Decision {
    let has_changed = decision.step.is_none() && observed.spec.changed(&row.options).is_some();
    Decision { step: if has_changed { Some(Step::Configure) } else { decision.step }, ..decision }
}

fn deletion(observed: &Observed<'_>, since: Timestamp) -> Decision {
    let nothing = |step| Decision { step, report: None, again: None };
    if !observed.has_finalizer {
        return nothing(None);
    }
    let is_late = object::is_late(since, observed.now);
    let is_live = observed.row.is_some_and(|row| row.state != SessionState::Ended);
    nothing(Some(match (is_late, is_live, observed.sandbox) {
        (true, _, _) => Step::RemoveFinalizer,
        (false, true, _) => Step::End,
        (false, false, Some(_)) => Step::RemoveSandbox,
        (false, false, None) => Step::RemoveFinalizer,
    }))
}

/// A REST call has just made the session, and the API does the rest of it.
fn is_for_the_api(observed: &Observed<'_>) -> bool {
    observed.from_rest && observed.now.duration_since(observed.created_at) < signed(REST_HEAD_START)
}

fn ended(observed: &Observed<'_>, message: &str) -> Decision {
    if observed.sandbox.is_some() {
        return Decision::step(Step::RemoveSandbox, Reason::Ending);
    }
    let rest = Decision::rest(Reason::Ended, message);
    let Some(keep) = &observed.spec.ttl_after_end else { return rest };
    // Counted from what people can read.
    let Some(Time(at)) = &observed.before.ended_at else { return rest.again(Duration::from_secs(1)) };
    let left = signed(keep.to_std()) - observed.now.duration_since(*at);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => rest.again(left),
        _ => Decision { step: Some(Step::RemoveResource), report: None, again: None },
    }
}

/// A session that is to take messages, or sleeps.
fn serving(observed: &Observed<'_>, row: &Row) -> Decision {
    if row.sandbox.is_some() && matches!(row.state, SessionState::Active | SessionState::Starting) {
        let active = if row.model_refused {
            Decision::rest(Reason::ModelCredentialRefused, MODEL_REFUSED)
        } else {
            Decision::rest(Reason::Active, "")
        };
        return match observed.message {
            Message::Waiting => Decision { step: Some(Step::Send), ..active },
            Message::Sending => active.again(START_LOOK),
            _ => active,
        };
    }
    let is_new = matches!(row.state, SessionState::Active | SessionState::Starting);
    let is_asked = observed.wake.is_some_and(|wake| wake.holds(row));
    if !is_new && !is_asked {
        return match row.state {
            SessionState::Error => Decision::rest(Reason::SessionFailed, row.error.clone().unwrap_or_default()),
            // Its first message wakes it like any other.
            _ if observed.message == Message::Waiting => {
                Decision { step: Some(Step::Send), ..Decision::rest(Reason::Asleep, "") }
            }
            SessionState::Paused(PausedReason::Lost) => Decision::rest(Reason::Asleep, why_lost(observed)),
            _ => Decision::rest(Reason::Asleep, ""),
        };
    }
    let way = if is_new { Reason::Starting } else { Reason::Resuming };
    let (reason, message) =
        observed.trouble.map_or((way, String::new()), |trouble| (trouble.reason, trouble.message.clone()));
    if let Some(sandbox) = observed.sandbox {
        let waits = Decision::rest(reason, message).again(START_LOOK);
        if observed.is_shut_out {
            return Decision { step: Some(Step::RemoveSandbox), ..waits };
        }
        let is_left =
            sandbox.state == PodState::Claimed && observed.now.duration_since(sandbox.changed_at) >= signed(START_LOOK);
        return if is_left { Decision { step: Some(Step::Place), ..waits } } else { waits };
    }
    if observed.attempts >= ATTEMPTS {
        return Decision { step: Some(Step::Fail), report: Some((reason, message)), again: None };
    }
    if let Some(left) = observed.not_before.and_then(|at| Duration::try_from(at.duration_since(observed.now)).ok())
        && !left.is_zero()
    {
        return Decision::rest(reason, message).again(left);
    }
    // Where the API has asked for one, it found none that is warm.
    if is_new && is_for_the_api(observed) && !is_asked && observed.attempts == 0 {
        return Decision::rest(reason, message).again(REST_HEAD_START);
    }
    // Who has asked has looked for a warm one; one that failed may have a better successor there.
    let is_to_look = is_new && (!is_asked || observed.attempts > 0);
    let step = if is_to_look { Step::FindSandbox } else { Step::MakeSandbox };
    Decision { step: Some(step), report: Some((reason, message)), again: None }
}

/// Why a session lost its sandbox, as far as that is known. What was written stays, whoever looks again.
fn why_lost(observed: &Observed<'_>) -> String {
    let said = || {
        let ready = condition::find(&observed.before.conditions, ConditionType::Ready)?;
        let is_same = observed.before.paused_reason == Some(PausedReason::Lost.into());
        (is_same && ready.reason == Reason::Asleep.as_str()).then(|| ready.message.clone())
    };
    let trouble = || observed.trouble.map(|trouble| format!("{}: {}", trouble.reason.as_str(), trouble.message));
    said().or_else(trouble).unwrap_or_default()
}

/// The status that says so. It differs from the one before where something is different to read.
pub(crate) fn status(observed: &Observed<'_>, reason: Reason, message: &str) -> SessionStatus {
    let mut status = observed.before.clone();
    status.observed_generation = Some(observed.generation);
    status.url.clone_from(&observed.url);
    match observed.row {
        Some(row) => {
            status.set_state(row.state);
            status.agent_version = Some(row.agent_version);
            let started = Time(whole_second(row.created_at));
            status.started_at.get_or_insert(started);
            if row.state == SessionState::Ended {
                status.ended_at.get_or_insert(Time(whole_second(row.last_active_at)));
            }
            // A session that has no sandbox yet was declared, and that is all.
            if row.state == SessionState::Active && row.sandbox.is_none() {
                status.set_state(SessionState::Starting);
            }
        }
        None if observed.spec.end => {
            status.set_state(SessionState::Ended);
            status.ended_at.get_or_insert(Time(whole_second(observed.now)));
        }
        None => status.set_state(SessionState::Starting),
    }
    let placed = observed.row.and_then(|row| row.sandbox);
    let sandbox = observed.sandbox.filter(|sandbox| placed == Some(sandbox.id));
    status.pod = sandbox.map(|sandbox| sandbox.pod.clone());
    status.node = sandbox.and_then(|sandbox| sandbox.node.clone());
    status.runner = sandbox.and_then(|sandbox| sandbox.runner.as_ref()).map(|runner| runner.name.to_string());
    let (generation, now) = (observed.generation, observed.now);
    condition::report(&mut status.conditions, reason, message, generation, now);
    let taken = ConditionType::MessageTaken;
    let mut set = |holds, reason, text: &str| {
        condition::set(&mut status.conditions, taken, holds, reason, text, generation, now);
    };
    match &observed.message {
        Message::None => {}
        Message::Waiting | Message::Sending => set(ConditionStatus::False, Reason::MessageWaiting, ""),
        Message::Taken => set(ConditionStatus::True, Reason::MessageTaken, ""),
        Message::Failed(why) => set(ConditionStatus::False, Reason::MessageFailed, why),
    }
    status
}

/// As Kubernetes keeps times.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// All our bounds are far from those of the type.
fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests;
