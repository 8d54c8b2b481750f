#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ash_core::{
    Epoch, Sequence,
    id::{AgentId, SandboxId, SessionId, TenantId},
    ports::{PodSandbox, PodState},
    session::{Closing, PausedReason, Session as Row, SessionState},
};
use ash_crd::{
    Reason, SessionSpec, SessionStatus,
    condition::{self, ConditionType},
};
use ash_protocol::options::SessionOptions;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::{Message, Observed, Step, Wake, decide, status};
use crate::{
    failure::Failure,
    limits::{ATTEMPTS, FINALIZER_BOUND},
};

const ID: SessionId = SessionId(Uuid::from_u128(1));
const EPOCH: Epoch = Epoch(7);
const SANDBOX: SandboxId = SandboxId(Uuid::from_u128(2));

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_secs(seconds)).unwrap()
}

fn row(state: SessionState, sandbox: Option<SandboxId>) -> Row {
    Row {
        id: ID,
        tenant: TenantId("t".into()),
        agent: AgentId(Uuid::from_u128(3)),
        agent_name: "helper".parse().unwrap(),
        agent_version: 1,
        state,
        error: None,
        sandbox,
        options: SessionOptions::default(),
        metadata: BTreeMap::new(),
        model_refused: false,
        credential: None,
        epoch: EPOCH,
        last: Sequence::START,
        created_at: ago(100),
        last_active_at: ago(50),
    }
}

fn sandbox(state: PodState) -> PodSandbox {
    PodSandbox {
        id: SANDBOX,
        tenant: TenantId("t".into()),
        pod: "helper-1".into(),
        pod_uid: None,
        agent: AgentId(Uuid::from_u128(3)),
        agent_version: 1,
        pool: "default".into(),
        session: Some(ID),
        state,
        runner: None,
        node: Some("node1".into()),
        created_at: ago(1),
        changed_at: ago(1),
    }
}

struct Case {
    spec: SessionSpec,
    before: SessionStatus,
    row: Option<Row>,
    sandbox: Option<PodSandbox>,
    deleting: Option<i64>,
    finalizer: bool,
    attempts: u32,
    wake: Option<Wake>,
    message: Message,
}

impl Case {
    fn new(state: SessionState, placed: bool) -> Self {
        Self {
            spec: serde_json::from_value(json!({ "agent": "helper" })).unwrap(),
            before: SessionStatus::default(),
            row: Some(row(state, placed.then_some(SANDBOX))),
            sandbox: placed.then(|| sandbox(PodState::Claimed)),
            deleting: None,
            finalizer: true,
            attempts: 0,
            wake: None,
            message: Message::None,
        }
    }

    fn observed(&self) -> Observed<'_> {
        Observed {
            now: now(),
            generation: 1,
            created_at: ago(100),
            deleting_since: self.deleting.map(ago),
            has_finalizer: self.finalizer,
            from_rest: false,
            is_stopped: false,
            wake: self.wake,
            spec: &self.spec,
            before: &self.before,
            row: self.row.as_ref(),
            sandbox: self.sandbox.as_ref(),
            is_shut_out: false,
            trouble: None,
            attempts: self.attempts,
            not_before: None,
            message: self.message.clone(),
            url: None,
        }
    }

    fn next(&self) -> (Option<Step>, Option<Reason>) {
        let decision = decide(&self.observed());
        (decision.step, decision.report.map(|(reason, _)| reason))
    }
}

#[test]
fn changed_options_come_when_there_is_nothing_else_to_do() {
    let options = SessionOptions { model: Some("m".to_owned()), ..SessionOptions::default() };
    for (state, placed, step) in [
        (SessionState::Active, true, Some(Step::Configure)),
        (SessionState::Paused(PausedReason::Idle), false, Some(Step::Configure)),
        (SessionState::Error, false, Some(Step::Configure)),
        (SessionState::Active, false, Some(Step::FindSandbox)),
        (SessionState::Paused(PausedReason::Person), false, Some(Step::Resume)),
        (SessionState::Ended, false, None),
    ] {
        let mut case = Case::new(state, placed);
        case.row.as_mut().unwrap().options = options.clone();
        assert_eq!(case.next().0, step, "{state:?}");
        case.spec.options.model = Some("m".to_owned());
        assert_ne!(case.next().0, Some(Step::Configure), "{state:?}");
    }
    let mut suspended = Case::new(SessionState::Stopped, false);
    suspended.spec.suspend = true;
    suspended.spec.options.betas = Some(vec!["b".to_owned()]);
    assert_eq!(suspended.next(), (Some(Step::Configure), Some(Reason::Suspended)));
}

