//! A port of this machine that leads to a ready pod behind a Service, through the API server.
//!
//! Each connection to it is a port-forward of its own. One that breaks is the client's to mend: its next connection leads to a
//! pod that is ready then, so streams resume at another pod.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, Service as ServiceObject};
use kube::{
    Api, Client as Kube,
    api::{ListParams, Portforwarder},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    refusal,
    target::{Service, Target},
};
use crate::cluster::ClusterError;

/// Connections at once; further ones wait. A client has one for each stream and one for its requests.
const MAX_CONNECTIONS: usize = 64;

/// Pods that are tried for one connection.
const MAX_ATTEMPTS: usize = 3;

/// The longest wait for a connection to a pod, all attempts together.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Pods of a Service that are looked at.
const MAX_PODS: u32 = 500;

/// A forwarded port; closed when dropped.
#[derive(Debug)]
pub(super) struct Forward {
    address: SocketAddr,
    trouble: Trouble,
    accepting: JoinHandle<()>,
}

/// Why the last connection failed; nothing since one was made.
type Trouble = Arc<Mutex<Option<ClusterError>>>;

/// A connection to a pod.
struct Open {
    pod: String,
    port: u16,
    forwarder: Portforwarder,
}

struct Pods {
    services: Api<ServiceObject>,
    api: Api<Pod>,
    service: Service,
}

impl Forward {
    /// Opens a port. The first connection to a pod is made at once, so that what is wrong is said here.
    pub(super) async fn start(kube: Kube, service: Service) -> Result<Self, ClusterError> {
        let services = Api::namespaced(kube.clone(), &service.namespace);
        let pods = Pods { services, api: Api::namespaced(kube, &service.namespace), service };
        let first = pods.open().await?;
        let listen = |error: std::io::Error| ClusterError::Listen(error.to_string());
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let trouble = Trouble::default();
        let accepting = tokio::spawn(accept(listener, Arc::new(pods), first, Arc::clone(&trouble)));
        Ok(Self { address, trouble, accepting })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn trouble(&self) -> Option<ClusterError> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, pods: Arc<Pods>, first: Open, trouble: Trouble) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut first = Some(first);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // A client that gave up, or no free file.
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (pods, trouble, first) = (Arc::clone(&pods), Arc::clone(&trouble), first.take());
        tokio::spawn(async move {
            let failed = connection(&pods, stream, first, &trouble).await.err();
            if failed.is_some() {
                *trouble.lock().unwrap_or_else(PoisonError::into_inner) = failed;
            }
            drop(place);
        });
    }
}

/// Carries one connection to its end.
async fn connection(
    pods: &Pods,
    mut local: TcpStream,
    first: Option<Open>,
    trouble: &Trouble,
) -> Result<(), ClusterError> {
    let open = match first {
        Some(open) => open,
        None => pods.open().await?,
    };
    *trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let Open { pod, port, mut forwarder } = open;
    let failed = |reason: &str| ClusterError::Forward { pod: pod.clone(), reason: reason.to_owned() };
    let error = forwarder.take_error(port);
    let mut remote = forwarder.take_stream(port).ok_or_else(|| failed("there is no stream"))?;
    let said = async {
        match error {
            Some(error) => error.await,
            None => None,
        }
    };
    let _ = local.set_nodelay(true);
    let outcome = carry(&mut local, &mut remote, said).await;
    forwarder.abort();
    outcome.map_err(|reason| failed(&reason))
}

/// Copies both ways until both ends are done, or the pod's side says why it cannot go on.
async fn carry(
    local: &mut (impl AsyncRead + AsyncWrite + Unpin),
    remote: &mut (impl AsyncRead + AsyncWrite + Unpin),
    said: impl Future<Output = Option<String>>,
) -> Result<(), String> {
    tokio::pin!(said);
    let copying = copy_bidirectional(local, remote);
    tokio::pin!(copying);
    tokio::select! {
        // A broken connection is seen by the client itself.
        _ = &mut copying => Ok(()),
        said = &mut said => {
            if let Some(reason) = said {
                return Err(reason.trim().to_owned());
            }
            let _ = copying.await;
            Ok(())
        }
    }
}

impl Pods {
    /// A connection to any pod that is ready.
    async fn open(&self) -> Result<Open, ClusterError> {
        let late = || ClusterError::Unreachable(format!("no connection within {} s", OPEN_TIMEOUT.as_secs()));
        timeout(OPEN_TIMEOUT, self.attempt()).await.map_err(|_| late())?
    }

    async fn attempt(&self) -> Result<Open, ClusterError> {
        let mut targets = self.targets().await?;
        // Not always the same one, so that many clients spread, and so that one that answers nothing is not taken twice in a row.
        fastrand::shuffle(&mut targets);
        let mut last = None;
        for Target { pod, port } in targets.into_iter().take(MAX_ATTEMPTS) {
            match self.api.portforward(&pod, &[port]).await {
                Ok(forwarder) => return Ok(Open { pod, port, forwarder }),
                Err(error) => {
                    let reason = super::root(&error);
                    let needed = ("create", "pods/portforward", self.service.namespace.as_str());
                    let error = match &error {
                        kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                            return Err(refusal(&error, needed, || self.no_service()));
                        }
                        _ => ClusterError::Forward { pod, reason },
                    };
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.no_service()))
    }

    async fn targets(&self) -> Result<Vec<Target>, ClusterError> {
        let namespace = self.service.namespace.as_str();
        let object = self.services.get(&self.service.name).await;
        let object = object.map_err(|error| refusal(&error, ("get", "services", namespace), || self.no_service()))?;
        let selected = ListParams::default().labels(&self.service.selector(&object)?).limit(MAX_PODS);
        let pods = self.api.list(&selected).await;
        let pods = pods.map_err(|error| refusal(&error, ("list", "pods", namespace), || self.no_service()))?;
        self.service.targets(&object, &pods.items)
    }

    fn no_service(&self) -> ClusterError {
        ClusterError::NoService { namespace: self.service.namespace.clone(), name: self.service.name.clone() }
    }
}
