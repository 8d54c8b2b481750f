//! Starts bubblewrap: joins the control group, becomes the sandbox user, and lets the program run only when everything
//! about the sandbox is on record.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, mkdirat, open};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount, open_tree,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit, setrlimit, setsid, umask};
use rustix::thread::{Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::process::{Child, Command};

use crate::arguments::{self, Descriptors, Sources, System};
use crate::config::{Limits, SandboxUser};
use crate::control_group::ControlGroup;
use crate::error::SandboxError;
use crate::hierarchy::{Controller, Parent};
use crate::log_file;
use crate::preparation;
use crate::process::{Identity, pid_namespace, signal};
use crate::record::Record;
use crate::spec::SandboxSpec;

/// How long bubblewrap may take to make the namespaces. It takes milliseconds; at the bound the start fails.
pub(crate) const START_BOUND: Duration = Duration::from_secs(10);
/// How long killed processes of a failed start may keep their control group, and how often it is tried.
const REMOVE_BOUND: Duration = Duration::from_secs(2);
const REMOVE_INTERVAL: Duration = Duration::from_millis(2);
/// Name of the file that takes the exit status.
pub(crate) const STATUS: &str = "status.json";
/// Lines of the log that an error quotes.
const QUOTED_LINES: usize = 5;
/// Most that bubblewrap says about a sandbox that it has made.
const INFO_BYTES: u64 = 4096;
/// Where a root server's child binds what the sandbox gets, in a mount namespace of its own: a directory that every
/// machine has and that bubblewrap itself does not need.
const STAGE: &str = "/tmp";
/// Makes the kernel choose a sandbox before the server when the machine as a whole runs out of memory.
const OUT_OF_MEMORY_SCORE: &[u8] = b"500";

/// What every start needs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) bubblewrap: PathBuf,
    pub(crate) system: System,
    /// Whom the child becomes; `None` for an ordinary user's server.
    pub(crate) user: Option<SandboxUser>,
    pub(crate) filter: Arc<Vec<u8>>,
    /// Where control groups can be made; empty where they cannot.
    pub(crate) parents: Vec<Parent>,
    /// Control groups of failed starts that could not be removed.
    pub(crate) groups_left: Arc<AtomicU64>,
}

/// Starts a sandbox, whose record is in its directory by then. Blocks for some milliseconds; must be called within a
/// tokio runtime, which reaps bubblewrap when it ends.
pub(crate) fn launch(context: &Context, spec: &SandboxSpec) -> Result<Launched, SandboxError> {
    preparation::directories(&spec.directory, context.user)?;
    let group = ControlGroup::create(&context.parents, &spec.id, &spec.limits)?;
    let groups_left = Arc::clone(&context.groups_left);
    let mut starting = Starting { child: None, init: None, group, groups_left, wanted: false };
    let record = run(context, spec, &mut starting)?;
    Ok(Launched { record, starting })
}

/// A sandbox that runs and that nobody has taken yet: dropped, it is killed. So a start whose caller went away in the
/// meantime leaves nothing behind.
pub(crate) struct Launched {
    record: Record,
    starting: Starting,
}

impl Launched {
    /// Takes the sandbox.
    pub(crate) fn take(mut self) -> Record {
        self.starting.wanted = true;
        self.record
    }
}

/// What has to go again when a start fails half-way or is not wanted any more.
struct Starting {
    child: Option<Child>,
    init: Option<Identity>,
    group: Option<ControlGroup>,
    groups_left: Arc<AtomicU64>,
    wanted: bool,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.wanted {
            return;
        }
        // The namespace first: without its monitor it would live on.
        if let Some(Ok(Some(init))) = self.init.map(Identity::open) {
            let _ = signal(&init, Signal::KILL);
        }
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
        }
        if let Some(group) = self.group.take() {
            group.kill();
            // A group can be removed when the last process in it has died, which nobody needs to wait for.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                let groups_left = Arc::clone(&self.groups_left);
                runtime.spawn_blocking(move || remove_when_empty(&group, &groups_left));
            }
        }
    }
}

