//! Between a test and what runs in the cluster: a test reaches Services, and pods reach what a test listens on.

use std::{
    env,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    panic,
    process::{Child, Stdio},
    thread,
};

use serde_json::json;

use super::{Cluster, local};

/// For a cluster that is attached to: the address of this machine at which its pods reach it.
const HOST: &str = "ASH_TEST_HOST_ADDRESS";

/// Where a test reaches a port of a Service, from inside of [`Cluster::inside`].
#[derive(Debug)]
pub struct Endpoint {
    /// The address: the Service's own in our cluster, else one of loopback that is forwarded for as long as this lives.
    pub address: SocketAddr,
    forward: Option<Child>,
}

impl Endpoint {
    /// The address as the beginning of a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(mut forward) = self.forward.take() {
            let _ = forward.kill();
            let _ = forward.wait();
        }
    }
}

impl Cluster {
    /// Does something in the cluster's network: connects to Services and pods, or listens where pods can reach it. What
    /// is opened inside stays in that network.
    ///
    /// # Panics
    /// When the work does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let Some(local) = self.local() else { return work() };
        let done = thread::scope(|scope| {
            let there = scope.spawn(|| {
                local.enter();
                work()
            });
            there.join()
        });
        done.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// The same for what is asynchronous: runs it to its end on threads of that network.
    ///
    /// # Panics
    /// When the work does.
    pub fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.inside(|| {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(2).enable_all().build().expect("a runtime").block_on(work)
        })
    }

    /// The address at which pods reach what a test listens on in [`Cluster::inside`].
    ///
    /// # Panics
    /// On a cluster that is attached to, without `ASH_TEST_HOST_ADDRESS`.
    pub fn host_address(&self) -> IpAddr {
        if self.local().is_some() {
            return local::ADDRESS;
        }
        let address = env::var(HOST).expect("ASH_TEST_HOST_ADDRESS is this machine's address for pods");
        address.parse().expect("ASH_TEST_HOST_ADDRESS is an address")
    }

    /// Gives what a test listens on a Service, so that pods know it by a name: `http://NAME.NAMESPACE.svc:PORT`.
    ///
    /// # Panics
    /// When the API server refuses.
    pub fn expose(&self, namespace: &str, name: &str, port: u16) {
        let address = self.host_address();
        let port = json!({ "name": "tcp", "port": port, "protocol": "TCP" });
        let manifests = json!({ "apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name, "namespace": namespace },
                "spec": { "ports": [port] },
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-test"),
                    "namespace": namespace,
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": "IPv4",
                "ports": [port],
                "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
            },
        ]});
        self.apply(&manifests.to_string());
    }

    /// Where a test reaches a port of a Service.
    ///
    /// # Panics
    /// When there is no such Service.
    pub fn endpoint(&self, namespace: &str, service: &str, port: u16) -> Endpoint {
        if self.local().is_some() {
            let path = "jsonpath={.spec.clusterIP}";
            let address = self.done(&["get", "service", service, "-n", namespace, "-o", path]);
            let address: IpAddr = address.trim().parse().expect("the Service has an address");
            return Endpoint { address: SocketAddr::new(address, port), forward: None };
        }
        let mut forward = self
            .command("kubectl")
            .args(["port-forward", "-n", namespace, &format!("service/{service}"), &format!(":{port}")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut line = String::new();
        let mut output = BufReader::new(forward.stdout.take().expect("its output"));
        output.read_line(&mut line).expect("its first line");
        // It writes a line for every connection, and ends where nobody takes it.
        thread::spawn(move || io::copy(&mut output, &mut io::sink()));
        // Forwarding from 127.0.0.1:40123 -> 4100
        let address = line.split_whitespace().find_map(|word| word.parse().ok());
        Endpoint { address: address.expect("kubectl says where it listens"), forward: Some(forward) }
    }
}
