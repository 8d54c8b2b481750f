//! What a host is told of a workspace's files, and of commands that ran there.

use serde::{Deserialize, Serialize};

/// The answer to [`super::Request::Exec`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecDone {
    /// The exit code; 128 and the signal's number for a command that a signal ended.
    pub exit_code: i32,
    /// Whether the time was up.
    pub timed_out: bool,
    /// Whether output was dropped.
    pub truncated: bool,
}

/// The answer to [`super::Request::GetFile`], after the data.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileRead {
    /// Bytes sent.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

/// The answer to [`super::Request::ListFiles`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileList {
    /// Regular files, sorted by path.
    pub files: Vec<FileEntry>,
    /// Whether the limit cut the list.
    pub truncated: bool,
}

/// A file of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Relative to the workspace, with `/` between its parts. A name that is not UTF-8 has replacement characters.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970.
    pub modified_ms: i64,
}
