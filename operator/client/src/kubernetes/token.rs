//! Tokens of a service account, for Ash alone: kept in memory, and asked for anew before they end.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use ash_core::ports::ACCESS_AUDIENCE;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client as Kube, api::PostParams};
use secrecy::SecretString;
use tokio::{sync::Mutex as AsyncMutex, time::timeout};

use super::refusal;
use crate::cluster::ClusterError;

/// How long a token is asked for: an hour. The API server gives none for less than ten minutes, and may give a shorter one.
const LIFETIME: Duration = Duration::from_secs(3600);

/// The part of its life for which a token is used: four fifths. Then the next one is asked for.
const USED: (u32, u32) = (4, 5);

/// The longest wait for a token.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A token, and until when it is used. The clock is the wall's: a machine that slept has no old token.
#[derive(Clone)]
struct Held {
    token: SecretString,
    until: SystemTime,
}

/// Tokens of one service account.
pub(super) struct Tokens {
    api: Api<ServiceAccount>,
    namespace: String,
    account: String,
    held: Mutex<Option<Held>>,
    /// One request at a time.
    asking: AsyncMutex<()>,
}

impl Tokens {
    pub(super) fn new(kube: Kube, namespace: String, account: String) -> Self {
        let api = Api::namespaced(kube, &namespace);
        Self { api, namespace, account, held: Mutex::default(), asking: AsyncMutex::default() }
    }

    /// A token that is valid for some time yet.
    pub(super) async fn token(&self) -> Result<SecretString, ClusterError> {
        if let Some(token) = self.held() {
            return Ok(token);
        }
        let _asking = self.asking.lock().await;
        if let Some(token) = self.held() {
            return Ok(token);
        }
        let asked_at = SystemTime::now();
        let (token, lifetime) = self.request().await?;
        let held = Held { token: token.clone(), until: asked_at + lifetime / USED.1 * USED.0 };
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(token)
    }

    /// Uses the token that there is no more.
    pub(super) fn forget(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn held(&self) -> Option<SecretString> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().filter(|held| SystemTime::now() < held.until).map(|held| held.token.clone())
    }

    async fn request(&self) -> Result<(SecretString, Duration), ClusterError> {
        let spec = TokenRequestSpec {
            audiences: Some(vec![ACCESS_AUDIENCE.to_owned()]),
            expiration_seconds: Some(i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX)),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let parameters = PostParams::default();
        let asked = self.api.create_token_request(&self.account, &parameters, &request);
        let late = || ClusterError::Unreachable(format!("no token within {} s", REQUEST_TIMEOUT.as_secs()));
        let answer = timeout(REQUEST_TIMEOUT, asked).await.map_err(|_| late())?.map_err(|error| {
            refusal(&error, ("create", "serviceaccounts/token", &self.namespace), || ClusterError::NoServiceAccount {
                namespace: self.namespace.clone(),
                name: self.account.clone(),
            })
        })?;
        let status = answer.status.unwrap_or_default();
        let token = status.token.ok_or_else(|| ClusterError::Unreachable("it answered without a token".to_owned()))?;
        // Both times are the API server's, so its clock may be wrong.
        let times = status.expiration_timestamp.zip(answer.metadata.creation_timestamp);
        let lifetime = times.and_then(|(end, made)| Duration::try_from(end.0.duration_since(made.0)).ok());
        Ok((token.into(), lifetime.unwrap_or(LIFETIME).min(LIFETIME)))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, account, .. } = self;
        formatter.debug_struct("Tokens").field("namespace", namespace).field("account", account).finish_non_exhaustive()
    }
}
