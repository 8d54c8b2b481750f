//! Taking connections off a listening socket that a sandbox shares.
//!
//! The socket came out of the sandbox: whoever is in there has it too, and can change what belongs to the socket and not to the
//! descriptor, `O_NONBLOCK` among it. An accept that was meant not to block can be made to. So it happens on a thread of its
//! own, one per sandbox, with a small stack: a sandbox can hold up its own connections and nothing else. What is accepted is a
//! new socket that nobody shares.

use std::{
    io,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tokio::sync::mpsc;

/// Bytes of the thread's stack: it calls a handful of functions.
const STACK_BYTES: usize = 64 << 10;
/// Accepted connections that wait for a place; more wait in the kernel's queue.
const WAITING: usize = 1;
/// The pause after an accept failed (too many open files, for example).
const PAUSE: Duration = Duration::from_millis(100);

/// Connections as they are accepted. Dropped, it stops the thread at the thread's next look.
pub(crate) struct Connections {
    accepted: mpsc::Receiver<io::Result<TcpStream>>,
    stop: OwnedFd,
}

impl Connections {
    /// Begins to accept.
    pub(crate) fn of(listener: Arc<TcpListener>) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let (sender, accepted) = mpsc::channel(WAITING);
        thread::Builder::new()
            .name("gateway-accept".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || accept(&listener, &stopped, &sender))?;
        Ok(Self { accepted, stop })
    }

    /// The next connection, or why there was none; `None` when the thread has ended.
    pub(crate) async fn next(&mut self) -> Option<io::Result<TcpStream>> {
        self.accepted.recv().await
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // A counter that cannot be raised is raised already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

fn accept(listener: &TcpListener, stopped: &OwnedFd, sender: &mpsc::Sender<io::Result<TcpStream>>) {
    loop {
        let mut watched =
            [PollFd::new(&listener, PollFlags::IN), PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(_) if !watched[1].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let accepted = listener.accept().map(|(stream, _)| stream);
        match &accepted {
            // Somebody in the sandbox was quicker.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            // It does not listen any more: the sandbox is over, or somebody in it shut the socket down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(_) => thread::sleep(PAUSE),
            Ok(_) => {}
        }
        if sender.blocking_send(accepted).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use super::Connections;

    #[tokio::test]
    async fn a_listener_that_blocks_holds_up_nobody() {
        // The listener is blocking, as a sandbox can make it; the runtime has one thread and still goes on.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = Connections::of(std::sync::Arc::new(listener)).unwrap();
        tokio::task::yield_now().await;
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.write_all(b"x").unwrap();
        assert!(connections.next().await.unwrap().is_ok());
        drop(connections);
    }
}
