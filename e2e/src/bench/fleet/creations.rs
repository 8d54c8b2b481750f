//! Sessions that are created as fast as they can be: a coordinator, three runners and Postgres as processes, and warm sandboxes whose
//! bridges stand in.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ash_test_postgres::Postgres;
use uuid::Uuid;

use super::{
    LOG,
    reviews::Reviews,
    stand_in_bridges::{Bridges, StandIn},
};
use crate::{
    bench::{connection::Connection, report::Row, rows::Scale, statistics::Times},
    fleet::free_port,
    harness::{FleetOptions, TestFleet, eventually},
};

const RUNNERS: usize = 3;
/// Clients that create one session after the other.
const CLIENTS: usize = 16;
/// Warm sandboxes for each creation: where they are all taken, they are spread whatever was done.
const SPARE: f64 = 1.5;
/// The goals: creations in a second, and how far runners may be from each other.
const PER_SECOND: f64 = 500.0;
const SPREAD: f64 = 0.1;

pub(crate) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let postgres = Postgres::start();
    let reviews = Reviews::start().await?;
    let options = FleetOptions {
        database: Some(postgres.url("postgres")),
        coordinator_arguments: vec!["--sandboxes=pods".to_owned()],
        runner_environment: vec![("KUBECONFIG", reviews.kubeconfig().display().to_string())],
        log: Some(LOG),
        ..FleetOptions::default()
    };
    let mut fleet = TestFleet::start_with(0, &[], options).await;
    let ports: Vec<SocketAddr> = (0..RUNNERS).map(|_| free_port()).collect();
    for (number, bridges) in ports.iter().enumerate() {
        let gateway = free_port();
        let arguments = [
            "--sandboxes=pods".to_owned(),
            format!("--node=node-{number}"),
            format!("--bridge-listen={bridges}"),
            format!("--gateway-listen={gateway}"),
            format!("--gateway-advertise=http://{gateway}"),
            "--max-sandboxes=10000".to_owned(),
        ];
        fleet.add_runner(&arguments.each_ref().map(String::as_str));
    }
    fleet.wait_runners(RUNNERS).await;
    fleet.deploy("simple").await;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "thousands"
    )]
    let sandboxes = (scale.fleet_creations as f64 * SPARE) as usize;
    let pods = pods(sandboxes, &ports)?;
    add(&postgres, &pods)?;
    let _bridges = Bridges::start(pods)?;
    eventually("all sandboxes are warm", async || {
        let warm = query(&postgres, "SELECT COUNT(*) FROM sandboxes WHERE state = 'warm'").ok()?;
        (warm.trim() == sandboxes.to_string()).then_some(())
    })
    .await;
    let per_client = scale.fleet_creations / CLIENTS;
    let health =
        together(&fleet, per_client, |connection| Ok(connection.send("GET", "/health", "", &[])?.status == 200))?;
    let created = together(&fleet, per_client, |connection| {
        let created = connection.send("POST", "/api/sessions", r#"{"agent":"simple"}"#, &[])?;
        Ok(created.status == 201 && created.json()?["session"]["status"] == "active")
    })?;
    let spread = spread(&postgres)?;
    Ok(vec![Row {
        what: "creations with 3 runners and stand-in bridges, as processes of this machine",
        measured: format!(
            "{:.0}/s, {} of {} failed, {}; runners {:.1} % apart",
            created.per_second(),
            created.failed,
            created.times.len(),
            created.times.summary(),
            spread * 100.0
        ),
        beside: format!("GET /health by the same {CLIENTS} clients {:.0}/s", health.per_second()),
        ratio: Some(created.per_second() / health.per_second()),
        reach: "500/s, none fails, spread within 10 %",
        reached: created.per_second() >= PER_SECOND && created.failed == 0 && spread <= SPREAD,
    }])
}

/// What came of requests at once.
struct Together {
    times: Times,
    failed: usize,
    whole: Duration,
}

impl Together {
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.whole.as_secs_f64()
    }
}

/// So many requests by each client, one after the other; all clients at once.
fn together(
    fleet: &TestFleet,
    per_client: usize,
    request: impl Fn(&mut Connection) -> anyhow::Result<bool> + Sync,
) -> anyhow::Result<Together> {
    let connections: Vec<Connection> =
        (0..CLIENTS).map(|_| Connection::open(fleet.address(), fleet.api_key())).collect::<anyhow::Result<_>>()?;
    let start = Instant::now();
    let done: Vec<Vec<(Duration, bool)>> = thread::scope(|scope| {
        let one = |mut connection: Connection| {
            let request = &request;
            scope.spawn(move || {
                let mut done = Vec::with_capacity(per_client);
                for _ in 0..per_client {
                    let start = Instant::now();
                    let went_well = request(&mut connection)?;
                    done.push((start.elapsed(), went_well));
                }
                anyhow::Ok(done)
            })
        };
        let clients: Vec<_> = connections.into_iter().map(one).collect();
        clients
            .into_iter()
            .map(|one| one.join().map_err(|_| anyhow::anyhow!("a client ended"))?)
            .collect::<anyhow::Result<_>>()
    })?;
    let whole = start.elapsed();
    let mut together = Together { times: Times::default(), failed: 0, whole };
    for (time, went_well) in done.into_iter().flatten() {
        together.times.push(time);
        together.failed += usize::from(!went_well);
    }
    Ok(together)
}

/// The pods, evenly on the nodes.
fn pods(count: usize, runners: &[SocketAddr]) -> anyhow::Result<Vec<StandIn>> {
    let one = |number: usize| {
        let on = number % runners.len();
        Ok(StandIn {
            number: u16::try_from(number)?,
            sandbox: Uuid::new_v4().to_string(),
            pod: format!("stand-in-{number}"),
            node: format!("node-{on}"),
            runner: runners[on],
        })
    };
    (0..count).map(one).collect()
}

/// Their rows, as the operator adds them.
fn add(postgres: &Postgres, pods: &[StandIn]) -> anyhow::Result<()> {
    let values: Vec<String> = pods.iter().map(|pod| format!("('{}', '{}')", pod.sandbox, pod.pod)).collect();
    for values in values.chunks(500) {
        let statement = format!(
            "INSERT INTO sandboxes (id, tenant, pod, agent, agent_version, pool, state, created_at, changed_at) \
             SELECT stand_ins.id, tenant, stand_ins.pod, agents.id, current_version, '', 'starting', created_at, created_at \
             FROM agents, (VALUES {}) AS stand_ins (id, pod)",
            values.join(", ")
        );
        query(postgres, &statement)?;
    }
    Ok(())
}

/// How far the runners' sessions are from each other, as a share of what each should have.
fn spread(postgres: &Postgres) -> anyhow::Result<f64> {
    let counts = query(postgres, "SELECT COUNT(*) FROM sandboxes WHERE state = 'claimed' GROUP BY runner")?;
    let counts: Vec<f64> = counts.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(counts.len() == RUNNERS, "only {} runners have sessions", counts.len());
    let most = counts.iter().copied().fold(0.0, f64::max);
    let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = counts.iter().sum::<f64>() / 3.0;
    Ok((most - least) / mean)
}

fn query(postgres: &Postgres, statement: &str) -> anyhow::Result<String> {
    postgres.query("postgres", statement).map_err(anyhow::Error::msg).context("Postgres")
}
