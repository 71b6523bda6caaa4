//! Equal texts of one tenant that are on their way at once: one goes, and the others wait for its vector.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender};

use crate::db::cache::TextHash;
use crate::domain::Embedding;

use super::batcher::hash;
use super::item::Item;

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
        let key = (item.call.job.tenant.clone(), hash(&item.text));
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
    pub fn land(self, embedding: &Embedding) {
        for item in self.take() {
            item.call.open.fetch_sub(1, Ordering::AcqRel);
            item.answer(Ok((embedding.clone(), None)));
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
