//! Why files are no bundle.

use std::io;

use crate::{MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, path::InvalidPath};

/// Why files are no bundle. Every message is a sentence that says what to do, names files relative to the agent's folder, and
/// can go to the person who deploys.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no `CLAUDE.md` at the root.
    #[error("no CLAUDE.md: an agent's folder needs one at its root")]
    NoClaudeMd,
    /// A path that cannot be in a bundle.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// The same path twice.
    #[error("{0:?} is there twice: send each file once")]
    Duplicate(String),
    /// A path is a file and the folder of another one.
    #[error("{0:?} is both a file and a folder: rename one of them")]
    FileAndFolder(String),
    /// More bytes than a bundle may have.
    #[error("the files have more than {} MiB: leave out what the agent does not need", MAX_BUNDLE_BYTES >> 20)]
    TooLarge,
    /// More files than a bundle may have.
    #[error("there are more than {MAX_BUNDLE_FILES} files: leave out what the agent does not need")]
    TooManyFiles,
    /// Folders nested too deep, or in a circle through links.
    #[error("{0:?} is nested too deep: is there a link to a folder above it?")]
    TooDeep(String),
    /// A link whose target is outside of the folder.
    #[error("{0:?} is a link that leaves the agent's folder: put a copy of its target there instead")]
    LinkLeaves(String),
    /// A link to nothing, or in a circle.
    #[error("{0:?} is a link to nothing: remove it")]
    LinkBroken(String),
    /// A socket, pipe or device.
    #[error("{0:?} is neither a file nor a folder: remove it")]
    Special(String),
    /// The folder is not there, or is no folder.
    #[error("the agent's folder cannot be opened: {0}")]
    NoFolder(io::Error),
    /// A file or folder of it cannot be read.
    #[error("{path:?} cannot be read: {source}")]
    Unreadable {
        /// Relative to the agent's folder.
        path: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file of settings that Claude Code could not read either.
    #[error("{path} is not valid: {reason}")]
    InvalidSettings {
        /// Relative to the agent's folder.
        path: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive is none, or is damaged.
    #[error("the bundle's archive is damaged: {0}")]
    Archive(io::Error),
}
