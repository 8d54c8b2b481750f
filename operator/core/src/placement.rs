//! Placement: which runner a session goes to, and which one has it. Pure: time is passed in, nothing is sent.
//!
//! A new place is decided on offers that may be old by then, and taken by compare-and-set on the offer's version: who comes
//! second decides again. So a hundred sessions at once spread evenly, also when many decide at the same time.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::{
    fleet::{Held, RunnerId, RunnerName},
    id::{SandboxId, SessionId},
    ports::Load,
};

/// How often a runner says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a runner may be silent: 3 heartbeats. Then it is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(15);
/// How long a session may be on its way to a sandbox before its place counts as free again: longer than a start takes.
pub const RESERVED_FOR: Duration = Duration::from_secs(120);
/// Sessions that are known to have files on a runner, of all runners. At the bound those that sleep are forgotten: they wake
/// wherever there is room.
pub const MAX_ROUTES: usize = 200_000;
/// The longest pause between two looks at the heartbeats. After a longer one the looker itself was away, and nobody is overdue.
pub const MAX_LOOK_PAUSE: Duration = Duration::from_secs(3);

/// What a runner has to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The runner.
    pub runner: RunnerId,
    /// Sandboxes at the most.
    pub capacity: u32,
    /// Sessions that have one, or are to get one.
    pub used: u32,
    /// Grows with every change of the above.
    pub version: u64,
}

impl Offer {
    /// Places that nobody has; negative where more sessions were sent than there are places.
    pub fn free(&self) -> i64 {
        i64::from(self.capacity) - i64::from(self.used)
    }
}

/// Which places are good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A free one.
    Free,
    /// Any: the runner makes room.
    Any,
}

/// The offer with the most free capacity; of several the one with the fewest sessions, then the first.
pub fn choose(offers: &[Offer], want: Want) -> Option<&Offer> {
    let fits = |offer: &&Offer| want == Want::Any || offer.free() > 0;
    offers.iter().filter(fits).rev().max_by_key(|offer| (offer.free(), std::cmp::Reverse(offer.used)))
}

/// Where a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The runner that has it.
    pub runner: RunnerName,
    /// What it has of it.
    pub stage: Stage,
}

/// What a runner has of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A place, until this time.
    Reserved {
        /// When it counts as free again.
        until: Duration,
    },
    /// A sandbox.
    Live,
    /// Its files.
    Home,
}

/// Somebody else decided in between: look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale;

#[derive(Debug, Clone)]
struct Member {
    incarnation: uuid::Uuid,
    capacity: u32,
    used: u32,
    version: u64,
    heard: Duration,
    /// It said that it lives since it registered: new sessions may go there.
    ready: bool,
    load: Load,
}

/// The runners and their sessions.
#[derive(Debug, Default)]
pub struct Fleet {
    members: BTreeMap<RunnerName, Member>,
    routes: HashMap<SessionId, Route>,
    /// Sessions that had a sandbox when this process started, and whose runner has not come back yet.
    unclaimed: HashMap<SessionId, SandboxId>,
    versions: u64,
    looked: Option<Duration>,
}

impl Fleet {
    /// A fleet of which nothing is known but the sessions that have a sandbox somewhere.
    pub fn new(placed: impl IntoIterator<Item = Held>) -> Self {
        let unclaimed = placed.into_iter().map(|held| (held.session, held.sandbox)).collect();
        Self { unclaimed, ..Self::default() }
    }

