//! Equal texts of one tenant that are on their way at once: one goes, and the others wait for its vector, or come just after it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender};

use crate::db;
use crate::db::cache::{self, TextHash};
use crate::domain::Embedding;

use super::batcher::{EmbedFailure, LaneSettings};
use super::item::{Item, fail};

/// A tenant and its text.
pub(super) type Key = (String, TextHash);

/// How long a vector is kept here at the most, and how many: by then its job has written it, and the cache has it.
const KEPT: Duration = Duration::from_secs(10);
const MOST_KEPT: usize = 1_000;

/// Texts on their way through one lane, each with those that wait for it, and vectors that have landed just now.
#[derive(Default)]
pub(super) struct Flights(Mutex<State>);

#[derive(Default)]
struct State {
    flights: HashMap<Key, Flight>,
    /// Oldest first.
    landed: VecDeque<Key>,
}

enum Flight {
    OnItsWay(Vec<Item>),
    Landed(Arc<Embedding>, Instant),
}

/// What the text that goes holds. However it ends: those that wait get its vector, or go themselves.
pub(super) struct Lead {
    pub key: Key,
    flights: Arc<Flights>,
    lane: WeakUnboundedSender<Item>,
}

impl Flights {
    /// Sends a text on its way, or has it wait for its equal. False where the lane has stopped.
    pub fn board(self: &Arc<Self>, mut item: Item, lane: &UnboundedSender<Item>) -> bool {
        let key = (item.call.job.tenant.clone(), item.hash);
        let mut state = self.state();
        match state.flights.get_mut(&key) {
            Some(Flight::OnItsWay(waiting)) => {
                waiting.push(item);
                return true;
            }
            Some(Flight::Landed(embedding, at)) if at.elapsed() < KEPT => {
                let embedding = Arc::clone(embedding);
                drop(state);
                settle(item, &embedding);
                return true;
            }
            _ => state.flights.insert(key.clone(), Flight::OnItsWay(Vec::new())),
        };
        drop(state);
        item.lead = Some(Lead { key, flights: Arc::clone(self), lane: lane.downgrade() });
        lane.send(item).is_ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that wait; the text is not on its way any more.
    fn take(&self, key: &Key) -> Vec<Item> {
        let mut state = self.state();
        match state.flights.get_mut(key) {
            Some(Flight::OnItsWay(waiting)) => {
                let waiting = std::mem::take(waiting);
                state.flights.remove(key);
                waiting
            }
            _ => Vec::new(),
        }
    }

    /// Those that wait for a text that has landed; whoever comes from now on finds its vector.
    fn land(&self, key: &Key, embedding: &Arc<Embedding>) -> Vec<Item> {
        let mut state = self.state();
        let landed = Flight::Landed(Arc::clone(embedding), Instant::now());
        let before = state.flights.insert(key.clone(), landed);
        state.landed.push_back(key.clone());
        if state.landed.len() > MOST_KEPT
            && let Some(oldest) = state.landed.pop_front()
            && matches!(state.flights.get(&oldest), Some(Flight::Landed(..)))
        {
            state.flights.remove(&oldest);
        }
        if let Some(Flight::OnItsWay(waiting)) = before { waiting } else { Vec::new() }
    }
}

impl Lead {
    /// Gives a vector that was paid for, or need not be, to those that wait, and to those that come before the cache has it.
    pub fn land(self, embedding: &Arc<Embedding>) {
        for item in self.flights.land(&self.key, embedding) {
            settle(item, embedding);
        }
    }
}

/// Answers a text whose vector is there for an equal one.
fn settle(item: Item, embedding: &Arc<Embedding>) {
    item.call.open.fetch_sub(1, Ordering::AcqRel);
    item.answer(Ok((Arc::clone(embedding), None)));
}

impl Drop for Lead {
    fn drop(&mut self) {
        let Some(lane) = self.lane.upgrade() else { return };
        for item in self.flights.take(&self.key).into_iter().filter(|item| !item.call.reply.is_closed()) {
            // A lane that has stopped answers nobody.
            self.flights.board(item, &lane);
        }
    }
}

/// Answers texts whose vector is there for an equal one; the others are to be paid.
pub(super) async fn reuse(pool: &PgPool, settings: &LaneSettings, batch: Vec<Item>) -> Vec<Item> {
    let keys: Vec<&Key> = batch.iter().filter_map(|item| item.lead.as_ref()).map(|lead| &lead.key).collect();
    if keys.is_empty() {
        return batch;
    }
    let name = settings.cache_name();
    let known = match db::patiently(|| cache::reusable(pool, &name, &keys)).await {
        Ok(known) => known,
        Err(error) => {
            fail(batch, &EmbedFailure::Database(db::describe(&error)));
            return Vec::new();
        }
    };
    let mut open = Vec::with_capacity(batch.len());
    for mut item in batch {
        let fits = |embedding: &&Embedding| embedding.vector.len() == settings.dimensions;
        let found = item.lead.as_ref().and_then(|lead| known.get(&lead.key)).filter(fits);
        let Some(embedding) = found.map(|embedding| Arc::new(embedding.clone())) else {
            open.push(item);
            continue;
        };
        if let Some(lead) = item.lead.take() {
            lead.land(&embedding);
        }
        settle(item, &embedding);
    }
    open
}
