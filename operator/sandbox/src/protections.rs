//! Which protections are in force: decided from what a sandbox that really ran reported.

use std::collections::HashMap;
use std::fmt;

/// One protection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// Its name, as in the documentation.
    pub name: &'static str,
    /// Whether it was seen to work.
    pub in_force: bool,
    /// How it is kept, or why it is not and what to do about it.
    pub detail: String,
}

/// All protections of the process back end, each in force or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protections(Vec<Protection>);

impl Protections {
    /// Each of them, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = &Protection> {
        self.0.iter()
    }

    /// Whether none is missing.
    pub fn all_in_force(&self) -> bool {
        self.0.iter().all(|protection| protection.in_force)
    }

    /// One line for each that is missing.
    pub fn missing(&self) -> String {
        let lines: Vec<String> =
            self.0.iter().filter(|protection| !protection.in_force).map(ToString::to_string).collect();
        lines.join("\n")
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.in_force { "in force" } else { "NOT in force" };
        write!(formatter, "{}: {state} ({})", self.name, self.detail)
    }
}

impl fmt::Display for Protections {
    /// One line for each.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, protection) in self.0.iter().enumerate() {
            if number > 0 {
                formatter.write_str("\n")?;
            }
            protection.fmt(formatter)?;
        }
        Ok(())
    }
}

/// What was seen of the probe's sandbox from inside and outside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// What the program inside printed: see [`crate::probe::SCRIPT`].
    pub(crate) inside: String,
    /// Name of each namespace of the server, such as `net` and `net:[4026531840]`.
    pub(crate) server_namespaces: HashMap<String, String>,
    /// Host user of the sandbox's first process.
    pub(crate) host_user: Option<u32>,
    /// The control group bounds memory, processor, processes; and all processes are in it.
    pub(crate) group_bounds: [bool; 3],
    /// Processes that the fallback bounds.
    pub(crate) processes: u32,
    /// Bubblewrap can bound a tmpfs.
    pub(crate) bounded_tmp: bool,
}

const GROUP_REMEDY: &str = "no control group can be written: run the server as root, as a systemd service with \
    `Delegate=yes`, or by `systemd-run --user --scope --property=Delegate=yes ash serve`";
const REPORT: &str = "this is not expected on Linux 5.11 or newer: report it with the output of `bwrap --version` and \
    `uname -r`";

/// Decides about every protection.
pub(crate) fn judge(observed: &Observed) -> Protections {
    let mut list = Vec::new();
    let mut add = |name, in_force: bool, how: &str, why_not: String| {
        list.push(Protection { name, in_force, detail: if in_force { how.to_owned() } else { why_not } });
    };
    for (name, kind) in [
        ("user namespace", "user"),
        ("pid namespace", "pid"),
        ("ipc namespace", "ipc"),
        ("uts namespace", "uts"),
        ("mount namespace", "mnt"),
        ("network namespace", "net"),
    ] {
        let inside = line(&observed.inside, &format!("namespace {kind} "));
        let own = matches!((inside, observed.server_namespaces.get(kind)),
            (Some(inside), Some(server)) if !inside.is_empty() && inside != server);
        add(name, own, "its own", format!("the sandbox shares the server's; {REPORT}"));
    }
    let others: Vec<&str> = interfaces(&observed.inside).filter(|name| *name != "lo").collect();
    add("no network", others.is_empty(), "loopback only", format!("the sandbox sees {}; {REPORT}", others.join(", ")));
    let status = |field: &str| line(&observed.inside, field).map(str::trim);
    add(
        "no new privileges",
        status("NoNewPrivs:") == Some("1"),
        "set",
        format!("the kernel reports it unset; {REPORT}"),
    );
    let without = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"]
        .iter()
        .all(|field| status(field).is_some_and(|value| value.bytes().all(|digit| digit == b'0')));
    add("no capabilities", without, "all dropped", format!("the kernel reports some; {REPORT}"));
    add(
        "seccomp filter",
        status("Seccomp:") == Some("2") && line(&observed.inside, "namespaces allowed").is_none(),
        "loaded",
        "the kernel reports none, or it let a namespace be made: use a kernel with CONFIG_SECCOMP_FILTER".to_owned(),
    );
    add(
        "read-only system",
        line(&observed.inside, "system written").is_none(),
        "writing to /, /usr and /etc is refused",
        format!("the sandbox could write to the system; {REPORT}"),
    );
    let [memory, cpu, processes] = observed.group_bounds;
    let by_group = "by control group";
    add(
        "memory limit",
        memory,
        by_group,
        format!("only the private data of each process is bounded (RLIMIT_DATA), not their sum; {GROUP_REMEDY}"),
    );
    add("cpu limit", cpu, by_group, format!("processor time is not bounded; {GROUP_REMEDY}"));
    let fallback = line(&observed.inside, "Max processes")
        .and_then(|values| values.split_ascii_whitespace().next())
        .is_some_and(|value| value == observed.processes.to_string());
    add(
        "process limit",
        processes || fallback,
        if processes { by_group } else { "by RLIMIT_NPROC of the user namespace" },
        format!("the number of processes is not bounded; {GROUP_REMEDY}"),
    );
    add(
        "temporary files limit",
        observed.bounded_tmp
            && mount_is_bounded(&observed.inside, "/tmp")
            && mount_is_bounded(&observed.inside, "/dev/shm"),
        "by the size of its tmpfs",
        "this bubblewrap cannot bound a tmpfs (it counts as memory): install version 0.7 or newer".to_owned(),
    );
    add(
        "workspace quota",
        line(&observed.inside, "Max file size").is_some_and(|values| !values.trim_start().starts_with("unlimited")),
        "by measurement, and RLIMIT_FSIZE for each file; project quotas of the file system are not used, so between two \
         measurements a sandbox can exceed it by what it writes meanwhile",
        format!("the size of files is not bounded; {REPORT}"),
    );
    add(
        "unprivileged user",
        observed.host_user.is_some_and(|user| user != 0),
        &observed.host_user.map_or_else(String::new, |user| format!("host user {user}")),
        format!("the sandbox runs as root; {REPORT}"),
    );
    Protections(list)
}

