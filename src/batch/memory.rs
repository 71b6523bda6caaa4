use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::ChunkSize;
use crate::db::app::Plan;

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

/// The bytes that may be in flight, of all pipelines together. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory {
    units: Arc<Semaphore>,
    all: u32,
}

/// A part of it, until this is dropped.
#[derive(Debug, Default)]
pub struct Weight(Option<OwnedSemaphorePermit>);

impl Memory {
    pub fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        Self { units: Arc::new(Semaphore::new(usize::try_from(all).unwrap_or(usize::MAX))), all }
    }

    /// Waits until so many bytes may be in flight; more than there is altogether waits until it is alone. Whoever holds a weight
    /// must not wait for another: all would wait for each other.
    pub async fn take(&self, bytes: u64) -> Weight {
        // The semaphore is closed by nobody.
        Weight(Arc::clone(&self.units).acquire_many_owned(self.units_of(bytes)).await.ok())
    }

    /// The same without waiting, or not at all.
    pub(super) fn take_now(&self, bytes: u64) -> Option<Weight> {
        Arc::clone(&self.units).try_acquire_many_owned(self.units_of(bytes)).ok().map(|permit| Weight(Some(permit)))
    }

    /// Makes a weight that of so many bytes: at once, without waiting, or not at all. Where it says no, more has to be taken anew.
    pub fn fit(&self, weight: &mut Weight, bytes: u64) -> bool {
        let (has, wanted) = (weight.units(), self.units_of(bytes));
        if wanted > has {
            let Ok(more) = Arc::clone(&self.units).try_acquire_many_owned(wanted - has) else { return false };
            match &mut weight.0 {
                Some(permit) => permit.merge(more),
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
        u64::from(self.all) * UNIT
    }

    fn units_of(&self, bytes: u64) -> u32 {
        units(bytes).min(self.all)
    }
}

impl Weight {
    fn units(&self) -> u32 {
        let permits = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(permits).unwrap_or(u32::MAX)
    }

    /// Lets go of what exceeds `bytes`.
    pub fn lighten(&mut self, bytes: u64) {
        let keep = usize::try_from(units(bytes)).unwrap_or(usize::MAX);
        if let Some(permit) = &mut self.0 {
            drop(permit.split(permit.num_permits().saturating_sub(keep)));
        }
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts_add_up_and_come_back() {
        let memory = Memory::new(10 * UNIT);
        let mut first = memory.take(5 * UNIT).await;
        let second = memory.take_now(2 * UNIT).unwrap();
        assert!(memory.take_now(4 * UNIT).is_none());
        assert_eq!(memory.units.available_permits(), 3);
        first.lighten(UNIT);
        assert_eq!(memory.units.available_permits(), 7);
        drop((first, second));
        assert_eq!(memory.units.available_permits(), 10);
        // What weighs more than was taken for it gets more where there is more.
        let (mut one, other) = (memory.take(4 * UNIT).await, memory.take(4 * UNIT).await);
        assert!(memory.fit(&mut one, 6 * UNIT) && !memory.fit(&mut one, 7 * UNIT));
        drop(other);
        assert!(memory.fit(&mut one, 99 * UNIT) && memory.fit(&mut one, 3 * UNIT));
        assert_eq!(memory.units.available_permits(), 7);
        drop(one);
        // More than there is waits for all there is.
        assert_eq!(memory.take(99 * UNIT).await.0.unwrap().num_permits(), 10);
    }
}
