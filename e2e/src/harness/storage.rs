//! An object storage for tests: versitygw, a server that speaks S3, on a folder of its own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::fleet::{command, free_port_of};

/// The bucket that is there.
const BUCKET: &str = "ash";
/// The keys of its one user: their id, and the secret one.
pub const KEYS: (&str, &str) = ("ash", "ash-test-secret");
/// How long the server may take to answer. Far beyond what it takes.
const DEADLINE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(10);

/// A server with one bucket. Dropped, it is stopped and leaves nothing behind.
#[derive(Debug)]
pub struct ObjectStorage {
    folder: TempDir,
    address: SocketAddr,
    /// Whether Ctrl-C does not reach it, and it ends with the thread that started it.
    apart: bool,
    server: Option<Child>,
}

impl ObjectStorage {
    /// Whether the server's program is there already.
    ///
    /// # Panics
    /// Where there is no HOME.
    pub fn is_installed() -> bool {
        installed().1.join("versitygw").is_file()
    }

    /// Builds the server where that was not done yet, and starts it.
    ///
    /// # Panics
    /// When either does not succeed.
    pub fn start() -> Self {
        Self::start_on(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// The same, for a fleet of processes that are apart: it outlives them when Ctrl-C is pressed.
    ///
    /// # Panics
    /// When either does not succeed.
    pub fn start_apart() -> Self {
        Self::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST), true)
    }

    /// The same, reached at this address; in the network of the thread that starts it.
    ///
    /// # Panics
    /// When either does not succeed.
    pub fn start_on(address: IpAddr) -> Self {
        Self::start_at(address, false)
    }

    fn start_at(address: IpAddr, apart: bool) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        for name in ["buckets", "sidecar"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        std::fs::create_dir(folder.path().join("buckets").join(BUCKET)).expect("a folder");
        let mut storage = Self { folder, address: free_port_of(address), apart, server: None };
        storage.start_again();
        storage
    }

    /// Starts the server again after [`stop`](Self::stop), on the same folder and address.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_again(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log"));
        let log = log.expect("a log file");
        let server = command(&program(), self.apart)
            .args(["--access", KEYS.0, "--secret", KEYS.1, "--port", &self.address.to_string()])
            .args(["--quiet", "posix", "--sidecar"])
            .arg(self.folder.path().join("sidecar"))
            .arg(self.folder.path().join("buckets"))
            .env_clear()
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn();
        let server = self.server.insert(server.expect("versitygw starts"));
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let ended = server.try_wait().expect("its state");
            let said = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && start.elapsed() < DEADLINE, "versitygw does not answer: {ended:?} {}", said());
            std::thread::sleep(INTERVAL);
        }
    }

    /// Starts it again where it ended by itself; what is to be said then.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn restart_if_ended(&mut self) -> Option<String> {
        let status = self.server.as_mut()?.try_wait().ok().flatten()?;
        self.start_again();
        Some(format!("object storage ended ({status}) and was started again"))
    }

    /// Its process, where it runs, and its log.
    pub fn describe(&self) -> (String, Option<u32>, PathBuf) {
        ("object storage".to_owned(), self.server.as_ref().map(Child::id), self.folder.path().join("log"))
    }

    /// Takes the server away.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Its bucket, as `--object-store` names it.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/under/here")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder that the server keeps the bucket in.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("buckets").join(BUCKET)
    }

    /// The variables that name the server and its keys.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", KEYS.0.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEYS.1.to_owned()),
        ]
    }
}

impl Drop for ObjectStorage {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where the server's program is, or will be.
fn installed() -> (PathBuf, PathBuf) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("storage");
    let version = std::fs::read_to_string(here.join("versitygw.version")).expect("the pinned version");
    let home = PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    (here, home.join(".cache/ash").join(format!("versitygw-{}", version.trim())))
}

/// The server's program, built where it is not there.
fn program() -> PathBuf {
    let (here, folder) = installed();
    let built = Command::new(here.join("build.sh")).arg(&folder).status().expect("a shell");
    assert!(built.success(), "versitygw was not built: see above; it needs Go");
    folder.join("versitygw")
}
