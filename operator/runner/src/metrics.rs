//! The runner's metrics, one for each bound of the limits page that is the runner's.

use ash_protocol::{
    bound::BridgeBound,
    message::{BridgeEvent, Claimed, RefusalCategory, Resolution, RestartReason},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// How a session came to its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimLabels {
    how: ClaimLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ClaimLabel {
    Live,
    Restarted,
    Cold,
}

/// Why Claude Code was started again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RestartLabels {
    reason: &'static str,
}

/// Which bound of a bridge was met.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BoundLabels {
    bound: &'static str,
}

/// Why a bridge refused a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    category: &'static str,
}

/// The runner's counters and gauges, all under `ash_runner_`.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    claims: Family<ClaimLabels, Counter>,
    claude_restarts: Family<RestartLabels, Counter>,
    bridge_bounds: Family<BoundLabels, Counter>,
    requests_refused: Family<RefusalLabels, Counter>,
    pub(crate) sandboxes: Gauge,
    pub(crate) sandbox_starts: Counter,
    pub(crate) sandbox_failures: Counter,
    pub(crate) sandboxes_lost: Counter,
    pub(crate) evictions: Counter,
    pub(crate) evictions_slow: Counter,
    pub(crate) capacity_refusals: Counter,
    /// Messages that wait for a place.
    pub(crate) messages_waiting: Gauge,
    pub(crate) bridge_violations: Counter,
    pub(crate) bridges_stalled: Counter,
    /// Times a bridge was not read from for a while, because it wrote faster than a session may.
    pub(crate) bridges_paused: Counter,
    pub(crate) logs_full: Counter,
    /// Bytes of the budget that all sessions share which are in use.
    pub(crate) unwritten_bytes: Gauge,
    /// Sessions with entries that are not in the log yet.
    pub(crate) unwritten_sessions: Gauge,
    /// Times a bridge was not read from for a while, because the sessions have as much in memory as they may together.
    pub(crate) bridges_held_back: Counter,
    /// Connections that ended because a long line did not come to its end in time.
    pub(crate) lines_late: Counter,
    /// Connections to the port of bridges that had to go because too many had proven nothing.
    pub(crate) bridges_unproven_at_bound: Counter,
    /// ... because their address asked too much.
    pub(crate) bridges_asked_too_much: Counter,
    /// Tokens that were refused without asking the API server.
    pub(crate) reviews_spared: Counter,
    /// Connections to the port of bridges that were refused.
    pub(crate) bridges_refused: Counter,
    /// Bridges of pods that were let in, by what they proved it with.
    pub(crate) bridges_by_token: Counter,
    pub(crate) bridges_by_ticket: Counter,
    /// Times nobody could say whose a token is.
    pub(crate) reviews_failed: Counter,
    /// Sessions that rest on their sandbox, that could not, and that were woken there.
    pub(crate) sessions_rested: Counter,
    pub(crate) rests_failed: Counter,
    pub(crate) sessions_woken: Counter,
    /// Bridges that left a request without an answer.
    pub(crate) bridges_silent: Counter,
    pub(crate) quota_kills: Counter,
    pub(crate) turns: Counter,
    pub(crate) commit_failures: Counter,
    entries: Counter,
    commits: Counter,
    /// Batches that the store took so long for that the next one began beside them.
    pub(crate) commits_slow: Counter,
    /// Appends that were tried again.
    pub(crate) commits_retried: Counter,
    /// Connections of bridges that were greeted: more than one of a sandbox means that it dialled again.
    pub(crate) bridge_connections: Counter,
    /// Requests to a bridge that waited, because as many as there is room for waited to be written.
    pub(crate) requests_waited: Counter,
    permissions_expired: Counter,
    /// Permission requests that the host does not remember, so that nobody can answer them.
    pub(crate) permissions_unanswerable: Counter,
    /// Turns whose repeat is not joined by the host any more.
    pub(crate) turns_forgotten: Counter,
    /// Turns that still ran when the time was up that the server's stop gives them.
    pub(crate) turns_stopped: Counter,
    /// Times that a reader needed what was not in memory any more, or not yet.
    pub(crate) log_reads: Counter,
    /// Sessions that were forgotten with what was counted of their log.
    pub(crate) log_counts_forgotten: Counter,
    /// Sessions that left a sandbox without their last entries.
    pub(crate) tails_withdrawn: Counter,
    /// Sandboxes that did not end by themselves in time.
    pub(crate) sandboxes_killed: Counter,
    pub(crate) kills_failed: Counter,
    pub(crate) exits_unknown: Counter,
    /// Sandboxes of the server before that waited to be looked at.
    pub(crate) recoveries_waited: Counter,
    /// 1 while nobody has answered the runner for so long that it serves nobody; how often that was.
    pub(crate) frozen: Gauge,
    pub(crate) freezes: Counter,
    /// Sandboxes that could not be stopped then, or be continued.
    pub(crate) freezes_failed: Counter,
    pub(crate) sweeps: Counter,
    /// Epochs that the store did not open, because a session has no more.
    pub(crate) epochs_refused: Counter,
    pub(crate) memory_kills: Counter,
    pub(crate) throttled_periods: Counter,
    pub(crate) processes_refused: Counter,
    /// Sandboxes whose temporary folders were full when they were last looked at.
    pub(crate) temporary_full: Gauge,
    /// Processes that had all files open that they may when they were last looked at.
    pub(crate) processes_without_files: Gauge,
    pub(crate) program_logs_cut: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_runner");
        registry.register("claims", "Sandboxes given to sessions, by how", self.claims.clone());
        registry.register("sandboxes", "Sandboxes with a process", self.sandboxes.clone());
        registry.register("sandbox_starts", "Sandboxes started", self.sandbox_starts.clone());
        registry.register("sandbox_failures", "Sandboxes that could not be started", self.sandbox_failures.clone());
        registry.register("sandboxes_lost", "Sandboxes that ended without being told to", self.sandboxes_lost.clone());
        registry.register("evictions", "Sandboxes ended to make room", self.evictions.clone());
        registry.register(
            "evictions_slow",
            "Evictions that took so long that another one was allowed beside them",
            self.evictions_slow.clone(),
        );
        registry.register(
            "messages_waiting",
            "Messages that wait for a sandbox's place",
            self.messages_waiting.clone(),
        );
        registry.register(
            "capacity_refusals",
            "Messages refused for want of a sandbox",
            self.capacity_refusals.clone(),
        );
        registry.register("bridge_violations", "Bridges cut off for what they sent", self.bridge_violations.clone());
        registry.register(
            "bridges_stalled",
            "Times a bridge stopped reading from Claude Code at the bound of unacknowledged bytes",
            self.bridges_stalled.clone(),
        );
        registry.register(
            "bridges_paused",
            "Times a bridge was not read from at the bound of a log's rate",
            self.bridges_paused.clone(),
        );
        registry.register(
            "unwritten_bytes",
            "Bytes of the memory that sessions share for what is not in the log yet",
            self.unwritten_bytes.clone(),
        );
        registry.register(
            "unwritten_sessions",
            "Sessions whose last entries are not in the log yet",
            self.unwritten_sessions.clone(),
        );
        registry.register(
            "bridges_held_back",
            "Times a bridge was not read at the bound of the sessions' memory",
            self.bridges_held_back.clone(),
        );
        registry.register("lines_late", "Connections of bridges cut off in a long line", self.lines_late.clone());
        registry.register("logs_full", "Sandboxes ended because their session's log is full", self.logs_full.clone());
        registry.register(
            "bridges_silent",
            "Sandboxes ended because their bridge did not answer",
            self.bridges_silent.clone(),
        );
        registry.register("quota_kills", "Sandboxes ended over their disk quota", self.quota_kills.clone());
        registry.register("turns", "Turns that ended", self.turns.clone());
        registry.register("commit_failures", "Sessions whose log could not be written", self.commit_failures.clone());
        registry.register("entries_committed", "Entries written to the log", self.entries.clone());
        registry.register("commits", "Appends written to the log", self.commits.clone());
        registry.register("commits_slow", "Batches that the next one did not wait for", self.commits_slow.clone());
        registry.register("commits_retried", "Appends that were tried again", self.commits_retried.clone());
        self.register_bridges(registry);
        self.register_bounds(registry);
        self.register_pods(registry);
    }

    /// What only runners of pods meet.
    fn register_pods(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            (
                "bridges_unproven_at_bound",
                "Connections to the port of bridges that had to go because too many had proven nothing",
                &self.bridges_unproven_at_bound,
            ),
            (
                "bridges_asked_too_much",
                "Connections to the port of bridges that had to go because of their address's questions to others",
                &self.bridges_asked_too_much,
            ),
            ("reviews_spared", "Tokens refused without asking the API server", &self.reviews_spared),
            ("bridges_refused", "Connections to the port of bridges that were refused", &self.bridges_refused),
            ("bridges_by_token", "Bridges of pods let in with their pod's token", &self.bridges_by_token),
            ("bridges_by_ticket", "Bridges of pods that showed a ticket of this node", &self.bridges_by_ticket),
            ("reviews_failed", "Times the API server did not say whose a token is", &self.reviews_failed),
            ("sessions_rested", "Sessions whose Claude Code was stopped in their sandbox", &self.sessions_rested),
            ("rests_failed", "Sessions that left their sandbox because they could not rest there", &self.rests_failed),
            ("sessions_woken", "Sessions that were woken in the sandbox where they rested", &self.sessions_woken),
        ] {
            registry.register(name, help, counter.clone());
        }
    }

    /// What bridges say, and what is said to them. Every label is there from the start, at zero.
    fn register_bridges(&self, registry: &mut Registry) {
        for how in [Claimed::Live, Claimed::Restarted, Claimed::Cold] {
            drop(self.claims.get_or_create(&claim(how)));
        }
        for reason in [RestartReason::Died, RestartReason::Options, RestartReason::Memory] {
            drop(self.claude_restarts.get_or_create(&restart(reason)));
        }
        for bound in BridgeBound::ALL {
            drop(self.bridge_bounds.get_or_create(&BoundLabels { bound: bound.name() }));
        }
        for category in REFUSALS {
            drop(self.requests_refused.get_or_create(&refusal(category)));
        }
        registry.register("claude_restarts", "Starts of Claude Code after the first", self.claude_restarts.clone());
        registry.register("bridge_bounds", "Times that bridges met a bound of theirs", self.bridge_bounds.clone());
        registry.register("requests_refused", "Requests that bridges refused", self.requests_refused.clone());
    }

    fn register_bounds(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("bridge_connections", "Connections of bridges", &self.bridge_connections),
            ("requests_waited", "Requests that waited to be written to a bridge", &self.requests_waited),
            ("permissions_expired", "Permission requests that nobody answered in time", &self.permissions_expired),
            (
                "permissions_unanswerable",
                "Permission requests that are too many or have too long an id",
                &self.permissions_unanswerable,
            ),
            ("turns_forgotten", "Ended turns that were forgotten for newer ones", &self.turns_forgotten),
            ("turns_stopped", "Turns that were interrupted by the server's stop", &self.turns_stopped),
            ("log_reads", "Times that a reader was behind what is in memory", &self.log_reads),
            ("log_counts_forgotten", "Sessions whose log is counted anew when they wake", &self.log_counts_forgotten),
            ("tails_withdrawn", "Sessions whose last entries could not be written", &self.tails_withdrawn),
            ("sandboxes_killed", "Sandboxes that did not end by themselves", &self.sandboxes_killed),
            ("kills_failed", "Sandboxes that could not be killed", &self.kills_failed),
            ("exits_unknown", "Sandboxes that ended without saying how", &self.exits_unknown),
            (
                "recoveries_waited",
                "Sandboxes of the server before that waited to be looked at",
                &self.recoveries_waited,
            ),
            ("freezes", "Times that the runner froze because nobody answered it", &self.freezes),
            ("freezes_failed", "Sandboxes that could not be stopped or continued", &self.freezes_failed),
            ("epochs_refused", "Epochs refused to sessions that have used theirs up", &self.epochs_refused),
            ("sweeps", "Looks for idle sessions and full workspaces", &self.sweeps),
            ("memory_kills", "Processes killed at a sandbox's bound of memory", &self.memory_kills),
            (
                "throttled_periods",
                "Periods of 100 ms in which a sandbox waited for processor time",
                &self.throttled_periods,
            ),
            ("processes_refused", "Processes and threads refused to a sandbox", &self.processes_refused),
            ("program_logs_cut", "Logs of sandboxes that were cut back", &self.program_logs_cut),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register("frozen", "Whether the runner serves nobody, for want of an answer", self.frozen.clone());
        registry.register("temporary_full", "Sandboxes whose temporary folders are full", self.temporary_full.clone());
        registry.register(
            "processes_without_files",
            "Processes of sandboxes that can open no more files",
            self.processes_without_files.clone(),
        );
    }

    pub(crate) fn claimed(&self, how: Claimed) {
        self.claims.get_or_create(&claim(how)).inc();
    }

    /// A bridge met a bound so often. What it says is believed: whoever impersonates one only spoils a count.
    pub(crate) fn bound_met(&self, bound: BridgeBound, times: u32) {
        self.bridge_bounds.get_or_create(&BoundLabels { bound: bound.name() }).inc_by(u64::from(times));
    }

    pub(crate) fn request_refused(&self, category: RefusalCategory) {
        self.requests_refused.get_or_create(&refusal(category)).inc();
    }

    /// Counts what a bridge wrote into the log beside Claude Code's own lines.
    pub(crate) fn bridge_event(&self, event: &BridgeEvent) {
        match event {
            BridgeEvent::PermissionResolved { resolution: Resolution::Expired, .. } => {
                self.permissions_expired.inc();
            }
            BridgeEvent::ClaudeRestarted { reason } => {
                self.claude_restarts.get_or_create(&restart(*reason)).inc();
            }
            _ => {}
        }
    }

    pub(crate) fn committed(&self, entries: usize) {
        self.commits.inc();
        self.entries.inc_by(entries as u64);
    }
}

