//! Keys of the model API that came from a coordinator: in memory, and only those of sessions that are here.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ash_core::{fleet::ModelKey, id::SessionId};
use ash_gateway::{Credential, UpstreamOverride};

/// How long a key is kept for a session that is not here yet: its placing is on the way.
const GRACE: Duration = Duration::from_secs(60);

/// The keys by session. Bounded by the sessions that are on the runner, and those that came within the last minute.
#[derive(Debug, Default)]
pub struct ModelKeys(Mutex<HashMap<SessionId, (ModelKey, Instant)>>);

impl ModelKeys {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, (ModelKey, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a session's key, or forgets it; true where that changes something.
    pub fn set(&self, session: SessionId, key: Option<&ModelKey>) -> bool {
        let mut keys = self.lock();
        let Some(key) = key else { return keys.remove(&session).is_some() };
        let before = keys.insert(session, (key.clone(), Instant::now()));
        before.is_none_or(|(before, _)| before != *key)
    }

    /// What a session's gateway puts into its requests; `None` where that is the gateway's own.
    pub(crate) fn of(&self, session: SessionId) -> Option<UpstreamOverride> {
        let credential = match self.lock().get(&session)?.0.clone() {
            ModelKey::ApiKey(key) => Credential::ApiKey(key.0.into()),
            ModelKey::AuthToken(token) => Credential::AuthToken(token.0.into()),
        };
        Some(UpstreamOverride { credential, base_url: None })
    }

    /// Forgets the keys of sessions that are not here, but for those that came just now.
    pub(crate) fn keep_only(&self, is_here: impl Fn(SessionId) -> bool) {
        // Asked without the lock: whoever answers takes locks of its own.
        let old: Vec<SessionId> = self
            .lock()
            .iter()
            .filter(|(_, (_, since))| since.elapsed() >= GRACE)
            .map(|(session, _)| *session)
            .collect();
        let gone: Vec<SessionId> = old.into_iter().filter(|session| !is_here(*session)).collect();
        let mut keys = self.lock();
        for session in gone {
            keys.remove(&session);
        }
    }
}

#[cfg(test)]
mod tests {
    use ash_core::{fleet::ModelKey, id::SessionId};
    use ash_protocol::fleet::Hidden;

    use super::ModelKeys;

    #[test]
    fn a_key_is_kept_for_its_session_and_never_printed() {
        let keys = ModelKeys::default();
        let (one, other) = (SessionId::new(), SessionId::new());
        let key = ModelKey::ApiKey(Hidden("sk-sesame".to_owned()));
        assert!(keys.set(one, Some(&key)));
        assert!(!keys.set(one, Some(&key)));
        assert!(keys.of(one).is_some() && keys.of(other).is_none());
        assert!(!format!("{keys:?} {:?}", keys.of(one)).contains("sesame"));
        keys.keep_only(|_| false);
        assert!(keys.of(one).is_some(), "its placing may still be on the way");
        assert!(keys.set(one, None));
        assert!(keys.of(one).is_none());
    }
}
