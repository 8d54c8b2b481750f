//! What stored credentials give a session: the key of the model API (of its own credential, else of its agent's, else the
//! server's own), and the variables of its agent that are secrets.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ash_core::{
    agent::{AgentSettings, AgentVersion},
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

/// A credential with its secret, as it was revealed.
type Revealed = Arc<(Credential, Clear)>;

/// Credentials as they were revealed, and when.
type Cache = HashMap<(TenantId, Which), (Revealed, Instant)>;

/// Finds sessions their keys, and agents their secret variables. What was revealed is kept in memory for a few seconds.
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
        let whose = match &which {
            Which::Id(_) => "the session's credential".to_owned(),
            Which::Named(name) => format!("the agent's credential {name:?}"),
        };
        let Some(revealed) = self.reveal(&session.tenant, which).await? else {
            return Err(RunnerError::OptionRefused(format!(
                "{whose} is not stored (any more): store it, or begin another session with one that is"
            )));
        };
        let (credential, secret) = &*revealed;
        let key = model_key(credential, secret);
        key.map(Some).ok_or_else(|| RunnerError::OptionRefused(format!("{whose} is no key of the model API")))
    }

    /// The version with its secret variables over its others: for memory only, and never to be stored or shown.
    ///
    /// # Errors
    /// They are not stored any more, or are no variables: the agent is not run without them.
    pub async fn complete(&self, mut agent: AgentVersion) -> Result<AgentVersion, RunnerError> {
        let Some(name) = agent.settings.secret_environment.clone() else { return Ok(agent) };
        let variables = match self.reveal(&agent.tenant, Which::Named(name.clone())).await?.as_deref() {
            Some((credential, secret)) if credential.kind == CredentialKind::Custom => variables(secret),
            _ => None,
        };
        let Some(variables) = variables else {
            return Err(RunnerError::OptionRefused(format!(
                "the agent's secret variables {name:?} are not stored (any more): deploy the agent again"
            )));
        };
        agent.settings.env.extend(variables);
        Ok(agent)
    }

    /// The same for a sandbox that runs already: without them, and with a word in the log, where they cannot be had. Its session's
    /// next message is refused then, and says why.
    pub(crate) async fn complete_if_possible(&self, agent: AgentVersion) -> AgentVersion {
        match self.complete(agent.clone()).await {
            Ok(agent) => agent,
            Err(error) => {
                tracing::warn!(agent = %agent.agent, version = agent.number, %error, "an agent has no secret variables");
                agent
            }
        }
    }

    /// A credential with its secret, at most [`KEY_AGE`] old. `None` where it is not stored.
    async fn reveal(&self, tenant: &TenantId, which: Which) -> Result<Option<Revealed>, RunnerError> {
        let key = (tenant.clone(), which);
        let cached = self.with(|cache| {
            cache.get(&key).filter(|(_, since)| since.elapsed() < KEY_AGE).map(|(revealed, _)| Arc::clone(revealed))
        });
        if cached.is_some() {
            return Ok(cached);
        }
        let found = match &key.1 {
            Which::Id(id) => self.store.reveal_credential(tenant, *id).await?,
            Which::Named(name) => self.store.reveal_credential_named(tenant, name).await?,
        };
        let Some(revealed) = found.map(Arc::new) else { return Ok(None) };
        self.with(|cache| {
            if cache.len() >= MAX_KEYS {
                cache.clear();
            }
            cache.insert(key, (Arc::clone(&revealed), Instant::now()));
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

/// The variables of a custom credential: a JSON object of texts.
fn variables(secret: &Clear) -> Option<BTreeMap<String, String>> {
    serde_json::from_slice(secret.expose_secret()).ok()
}
