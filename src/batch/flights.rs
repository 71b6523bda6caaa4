//! Equal texts of one tenant that are on their way at once: one goes, and the others wait for its vector.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::PgPool;
use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender};

use crate::db;
use crate::db::cache::{self, TextHash};
use crate::domain::Embedding;

use super::batcher::{EmbedFailure, LaneSettings};
use super::item::{Item, fail};

/// A tenant and its text.
pub(super) type Key = (String, TextHash);

/// Texts on their way through one lane, each with those that wait for it.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Vec<Item>>>);

/// What the text that goes holds. However it ends: those that wait get its vector, or go themselves.
pub(super) struct Lead {
    pub key: Key,
    flights: Arc<Flights>,
    lane: WeakUnboundedSender<Item>,
}

impl Flights {
    /// Sends a text on its way, or has it wait for its equal. Gives it back where the lane has stopped.
    pub fn board(self: &Arc<Self>, mut item: Item, lane: &UnboundedSender<Item>) -> Result<(), Item> {
        let key = (item.call.job.tenant.clone(), item.hash);
        match self.on_their_way().entry(key.clone()) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(item);
                return Ok(());
            }
            Entry::Vacant(free) => free.insert(Vec::new()),
        };
        item.lead = Some(Lead { key, flights: Arc::clone(self), lane: lane.downgrade() });
        lane.send(item).map_err(|refused| refused.0)
    }

    fn on_their_way(&self) -> MutexGuard<'_, HashMap<Key, Vec<Item>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lead {
    /// Gives a vector that was paid for, or need not be, to those that wait.
    pub fn land(self, embedding: &Arc<Embedding>) {
        for item in self.take() {
            item.call.open.fetch_sub(1, Ordering::AcqRel);
            item.answer(Ok((Arc::clone(embedding), None)));
        }
    }

    fn take(&self) -> Vec<Item> {
        self.flights.on_their_way().remove(&self.key).unwrap_or_default()
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let Some(lane) = self.lane.upgrade() else { return };
        for item in self.take().into_iter().filter(|item| !item.call.reply.is_closed()) {
            // A lane that has stopped answers nobody.
            self.flights.board(item, &lane).ok();
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
        item.call.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(lead) = item.lead.take() {
            lead.land(&embedding);
        }
        item.answer(Ok((embedding, None)));
    }
    open
}