/// Every category of a refusal.
const REFUSALS: [RefusalCategory; 8] = [
    RefusalCategory::NotReady,
    RefusalCategory::TurnInProgress,
    RefusalCategory::UnknownPermission,
    RefusalCategory::ClaudeFailed,
    RefusalCategory::OptionRefused,
    RefusalCategory::NotFound,
    RefusalCategory::Invalid,
    RefusalCategory::Io,
];

fn claim(how: Claimed) -> ClaimLabels {
    let how = match how {
        Claimed::Live => ClaimLabel::Live,
        Claimed::Restarted => ClaimLabel::Restarted,
        Claimed::Cold => ClaimLabel::Cold,
    };
    ClaimLabels { how }
}

fn restart(reason: RestartReason) -> RestartLabels {
    let reason = match reason {
        RestartReason::Died => "died",
        RestartReason::Options => "options",
        RestartReason::Memory => "memory",
    };
    RestartLabels { reason }
}

fn refusal(category: RefusalCategory) -> RefusalLabels {
    let category = match category {
        RefusalCategory::NotReady => "not_ready",
        RefusalCategory::TurnInProgress => "turn_in_progress",
        RefusalCategory::UnknownPermission => "unknown_permission",
        RefusalCategory::ClaudeFailed => "claude_failed",
        RefusalCategory::OptionRefused => "option_refused",
        RefusalCategory::NotFound => "not_found",
        RefusalCategory::Invalid => "invalid",
        RefusalCategory::Io => "io",
    };
    RefusalLabels { category }
}
