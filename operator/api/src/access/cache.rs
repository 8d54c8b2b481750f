//! What the cluster said, for a short while. Time is given, so that it can be tested; nothing here asks.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ash_core::ports::{AccessError, AccessResource, Verb, Who};
use hashlink::LruCache;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};

/// How long what is allowed stays so here after the cluster took it back: a token, or a right.
pub(super) const POSITIVE: Duration = Duration::from_secs(60);

/// How long what is refused stays so after the cluster allowed it.
pub(super) const NEGATIVE: Duration = Duration::from_secs(5);

/// How long nobody asks again about what the cluster did not answer. Those that waited for the same answer share it.
pub(super) const FAILED: Duration = Duration::from_secs(1);

/// Tokens that are remembered as accepted; the one unused for longest goes, and is reviewed again. As many as refused, which never
/// take the place of an accepted one.
pub(super) const MAX_TOKENS: usize = 4096;

/// Answers that are remembered for one token; the one unused for longest goes, and is asked for again.
pub(super) const MAX_ANSWERS: usize = 256;

/// SHA-256 of a token: the token itself is not kept.
type Hash = [u8; 32];

/// What is known of a token.
#[derive(Debug, Clone)]
pub(super) enum Known {
    Accepted(Arc<Accepted>),
    /// Why it was not.
    Refused(Arc<str>),
    Failed(AccessError),
}

/// What somebody wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) verb: Verb,
    pub(super) resource: AccessResource,
    pub(super) namespace: Option<String>,
}

/// What the cluster said to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Allowed,
    Denied,
    Failed(AccessError),
}

impl Answer {
    pub(super) fn into_result(self) -> Result<bool, AccessError> {
        match self {
            Self::Allowed => Ok(true),
            Self::Denied => Ok(false),
            Self::Failed(error) => Err(error),
        }
    }

    fn lasts(&self) -> Duration {
        match self {
            Self::Allowed => POSITIVE,
            Self::Denied => NEGATIVE,
            Self::Failed(_) => FAILED,
        }
    }
}

/// The user of an accepted token, and what is known of their rights. It goes with its token, [`POSITIVE`] after the review at the
/// latest, and so do the answers.
pub(super) struct Accepted {
    who: Who,
    answers: Mutex<LruCache<Question, (Answer, Instant)>>,
    flight: AsyncMutex<()>,
}

impl Accepted {
    pub(super) fn new(who: Who) -> Self {
        Self { who, answers: Mutex::new(LruCache::new(MAX_ANSWERS)), flight: AsyncMutex::new(()) }
    }

    pub(super) fn who(&self) -> &Who {
        &self.who
    }

    pub(super) fn answer(&self, question: &Question, now: Instant) -> Option<Answer> {
        let mut answers = locked(&self.answers);
        let (answer, until) = answers.get(question)?;
        (now < *until).then(|| answer.clone())
    }

    pub(super) fn remember(&self, question: Question, answer: Answer, now: Instant) {
        let until = now + answer.lasts();
        locked(&self.answers).insert(question, (answer, until));
    }

    /// One question at a time.
    pub(super) async fn flight(&self) -> impl Drop + '_ {
        self.flight.lock().await
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Accepted").field("user", &self.who.user).finish_non_exhaustive()
    }
}

/// What is known of tokens.
pub(super) struct Cache {
    accepted: Mutex<LruCache<Hash, (Arc<Accepted>, Instant)>>,
    refused: Mutex<LruCache<Hash, (Known, Instant)>>,
    /// Reviews that are under way: no more than there are requests.
    flights: Mutex<HashMap<Hash, Arc<AsyncMutex<()>>>>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            accepted: Mutex::new(LruCache::new(MAX_TOKENS)),
            refused: Mutex::new(LruCache::new(MAX_TOKENS)),
            flights: Mutex::default(),
        }
    }
}

impl Cache {
    pub(super) fn known(&self, hash: &Hash, now: Instant) -> Option<Known> {
        let mut accepted = locked(&self.accepted);
        match accepted.get(hash) {
            Some((found, until)) if now < *until => return Some(Known::Accepted(Arc::clone(found))),
            Some(_) => drop(accepted.remove(hash)),
            None => {}
        }
        drop(accepted);
        let mut refused = locked(&self.refused);
        let (known, until) = refused.get(hash)?;
        (now < *until).then(|| known.clone())
    }

    /// Keeps what is known of a token, and no longer than the token is valid; how many others had to go for it.
    pub(super) fn remember(&self, hash: Hash, known: Known, valid: Duration, now: Instant) -> u64 {
        let full = match known {
            Known::Accepted(found) => {
                let mut accepted = locked(&self.accepted);
                let full = accepted.len() == MAX_TOKENS && !accepted.contains_key(&hash);
                accepted.insert(hash, (found, now + POSITIVE.min(valid)));
                full
            }
            Known::Refused(_) | Known::Failed(_) => {
                let lasts = if matches!(known, Known::Failed(_)) { FAILED } else { NEGATIVE };
                let mut refused = locked(&self.refused);
                let full = refused.len() == MAX_TOKENS && !refused.contains_key(&hash);
                refused.insert(hash, (known, now + lasts));
                full
            }
        };
        u64::from(full)
    }

