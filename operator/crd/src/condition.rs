//! Conditions: their types, and the one way to write them, so that `lastTransitionTime` moves only when a status does and an
//! unchanged object is not written.
//!
//! They follow kstatus: `Ready` is always there, `Reconciling` and `Stalled` only while they are true. So `kubectl wait`, Argo CD
//! and Flux show the state of both kinds with nothing of ours.

use jiff::Timestamp;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::reason::{Outcome, Reason};

/// The longest message: 4 KiB. What is longer, is cut at a character's end.
pub const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionType {
    /// The resource is as its spec asks.
    Ready,
    /// Ash is at work on it, or tries again.
    Reconciling,
    /// It does not go on until a person does something.
    Stalled,
    /// An agent's files were read and are usable.
    SourceReady,
    /// An agent's warm pool has at least the sandboxes that it should have.
    PoolReady,
    /// A session's `spec.message` was sent.
    MessageTaken,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can say.
    Unknown,
}

impl ConditionType {
    /// Every type, with what it is about, for the documentation.
    pub const ALL: &[(Self, &str)] = &[
        (Self::Ready, "The resource is as its spec asks. Always there."),
        (Self::Reconciling, "Ash is at work on it, or tries again by itself. There only while true."),
        (Self::Stalled, "It does not go on until a person does something. There only while true."),
        (Self::SourceReady, "Agent: its files were read and are usable."),
        (Self::PoolReady, "Agent: its warm pool has the sandboxes that it should have."),
        (Self::MessageTaken, "Session: `spec.message` was sent. There only where the spec has one."),
    ];

    /// The type as a condition has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::SourceReady => "SourceReady",
            Self::PoolReady => "PoolReady",
            Self::MessageTaken => "MessageTaken",
        }
    }
}

impl ConditionStatus {
    /// The status as a condition has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Says how the resource as a whole is: sets `Ready`, and sets or removes `Reconciling` and `Stalled`, as the reason has it.
/// Saying the same again changes nothing. A reason that says nothing about the whole ([`Outcome::Detail`]) changes nothing either.
pub fn report(conditions: &mut Vec<Condition>, reason: Reason, message: &str, generation: i64, now: Timestamp) {
    let outcome = reason.outcome();
    if outcome == Outcome::Detail {
        return;
    }
    let ready = if outcome == Outcome::Settled { ConditionStatus::True } else { ConditionStatus::False };
    set(conditions, ConditionType::Ready, ready, reason, message, generation, now);
    for (kind, of) in [(ConditionType::Reconciling, Outcome::Progressing), (ConditionType::Stalled, Outcome::Stalled)] {
        if outcome == of {
            set(conditions, kind, ConditionStatus::True, reason, message, generation, now);
        } else {
            remove(conditions, kind);
        }
    }
}

/// Sets one condition. `generation` is the resource's `metadata.generation` that it is about; `now` becomes
/// `lastTransitionTime` where the status changes, in whole seconds, as Kubernetes keeps it.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    status: ConditionStatus,
    reason: Reason,
    message: &str,
    generation: i64,
    now: Timestamp,
) {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut condition = Condition {
        type_: kind.as_str().to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.as_str().to_owned(),
        message: bounded(message).to_owned(),
        observed_generation: Some(generation),
        last_transition_time: now,
    };
    match conditions.iter_mut().find(|existing| existing.type_ == condition.type_) {
        Some(existing) => {
            if existing.status == condition.status {
                condition.last_transition_time = existing.last_transition_time.clone();
            }
            *existing = condition;
        }
        None => conditions.push(condition),
    }
}

/// Removes a condition.
pub fn remove(conditions: &mut Vec<Condition>, kind: ConditionType) {
    conditions.retain(|condition| condition.type_ != kind.as_str());
}

/// A condition by its type.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether a condition is true.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == ConditionStatus::True.as_str())
}

fn bounded(message: &str) -> &str {
    &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::{ConditionStatus, ConditionType, MAX_MESSAGE_BYTES, find, is_true, report, set};
    use crate::reason::{Outcome, Reason};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn reason() -> impl Strategy<Value = Reason> {
        prop::sample::select(Reason::ALL).prop_filter("about the whole", |reason| reason.outcome() != Outcome::Detail)
    }

    proptest! {
        #[test]
        fn saying_the_same_again_changes_nothing(reasons in prop::collection::vec(reason(), 1..8), message in ".*") {
            let mut conditions = Vec::new();
            for (second, reason) in (0..).zip(&reasons) {
                report(&mut conditions, *reason, &message, 1, at(second));
                let before = conditions.clone();
                report(&mut conditions, *reason, &message, 1, at(second + 1000));
                prop_assert_eq!(&before, &conditions);
            }
        }

        #[test]
        fn exactly_one_of_the_three_is_true(reasons in prop::collection::vec(reason(), 1..8)) {
            let mut conditions = Vec::new();
            for reason in reasons {
                report(&mut conditions, reason, "", 1, at(0));
                let types = [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled];
                let truths = types.iter().filter(|kind| is_true(&conditions, **kind)).count();
                prop_assert_eq!(truths, 1);
                prop_assert!(find(&conditions, ConditionType::Ready).is_some());
                prop_assert_eq!(is_true(&conditions, ConditionType::Stalled), reason.outcome() == Outcome::Stalled);
            }
        }
    }

    #[test]
    fn the_time_moves_with_the_status_only() {
        let mut conditions = Vec::new();
        report(&mut conditions, Reason::Starting, "a", 1, at(1));
        report(&mut conditions, Reason::NoCapacity, "b", 2, at(2));
        let ready = find(&conditions, ConditionType::Ready).unwrap();
        assert_eq!((ready.last_transition_time.0, ready.reason.as_str()), (at(1), "NoCapacity"));
        assert_eq!(ready.observed_generation, Some(2));
        report(&mut conditions, Reason::Active, "", 2, at(3));
        assert_eq!(find(&conditions, ConditionType::Ready).unwrap().last_transition_time.0, at(3));
        assert!(find(&conditions, ConditionType::Reconciling).is_none());
    }

    #[test]
    fn other_conditions_stay_and_long_messages_are_cut() {
        let mut conditions = Vec::new();
        let message = "ä".repeat(MAX_MESSAGE_BYTES);
        set(&mut conditions, ConditionType::PoolReady, ConditionStatus::False, Reason::Warming, &message, 1, at(0));
        report(&mut conditions, Reason::Deployed, "", 1, at(0));
        let pool = find(&conditions, ConditionType::PoolReady).unwrap();
        assert_eq!(pool.message.len(), MAX_MESSAGE_BYTES);
    }
}
