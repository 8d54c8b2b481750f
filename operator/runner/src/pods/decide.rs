//! What becomes of a pod whose bridge was admitted: decided from how far the bridge got and what the store has. Pure.

use ash_protocol::message::Progress;

/// What the store has of the pod's sandbox, apart from a session that is on it: such a one is recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its Claude was ready before.
    pub(crate) was_warm: bool,
    /// A session waits for it: it was made for one, or claimed.
    pub(crate) awaited: bool,
}

/// What is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is warmed for whoever claims it.
    WarmForPool,
    /// It is warmed for its session, which it is given to then.
    WarmForSession,
    /// It is ready for whoever claims it; `tell`: nobody was told so far.
    Offer { tell: bool },
    /// It is ready, and given to its session.
    Give,
    /// It is of no use, for this reason.
    Over(&'static str),
}

/// Decides.
pub(crate) fn next(progress: &Progress, known: Known) -> Next {
    match (progress, known) {
        // What its first bridge unpacked may have been changed by whoever was there since; nobody can tell.
        (Progress::New, Known { was_warm: true, .. }) => Next::Over("its bridge was started anew"),
        (Progress::New, Known { awaited: true, .. }) => Next::WarmForSession,
        (Progress::New, Known { awaited: false, .. }) => Next::WarmForPool,
        (Progress::Warm, Known { awaited: true, .. }) => Next::Give,
        (Progress::Warm, Known { awaited: false, was_warm }) => Next::Offer { tell: !was_warm },
        (Progress::Bound { .. } | Progress::Resting { .. }, _) => Next::Over("its session went on without it"),
    }
}

#[cfg(test)]
mod tests {
    use ash_core::{Epoch, Sequence};
    use ash_protocol::message::Progress;
    use uuid::Uuid;

    use super::{Known, Next, next};

    #[test]
    fn every_pair_is_decided() {
        let resting = Progress::Resting { session: Uuid::nil(), epoch: Epoch(1), last: Sequence::START };
        for awaited in [false, true] {
            for was_warm in [false, true] {
                let known = Known { was_warm, awaited };
                let new = next(&Progress::New, known);
                assert_eq!(matches!(new, Next::Over(_)), was_warm, "a workspace is unpacked once");
                assert_eq!(new == Next::WarmForSession, awaited && !was_warm);
                let warm = next(&Progress::Warm, known);
                assert_eq!(warm == Next::Give, awaited);
                assert_eq!(warm == Next::Offer { tell: true }, !awaited && !was_warm);
                // No session is on it as far as the store knows, whatever its bridge says.
                assert!(matches!(next(&resting, known), Next::Over(_)));
            }
        }
    }
}
