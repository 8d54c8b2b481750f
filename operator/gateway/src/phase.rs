//! What a sandbox may do, as a pure state machine: unclaimed, bound, released.
//!
//! A sandbox belongs to at most one session in its life, and epochs only grow. "Unknown" is the
//! absence of a phase: the token is valid, but this process has not been told yet.

use crate::error::BindError;
use crate::id::{Epoch, SandboxId, SessionId, TenantId};

/// Whose sandbox it is, and since which claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
    pub(crate) epoch: Epoch,
}

/// What the gateway knows of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Warming or warm: its model calls are answered by the rehearsal.
    Unclaimed,
    /// Works for a session.
    Bound(Holder),
    /// Its claim is over; only a newer claim of the same session opens it again.
    Released(Holder),
}

/// A change that the host asks for.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// It exists and has no session.
    Register,
    /// A session claims it for the first time (or after a release).
    Bind(Holder),
    /// The same session again: same epoch with other settings, or a newer epoch.
    Rebind(Holder),
    /// The claim with this epoch is over.
    Release(Epoch),
}

/// What follows from an accepted change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The phase from now on.
    pub(crate) phase: Phase,
    /// Whether calls and tunnels that are open now have to be cut.
    pub(crate) cut: bool,
}

/// Decides one change. Nothing is changed where it returns an error.
pub(crate) fn step(sandbox: SandboxId, current: Option<&Phase>, change: Change) -> Result<Step, BindError> {
    match (current, change) {
        (None | Some(Phase::Unclaimed), Change::Register) => Ok(Step { phase: Phase::Unclaimed, cut: false }),
        (Some(Phase::Bound(holder) | Phase::Released(holder)), Change::Register) => {
            Err(BindError::Taken { sandbox, session: holder.session })
        }
        (None | Some(Phase::Unclaimed), Change::Bind(next)) | (None, Change::Rebind(next)) => {
            Ok(Step { phase: Phase::Bound(next), cut: false })
        }
        (Some(Phase::Bound(holder)), Change::Bind(_)) => Err(BindError::Taken { sandbox, session: holder.session }),
        (Some(Phase::Unclaimed), Change::Rebind(_) | Change::Release(_)) => Err(BindError::Unclaimed(sandbox)),
        (Some(Phase::Bound(holder)), Change::Rebind(next)) => {
            same_session(sandbox, holder, &next)?;
            if next.epoch < holder.epoch {
                return Err(stale(sandbox, &next, holder));
            }
            let cut = next.epoch > holder.epoch;
            Ok(Step { phase: Phase::Bound(next), cut })
        }
        (Some(Phase::Released(holder)), Change::Bind(next) | Change::Rebind(next)) => {
            same_session(sandbox, holder, &next)?;
            if next.epoch <= holder.epoch {
                return Err(stale(sandbox, &next, holder));
            }
            Ok(Step { phase: Phase::Bound(next), cut: false })
        }
        (None, Change::Release(_)) => Err(BindError::Unknown(sandbox)),
        (Some(Phase::Bound(holder) | Phase::Released(holder)), Change::Release(epoch)) => {
            if epoch < holder.epoch {
                return Err(BindError::Stale { sandbox, given: epoch, current: holder.epoch });
            }
            let mut over = holder.clone();
            over.epoch = epoch;
            Ok(Step { phase: Phase::Released(over), cut: true })
        }
    }
}

fn same_session(sandbox: SandboxId, held: &Holder, next: &Holder) -> Result<(), BindError> {
    if held.session == next.session && held.tenant == next.tenant {
        Ok(())
    } else {
        Err(BindError::Taken { sandbox, session: held.session })
    }
}

fn stale(sandbox: SandboxId, next: &Holder, held: &Holder) -> BindError {
    BindError::Stale { sandbox, given: next.epoch, current: held.epoch }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const SANDBOX: SandboxId = SandboxId(Uuid::nil());

    fn holder(session: u8, epoch: u32) -> Holder {
        Holder {
            tenant: TenantId("t".into()),
            session: SessionId(Uuid::from_u128(u128::from(session))),
            epoch: Epoch(epoch),
        }
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            Just(Change::Register),
            (0_u8..3, 0_u32..6).prop_map(|(s, e)| Change::Bind(holder(s, e))),
            (0_u8..3, 0_u32..6).prop_map(|(s, e)| Change::Rebind(holder(s, e))),
            (0_u32..6).prop_map(|e| Change::Release(Epoch(e))),
        ]
    }

    fn held(phase: Option<&Phase>) -> Option<&Holder> {
        match phase {
            Some(Phase::Bound(holder) | Phase::Released(holder)) => Some(holder),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn one_session_for_life_and_epochs_only_grow(
            changes in proptest::collection::vec(change(), 0..40),
        ) {
            let mut phase: Option<Phase> = None;
            for change in changes {
                let Ok(next) = step(SANDBOX, phase.as_ref(), change) else { continue };
                let (before, after) = (held(phase.as_ref()), held(Some(&next.phase)));
                if let Some(before) = before {
                    let after = after.expect("a session is never forgotten");
                    prop_assert_eq!(before.session, after.session);
                    prop_assert!(after.epoch >= before.epoch);
                    let was_released = matches!(phase, Some(Phase::Released(_)));
                    if was_released && matches!(next.phase, Phase::Bound(_)) {
                        prop_assert!(after.epoch > before.epoch);
                    }
                    if !was_released && after.epoch > before.epoch {
                        prop_assert!(next.cut, "calls of an older epoch are cut");
                    }
                }
                phase = Some(next.phase);
            }
        }
    }

    #[test]
    fn a_release_cuts_and_an_older_one_is_refused() {
        let bound = Phase::Bound(holder(1, 4));
        let released = step(SANDBOX, Some(&bound), Change::Release(Epoch(4))).unwrap();
        assert!(released.cut);
        assert!(matches!(step(SANDBOX, Some(&bound), Change::Release(Epoch(3))), Err(BindError::Stale { .. })));
        assert!(matches!(step(SANDBOX, Some(&bound), Change::Rebind(holder(1, 3))), Err(BindError::Stale { .. })));
    }
}