    /// The only review of a token at this time: waits until every earlier one has ended.
    pub(super) async fn flight(&self, hash: Hash) -> Flight<'_> {
        let flight = Arc::clone(locked(&self.flights).entry(hash).or_default());
        // A waiter that gives up leaves nothing behind either.
        let mut entry = Flight { cache: self, hash, guard: None };
        entry.guard = Some(flight.lock_owned().await);
        entry
    }
}

/// A review under way; ended when dropped.
pub(super) struct Flight<'a> {
    cache: &'a Cache,
    hash: Hash,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = locked(&self.cache.flights);
        self.guard = None;
        // Whoever takes part holds a reference, taken under this lock.
        if flights.get(&self.hash).is_some_and(|flight| Arc::strong_count(flight) == 1) {
            flights.remove(&self.hash);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use ash_core::ports::{AccessError, AccessResource, Verb, Who};
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{
        Accepted, Answer, Cache, FAILED, Known, MAX_ANSWERS, MAX_TOKENS, NEGATIVE, POSITIVE, Question, locked,
    };

    fn accepted() -> Known {
        let who = Who { user: "u".to_owned(), uid: None, groups: Vec::new(), extra: BTreeMap::new() };
        Known::Accepted(Arc::new(Accepted::new(who)))
    }

    fn known(kind: u8) -> (Known, Duration) {
        match kind {
            0 => (accepted(), POSITIVE),
            1 => (Known::Refused("x".into()), NEGATIVE),
            _ => (Known::Failed(AccessError::Unavailable("x".to_owned())), FAILED),
        }
    }

    fn hash(number: usize) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        hash
    }

    fn question(namespace: usize) -> Question {
        Question { verb: Verb::Get, resource: AccessResource::Agents, namespace: Some(namespace.to_string()) }
    }

    proptest! {
        #[test]
        fn nothing_is_known_for_longer_than_it_holds(kind in 0u8..3, valid in 0u64..120_000, later in 0u64..120_000) {
            let (cache, start) = (Cache::default(), Instant::now());
            let (known, lasts) = known(kind);
            cache.remember(hash(1), known, Duration::from_millis(valid), start);
            let holds = if kind == 0 { lasts.min(Duration::from_millis(valid)) } else { lasts };
            let later = Duration::from_millis(later);
            prop_assert_eq!(cache.known(&hash(1), start + later).is_some(), later < holds);
            prop_assert!(cache.known(&hash(2), start).is_none());
        }

        #[test]
        fn answers_hold_as_long_as_they_may(kind in 0u8..3, later in 0u64..120_000) {
            let Known::Accepted(accepted) = accepted() else { unreachable!() };
            let (answer, lasts) = match kind {
                0 => (Answer::Allowed, POSITIVE),
                1 => (Answer::Denied, NEGATIVE),
                _ => (Answer::Failed(AccessError::Unavailable("x".to_owned())), FAILED),
            };
            let (start, later) = (Instant::now(), Duration::from_millis(later));
            accepted.remember(question(1), answer.clone(), start);
            prop_assert_eq!(accepted.answer(&question(1), start + later), (later < lasts).then_some(answer));
            prop_assert_eq!(accepted.answer(&question(2), start), None);
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_refused_tokens_push_out_no_accepted_one() {
        let (cache, now) = (Cache::default(), Instant::now());
        assert_eq!(cache.remember(hash(0), accepted(), Duration::MAX, now), 0);
        for number in 1..=MAX_TOKENS * 2 {
            let evicted = cache.remember(hash(number), Known::Refused("x".into()), Duration::MAX, now);
            assert_eq!(evicted, u64::from(number > MAX_TOKENS));
        }
        assert!(cache.known(&hash(0), now).is_some() && cache.known(&hash(1), now).is_none());
        for number in 1..=MAX_TOKENS {
            cache.remember(hash(number), accepted(), Duration::MAX, now);
        }
        assert!(cache.known(&hash(0), now).is_none());
        assert_eq!((locked(&cache.accepted).len(), locked(&cache.refused).len()), (MAX_TOKENS, MAX_TOKENS));
        let Known::Accepted(accepted) = accepted() else { unreachable!() };
        for number in 0..=MAX_ANSWERS {
            accepted.remember(question(number), Answer::Allowed, now);
        }
        assert_eq!(locked(&accepted.answers).len(), MAX_ANSWERS);
    }

    #[test]
    fn a_token_that_was_refused_and_is_accepted_later_is_accepted() {
        let (cache, now) = (Cache::default(), Instant::now());
        cache.remember(hash(0), Known::Refused("x".into()), Duration::MAX, now);
        cache.remember(hash(0), accepted(), Duration::MAX, now);
        assert!(matches!(cache.known(&hash(0), now), Some(Known::Accepted(_))));
    }

    #[tokio::test]
    async fn one_flight_at_a_time_and_none_stays() {
        let cache = Arc::new(Cache::default());
        let first = cache.flight(hash(0)).await;
        let waiting = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { drop(cache.flight(hash(0)).await) }
        });
        let given_up = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { drop(cache.flight(hash(0)).await) }
        });
        tokio::task::yield_now().await;
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled() && !waiting.is_finished());
        drop(cache.flight(hash(1)).await);
        drop(first);
        waiting.await.unwrap();
        assert!(locked(&cache.flights).is_empty());
    }
}
