//! What a test that has failed prints of the cluster.

use std::{fmt::Write as _, fs};

use super::{Cluster, SYSTEM_NAMESPACE};

/// Lines that are kept of each part: the last ones.
const LINES: usize = 120;
/// Lines that are kept of a daemon's log.
const DAEMON_LINES: usize = 15;

impl Cluster {
    /// The state of a namespace and of the control plane, for a person to read: pods, events, resources, logs.
    pub fn dump(&self, namespace: &str) -> String {
        let mut dump = String::new();
        self.add(&mut dump, &["get", "nodes", "-o", "wide"]);
        self.add(&mut dump, &["get", "pods", "--all-namespaces", "-o", "wide"]);
        let system = (namespace != SYSTEM_NAMESPACE).then_some(SYSTEM_NAMESPACE);
        for namespace in [Some(namespace), system].into_iter().flatten() {
            self.add(&mut dump, &["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"]);
            self.add(&mut dump, &["get", "agents.ash.dev,sessions.ash.dev", "-n", namespace, "-o", "yaml"]);
            self.add(&mut dump, &["describe", "pods", "-n", namespace]);
            let pods = self.kubectl(&["get", "pods", "-n", namespace, "-o", "name"], None).stdout;
            for pod in String::from_utf8_lossy(&pods).lines() {
                for previous in ["--previous=false", "--previous=true"] {
                    self.add(&mut dump, &["logs", pod, "-n", namespace, "--all-containers", "--tail=120", previous]);
                }
            }
        }
        for log in self.local().into_iter().flat_map(super::local::LocalCluster::daemon_logs) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let _ = write!(dump, "\n--- {}\n{}\n", log.display(), last(&text, DAEMON_LINES));
        }
        dump
    }

    /// Adds what a kubectl prints, if it prints anything.
    fn add(&self, dump: &mut String, arguments: &[&str]) {
        let output = self.kubectl(arguments, None);
        if !output.stdout.is_empty() {
            let text = String::from_utf8_lossy(&output.stdout);
            let _ = write!(dump, "\n--- kubectl {}\n{}\n", arguments.join(" "), last(&text, LINES));
        }
    }
}

/// The last lines of a text.
fn last(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