#[test]
fn what_is_next() {
    use SessionState as S;
    let case = Case::new;
    let idle = S::Paused(PausedReason::Idle);
    let person = S::Paused(PausedReason::Person);
    let with = |mut case: Case, change: &dyn Fn(&mut Case)| {
        change(&mut case);
        case.next()
    };
    let suspended = |case: &mut Case| case.spec.suspend = true;
    let rows = [
        (with(case(S::Active, false), &|case| case.row = None), (Some(Step::CreateRow), Some(Reason::Starting))),
        (
            with(case(S::Active, false), &|case| (case.row, case.finalizer) = (None, false)),
            (Some(Step::AddFinalizer), Some(Reason::Starting)),
        ),
        (case(S::Active, false).next(), (Some(Step::FindSandbox), Some(Reason::Starting))),
        (
            with(case(S::Active, false), &|case| case.sandbox = Some(sandbox(PodState::Starting))),
            (None, Some(Reason::Starting)),
        ),
        (with(case(S::Active, false), &|case| case.attempts = ATTEMPTS), (Some(Step::Fail), Some(Reason::Starting))),
        (case(S::Active, true).next(), (None, Some(Reason::Active))),
        (
            with(case(S::Active, true), &|case| case.message = Message::Waiting),
            (Some(Step::Send), Some(Reason::Active)),
        ),
        (case(idle, false).next(), (None, Some(Reason::Asleep))),
        (
            with(case(idle, false), &|case| case.wake = Some(Wake::In(EPOCH))),
            (Some(Step::MakeSandbox), Some(Reason::Resuming)),
        ),
        // It was asked for before it slept again.
        (with(case(idle, false), &|case| case.wake = Some(Wake::In(Epoch(6)))), (None, Some(Reason::Asleep))),
        // As the release before asks.
        (
            with(case(idle, false), &|case| case.wake = Some(Wake::At(ago(1)))),
            (Some(Step::MakeSandbox), Some(Reason::Resuming)),
        ),
        (with(case(idle, false), &|case| case.wake = Some(Wake::At(ago(60)))), (None, Some(Reason::Asleep))),
        (with(case(S::Active, true), &suspended), (Some(Step::Suspend(Closing::Pause)), Some(Reason::Suspended))),
        (with(case(person, false), &suspended), (None, Some(Reason::Suspended))),
        (with(case(S::Stopped, false), &suspended), (None, Some(Reason::Suspended))),
        (case(person, false).next(), (Some(Step::Resume), Some(Reason::Resuming))),
        (case(S::Error, false).next(), (None, Some(Reason::SessionFailed))),
        (with(case(person, false), &|case| case.spec.end = true), (Some(Step::End), Some(Reason::Ending))),
        (case(S::Ended, true).next(), (Some(Step::RemoveSandbox), Some(Reason::Ending))),
        (case(S::Ended, false).next(), (None, Some(Reason::Ended))),
        (with(case(S::Active, true), &|case| case.deleting = Some(1)), (Some(Step::End), None)),
        (with(case(S::Ended, true), &|case| case.deleting = Some(1)), (Some(Step::RemoveSandbox), None)),
        (with(case(S::Ended, false), &|case| case.deleting = Some(1)), (Some(Step::RemoveFinalizer), None)),
        // However little works: a deletion is not held up for longer than this.
        (with(case(S::Active, true), &|case| case.deleting = Some(31)), (Some(Step::RemoveFinalizer), None)),
    ];
    for (number, (found, expected)) in rows.into_iter().enumerate() {
        assert_eq!(found, expected, "row {number}");
    }
    assert!(FINALIZER_BOUND.as_secs() < 31);
}

/// A session that REST has just made gets its sandbox from the API, unless the API has found none and asked for one.
#[test]
fn the_api_has_a_head_start_until_it_asks() {
    let mut case = Case::new(SessionState::Active, false);
    let next = |case: &Case| {
        let observed = Observed { from_rest: true, created_at: ago(1), ..case.observed() };
        decide(&observed).step
    };
    assert_eq!(next(&case), None);
    case.wake = Some(Wake::In(EPOCH));
    assert_eq!(next(&case), Some(Step::MakeSandbox));
    let again = Observed { from_rest: true, created_at: ago(1), attempts: 1, ..case.observed() };
    assert_eq!(decide(&again).step, Some(Step::FindSandbox), "a warm one may have come since");
    // Its row is the API's, too, which knows the request's Idempotency-Key.
    case.row = None;
    assert_eq!(next(&case), None);
    assert_eq!(
        decide(&Observed { from_rest: true, ..case.observed() }).step,
        Some(Step::CreateRow),
        "it died meanwhile"
    );
}

