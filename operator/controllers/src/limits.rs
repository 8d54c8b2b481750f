//! Every bound, pause and retry of the operator. `docs/limits.md` has them with what happens at each.

use std::time::Duration;

/// A lease that was not renewed for so long is anybody's.
pub const LEASE: Duration = Duration::from_secs(15);
/// A leader renews this often.
pub const RENEW: Duration = Duration::from_secs(4);
/// A leader that could not renew for so long stops acting: well before another may begin.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// One call about the lease may take so long.
pub const LEASE_CALL: Duration = Duration::from_secs(4);
/// Whoever waits for the lease looks this often.
pub const LEASE_LOOK: Duration = Duration::from_secs(2);

/// A lease that an uninstall took, and that still stands after this, is anybody's again: it did not end the operators.
pub const UNINSTALL_LEASE: Duration = Duration::from_secs(300);
/// The longest that an uninstall waits for the pods of a namespace, and for a write that others are in the way of.
pub const UNINSTALL_BOUND: Duration = Duration::from_secs(120);
/// It looks so often whether they are gone.
pub const UNINSTALL_LOOK: Duration = Duration::from_millis(500);
/// A connection to the API server is made within this time.
pub const API_CONNECT: Duration = Duration::from_secs(5);

/// The longest that a finalizer of ours holds a deletion up. After it the sweep clears up what is left.
pub const FINALIZER_BOUND: Duration = Duration::from_secs(30);
/// Sessions that are looked at together, in one namespace.
pub const SESSIONS_AT_ONCE: u16 = 32;
/// Agents that are looked at together, in one namespace.
pub const AGENTS_AT_ONCE: u16 = 8;
/// Steps that one look at an object takes at the most; the next look takes the others.
pub const STEPS: usize = 8;
/// After a failure an object is looked at again after this, and twice as long each time.
pub const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest such pause.
pub const LAST_RETRY: Duration = Duration::from_secs(60);
/// Objects whose pauses are remembered; over it all are forgotten, and begin with the shortest again.
pub const MAX_REMEMBERED: usize = 20_000;
/// Something that nobody announces (a Secret, a ConfigMap) is read again after this.
pub const POLL: Duration = Duration::from_secs(30);
/// A version that was deployed over REST waits so long for the change of its resource; then the resource's own counts.
pub const DEPLOYMENT: Duration = Duration::from_secs(10);
/// An agent's counts are written at most this often.
pub const COUNTS: Duration = Duration::from_secs(10);
/// A session that a REST call made is given its sandbox by the API; the operator waits this long before it does it.
pub const REST_HEAD_START: Duration = Duration::from_secs(2);
/// A session whose pod starts is looked at again after this.
pub const START_LOOK: Duration = Duration::from_secs(2);
/// A sandbox whose runner has had no place for it for so long is made on another node, where there is one with room.
pub const SHUT_OUT: Duration = Duration::from_secs(30);
/// Sandboxes that are tried for a session before it is in error.
pub const ATTEMPTS: u32 = 5;
/// The first message is tried again after this.
pub const MESSAGE_RETRY: Duration = Duration::from_secs(2);

/// Rows of sandboxes are read at most this often while something happens.
pub const POOL_LOOK: Duration = Duration::from_millis(250);
/// Rows of sandboxes are read this often while nothing happens.
pub const POOL_IDLE: Duration = Duration::from_secs(10);
/// How long after the last event of a namespace something happens there.
pub const POOL_BUSY: Duration = Duration::from_secs(5);
/// Pods that one look creates at the most, in one namespace.
pub const PODS_AT_ONCE: usize = 32;
/// Pods of one agent that start together for its warm pool.
pub const WARM_STARTING: usize = 10;
/// Warm sandboxes that are to replace claimed ones are started this long after the last claim, while enough are left...
pub const REFILL_AFTER: Duration = Duration::from_secs(1);
/// ... that is this part of them: one of so many.
pub const REFILL_PART: usize = 4;
/// Claims that are remembered of an agent: more do not make a pool larger, its greatest size is 1,000.
pub const MAX_CLAIMS: usize = 1000;
/// A sandbox that is over belongs to its session for so long: the runner, if it lives, commits what it has and says why.
pub const TELL_AFTER: Duration = Duration::from_secs(20);
/// A pod that did not start within this is replaced.
pub const START_BOUND: Duration = Duration::from_secs(600);
/// A pod of which its node has started nothing for so long: its Events are asked why.
pub const EVENTS_AFTER: Duration = Duration::from_secs(5);
/// They are asked again after this.
pub const EVENTS_AGAIN: Duration = Duration::from_secs(10);
/// Pods whose Events one look asks for at the most; the next look takes the others.
pub const EVENTS_AT_ONCE: usize = 4;
/// Events of one pod that are read at the most: the API server keeps an hour of them, and counts repeats up.
pub const EVENTS_PAGE: u32 = 100;
/// The sweep for what belongs to nothing.
pub const SWEEP: Duration = Duration::from_secs(60);
/// Rows of sessions are compared with the resources in every so manieth sweep.
pub const SESSION_SWEEPS: u32 = 5;
/// A row younger than this is never an orphan.
pub const ORPHAN_AGE: Duration = Duration::from_secs(60);
/// Sessions on one page of the sweep.
pub const SWEEP_PAGE: u32 = 500;

/// Changed sessions are asked for this often.
pub const CHANGES: Duration = Duration::from_secs(1);
/// Changes are asked for from so long before the last one that was seen: clocks differ.
pub const CHANGES_OVERLAP: Duration = Duration::from_secs(5);
/// Changed sessions that one look takes; the next one takes the others.
pub const CHANGES_AT_ONCE: u32 = 1000;
/// The Service of a node pool is looked up again after this.
pub const SERVICE_AGE: Duration = Duration::from_secs(30);
/// The policies of a namespace are applied again after this.
pub const POLICIES: Duration = Duration::from_secs(600);
/// Names of sessions that the API remembers by their ids; over it all are forgotten.
pub const MAX_NAMES: usize = 50_000;
/// The API server answers a call within this time, or the call has failed. Watches wait longer.
pub const API_CALL: Duration = Duration::from_secs(10);
