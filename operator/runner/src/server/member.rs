//! A runner's membership in its fleet: it registers, says that it lives, registers again where it is not known, and leaves.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ash_core::{
    agent::AgentVersion,
    fleet::{Heard, Heartbeat, Held, Register, Registered, RunnerId, WarmList},
    freezing::News,
    id::{AgentId, SessionId},
    placement::HEARTBEAT,
    ports::Runner as _,
};
use ash_link::LinkError;
use ash_protocol::fleet::coordinator as path;
use prometheus_client::registry::Registry;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{leftovers, life::Life, metrics::Metrics};
use crate::{
    LocalRunner,
    coordinators::{Coordinators, UNKNOWN_RUNNER},
};

/// How long a heartbeat or a registration may take.
const CALL: Duration = Duration::from_secs(4);
/// How long a coordinator may take to answer before the next one is asked beside it: one that cannot write says so after 2 s.
const APART: Duration = Duration::from_millis(2500);
/// The shortest and the longest pause before a coordinator that did not answer is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// The status that refuses the registration of a runner under whose name a newer process runs.
const SUPERSEDED: u16 = 403;
/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(3);

/// What a membership is made from.
#[derive(Debug, Clone)]
pub struct MembershipConfig {
    /// Who the runner is.
    pub runner: RunnerId,
    /// Where coordinators reach it.
    pub address: String,
    /// Sandboxes at the most.
    pub capacity: u32,
    /// The data directory.
    pub data: std::path::PathBuf,
    /// The node pool that it serves; empty outside Kubernetes.
    pub pool: String,
    /// The node that it is on; empty outside Kubernetes.
    pub node: String,
}

/// The membership of one life of a runner.
#[derive(Debug)]
pub struct Membership {
    config: MembershipConfig,
    coordinators: Arc<Coordinators>,
    metrics: Metrics,
    warm: Mutex<WarmList>,
    life: Life,
    superseded: CancellationToken,
}

impl Membership {
    /// A membership that has not begun.
    pub fn new(config: MembershipConfig, coordinators: Arc<Coordinators>, registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        metrics.register(registry);
        let superseded = CancellationToken::new();
        Self { config, coordinators, metrics, warm: Mutex::default(), life: Life::new(), superseded }
    }

    /// Who the runner is.
    pub(crate) fn id(&self) -> &RunnerId {
        &self.config.runner
    }

