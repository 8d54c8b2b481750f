//! States of a sandbox and what the pool may do in each.

use serde::{Deserialize, Serialize};

/// The state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Being started; no session has it.
    Warming,
    /// Started and initialised; waits for a session.
    Warm,
    /// A turn runs in it.
    Running,
    /// Its session waits for the next message.
    Waiting,
    /// No process: its session's files are all that is left of it.
    Cold,
    /// Being ended.
    Deleting,
}

impl SandboxState {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Warming, Self::Warm, Self::Running, Self::Waiting, Self::Cold, Self::Deleting];

    /// Whether it takes a place of the pool's capacity.
    pub fn takes_a_place(self) -> bool {
        self != Self::Cold
    }

    /// Whether it may be ended to make room for another session: warm ones first, then those that wait, least recently used
    /// first. Never one with a running turn.
    pub fn eviction_rank(self) -> Option<u8> {
        match self {
            Self::Warm => Some(0),
            Self::Waiting => Some(1),
            Self::Warming | Self::Running | Self::Cold | Self::Deleting => None,
        }
    }

    /// Whether a sandbox may go from this state to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use SandboxState::{Cold, Deleting, Running, Waiting, Warm, Warming};
        matches!(
            (self, next),
            (Warming, Warm | Waiting | Deleting | Cold)
                | (Warm, Waiting | Deleting | Cold)
                | (Waiting, Running | Deleting | Cold)
                | (Running, Waiting | Deleting | Cold)
                | (Cold, Warming | Deleting)
                | (Deleting, Cold)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::SandboxState;

    #[test]
    fn a_running_turn_is_never_evicted() {
        assert_eq!(SandboxState::Running.eviction_rank(), None);
        assert!(SandboxState::Warm.eviction_rank() < SandboxState::Waiting.eviction_rank());
    }

    #[test]
    fn every_state_but_the_end_can_be_left_and_all_can_end() {
        for state in SandboxState::ALL {
            assert!(SandboxState::ALL.iter().any(|next| state.may_become(*next)), "{state:?}");
            assert!(!state.may_become(state), "{state:?}");
        }
    }
}
