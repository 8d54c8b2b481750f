//! Asks the API server whose token a bridge shows: `TokenReview` for the audience of runners. It needs the right to create those
//! and no other.
//!
//! What the answer says of the pod: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#additional-metadata-in-pod-bound-tokens>.

use std::{collections::BTreeMap, time::Duration};

use ash_core::ports::{PodIdentity, ReviewError, TokenReviews};
use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, Config, api::PostParams};

use crate::manifest::TOKEN_AUDIENCE;

/// How long the API server may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What the user name of a service account begins with; namespace and name follow.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Why the API server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no configuration.
    #[error("no API server is known: run it in a pod with a service account, or set KUBECONFIG ({0})")]
    Configuration(#[from] kube::config::InferConfigError),
    /// It cannot be used.
    #[error("the API server's configuration cannot be used: {0}")]
    Client(#[from] kube::Error),
}

/// The API server's reviews.
pub struct ApiServerReviews {
    reviews: Api<TokenReview>,
}

impl ApiServerReviews {
    /// Of the cluster that this process is in, or that its `KUBECONFIG` names. Connects to nothing yet.
    ///
    /// # Errors
    /// Where there is no usable configuration.
    pub async fn of_cluster() -> Result<Self, ConnectError> {
        let mut config = Config::infer().await?;
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(ANSWER);
        Ok(Self::of(Client::try_from(config)?))
    }

    /// Of the API server of a client.
    pub fn of(client: Client) -> Self {
        Self { reviews: Api::all(client) }
    }
}

#[async_trait]
impl TokenReviews for ApiServerReviews {
    async fn review(&self, token: &str) -> Result<PodIdentity, ReviewError> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) },
            ..TokenReview::default()
        };
        match self.reviews.create(&PostParams::default(), &review).await {
            Ok(reviewed) => identity(reviewed.status.unwrap_or_default()),
            // What is no token at all is no question to the API server.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                Err(ReviewError::Refused(status.message.clone()))
            }
            Err(kube::Error::Api(status)) => Err(ReviewError::Unavailable(status.message.clone())),
            // Nothing in an error of the client holds what was sent.
            Err(error) => Err(ReviewError::Unavailable(error.to_string())),
        }
    }
}

/// What a review says of a pod.
fn identity(status: TokenReviewStatus) -> Result<PodIdentity, ReviewError> {
    let refused = |why: &str| ReviewError::Refused(why.to_owned());
    if status.authenticated != Some(true) {
        return Err(ReviewError::Refused(status.error.unwrap_or_else(|| "it is not valid".to_owned())));
    }
    // An API server that knows no audiences says none: then the token may be meant for anybody.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(refused("it is not meant for runners"));
    }
    let user = status.user.unwrap_or_default();
    let account = user.username.unwrap_or_default();
    let namespace = account.strip_prefix(SERVICE_ACCOUNT).and_then(|account| account.split_once(':'));
    let (namespace, _) = namespace.ok_or_else(|| refused("it is no service account's"))?;
    let extra: BTreeMap<String, Vec<String>> = user.extra.unwrap_or_default();
    let one = |name: &str| match extra.get(name).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    let bound = |name: &str| one(name).ok_or_else(|| refused("it is not bound to a pod on a node"));
    Ok(PodIdentity {
        namespace: namespace.to_owned(),
        pod: bound(POD_NAME)?,
        pod_uid: bound(POD_UID)?,
        node: bound(NODE_NAME)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::{PodIdentity, ReviewError, identity};

    fn reviewed(change: impl FnOnce(&mut Value)) -> Result<PodIdentity, ReviewError> {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["ash-runner"],
            "user": { "username": "system:serviceaccount:team:default", "extra": {
                "authentication.kubernetes.io/pod-name": ["agent-1"],
                "authentication.kubernetes.io/pod-uid": ["u-1"],
                "authentication.kubernetes.io/node-name": ["n1"],
                "authentication.kubernetes.io/node-uid": ["n-1"],
            } },
        });
        change(&mut status);
        identity(serde_json::from_value(status).unwrap())
    }

    #[test]
    fn a_review_names_the_pod() {
        let pod =
            PodIdentity { namespace: "team".into(), pod: "agent-1".into(), pod_uid: "u-1".into(), node: "n1".into() };
        assert_eq!(reviewed(|_| {}), Ok(pod));
    }

    #[test]
    fn what_proves_no_pod_is_refused() {
        let changes: [fn(&mut Value); 8] = [
            |status| status["authenticated"] = json!(false),
            |status| drop(status.as_object_mut().unwrap().remove("authenticated")),
            |status| status["audiences"] = json!(["https://kubernetes.default.svc"]),
            |status| drop(status.as_object_mut().unwrap().remove("audiences")),
            |status| status["user"]["username"] = json!("system:node:n1"),
            |status| status["user"]["username"] = json!("system:serviceaccount:team"),
            |status| {
                drop(status["user"]["extra"].as_object_mut().unwrap().remove("authentication.kubernetes.io/node-name"));
            },
            |status| status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!(["u-1", "u-2"]),
        ];
        for change in changes {
            assert!(matches!(reviewed(change), Err(ReviewError::Refused(_))));
        }
    }
}
