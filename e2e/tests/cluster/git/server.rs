//! Repositories, and the Git servers of one journey: over HTTP, over HTTPS with a password, over SSH with a deploy key.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use ash_e2e::cluster::{Certificate, Cluster};
use tempfile::TempDir;

/// Bare repositories in a folder, each with a folder to work in.
pub(super) struct Repositories {
    folder: TempDir,
}

impl Repositories {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Git's server of SSH runs as somebody else.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs Git in the folder in which a repository is worked on.
    fn git(&self, repository: &str, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=Test", "-c", "user.email=test@ash.dev", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .current_dir(self.work(repository))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Where a repository's files are changed.
    pub(super) fn work(&self, repository: &str) -> std::path::PathBuf {
        self.path().join("work").join(repository)
    }

    /// Makes a repository, such as `public/agents`.
    pub(super) fn make(&self, repository: &str) {
        fs::create_dir_all(self.work(repository)).unwrap();
        self.git(repository, &["init", "--quiet"]);
        let bare = self.path().join(format!("{repository}.git"));
        self.git(repository, &["init", "--quiet", "--bare", bare.to_str().unwrap()]);
        self.git(repository, &["remote", "add", "origin", bare.to_str().unwrap()]);
    }

    /// Writes a file of the next commit.
    pub(super) fn write(&self, repository: &str, path: &str, bytes: impl AsRef<[u8]>) {
        let file = self.work(repository).join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }

    /// Commits all that was written and tags it; the commit's id.
    pub(super) fn commit(&self, repository: &str, tag: &str) -> String {
        self.git(repository, &["add", "--all"]);
        self.git(repository, &["commit", "--quiet", "--message", tag]);
        self.git(repository, &["tag", tag]);
        self.git(repository, &["push", "--quiet", "origin", "HEAD:main", tag]);
        self.git(repository, &["rev-parse", "HEAD"])
    }
}

/// A server that is killed when it is dropped.
pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves repositories over HTTP, with a certificate over HTTPS.
pub(super) fn http(cluster: &Cluster, repositories: &Repositories, certificate: Option<&Certificate>) -> Server {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/git/server.py");
    let mut serve = cluster.command("python3");
    serve.arg(script).arg(cluster.host_address().to_string()).arg(repositories.path());
    if let Some(Certificate { certificate, key }) = certificate {
        serve.arg(certificate).arg(key);
    }
    let mut child = serve.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Server { child, port: line.trim().parse().expect("the server says its port") }
}

/// Keys of SSH, as they go into a Secret.
pub(super) struct DeployKey {
    pub(super) private: String,
    pub(super) known_hosts: String,
}

/// Serves repositories over SSH to whoever has the key. `None` where this machine cannot: it takes root and dropbear.
pub(super) fn ssh(cluster: &Cluster, repositories: &Repositories, host: &str) -> Option<(Server, DeployKey)> {
    let folder = repositories.path().join("ssh");
    let home = folder.join("home/.ssh");
    fs::create_dir_all(&home).unwrap();
    let run = |command: &mut Command| {
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let host_key = folder.join("host");
    let public = run(Command::new("dropbearkey").args(["-t", "ed25519", "-f"]).arg(&host_key))?;
    let public = public.lines().find(|line| line.starts_with("ssh-ed25519")).unwrap().to_owned();
    let key = folder.join("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    fs::copy(key.with_extension("pub"), home.join("authorized_keys")).unwrap();
    for path in [home.clone(), home.join("authorized_keys"), folder.join("home"), folder.clone()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // The server knows one user, and this machine does not know him: the file is there for this process alone.
    let users = folder.join("passwd");
    let user = format!("root:x:0:0::/root:/bin/sh\ngit:x:0:0::{}:/bin/sh\n", folder.join("home").display());
    fs::write(&users, user).unwrap();
    let port = cluster
        .inside(|| std::net::TcpListener::bind((cluster.host_address(), 0)).unwrap().local_addr().unwrap().port());
    let listen = format!("{}:{port}", cluster.host_address());
    let serve = r#"mount --bind "$1" /etc/passwd && exec dropbear -F -E -s -r "$2" -p "$3" -P "$4""#;
    let mut serving = cluster.command("unshare");
    serving.args(["--mount", "sh", "-c", serve, "sh"]).arg(&users).arg(&host_key).arg(&listen).arg(folder.join("pid"));
    let child = serving.stderr(fs::File::create(folder.join("log")).unwrap()).spawn().ok()?;
    let server = Server { child, port };
    cluster.eventually("the server of SSH listens", |_| {
        cluster.inside(|| std::net::TcpStream::connect(&listen)).is_ok().then_some(())
    });
    let known_hosts = format!("[{host}]:{port} {public}\n");
    Some((server, DeployKey { private: fs::read_to_string(&key).unwrap(), known_hosts }))
}
