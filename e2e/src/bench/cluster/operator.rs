//! The operator with ten thousand sessions, each active on a pod of its own: memory, a full look at everything, and what it takes
//! while nothing happens. Nodes and pods are kwok's, which only says that they run; the sessions' rows are written by the benchmark,
//! as there is no bridge that could. Nothing else is measured on the cluster after it.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;
use uuid::Uuid;

use super::{
    many::Made,
    site::{Site, TENANT},
};
use crate::{
    bench::{
        processes::{cpu, resident_bytes},
        report::Row,
        rows::{Scale, mebibytes},
        statistics::milliseconds,
    },
    cluster::SYSTEM_NAMESPACE,
};

/// A tenant of its own.
const NAMESPACE: &str = "team-b";
const AGENT: &str = "many";
/// Nodes that kwok has, and pods that each takes.
const NODES: usize = 10;
const PODS_PER_NODE: usize = 2000;
/// The runner that the sessions are said to be on.
const RUNNER: &str = "many-runner";
/// How often it is said to live.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Rows of one statement.
const ROWS: usize = 500;
/// How long anything may take that is not measured.
const DEADLINE: Duration = Duration::from_mins(20);
/// How long kwok may take to say that its nodes are ready.
const NODES_READY: Duration = Duration::from_secs(120);
/// Nothing is written for so long: what the sessions' states say is in their resources.
const QUIET: Duration = Duration::from_secs(15);
/// The goals.
const MEMORY: u64 = 150 << 20;
const RESYNC: Duration = Duration::from_secs(20);
const IDLE: f64 = 0.01;
/// Between two looks at what is awaited.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    site.agent_in(NAMESPACE, AGENT, 0)?;
    scale_operator(site, 0)?;
    let mut kwok = Kwok::start(site)?;
    make_nodes(site, &mut kwok)?;
    let sandboxes: Vec<Uuid> = (0..scale.many).map(|_| Uuid::new_v4()).collect();
    let begun = Instant::now();
    let made = site.make_sessions(NAMESPACE, AGENT, &sandboxes, |number| node(number % NODES))?;
    eprintln!("{} sessions and pods are made after {} s", made.len(), begun.elapsed().as_secs());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        add_rows(site, &made)?;
        let beating = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // One that fails is followed by another before the runner counts as lost.
                let _ = site.query(&format!("UPDATE runners SET heard_at = {NOW} WHERE name = '{RUNNER}'"));
                thread::sleep(HEARTBEAT);
            }
        });
        let measured = with_rows(site, scale, made.len());
        over.store(true, Ordering::Relaxed);
        let _ = beating.join();
        measured
    })
}

/// Milliseconds since 1970, in Postgres.
const NOW: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

fn with_rows(site: &Site<'_>, scale: Scale, count: usize) -> anyhow::Result<Vec<Row>> {
    // It writes every session's status, once.
    scale_operator(site, 1)?;
    let begun = Instant::now();
    while site.running(NAMESPACE)? < count {
        ensure!(begun.elapsed() < DEADLINE, "kwok does not run every pod");
        thread::sleep(LOOK * 20);
    }
    quiet(site, count)?;
    eprintln!("every status is written after {} s", begun.elapsed().as_secs());
    // It looks at what other groups have left, too.
    let all = count + site.count(TENANT)?;
    // Everything again, with nothing to write: in a new process, that has read nothing yet.
    scale_operator(site, 0)?;
    scale_operator(site, 1)?;
    let pid = operator_pid(site)?;
    let resync = looked_at(site, pid, all)?;
    let written = metric(site, "ash_operator_status_writes_total{kind=\"Session\"")?;
    quiet(site, count)?;
    let before = cpu(pid)?;
    thread::sleep(scale.watch);
    let used = cpu(pid)?.saturating_sub(before);
    let memory = resident_bytes(pid)?;
    let share = used.as_secs_f64() / scale.watch.as_secs_f64();
    let json = site.json_bytes(NAMESPACE)?;
    Ok(vec![
        Row {
            what: "operator with 10,000 Sessions (kwok nodes and pods): RSS",
            measured: format!("{:.0} MiB with {count}", mebibytes(memory)),
            beside: format!("the Sessions and pods as JSON {:.0} MiB", mebibytes(json)),
            #[allow(clippy::cast_precision_loss, reason = "far fewer than 2^53 bytes")]
            ratio: Some(memory as f64 / json as f64),
            reach: "150 MiB",
            reached: memory <= MEMORY && count >= 10_000,
        },
        Row {
            what: "... full resync: from the leader's first list to the last of all sessions",
            measured: format!("{}, {written:.0} statuses written", milliseconds(resync.0)),
            beside: format!("the API server's own list of both {}", milliseconds(resync.1)),
            ratio: Some(resync.0.as_secs_f64() / resync.1.as_secs_f64()),
            reach: "20 s",
            reached: resync.0 <= RESYNC && count >= 10_000,
        },
        Row {
            what: "... CPU while nothing happens",
            measured: format!("{:.2} % of one processor over {} s", share * 100.0, scale.watch.as_secs()),
            beside: "–".to_owned(),
            ratio: None,
            reach: "1 %",
            reached: share <= IDLE && count >= 10_000,
        },
    ])
}

