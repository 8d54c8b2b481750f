//! Places for work on workspaces: few at a time, and never all of them for one tenant, so that nobody waits for another's
//! sandboxes, however slow those are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use ash_core::id::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A place for what is large, once one is needed.
pub(super) struct Large<'a> {
    pub(super) places: &'a Places,
    pub(super) tenant: &'a TenantId,
    pub(super) place: Option<Place>,
}

impl Large<'_> {
    /// Waits for one, unless it is there already.
    pub(super) async fn take(&mut self) {
        if self.place.is_none() {
            self.place = Some(self.places.acquire(self.tenant).await);
        }
    }
}

/// Places, in the order in which they are asked for.
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// How many of them one tenant may have.
    of_tenant: usize,
    tenants: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

/// One of them, until it is dropped.
pub(super) struct Place {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Places {
    /// So many; one of them is always for another tenant than the one that has the others.
    pub(super) fn new(count: usize) -> Self {
        let of_tenant = count.saturating_sub(1).max(1);
        Self { all: Arc::new(Semaphore::new(count)), of_tenant, tenants: Mutex::default() }
    }

    /// Whether whoever asks now waits.
    pub(super) fn is_full(&self, tenant: &TenantId) -> bool {
        self.all.available_permits() == 0 || self.of(tenant).available_permits() == 0
    }

    /// The next place for a tenant.
    pub(super) async fn acquire(&self, tenant: &TenantId) -> Place {
        // Neither is ever closed.
        let own = self.of(tenant).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Place { _permits: [of_all, own] }
    }

    /// What a tenant has a part of: there for as long as somebody has or waits for one.
    fn of(&self, tenant: &TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tenants.get(tenant).and_then(Weak::upgrade) {
            return known;
        }
        if tenants.len() == tenants.capacity() {
            tenants.retain(|_, known| known.strong_count() > 0);
        }
        let made = Arc::new(Semaphore::new(self.of_tenant));
        tenants.insert(tenant.clone(), Arc::downgrade(&made));
        made
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{sync::Arc, time::Duration};

    use ash_core::id::TenantId;
    use futures::{FutureExt as _, future::join_all};
    use tokio::time::{Instant, sleep};

    use super::Places;

    fn tenant(name: &str) -> TenantId {
        TenantId(name.to_owned())
    }

    #[tokio::test]
    async fn no_tenant_has_all_places() {
        let places = Places::new(3);
        let (one, other) = (tenant("one"), tenant("other"));
        let first = places.acquire(&one).await;
        let _second = places.acquire(&one).await;
        assert!(places.is_full(&one) && !places.is_full(&other));
        assert!(places.acquire(&one).now_or_never().is_none());
        let others = places.acquire(&other).now_or_never().unwrap();
        assert!(places.acquire(&other).now_or_never().is_none(), "all are taken");
        drop((first, others));
        assert!(places.acquire(&one).now_or_never().is_some());
        // With one place alone it is everybody's.
        assert!(Places::new(1).acquire(&one).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_leave_at_once_get_their_place() {
        let places = Arc::new(Places::new(4));
        let start = Instant::now();
        let leave = |number: usize| {
            let places = Arc::clone(&places);
            async move {
                let _place = places.acquire(&tenant(if number.is_multiple_of(2) { "even" } else { "odd" })).await;
                sleep(Duration::from_secs(10)).await;
            }
        };
        join_all((0..20).map(leave)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(50));
    }
}
