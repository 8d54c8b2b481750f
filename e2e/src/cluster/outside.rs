//! A machine outside of the cluster: it reaches the API server, and neither Services nor pods.

use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Cluster, local};

/// The machine, with a kubeconfig.
#[derive(Debug)]
pub struct Outside {
    folder: TempDir,
    /// The kubeconfig's cluster.
    cluster: Value,
    contexts: Vec<Value>,
    users: Vec<Value>,
}

impl Cluster {
    /// A machine outside. Its kubeconfig has no context yet.
    ///
    /// # Panics
    /// When there is no kubeconfig to take the cluster from.
    pub fn outside(&self) -> Outside {
        let view = self.json(&["config", "view", "--raw", "--minify", "--flatten"]);
        let mut cluster = view["clusters"][0]["cluster"].clone();
        if let Some(local) = self.local() {
            let address = forwarded(local, cluster["server"].as_str().expect("the API server's address"));
            cluster["server"] = format!("https://{address}").into();
        }
        let folder = tempfile::tempdir().expect("a folder");
        Outside { folder, cluster, contexts: Vec::new(), users: Vec::new() }
    }
}

impl Outside {
    /// The home of whoever works there.
    pub fn home(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Adds a context for somebody with a token.
    ///
    /// # Panics
    /// When the kubeconfig cannot be written.
    pub fn add(&mut self, context: &str, token: &str) {
        let user = json!({ "token": token });
        self.users.push(json!({ "name": context, "user": user }));
        self.contexts.push(json!({ "name": context, "context": { "cluster": "the-cluster", "user": context } }));
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "the-cluster", "cluster": self.cluster }],
            "users": self.users,
            "contexts": self.contexts,
        });
        fs::write(self.folder.path().join("kubeconfig"), kubeconfig.to_string()).expect("a kubeconfig");
    }

    /// A command there, with the kubeconfig and nothing else.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("KUBECONFIG", self.folder.path().join("kubeconfig")).current_dir(self.folder.path());
        command
    }
}

/// A port of this machine's loopback that leads to the API server, for as long as this process lives.
fn forwarded(local: &local::LocalCluster, server: &str) -> SocketAddr {
    let server: SocketAddr = server.trim_start_matches("https://").parse().expect("an address and a port");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let there = local.network();
    thread::spawn(move || {
        // From here on, what is opened is in the cluster's network. The listener stays where it was opened.
        local::enter(&there);
        for near in listener.incoming().map_while(Result::ok) {
            // An API server that is away refuses here, and so do we.
            let Ok(far) = TcpStream::connect(server) else { continue };
            let ends = near.try_clone().and_then(|near| Ok((near, far.try_clone()?)));
            let Ok((near_again, far_again)) = ends else { continue };
            thread::spawn(move || carry(near, far));
            thread::spawn(move || carry(far_again, near_again));
        }
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