/// How many operators run.
fn scale_operator(site: &Site<'_>, replicas: u32) -> anyhow::Result<()> {
    let replicas = format!("--replicas={replicas}");
    site.cluster.done(&["scale", "-n", SYSTEM_NAMESPACE, "deployment/ash-operator", &replicas]);
    let start = Instant::now();
    let wanted = usize::from(replicas != "--replicas=0");
    while operators(site)?.len() != wanted {
        ensure!(start.elapsed() < DEADLINE, "the operator does not stop or start");
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The processes of operators in the cluster.
fn operators(site: &Site<'_>) -> anyhow::Result<Vec<u32>> {
    let processes = site.cluster.processes().context("a cluster of our own")?;
    let is_one = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|program| program.ends_with(b"ash")) && words.get(1) == Some(&b"operator".as_slice())
    };
    Ok(processes.into_iter().filter(is_one).collect())
}

fn operator_pid(site: &Site<'_>) -> anyhow::Result<u32> {
    operators(site)?.into_iter().next().context("an operator that runs")
}

/// Waits until the leader has looked at all; from the moment on that it acts. And how long the API server alone takes to list them.
fn looked_at(site: &Site<'_>, pid: u32, count: usize) -> anyhow::Result<(Duration, Duration)> {
    let start = Instant::now();
    let mut leads: Option<Instant> = None;
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let all = count as f64;
    let took = loop {
        ensure!(start.elapsed() < DEADLINE, "the operator does not look at everything");
        ensure!(operator_pid(site)? == pid, "the operator ended");
        // Nothing is there before it serves its metrics.
        if leads.is_none() && metric(site, "ash_operator_is_leader").is_ok_and(|leads| leads > 0.0) {
            leads = Some(Instant::now());
        }
        if let Some(leads) = leads
            && metric(site, "ash_operator_looks_total{kind=\"Session\",outcome=\"ok\"").unwrap_or(0.0) >= all
        {
            break leads.elapsed();
        }
        thread::sleep(LOOK);
    };
    Ok((took, site.list_all(NAMESPACE)?))
}

/// Waits until every session is `Ready` in its resource, and nothing more is written.
fn quiet(site: &Site<'_>, count: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut last = (f64::NAN, Instant::now());
    loop {
        ensure!(start.elapsed() < DEADLINE, "the operator still writes");
        let written = metric(site, "ash_operator_status_writes_total{kind=\"Session\"").unwrap_or(0.0);
        #[allow(clippy::float_cmp, reason = "a count")]
        if written != last.0 {
            last = (written, Instant::now());
        }
        if last.1.elapsed() >= QUIET && site.ready(NAMESPACE)? >= count {
            return Ok(());
        }
        thread::sleep(LOOK * 10);
    }
}

/// A value of the operator's metrics: of the line that begins so.
fn metric(site: &Site<'_>, name: &str) -> anyhow::Result<f64> {
    let text = site.operator_metrics()?;
    let line = text.lines().find(|line| line.starts_with(name));
    Ok(line.and_then(|line| line.rsplit_once(' ')).map_or(Ok(0.0), |(_, value)| value.parse())?)
}

