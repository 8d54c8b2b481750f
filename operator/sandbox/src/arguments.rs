//! The arguments of bubblewrap: what the inside of a sandbox looks like. Decides only; nothing here touches the machine.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::config::Limits;

/// Where the program is inside the sandbox.
pub(crate) const PROGRAM: &str = "/opt/ash/bridge";
/// User and group inside, whatever they are on the host.
const INNER_ID: &str = "1000";

/// Users that exist inside.
pub(crate) const PASSWD: &str = "root:x:0:0:root:/:/usr/sbin/nologin\n\
    agent:x:1000:1000:agent:/home/agent:/bin/bash\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
/// Groups that exist inside.
pub(crate) const GROUP: &str = "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n";
/// Names that exist inside: there is no DNS.
pub(crate) const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost\n";

/// What of the host's `/etc` is shown: what programs need to find libraries, certificates and names of things. No
/// accounts, no keys, no resolver, no configuration that may hold credentials (`gitconfig`, `npmrc`, `pip.conf`).
pub(crate) const SYSTEM_SETTINGS: &[&str] = &[
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/inputrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];

/// Directories of programs and libraries beside `/usr`; on current systems links into it.
pub(crate) const SYSTEM_DIRECTORIES: &[&str] = &["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// How a system directory is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SystemEntry {
    /// A link with this target.
    Link(PathBuf, PathBuf),
    /// Something to bind.
    Bind(PathBuf),
}

/// What this machine and its bubblewrap offer to every sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct System {
    /// System directories and settings that exist.
    pub(crate) entries: Vec<SystemEntry>,
    /// Bubblewrap can bound a tmpfs (0.7).
    pub(crate) bounded_tmp: bool,
    /// Bubblewrap can disable user namespaces inside (0.8), and it works here.
    pub(crate) disable_user_namespaces: bool,
}

/// Paths from which the sandbox's own parts are bound, as bubblewrap sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sources {
    /// Becomes `/workspace`.
    pub(crate) workspace: PathBuf,
    /// Becomes `/home/agent`.
    pub(crate) home: PathBuf,
    /// Becomes `/run/ash`.
    pub(crate) run: PathBuf,
    /// Becomes [`PROGRAM`].
    pub(crate) program: PathBuf,
    /// Further binds: host, inside.
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
}

/// File descriptors that bubblewrap inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Text of `/etc/passwd`.
    pub(crate) passwd: i32,
    /// Text of `/etc/group`.
    pub(crate) group: i32,
    /// Text of `/etc/hosts`.
    pub(crate) hosts: i32,
    /// The compiled filter.
    pub(crate) filter: i32,
    /// Gets the process id of the namespace's first process.
    pub(crate) info: i32,
    /// Gets the exit status.
    pub(crate) status: i32,
    /// The program starts when something can be read from it.
    pub(crate) gate: i32,
}

impl Descriptors {
    /// All of them.
    pub(crate) fn all(self) -> [i32; 7] {
        [self.passwd, self.group, self.hosts, self.filter, self.info, self.status, self.gate]
    }
}

