//! The way to the API server: every call of it has a bound but watches, which are quiet for as long as nothing happens.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
    config::KubeConfigOptions,
};
use tokio::time::timeout;
use tower::{BoxError, Layer, Service};

use crate::limits::{API_CALL, API_CONNECT};

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
#[error("no way to the Kubernetes API server: {0}; run this in a pod of the cluster, or with KUBECONFIG set")]
pub struct ConnectError(String);

/// A call that was not answered in time.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", API_CALL.as_secs())]
struct NoAnswer;

/// A client for the cluster that this process is in, or that `KUBECONFIG` names.
///
/// # Errors
/// Where there is no usable configuration.
pub async fn connect() -> Result<Client, ConnectError> {
    client_of(Config::infer().await.map_err(|error| ConnectError(error.to_string()))?)
}

/// A client for the cluster of a kubeconfig's context; without one, as [`connect`].
///
/// # Errors
/// Where there is no usable configuration.
pub async fn connect_to(context: Option<&str>) -> Result<Client, ConnectError> {
    let Some(context) = context else { return connect().await };
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let config = Config::from_kubeconfig(&options).await.map_err(|error| ConnectError(error.to_string()))?;
    client_of(config)
}

/// A client whose calls are bounded.
///
/// # Errors
/// Where the configuration is of no use.
pub fn client_of(mut config: Config) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(API_CONNECT);
    let builder = ClientBuilder::try_from(config).map_err(|error| ConnectError(error.to_string()))?;
    Ok(builder.with_layer(&BoundedLayer).build())
}

#[derive(Debug, Clone, Copy)]
struct BoundedLayer;

impl<S> Layer<S> for BoundedLayer {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded(inner)
    }
}

/// Gives up waiting for an answer after [`API_CALL`].
#[derive(Debug, Clone)]
struct Bounded<S>(S);

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let answer = self.0.call(request);
        Box::pin(async move {
            if is_watch {
                return answer.await.map_err(Into::into);
            }
            match timeout(API_CALL, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => Err(NoAnswer.into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{Request, Response};
    use kube::client::Body;
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use super::BoundedLayer;

    async fn never(_: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_answers_ends_and_a_watch_waits() {
        let send = |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            BoundedLayer.layer(service_fn(never)).oneshot(request)
        };
        let error = send("/api/v1/namespaces/a/pods?limit=20").await.unwrap_err();
        assert!(error.to_string().contains("did not answer within"), "{error}");
        let watch = send("/api/v1/namespaces/a/pods?labelSelector=watch%3Dtrue&watch=true&timeoutSeconds=290");
        tokio::time::timeout(super::API_CALL * 10, watch).await.unwrap_err();
    }
}
