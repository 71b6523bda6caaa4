//! How many requests of a lane may be under way at once: as many as its provider takes, and never more than configured.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Where a lane that knows nothing of its provider begins.
const FIRST: usize = 8;
/// For how long a number that was too many is not tried again.
const WARY: Duration = Duration::from_mins(1);

pub(super) struct Slots {
    most: usize,
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    /// How many may be taken.
    level: usize,
    taken: usize,
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

/// The right to send requests, one after the other.
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    pub fn new(most: usize) -> Arc<Self> {
        let state = State { level: most.clamp(1, FIRST), taken: 0, answered: 0, heard: true, lowered: None };
        Arc::new(Self { most: most.max(1), state: Mutex::new(state), freed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a slot.
    pub async fn acquire(self: &Arc<Self>) -> Slot {
        loop {
            {
                let mut state = self.state();
                if state.taken < state.level {
                    state.taken += 1;
                    // One signal may stand for two free slots.
                    if state.taken < state.level {
                        self.freed.notify_one();
                    }
                    return Slot(Arc::clone(self));
                }
            }
            self.freed.notified().await;
        }
    }

    /// A request was answered.
    pub fn succeeded(&self) {
        if self.state().succeeded(self.most, Instant::now()) {
            self.freed.notify_one();
        }
    }

    /// A request that began at `began` found the provider overloaded.
    pub fn overloaded(&self, began: Instant) {
        self.state().overloaded(began, Instant::now());
    }
}

impl State {
    /// While all slots are taken there may be room for another, and the answer says that there is. Doubles with each round until the
    /// provider has once said stop, then grows by one.
    fn succeeded(&mut self, most: usize, now: Instant) -> bool {
        self.heard = true;
        if self.taken < self.level || self.level >= most {
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

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.state().taken -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 64;

    fn answer(state: &mut State, times: usize, now: Instant) -> usize {
        for _ in 0..times {
            state.taken = state.level;
            state.succeeded(MOST, now);
        }
        state.level
    }

    #[test]
    fn one_overload_is_one_step_down_and_the_way_up_stops_short_of_it() {
        let mut state = State { level: 8, taken: 0, answered: 0, heard: true, lowered: None };
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
        let mut state = State { level: 8, taken: 7, answered: 0, heard: true, lowered: None };
        assert!(!state.succeeded(MOST, Instant::now()));
    }

    #[tokio::test]
    async fn nobody_is_forgotten_who_waits_for_a_slot() {
        let slots = Slots::new(2);
        let held = (slots.acquire().await, slots.acquire().await);
        let wait = |slots: Arc<Slots>| tokio::spawn(async move { drop(slots.acquire().await) });
        let waiting: Vec<_> = (0..3).map(|_| wait(Arc::clone(&slots))).collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        drop(held);
        for task in waiting {
            task.await.unwrap();
        }
    }
}
