//! What others are asked because somebody dials: the API server whose a token is, a coordinator which sandbox a pod is. No address
//! makes them be asked faster than at a rate, and nobody is asked again at once about a token that was refused. Time is given.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::limits::{QUESTION_INTERVAL, QUESTIONERS, QUESTIONS_AT_ONCE, REFUSED_TOKEN, REFUSED_TOKENS};

/// SHA-256 of a token: the token itself is not kept.
type Hash = [u8; 32];

/// Who asked how much, and what was refused.
#[derive(Default)]
pub(super) struct Questions {
    /// When an address may ask [`QUESTIONS_AT_ONCE`] again. One that may now is not here.
    askers: Mutex<HashMap<IpAddr, Instant>>,
    /// Tokens that were refused: why, and until when they are not asked about.
    refused: Mutex<HashMap<Hash, (String, Instant)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

impl Questions {
    /// Takes one question of an address: false where it had all that it may have for now.
    pub(super) fn may_ask(&self, address: IpAddr, now: Instant) -> bool {
        let mut askers = lock(&self.askers);
        if askers.len() >= QUESTIONERS && !askers.contains_key(&address) {
            askers.retain(|_, full_at| *full_at > now);
            if askers.len() >= QUESTIONERS {
                return false;
            }
        }
        let full_at = askers.entry(address).or_insert(now);
        let next = (*full_at).max(now) + QUESTION_INTERVAL;
        let may = next - now <= QUESTION_INTERVAL * QUESTIONS_AT_ONCE;
        if may {
            *full_at = next;
        }
        may
    }

    /// Why a token was refused a moment ago.
    pub(super) fn refused(&self, token: &str, now: Instant) -> Option<String> {
        let refused = lock(&self.refused);
        let (why, until) = refused.get(&hash(token))?;
        (now < *until).then(|| why.clone())
    }

    /// Keeps for a moment that a token was refused. At the bound all are forgotten that are kept so far: they are asked about again.
    pub(super) fn note_refused(&self, token: &str, why: String, now: Instant) {
        let mut refused = lock(&self.refused);
        if refused.len() >= REFUSED_TOKENS {
            refused.clear();
        }
        refused.insert(hash(token), (why, now + REFUSED_TOKEN));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        net::{IpAddr, Ipv4Addr},
        time::Duration,
    };

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{QUESTION_INTERVAL, QUESTIONERS, QUESTIONS_AT_ONCE, Questions, REFUSED_TOKEN, REFUSED_TOKENS, lock};

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(u32::try_from(number).unwrap()).into()
    }

    proptest! {
        #[test]
        fn no_address_asks_faster_than_it_may(pauses in prop::collection::vec(0u64..700, 1..200)) {
            let (questions, start) = (Questions::default(), Instant::now());
            let (mut now, mut asked) = (start, 0u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                asked += u32::from(questions.may_ask(address(1), now));
                let earned = (now - start).as_millis() / QUESTION_INTERVAL.as_millis();
                prop_assert!(u128::from(asked) <= u128::from(QUESTIONS_AT_ONCE) + earned);
            }
            // Whatever was asked, who waits for long enough may ask as much as at the beginning.
            now += QUESTION_INTERVAL * QUESTIONS_AT_ONCE;
            for _ in 0..QUESTIONS_AT_ONCE {
                prop_assert!(questions.may_ask(address(1), now));
            }
            prop_assert!(!questions.may_ask(address(1), now));
            prop_assert!(questions.may_ask(address(2), now));
        }
    }

    #[test]
    fn addresses_are_bounded_and_forgotten_when_they_may_ask_as_before() {
        let (questions, now) = (Questions::default(), Instant::now());
        for number in 0..QUESTIONERS {
            assert!(questions.may_ask(address(number), now));
        }
        assert!(!questions.may_ask(address(QUESTIONERS), now));
        assert!(questions.may_ask(address(0), now), "one that is known");
        assert!(questions.may_ask(address(QUESTIONERS), now + QUESTION_INTERVAL * 2));
        assert_eq!(lock(&questions.askers).len(), 1);
    }

    #[test]
    fn a_refused_token_is_known_for_a_moment_and_so_many() {
        let (questions, now) = (Questions::default(), Instant::now());
        questions.note_refused("a", "no".to_owned(), now);
        assert_eq!(questions.refused("a", now).as_deref(), Some("no"));
        assert_eq!(questions.refused("b", now), None);
        assert_eq!(questions.refused("a", now + REFUSED_TOKEN), None);
        for number in 0..3 * REFUSED_TOKENS {
            questions.note_refused(&number.to_string(), String::new(), now);
            assert!(lock(&questions.refused).len() <= REFUSED_TOKENS);
        }
    }
}
