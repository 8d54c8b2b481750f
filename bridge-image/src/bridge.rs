//! Wires the bridge and decides when it ends.

use std::{collections::BTreeMap, io, net::TcpListener, rc::Rc, time::Duration};

use ash_protocol::bound::BridgeBound;
use tokio::{
    sync::mpsc,
    task::{JoinError, LocalSet, spawn_local},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    args::Arguments,
    claude::transcript,
    dial::Ticket,
    driver::Driver,
    link::{Link, LinkEnd},
    shared::{MAX_REQUESTS, Shared},
    workspace::Workspace,
};

/// How long a turn is given after SIGTERM.
const TERMINATE: Duration = Duration::from_secs(5);

/// How long the host is given to read what is left when the bridge ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Why the bridge has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to, by its host or by SIGTERM.
    Stopped,
    /// The session went on without it.
    Overtaken,
    /// There was no host for ten minutes.
    HostGone,
    /// The host has nothing for this pod.
    Unwanted,
}

/// Why the bridge could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The workspace is not there.
    #[error("the workspace {path} cannot be opened: {error}; the host has to make it before it starts the bridge")]
    Workspace {
        /// Its path.
        path: String,
        /// The system's word.
        error: io::Error,
    },
    /// The gateway's listener cannot be opened.
    #[error("the gateway's listener on {address} cannot be opened: {error}; choose another port")]
    Gateway {
        /// Its address.
        address: String,
        /// The system's word.
        error: io::Error,
    },
}

/// Runs until there is no reason to go on; Claude Code and what it started are killed then.
///
/// `terminate` ends when the bridge is to end by itself (SIGTERM).
pub async fn run(arguments: Arguments, terminate: impl Future<Output = ()>) -> Result<End, BridgeError> {
    let workspace = Workspace::open(&arguments.workspace)
        .map_err(|error| BridgeError::Workspace { path: arguments.workspace.display().to_string(), error })?;
    let gateway = arguments
        .gateway
        .map(|address| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .transpose()
        .map_err(|error| BridgeError::Gateway {
            address: arguments.gateway.map(|address| address.to_string()).unwrap_or_default(),
            error,
        })?;
    let environment: BTreeMap<String, String> = ["HOME", "CLAUDE_CONFIG_DIR"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
        .collect();
    let shared = Rc::new(Shared::new(transcript::configuration(&environment)));
    let (commands, received) = mpsc::channel(2 * MAX_REQUESTS);
    let driver = Driver::new(shared.clone(), received, arguments.workspace.clone());
    let link = Link {
        shared: shared.clone(),
        host: arguments.host,
        ticket: Ticket::default(),
        sandbox: arguments.sandbox,
        workspace: Rc::new(workspace),
        gateway,
        commands,
    };
    Ok(LocalSet::new().run_until(serve(&shared, driver, link, terminate)).await)
}

async fn serve(shared: &Rc<Shared>, mut driver: Driver, link: Link, terminate: impl Future<Output = ()>) -> End {
    // Tasks of their own: what wakes one does not cost the other anything, and a burst does not starve the link.
    let mut link = spawn_local(async move { link.run().await });
    let mut driver = spawn_local(async move { driver.run().await });
    let told = async {
        tokio::select! {
            () = shared.stop.notified() => {}
            () = terminate => shared.stop_by(Instant::now() + TERMINATE),
        }
        turn_ended(shared).await;
    };
    let end = tokio::select! {
        biased;
        end = &mut link => Some(end),
        // It ends when the link has ended, and otherwise only by a fault of ours: then nothing is left to serve.
        _ = &mut driver => None,
        () = told => None,
    };
    // Its end kills Claude Code with all that it started.
    if !driver.is_finished() {
        driver.abort();
        let _ = driver.await;
    }
    if end.is_none() && !link.is_finished() {
        tokio::select! {
            end = link => return ended(Some(&end)),
            _ = timeout(FLUSH, flushed(shared)) => {}
        }
    }
    ended(end.as_ref())
}

fn ended(end: Option<&Result<LinkEnd, JoinError>>) -> End {
    match end {
        Some(Ok(LinkEnd::Overtaken)) => End::Overtaken,
        Some(Ok(LinkEnd::HostGone)) => End::HostGone,
        Some(Ok(LinkEnd::Unwanted)) => End::Unwanted,
        _ => End::Stopped,
    }
}

/// Returns when no turn runs, or when the time that was set for the end has come. An earlier time may be set meanwhile.
async fn turn_ended(shared: &Shared) {
    while shared.turn_runs() {
        let until = shared.stop_at().unwrap_or_else(Instant::now);
        tokio::select! {
            () = shared.turn_changed.notified() => {}
            () = shared.stop.notified() => {}
            () = sleep_until(until) => return shared.met(BridgeBound::Terminate),
        }
    }
}

/// Returns when everything was given to the connection.
async fn flushed(shared: &Shared) {
    while !shared.is_flushed() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
