//! One operator acts: the holder of a `Lease` of `coordination.k8s.io`.
//!
//! As client-go does it: nobody compares clocks. Whoever waits notes when it saw the lease change, and takes it when it has not
//! changed for the lease's time by its own clock. The holder counts from its last successful renewal, and stops acting before
//! anybody may take over. Every write names the version that it was decided from, so two can never both win.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    error,
    limits::{LEASE, LEASE_CALL, LEASE_LOOK, RENEW, RENEW_DEADLINE, UNINSTALL_LEASE},
};

/// The name of the lease.
pub const LEASE_NAME: &str = "ash-operator";
/// Who takes the lease from all operators, before an uninstall ends them.
pub const UNINSTALLER: &str = "uninstall";

/// What one who waits has seen of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; nobody where it was given back.
    pub holder: Option<String>,
    /// Its version.
    pub version: String,
    /// When this version was seen first, by the own clock.
    pub since: Duration,
}

/// What to do about the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make it: there is none.
    Create,
    /// Take it by compare-and-set.
    Take,
    /// Look again.
    Wait,
}

/// Decides. `now` is of the same clock as [`Seen::since`].
pub fn decide(seen: Option<&Seen>, me: &str, now: Duration) -> Step {
    match seen {
        None => Step::Create,
        Some(seen) => match seen.holder.as_deref() {
            None | Some("") => Step::Take,
            Some(holder) if holder == me => Step::Take,
            // An uninstall that ended in the middle: people look at it, and try again.
            Some(UNINSTALLER) if now.saturating_sub(seen.since) < UNINSTALL_LEASE => Step::Wait,
            Some(_) if now.saturating_sub(seen.since) >= LEASE => Step::Take,
            Some(_) => Step::Wait,
        },
    }
}

/// The lease of one operator.
#[derive(Debug, Clone)]
pub struct Election {
    api: Api<Lease>,
    identity: String,
}

impl Election {
    /// The lease in a namespace, for somebody of this name.
    pub fn new(client: Client, namespace: &str, identity: impl Into<String>) -> Self {
        Self { api: Api::namespaced(client, namespace), identity: identity.into() }
    }

    /// Waits for the lease. Gives it as it was taken; `None` when told to stop.
    pub async fn acquire(&self, stop: &CancellationToken) -> Option<Lease> {
        let begin = Instant::now();
        let mut seen: Option<Seen> = None;
        while !stop.is_cancelled() {
            match timeout(LEASE_CALL, self.attempt(&mut seen, begin)).await {
                Ok(Ok(Some(lease))) => return Some(lease),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the lease cannot be read or taken"),
                Err(_) => tracing::warn!("the API server does not answer about the lease"),
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(LEASE_LOOK) => {}
            }
        }
        None
    }

