//! The process back end: makes sandboxes with bubblewrap and finds them again after a restart of the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::{DEFAULT_USER, Policy, ProcessConfig, SandboxUser};
use crate::control_group::ControlGroup;
use crate::error::{SandboxError, blocking};
use crate::launch::{Context, launch};
use crate::probe;
use crate::protections::Protections;
use crate::sandbox::ProcessSandbox;
use crate::spec::{SandboxSpec, is_name};
use crate::{filter, hierarchy, preparation};

/// Starts, finds and clears up sandboxes of processes on this machine.
#[derive(Debug)]
pub struct ProcessBackend {
    context: Arc<Context>,
    scratch: PathBuf,
    protections: Protections,
}

impl ProcessBackend {
    /// Looks at the machine and starts a first, short-lived sandbox to see which protections are in force.
    ///
    /// Fails when no sandbox can be started at all and, under [`Policy::Strict`], when any protection is missing.
    pub async fn new(config: ProcessConfig) -> Result<Self, SandboxError> {
        let policy = config.policy;
        let scratch = config.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let mut context = blocking(move || look_at_machine(&config)).await??;
        let probed = match probe::probe(&context, &scratch).await {
            // Where the last step of it is refused (a masked `/proc` in a container), user namespaces inside are still
            // refused by the filter.
            Err(SandboxError::Unavailable { .. }) if context.system.disable_user_namespaces => {
                context.system.disable_user_namespaces = false;
                probe::probe(&context, &scratch).await
            }
            probed => probed,
        };
        let protections = probed?;
        if policy == Policy::Strict && !protections.all_in_force() {
            return Err(SandboxError::PolicyUnmet { missing: protections.missing() });
        }
        Ok(Self { context: Arc::new(context), scratch, protections })
    }

    /// The protections that were found in force when the back end was made.
    pub fn protections(&self) -> &Protections {
        &self.protections
    }

    /// Control groups of failed starts that were still in use when their removal was given up.
    pub fn groups_left(&self) -> u64 {
        self.context.groups_left.load(Ordering::Relaxed)
    }

    /// Tries once more, with a new short-lived sandbox, which protections are in force.
    pub async fn probe(&self) -> Result<Protections, SandboxError> {
        probe::probe(&self.context, &self.scratch).await
    }

    /// The host user of the sandboxes, when it is not the server's own. A Unix socket that the host puts into `run/`
    /// must be given to it ([`give`](Self::give)).
    pub fn sandbox_user(&self) -> Option<SandboxUser> {
        self.context.user
    }

    /// Starts a sandbox and returns when its namespaces exist and its program is about to run.
    ///
    /// That the program itself could not be started shows in [`ProcessSandbox::exited`] and
    /// [`ProcessSandbox::log_tail`]. A start that is not waited for to its end leaves no sandbox.
    pub async fn start(&self, spec: SandboxSpec) -> Result<ProcessSandbox, SandboxError> {
        start(&self.context, spec).await
    }

    /// The sandbox that an earlier server left running in `directory`; `None`, and its remains cleared up, when it has
    /// ended in the meantime.
    pub async fn adopt(&self, directory: &Path) -> Result<Option<ProcessSandbox>, SandboxError> {
        ProcessSandbox::adopt(directory).await
    }

    /// Kills and clears up every sandbox of this server's control group that is not in `keep` (ids of specifications),
    /// and returns their ids: those whose server died between making the processes and recording them. Without control
    /// groups there is nothing to go by; a bridge without a host ends itself.
    pub async fn remove_orphans(&self, keep: Vec<String>) -> Result<Vec<String>, SandboxError> {
        let context = Arc::clone(&self.context);
        blocking(move || ControlGroup::remove_others(&context.parents, &keep)).await
    }

    /// Takes away the control group above those of the sandboxes, unless sandboxes still run in it. For the end of a
    /// server that leaves none behind.
    pub async fn close(&self) -> Result<(), SandboxError> {
        let context = Arc::clone(&self.context);
        blocking(move || {
            for parent in &context.parents {
                // One that is still in use stays, for the next server.
                let _ = std::fs::remove_dir(&parent.directory);
            }
        })
        .await
    }

    /// Gives a file, or a directory with everything in it, to the user of the sandboxes; links are not followed. Does
    /// nothing when that is the server's own user.
    pub async fn give(&self, path: &Path) -> Result<(), SandboxError> {
        let Some(user) = self.context.user else { return Ok(()) };
        let path = path.to_owned();
        blocking(move || preparation::give(&path, user)).await?
    }
}

/// Starts one sandbox.
pub(crate) async fn start(context: &Arc<Context>, spec: SandboxSpec) -> Result<ProcessSandbox, SandboxError> {
    spec.validate()?;
    let directory = spec.directory.clone();
    let context = Arc::clone(context);
    let launched = blocking(move || launch(&context, &spec)).await??;
    let record = launched.take();
    // A first process that is gone already is one that ended at once.
    ProcessSandbox::from_record(record, &directory)?
        .ok_or_else(|| SandboxError::SetUp { log: crate::launch::quoted_log(&directory) })
}

fn look_at_machine(config: &ProcessConfig) -> Result<Context, SandboxError> {
    if !is_name(&config.group) {
        return Err(SandboxError::InvalidConfig {
            what: format!("group {:?}: use 1 to 64 letters, digits, `-` or `_`", config.group),
        });
    }
    let user = rustix::process::geteuid().is_root().then(|| config.sandbox_user.unwrap_or(DEFAULT_USER));
    if user.is_some_and(|user| user.uid == 0 || user.gid == 0) {
        return Err(SandboxError::InvalidConfig {
            what: "the user of the sandboxes: neither its user nor its group may be 0".to_owned(),
        });
    }
    let bubblewrap = preparation::find_bubblewrap(config.bubblewrap.as_deref())?;
    let system = preparation::system(&bubblewrap)?;
    Ok(Context {
        bubblewrap,
        system,
        user,
        filter: Arc::new(filter::compile()?),
        parents: hierarchy::find(&config.group),
        groups_left: Arc::default(),
    })
}
