//! What a model does with its requests, and the little that it remembers between them.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::conversation::ModelRequest;
use super::reply::Reply;

/// `xN` directives whose strikes are remembered; the oldest are forgotten and strike anew.
const MAX_REMEMBERED_STRIKES: usize = 10_000;

/// Decides a reply from a request.
pub(super) type Answer = Arc<dyn Fn(&ModelRequest) -> Reply + Send + Sync>;

/// What the model does with a request of a turn.
#[derive(Clone, Default)]
pub struct Script {
    pub(super) queue: VecDeque<Reply>,
    pub(super) answer: Option<Answer>,
    pub(super) key: Option<String>,
    pub(super) keep: Option<usize>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Script").field("queue", &self.queue).field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl Script {
    /// Follows the directives in the user's texts.
    pub fn directives() -> Self {
        Self::default()
    }

    /// Gives these replies, one per request of a turn, whatever it says; then follows directives.
    pub fn queue(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self { queue: replies.into_iter().collect(), ..Self::default() }
    }

    /// Asks `answer` for each reply (after a queue, where there is one too). It runs on the server's thread: keep it short.
    pub fn answer(answer: impl Fn(&ModelRequest) -> Reply + Send + Sync + 'static) -> Self {
        Self { answer: Some(Arc::new(answer)), ..Self::default() }
    }

    /// Answers 401 to every request that does not carry this key (`x-api-key`, or as bearer token).
    #[must_use]
    pub fn expect_api_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Keeps the last `requests` requests instead of 10,000.
    #[must_use]
    pub fn keep(mut self, requests: usize) -> Self {
        self.keep = Some(requests);
        self
    }
}

/// Identifies a directive of a turn: who asked, which text, and where in it.
type StrikeKey = u64;

/// How often directives with `xN` have struck.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    counts: HashMap<StrikeKey, u32>,
    order: VecDeque<StrikeKey>,
}

impl Strikes {
    /// Whether directive `index` of this turn still fails, and counts it. Without `times` it always does.
    pub(super) fn strike(
        &mut self,
        request: &ModelRequest,
        conversation: &str,
        index: usize,
        times: Option<u32>,
    ) -> bool {
        let Some(times) = times else { return true };
        let mut hasher = DefaultHasher::new();
        (conversation, request.user_texts.len(), request.last_text(), index).hash(&mut hasher);
        let key = hasher.finish();
        if !self.counts.contains_key(&key) {
            self.order.push_back(key);
            if self.order.len() > MAX_REMEMBERED_STRIKES
                && let Some(oldest) = self.order.pop_front()
            {
                self.counts.remove(&oldest);
            }
        }
        let count = self.counts.entry(key).or_default();
        let strikes_now = *count < times;
        *count += u32::from(strikes_now);
        strikes_now
    }
}
