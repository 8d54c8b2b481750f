//! Places of connections to the port of bridges that have proven nothing yet. No address has many of them; who says nothing makes
//! room for whoever comes next; and whoever shows a token leaves half of the others to tickets. So nobody is kept out by dialling.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{SILENT_BRIDGES, UNPROVEN_BRIDGES, UNPROVEN_BRIDGES_OF_ADDRESS},
    metrics::Metrics,
};

/// The places.
pub(super) struct Room {
    addresses: Mutex<HashMap<IpAddr, usize>>,
    /// Connections whose first line has not come, the oldest first.
    silent: Mutex<VecDeque<(u64, CancellationToken)>>,
    next: AtomicU64,
    /// For those of whom somebody is asked who they are.
    with_token: Semaphore,
    with_ticket: Semaphore,
    metrics: Arc<Metrics>,
}

/// The place of a connection that has proven nothing yet.
pub(super) struct Visitor {
    room: Arc<Room>,
    address: IpAddr,
    number: u64,
    cut: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            addresses: Mutex::default(),
            silent: Mutex::default(),
            next: AtomicU64::new(0),
            with_token: Semaphore::new(UNPROVEN_BRIDGES / 2),
            with_ticket: Semaphore::new(UNPROVEN_BRIDGES / 2),
            metrics,
        }
    }

    /// Lets a connection in that has said nothing yet; `None` where its address has enough of them.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Visitor> {
        {
            let mut addresses = lock(&self.addresses);
            let count = addresses.entry(address).or_default();
            if *count >= UNPROVEN_BRIDGES_OF_ADDRESS {
                return None;
            }
            *count += 1;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        let mut silent = lock(&self.silent);
        silent.push_back((number, cut.clone()));
        if silent.len() > SILENT_BRIDGES
            && let Some((_, oldest)) = silent.pop_front()
        {
            self.metrics.bridges_unproven_at_bound.inc();
            oldest.cancel();
        }
        drop(silent);
        Some(Visitor { room: Arc::clone(self), address, number, cut })
    }

    /// A place for the time in which somebody is asked who showed this: a token, or else a ticket. `None` where there is none.
    pub(super) fn ask(&self, token: bool) -> Option<SemaphorePermit<'_>> {
        let places = if token { &self.with_token } else { &self.with_ticket };
        let place = places.try_acquire().ok();
        if place.is_none() {
            self.metrics.bridges_unproven_at_bound.inc();
        }
        place
    }

    fn is_silent_no_more(&self, number: u64) {
        let mut silent = lock(&self.silent);
        if let Ok(at) = silent.binary_search_by_key(&number, |(number, _)| *number) {
            silent.remove(at);
        }
    }
}

impl Visitor {
    /// Completes when it has to go, because it was silent for longest and others came.
    pub(super) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// It sent its first line: it makes room for nobody any more.
    pub(super) fn spoke(&self) {
        self.room.is_silent_no_more(self.number);
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.spoke();
        let mut addresses = lock(&self.room.addresses);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::Arc,
    };

    use super::{Room, SILENT_BRIDGES, UNPROVEN_BRIDGES, UNPROVEN_BRIDGES_OF_ADDRESS, lock};

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(u32::try_from(number).unwrap()).into()
    }

    #[test]
    fn an_address_has_few_places_and_gets_them_back() {
        let room = Arc::new(Room::new(Arc::default()));
        let mut visitors: Vec<_> = (0..UNPROVEN_BRIDGES_OF_ADDRESS).map(|_| room.enter(address(1)).unwrap()).collect();
        assert!(room.enter(address(1)).is_none());
        let other = room.enter(address(2)).unwrap();
        visitors.pop();
        visitors.push(room.enter(address(1)).unwrap());
        drop((visitors, other));
        assert!(lock(&room.addresses).is_empty() && lock(&room.silent).is_empty());
    }

    #[test]
    fn who_is_silent_for_longest_makes_room_and_who_spoke_for_nobody() {
        let room = Arc::new(Room::new(Arc::default()));
        let first = room.enter(address(0)).unwrap();
        let spoke = room.enter(address(1)).unwrap();
        spoke.spoke();
        let others: Vec<_> = (2..=SILENT_BRIDGES).map(|number| room.enter(address(number)).unwrap()).collect();
        assert!(!first.cut.is_cancelled(), "there is room for as many");
        let last = room.enter(address(SILENT_BRIDGES + 1)).unwrap();
        assert!(first.cut.is_cancelled());
        let another = room.enter(address(SILENT_BRIDGES + 2)).unwrap();
        assert!(others[0].cut.is_cancelled() && !others[1].cut.is_cancelled());
        assert!(![&last, &another, &spoke].iter().any(|visitor| visitor.cut.is_cancelled()));
        drop((first, spoke, others, last, another));
        assert!(lock(&room.addresses).is_empty() && lock(&room.silent).is_empty());
    }

    #[test]
    fn tokens_leave_half_of_the_places_to_tickets() {
        let room = Room::new(Arc::default());
        let asked: Vec<_> = std::iter::from_fn(|| room.ask(true)).collect();
        assert_eq!(asked.len(), UNPROVEN_BRIDGES / 2);
        assert!(room.ask(false).is_some());
        assert_eq!(room.metrics.bridges_unproven_at_bound.get(), 1);
    }
}
