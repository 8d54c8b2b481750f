#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};

use ash_core::{
    id::{AgentId, SandboxId, SessionId, TenantId},
    ports::{PodSandbox, PodState},
};
use ash_crd::Reason;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use uuid::Uuid;

use super::{Observed, PodView, Pool, Step, decide};
use crate::failure::Failure;

const AGENT: AgentId = AgentId(Uuid::from_u128(7));

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn row(id: u128, state: PodState, session: Option<u128>, version: u32, age: i64) -> PodSandbox {
    let at = now().checked_sub(SignedDuration::from_secs(age)).unwrap();
    PodSandbox {
        id: SandboxId(Uuid::from_u128(id)),
        tenant: TenantId("t".into()),
        pod: format!("pod-{id}"),
        pod_uid: (state != PodState::Starting).then(|| "uid".to_owned()),
        agent: AGENT,
        agent_version: version,
        pool: "default".into(),
        session: session.map(|id| SessionId(Uuid::from_u128(id))),
        state,
        runner: None,
        node: None,
        created_at: at,
        changed_at: at,
    }
}

fn pod(id: u128) -> (SandboxId, PodView) {
    let view = PodView {
        name: format!("pod-{id}"),
        uid: format!("uid-{id}"),
        is_terminating: false,
        node: None,
        failure: None,
        preparing_since: None,
        session: None,
        is_outdated: false,
    };
    (SandboxId(Uuid::from_u128(id)), view)
}

fn steps(rows: &[PodSandbox], pods: &BTreeMap<SandboxId, PodView>, target: u32) -> Vec<Step> {
    let pools = HashMap::from([(AGENT, Pool { version: 2, target, not_before: None })]);
    decide(&Observed { now: now(), rows, pods, pools: &pools })
}

#[test]
fn a_pool_is_filled_when_the_claims_are_over_or_little_is_left() {
    let pods = (1..=8).map(pod).map(|(id, mut pod)| {
        pod.session = None;
        (id, pod)
    });
    let pods: BTreeMap<_, _> = pods.collect();
    let added = |claimed: u128, age: i64| {
        let mut rows: Vec<_> = (1..=claimed).map(|id| row(id, PodState::Claimed, Some(100 + id), 2, age)).collect();
        rows.extend((claimed + 1..=8).map(|id| row(id, PodState::Warm, None, 2, 60)));
        steps(&rows, &pods, 8).iter().filter(|step| matches!(step, Step::Add(_))).count()
    };
    assert_eq!(added(3, 0), 0, "sessions begin at this moment");
    assert_eq!(added(3, 1), 3);
    assert_eq!(added(7, 0), 7, "too little is left to wait");
    let one = row(1, PodState::Claimed, Some(100), 2, 0);
    assert!(steps(&[one], &pods, 1).contains(&Step::Add(AGENT)), "the only one is replaced at once");
}

#[test]
fn what_each_sandbox_gets() {
    let id = |id| SandboxId(Uuid::from_u128(id));
    let of = |row: PodSandbox, pod: Option<PodView>| {
        let pods = pod.into_iter().map(|pod| (row.id, pod)).collect();
        let warm = u32::from(row.session.is_none() && row.agent_version == 2 && row.state != PodState::Deleting);
        steps(&[row], &pods, warm)
    };
    let there = pod(1).1;
    let terminating = PodView { is_terminating: true, ..there.clone() };
    let failure = |is_final| Failure { reason: Reason::PodEvicted, message: String::new(), is_final };
    let failed = |is_final| PodView { failure: Some(failure(is_final)), ..there.clone() };
    let rows = [
        // A row before its pod; the pod that is there; the pod that went away.
        (of(row(1, PodState::Starting, None, 2, 0), None), vec![Step::CreatePod(id(1))]),
        (of(row(1, PodState::Starting, None, 2, 0), Some(there.clone())), vec![]),
        (of(row(1, PodState::Starting, Some(5), 1, 0), None), vec![Step::CreatePod(id(1))]),
        (of(row(1, PodState::Warm, None, 2, 0), None), vec![Step::Over(id(1), None)]),
        (of(row(1, PodState::Claimed, Some(5), 2, 0), None), vec![Step::Over(id(1), None)]),
        (of(row(1, PodState::Claimed, Some(5), 2, 0), Some(terminating.clone())), vec![Step::Over(id(1), None)]),
        // What fails for good is over, what the cluster tries on is left to it.
        (
            of(row(1, PodState::Claimed, Some(5), 2, 0), Some(failed(true))),
            vec![Step::Over(id(1), Some(failure(true)))],
        ),
        (of(row(1, PodState::Starting, Some(5), 2, 0), Some(failed(false))), vec![]),
        // A claimed pod becomes its session's.
        (
            of(row(1, PodState::Claimed, Some(5), 2, 0), Some(there.clone())),
            vec![Step::Label(id(1), SessionId(Uuid::from_u128(5)))],
        ),
        // An older version's goes, but never one that a session has.
        (of(row(1, PodState::Warm, None, 1, 0), Some(there.clone())), vec![Step::Retire(id(1))]),
        // First the pod, then the row; a session's is given time to say why.
        (of(row(1, PodState::Deleting, None, 2, 0), Some(there.clone())), vec![Step::DeletePod("pod-1".into())]),
        (of(row(1, PodState::Deleting, None, 2, 0), Some(terminating)), vec![]),
        (of(row(1, PodState::Deleting, None, 2, 0), None), vec![Step::RemoveRow(id(1))]),
        (of(row(1, PodState::Deleting, Some(5), 2, 1), None), vec![]),
        (of(row(1, PodState::Deleting, Some(5), 2, 60), None), vec![Step::RemoveRow(id(1))]),
    ];
    for (number, (found, expected)) in rows.into_iter().enumerate() {
        assert_eq!(found, expected, "row {number}");
    }
    let stray = BTreeMap::from([pod(9)]);
    assert_eq!(steps(&[], &stray, 0), [Step::DeletePod("pod-9".into())]);
}

