//! Who has a sandbox: nobody while it warms, whoever claims it first when it is warm, and nobody new once its end was announced.

use crate::sandbox::EndReason;

/// The occupancy of one sandbox by sessions of type `S`.
#[derive(Debug)]
pub(crate) struct Occupancy<S> {
    phase: Phase<S>,
    end: Option<EndReason>,
}

/// How far a sandbox is on its way to a session.
#[derive(Debug)]
pub(crate) enum Phase<S> {
    Warming,
    Warm,
    Bound(S),
}

impl<S> Occupancy<S> {
    /// One that is being started, or that a session has already.
    pub(crate) fn new(session: Option<S>) -> Self {
        Self { phase: session.map_or(Phase::Warming, Phase::Bound), end: None }
    }

    /// How far it is; `None` when its end was announced.
    pub(crate) fn phase(&self) -> Option<&Phase<S>> {
        self.end.is_none().then_some(&self.phase)
    }

    /// The session that has it, or had it to the end.
    pub(crate) fn session(&self) -> Option<&S> {
        match &self.phase {
            Phase::Bound(session) => Some(session),
            Phase::Warming | Phase::Warm => None,
        }
    }

    /// Opens it for claims.
    pub(crate) fn set_warm(&mut self) {
        if matches!(self.phase, Phase::Warming) {
            self.phase = Phase::Warm;
        }
    }

    /// Gives it to a session: true for one claimant. One that still warms can be claimed only by who starts it.
    pub(crate) fn claim(&mut self, session: S, warming: bool) -> bool {
        let free = matches!(self.phase, Phase::Warm) || (warming && matches!(self.phase, Phase::Warming));
        let claimed = free && self.end.is_none();
        if claimed {
            self.phase = Phase::Bound(session);
        }
        claimed
    }

    /// Takes a claim back that led to nothing: the session was told nothing of it, nor was the sandbox.
    pub(crate) fn give_back(&mut self) {
        if matches!(self.phase, Phase::Bound(_)) {
            self.phase = Phase::Warm;
        }
    }

    /// Says why it will end; the first reason counts.
    pub(crate) fn announce_end(&mut self, reason: EndReason) {
        self.end.get_or_insert(reason);
    }

    /// Says why it will end, unless a session has it: true where that is said, and no session can claim it any more.
    pub(crate) fn announce_end_if_unclaimed(&mut self, reason: EndReason) -> bool {
        let unclaimed = self.session().is_none();
        if unclaimed {
            self.announce_end(reason);
        }
        unclaimed
    }

    /// Why it ends, as far as somebody wanted it to.
    pub(crate) fn end(&self) -> Option<&EndReason> {
        self.end.as_ref()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Barrier, Mutex};

    use proptest::prelude::*;

    use super::{EndReason, Occupancy};

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Warm,
        Claim(u32, bool),
        GiveBack,
        End,
        EndUnclaimed,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Warm),
            (0u32..5, any::<bool>()).prop_map(|(session, warming)| Step::Claim(session, warming)),
            Just(Step::GiveBack),
            Just(Step::End),
            Just(Step::EndUnclaimed),
        ]
    }

    proptest! {
        #[test]
        fn nobody_claims_what_somebody_has_or_what_ends(steps in prop::collection::vec(step(), 0..40)) {
            let mut occupancy = Occupancy::new(None);
            for step in steps {
                let (had, ended) = (occupancy.session().copied(), occupancy.end().is_some());
                match step {
                    Step::Warm => occupancy.set_warm(),
                    Step::Claim(session, warming) => {
                        let claimed = occupancy.claim(session, warming);
                        prop_assert!(!claimed || (had.is_none() && !ended));
                        prop_assert_eq!(occupancy.session().copied(), if claimed { Some(session) } else { had });
                    }
                    Step::GiveBack => occupancy.give_back(),
                    Step::End => occupancy.announce_end(EndReason::Lost),
                    Step::EndUnclaimed => {
                        prop_assert_eq!(occupancy.announce_end_if_unclaimed(EndReason::Closed(ash_core::session::Closing::End)), had.is_none());
                    }
                }
                prop_assert!(!ended || occupancy.end().is_some());
                prop_assert_eq!(occupancy.phase().is_none(), occupancy.end().is_some());
            }
        }
    }

    #[test]
    fn of_many_claimants_one_gets_it() {
        const CLAIMANTS: u32 = 8;
        for _ in 0..50 {
            let mut occupancy = Occupancy::new(None);
            occupancy.set_warm();
            let (occupancy, together) = (Mutex::new(occupancy), Barrier::new(CLAIMANTS as usize));
            let claim = |session| {
                together.wait();
                occupancy.lock().unwrap().claim(session, false)
            };
            let winners: Vec<u32> = std::thread::scope(|scope| {
                let claims: Vec<_> = (0..CLAIMANTS).map(|session| scope.spawn(move || claim(session))).collect();
                (0..).zip(claims).filter_map(|(session, claim)| claim.join().unwrap().then_some(session)).collect()
            });
            assert_eq!(winners.len(), 1, "{winners:?}");
            assert_eq!(occupancy.lock().unwrap().session(), winners.first());
        }
    }

    #[test]
    fn a_claim_that_is_taken_back_is_the_next_ones() {
        let mut occupancy = Occupancy::new(None);
        assert!(!occupancy.claim(1, false), "it still warms");
        occupancy.set_warm();
        assert!(occupancy.claim(1, false));
        assert!(!occupancy.claim(2, false));
        occupancy.give_back();
        assert!(occupancy.claim(2, false));
    }
}
