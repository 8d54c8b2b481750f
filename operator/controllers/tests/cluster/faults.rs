//! Counts the calls of a client to the API server, and lets one of them fail.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http::{Method, Request};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

#[derive(Clone, Default)]
pub struct Faults {
    calls: Arc<AtomicU64>,
    writes: Arc<AtomicU64>,
    /// Which call fails, from 1; after it was carried out where `late` is set, so that only its answer is lost.
    pub fail: Arc<AtomicU64>,
    pub late: bool,
    pub log: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Faults {
    pub fn failing(call: u64, late: bool) -> Self {
        Self { fail: Arc::new(AtomicU64::new(call)), late, ..Self::default() }
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner, faults: self.clone() }
    }
}

#[derive(Clone)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S, R> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>, Response = R, Error = BoxError>,
    S::Future: Send + 'static,
    R: Send + 'static,
{
    type Response = R;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<R, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let line = format!("{} {}", request.method(), request.uri());
        // The lease is renewed by the clock.
        if line.contains("/leases/") {
            return Box::pin(self.inner.call(request));
        }
        let number = self.faults.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if request.method() != Method::GET {
            self.faults.writes.fetch_add(1, Ordering::SeqCst);
            self.faults.log.lock().unwrap().push(line);
        }
        let fails = number == self.faults.fail.load(Ordering::SeqCst);
        match (fails, self.faults.late) {
            (true, false) => Box::pin(async { Err("the connection broke".into()) }),
            (true, true) => {
                let call = self.inner.call(request);
                Box::pin(async {
                    let _ = call.await?;
                    Err("the answer was lost".into())
                })
            }
            (false, _) => Box::pin(self.inner.call(request)),
        }
    }
}
