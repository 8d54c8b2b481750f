//! The data directory: one server has it, and what goes wrong with it and the database in it says what to do.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The lock's file beside the database.
const LOCK_FILE: &str = "ash.lock";
/// Owner only: options of sessions may hold the tenant's own secrets.
const FILE_MODE: u32 = 0o600;
/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be written.
    #[error("{} cannot be written: {reason}; let this user write it, or name another directory with --data-dir", .path.display())]
    NotWritable {
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another server has it.
    #[error(
        "{} is in use by another server{}; stop that one, or name another directory with --data-dir",
        .path.display(),
        .process.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// The other server's process id, where it could be read.
        process: Option<u32>,
    },
    /// A newer release has changed the schema.
    #[error(
        "{} was written by a newer release (schema {found}, this one knows {known}); update this one, or restore the backup \
         from before the update", .path.display()
    )]
    SchemaNewer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that this release knows.
        known: i64,
    },
    /// The file is no database or a broken one.
    #[error("{} is damaged: {reason}; restore it from a backup, or move it away to begin anew", .path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is broken.
        reason: String,
    },
    /// The disk is full.
    #[error("the disk of {} is full; free some space and start again", .path.display())]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// Anything else, such as another process that holds the file for a moment.
    #[error("{} cannot be opened: {reason}; see that no other program has it open and try again", .path.display())]
    Unavailable {
        /// The database.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The lock of a data directory, until it is dropped or its process ends.
#[derive(Debug)]
pub struct DirectoryLock {
    /// It holds the lock.
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock of a directory, which is made where it is not there.
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(directory).map_err(|error| explain(directory, &error))?;
        let path = directory.join(LOCK_FILE);
        let mut file = open_private(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only to help: without it the message is still true.
                let process = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(OpenError::Locked { path: directory.to_owned(), process });
            }
            Err(TryLockError::Error(error)) => return Err(explain(&path, &error)),
        }
        // Who has it, for the one who finds it locked. A full disk must not keep a server from starting to read.
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "the lock does not name this process");
        }
        Ok(Self { _file: file })
    }
}

/// Opens a file that only its owner reads, and makes it where it is not there.
pub(crate) fn open_private(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    options.open(path).map_err(|error| explain(path, &error))
}

fn explain(path: &Path, error: &io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpenError::Full { path: path.to_owned() },
        _ => OpenError::NotWritable { path: path.to_owned(), reason: error.to_string() },
    }
}
