//! The pool: places for sandboxes, who gets the next one, and the warm ones that wait for sessions.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ash_core::{
    Sequence,
    agent::AgentVersion,
    ports::{Load, RunnerError},
    sandbox::SandboxState,
    session::PausedReason,
};
use ash_sandbox::measure_disk;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use crate::{
    hub::Hub,
    kernel,
    lifecycle::{For, rest, save_and_close, start},
    limits::{EVICTION, MEASURED_GROWTH_BYTES, ROOM_RETRY, SWEEP_INTERVAL, WARM_RETRY, WARM_TRIES},
    sandbox::{EndReason, Sandbox},
    shared::{Shared, WarmTarget},
};

/// What a session starts from.
pub(crate) enum Room {
    /// A place for a sandbox that is to be started.
    Place(OwnedSemaphorePermit),
    /// A warm sandbox that was claimed for it.
    Warm(Claim),
}

/// A claim on a warm sandbox; taken back when it is dropped.
pub(crate) struct Claim {
    shared: Arc<Shared>,
    sandbox: Option<Arc<Sandbox>>,
}

impl Claim {
    /// The sandbox, which is the session's from now on.
    pub(crate) fn keep(mut self) -> Option<Arc<Sandbox>> {
        self.sandbox.take()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            sandbox.give_back();
            offer(&self.shared);
        }
    }
}

/// Counts a message that waits for a place, for as long as it does.
struct Waiting<'a> {
    shared: &'a Shared,
    /// The version of which it would take a warm sandbox.
    wants: Option<&'a AgentVersion>,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, wants: Option<&'a AgentVersion>) -> Self {
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        shared.metrics.messages_waiting.inc();
        if let Some(agent) = wants {
            shared.want(agent, true);
        }
        Self { shared, wants }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        self.shared.metrics.messages_waiting.dec();
        if let Some(agent) = self.wants {
            self.shared.want(agent, false);
        }
    }
}

/// Room for a session that has a message: a free place, or one that is freed for it, within the configured wait; or a sandbox that
/// is warm or becomes so meanwhile, where the session is new.
pub(crate) async fn acquire(shared: &Arc<Shared>, hub: &Arc<Hub>, agent: &AgentVersion) -> Result<Room, RunnerError> {
    if let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
        return Ok(Room::Place(place));
    }
    let wants = is_new(hub).then_some(agent);
    let _waiting = Waiting::new(shared, wants);
    let most = shared.config.capacity_wait;
    let acquired = timeout(most, async {
        let place = Arc::clone(&shared.places).acquire_owned();
        tokio::pin!(place);
        loop {
            let warmed = shared.warmed.notified();
            tokio::pin!(warmed);
            warmed.as_mut().enable();
            if let Some(sandbox) = wants.and_then(|agent| claim_warm(shared, agent, hub)) {
                return Ok(Room::Warm(Claim { shared: Arc::clone(shared), sandbox: Some(sandbox) }));
            }
            make_room(shared);
            // What becomes idle otherwise than by the end of a turn is found by looking again.
            tokio::select! {
                place = &mut place => return place.map(Room::Place),
                () = warmed => {}
                () = sleep(ROOM_RETRY) => {}
            }
        }
    });
    match acquired.await {
        Ok(Ok(room)) => Ok(room),
        Ok(Err(_)) => Err(RunnerError::ShuttingDown),
        Err(_) => {
            shared.metrics.capacity_refusals.inc();
            Err(RunnerError::NoCapacity { waited_seconds: most.as_secs() })
        }
    }
}

/// Whether a session never had a sandbox: only such a one can take over a warm one, whose folder is not its own.
pub(crate) fn is_new(hub: &Hub) -> bool {
    hub.session().last == Sequence::START
}

