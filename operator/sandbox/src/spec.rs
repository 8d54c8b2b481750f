//! What one sandbox is to run, and the check that a description of it makes sense.

use std::path::{Component, Path, PathBuf};

use crate::config::Limits;
use crate::error::SandboxError;

/// Longest id of a sandbox, in bytes: it becomes the name of a control group.
pub(crate) const ID_LENGTH: usize = 64;
/// Smallest memory bound: below it bubblewrap itself may not start.
const SMALLEST_MEMORY: u64 = 8 * 1024 * 1024;
/// Smallest number of processes: bubblewrap's two, the program, and one to spare.
const SMALLEST_PROCESSES: u32 = 4;
/// Smallest number of open files with which bubblewrap can set up a sandbox.
const SMALLEST_OPEN_FILES: u32 = 64;
/// Smallest share of a processor that a control group accepts, in thousandths.
const SMALLEST_CPU: u32 = 10;

/// A file or directory of the host that the sandbox may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOnlyBind {
    /// Absolute path on the host.
    pub host: PathBuf,
    /// Absolute path inside the sandbox, without `..`.
    pub inside: PathBuf,
}

/// One sandbox to start.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Letters, digits, `-` and `_`, at most 64: names the control group, and is kept in the record.
    pub id: String,
    /// Absolute path of the sandbox's directory on the host; it and what belongs in it are created where missing.
    pub directory: PathBuf,
    /// The program on the host; inside it is `/opt/ash/bridge`.
    pub program: PathBuf,
    /// Arguments of the program. They can be read by every process of the sandbox.
    pub arguments: Vec<String>,
    /// What else of the host can be read inside, apart from the system directories.
    pub read_only_binds: Vec<ReadOnlyBind>,
    /// The whole environment of the program; nothing is inherited. Bubblewrap adds `PWD`.
    pub environment: Vec<(String, String)>,
    /// Bounds of the sandbox.
    pub limits: Limits,
}

impl SandboxSpec {
    /// Refuses what could not start, naming the field.
    pub(crate) fn validate(&self) -> Result<(), SandboxError> {
        let invalid = |what: String| Err(SandboxError::InvalidSpec { what });
        if !is_name(&self.id) {
            return invalid(format!("id {:?}: use 1 to {ID_LENGTH} letters, digits, `-` or `_`", self.id));
        }
        if !self.directory.is_absolute() {
            return invalid(format!("directory {}: give an absolute path", self.directory.display()));
        }
        if !self.program.is_absolute() {
            return invalid(format!("program {}: give an absolute path", self.program.display()));
        }
        for bind in &self.read_only_binds {
            if !bind.host.is_absolute() || !is_plain_absolute(&bind.inside) {
                return invalid(format!(
                    "bind of {} on {}: give absolute paths without `..`",
                    bind.host.display(),
                    bind.inside.display()
                ));
            }
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid(format!(
                    "environment variable {name:?}: a name has no `=`, and neither part a zero byte"
                ));
            }
        }
        if self.arguments.iter().any(|argument| argument.contains('\0')) {
            return invalid("an argument contains a zero byte".to_owned());
        }
        validate_limits(&self.limits)
    }
}

fn validate_limits(limits: &Limits) -> Result<(), SandboxError> {
    let too_small = |name: &str, smallest: u64| {
        Err(SandboxError::InvalidSpec { what: format!("limit {name}: give at least {smallest}") })
    };
    if limits.memory_bytes < SMALLEST_MEMORY {
        return too_small("memory_bytes", SMALLEST_MEMORY);
    }
    if limits.processes < SMALLEST_PROCESSES {
        return too_small("processes", u64::from(SMALLEST_PROCESSES));
    }
    if limits.open_files < SMALLEST_OPEN_FILES {
        return too_small("open_files", u64::from(SMALLEST_OPEN_FILES));
    }
    if limits.cpu_millis < SMALLEST_CPU {
        return too_small("cpu_millis", u64::from(SMALLEST_CPU));
    }
    if limits.tmp_bytes == 0 {
        return too_small("tmp_bytes", 1);
    }
    if limits.workspace_bytes == 0 {
        return too_small("workspace_bytes", 1);
    }
    Ok(())
}

/// Whether `name` can name a control group on every file system.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=ID_LENGTH).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|component| component == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            id: "s-1".to_owned(),
            directory: "/data/s-1".into(),
            program: "/bin/true".into(),
            arguments: Vec::new(),
            read_only_binds: Vec::new(),
            environment: vec![("A".to_owned(), "b".to_owned())],
            limits: Limits::default(),
        }
    }

    #[test]
    fn a_sensible_description_is_accepted() {
        spec().validate().unwrap();
    }

    #[test]
    fn what_could_not_start_is_refused_by_name() {
        type Change = Box<dyn Fn(&mut SandboxSpec)>;
        let cases: Vec<(&str, Change)> = vec![
            ("id", Box::new(|spec| spec.id = "../x".to_owned())),
            ("id", Box::new(|spec| spec.id = String::new())),
            ("directory", Box::new(|spec| spec.directory = "relative".into())),
            ("program", Box::new(|spec| spec.program = "true".into())),
            (
                "bind",
                Box::new(|spec| {
                    spec.read_only_binds = vec![ReadOnlyBind { host: "/a".into(), inside: "/opt/../etc".into() }];
                }),
            ),
            ("environment", Box::new(|spec| spec.environment = vec![("A=B".to_owned(), String::new())])),
            ("argument", Box::new(|spec| spec.arguments = vec!["\0".to_owned()])),
            ("memory_bytes", Box::new(|spec| spec.limits.memory_bytes = 1)),
            ("processes", Box::new(|spec| spec.limits.processes = 1)),
            ("open_files", Box::new(|spec| spec.limits.open_files = 1)),
            ("cpu_millis", Box::new(|spec| spec.limits.cpu_millis = 0)),
        ];
        for (field, change) in cases {
            let mut changed = spec();
            change(&mut changed);
            let message = changed.validate().unwrap_err().to_string();
            assert!(message.contains(field), "{message} should name {field}");
        }
    }
}