    /// Registers before the runner begins: waits until a coordinator answers.
    ///
    /// # Errors
    /// What no waiting mends: another secret, another version, a refusal.
    pub async fn join(&self) -> Result<Registered, LinkError> {
        let (held, homes) = leftovers(&self.config.data);
        let mut pause = RETRY.0;
        loop {
            match self.register(held.clone(), homes.clone()).await {
                Ok((registered, begun)) => {
                    self.life.registered(begun);
                    return Ok(registered);
                }
                Err(error @ (LinkError::Unreachable { .. } | LinkError::Broken { .. })) => {
                    tracing::warn!(%error, "no coordinator answers: trying again");
                }
                Err(error) => return Err(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Until when the runner may serve if nobody answers it any more.
    pub fn serves_until(&self) -> Instant {
        self.life.serves_until()
    }

    /// Registers; gives what a coordinator answered, and when it was begun to ask.
    async fn register(&self, held: Vec<Held>, homes: Vec<SessionId>) -> Result<(Registered, Duration), LinkError> {
        let MembershipConfig { runner, address, capacity, pool, node, .. } = self.config.clone();
        let register = Register {
            runner,
            address,
            pool,
            node,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            capacity,
            held,
            homes,
        };
        let begun = self.life.now();
        let asked = self.coordinators.ask_each(path::REGISTER, (CALL, APART), &register, |_: &Registered| true);
        let registered = asked.await?;
        self.metrics.registrations.inc();
        self.metrics.answered.set(1);
        tracing::info!(runner = %self.config.runner.name, "registered");
        Ok((registered, begun))
    }

    /// Says that the runner lives, until `stop`, and freezes it while nobody answers.
    pub async fn keep(&self, runner: &LocalRunner, stop: &CancellationToken) {
        tokio::select! {
            () = self.say(runner, stop) => {}
            () = self.life.watch(runner) => {}
        }
    }

    /// Says that the runner lives, until `stop`. A connection that ends is news: it asks at once.
    async fn say(&self, runner: &LocalRunner, stop: &CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            let begun = Instant::now();
            match self.beat(runner).await {
                Ok(()) => {
                    self.metrics.answered.set(1);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        // However long the answer took: by the time of the next one it is to be heard again.
                        () = sleep_until((begun + HEARTBEAT).into()) => {}
                        () = self.coordinators.disconnected() => {}
                        () = self.coordinators.register_again.notified() => {}
                    }
                    pause = Duration::ZERO;
                }
                // Not known any more, and not taken again either.
                Err(error) if matches!(error.status(), Some(UNKNOWN_RUNNER | SUPERSEDED)) => {
                    tracing::info!("another process serves under this runner's name now");
                    self.life.learn(runner, News::Superseded);
                    self.superseded.cancel();
                    return;
                }
                Err(error) => {
                    self.metrics.answered.set(0);
                    self.metrics.unanswered.inc();
                    tracing::warn!(%error, "no coordinator answers: running turns go on, their entries wait");
                    pause = (pause * 2).clamp(RETRY.0, RETRY.1);
                }
            }
        }
    }

    /// Completes when another life of the runner is registered: this one serves nobody any more.
    pub async fn superseded(&self) {
        self.superseded.cancelled().await;
    }

    /// Whether another life of the runner is registered.
    pub fn is_superseded(&self) -> bool {
        self.superseded.is_cancelled()
    }

    /// Announces that the process is started anew, so that nobody calls the runner lost meanwhile.
    pub async fn announce_restart(&self, runner: &LocalRunner) {
        let begun = self.life.now();
        match timeout(LEAVE, self.coordinators.exchange::<()>(path::RESTARTING, CALL, &())).await {
            Ok(Ok(())) => {
                self.life.learn(runner, News::Announced { begun });
                tracing::info!("announced a restart");
            }
            Ok(Err(error)) => tracing::warn!(%error, "a restart could not be announced"),
            Err(_) => tracing::warn!("a restart could not be announced in time"),
        }
    }

    async fn beat(&self, runner: &LocalRunner) -> Result<(), LinkError> {
        let warm_revision = self.warm.lock().unwrap_or_else(PoisonError::into_inner).revision;
        let beat = Heartbeat { load: runner.load(), warm_revision };
        // One that cannot write keeps the runner going, and nothing more: the others are asked, too.
        let ask = async || {
            let begun = self.life.now();
            let heard = |heard: &Heard| {
                self.life.learn(runner, News::Heard { begun, written: heard.written });
                heard.written
            };
            self.coordinators.ask_each(path::HEARTBEAT, (CALL, APART), &beat, heard).await.map(|_| ())
        };
        if !self.life.has_to_register() {
            match ask().await {
                Err(error) if error.status() == Some(UNKNOWN_RUNNER) => self.life.learn(runner, News::Unregistered),
                answer => return answer,
            }
        }
        let (_, homes) = leftovers(&self.config.data);
        let (registered, begun) = self.register(runner.held(), homes).await?;
        // What is served elsewhere is given up before anything goes on.
        self.take(runner, &registered);
        self.life.learn(runner, News::Registered { begun });
        // Only a runner that said that it lives gets new sessions.
        ask().await
    }

    /// Does what a registration's answer says.
    pub fn take(&self, runner: &LocalRunner, registered: &Registered) {
        for session in &registered.disowned {
            self.metrics.disowned.inc();
            runner.disown(*session);
        }
        self.keep_warm(runner, &registered.warm);
    }

    /// Keeps sandboxes of these versions warm, and of no others.
    pub(crate) fn keep_warm(&self, runner: &LocalRunner, list: &WarmList) {
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        let before: HashMap<AgentId, &AgentVersion> =
            warm.versions.iter().map(|version| (version.agent, version)).collect();
        for version in &list.versions {
            if before.get(&version.agent).is_none_or(|before| before.number != version.number) {
                runner.prepare(version.clone());
            }
        }
        for gone in before.values().filter(|before| list.versions.iter().all(|version| version.agent != before.agent)) {
            runner.forget(gone);
        }
        *warm = list.clone();
    }

    /// Leaves the fleet: its sessions are asleep by now.
    pub async fn leave(&self) {
        let left = timeout(LEAVE, self.coordinators.exchange::<()>(path::DEREGISTER, CALL, &())).await;
        match left {
            Ok(Ok(())) => tracing::info!("deregistered"),
            Ok(Err(error)) => tracing::warn!(%error, "the runner could not deregister: it will be called lost"),
            Err(_) => tracing::warn!("the runner could not deregister in time: it will be called lost"),
        }
    }
}