/// Ends the sandbox that is missed least, if there is one: warm ones first, then those that wait, least recently used first.
/// No more at a time than there are messages that wait.
fn make_room(shared: &Arc<Shared>) {
    if shared.evicting.load(Ordering::SeqCst) >= shared.waiting.load(Ordering::SeqCst) {
        return;
    }
    let mut candidates: Vec<(u8, Instant, Arc<Sandbox>)> = shared
        .sandboxes()
        .into_iter()
        .filter_map(|sandbox| {
            let state = sandbox.state();
            // A warm one that a waiting message can use is claimed, not ended.
            let is_claimed_next = state == SandboxState::Warm && shared.is_wanted(&sandbox.agent);
            let rank = state.eviction_rank().filter(|_| !is_claimed_next)?;
            Some((rank, sandbox.last_used(), sandbox))
        })
        .collect();
    candidates.sort_by_key(|(rank, last_used, _)| (*rank, *last_used));
    for (_, _, sandbox) in candidates {
        if put_to_sleep(shared, &sandbox, PausedReason::Evicted) {
            shared.metrics.evictions.inc();
            tracing::debug!(sandbox = %sandbox.id, "evicted to make room");
            return;
        }
    }
}

/// Begins to end a sandbox without a running turn; false when it has one or is ending already.
fn put_to_sleep(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, reason: PausedReason) -> bool {
    if sandbox.state() == SandboxState::Deleting {
        return false;
    }
    let reason = EndReason::Asleep(reason);
    let ends = match sandbox.hub() {
        Some(hub) => hub.begin_leaving_idle(sandbox),
        None => sandbox.announce_end_if_unclaimed(reason.clone()),
    };
    if ends {
        let (shared, sandbox) = (Arc::clone(shared), Arc::clone(sandbox));
        shared.evicting.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            let work = async {
                match sandbox.hub() {
                    // A pod keeps its session's files; a place that is given back would lose them.
                    Some(hub) if shared.backend.pods().is_some() => rest(&shared, &sandbox, &hub, reason).await,
                    _ => save_and_close(&shared, &sandbox, reason).await,
                }
            };
            tokio::pin!(work);
            // One that takes long, for a snapshot, does not keep the next one from being begun.
            let is_done = timeout(EVICTION, &mut work).await.is_ok();
            shared.evicting.fetch_sub(1, Ordering::SeqCst);
            if !is_done {
                shared.metrics.evictions_slow.inc();
                work.await;
            }
        });
    }
    ends
}

/// A sandbox is warm: a message that waits may claim it, or needs its place more than the pool does.
fn offer(shared: &Arc<Shared>) {
    shared.warmed.notify_waiters();
    turn_ended(shared);
}

/// A turn ended: if messages wait for a place, its sandbox may have to make room.
pub(crate) fn turn_ended(shared: &Arc<Shared>) {
    if shared.waiting.load(Ordering::SeqCst) > 0 {
        make_room(shared);
    }
}

/// A place is free again: messages that wait take it by themselves; without any, warm sandboxes may.
pub(crate) fn freed(shared: &Arc<Shared>) {
    let versions: Vec<AgentVersion> = shared.warm_versions().values().map(|target| target.agent.clone()).collect();
    for version in versions {
        refill(shared, &version);
    }
}

/// Claims a warm sandbox of a version for a session. The caller refills the pool when the session has it: warming another one
/// takes a processor for a second.
pub(crate) fn claim_warm(shared: &Arc<Shared>, agent: &AgentVersion, hub: &Arc<Hub>) -> Option<Arc<Sandbox>> {
    shared
        .sandboxes()
        .into_iter()
        .filter(|sandbox| same_version(&sandbox.agent, agent))
        .find(|sandbox| sandbox.claim(hub, false))
}

fn same_version(one: &AgentVersion, other: &AgentVersion) -> bool {
    one.agent == other.agent && one.number == other.number
}

/// Keeps sandboxes of this version warm from now on; warm ones of other versions of the agent are ended.
pub(crate) fn prepare(shared: &Arc<Shared>, agent: &AgentVersion) {
    // Which pods are there is the operator's.
    if shared.backend.pods().is_some() {
        return;
    }
    shared.warm_versions().insert(agent.agent, WarmTarget { agent: agent.clone(), filling: false });
    end_warm(shared, |other| other.agent == agent.agent && other.number != agent.number);
    refill(shared, agent);
}