/// The arguments as `--args` reads them: each followed by a zero byte.
pub(crate) fn encode(arguments: &[OsString]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for argument in arguments {
        bytes.extend_from_slice(argument.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// All options of bubblewrap; the program and its arguments are not among them.
pub(crate) fn build(
    system: &System,
    sources: &Sources,
    environment: &[(String, String)],
    limits: &Limits,
    descriptors: &Descriptors,
) -> Vec<OsString> {
    let mut list = List(Vec::new());
    list.add(["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]);
    list.add(["--unshare-cgroup-try", "--new-session", "--uid", INNER_ID, "--gid", INNER_ID]);
    list.add(["--hostname", "sandbox", "--clearenv"]);
    if system.disable_user_namespaces {
        list.add(["--disable-userns"]);
    }
    for (name, value) in environment {
        list.add(["--setenv", name, value]);
    }
    list.bind("--ro-bind", Path::new("/usr"), Path::new("/usr"));
    for entry in &system.entries {
        match entry {
            SystemEntry::Link(path, target) => list.bind("--symlink", target, path),
            SystemEntry::Bind(path) => list.bind("--ro-bind", path, path),
        }
    }
    list.file(descriptors.passwd, "/etc/passwd");
    list.file(descriptors.group, "/etc/group");
    list.file(descriptors.hosts, "/etc/hosts");
    list.add(["--proc", "/proc", "--dev", "/dev"]);
    list.temporary(system, limits, "/dev/shm");
    list.add(["--remount-ro", "/dev"]);
    list.temporary(system, limits, "/tmp");
    list.add(["--symlink", "/tmp", "/var/tmp"]);
    list.bind("--bind", &sources.workspace, Path::new("/workspace"));
    list.bind("--bind", &sources.home, Path::new("/home/agent"));
    list.bind("--ro-bind", &sources.run, Path::new("/run/ash"));
    list.bind("--ro-bind", &sources.program, Path::new(PROGRAM));
    for (host, inside) in &sources.binds {
        list.bind("--ro-bind", host, inside);
    }
    list.add(["--chdir", "/workspace"]);
    // Last: the root is a tmpfs without a bound, so nobody may write to it.
    list.add(["--remount-ro", "/"]);
    list.descriptor("--seccomp", descriptors.filter);
    list.descriptor("--info-fd", descriptors.info);
    list.descriptor("--json-status-fd", descriptors.status);
    list.descriptor("--block-fd", descriptors.gate);
    list.0
}

struct List(Vec<OsString>);

impl List {
    fn add<const N: usize>(&mut self, arguments: [&str; N]) {
        self.0.extend(arguments.map(OsString::from));
    }

    fn bind(&mut self, option: &str, from: &Path, to: &Path) {
        self.0.push(option.into());
        self.0.push(OsString::from_vec(from.as_os_str().as_bytes().to_vec()));
        self.0.push(to.into());
    }

    fn file(&mut self, descriptor: i32, path: &str) {
        self.add(["--perms", "0444", "--file", &descriptor.to_string(), path]);
    }

    fn temporary(&mut self, system: &System, limits: &Limits, path: &str) {
        self.add(["--perms", "1777"]);
        if system.bounded_tmp {
            self.add(["--size", &limits.tmp_bytes.to_string()]);
        }
        self.add(["--tmpfs", path]);
    }

    fn descriptor(&mut self, option: &str, descriptor: i32) {
        self.add([option, &descriptor.to_string()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(bounded_tmp: bool) -> Vec<String> {
        let system = System {
            entries: vec![
                SystemEntry::Link("/bin".into(), "usr/bin".into()),
                SystemEntry::Bind("/etc/ld.so.cache".into()),
            ],
            bounded_tmp,
            disable_user_namespaces: true,
        };
        let sources = Sources {
            workspace: "/w".into(),
            home: "/h".into(),
            run: "/r".into(),
            program: "/p".into(),
            binds: vec![("/c".into(), "/opt/ash/claude".into())],
        };
        let descriptors = Descriptors { passwd: 3, group: 4, hosts: 5, filter: 6, info: 7, status: 8, gate: 9 };
        build(&system, &sources, &[("A".to_owned(), "b c".to_owned())], &Limits::default(), &descriptors)
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    fn has(arguments: &[String], wanted: &[&str]) -> bool {
        arguments.windows(wanted.len()).any(|window| window == wanted)
    }

    #[test]
    fn only_workspace_and_home_are_writable() {
        let arguments = arguments(true);
        let writable: Vec<_> =
            arguments.windows(3).filter(|window| window[0] == "--bind").map(|window| window[2].as_str()).collect();
        assert_eq!(writable, ["/workspace", "/home/agent"]);
        assert!(has(&arguments, &["--remount-ro", "/"]));
        assert!(has(&arguments, &["--remount-ro", "/dev"]));
    }

    #[test]
    fn every_namespace_is_its_own_and_nothing_is_tied_to_the_parent() {
        let arguments = arguments(true);
        for namespace in ["user", "ipc", "pid", "net", "uts"] {
            assert!(arguments.contains(&format!("--unshare-{namespace}")));
        }
        assert!(!arguments.iter().any(|argument| argument == "--die-with-parent" || argument == "--share-net"));
    }

    #[test]
    fn the_environment_is_cleared_before_it_is_set() {
        let arguments = arguments(true);
        let clear = arguments.iter().position(|argument| argument == "--clearenv").unwrap();
        let set = arguments.iter().position(|argument| argument == "--setenv").unwrap();
        assert!(clear < set);
        assert!(has(&arguments, &["--setenv", "A", "b c"]));
    }

    #[test]
    fn temporary_directories_are_bounded_where_bubblewrap_can() {
        assert!(has(&arguments(true), &["--size", "536870912", "--tmpfs", "/tmp"]));
        assert!(has(&arguments(true), &["--size", "536870912", "--tmpfs", "/dev/shm"]));
        assert!(!arguments(false).contains(&"--size".to_owned()));
    }
}
