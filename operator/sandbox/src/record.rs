//! The record of a running sandbox: what a server that did not start it needs to find, observe and kill it.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control_group::ControlGroup;
use crate::error::SandboxError;
use crate::process::{Identity, boot_id};

/// Name of the file in the sandbox's directory. The sandbox cannot see it.
pub(crate) const NAME: &str = "sandbox.json";
/// Version of the format; a newer one is refused, since it may mean something else by the same names.
const FORMAT: u32 = 1;
/// Largest record that is read.
const LARGEST_BYTES: u64 = 64 * 1024;

/// The id of the sandbox whose record is in this directory; `None` where there is none that can be read.
pub fn recorded_id(directory: &Path) -> Option<String> {
    Record::read(directory).ok().flatten().map(|record| record.id)
}

/// A running sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Version of the format.
    format: u32,
    /// Id of the sandbox, as in its specification.
    pub(crate) id: String,
    /// Run of the machine in which the processes below are meant.
    boot: String,
    /// First process of the sandbox's PID namespace: with it all others die.
    pub(crate) init: Identity,
    /// Bubblewrap outside the namespace, which writes the exit status and ends by itself.
    pub(crate) monitor: Identity,
    /// Inode of the PID namespace.
    pub(crate) pid_namespace: u64,
    /// The sandbox's control group, where there is one.
    pub(crate) group: Option<ControlGroup>,
}

impl Record {
    pub(crate) fn new(
        id: String,
        init: Identity,
        monitor: Identity,
        pid_namespace: u64,
        group: Option<ControlGroup>,
    ) -> Self {
        Self { format: FORMAT, id, boot: boot_id(), init, monitor, pid_namespace, group }
    }

    /// Whether the machine has been restarted since: nothing that is named here exists any more.
    pub(crate) fn is_of_an_earlier_boot(&self) -> bool {
        self.boot != boot_id()
    }

    /// Writes the record so that a crash leaves either none or a whole one.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), SandboxError> {
        let path = directory.join(NAME);
        let part = directory.join("sandbox.json.part");
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| SandboxError::DamagedRecord { path: path.clone(), what: error.to_string() })?;
        let mut file = std::fs::File::create(&part).map_err(SandboxError::file("create", &part))?;
        file.write_all(&bytes).map_err(SandboxError::file("write", &part))?;
        // Not synchronised to the disk: after a crash of the machine the sandbox is gone with its record.
        std::fs::rename(&part, &path).map_err(SandboxError::file("write", &path))
    }

    /// The record in `directory`; `None` when there is none.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, SandboxError> {
        let path = directory.join(NAME);
        let bytes = match std::fs::File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened
                .and_then(|file| {
                    let mut bytes = Vec::new();
                    std::io::Read::read_to_end(&mut std::io::Read::take(file, LARGEST_BYTES), &mut bytes)?;
                    Ok(bytes)
                })
                .map_err(SandboxError::file("read", &path))?,
        };
        let damaged = |what: String| SandboxError::DamagedRecord { path: path.clone(), what };
        let record: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.format > FORMAT {
            return Err(damaged(format!("format {} is newer than this server's {FORMAT}", record.format)));
        }
        Ok(Some(record))
    }

    /// Removes the record of a sandbox that is gone.
    pub(crate) fn remove(directory: &Path) -> Result<(), SandboxError> {
        let path = directory.join(NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(SandboxError::file("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let identity = Identity { pid: 7, start_time: 8 };
        Record::new("s".to_owned(), identity, identity, 9, None)
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), None);
        record().write(directory.path()).unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), Some(record()));
        Record::remove(directory.path()).unwrap();
        Record::remove(directory.path()).unwrap();
        assert_eq!(Record::read(directory.path()).unwrap(), None);
    }

    #[test]
    fn half_a_record_and_a_newer_one_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME), "{\"format\":").unwrap();
        assert!(Record::read(directory.path()).is_err());
        let newer = Record { format: FORMAT + 1, ..record() };
        newer.write(directory.path()).unwrap();
        assert!(Record::read(directory.path()).unwrap_err().to_string().contains("newer"));
    }
}