/// Removes the group of killed processes; one that stays, stays until `remove_others` or the next start of its id.
fn remove_when_empty(group: &ControlGroup, groups_left: &AtomicU64) {
    let deadline = Instant::now() + REMOVE_BOUND;
    while !group.remove() {
        if Instant::now() >= deadline {
            groups_left.fetch_add(1, Ordering::Relaxed);
            return;
        }
        std::thread::sleep(REMOVE_INTERVAL);
    }
}

fn run(context: &Context, spec: &SandboxSpec, starting: &mut Starting) -> Result<Record, SandboxError> {
    let (info_read, info_write) = pipe()?;
    let (gate_read, gate_write) = pipe()?;
    let status = file(&spec.directory.join(STATUS), true)?;
    let log = file(&spec.directory.join(log_file::NAME), false)?;
    let texts =
        [arguments::PASSWD.as_bytes(), arguments::GROUP.as_bytes(), arguments::HOSTS.as_bytes(), &context.filter]
            .map(memory_file);
    let [passwd, group_file, hosts, filter] = texts;
    let (passwd, group_file, hosts, filter) = (passwd?, group_file?, hosts?, filter?);
    let descriptors = Descriptors {
        passwd: passwd.as_raw_fd(),
        group: group_file.as_raw_fd(),
        hosts: hosts.as_raw_fd(),
        filter: filter.as_raw_fd(),
        info: info_write.as_raw_fd(),
        status: status.as_raw_fd(),
        gate: gate_read.as_raw_fd(),
    };
    let (sources, stage) = sources(context, spec)?;
    let options = arguments::build(&context.system, &sources, &spec.environment, &spec.limits, &descriptors);
    let options = memory_file(arguments::encode(&options))?;

    let mut inherited = vec![options.as_raw_fd()];
    inherited.extend(descriptors.all());
    let entrances = entrances(starting.group.as_ref())?;
    let group_bounds = |controller| starting.group.as_ref().is_some_and(|group| group.has(controller));
    let birth = Birth {
        inherited,
        entrances,
        limits: process_limits(&spec.limits, group_bounds(Controller::Memory)),
        stage,
        user: context.user,
    };
    let mut command = Command::new(&context.bubblewrap);
    command
        .arg("--args")
        .arg(options.as_raw_fd().to_string())
        .arg("--")
        .arg(arguments::PROGRAM)
        .args(&spec.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(system("open the log"))?)
        .stderr(log);
    be_born_as(&mut command, birth);
    let child = command.spawn().map_err(system("start bubblewrap"))?;
    let monitor = child.id().and_then(|pid| i32::try_from(pid).ok());
    starting.child = Some(child);
    drop((info_write, gate_read));

    let init = init_process(info_read, &spec.directory)?;
    starting.init = Identity::of(init);
    let gone = || SandboxError::SetUp { log: quoted_log(&spec.directory) };
    let (Some(init), Some(monitor), Some(namespace)) =
        (starting.init, monitor.and_then(Identity::of), pid_namespace(init))
    else {
        return Err(gone());
    };
    if !group_bounds(Controller::Processes) {
        // Set from outside, after the user namespace was made: the limit then counts the processes of this namespace
        // and not those of all sandboxes of the user.
        let bound = Some(u64::from(spec.limits.processes));
        prlimit(Pid::from_raw(init.pid), Resource::Nproc, Rlimit { current: bound, maximum: bound })
            .map_err(|error| system("bound the number of processes")(error.into()))?;
    }
    let record = Record::new(spec.id.clone(), init, monitor, namespace, starting.group.clone());
    record.write(&spec.directory)?;
    File::from(gate_write).write_all(&[1]).map_err(system("open the gate"))?;
    Ok(record)
}

/// Last lines of the log, for an error.
pub(crate) fn quoted_log(directory: &Path) -> String {
    match log_file::tail(directory, QUOTED_LINES) {
        Ok(lines) if !lines.is_empty() => lines.join("; "),
        _ => "it wrote nothing".to_owned(),
    }
}

