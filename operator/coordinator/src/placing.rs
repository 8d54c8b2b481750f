//! Places for sessions: whoever needs one joins those that wait, and one of them decides for all. So a coordinator asks the store
//! once for many, and only other coordinators can come in between.

use std::sync::PoisonError;

use ash_core::{
    fleet::RunnerName,
    id::SessionId,
    placement::{Offer, Want, spread},
    ports::{Reserved, StoreError},
};
use futures::future::join_all;
use tokio::{sync::oneshot, time::Duration};

use crate::{
    limits::{PLACES_AT_ONCE, PLACING_ROUNDS, REFRESH},
    registry::Registry,
};

/// Somebody who needs a place.
pub(crate) struct Wish {
    session: SessionId,
    want: Want,
    /// The runner that has its files.
    home: Option<RunnerName>,
    answer: oneshot::Sender<Result<Placing, StoreError>>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placing {
    /// It has its place on this runner.
    On(RunnerName),
    /// It has one elsewhere, or has ended.
    Elsewhere,
    /// There is none.
    Nowhere,
}

impl Registry {
    /// Reserves a session a place.
    pub(crate) async fn choose_place(
        &self,
        session: SessionId,
        want: Want,
        home: Option<RunnerName>,
    ) -> Result<Placing, StoreError> {
        loop {
            let (answer, mut mine) = oneshot::channel();
            self.waiting(|wishes| wishes.push(Wish { session, want, home: home.clone(), answer }));
            let deciding = self.placing.lock().await;
            match mine.try_recv() {
                Ok(answer) => return answer,
                Err(oneshot::error::TryRecvError::Empty) => {}
                // Whoever decided for this one went away in the middle.
                Err(oneshot::error::TryRecvError::Closed) => continue,
            }
            let wishes = self.waiting(std::mem::take);
            self.decide(wishes).await;
            drop(deciding);
            if let Ok(answer) = mine.try_recv() {
                return answer;
            }
        }
    }

    fn waiting<T>(&self, change: impl FnOnce(&mut Vec<Wish>) -> T) -> T {
        change(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn decide(&self, mut wishes: Vec<Wish>) {
        for round in 0..PLACING_ROUNDS {
            let max_age = if round == 0 { REFRESH } else { Duration::ZERO };
            if let Err(error) = self.refresh(max_age).await {
                return wishes.into_iter().for_each(|wish| drop(wish.answer.send(Err(error.clone()))));
            }
            let offers = self.offers();
            let wants: Vec<Want> = wishes.iter().map(|wish| wish.want).collect();
            let spread = spread(&offers, &wants);
            let mut groups: Vec<Vec<Wish>> = offers.iter().map(|_| Vec::new()).collect();
            let mut rest = Vec::new();
            for (wish, place) in wishes.into_iter().zip(spread) {
                let home = offers.iter().position(|offer| Some(&offer.runner.name) == wish.home.as_ref());
                match home.or(place).and_then(|index| groups.get_mut(index)) {
                    Some(group) => group.push(wish),
                    // What is known may be a second old, and a place free by now.
                    None if round == 0 => rest.push(wish),
                    None => drop(wish.answer.send(Ok(Placing::Nowhere))),
                }
            }
            let taken = offers.iter().zip(groups).filter(|(_, group)| !group.is_empty());
            rest.extend(
                join_all(taken.map(|(offer, group)| self.take_places(offer, group))).await.into_iter().flatten(),
            );
            if rest.is_empty() {
                return;
            }
            wishes = rest;
        }
        // Others are faster all the time: it is tried again, by whoever asked.
        for wish in wishes {
            let _ = wish.answer.send(Ok(Placing::Nowhere));
        }
    }

    /// Takes places on one runner; gives those that have to be decided again.
    async fn take_places(&self, offer: &Offer, mut group: Vec<Wish>) -> Vec<Wish> {
        let mut version = offer.version;
        while !group.is_empty() {
            let later = group.split_off(group.len().min(PLACES_AT_ONCE));
            let sessions: Vec<SessionId> = group.iter().map(|wish| wish.session).collect();
            match self.store.reserve(&sessions, &offer.runner, version).await {
                Ok(Reserved::Taken(taken)) => {
                    version += 1;
                    self.metrics.placements.inc_by(taken.len() as u64);
                    self.with(|inner| {
                        if let Some(row) = inner.runners.get_mut(&offer.runner.name) {
                            row.used += u32::try_from(taken.len()).unwrap_or(0);
                            row.version = row.version.max(version);
                        }
                    });
                    for wish in group {
                        let has_it = taken.contains(&wish.session);
                        let placing = if has_it { Placing::On(offer.runner.name.clone()) } else { Placing::Elsewhere };
                        // Who went away leaves its place to its time.
                        let _ = wish.answer.send(Ok(placing));
                    }
                }
                Ok(Reserved::Stale) => {
                    self.metrics.placements_stale.inc();
                    group.extend(later);
                    return group;
                }
                Err(error) => {
                    for wish in group.into_iter().chain(later) {
                        let _ = wish.answer.send(Err(error.clone()));
                    }
                    return Vec::new();
                }
            }
            group = later;
        }
        group
    }
}
