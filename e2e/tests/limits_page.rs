//! The page of limits: each of its rows names a metric, and a server that has met no bound yet shows them all.

use ash_e2e::harness::{TestApp, program};

/// A row of a table that has a column of metrics.
struct Row {
    bound: String,
    metrics: Vec<String>,
}

/// The headings under which a table stands without such a column, because no server could show what is in it; and the fleet's,
/// and the operator's,
/// whose metrics are those of coordinators, runners and operators and not of the server that is asked here.
const WITHOUT_METRICS: [&str; 6] =
    ["## Fleet", "## Client and command line", "## Start of the server", "## Sizes", "## Resources", "## The operator"];

/// The headings of the page's tables that have no column of metrics.
fn without_metrics(page: &str) -> Vec<&str> {
    let mut heading = "";
    let mut found = Vec::new();
    for line in page.lines() {
        if line.starts_with("## ") {
            heading = line;
        } else if (line.starts_with("| bound |") || line.starts_with("| size |")) && !line.ends_with("| metric |") {
            found.push(heading);
        }
    }
    found
}

/// The rows of all tables of the page with a column named `metric`.
fn rows(page: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut has_metrics = false;
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        match (line.starts_with('|'), cells.as_slice()) {
            (true, ["bound", .., last]) => has_metrics = *last == "metric",
            (true, [first, ..]) if first.starts_with("---") => {}
            (true, [bound, .., last]) if has_metrics => {
                let metrics = last.split('`').filter(|word| word.starts_with("ash_")).map(str::to_owned).collect();
                rows.push(Row { bound: (*bound).to_owned(), metrics });
            }
            (true, _) => {}
            (false, _) => has_metrics = false,
        }
    }
    rows
}

/// Whether a metric is shown: a gauge by its name, a counter with `_total` behind it, each with the labels that are named.
fn is_shown(metrics: &str, name: &str) -> bool {
    let (name, labels) = name.split_once('{').unwrap_or((name, ""));
    let begins = |line: &str, name: &str| {
        line.strip_prefix(name).is_some_and(|rest| match rest.strip_prefix('{') {
            Some(rest) => rest.starts_with(labels),
            None => labels.is_empty() && rest.starts_with(' '),
        })
    };
    metrics.lines().any(|line| begins(line, name) || begins(line, &format!("{name}_total")))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_page_is_there_from_the_start() {
    let page = include_str!("../../docs/limits.md");
    let rows = rows(page);
    assert!(rows.len() > 150, "the page's tables are not understood: {} rows", rows.len());
    assert_eq!(without_metrics(page), WITHOUT_METRICS);
    let without: Vec<&str> = rows.iter().filter(|row| row.metrics.is_empty()).map(|row| row.bound.as_str()).collect();
    assert!(without.is_empty(), "rows without a metric: {without:#?}");

    let app = TestApp::builder().claude(program("stand-in-claude")).start().await;
    let metrics = app.metrics().await;
    let missing: Vec<String> = rows
        .iter()
        .flat_map(|row| row.metrics.iter().map(move |metric| (row, metric)))
        .filter(|(_, metric)| !is_shown(&metrics, metric))
        .map(|(row, metric)| format!("{metric} of {}", row.bound))
        .collect();
    assert!(missing.is_empty(), "the server does not show {missing:#?}\n{metrics}");
}

#[test]
fn a_row_and_its_metrics_are_read() {
    let page = "| bound | value | at the bound | metric |\n|---|---|---|---|\n| a | 1 | b | `ash_x{y=\"z\"}`, `ash_w` |\n| c | 1 | d | - |\n\n\
        | size | value | then |\n|---|---|---|\n| e | 1 | f |\n";
    let found: Vec<(String, Vec<String>)> = rows(page).into_iter().map(|row| (row.bound, row.metrics)).collect();
    let metrics = vec!["ash_x{y=\"z\"}".to_owned(), "ash_w".to_owned()];
    assert_eq!(found, [("a".to_owned(), metrics), ("c".to_owned(), Vec::new())]);
    assert!(is_shown("ash_x_total{y=\"z\"} 0\n", "ash_x{y=\"z\"}") && is_shown("ash_w 1\n", "ash_w"));
    assert!(!is_shown("ash_x_total{y=\"other\"} 0\n", "ash_x{y=\"z\"}") && !is_shown("ash_wide 1\n", "ash_w"));
}
