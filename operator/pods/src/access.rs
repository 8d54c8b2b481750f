//! Whose token it is and what its bearer may do, asked of the API server: `TokenReview` and `SubjectAccessReview`.

use std::{fmt, time::Duration};

use ash_core::ports::{ACCESS_AUDIENCE, ACCESS_GROUP, AccessError, AccessResource, AccessReviews, Verb, Who};
use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, Resource, api::PostParams};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

/// The longest wait for one review. The API server answers in a millisecond or two; a request of a person waits behind it.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no Kubernetes API server to ask for tokens' reviews: {0}; run in a pod with a service account, or name a \
     kubeconfig in KUBECONFIG"
)]
pub struct ConnectError(String);

/// Reviews by the API server of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct KubernetesAccess {
    client: Client,
}

impl KubernetesAccess {
    /// Reviews through a client that there is already. Its identity needs `create` on `tokenreviews` and `subjectaccessreviews`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Reviews by the cluster that `KUBECONFIG` names, or else the one that this pod is in. Sends nothing yet.
    pub async fn connect() -> Result<Self, ConnectError> {
        // Fails only where a provider is there already, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_default().await.map(Self::new).map_err(|error| ConnectError(root(&error)))
    }

    async fn ask<T>(&self, review: &T) -> Result<T, AccessError>
    where
        T: Resource<DynamicType = ()> + Clone + fmt::Debug + Serialize + DeserializeOwned,
    {
        let api: Api<T> = Api::all(self.client.clone());
        let unavailable = || AccessError::Unavailable(format!("no answer in {} s", REVIEW_TIMEOUT.as_secs()));
        let parameters = PostParams::default();
        let answer = timeout(REVIEW_TIMEOUT, api.create(&parameters, review)).await.map_err(|_| unavailable())?;
        answer.map_err(|error| match error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => AccessError::Forbidden(status.message),
            kube::Error::Api(status) => AccessError::Unavailable(status.message),
            error => AccessError::Unavailable(root(&error)),
        })
    }
}

impl fmt::Debug for KubernetesAccess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KubernetesAccess").finish_non_exhaustive()
    }
}

#[async_trait]
impl AccessReviews for KubernetesAccess {
    async fn review(&self, token: &SecretString) -> Result<Result<Who, String>, AccessError> {
        let spec = TokenReviewSpec {
            token: token.expose_secret().to_owned(),
            audiences: Some(vec![ACCESS_AUDIENCE.to_owned()]),
        };
        let status = self.ask(&TokenReview { spec, ..TokenReview::default() }).await?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(Err(status.error.unwrap_or_else(|| "the API server does not know it".to_owned())));
        }
        // An authenticator that knows nothing of audiences answers without them: its tokens are the API server's own.
        if !status.audiences.is_some_and(|audiences| audiences.iter().any(|audience| audience == ACCESS_AUDIENCE)) {
            return Ok(Err("it is a token for the API server".to_owned()));
        }
        let user = status.user.unwrap_or_default();
        let Some(name) = user.username.filter(|name| !name.is_empty()) else {
            return Ok(Err("it belongs to nobody".to_owned()));
        };
        Ok(Ok(Who {
            user: name,
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn may(
        &self,
        who: &Who,
        verb: Verb,
        resource: AccessResource,
        namespace: Option<&str>,
    ) -> Result<bool, AccessError> {
        let attributes = ResourceAttributes {
            group: Some(ACCESS_GROUP.to_owned()),
            version: Some("*".to_owned()),
            resource: Some(resource.to_string()),
            verb: Some(verb.to_string()),
            namespace: namespace.map(ToOwned::to_owned),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            user: Some(who.user.clone()),
            uid: who.uid.clone(),
            groups: Some(who.groups.clone()),
            extra: Some(who.extra.clone()),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let status = self.ask(&review).await?.status.unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }
}

/// The innermost cause: what the system said, without what every layer adds to it.
fn root(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