    /// Adds a runner, or a new life of one. Sessions of its life before stay its own: it finds their sandboxes again, or
    /// reports them lost. Of what it holds, gives the sessions that are not its own.
    ///
    /// `is_current` says whether the store still has a session on this sandbox.
    pub fn register(
        &mut self,
        runner: &RunnerId,
        capacity: u32,
        held: &[Held],
        homes: &[SessionId],
        now: Duration,
        is_current: impl Fn(&Held) -> bool,
    ) -> Vec<SessionId> {
        let version = self.next_version();
        let before = self.members.get(&runner.name);
        let same_life = before.is_some_and(|member| member.incarnation == runner.incarnation);
        let load = before.filter(|_| same_life).map(|member| member.load).unwrap_or_default();
        let used = before.map_or(0, |member| member.used);
        let incarnation = runner.incarnation;
        let member = Member { incarnation, capacity, used, version, heard: now, ready: same_life, load };
        self.members.insert(runner.name.clone(), member);
        let mut disowned = Vec::new();
        for one in held {
            let route = self.routes.get(&one.session);
            let others = route.is_some_and(|route| route.runner != runner.name && route.stage != Stage::Home);
            if others || !is_current(one) {
                disowned.push(one.session);
            } else {
                self.unclaimed.remove(&one.session);
                self.set(one.session, Some(Route { runner: runner.name.clone(), stage: Stage::Live }));
            }
        }
        for session in homes {
            if !self.routes.contains_key(session) && !self.unclaimed.contains_key(session) {
                self.set(*session, Some(Route { runner: runner.name.clone(), stage: Stage::Home }));
            }
        }
        disowned
    }

    /// Notes that a runner lives: false where it has to register first.
    pub fn heartbeat(&mut self, runner: &RunnerId, load: Load, now: Duration) -> bool {
        let Some(member) = self.member(runner) else { return false };
        member.heard = now;
        member.ready = true;
        member.load = load;
        true
    }

    /// Takes a runner out, and gives the sessions that had a place there: they have none now.
    pub fn remove(&mut self, runner: &RunnerId) -> Vec<SessionId> {
        if self.member(runner).is_none() {
            return Vec::new();
        }
        let had = |route: &Route| route.runner == runner.name && route.stage != Stage::Home;
        let sessions = self.routes.iter().filter(|(_, route)| had(route)).map(|(id, _)| *id).collect();
        self.routes.retain(|_, route| route.runner != runner.name);
        self.members.remove(&runner.name);
        sessions
    }

    /// The runners that were silent for too long, and the sessions that nobody came back for. A looker that was away itself
    /// gives everybody another chance.
    pub fn overdue(&mut self, now: Duration) -> (Vec<RunnerId>, Vec<SessionId>) {
        let away = self.looked.is_some_and(|looked| now.saturating_sub(looked) > MAX_LOOK_PAUSE);
        self.looked = Some(now);
        if away {
            for member in self.members.values_mut() {
                member.heard = now;
            }
        }
        let silent = |member: &Member| now.saturating_sub(member.heard) >= LOST_AFTER;
        let lost = self.members.iter().filter(|(_, member)| silent(member));
        let lost =
            lost.map(|(name, member)| RunnerId { name: name.clone(), incarnation: member.incarnation }).collect();
        let nobodys =
            if now >= LOST_AFTER { self.unclaimed.drain().map(|(session, _)| session).collect() } else { Vec::new() };
        let expired = |route: &Route| matches!(route.stage, Stage::Reserved { until } if until <= now);
        let expired: Vec<_> = self.routes.iter().filter(|(_, route)| expired(route)).map(|(id, _)| *id).collect();
        for session in expired {
            self.left(session);
        }
        (lost, nobodys)
    }

    /// What there is for new sessions.
    pub fn offers(&self) -> Vec<Offer> {
        let ready = self.members.iter().filter(|(_, member)| member.ready);
        ready
            .map(|(name, member)| Offer {
                runner: RunnerId { name: name.clone(), incarnation: member.incarnation },
                capacity: member.capacity,
                used: member.used,
                version: member.version,
            })
            .collect()
    }

    /// Takes the place that an offer promised, if nothing has changed since.
    pub fn reserve(&mut self, session: SessionId, offer: &Offer, now: Duration) -> Result<(), Stale> {
        let taken = self.routes.get(&session).is_some_and(|route| route.stage != Stage::Home);
        let current = self.member(&offer.runner).is_some_and(|member| member.version == offer.version);
        if taken || !current || self.unclaimed.contains_key(&session) {
            return Err(Stale);
        }
        let stage = Stage::Reserved { until: now + RESERVED_FOR };
        self.set(session, Some(Route { runner: offer.runner.name.clone(), stage }));
        Ok(())
    }