/// Keeps no sandbox of this agent warm any longer.
pub(crate) fn forget(shared: &Arc<Shared>, agent: &AgentVersion) {
    shared.warm_versions().remove(&agent.agent);
    end_warm(shared, |other| other.agent == agent.agent);
}

fn end_warm(shared: &Arc<Shared>, is_meant: impl Fn(&AgentVersion) -> bool) {
    for sandbox in shared.sandboxes() {
        if sandbox.state() == SandboxState::Warm && is_meant(&sandbox.agent) {
            put_to_sleep(shared, &sandbox, PausedReason::Evicted);
        }
    }
}

/// Starts warm sandboxes of a version until there are enough, if nobody does already.
pub(crate) fn refill(shared: &Arc<Shared>, agent: &AgentVersion) {
    let mut targets = shared.warm_versions();
    let Some(target) = targets.get_mut(&agent.agent).filter(|target| same_version(&target.agent, agent)) else {
        return;
    };
    if !target.filling && !shared.closing.is_cancelled() {
        target.filling = true;
        drop(targets);
        tokio::spawn(fill(Arc::clone(shared), agent.clone()));
    }
}

async fn fill(shared: Arc<Shared>, agent: AgentVersion) {
    let mut failures = 0;
    loop {
        let Some(place) = place_for_warm(&shared, &agent) else {
            set_filling(&shared, &agent, false);
            // Whoever asked for more since that look found somebody at it: look once more.
            match place_for_warm(&shared, &agent) {
                Some(_) if set_filling(&shared, &agent, true) => continue,
                _ => return,
            }
        };
        let start = start(&shared, &agent, place, For::Pool);
        let Some(started) = shared.starts.in_turn(start).await else { break };
        match started {
            Ok(sandbox) => {
                failures = 0;
                sandbox.set_warm();
                offer(&shared);
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(agent = %agent.agent, version = agent.number, %error, "a sandbox could not be warmed");
                if failures >= WARM_TRIES {
                    break;
                }
                sleep(WARM_RETRY * failures).await;
            }
        }
    }
    set_filling(&shared, &agent, false);
}

/// Says that somebody fills the pool of a version, or nobody any more; false when that is said already, or nobody wants it full.
fn set_filling(shared: &Arc<Shared>, agent: &AgentVersion, filling: bool) -> bool {
    let mut targets = shared.warm_versions();
    let target = targets.get_mut(&agent.agent).filter(|target| same_version(&target.agent, agent));
    target.is_some_and(|target| std::mem::replace(&mut target.filling, filling) != filling)
}

/// A place for one more warm sandbox, where one is wanted and free. Warm sandboxes never make others leave.
fn place_for_warm(shared: &Arc<Shared>, agent: &AgentVersion) -> Option<OwnedSemaphorePermit> {
    if shared.closing.is_cancelled() || shared.waiting.load(Ordering::SeqCst) > 0 {
        return None;
    }
    shared.warm_versions().get(&agent.agent).filter(|target| same_version(&target.agent, agent))?;
    let unclaimed: Vec<_> = shared
        .sandboxes()
        .into_iter()
        .filter(|sandbox| matches!(sandbox.state(), SandboxState::Warm | SandboxState::Warming))
        .collect();
    let of_version = unclaimed.iter().filter(|sandbox| same_version(&sandbox.agent, agent)).count();
    let most = shared.config.max_sandboxes.div_ceil(2);
    if of_version >= shared.config.warm.min(most) || unclaimed.len() >= most.max(shared.config.warm) {
        return None;
    }
    Arc::clone(&shared.places).try_acquire_owned().ok()
}

