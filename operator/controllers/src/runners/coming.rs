//! Sandboxes that are on their way to a runner: each takes a place there before the runner counts it. Pure.

use std::{collections::HashMap, time::Duration};

use ash_core::id::SandboxId;
use tokio::time::Instant;

/// How long a pod counts for the node that it was meant for, where the scheduler has not said yet which node it gets.
const MEANT: Duration = Duration::from_secs(5);
/// How long one counts that its runner has met: until what is known of the runner is newer than that.
const MET: Duration = Duration::from_secs(2);
/// Pods that are remembered; further ones are spread as if they were the first.
const MAX_COMING: usize = 10_000;

/// Where sandboxes go that no runner has met.
#[derive(Debug, Default)]
pub(super) struct Coming(HashMap<SandboxId, Way>);

/// Where one goes.
#[derive(Debug)]
struct Way {
    namespace: String,
    node: String,
    /// It is not certain: the scheduler may send it elsewhere.
    meant_since: Option<Instant>,
    /// It was not among those that wait for a runner.
    met_since: Option<Instant>,
}

impl Way {
    fn counts(&self, now: Instant) -> bool {
        let is_recent = |since: Option<Instant>, bound| since.is_none_or(|since| now.duration_since(since) < bound);
        is_recent(self.meant_since, MEANT) && is_recent(self.met_since, MET)
    }
}

impl Coming {
    /// How many go to a node.
    pub(super) fn to(&self, node: &str, now: Instant) -> u32 {
        let count = self.0.values().filter(|way| way.node == node && way.counts(now)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The node that a sandbox goes to.
    pub(super) fn node_of(&self, id: SandboxId, now: Instant) -> Option<&str> {
        self.0.get(&id).filter(|way| way.counts(now)).map(|way| way.node.as_str())
    }

    /// A sandbox is to go to this node.
    pub(super) fn mean(&mut self, id: SandboxId, namespace: &str, node: &str, now: Instant) {
        self.0.retain(|_, way| way.counts(now));
        let way =
            Way { namespace: namespace.to_owned(), node: node.to_owned(), meant_since: Some(now), met_since: None };
        self.add(id, way);
    }

    /// The sandboxes of a namespace that wait for a runner, with the node that each has, if it has one.
    pub(super) fn see(&mut self, namespace: &str, waiting: &HashMap<SandboxId, Option<String>>, now: Instant) {
        for (id, way) in &mut self.0 {
            match waiting.get(id) {
                // Its pod is still to be made, or its node to be chosen.
                Some(None) => (way.meant_since, way.met_since) = (Some(now), None),
                None if way.namespace == namespace => _ = way.met_since.get_or_insert(now),
                _ => {}
            }
        }
        for (id, node) in waiting.iter().filter_map(|(id, node)| Some((id, node.clone()?))) {
            self.add(*id, Way { namespace: namespace.to_owned(), node, meant_since: None, met_since: None });
        }
        self.0.retain(|_, way| way.counts(now));
    }

    fn add(&mut self, id: SandboxId, way: Way) {
        if self.0.len() < MAX_COMING || self.0.contains_key(&id) {
            self.0.insert(id, way);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use ash_core::id::SandboxId;
    use tokio::time::Instant;
    use uuid::Uuid;

    use super::{Coming, MEANT, MET};

    const ID: SandboxId = SandboxId(Uuid::from_u128(1));

    #[test]
    fn a_sandbox_counts_until_its_runner_has_met_it_however_long_that_takes() {
        let (mut coming, now) = (Coming::default(), Instant::now());
        coming.mean(ID, "team", "one", now);
        assert_eq!((coming.to("one", now), coming.node_of(ID, now)), (1, Some("one")));
        // Many others are made before it.
        let now = now + MEANT / 2;
        coming.see("team", &HashMap::from([(ID, None)]), now);
        assert_eq!(coming.to("one", now + MEANT / 2), 1);
        // The scheduler has another opinion, and the image is large.
        coming.see("team", &HashMap::from([(ID, Some("two".to_owned()))]), now);
        coming.see("other", &HashMap::new(), now);
        let much_later = now + MEANT * 60;
        assert_eq!((coming.to("one", much_later), coming.to("two", much_later)), (0, 1));
        coming.see("team", &HashMap::new(), much_later);
        assert_eq!(coming.to("two", much_later), 1, "the runner's own count may be older");
        assert_eq!(coming.to("two", much_later + MET), 0);
        coming.see("team", &HashMap::new(), much_later + MET);
        assert!(coming.0.is_empty());
    }

    #[test]
    fn one_that_gets_no_node_counts_for_a_moment() {
        let (mut coming, now) = (Coming::default(), Instant::now());
        coming.mean(ID, "team", "one", now);
        assert_eq!(coming.to("one", now + MEANT), 0);
        coming.mean(SandboxId(Uuid::from_u128(2)), "team", "one", now + MEANT);
        assert_eq!(coming.0.len(), 1);
    }
}
