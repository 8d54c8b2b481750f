#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ash_core::{
    agent::{Agent as Row, AgentSettings, AgentVersion},
    id::{AgentId, TenantId},
};
use ash_crd::{
    AgentSpec, AgentStatus, Reason,
    condition::{self, ConditionType},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use uuid::Uuid;

use super::{Made, Observed, Step, Version, decide};
use crate::{
    failure::Failure,
    limits::{COUNTS, DEPLOYMENT},
    namespace::Counts,
};

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn spec() -> AgentSpec {
    let files = json!([{ "path": "CLAUDE.md", "text": "x" }]);
    serde_json::from_value(json!({ "source": { "inline": { "files": files } } })).unwrap()
}

fn made(model: &str) -> Made {
    let settings = AgentSettings { model: Some(model.into()), ..AgentSettings::default() };
    Made::Ready(Box::new(Version { digest: "d".into(), settings, commit: None }))
}

fn row(model: &str) -> Row {
    let settings = AgentSettings { model: Some(model.into()), ..AgentSettings::default() };
    let agent = AgentId(Uuid::from_u128(1));
    let tenant = TenantId("t".into());
    Row {
        id: agent,
        tenant: tenant.clone(),
        name: "helper".parse().unwrap(),
        slug: None,
        description: None,
        version: AgentVersion { agent, tenant, number: 4, digest: "d".into(), settings },
        created_at: now(),
        updated_at: now(),
    }
}

fn observed<'a>(spec: &'a AgentSpec, before: &'a AgentStatus, row: Option<&'a Row>, made: &'a Made) -> Observed<'a> {
    Observed {
        now: now(),
        name: "helper",
        generation: 1,
        deleting_since: None,
        has_finalizer: true,
        spec,
        before,
        row,
        made,
        counts: Some(Counts { warm: 1, active: 0, target: 1 }),
        asleep: 0,
        trouble: None,
        written: None,
        others_version_since: None,
    }
}

#[test]
fn a_version_of_a_deployment_over_rest_has_time_for_its_resource() {
    let (spec, before, new, old) = (spec(), AgentStatus::default(), row("b"), made("a"));
    let since = |seconds| Observed {
        others_version_since: now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        ..observed(&spec, &before, Some(&new), &old)
    };
    let waits = decide(&since(1));
    assert_eq!((waits.step, waits.again), (None, DEPLOYMENT.checked_sub(Duration::from_secs(1))));
    assert_eq!(decide(&since(10)).step, Some(Step::Deploy), "what the resource says counts in the end");
    let changed = made("b");
    assert_eq!(decide(&observed(&spec, &before, Some(&new), &changed)).step, None, "it came");
}

#[test]
fn only_what_differs_is_deployed() {
    let (spec, before, old, new) = (spec(), AgentStatus::default(), row("a"), row("b"));
    let made = made("b");
    assert_eq!(decide(&observed(&spec, &before, None, &made)).step, Some(Step::Deploy));
    assert_eq!(decide(&observed(&spec, &before, Some(&old), &made)).step, Some(Step::Deploy));
    let settled = decide(&observed(&spec, &before, Some(&new), &made));
    assert_eq!(settled.step, None);
    let status = settled.status.unwrap();
    assert_eq!((status.version, status.warm), (Some(4), 1));
    assert!(condition::is_true(&status.conditions, ConditionType::Ready));
    assert!(condition::is_true(&status.conditions, ConditionType::PoolReady));
    // The same again is not written.
    let again = Observed {
        now: now().checked_add(SignedDuration::from_hours(1)).unwrap(),
        ..observed(&spec, &status, Some(&new), &made)
    };
    assert_eq!(decide(&again).status, None);
    // Counts alone wait for their time; nothing is known of them after a restart.
    let more = Observed {
        counts: Some(Counts { warm: 2, active: 5, target: 1 }),
        written: Some(now()),
        ..observed(&spec, &status, Some(&new), &made)
    };
    let waits = decide(&more);
    assert_eq!((waits.status, waits.again.map(|again| again.as_secs())), (None, Some(COUNTS.as_secs())));
    let unknown = Observed { counts: None, ..observed(&spec, &status, Some(&new), &made) };
    assert_eq!(decide(&unknown).status, None);
}

#[test]
fn what_is_wrong_is_said() {
    let (spec, before, row) = (spec(), AgentStatus::default(), row("a"));
    let wrong = Made::Not(Reason::ClaudeMdMissing, "no CLAUDE.md".into());
    let status = decide(&observed(&spec, &before, Some(&row), &wrong)).status.unwrap();
    assert!(condition::is_true(&status.conditions, ConditionType::Stalled));
    assert!(!condition::is_true(&status.conditions, ConditionType::SourceReady));
    // With a warm sandbox, sessions can start whatever is wrong with the next one.
    let made = made("a");
    let trouble = Failure { reason: Reason::ImagePullFailed, message: "denied".into(), is_final: false };
    for (warm, ready) in [(0, false), (1, true)] {
        let observed = Observed {
            trouble: Some(&trouble),
            counts: Some(Counts { warm, active: 0, target: 2 }),
            ..observed(&spec, &before, Some(&row), &made)
        };
        let status = decide(&observed).status.unwrap();
        assert_eq!(condition::is_true(&status.conditions, ConditionType::Ready), ready);
        assert!(!condition::is_true(&status.conditions, ConditionType::PoolReady));
    }
}

#[test]
fn a_deletion_is_never_held_up_for_long() {
    let (spec, before, row, made) = (spec(), AgentStatus::default(), row("a"), made("a"));
    let since = |seconds| Some(now().checked_sub(SignedDuration::from_secs(seconds)).unwrap());
    let of = |seconds, row| {
        decide(&Observed { deleting_since: since(seconds), ..observed(&spec, &before, row, &made) }).step
    };
    assert_eq!(of(1, Some(&row)), Some(Step::Forget));
    assert_eq!(of(1, None), Some(Step::RemoveFinalizer));
    assert_eq!(of(31, Some(&row)), Some(Step::RemoveFinalizer));
}