    /// Takes a place on the runner that has the session's files, however full it is: false where there is none.
    pub fn reserve_home(&mut self, session: SessionId, now: Duration) -> bool {
        let home = self.routes.get(&session).filter(|route| route.stage == Stage::Home);
        let Some(runner) = home.map(|route| route.runner.clone()) else { return false };
        if !self.members.get(&runner).is_some_and(|member| member.ready) {
            return false;
        }
        self.set(session, Some(Route { runner, stage: Stage::Reserved { until: now + RESERVED_FOR } }));
        true
    }

    /// A session got a sandbox.
    pub fn arrived(&mut self, session: SessionId, runner: &RunnerName) {
        self.unclaimed.remove(&session);
        self.set(session, Some(Route { runner: runner.clone(), stage: Stage::Live }));
    }

    /// A session has no sandbox any more; its files are where they are.
    pub fn left(&mut self, session: SessionId) {
        if let Some(route) = self.routes.get(&session) {
            let runner = route.runner.clone();
            self.set(session, Some(Route { runner, stage: Stage::Home }));
        }
    }

    /// A session is over.
    pub fn forget(&mut self, session: SessionId) {
        self.unclaimed.remove(&session);
        self.set(session, None);
    }

    /// Where a session is.
    pub fn route(&self, session: SessionId) -> Option<&Route> {
        self.routes.get(&session)
    }

    /// Whether a session had a sandbox when this process started and its runner may still come back.
    pub fn is_awaited(&self, session: SessionId) -> bool {
        self.unclaimed.contains_key(&session)
    }

    /// Whether a runner may write a session's log: it lives, and nobody else has the session.
    pub fn may_write(&self, runner: &RunnerId, session: SessionId) -> bool {
        let others = |route: &Route| route.runner != runner.name && route.stage != Stage::Home;
        self.knows(runner) && !self.routes.get(&session).is_some_and(others)
    }

    /// Whether this life of a runner is registered.
    pub fn knows(&self, runner: &RunnerId) -> bool {
        self.members.get(&runner.name).is_some_and(|member| member.incarnation == runner.incarnation)
    }

    /// The life of a runner that is registered now.
    pub fn current(&self, name: &RunnerName) -> Option<RunnerId> {
        let member = self.members.get(name)?;
        Some(RunnerId { name: name.clone(), incarnation: member.incarnation })
    }

    /// What each runner said of itself last.
    pub fn loads(&self) -> impl Iterator<Item = (&RunnerName, Load)> {
        self.members.iter().map(|(name, member)| (name, member.load))
    }

    /// Sessions of a runner that have a sandbox, or are on their way to one.
    pub fn sessions_of<'a>(&'a self, name: &'a RunnerName) -> impl Iterator<Item = SessionId> + 'a {
        let has = move |route: &Route| route.runner == *name && route.stage != Stage::Home;
        self.routes.iter().filter(move |(_, route)| has(route)).map(|(session, _)| *session)
    }

    fn member(&mut self, runner: &RunnerId) -> Option<&mut Member> {
        self.members.get_mut(&runner.name).filter(|member| member.incarnation == runner.incarnation)
    }

    fn next_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    /// Changes a route, and with it what the runners have left.
    fn set(&mut self, session: SessionId, route: Option<Route>) {
        let version = self.next_version();
        let counts = |route: &Option<Route>| {
            route.as_ref().filter(|route| route.stage != Stage::Home).map(|route| route.runner.clone())
        };
        let after = counts(&route);
        let before = match route {
            Some(route) => {
                if self.routes.len() >= MAX_ROUTES && !self.routes.contains_key(&session) {
                    self.routes.retain(|_, route| route.stage != Stage::Home);
                }
                self.routes.insert(session, route)
            }
            None => self.routes.remove(&session),
        };
        let before = counts(&before);
        if before == after {
            return;
        }
        if let Some(member) = before.and_then(|name| self.members.get_mut(&name)) {
            member.used = member.used.saturating_sub(1);
            member.version = version;
        }
        if let Some(member) = after.and_then(|name| self.members.get_mut(&name)) {
            member.used += 1;
            member.version = version;
        }
    }
}

#[cfg(test)]
mod tests;
