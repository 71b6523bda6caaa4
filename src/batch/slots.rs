//! How many requests of a lane may be under way at once: as many as its provider takes, and never more than configured.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::fair::{FairSlot, FairSlots};
use super::portions::widen;

/// Where a lane that knows nothing of its provider begins.
const FIRST: usize = 8;
/// For how long a number that was too many is not tried again.
const WARY: Duration = Duration::from_mins(1);

pub(super) struct Slots {
    most: usize,
    state: Mutex<State>,
    fair: FairSlots,
}

struct State {
    /// How many may be taken.
    level: usize,
    /// Answers since the level changed, while all slots were taken.
    answered: usize,
    /// There was an answer since the level was lowered.
    heard: bool,
    lowered: Option<Lowered>,
}

#[derive(Clone, Copy)]
struct Lowered {
    /// So many were too many.
    from: usize,
    at: Instant,
}

impl Slots {
    pub fn new(most: usize) -> Self {
        let level = most.clamp(1, FIRST);
        let state = State { level, answered: 0, heard: true, lowered: None };
        Self { most: most.max(1), state: Mutex::new(state), fair: FairSlots::new(widen(level)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the right to send requests, one after the other; tenants take turns.
    pub async fn acquire(&self, tenant: &str, cost: u64) -> FairSlot {
        self.fair.acquire(tenant, cost).await
    }

    /// A request was answered.
    pub fn succeeded(&self) {
        let mut state = self.state();
        if state.succeeded(self.fair.is_full(), self.most, Instant::now()) {
            self.fair.resize(widen(state.level));
        }
    }

    /// A request that began at `began` found the provider overloaded.
    pub fn overloaded(&self, began: Instant) {
        let mut state = self.state();
        state.overloaded(began, Instant::now());
        self.fair.resize(widen(state.level));
    }
}

impl State {
    /// While all slots are taken there may be room for another, and the answer says that there is. Doubles with each round until the
    /// provider has once said stop, then grows by one.
    fn succeeded(&mut self, is_full: bool, most: usize, now: Instant) -> bool {
        self.heard = true;
        if !is_full || self.level >= most {
            return false;
        }
        self.answered += 1;
        let enough = match self.lowered {
            None => true,
            Some(Lowered { from, at }) if self.level + 1 >= from && now.duration_since(at) < WARY => false,
            Some(_) => self.answered >= self.level,
        };
        if enough {
            self.answered = 0;
            self.level += 1;
        }
        enough
    }

    /// Halves; requests that were under way beside one that was refused tell of the same.
    fn overloaded(&mut self, began: Instant, now: Instant) {
        if self.lowered.is_some_and(|lowered| began < lowered.at) {
            return;
        }
        // Of a provider that answers nothing at all it is not known how much it takes.
        let from = self.lowered.filter(|_| !self.heard).map_or(self.level, |lowered| lowered.from);
        self.lowered = Some(Lowered { from, at: now });
        self.heard = false;
        self.answered = 0;
        self.level = (self.level / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MOST: usize = 64;

    fn answer(state: &mut State, times: usize, now: Instant) -> usize {
        for _ in 0..times {
            state.succeeded(true, MOST, now);
        }
        state.level
    }

    #[test]
    fn one_overload_is_one_step_down_and_the_way_up_stops_short_of_it() {
        let mut state = State { level: 8, answered: 0, heard: true, lowered: None };
        let began = Instant::now();
        assert_eq!(answer(&mut state, 1, began), 9);
        let now = began + Duration::from_millis(10);
        (0..9).for_each(|_| state.overloaded(began, now));
        assert_eq!(state.level, 4);
        // By one for each round: 4 + 5 + 6 + 7 answers.
        assert_eq!([answer(&mut state, 21, now), answer(&mut state, 1, now), answer(&mut state, 100, now)], [7, 8, 8]);
        let later = now + WARY;
        assert_eq!(answer(&mut state, 8, later), 9);
        (0..9).for_each(|_| state.overloaded(later, later));
        assert_eq!(state.level, 1);
        // It was away, and takes as much again as before.
        assert_eq!(answer(&mut state, 100, later), 8);
    }

    #[test]
    fn slots_that_are_free_say_nothing_of_room_for_more() {
        let mut state = State { level: 8, answered: 0, heard: true, lowered: None };
        assert!(!state.succeeded(false, MOST, Instant::now()));
    }

    #[tokio::test]
    async fn nobody_is_forgotten_who_waits_for_a_slot() {
        let slots = Arc::new(Slots::new(2));
        let held = (slots.acquire("a", 1).await, slots.acquire("a", 1).await);
        let wait = |slots: Arc<Slots>| tokio::spawn(async move { drop(slots.acquire("a", 1).await) });
        let waiting: Vec<_> = (0..3).map(|_| wait(Arc::clone(&slots))).collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        drop(held);
        for task in waiting {
            task.await.unwrap();
        }
    }
}