fn node(number: usize) -> String {
    format!("kwok-{number}")
}

fn make_nodes(site: &Site<'_>, kwok: &mut Kwok) -> anyhow::Result<()> {
    let pods = PODS_PER_NODE.to_string();
    let room = json!({ "cpu": "1000", "memory": "4Ti", "pods": pods });
    let one = |number: usize| {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": node(number),
                "annotations": { "kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0" },
                "labels": { "type": "kwok", "kubernetes.io/hostname": node(number) },
            },
            "spec": { "taints": [{ "key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule" }] },
            "status": { "allocatable": room, "capacity": room },
        })
    };
    let items: Vec<_> = (0..NODES).map(one).collect();
    site.cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string());
    let begun = Instant::now();
    while ready_nodes(site) < NODES {
        kwok.runs()?;
        ensure!(begun.elapsed() < NODES_READY, "kwok does not say that its nodes are ready");
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Nodes that kwok says are ready.
fn ready_nodes(site: &Site<'_>) -> usize {
    let ready = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
    let said = site.cluster.done(&["get", "nodes", "-l", "type=kwok", "-o", ready]);
    said.split_whitespace().filter(|state| *state == "True").count()
}

/// What the store has of sessions that are active on pods.
fn add_rows(site: &Site<'_>, made: &[Made]) -> anyhow::Result<()> {
    let incarnation = Uuid::new_v4();
    site.query(&format!(
        "INSERT INTO runners (name, incarnation, address, pool, node, release, capacity, load, cordoned, ready, version, heard_at) \
         SELECT '{RUNNER}', '{incarnation}', 'http://127.0.0.1:9', 'many', '{}', release, 100000, load, 0, 1, 1, {NOW} \
         FROM runners LIMIT 1",
        node(0)
    ))?;
    for made in made.chunks(ROWS) {
        let values: Vec<String> = made
            .iter()
            .map(|made| {
                format!("('{}', '{}', '{}', '{}', '{}')", made.session, made.sandbox, made.pod, made.pod_uid, made.node)
            })
            .collect();
        let values = values.join(", ");
        site.query(&format!(
            "WITH made (session, sandbox, pod, pod_uid, node) AS (VALUES {values}), \
             agent AS (SELECT * FROM agents WHERE tenant = '{NAMESPACE}' AND name = '{AGENT}'), \
             added AS (INSERT INTO sessions (id, tenant, agent, agent_name, agent_version, state, sandbox, epoch, last_sequence, \
                 created_at, last_active_at, options, metadata, runner) \
                 SELECT session, agent.tenant, agent.id, agent.name, agent.current_version, 'active', sandbox, 1, 4294967297, \
                 {NOW} - 600000, {NOW} - 600000, '{{}}', '{{}}', '{RUNNER}' FROM made, agent) \
             INSERT INTO sandboxes (id, tenant, pod, pod_uid, agent, agent_version, pool, session, state, runner, \
                 runner_incarnation, node, created_at, changed_at) \
             SELECT sandbox, agent.tenant, pod, pod_uid, agent.id, agent.current_version, 'default', session, 'claimed', \
                 '{RUNNER}', '{incarnation}', node, {NOW} - 600000, {NOW} - 600000 FROM made, agent"
        ))?;
    }
    Ok(())
}

/// kwok, until it is dropped.
struct Kwok(Child);

impl Kwok {
    fn start(site: &Site<'_>) -> anyhow::Result<Self> {
        let mut command = site.cluster.command("kwok");
        let stages = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/cluster/kwok-stages.yaml");
        command
            .args([
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-lease-duration-seconds=20",
            ])
            .arg(format!("--kubeconfig={}", site.cluster.kubeconfig().display()))
            .arg(format!("--config={}", stages.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// An error where it has ended.
    fn runs(&mut self) -> anyhow::Result<()> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "kwok does not run: e2e/cluster/build.sh FOLDER bench makes it");
        Ok(())
    }
}

impl Drop for Kwok {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