/// Such is what another request with the same Idempotency-Key was faster than.
#[test]
fn a_session_that_ended_before_it_began_goes_after_its_time() {
    let mut case = Case::new(SessionState::Active, false);
    case.row = None;
    case.spec.end = true;
    case.spec.ttl_after_end = Some("60s".parse().unwrap());
    let (reason, text) = decide(&case.observed()).report.unwrap();
    assert_eq!(reason, Reason::Ended);
    case.before = status(&case.observed(), reason, &text);
    assert_eq!(decide(&case.observed()).step, None);
    let later = Observed { now: ago(-60), ..case.observed() };
    assert_eq!(decide(&later).step, Some(Step::RemoveResource));
}

/// The clocks of whoever asks and of whoever wrote the session's state may differ by any time.
#[test]
fn a_session_is_woken_whatever_the_clocks_say() {
    let mut case = Case::new(SessionState::Paused(PausedReason::Idle), false);
    case.wake = Some(Wake::In(EPOCH));
    for ahead in [-3600, 0, 3600] {
        case.row.as_mut().unwrap().last_active_at = ago(-ahead);
        assert_eq!(case.next().0, Some(Step::MakeSandbox), "{ahead} s");
    }
}

#[test]
fn a_resource_goes_when_its_time_is_over() {
    let mut case = Case::new(SessionState::Ended, false);
    case.spec.ttl_after_end = Some("60s".parse().unwrap());
    let at = |case: &mut Case, seconds| {
        case.before.ended_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(ago(seconds)));
        decide(&case.observed())
    };
    let waits = at(&mut case, 20);
    assert_eq!((waits.step, waits.again.unwrap().as_secs()), (None, 40));
    assert_eq!(at(&mut case, 60).step, Some(Step::RemoveResource));
}

fn any_state() -> impl Strategy<Value = SessionState> {
    prop::sample::select(SessionState::ALL.to_vec())
}

proptest! {
    /// Saying the same again changes nothing, and exactly one of Ready, Reconciling and Stalled is true.
    #[test]
    fn an_unchanged_session_has_an_unchanged_status(
        state in any_state(), placed: bool, suspend: bool, end: bool, woken: bool, later in 0_i64..1000,
    ) {
        let mut case = Case::new(state, placed);
        case.spec.suspend = suspend;
        case.spec.end = end;
        case.wake = woken.then_some(Wake::In(EPOCH));
        let (_, reason) = case.next();
        let Some(reason) = reason else { return Ok(()) };
        let first = status(&case.observed(), reason, "why");
        case.before = first.clone();
        let mut observed = case.observed();
        observed.now = now().checked_add(SignedDuration::from_secs(later)).unwrap();
        prop_assert_eq!(&status(&observed, reason, "why"), &first);
        let kinds = [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled];
        prop_assert_eq!(kinds.iter().filter(|kind| condition::is_true(&first.conditions, **kind)).count(), 1);
    }
}

#[test]
fn a_sandbox_that_a_full_runner_refuses_is_made_elsewhere() {
    let mut case = Case::new(SessionState::Active, false);
    case.sandbox = Some(sandbox(PodState::Claimed));
    let observed = Observed { is_shut_out: true, ..case.observed() };
    assert_eq!(decide(&observed).step, Some(Step::RemoveSandbox));
    assert_eq!(case.next().0, None);
}

/// What was written about a loss stays, also where whoever looks next does not know it any more.
#[test]
fn a_session_that_lost_its_sandbox_says_why() {
    let mut case = Case::new(SessionState::Paused(PausedReason::Lost), false);
    let evicted = Failure { reason: Reason::PodEvicted, message: "out of disk".to_owned(), is_final: true };
    let mut observed = case.observed();
    observed.trouble = Some(&evicted);
    let (reason, text) = decide(&observed).report.unwrap();
    assert_eq!((reason, &*text), (Reason::Asleep, "PodEvicted: out of disk"));
    case.before = status(&observed, reason, &text);
    assert_eq!(decide(&case.observed()).report.unwrap(), (Reason::Asleep, text));
}

#[test]
fn a_refused_credential_waits_for_a_person_and_takes_messages() {
    let mut case = Case::new(SessionState::Active, true);
    if let Some(row) = &mut case.row {
        row.model_refused = true;
    }
    assert_eq!(case.next(), (None, Some(Reason::ModelCredentialRefused)));
    case.message = Message::Waiting;
    assert_eq!(case.next(), (Some(Step::Send), Some(Reason::ModelCredentialRefused)));
}