/// What follows `start` on the first line that begins with it.
fn line<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(start))
}

/// Names of interfaces in the text of `/proc/net/dev`, whose lines the script marks.
fn interfaces(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("interface ")?.trim().split_once(':').map(|(name, _)| name))
}

fn mount_is_bounded(text: &str, path: &str) -> bool {
    let middle = format!(" {path} tmpfs ");
    text.lines().any(|line| line.contains(&middle) && line.contains("size="))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: &str = "\
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
namespace user user:[2]
namespace pid pid:[2]
namespace ipc ipc:[2]
namespace uts uts:[2]
namespace mnt mnt:[2]
namespace net net:[2]
interface     lo:       0       0
Max file size             10737418240          10737418240          bytes
Max processes             512                  512                  processes
tmpfs /tmp tmpfs rw,nosuid,nodev,relatime,size=524288k 0 0
tmpfs /dev/shm tmpfs rw,nosuid,nodev,relatime,size=524288k 0 0
";

    fn observed() -> Observed {
        let names = ["user", "pid", "ipc", "uts", "mnt", "net"];
        Observed {
            inside: INSIDE.to_owned(),
            server_namespaces: names.map(|name| (name.to_owned(), format!("{name}:[1]"))).into(),
            host_user: Some(65_533),
            group_bounds: [true; 3],
            processes: 512,
            bounded_tmp: true,
        }
    }

    #[test]
    fn all_are_in_force_when_all_was_seen() {
        let protections = judge(&observed());
        assert!(protections.all_in_force(), "{}", protections.missing());
    }

    #[test]
    fn what_was_not_seen_is_not_in_force() {
        let nothing = judge(&Observed::default());
        let in_force: Vec<_> =
            nothing.iter().filter(|protection| protection.in_force).map(|protection| protection.name).collect();
        // Both are the absence of something that the script would have printed.
        assert_eq!(in_force, ["no network", "read-only system"]);
    }

    #[test]
    fn a_shared_namespace_and_a_missing_group_are_named() {
        let mut observed = observed();
        observed.server_namespaces.insert("net".to_owned(), "net:[2]".to_owned());
        observed.group_bounds = [false; 3];
        let missing = judge(&observed).missing();
        assert!(missing.contains("network namespace: NOT in force"));
        assert!(missing.contains("memory limit: NOT in force") && missing.contains("Delegate=yes"));
        assert!(!missing.contains("process limit"), "the fallback bounds it: {missing}");
    }
}
