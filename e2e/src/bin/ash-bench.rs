//! `make bench`: measures what Ash adds and prints each figure beside its limit.
#![allow(clippy::print_stdout)]

use std::{fs, path::PathBuf, process::Command};

use anyhow::Context;
use ash_e2e::bench::{GROUPS, Group, Row, Scale, markdown, table};
use clap::Parser;

/// Lines of `docs/benchmarks.md` between which the table is written.
const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// Measures what Ash adds to Claude Code, each figure beside its limit, which is measured in the same run.
#[derive(Debug, Parser)]
#[command(name = "ash-bench", version)]
struct Arguments {
    /// What to measure; without any, everything
    groups: Vec<Group>,
    /// A few measurements of each only, to see where one stands
    #[arg(long)]
    quick: bool,
    /// Page to write the table into, between its two marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
    let groups = if arguments.groups.is_empty() { GROUPS.to_vec() } else { arguments.groups.clone() };
    let machine = machine();
    println!("{machine}");
    let mut rows: Vec<Row> = Vec::new();
    for group in groups {
        eprintln!("measuring {group:?} ...");
        let measured = group.measure(scale).await.with_context(|| format!("{group:?} could not be measured"))?;
        print!("{}", table(&measured));
        rows.extend(measured);
    }
    println!("\n{}", table(&rows));
    if let Some(path) = arguments.markdown {
        let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (head, rest) = page.split_once(BEGIN).with_context(|| format!("{} lacks {BEGIN}", path.display()))?;
        let (_, tail) = rest.split_once(END).with_context(|| format!("{} lacks {END}", path.display()))?;
        fs::write(&path, format!("{head}{BEGIN}\n\n{machine}\n\n{}\n{END}{tail}", markdown(&rows)))?;
    }
    Ok(())
}

/// The machine, the day, and what else ran on it.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let processor =
        processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |pair| pair.1);
    let memory = read("/proc/meminfo");
    let memory = memory.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let load = read("/proc/loadavg");
    let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output().map(|output| output.stdout);
    format!(
        "{} cores of {processor}, {memory} GiB, Linux {}; {}; load before the run {}.",
        std::thread::available_parallelism().map_or(0, usize::from),
        read("/proc/sys/kernel/osrelease").trim(),
        String::from_utf8_lossy(&date.unwrap_or_default()).trim(),
        load.split(' ').next().unwrap_or_default()
    )
}
