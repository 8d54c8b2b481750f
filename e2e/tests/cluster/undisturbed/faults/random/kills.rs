//! What is killed, which and how a seed chooses.

use std::collections::HashMap;

use ash_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use fastrand::Rng;
use serde_json::Value;

use super::{
    super::{delete_part, is_ready, name, parts},
    rows::Rows,
};
use crate::tenant::Tenant;

/// The parts of the control plane, whose containers have their names.
const PARTS: [&str; 3] = ["runner", "api", "operator"];
/// Pods of each part: one on each node, and the chart's replicas.
const PODS: usize = 2;
/// Seconds that a pod gets to end, which it does well before.
const GRACE: u32 = 30;

/// A part of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A part of the control plane, by its component.
    Control(&'static str),
    /// A sandbox that a session has.
    Sandbox,
}

/// The way something ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Its process is killed; the kubelet starts another one, in the same pod.
    Process,
    /// Its pod is deleted at once.
    AtOnce,
    /// Its pod is told to end.
    Told,
}

/// What was killed of each part, and what of sandboxes.
pub(super) struct Kills<'a> {
    tenant: &'a Tenant<'a>,
    agent: &'a str,
    random: Rng,
    deck: Vec<Part>,
    /// Of each component: the pod that was killed last, and the restarts that it has by then, where it stays.
    last: HashMap<&'static str, (String, Option<u64>)>,
    /// How often sessions lost their sandboxes.
    pub(super) of_sessions: HashMap<String, usize>,
}

impl<'a> Kills<'a> {
    /// What this seed chooses; sandboxes are those of an agent.
    pub(super) fn new(tenant: &'a Tenant<'a>, agent: &'a str, seed: u64) -> Self {
        let random = Rng::with_seed(seed);
        Self { tenant, agent, random, deck: Vec::new(), last: HashMap::new(), of_sessions: HashMap::new() }
    }

    /// How many turns are to begin until the next.
    pub(super) fn pause(&mut self, most: usize) -> usize {
        self.random.usize(..most)
    }

    /// Kills one thing. No part is killed a second time before it has come back.
    pub(super) fn next(&mut self, round: usize) {
        if self.deck.is_empty() {
            // Every part has its turn, in an order that nobody knows.
            self.deck = PARTS.map(Part::Control).into_iter().chain([Part::Sandbox]).collect();
            self.random.shuffle(&mut self.deck);
        }
        let way = [Way::Process, Way::AtOnce, Way::Told][self.random.usize(..3)];
        match self.deck.pop() {
            Some(Part::Control(component)) => self.of_control_plane(round, component, way),
            Some(Part::Sandbox) | None => self.sandbox(round, way),
        }
    }

    fn of_control_plane(&mut self, round: usize, component: &'static str, way: Way) {
        self.wait(component);
        let mut pods = parts(self.tenant.cluster, component);
        pods.sort_by_key(|pod| (pod["spec"]["nodeName"].to_string(), name(pod)));
        let pod = &pods[self.random.usize(..pods.len())];
        let (restarts, pod) = (restarts(pod), name(pod));
        // A kubelet waits 10 s and more before it starts one a second time. So long a runner's sessions are rightly lost.
        let way = if restarts > 0 && way == Way::Process { Way::AtOnce } else { way };
        eprintln!("round {round}: {component} {pod}: {way:?}");
        let stays = match way {
            Way::Process => {
                let _ = self.tenant.cluster.kill_container(SYSTEM_NAMESPACE, &pod, component);
                Some(restarts + 1)
            }
            Way::AtOnce => {
                delete_part(self.tenant.cluster, &pod, 0);
                None
            }
            Way::Told => {
                delete_part(self.tenant.cluster, &pod, GRACE);
                None
            }
        };
        self.last.insert(component, (pod, stays));
    }

    fn sandbox(&mut self, round: usize, way: Way) {
        let claimed = Rows::read(self.tenant, self.agent).claimed;
        let Some((pod, session)) = claimed.get(self.random.usize(..claimed.len().max(1))) else { return };
        eprintln!("round {round}: sandbox {pod} of {session}: {way:?}");
        *self.of_sessions.entry(session.clone()).or_default() += 1;
        match way {
            Way::Process => drop(self.tenant.cluster.kill_container(self.tenant.name, pod, "sandbox")),
            Way::AtOnce => drop(self.tenant.done(&["delete", "pod", pod, "--wait=false", "--grace-period=0"])),
            Way::Told => drop(self.tenant.done(&["delete", "pod", pod, "--wait=false"])),
        }
    }

    /// Waits until all parts are there again.
    pub(super) fn wait_all(&self) {
        for component in PARTS {
            self.wait(component);
        }
        // A pod that was told to end takes messages until it does.
        let (tenant, agent) = (self.tenant, self.agent);
        let selected = format!("ash.dev/agent={agent}");
        let ending = ["get", "pods", "-l", &selected, "-o", "jsonpath={.items[*].metadata.deletionTimestamp}"];
        tenant.cluster.eventually("every session that has a sandbox has one that stays", |_| {
            let rows = Rows::read(tenant, agent);
            let is_settled = rows.placed.len() == rows.claimed.len() && tenant.done(&ending).trim().is_empty();
            is_settled.then_some(())
        });
    }

    /// Waits until a part is there again: what is ready is not what was killed.
    fn wait(&self, component: &str) {
        let last = self.last.get(component);
        let is_back = |pod: &Value| {
            is_ready(pod)
                && last.is_none_or(|(killed, stays)| {
                    name(pod) != *killed || stays.is_some_and(|least| restarts(pod) >= least)
                })
        };
        self.tenant.cluster.eventually(&format!("{PODS} {component} pods are ready"), |cluster: &Cluster| {
            let pods = parts(cluster, component);
            (pods.len() == PODS && pods.iter().all(is_back)).then_some(())
        });
    }
}

/// How often the container of a pod of the control plane was started again.
fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default()
}
