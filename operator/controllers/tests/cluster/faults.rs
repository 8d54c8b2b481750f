//! Counts the calls of a client to the API server, and lets one of them fail.

use std::{
    hash::{BuildHasher as _, RandomState},
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

/// Lives with a failure in them, of some ninety that there are.
pub const SAMPLE: usize = 16;

/// Which call fails in each life, and whether only its answer is lost.
pub fn cases(calls: u64) -> Vec<(u64, bool)> {
    let mut cases: Vec<_> = (1..=calls).flat_map(|call| [(call, false), (call, true)]).collect();
    let wanted = std::env::var("ASH_TEST_FAULTS").unwrap_or_default();
    if wanted == "all" {
        return cases;
    }
    let drawn = || u64::from(std::process::id()) ^ RandomState::new().hash_one(calls);
    let seed: u64 = wanted.parse().unwrap_or_else(|_| drawn());
    eprintln!(
        "of {} failures, {SAMPLE} are tried: the same again with ASH_TEST_FAULTS={seed}, every one with all",
        cases.len()
    );
    let mut state = seed;
    cases.sort_by_cached_key(|_| next(&mut state));
    cases.truncate(SAMPLE);
    cases
}

/// The generator of Steele, Lea and Flood (2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

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