/// Looks after sandboxes for as long as the server runs: puts idle sessions to sleep, ends what is over its disk quota.
///
/// Sandboxes without a running turn are measured only when the disk has filled up meanwhile: a program that a turn left behind
/// may write, but measuring a thousand idle workspaces every time would cost more than everything else that they do.
pub(crate) async fn sweep(shared: Arc<Shared>) {
    let growth = MEASURED_GROWTH_BYTES.min(shared.config.limits.workspace_bytes / 2);
    let (mut least, mut kept) = (used_bytes(&shared), shared.snapshots.bytes_kept_here());
    loop {
        tokio::select! {
            () = sleep(SWEEP_INTERVAL) => {}
            () = shared.closing.cancelled() => return,
        }
        shared.metrics.sweeps.inc();
        shared.config.model_keys.keep_only(|session| shared.is_busy(session));
        let used = used_bytes(&shared);
        // Snapshots are no growth of any sandbox.
        let kept_now = shared.snapshots.bytes_kept_here();
        least = least.saturating_add(kept_now - std::mem::replace(&mut kept, kept_now));
        let grown = used.saturating_sub(least) >= growth;
        least = if grown { used } else { least.min(used) };
        for sandbox in shared.sandboxes() {
            if sandbox.state() == SandboxState::Running || sandbox.last_used().elapsed() < 2 * SWEEP_INTERVAL {
                kernel::count(&shared, &sandbox).await;
            }
            match sandbox.state() {
                SandboxState::Waiting if sandbox.last_used().elapsed() >= idle_timeout(&shared, &sandbox) => {
                    put_to_sleep(&shared, &sandbox, PausedReason::Idle);
                }
                SandboxState::Running => enforce_quota(&shared, &sandbox).await,
                SandboxState::Waiting | SandboxState::Warm | SandboxState::Warming if grown => {
                    enforce_quota(&shared, &sandbox).await;
                }
                _ => {}
            }
        }
    }
}

/// How long a sandbox may be unused: as its agent has it, else as the runner has it for all.
fn idle_timeout(shared: &Shared, sandbox: &Sandbox) -> Duration {
    sandbox.agent.settings.idle_seconds.map_or(shared.config.idle_timeout, Duration::from_secs)
}

/// Bytes in use on the file system of the sandboxes' folders; 0 where the system does not say.
fn used_bytes(shared: &Shared) -> u64 {
    rustix::fs::statvfs(shared.folders.root())
        .map_or(0, |system| system.f_blocks.saturating_sub(system.f_bfree).saturating_mul(system.f_frsize))
}

async fn enforce_quota(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) {
    let quota = shared.config.limits.workspace_bytes;
    // A pod's volumes have their own, which the kubelet looks after.
    let Some(directory) = sandbox.enclosure.directory() else { return };
    match measure_disk(&directory, quota).await {
        Ok(used) if used.over_bound => {
            shared.metrics.quota_kills.inc();
            tracing::warn!(sandbox = %sandbox.id, quota, "a sandbox is over its disk quota");
            sandbox.end_with(EndReason::Failed(format!(
                "The sandbox's files take more than the quota of {} MiB: remove some, or raise --workspace-quota.",
                quota >> 20
            )));
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(sandbox = %sandbox.id, %error, "a sandbox's files could not be measured"),
    }
}

/// How much there is, for `GET /health`.
pub(crate) fn load(shared: &Shared) -> Load {
    let mut load = Load {
        max_capacity: u32::try_from(shared.config.max_sandboxes).unwrap_or(u32::MAX),
        pre_warm_hits: shared.pre_warm_hits.load(Ordering::Relaxed),
        resume_cold_hits: shared.resume_cold_hits.load(Ordering::Relaxed),
        ..Load::default()
    };
    for sandbox in shared.sandboxes() {
        load.total += 1;
        match sandbox.state() {
            SandboxState::Warming => load.warming += 1,
            SandboxState::Warm => load.warm += 1,
            SandboxState::Running => load.running += 1,
            SandboxState::Waiting => load.waiting += 1,
            SandboxState::Cold => load.cold += 1,
            SandboxState::Deleting => {}
        }
    }
    load
}
