//! A process that is watched until it ends, also by a server that did not start it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::{self, Identity};

/// A process, held by a pidfd: another one that gets its number is not taken for it.
#[derive(Debug)]
pub struct WatchedProcess {
    identity: Identity,
    descriptor: AsyncFd<OwnedFd>,
}

impl WatchedProcess {
    /// The process that has this id now; `None` when there is none.
    ///
    /// # Errors
    /// The system's, when the process can neither be watched nor is gone: too many open files.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        Identity::of(pid).map_or(Ok(None), Self::open)
    }

    /// The process that was noted by this identity; `None` when it is gone, also when its id belongs to another one by now.
    ///
    /// # Errors
    /// As for [`of`](Self::of).
    pub fn open(identity: Identity) -> io::Result<Option<Self>> {
        let Some(descriptor) = identity.open()? else { return Ok(None) };
        Ok(Some(Self { identity, descriptor: watch(descriptor)? }))
    }

    /// What to note, to find the process again.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns when the process has ended. Can be called any number of times, also afterwards.
    pub async fn ended(&self) {
        // An error means that the runtime is shutting down, and says nothing of the process: then nobody waits any more.
        if self.descriptor.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(self.descriptor.get_ref(), PollFlags::IN)], Some(&now)), Ok(0) | Err(_))
    }

    /// Sends it a signal; one that is gone is none to worry about.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        process::signal(self.descriptor.get_ref(), signal)
    }
}

/// Registers a pidfd with the runtime.
#[allow(unsafe_code, reason = "tokio has no safe way to watch a descriptor of a kind that it does not know")]
fn watch(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and stays the same one, until the `AsyncFd` drops it.
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_and_it_is_not_found_again() {
        let mut child = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let watched = WatchedProcess::of(pid).unwrap().unwrap();
        assert!(watched.is_alive());
        assert!(WatchedProcess::open(watched.identity()).unwrap().is_some());
        watched.signal(Signal::KILL).unwrap();
        watched.ended().await;
        child.wait().await.unwrap();
        assert!(!watched.is_alive());
        assert!(WatchedProcess::open(watched.identity()).unwrap().is_none());
    }
}
