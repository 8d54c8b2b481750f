//! The metrics of the chart's rules and dashboard: each is one that a coordinator or a runner shows.

use std::{collections::BTreeSet, fs};

use ash_e2e::harness::TestFleet;
use serde_json::Value;

use crate::tools::{Tools, chart, objects};

/// Every expression of Prometheus' language in an object.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// The names of metrics in an expression, as they are sampled.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| word.starts_with("ash_"))
}

/// The names of the samples that a process shows, also of those that have none yet.
fn shown(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    lines.map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_rules_and_the_dashboard_is_shown_by_a_fleet() {
    let Some(tools) = Tools::find() else { return };
    let mut found = Vec::new();
    let rendered = tools.rendered(&["--set", "prometheusRule.enabled=true,serviceMonitor.enabled=true"]);
    expressions(&objects(&rendered).into(), &mut found);
    let rules = found.len();
    let dashboard = fs::read_to_string(chart().join("files/dashboards/ash.json")).unwrap();
    expressions(&serde_json::from_str(&dashboard).unwrap(), &mut found);
    assert!(rules >= 3 && found.len() > rules);

    let fleet = TestFleet::start(1, &["--max-sandboxes=1", "--warm=0"]).await;
    let mut known = shown(&fleet.metrics().await);
    known.extend(shown(&fleet.runners[0].metrics().await));
    for expression in found {
        for name in names(&expression) {
            assert!(known.contains(name), "no process shows {name}: {expression}");
        }
    }
}
