//! Writes to the API server for one session from its beginning to its end, from the API server's audit log.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{
    create::{create, end},
    site::{Site, TENANT},
};
use crate::bench::{
    report::Row,
    rows::{Scale, message, messages_path},
};

const AGENT: &str = "audited";
const WARM: u32 = 2;
/// The goal beside the pod's own.
const GOAL: f64 = 6.0;
/// What is still written when all is over: the status of an agent at most every five seconds.
const REST: Duration = Duration::from_secs(12);

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    site.agent(AGENT, WARM)?;
    let path = site.cluster.audit_log().context("the API server's audit log: only on a cluster of our own")?;
    let length = |path| fs::metadata(path).map(|meta| meta.len());
    let hello = message("hello");
    let of = |life: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<Counted> {
        site.settled(AGENT, WARM)?;
        thread::sleep(REST);
        let from = length(&path)?;
        for _ in 0..scale.counted {
            life()?;
            site.settled(AGENT, WARM)?;
        }
        thread::sleep(REST);
        let text = fs::read(&path)?;
        let text = String::from_utf8_lossy(text.get(usize::try_from(from)?..).unwrap_or_default());
        Counted::of(&text, scale.counted)
    };
    let applied = of(&mut || {
        let (_, name) = site.apply_until_ready(AGENT)?;
        let path = "jsonpath={.metadata.uid}";
        let id = site.cluster.done(&["get", "session", &name, "-n", TENANT, "-o", path]);
        let turn = site.connection()?.send("POST", &messages_path(&id), &hello, &[b"event: done"])?;
        turn.at(0)?;
        site.delete(&name);
        Ok(())
    })?;
    let by_rest = of(&mut || {
        // A kept one is closed by the server while the others live.
        let mut connection = site.connection()?;
        let (_, id) = create(&mut connection, AGENT)?;
        connection.send("POST", &messages_path(&id), &hello, &[b"event: done"])?.at(0)?;
        end(&mut connection, &id)
    })?;
    site.forget(AGENT)?;
    eprintln!("applied: {}\nby REST: {}", applied.details(), by_rest.details());
    Ok(vec![Row {
        what: "API-server writes per session, applied, with a turn, deleted",
        measured: format!("{:.1} and the pod's own {:.1}: {}", applied.own(), applied.of_pod(), applied.said()),
        beside: format!("made and ended by REST: {:.1} and {:.1}: {}", by_rest.own(), by_rest.of_pod(), by_rest.said()),
        ratio: None,
        reach: "6 and the pod's own",
        reached: applied.own() <= GOAL && by_rest.own() <= GOAL,
    }])
}

/// Writes in the namespace per session, by kind and verb, and by who made them.
struct Counted(BTreeMap<(String, String, String), f64>);

impl Counted {
    fn of(log: &str, sessions: usize) -> anyhow::Result<Self> {
        let mut counted: BTreeMap<(String, String, String), f64> = BTreeMap::new();
        for line in log.lines() {
            let event: Value = serde_json::from_str(line)?;
            let (object, verb) = (&event["objectRef"], event["verb"].as_str().unwrap_or_default());
            let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
            // What was refused changed nothing; the namespace's own controllers write all the time.
            if object["namespace"] != TENANT || code >= 300 {
                continue;
            }
            let mut kind = object["resource"].as_str().unwrap_or_default().to_owned();
            if let Some(part) = object["subresource"].as_str() {
                kind = format!("{kind}/{part}");
            }
            let who = event["user"]["username"].as_str().unwrap_or_default().to_owned();
            *counted.entry((kind, verb.to_owned(), who)).or_default() += 1.0;
        }
        ensure!(!counted.is_empty(), "the audit log says nothing");
        let sessions = f64::from(u32::try_from(sessions)?);
        for count in counted.values_mut() {
            *count /= sessions;
        }
        Ok(Self(counted))
    }

    /// Whether a write is about a pod: its creation, its labels, its end, and whatever Kubernetes itself writes: its binding to a
    /// node, its token, its status, Events.
    fn is_of_pod(kind: &str, who: &str) -> bool {
        let by_kubernetes = ["system:node:", "system:kube-", "system:serviceaccount:kube-system:"];
        kind.starts_with("pods") || by_kubernetes.iter().any(|beginning| who.starts_with(beginning))
    }

    fn sum(&self, is_meant: impl Fn(&str, &str) -> bool) -> f64 {
        self.0.iter().filter(|((kind, _, who), _)| is_meant(kind, who)).map(|(_, count)| count).sum()
    }

    /// What is not the pod's.
    fn own(&self) -> f64 {
        self.sum(|kind, who| !Self::is_of_pod(kind, who))
    }

    fn of_pod(&self) -> f64 {
        self.sum(Self::is_of_pod)
    }

    fn said(&self) -> String {
        let mut kinds: BTreeMap<&str, f64> = BTreeMap::new();
        for ((kind, _, who), count) in &self.0 {
            if !Self::is_of_pod(kind, who) {
                *kinds.entry(kind).or_default() += count;
            }
        }
        kinds.iter().map(|(kind, count)| format!("{kind} {count:.1}")).collect::<Vec<_>>().join(", ")
    }

    fn details(&self) -> String {
        let line = |((kind, verb, who), count): (&(String, String, String), &f64)| {
            format!("{count:.1} {verb} {kind} by {who}")
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("; ")
    }
}