#[test]
fn a_pool_waits_while_the_cluster_says_what_is_wrong() {
    let rows = [row(1, PodState::Starting, None, 2, 0)];
    let (id, mut view) = pod(1);
    assert_eq!(steps(&rows, &BTreeMap::from([(id, view.clone())]), 3).len(), 2);
    view.failure = Some(Failure { reason: Reason::ImagePullFailed, message: String::new(), is_final: false });
    assert_eq!(steps(&rows, &BTreeMap::from([(id, view)]), 3), []);
}

#[derive(Debug, Clone)]
enum Happens {
    Start,
    Claim,
    Fail,
    Target(u32),
    Nothing,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        Just(Happens::Start),
        Just(Happens::Claim),
        Just(Happens::Fail),
        (0_u32..6).prop_map(Happens::Target),
        Just(Happens::Nothing),
    ]
}

proptest! {
    /// Whatever happens on the way: in the end there are as many warm sandboxes as there should be, each row has its pod and each
    /// pod its row, and no sandbox of a session was taken from it.
    #[test]
    fn it_converges(story in prop::collection::vec(happens(), 0..40)) {
        let (mut rows, mut pods, mut target, mut next) = (Vec::<PodSandbox>::new(), BTreeMap::new(), 2, 1_u128);
        let mut claimed = Vec::new();
        for event in story.into_iter().chain(std::iter::repeat_n(Happens::Start, 30)) {
            match event {
                // Which takes its time.
                Happens::Start => for row in &mut rows {
                    if row.state == PodState::Claimed {
                        row.changed_at = now().checked_sub(SignedDuration::from_secs(2)).unwrap();
                    }
                    if row.state == PodState::Starting && pods.contains_key(&row.id) {
                        row.state = PodState::Warm;
                        row.pod_uid = Some("uid".into());
                    }
                },
                Happens::Claim => if let Some(row) = rows.iter_mut().find(|row| row.state == PodState::Warm) {
                    next += 1;
                    row.session = Some(SessionId(Uuid::from_u128(next)));
                    row.state = PodState::Claimed;
                    claimed.push(row.id);
                },
                Happens::Fail => if let Some((id, view)) = pods.iter_mut().next() {
                    let view: &mut PodView = view;
                    view.failure = Some(Failure { reason: Reason::PodEvicted, message: String::new(), is_final: true });
                    let id: &SandboxId = id;
                    claimed.retain(|claimed| claimed != id);
                },
                Happens::Target(now) => target = now,
                Happens::Nothing => {}
            }
            for step in steps(&rows, &pods, target) {
                let at = |id: SandboxId| move |row: &&mut PodSandbox| row.id == id;
                match step {
                    Step::Add(_) => {
                        next += 1;
                        rows.push(row(next, PodState::Starting, None, 2, 0));
                    }
                    Step::CreatePod(id) => { pods.insert(id, pod(id.0.as_u128()).1); }
                    Step::Retire(id) => {
                        let row = rows.iter_mut().find(at(id)).unwrap();
                        prop_assert!(row.session.is_none());
                        row.state = PodState::Deleting;
                    }
                    Step::Over(id, _) => rows.iter_mut().find(at(id)).unwrap().state = PodState::Deleting,
                    Step::DeletePod(name) => pods.retain(|_, pod| pod.name != name),
                    Step::Label(id, session) => pods.get_mut(&id).unwrap().session = Some(session),
                    Step::RemoveRow(id) => rows.retain(|row| row.id != id),
                }
            }
            for row in rows.iter_mut().filter(|row| row.state == PodState::Deleting) {
                row.changed_at = now().checked_sub(SignedDuration::from_secs(60)).unwrap();
            }
        }
        let warm = rows.iter().filter(|row| row.state == PodState::Warm).count();
        prop_assert_eq!(warm, target as usize);
        prop_assert_eq!(rows.len(), pods.len());
        for id in claimed {
            prop_assert!(rows.iter().any(|row| row.id == id && row.state == PodState::Claimed));
        }
        prop_assert_eq!(steps(&rows, &pods, target), []);
    }
}

#[test]
fn after_an_upgrade_a_pool_is_replaced_one_by_one() {
    let old = |id| {
        let (id, view) = pod(id);
        (id, PodView { is_outdated: true, ..view })
    };
    let warm = |id| row(id, PodState::Warm, None, 2, 100);
    let starting = row(3, PodState::Starting, None, 2, 1);
    let id = |id| SandboxId(Uuid::from_u128(id));
    assert_eq!(steps(&[warm(1), warm(2)], &BTreeMap::from([old(1), old(2)]), 2), [Step::Retire(id(1))]);
    assert_eq!(steps(&[warm(2)], &BTreeMap::from([old(2)]), 2), [Step::Add(AGENT)]);
    assert_eq!(steps(&[warm(2), starting], &BTreeMap::from([old(2), pod(3)]), 2), []);
    assert_eq!(steps(&[warm(2), warm(3)], &BTreeMap::from([old(2), pod(3)]), 2), [Step::Retire(id(2))]);
    assert_eq!(steps(&[warm(3), warm(4)], &BTreeMap::from([pod(3), pod(4)]), 2), []);
    // Of a session, it stays.
    let claimed = PodView { session: Some(SessionId(Uuid::from_u128(9))), ..old(1).1 };
    assert_eq!(steps(&[row(1, PodState::Claimed, Some(9), 2, 1)], &BTreeMap::from([(id(1), claimed)]), 0), []);
}
