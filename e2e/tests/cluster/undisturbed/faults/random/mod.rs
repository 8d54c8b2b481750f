//! Many sessions talk while processes of the cluster are killed, which, when and how a seed chooses.

mod kills;
mod rows;
mod talk;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    str::FromStr,
};

use ash_e2e::cluster::Cluster;
use futures::StreamExt as _;
use serde_json::json;

use self::{
    kills::Kills,
    rows::Rows,
    talk::{Progress, Talk},
};
use super::end;
use crate::tenant::Tenant;

/// Sessions that talk. `ASH_KILL_SESSIONS` asks for another number.
const SESSIONS: usize = 20;
/// Sessions that begin, and are checked, at the same time.
const STARTS: usize = 4;
/// What is killed in one run: each part twice, which takes two minutes. `ASH_KILL_ROUNDS` asks for more.
const KILLS: usize = 8;

/// A number that the person who runs the test gives.
fn given<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn whatever_is_killed_while_twenty_sessions_talk_nothing_is_lost_or_doubled() {
    let Some(cluster) = Cluster::alone() else { return };
    let seed = given("ASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = given("ASH_KILL_ROUNDS").unwrap_or(KILLS);
    let count = given("ASH_KILL_SESSIONS").unwrap_or(SESSIONS);
    eprintln!("ASH_SEED={seed}");
    let tenant = Tenant::of_rest(&cluster);
    let agent = "random-faults";
    tenant.agent(agent, &json!({}));
    let mut kills = Kills::new(&tenant, agent, seed);
    let talks = talk_while(&tenant, agent, count, |progress| {
        for round in 0..rounds {
            let next = progress.turns() + kills.pause(count);
            cluster.eventually("the sessions talk on", |_| progress.is_at(next));
            kills.next(round);
        }
        kills.wait_all();
    });
    eprintln!("{} turns", talks.iter().map(Talk::len).sum::<usize>());
    let checks = futures::stream::iter(&talks).for_each_concurrent(STARTS, |talk| async {
        talk.check(&tenant, kills.of_sessions.get(&talk.session.id).copied().unwrap_or_default()).await;
        talk.check_conversation(&tenant).await;
    });
    cluster.run(checks);
    end(&tenant, &talks.iter().map(|talk| talk.session.clone()).collect::<Vec<_>>());
    nothing_is_left(&tenant, agent);
}

/// Has sessions talk, and does something meanwhile, once all of them do; what they said and heard.
fn talk_while(tenant: &Tenant<'_>, agent: &str, count: usize, disturb: impl FnOnce(&Progress)) -> Vec<Talk> {
    // What a hundred at once come to is tried elsewhere.
    let begun = futures::stream::iter((0..count).map(|_| talk::begin(tenant, agent))).buffer_unordered(STARTS);
    let sessions: Vec<_> = tenant.cluster.run(begun.collect());
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let _over = progress.over();
            let all = sessions.into_iter().enumerate();
            let all = all.map(|(number, session)| Talk::go_on(tenant, number, session, &progress));
            tenant.cluster.run(futures::future::join_all(all))
        });
        let disturbed = catch_unwind(AssertUnwindSafe(|| {
            tenant.cluster.eventually("all sessions talk", |_| progress.is_at(count));
            disturb(&progress);
        }));
        drop(progress.over());
        let talks = talking.join();
        // What a session has to say of it comes first: the disturbance may have failed for that.
        let talks = talks.unwrap_or_else(|panic| resume_unwind(panic));
        disturbed.unwrap_or_else(|panic| resume_unwind(panic));
        talks
    })
}

/// No session has a place or a sandbox, every row has its pod, and with the agent all of them go.
fn nothing_is_left(tenant: &Tenant<'_>, agent: &str) {
    let pods = || {
        let pods = tenant.json(&["get", "pods", "-l", &format!("ash.dev/agent={agent}")]);
        let mut names: Vec<String> = pods["items"].as_array().into_iter().flatten().map(super::name).collect();
        names.sort();
        names
    };
    let mut before = None;
    tenant.cluster.eventually("no session has anything, and every row its pod", |_| {
        let (rows, pods) = (Rows::read(tenant, agent), pods());
        let is_clear = rows.claimed.is_empty() && rows.placed.is_empty() && rows.pods == pods;
        let now = Some((rows, pods));
        if now != before {
            eprintln!("left: {now:?}");
        }
        before = now;
        is_clear.then_some(())
    });
    tenant.done(&["delete", "agent", agent, "--wait", "--timeout=60s"]);
    tenant.cluster.eventually("nothing is left", |_| {
        (Rows::read(tenant, agent) == Rows::default() && pods().is_empty()).then_some(())
    });
}
