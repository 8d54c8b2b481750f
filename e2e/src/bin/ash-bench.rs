//! `make bench`: measures what Ash adds and prints each figure beside its limit.
#![allow(clippy::print_stdout)]

use std::{
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use ash_e2e::bench::{GROUPS, Group, Row, Scale, TABLES, Table, markdown, table};
use clap::Parser;
use futures::FutureExt as _;

/// Measures what Ash adds to Claude Code, each figure beside its limit, which is measured in the same run.
#[derive(Debug, Parser)]
#[command(name = "ash-bench", version)]
struct Arguments {
    /// What to measure; without any, everything
    groups: Vec<Group>,
    /// Only the groups of one table
    #[arg(long, conflicts_with = "groups")]
    table: Option<Table>,
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
    let is_meant = |group: &Group| match arguments.table {
        Some(table) => group.table() == table,
        None => arguments.groups.is_empty() || arguments.groups.contains(group),
    };
    let machine = machine();
    println!("{machine}");
    let mut rows: Vec<(Table, Row)> = Vec::new();
    let mut failed = Vec::new();
    for group in GROUPS.into_iter().filter(is_meant) {
        eprintln!("measuring {group:?} ...");
        // One that cannot be measured takes nothing from the others.
        match AssertUnwindSafe(group.measure(scale)).catch_unwind().await {
            Ok(Ok(measured)) => {
                print!("{}", table(&measured));
                rows.extend(measured.into_iter().map(|row| (group.table(), row)));
                // At once: what is measured is not lost with what comes.
                if let Some(path) = &arguments.markdown {
                    write(path, group.table(), &machine, &of_table(&rows, group.table()))?;
                }
            }
            Ok(Err(error)) => {
                eprintln!("{group:?} could not be measured: {error:#}");
                failed.push(group);
            }
            // Its message was printed.
            Err(_) => failed.push(group),
        }
    }
    for of in TABLES {
        let rows = of_table(&rows, of);
        if !rows.is_empty() {
            println!("\n{}", table(&rows));
        }
    }
    if !failed.is_empty() {
        bail!("not measured: {failed:?}");
    }
    Ok(())
}

/// The rows of a table.
fn of_table(rows: &[(Table, Row)], of: Table) -> Vec<Row> {
    rows.iter().filter(|(table, _)| *table == of).map(|(_, row)| row.clone()).collect()
}

/// Writes a table of the page between its marks.
fn write(path: &Path, of: Table, machine: &str, rows: &[Row]) -> anyhow::Result<()> {
    let [begin, end] = of.marks();
    let page = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (head, rest) = page.split_once(begin).with_context(|| format!("{} lacks {begin}", path.display()))?;
    let (_, tail) = rest.split_once(end).with_context(|| format!("{} lacks {end}", path.display()))?;
    fs::write(path, format!("{head}{begin}\n\n{machine}\n\n{}\n{end}{tail}", markdown(rows)))?;
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
