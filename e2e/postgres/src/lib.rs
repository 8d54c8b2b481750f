//! A real Postgres server for tests, in a temporary folder and on a Unix socket there.
//!
//! It ends with the process that started it, also when that is killed: a shell between them waits for the end of its
//! input. Postgres refuses root; a test that runs as root gives it another user. Nothing of the product depends on this
//! crate.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long the server may take to start, or to stop. Far beyond what it takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(10);
/// Where Debian puts the programs, one folder per version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Connections that it takes: many stores of tests at once.
const CONNECTIONS: u32 = 300;
/// The user and group that it runs as where the test is root: nobody.
const NOBODY: u32 = 65_534;

/// Runs the server until its input ends or says how the server is to end. At the end of the input the folder goes too.
const KEEPER: &str = r#"
"$1/postgres" -D "$2/data" -k "$2" -p "$5" -c listen_addresses="$4" -c fsync=off -c max_connections="$3" >>"$2/log" 2>&1 &
server=$!
how=
read -r how
if [ "$how" = crash ]; then kill -QUIT $server; else kill -INT $server; fi
wait $server
[ -n "$how" ] || rm -rf "$2"
"#;

/// A server. Dropped, it is stopped and leaves nothing behind.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    folder: TempDir,
    keeper: Option<(Child, ChildStdin)>,
    /// Where it listens beside its socket.
    address: Option<SocketAddr>,
}

/// The port in the name of the socket.
const PORT: u16 = 5432;

impl Postgres {
    /// Starts a new server, with an empty database `postgres`.
    ///
    /// # Panics
    /// When there is no Postgres on this machine, or it does not start.
    pub fn start() -> Self {
        let mut server = Self::initialized(None);
        server.start_again();
        server
    }

    /// Whether there is a Postgres on this machine.
    pub fn is_installed() -> bool {
        programs().is_some()
    }

    /// The same for clients elsewhere, who log in as `ash` with this password: it listens on this address too, in the
    /// network of the calling thread. Port 0 takes a free one.
    ///
    /// # Panics
    /// As [`Postgres::start`] does.
    pub fn start_on(mut address: SocketAddr, password: &str) -> Self {
        let mut server = Self::initialized(Some(password));
        if address.port() == 0 {
            let free = std::net::TcpListener::bind(address).and_then(|listener| listener.local_addr());
            address = free.expect("a free port of an address of this machine");
        }
        server.address = Some(address);
        let rules = server.path("data/pg_hba.conf");
        let mut text = fs::read_to_string(&rules).expect("the rules of initdb");
        text.push_str("host all all all scram-sha-256\n");
        fs::write(&rules, text).expect("the rules");
        server.start_again();
        server
    }

    /// A server that was made and does not run.
    fn initialized(password: Option<&str>) -> Self {
        let programs = programs().expect("Postgres is not installed: run scripts/install-fleet-tools.sh");
        let folder = tempfile::Builder::new().prefix("ash-pg-").tempdir().expect("a temporary folder");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("the folder's owner");
        }
        let server = Self { programs, folder, keeper: None, address: None };
        let mut command = server.command(server.programs.join("initdb"));
        command.args(["--username=ash", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]);
        command.arg(server.path("data"));
        if let Some(password) = password {
            let file = server.path("password");
            fs::write(&file, password).expect("the password's file");
            command.arg("--pwfile").arg(file);
        }
        let output = command.output().expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        server
    }

    /// Where it listens beside its socket.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The address of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&port={}&user=ash", self.folder.path().display(), self.port())
    }

    /// The socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        self.path(&format!(".s.PGSQL.{}", self.port()))
    }

    /// Stops the server as an administrator would: open transactions are rolled back.
    ///
    /// # Panics
    /// When it does not run.
    pub fn stop(&mut self) {
        self.end("stop");
    }

    /// Ends the server in the middle of whatever it does; the next start recovers.
    ///
    /// # Panics
    /// When it does not run.
    pub fn crash(&mut self) {
        self.end("crash");
    }

    /// Starts the server again after [`Postgres::stop`] or [`Postgres::crash`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&mut self) {
        // What a crash leaves must not look like a server that is ready.
        let _ = fs::remove_file(self.path("data/postmaster.pid"));
        let mut keeper = self
            .command(PathBuf::from("sh"))
            .args(["-c", KEEPER, "keeper"])
            .arg(&self.programs)
            .arg(self.folder.path())
            .arg(CONNECTIONS.to_string())
            .arg(self.address.map(|address| address.ip().to_string()).unwrap_or_default())
            .arg(self.port().to_string())
            // Ctrl-C at a terminal reaches only who started it, and who may still need it while it stops other things.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell runs");
        let input = keeper.stdin.take().expect("its input");
        self.keeper = Some((keeper, input));
        let start = Instant::now();
        while !self.is_ready() {
            assert!(start.elapsed() < DEADLINE, "Postgres does not start: {}", self.log());
            std::thread::sleep(INTERVAL);
        }
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What psql prints for a statement on one of its databases: a line per row, with `|` between columns.
    ///
    /// # Errors
    /// What psql said where it failed.
    pub fn query(&self, database: &str, statement: &str) -> Result<String, String> {
        let program = self.programs.join("psql");
        let program = if program.is_file() { program } else { PathBuf::from("psql") };
        let output = self
            .command(program)
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-v", "ON_ERROR_STOP=1", "-c", statement])
            .arg(self.url(database))
            .output()
            .map_err(|error| format!("psql: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn is_ready(&self) -> bool {
        // The last line of this file is the server's state.
        let state = fs::read_to_string(self.path("data/postmaster.pid")).unwrap_or_default();
        state.lines().nth(7).is_some_and(|line| line.trim() == "ready")
    }

    fn end(&mut self, how: &str) {
        let (mut keeper, mut input) = self.keeper.take().expect("a server that runs");
        input.write_all(format!("{how}\n").as_bytes()).expect("the shell's input");
        keeper.wait().expect("its end");
    }

    fn port(&self) -> u16 {
        self.address.map_or(PORT, |address| address.port())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command as the user that the server has.
    fn command(&self, program: PathBuf) -> Command {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some((mut keeper, input)) = self.keeper.take() {
            drop(input);
            let _ = keeper.wait();
        }
    }
}

/// The folder with the programs: on the `PATH`, else the newest where Debian puts them.
fn programs() -> Option<PathBuf> {
    let is_whole = |folder: &PathBuf| folder.join("postgres").is_file() && folder.join("initdb").is_file();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(is_whole);
    on_path.or_else(|| {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(Path::new(DEBIAN))
            .ok()?
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .filter(|(_, folder)| is_whole(folder))
            .collect();
        versions.sort();
        Some(versions.pop()?.1)
    })
}