/// Waits until bubblewrap has made the namespaces, and returns the process id of their first process.
fn init_process(info: OwnedFd, directory: &Path) -> Result<i32, SandboxError> {
    #[derive(serde::Deserialize)]
    struct Info {
        #[serde(rename = "child-pid")]
        child_pid: i32,
    }
    let deadline = Instant::now() + START_BOUND;
    let mut info = File::from(info);
    let mut bytes = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let ready = match poll(&mut [PollFd::new(&info, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => ready.map_err(|error| system("wait for bubblewrap")(error.into()))?,
        };
        if ready == 0 {
            return Err(SandboxError::StartTimedOut { seconds: START_BOUND.as_secs() });
        }
        let mut chunk = [0; 1024];
        let count = info.read(&mut chunk).map_err(system("listen to bubblewrap"))?;
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if let Ok(info) = serde_json::from_slice::<Info>(&bytes) {
            return Ok(info.child_pid);
        }
        if count == 0 || bytes.len() as u64 > INFO_BYTES {
            return Err(SandboxError::SetUp { log: quoted_log(directory) });
        }
    }
}

/// Something that the child binds into its stage.
struct Staged {
    from: CString,
    to: CString,
    directory: bool,
}

/// Where bubblewrap finds the sandbox's parts. As root they are staged, since the sandbox user may not be able to
/// search the directories above them.
fn sources(context: &Context, spec: &SandboxSpec) -> Result<(Sources, Vec<Staged>), SandboxError> {
    let mut stage = Vec::new();
    let mut source = |path: &Path| -> Result<PathBuf, SandboxError> {
        let metadata = std::fs::metadata(path).map_err(SandboxError::file("find", path))?;
        if context.user.is_none() {
            return Ok(path.to_owned());
        }
        let to = format!("{STAGE}/{}", stage.len());
        let zero = |_| SandboxError::InvalidSpec { what: format!("{}: the path contains a zero byte", path.display()) };
        stage.push(Staged {
            from: CString::new(path.as_os_str().as_bytes()).map_err(zero)?,
            to: CString::new(to.as_bytes()).map_err(zero)?,
            directory: metadata.is_dir(),
        });
        Ok(to.into())
    };
    let sources = Sources {
        workspace: source(&spec.directory.join("workspace"))?,
        home: source(&spec.directory.join("home"))?,
        run: source(&spec.directory.join("run"))?,
        program: source(&spec.program)?,
        binds: spec
            .read_only_binds
            .iter()
            .map(|bind| Ok((source(&bind.host)?, bind.inside.clone())))
            .collect::<Result<_, SandboxError>>()?,
    };
    Ok((sources, stage))
}

/// Limits that the kernel keeps for each process.
fn process_limits(limits: &Limits, group_bounds_memory: bool) -> Vec<(Resource, u64)> {
    let mut list = vec![
        (Resource::Core, 0),
        (Resource::Fsize, limits.workspace_bytes),
        (Resource::Nofile, u64::from(limits.open_files)),
    ];
    if !group_bounds_memory {
        // Private writable memory. Address space is not bounded: JavaScript engines reserve far more than they use.
        list.push((Resource::Data, limits.memory_bytes));
    }
    list
}

fn entrances(group: Option<&ControlGroup>) -> Result<Vec<File>, SandboxError> {
    let Some(group) = group else { return Ok(Vec::new()) };
    group
        .entrances()
        .map(|path| {
            File::options().write(true).open(&path).map_err(|source| SandboxError::ControlGroup {
                action: "join",
                path,
                source,
            })
        })
        .collect()
}

/// What the child does with itself between `fork` and `exec`.
struct Birth {
    inherited: Vec<RawFd>,
    entrances: Vec<File>,
    limits: Vec<(Resource, u64)>,
    stage: Vec<Staged>,
    user: Option<SandboxUser>,
}

#[allow(unsafe_code)] // `pre_exec` is the only place between fork and exec.
fn be_born_as(command: &mut Command, mut birth: Birth) {
    let mut trees = Vec::with_capacity(birth.stage.len());
    // SAFETY: the closure makes system calls only: everything that it needs was allocated before the fork, `trees` has
    // the capacity for what is put into it, and errors carry an error number, which does not allocate.
    unsafe {
        command.pre_exec(move || {
            // Its own session: a Ctrl-C on the server's terminal is not meant for the sandbox.
            setsid()?;
            for entrance in &mut birth.entrances {
                entrance.write_all(b"0")?;
            }
            if let Ok(score) = open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                // A kernel that refuses keeps the server's own score, which changes no bound.
                let _ = rustix::io::write(&score, OUT_OF_MEMORY_SCORE);
            }
            for &(resource, bound) in &birth.limits {
                // Asking for more than the server itself may have is refused; the server's bound then holds.
                let bound = rustix::process::getrlimit(resource).maximum.map_or(bound, |most| most.min(bound));
                setrlimit(resource, Rlimit { current: Some(bound), maximum: Some(bound) })?;
            }
            umask(Mode::from_raw_mode(0o022));
            if let Some(user) = birth.user {
                set_stage(&birth.stage, &mut trees)?;
                set_thread_groups(&[])?;
                let gid = Gid::from_raw(user.gid);
                set_thread_res_gid(gid, gid, gid)?;
                let uid = Uid::from_raw(user.uid);
                set_thread_res_uid(uid, uid, uid)?;
            }
            close_inherited()?;
            for &descriptor in &birth.inherited {
                // SAFETY: these are open in the parent while it waits for the spawn, and the child has copies.
                fcntl_setfd(BorrowedFd::borrow_raw(descriptor), FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

/// Marks everything but the standard streams to be closed by `exec`: also what the server itself has inherited.
#[allow(unsafe_code)] // There is no safe wrapper for this call.
fn close_inherited() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the call takes numbers only; with this flag it closes nothing now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// In a mount namespace of its own: binds the sandbox's parts where the sandbox user can find them.
#[allow(unsafe_code)] // `unshare` is unsafe for file descriptor tables, which are not touched here.
fn set_stage(stage: &[Staged], trees: &mut Vec<OwnedFd>) -> io::Result<()> {
    // SAFETY: only the mount namespace is made anew, in a process with one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    for staged in stage {
        // All before the stage is mounted, which may hide some of them.
        trees.push(open_tree(CWD, staged.from.as_c_str(), flags)?);
    }
    mount(c"stage", c"/tmp", c"tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755,size=64k"))?;
    for (staged, tree) in stage.iter().zip(trees.iter()) {
        let to = staged.to.as_c_str();
        if staged.directory {
            mkdirat(CWD, to, Mode::from_raw_mode(0o755))?;
        } else {
            open(to, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
        }
        move_mount(tree, c"", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| system("make a pipe")(error.into()))
}

/// A file in memory from which bubblewrap reads `bytes`.
fn memory_file(bytes: impl AsRef<[u8]>) -> Result<File, SandboxError> {
    let made = || -> io::Result<File> {
        let mut file = File::from(memfd_create(c"ash-sandbox", MemfdFlags::CLOEXEC)?);
        file.write_all(bytes.as_ref())?;
        file.rewind()?;
        Ok(file)
    };
    made().map_err(system("make a file in memory"))
}

fn file(path: &Path, truncate: bool) -> Result<File, SandboxError> {
    let mut options = File::options();
    options.create(true);
    if truncate {
        options.write(true).truncate(true);
    } else {
        options.append(true);
    }
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(SandboxError::file("open", path))
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::System {
        action,
        remedy: match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (`ulimit -n`)",
            Some(libc::EAGAIN | libc::ENOMEM) => "the machine has no memory or processes left for it",
            Some(libc::EPERM | libc::EACCES) => {
                "the server is root without the capability for it: give it CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID, or \
                 run it as an ordinary user"
            }
            _ => "run `ash serve` again to see what this machine offers",
        },
        source,
    }
}
