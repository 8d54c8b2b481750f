//! A TCP stream that tells when everything written was handed to the kernel, and that can end with a reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What the body of a response and its connection know of each other.
///
/// A body that is to be cut must not end while bytes before the cut still wait in the HTTP library's buffer: that library drops
/// them when a body fails. It flushes when the body has nothing for it, so the body waits for the next flush.
#[derive(Debug, Default)]
pub(super) struct Link {
    flushes: AtomicU64,
    waker: AtomicWaker,
    reset: AtomicBool,
}

impl Link {
    /// Number of completed flushes so far.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Acquire)
    }

    /// Ready once there were more than `seen` flushes.
    pub(super) fn poll_flushed(&self, seen: u64, context: &Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.flushes() > seen { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Makes the end of this connection a TCP reset.
    pub(super) fn end_with_reset(&self) {
        self.reset.store(true, Ordering::Release);
    }
}

/// The stream itself.
#[derive(Debug)]
pub(super) struct Linked {
    stream: TcpStream,
    link: Arc<Link>,
}

impl Linked {
    pub(super) fn new(stream: TcpStream, link: Arc<Link>) -> Self {
        Self { stream, link }
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        if self.link.reset.load(Ordering::Acquire) {
            // Closing with a zero linger time is what makes the kernel send a reset. Where it is refused, the close is plain.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Linked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Linked {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.link.flushes.fetch_add(1, Ordering::AcqRel);
            self.link.waker.wake();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