    async fn attempt(&self, seen: &mut Option<Seen>, begin: Instant) -> Result<Option<Lease>, kube::Error> {
        let lease = self.api.get_opt(LEASE_NAME).await?;
        let now = begin.elapsed();
        let version = |lease: &Lease| lease.metadata.resource_version.clone().unwrap_or_default();
        *seen = lease.as_ref().map(|lease| {
            let since =
                seen.as_ref().filter(|before| before.version == version(lease)).map_or(now, |before| before.since);
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
            Seen { holder, version: version(lease), since }
        });
        let result = match (decide(seen.as_ref(), &self.identity, now), lease) {
            (Step::Wait, _) => return Ok(None),
            (_, Some(mut lease)) => {
                let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
                lease.spec = Some(self.spec(transitions.saturating_add(1)));
                self.api.replace(LEASE_NAME, &PostParams::default(), &lease).await
            }
            (_, None) => {
                let metadata = ObjectMeta { name: Some(LEASE_NAME.to_owned()), ..ObjectMeta::default() };
                self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(self.spec(0)) }).await
            }
        };
        match result {
            Ok(lease) => Ok(Some(lease)),
            // Somebody else was faster.
            Err(error) if error::is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews until told to stop, or until it could not for [`RENEW_DEADLINE`], or somebody else has the lease. Then whoever
    /// acts has to stop. Told to stop, it gives the lease back, unless `release` says that nothing may be written any more.
    pub async fn hold(&self, mut lease: Lease, stop: &CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.give_back(lease).await,
                () = sleep(RENEW) => {}
            }
            let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
            lease.spec = Some(self.spec(transitions));
            let left = (renewed + RENEW_DEADLINE).saturating_duration_since(Instant::now());
            let begun = Instant::now();
            match timeout(LEASE_CALL.min(left), self.api.replace(LEASE_NAME, &PostParams::default(), &lease)).await {
                Ok(Ok(now)) => {
                    renewed = begun;
                    lease = now;
                }
                Ok(Err(error)) if error::is_conflict(&error) || error::is_gone(&error) => match self.own().await {
                    Some(own) => lease = own,
                    None => {
                        tracing::warn!("somebody else has the lease");
                        return;
                    }
                },
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed"),
                Err(_) => tracing::warn!("the lease could not be renewed in time"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                tracing::error!("the lease could not be renewed for {} s", RENEW_DEADLINE.as_secs());
                return;
            }
        }
    }

    /// The lease, if it is still ours: an answer that was lost on its way may have written it.
    async fn own(&self) -> Option<Lease> {
        let lease = timeout(LEASE_CALL, self.api.get_opt(LEASE_NAME)).await.ok()?.ok()??;
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        (holder == Some(self.identity.as_str())).then_some(lease)
    }

    /// So that the next one need not wait.
    async fn give_back(&self, mut lease: Lease) {
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        match timeout(LEASE_CALL, self.api.replace(LEASE_NAME, &PostParams::default(), &lease)).await {
            Ok(Ok(_)) => {}
            _ => tracing::warn!("the lease was not given back: the next operator waits {} s", LEASE.as_secs()),
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        spec(&self.identity, transitions)
    }
}

/// A lease that was taken just now.
pub(crate) fn spec(holder: &str, transitions: i32) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Seen, Step, decide};
    use crate::limits::{LEASE, LEASE_CALL, RENEW, RENEW_DEADLINE};

    #[test]
    fn the_leader_stops_before_another_begins() {
        assert!(RENEW_DEADLINE < LEASE && RENEW + LEASE_CALL < RENEW_DEADLINE);
    }

    fn seen(holder: Option<&str>, since: u64) -> Seen {
        Seen { holder: holder.map(Into::into), version: "1".into(), since: Duration::from_secs(since) }
    }

    #[test]
    fn a_lease_is_taken_when_nobody_renews_it() {
        let at = Duration::from_secs;
        assert_eq!(decide(None, "me", at(0)), Step::Create);
        assert_eq!(decide(Some(&seen(None, 5)), "me", at(5)), Step::Take);
        assert_eq!(decide(Some(&seen(Some("me"), 5)), "me", at(5)), Step::Take);
        assert_eq!(decide(Some(&seen(Some("other"), 5)), "me", at(19)), Step::Wait);
        assert_eq!(decide(Some(&seen(Some("other"), 5)), "me", at(20)), Step::Take);
        // An uninstall ends operators sooner than they take it back.
        assert_eq!(decide(Some(&seen(Some(super::UNINSTALLER), 5)), "me", at(304)), Step::Wait);
        assert_eq!(decide(Some(&seen(Some(super::UNINSTALLER), 5)), "me", at(305)), Step::Take);
    }

    proptest! {
        #[test]
        fn nobody_takes_a_lease_that_was_renewed_in_time(since in 0_u64..1000, later in 0_u64..15) {
            let step = decide(Some(&seen(Some("other"), since)), "me", Duration::from_secs(since + later));
            prop_assert_eq!(step, Step::Wait);
        }
    }
}
