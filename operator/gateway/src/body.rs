//! The two bodies that stream through: the request's, bounded, and the answer's, counted and cut.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::answer::BodyError;
use crate::metrics::{Held, Metrics, ModelOutcome};
use crate::registry::Bound;
use crate::usage::{Scanner, UsageReport, UsageSink};

/// A request's body on its way to the model: ends with an error beyond its bound.
pub(crate) struct RequestBody {
    inner: Incoming,
    left: u64,
    exceeded: Arc<AtomicBool>,
    metrics: Metrics,
}

impl RequestBody {
    /// The second value becomes true when the bound was passed.
    pub(crate) fn new(inner: Incoming, bound: u64, metrics: Metrics) -> (Self, Arc<AtomicBool>) {
        let exceeded = Arc::new(AtomicBool::new(false));
        let body = Self { inner, left: bound, exceeded: exceeded.clone(), metrics };
        (body, exceeded)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::RequestCut))),
                Some(Ok(frame)) => frame,
            };
            // Trailers would reach the model unseen; requests to it have none.
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let Some(left) = self.left.checked_sub(length) else {
                self.exceeded.store(true, Ordering::Relaxed);
                return Poll::Ready(Some(Err(BodyError::RequestTooLarge)));
            };
            self.left = left;
            self.metrics.request_bytes.inc_by(length);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What an answer holds until it has ended.
pub(crate) struct Running {
    pub(crate) bound: Arc<Bound>,
    pub(crate) sink: Arc<dyn UsageSink>,
    pub(crate) metrics: Metrics,
    /// Its place among the sandbox's calls, and in the gauge.
    pub(crate) _place: (OwnedSemaphorePermit, Held),
}

/// An answer's body on its way to the sandbox. It takes from the model only what the sandbox
/// takes, so nothing piles up here; it fails when its binding is cut or the model's side fails,
/// and then hyper closes the connection without the end mark: the sandbox sees the cut.
pub(crate) struct AnswerBody {
    inner: reqwest::Body,
    scanner: Option<Scanner>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    running: Running,
    ended: bool,
}

impl AnswerBody {
    pub(crate) fn new(inner: reqwest::Body, scanner: Option<Scanner>, running: Running) -> Self {
        Self { inner, scanner, cut: Box::pin(running.bound.cut.clone().cancelled_owned()), running, ended: false }
    }

    /// Reports what was counted, once.
    fn settle(&mut self, complete: bool) {
        let metrics = &self.running.metrics;
        let Some(mut scanner) = self.scanner.take() else {
            return;
        };
        if complete {
            scanner.finish();
        }
        metrics.usage_skipped.inc_by(scanner.skipped());
        let Some(usage) = scanner.usage() else { return };
        metrics.input_tokens.inc_by(usage.input);
        metrics.output_tokens.inc_by(usage.output);
        metrics.cache_read_tokens.inc_by(usage.cache_read);
        metrics.cache_creation_tokens.inc_by(usage.cache_creation);
        let bound = &self.running.bound;
        self.running.sink.record(UsageReport {
            tenant: bound.holder.tenant.clone(),
            session: bound.holder.session,
            epoch: bound.holder.epoch,
            sandbox: bound.sandbox,
            model: scanner.take_model(),
            usage,
            complete,
        });
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        self.running.metrics.model(ModelOutcome::Cut);
        self.settle(false);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.cut.as_mut().poll(context).is_ready() {
            return self.fail(BodyError::Released);
        }
        loop {
            match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                None => {
                    self.ended = true;
                    self.settle(true);
                    return Poll::Ready(None);
                }
                Some(Err(_)) => return self.fail(BodyError::AnswerCut),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    self.running.metrics.response_bytes.inc_by(length);
                    if let Some(scanner) = &mut self.scanner {
                        scanner.feed(&data);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // With a known length hyper may stop asking after the last byte: that is an end too.
        let complete = self.ended || self.inner.is_end_stream();
        if !complete {
            self.running.metrics.model(ModelOutcome::Cut);
        }
        self.settle(complete);
    }
}
