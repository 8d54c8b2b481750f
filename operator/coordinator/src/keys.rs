//! The key of the model API for a session: of its own credential, else of its agent's, else the server's own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ash_core::{
    agent::AgentSettings,
    fleet::ModelKey,
    id::TenantId,
    ports::{Clear, Credential, CredentialKind, FleetStore, RunnerError},
    session::Session,
};
use ash_protocol::fleet::Hidden;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use crate::limits::{KEY_AGE, MAX_KEYS};

/// Which credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Which {
    Id(Uuid),
    Named(String),
}

/// Keys as they were revealed, and when.
type Cache = HashMap<(TenantId, Which), (ModelKey, Instant)>;

/// Finds sessions their keys. What was revealed is kept in memory for a few seconds.
pub struct ModelKeySource {
    store: Arc<dyn FleetStore>,
    own: Option<ModelKey>,
    cache: Mutex<Cache>,
}

impl ModelKeySource {
    /// Keys of the credentials of this store; for sessions without one, the server's own.
    pub fn new(store: Arc<dyn FleetStore>, own: Option<ModelKey>) -> Self {
        Self { store, own, cache: Mutex::default() }
    }

    /// A session's key. `None` where nobody gave one.
    ///
    /// # Errors
    /// Its credential is not there any more, or is for something else: another key is not taken in its place.
    pub async fn of(&self, session: &Session, agent: &AgentSettings) -> Result<Option<ModelKey>, RunnerError> {
        let which = match (session.credential, &agent.credential) {
            (Some(id), _) => Which::Id(id),
            (None, Some(name)) => Which::Named(name.clone()),
            (None, None) => return Ok(self.own.clone()),
        };
        let key = (session.tenant.clone(), which);
        let cached = self
            .with(|cache| cache.get(&key).filter(|(_, since)| since.elapsed() < KEY_AGE).map(|(key, _)| key.clone()));
        if cached.is_some() {
            return Ok(cached);
        }
        let found = match &key.1 {
            Which::Id(id) => self.store.reveal_credential(&session.tenant, *id).await?,
            Which::Named(name) => self.store.reveal_credential_named(&session.tenant, name).await?,
        };
        let whose = match &key.1 {
            Which::Id(_) => "the session's credential".to_owned(),
            Which::Named(name) => format!("the agent's credential {name:?}"),
        };
        let Some((credential, secret)) = found else {
            return Err(RunnerError::OptionRefused(format!(
                "{whose} is not stored (any more): store it, or begin another session with one that is"
            )));
        };
        let revealed = model_key(&credential, &secret)
            .ok_or_else(|| RunnerError::OptionRefused(format!("{whose} is no key of the model API")))?;
        self.with(|cache| {
            if cache.len() >= MAX_KEYS {
                cache.clear();
            }
            cache.insert(key, (revealed.clone(), Instant::now()));
        });
        Ok(Some(revealed))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Cache) -> T) -> T {
        look(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn model_key(credential: &Credential, secret: &Clear) -> Option<ModelKey> {
    let text = || std::str::from_utf8(secret.expose_secret()).ok().map(|text| Hidden(text.to_owned()));
    match credential.kind {
        CredentialKind::AnthropicKey => text().map(ModelKey::ApiKey),
        CredentialKind::AnthropicToken => text().map(ModelKey::AuthToken),
        CredentialKind::Custom => None,
    }
}
