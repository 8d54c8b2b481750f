//! Whose the sandbox is, and what a request to change that leads to. Pure.

use ash_protocol::Epoch;
use uuid::Uuid;

/// How far the sandbox is on its way to a session and off it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Claude Code is not ready.
    New,
    /// Claude Code is ready, no session is here.
    Warm,
    /// A session is here.
    Bound(Owner),
    /// A session is here, its Claude Code is stopped.
    Resting(Owner),
}

/// The session of a sandbox, in the epoch in which it has it. A sandbox has one session in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The session.
    pub session: Uuid,
    /// The epoch.
    pub epoch: Epoch,
}

/// What binding leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// The session takes the sandbox.
    Take,
    /// The session that is here goes on, in a newer epoch.
    Wake,
    /// It was done; the answer was lost.
    Repeat,
    /// It is not done, for this reason.
    Refused(&'static str),
}

/// What a request to rest leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Claude Code is stopped.
    Stop,
    /// It rests.
    Repeat,
    /// A turn runs.
    Busy,
    /// It has no session.
    NoSession,
}

impl Phase {
    /// What becomes of a request to bind.
    pub fn binding(self, wanted: Owner) -> Binding {
        match self {
            Self::New => Binding::Refused("the sandbox has to be warmed before it is claimed"),
            Self::Warm => Binding::Take,
            Self::Bound(here) if here == wanted => Binding::Repeat,
            Self::Bound(_) => Binding::Refused("another session has claimed this sandbox"),
            Self::Resting(here) if here.session != wanted.session => {
                Binding::Refused("another session has claimed this sandbox")
            }
            Self::Resting(here) if wanted.epoch <= here.epoch => {
                Binding::Refused("the session rests here since an epoch that is not older: wake it in a newer one")
            }
            Self::Resting(_) => Binding::Wake,
        }
    }

    /// What becomes of a request to rest.
    pub fn rest(self, turn_runs: bool) -> Rest {
        match self {
            Self::New | Self::Warm => Rest::NoSession,
            Self::Bound(_) if turn_runs => Rest::Busy,
            Self::Bound(_) => Rest::Stop,
            Self::Resting(_) => Rest::Repeat,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Binding, Epoch, Owner, Phase, Rest, Uuid};

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Warmed,
        Bind(Owner),
        Rest { turn_runs: bool },
    }

    fn owner() -> impl Strategy<Value = Owner> {
        (0u128..3, 1u32..6)
            .prop_map(|(session, epoch)| Owner { session: Uuid::from_u128(session), epoch: Epoch(epoch) })
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Warmed),
            owner().prop_map(Step::Bind),
            any::<bool>().prop_map(|turn_runs| Step::Rest { turn_runs }),
        ]
    }

    fn owner_of(phase: Phase) -> Option<Owner> {
        match phase {
            Phase::New | Phase::Warm => None,
            Phase::Bound(owner) | Phase::Resting(owner) => Some(owner),
        }
    }

    proptest! {
        #[test]
        fn one_session_has_it_and_its_epochs_only_grow(steps in prop::collection::vec(step(), 0..60)) {
            let mut phase = Phase::New;
            for step in steps {
                let before = phase;
                match step {
                    Step::Warmed if phase == Phase::New => phase = Phase::Warm,
                    Step::Warmed => {}
                    Step::Bind(wanted) => match phase.binding(wanted) {
                        Binding::Take => {
                            prop_assert_eq!(before, Phase::Warm);
                            phase = Phase::Bound(wanted);
                        }
                        Binding::Wake => {
                            prop_assert!(matches!(before, Phase::Resting(_)));
                            phase = Phase::Bound(wanted);
                        }
                        Binding::Repeat => prop_assert_eq!(before, Phase::Bound(wanted)),
                        Binding::Refused(_) => {}
                    },
                    Step::Rest { turn_runs } => match phase.rest(turn_runs) {
                        Rest::Stop => {
                            prop_assert!(!turn_runs);
                            let owner = owner_of(phase);
                            prop_assert!(owner.is_some());
                            phase = owner.map_or(phase, Phase::Resting);
                        }
                        Rest::Repeat => prop_assert!(matches!(phase, Phase::Resting(_))),
                        Rest::Busy => prop_assert!(turn_runs),
                        Rest::NoSession => prop_assert_eq!(owner_of(phase), None),
                    },
                }
                if let Some(had) = owner_of(before) {
                    let has = owner_of(phase);
                    prop_assert!(has.is_some_and(|has| has.session == had.session && has.epoch >= had.epoch));
                    // Whoever rests is woken in a newer epoch only, so that nothing of the old one is numbered again.
                    if matches!((before, phase), (Phase::Resting(_), Phase::Bound(_))) {
                        prop_assert!(has.is_some_and(|has| has.epoch > had.epoch));
                    }
                }
            }
        }
    }
}
