//! What processes cost: processor time and memory, from `/proc`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;

/// Processor time of a process: all its threads, ended ones included, in steps of a clock tick (10 ms on Linux).
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a stat line")?.1.split_whitespace().collect();
    let ticks = |index: usize| -> anyhow::Result<u64> { Ok(fields.get(index).context("a stat field")?.parse()?) };
    Ok(Duration::from_secs(ticks(11)? + ticks(12)?) / ticks_per_second())
}

/// Processor time of the first thread of a process, in nanoseconds: exact for a program of one thread.
pub(crate) fn thread_cpu(pid: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(Duration::from_nanos(text.split(' ').next().context("a schedstat line")?.parse()?))
}

fn ticks_per_second() -> u32 {
    let text = Command::new("getconf").arg("CLK_TCK").output().ok().map(|output| output.stdout);
    text.and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok()).unwrap_or(100)
}

/// Memory that a process alone is answerable for (its private pages, and its part of the shared ones), in bytes.
pub(crate) fn proportional_bytes(pid: u32) -> anyhow::Result<u64> {
    kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    kibibytes(&format!("/proc/{pid}/status"), "VmRSS:")
}

fn kibibytes(path: &str, name: &str) -> anyhow::Result<u64> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{path}: run the benchmarks as root or as the owner"))?;
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(value.with_context(|| format!("{path} has no {name}"))? * 1024)
}

/// The processes with this name in the sandboxes under a folder.
pub(crate) fn in_sandboxes(sandboxes: &Path, name: &str) -> Vec<u32> {
    let Ok(folders) = fs::read_dir(sandboxes) else { return Vec::new() };
    let namespaces: BTreeSet<PathBuf> =
        folders.flatten().filter_map(|folder| namespace(first_process(&folder.path())?)).collect();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
            && namespace(*pid).is_some_and(|namespace| namespaces.contains(&namespace))
    })
    .collect()
}

fn namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

fn first_process(sandbox: &Path) -> Option<u32> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(sandbox.join("sandbox.json")).ok()?).ok()?;
    u32::try_from(record.get("init")?.get("pid")?.as_u64()?).ok()
}
