//! The host's requests that touch the workspace: each is a task of its own, which works in slices so that events flow meanwhile.

use std::{path::PathBuf, rc::Rc};

use ash_protocol::{
    bound::BridgeBound,
    message::{Refusal, RefusalCategory, Request},
    tree::ListedFile,
};
use rustix::io::Errno;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    archive, exec, files,
    shared::{Caller, Input, refusal},
    tree,
};

pub(crate) use crate::workspace::Workspace;

/// Bytes that a task reads or writes before others get their turn.
pub(crate) const SLICE_BYTES: usize = 64 << 10;

/// Folders or files that a task looks at before others get their turn.
pub(crate) const SLICE_ENTRIES: usize = 64;

/// A request that is carried out beside the session.
#[derive(Debug)]
pub(crate) enum Work {
    Exec(exec::Exec),
    Put { path: String, mode: Option<u32> },
    Get { path: String },
    List { path: String, limit: u32 },
    Delete { path: String },
    Archive,
    Unpack { max_bytes: u64 },
    RestoreTranscript { conversation: Uuid },
    ListTree { limit: u64 },
    ReadTree { files: Vec<ListedFile> },
    RestoreTree,
}

impl Work {
    /// The work of a request; every other request comes back.
    pub(crate) fn from_request(request: Request) -> Result<Self, Box<Request>> {
        Ok(match request {
            Request::Exec { command, timeout_ms, max_output_bytes } => {
                Self::Exec(exec::Exec { command, timeout_ms, max_output_bytes })
            }
            Request::PutFile { path, mode } => Self::Put { path, mode },
            Request::GetFile { path } => Self::Get { path },
            Request::ListFiles { path, limit } => Self::List { path, limit },
            Request::DeleteFile { path } => Self::Delete { path },
            Request::Archive {} => Self::Archive,
            Request::Unpack { max_bytes } => Self::Unpack { max_bytes },
            Request::RestoreTranscript { conversation } => Self::RestoreTranscript { conversation },
            Request::ListTree { limit } => Self::ListTree { limit },
            Request::ReadTree { files } => Self::ReadTree { files },
            Request::RestoreTree {} => Self::RestoreTree,
            other => return Err(Box::new(other)),
        })
    }
}

/// Whether data frames follow a request.
pub(crate) fn takes_data(request: &Request) -> bool {
    matches!(
        request,
        Request::PutFile { .. }
            | Request::Unpack { .. }
            | Request::RestoreTranscript { .. }
            | Request::RestoreTree { .. }
    )
}

/// Carries a request out and answers it.
pub(crate) async fn carry_out(
    work: Work,
    workspace: Rc<Workspace>,
    configuration: PathBuf,
    caller: Caller,
    input: mpsc::Receiver<Input>,
) {
    match work {
        Work::Exec(exec) => {
            let done = exec.run(workspace.path(), &caller).await;
            if done.as_ref().is_ok_and(|done| done.timed_out) {
                caller.met(BridgeBound::CommandTimeout);
            }
            caller.answer(done);
        }
        Work::Put { path, mode } => caller.answer(files::put(&workspace, &path, mode, input).await),
        Work::Get { path } => {
            let read = files::get(&workspace, &path, &caller).await;
            caller.answer(read);
        }
        Work::List { path, limit } => {
            let listed = files::list(&workspace, &path, limit).await;
            if listed.as_ref().is_ok_and(|list| list.truncated) {
                caller.met(BridgeBound::Listed);
            }
            caller.answer(listed);
        }
        Work::Delete { path } => caller.answer(files::delete(&workspace, &path).await),
        Work::Archive => {
            let sent = archive::send(&workspace, &caller).await;
            caller.answer(sent);
        }
        Work::Unpack { max_bytes } => caller.answer(archive::unpack(&workspace, max_bytes, input).await),
        Work::RestoreTranscript { conversation } => {
            caller.answer(files::restore_transcript(&configuration, workspace.path(), conversation, input).await);
        }
        Work::ListTree { limit } => {
            let caller = caller.behind();
            let listed = tree::list(&workspace, limit, &caller).await;
            caller.answer(listed);
        }
        Work::ReadTree { files } => {
            let caller = caller.behind();
            let read = tree::read(&workspace, &files, &caller).await;
            caller.answer(read);
        }
        Work::RestoreTree => caller.answer(tree::restore(&workspace, input).await),
    }
}

/// What the system's refusal means to the host.
pub(crate) fn io_refusal(what: &str, error: Errno) -> Refusal {
    let category = match error {
        Errno::NOENT | Errno::NOTDIR => RefusalCategory::NotFound,
        Errno::XDEV | Errno::LOOP | Errno::NAMETOOLONG | Errno::ISDIR | Errno::INVAL => RefusalCategory::Invalid,
        _ => RefusalCategory::Io,
    };
    let why = match error {
        Errno::XDEV => "the path leaves the workspace".to_owned(),
        error => error.to_string(),
    };
    refusal(category, format!("{what}: {why}"))
}
