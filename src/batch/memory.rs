use crate::config::ChunkSize;
use crate::db::app::Plan;

use super::fair::{FairSlot, FairSlots};
use super::spill;

/// What is weighed, is weighed in these many bytes.
const UNIT: u64 = 1024;
/// A text is in memory so often at once: in its row, as a document, in its chunks. What is on its way to the provider or the database is
/// a part of it, and what cutting needs besides is there for a part of it only while a thread cuts.
const COPIES: u64 = 3;
/// Of a token's weight, with the token.
const WEIGHT_BYTES: u64 = 8;
/// Bytes of a token, for guessing how many chunks a text becomes: fewer than most languages have.
const TOKEN_BYTES: u64 = 3;

/// The bytes that may be in flight, of all pipelines together; tenants take turns. Cheap to clone.
#[derive(Clone)]
pub struct Memory {
    units: FairSlots,
    all: u64,
}

/// A part of it, until this is dropped.
#[derive(Debug, Default)]
pub struct Weight(Option<FairSlot>);

impl Memory {
    pub fn new(bytes: u64) -> Self {
        let all = (bytes / UNIT).max(1);
        Self { units: FairSlots::new(all), all }
    }

    /// Waits until so many bytes may be in flight; more than there is altogether waits until it is alone. Whoever holds a weight
    /// must not wait for another: all would wait for each other.
    pub async fn take(&self, tenant: &str, bytes: u64) -> Weight {
        let units = self.units_of(bytes);
        Weight(Some(self.units.acquire_many(tenant, units, units).await))
    }

    /// The same without waiting, or not at all.
    pub(super) fn take_now(&self, bytes: u64) -> Option<Weight> {
        self.units.acquire_now(self.units_of(bytes)).map(|slot| Weight(Some(slot)))
    }

    /// Makes a weight that of so many bytes: at once, without waiting, or not at all. Where it says no, more has to be taken anew.
    pub fn fit(&self, weight: &mut Weight, bytes: u64) -> bool {
        let (has, wanted) = (weight.units(), self.units_of(bytes));
        if wanted > has {
            let Some(more) = self.units.acquire_now(wanted - has) else { return false };
            match &mut weight.0 {
                Some(slot) => slot.merge(more),
                none => *none = Some(more),
            }
        } else {
            weight.lighten(bytes);
        }
        true
    }

    /// What a text of so many bytes weighs from its row to its commit: itself, and those of the vectors it becomes that stay in memory.
    pub fn weight_of_text(&self, plan: &Plan, bytes: u64) -> u64 {
        let chunks = &plan.pipeline.chunks;
        let step = match chunks.size {
            ChunkSize::Tokens(size) => wide(size.saturating_sub(chunks.overlap)) * TOKEN_BYTES,
            ChunkSize::Characters(size) => wide(size.saturating_sub(chunks.overlap)),
        };
        let count = if chunks.whole { 1 } else { 1 + bytes / step.max(1) };
        let vectors = count.saturating_mul(wide(plan.model.dimensions) * 4);
        let embeddings = if plan.model.sparse {
            // A token of a text has a weight at most, and such vectors stay.
            vectors.saturating_add(bytes / TOKEN_BYTES * WEIGHT_BYTES)
        } else {
            vectors.min(spill::most_in_memory(self.all()))
        };
        bytes.saturating_mul(COPIES).saturating_add(embeddings)
    }

    /// All there is, in bytes.
    pub(super) fn all(&self) -> u64 {
        self.all * UNIT
    }

    fn units_of(&self, bytes: u64) -> u64 {
        units(bytes).min(self.all)
    }
}

impl Weight {
    fn units(&self) -> u64 {
        self.0.as_ref().map_or(0, FairSlot::slots)
    }

    /// Lets go of what exceeds `bytes`.
    pub fn lighten(&mut self, bytes: u64) {
        if let Some(slot) = &mut self.0 {
            slot.keep(units(bytes));
        }
    }
}

fn units(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT).max(1)
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_tenant_wants_next_does_not_wait_for_all_that_another_wants() {
        let memory = Memory::new(10 * UNIT);
        let mut held = memory.take("many", 10 * UNIT).await;
        let mut many = Box::pin(futures_util::future::join_all((0..3).map(|_| memory.take("many", 9 * UNIT))));
        assert!(futures_util::poll!(many.as_mut()).is_pending());
        let mut one = Box::pin(memory.take("one", UNIT));
        assert!(futures_util::poll!(one.as_mut()).is_pending());
        held.lighten(9 * UNIT);
        assert!(futures_util::poll!(one.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn parts_add_up_and_come_back() {
        let memory = Memory::new(10 * UNIT);
        let mut first = memory.take("a", 5 * UNIT).await;
        let second = memory.take_now(2 * UNIT).unwrap();
        assert!(memory.take_now(4 * UNIT).is_none());
        assert_eq!(memory.units.free(), 3);
        first.lighten(UNIT);
        assert_eq!(memory.units.free(), 7);
        drop((first, second));
        assert_eq!(memory.units.free(), 10);
        // What weighs more than was taken for it gets more where there is more.
        let (mut one, other) = (memory.take("a", 4 * UNIT).await, memory.take("a", 4 * UNIT).await);
        assert!(memory.fit(&mut one, 6 * UNIT) && !memory.fit(&mut one, 7 * UNIT));
        drop(other);
        assert!(memory.fit(&mut one, 99 * UNIT) && memory.fit(&mut one, 3 * UNIT));
        assert_eq!(memory.units.free(), 7);
        drop(one);
        // More than there is waits for all there is.
        assert_eq!(memory.take("a", 99 * UNIT).await.0.unwrap().slots(), 10);
    }
}
