//! Ends processes with everything that they started.
//!
//! The sandbox's own end (its PID namespace or cgroup) takes everything along; this is for what ends earlier, and for a sandbox
//! without such a namespace.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use rustix::process::{Pid, Signal, WaitOptions};

/// How often the process table is read while new descendants appear: something that forks faster than that is left to the
/// sandbox's own limits.
const ROUNDS: usize = 8;

/// Kills a process, its group and all its descendants, as far as they still have it as an ancestor.
pub fn kill_with_descendants(root: u32) {
    // What is stopped starts nothing more behind the back of the one who counts.
    signal(root, Signal::STOP);
    kill_all_of(root);
    kill_group(root);
    signal(root, Signal::KILL);
}

/// Kills all descendants of a process and spares itself.
pub fn kill_all_of(root: u32) {
    for id in stop_all_of(root) {
        signal(id, Signal::KILL);
    }
}

/// Stops all descendants of a process and spares itself; gives those that it found.
pub fn stop_all_of(root: u32) -> BTreeSet<u32> {
    let mut stopped = BTreeSet::new();
    for _ in 0..ROUNDS {
        let new: Vec<u32> = descendants(root).into_iter().filter(|id| !stopped.contains(id)).collect();
        if new.is_empty() {
            break;
        }
        for id in new {
            stop(id);
            stopped.insert(id);
        }
    }
    stopped
}

/// Has all descendants of a process go on that were stopped.
pub fn continue_all_of(root: u32) {
    for id in descendants(root) {
        signal(id, Signal::CONT);
    }
}

/// Stops a process.
pub fn stop(process: u32) {
    signal(process, Signal::STOP);
}

thread_local! {
    /// Children whose status somebody waits for.
    static WAITED_FOR: RefCell<BTreeSet<u32>> = const { RefCell::new(BTreeSet::new()) };
}

/// A child whose status its owner waits for, as long as this lives: [`reap_orphans`] leaves it alone.
#[derive(Debug)]
pub struct WaitedFor(u32);

impl WaitedFor {
    /// Leaves this child to whoever holds the value.
    pub fn new(child: u32) -> Self {
        WAITED_FOR.with_borrow_mut(|children| children.insert(child));
        Self(child)
    }
}

impl Drop for WaitedFor {
    fn drop(&mut self) {
        // While the thread ends, there is no table any more.
        let _ = WAITED_FOR.try_with(|children| children.borrow_mut().remove(&self.0));
    }
}

/// Kills the members of a process group.
pub fn kill_group(group: u32) {
    if let Some(group) = pid(group) {
        // Gone already is as good.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Makes processes whose parents ended children of this one, so that they are found and reaped.
pub fn adopt_orphans() {
    // Inside a PID namespace whose init reaps, nothing is lost where this is refused.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
}

/// Reaps adopted orphans that have ended.
pub fn reap_orphans() {
    for child in children_that_ended(std::process::id()) {
        let is_waited_for = WAITED_FOR.with_borrow(|children| children.contains(&child));
        if let Some(orphan) = pid(child).filter(|_| !is_waited_for) {
            let _ = rustix::process::waitpid(Some(orphan), WaitOptions::NOHANG);
        }
    }
}

fn signal(process: u32, signal: Signal) {
    if let Some(process) = pid(process) {
        // Gone already is as good.
        let _ = rustix::process::kill_process(process, signal);
    }
}

fn pid(process: u32) -> Option<Pid> {
    i32::try_from(process).ok().filter(|raw| *raw > 1).and_then(Pid::from_raw)
}

/// Parent and state of every process that `/proc` shows.
fn processes() -> BTreeMap<u32, (u32, char)> {
    let Ok(folder) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    let ids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(|id| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The command's name, in brackets, may hold anything; what follows its last bracket is well formed.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.chars().next()?;
        Some((id, (fields.next()?.parse().ok()?, state)))
    })
    .collect()
}

fn children_that_ended(parent: u32) -> Vec<u32> {
    processes().into_iter().filter(|(_, (of, state))| *of == parent && *state == 'Z').map(|(id, _)| id).collect()
}

/// Every living process that has `root` as an ancestor.
pub fn descendants(root: u32) -> Vec<u32> {
    let processes = processes();
    let is_below = |mut id: u32| {
        // A parent's number may be higher than its child's, but no chain is longer than the table.
        for _ in 0..processes.len() {
            match processes.get(&id) {
                Some((parent, _)) if *parent == root => return true,
                Some((parent, _)) if *parent > 1 => id = *parent,
                _ => return false,
            }
        }
        false
    };
    processes.iter().filter(|(id, (_, state))| *state != 'Z' && is_below(**id)).map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        io::{BufRead, BufReader, Read},
        process::{Command, Stdio},
    };

    #[test]
    fn a_tree_dies_with_its_root_even_in_sessions_of_its_own() {
        let mut child = Command::new("sh")
            .args(["-c", "setsid sh -c 'echo up; sleep 1000 & wait' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(!super::descendants(child.id()).is_empty());
        super::kill_with_descendants(child.id());
        child.wait().unwrap();
        // Ends when nobody holds the pipe any more: everybody is gone.
        assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
}
