//! A real API server with its etcd, on loopback, in a temporary folder, for as long as the test runs. It has no nodes.
//!
//! `ASH_TEST_KUBERNETES` names the folder of kube-apiserver, etcd and kubectl. Where they are missing it says that a test is
//! skipped; with `ASH_TEST_REQUIRE_KUBERNETES` set the test fails. Nothing of the product depends on this crate.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "in a test a panic is the message")]

use std::{
    env, fs,
    io::{self, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// The folder of `kube-apiserver`, `etcd` and `kubectl`.
const FOLDER: &str = "ASH_TEST_KUBERNETES";
/// Set to anything, as CI does: the test fails where the programs are missing, instead of saying that it is skipped.
const REQUIRED: &str = "ASH_TEST_REQUIRE_KUBERNETES";
/// The version that `e2e/cluster/build.sh` builds.
const VERSION: &str = include_str!("../../cluster/kubernetes.version");
/// How long the API server may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(120);
/// Between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(100);
/// Another process may take a port between our look and the server's start.
const ATTEMPTS: usize = 3;

/// A running API server. Both processes end with it.
pub struct Server {
    programs: PathBuf,
    folder: TempDir,
    port: u16,
    processes: Vec<Child>,
}

impl Server {
    /// Starts one; `None`, said on the terminal, where the programs are not there and need not be.
    pub fn start() -> Option<Self> {
        let default = format!(".cache/ash/k8s-{}", VERSION.trim());
        let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(default));
        let programs = env::var_os(FOLDER).map(PathBuf::from).or(home).unwrap();
        let missing = ["kube-apiserver", "etcd", "kubectl"].into_iter().find(|name| !programs.join(name).exists());
        if let Some(missing) = missing {
            let text = format!(
                "{missing} is not in {}: build it with e2e/cluster/build.sh (it needs Go), or name its folder in {FOLDER}",
                programs.display()
            );
            assert!(env::var_os(REQUIRED).is_none(), "{text}");
            // Past the capture of the test runner: a skip has to be seen.
            let text = format!("\nSKIPPED: nothing was tried on an API server. {text}\n\n");
            io::stderr().write_all(text.as_bytes()).unwrap();
            return None;
        }
        Some((0..ATTEMPTS).find_map(|_| Self::attempt(&programs)).expect("an API server that starts"))
    }

    fn attempt(programs: &Path) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let [client, peer, port] = free_ports();
        let key = folder.path().join("sa.key");
        let openssl = Command::new("openssl").arg("genrsa").arg("-out").arg(&key).arg("2048").output().unwrap();
        assert!(openssl.status.success(), "{openssl:?}");
        let users = "admin,admin,admin,system:masters\nperson,person,person\nserver,server,server\n";
        fs::write(folder.path().join("tokens"), users).unwrap();
        let mut server = Self { programs: programs.to_owned(), folder, port, processes: Vec::new() };
        let url = format!("http://127.0.0.1:{client}");
        server.run(
            "etcd",
            &[
                "--data-dir=etcd",
                // The disk of a test machine is not what is tested.
                "--unsafe-no-fsync",
                "--log-level=error",
                &format!("--listen-client-urls={url}"),
                &format!("--advertise-client-urls={url}"),
                &format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            ],
        );
        server.run(
            "kube-apiserver",
            &[
                &format!("--etcd-servers={url}"),
                &format!("--secure-port={port}"),
                "--bind-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
                "--cert-dir=certificates",
                "--token-auth-file=tokens",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://ash.test",
                "--service-account-key-file=sa.key",
                "--service-account-signing-key-file=sa.key",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--disable-admission-plugins=ServiceAccount",
            ],
        );
        let deadline = Instant::now() + READY;
        let answers = |server: &Self, arguments: &[&str]| server.kubectl(arguments, None).status.success();
        // It makes the namespace that most objects of tests are in a moment after it calls itself ready.
        while !answers(&server, &["get", "--raw=/readyz", "--request-timeout=5s"])
            || !answers(&server, &["get", "namespace", "default", "--request-timeout=5s"])
        {
            if server.processes.iter_mut().any(|process| process.try_wait().unwrap().is_some()) {
                return None;
            }
            let log = || fs::read_to_string(server.folder.path().join("kube-apiserver.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the API server is not ready: {}", log());
            thread::sleep(PAUSE);
        }
        Some(server)
    }

    fn run(&mut self, program: &str, arguments: &[&str]) {
        let log = fs::File::create(self.folder.path().join(format!("{program}.log"))).unwrap();
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.processes.push(command.spawn().unwrap());
    }

    /// Where it is; it knows its administrator by the token `admin`, and by theirs the users `person` and `server`, who have no
    /// rights but those that a test gives them.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A kubeconfig with a context for each of the three users, named like them, and one for a user whom nobody knows: `nobody`.
    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.folder.path().join("kubeconfig");
        let users = ["admin", "person", "server", "nobody"];
        let user = |name: &str| format!("- {{ name: {name}, user: {{ token: {name} }} }}\n");
        let context = |name: &str| format!("- {{ name: {name}, context: {{ cluster: test, user: {name} }} }}\n");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: test\n  cluster: {{ server: \"{}\", insecure-skip-tls-verify: true }}\n\
             users:\n{}contexts:\n{}",
            self.url(),
            users.map(user).concat(),
            users.map(context).concat(),
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Kills the API server; etcd runs on.
    pub fn stop_api_server(&mut self) {
        let mut process = self.processes.pop().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Runs kubectl as an administrator, with what it reads.
    pub fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Output {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.env_clear().env("HOME", self.folder.path());
        command.arg(format!("--server={}", self.url()));
        command.args(["--insecure-skip-tls-verify", "--token=admin"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may refuse before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs kubectl, which has to succeed without a warning; what it printed.
    pub fn done(&self, arguments: &[&str], input: Option<&str>) -> String {
        let output = self.kubectl(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        assert!(!error.contains("Warning"), "kubectl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until objects of these kinds can be asked for: a definition is established a moment before.
    pub fn await_kinds(&self, kinds: &str) {
        let deadline = Instant::now() + READY;
        loop {
            let output = self.kubectl(&["get", kinds, "--all-namespaces", "--request-timeout=5s"], None);
            if output.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "{kinds}: {}", String::from_utf8_lossy(&output.stderr));
            thread::sleep(PAUSE);
        }
    }

    /// Runs kubectl, which has to fail; what it said.
    pub fn refused(&self, arguments: &[&str], input: Option<&str>) -> String {
        let output = self.kubectl(arguments, input);
        assert!(
            !output.status.success(),
            "kubectl {arguments:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // One that is gone already is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Three ports that nobody listens on just now.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
