//! What there is only so much of, dealt to tenants in turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::turns::Turns;

/// So many at once; who waits is served by tenants in turn, and nobody overtakes whose turn it is. Cheap to clone.
#[derive(Clone)]
pub struct FairSlots(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    all: u64,
    taken: u64,
    waiting: Turns<Waiting>,
}

struct Waiting {
    slots: u64,
    reply: oneshot::Sender<FairSlot>,
}

/// What was taken, until this is dropped.
pub struct FairSlot {
    of: FairSlots,
    slots: u64,
}

impl FairSlots {
    pub fn new(all: u64) -> Self {
        Self(Arc::new(Mutex::new(State { all, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one. `cost` is what it counts for when the turns are dealt: who asks for what takes long gets fewer.
    pub async fn acquire(&self, tenant: &str, cost: u64) -> FairSlot {
        self.acquire_many(tenant, 1, cost).await
    }

    /// Waits for so many at once, no more than there are.
    pub(super) async fn acquire_many(&self, tenant: &str, slots: u64, cost: u64) -> FairSlot {
        // Whoever gives up may have been the one for whom the others wait.
        let _given_up = HandOut(self);
        let (reply, answer) = oneshot::channel();
        self.state().waiting.push(tenant, cost, Waiting { slots, reply });
        self.hand_out();
        match answer.await {
            Ok(slot) => slot,
            // Nobody else takes it out of the queue.
            Err(_) => std::future::pending().await,
        }
    }

    /// The same without waiting, or not at all: others may wait.
    pub(super) fn acquire_now(&self, slots: u64) -> Option<FairSlot> {
        let mut state = self.state();
        let fits = state.waiting.is_empty() && slots <= state.free();
        fits.then(|| {
            state.taken += slots;
            FairSlot { of: self.clone(), slots }
        })
    }

    /// From now on there are so many; what is taken beyond comes back as it is let go.
    pub(super) fn resize(&self, all: u64) {
        self.state().all = all;
        self.hand_out();
    }

    /// How many wait, or gave up while they did.
    pub fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.state().free() == 0
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> u64 {
        self.state().free()
    }

    fn hand_out(&self) {
        loop {
            let Some(Waiting { slots, reply }) = self.state().next() else { return };
            // Who gave up in this very moment lets go of it again.
            drop(reply.send(FairSlot { of: self.clone(), slots }));
        }
    }
}

impl State {
    fn free(&self) -> u64 {
        self.all.saturating_sub(self.taken)
    }

    /// Whose turn it is, where there is room.
    fn next(&mut self) -> Option<Waiting> {
        loop {
            let free = self.free();
            let mut is_blocked = false;
            let fits = |next: &Waiting| {
                is_blocked |= !next.reply.is_closed() && next.slots > free;
                !is_blocked
            };
            let next = self.waiting.take(1, 0, fits, |_, _| false).pop()?;
            if !next.reply.is_closed() {
                self.taken += next.slots;
                return Some(next);
            }
        }
    }
}

impl FairSlot {
    pub(super) fn slots(&self) -> u64 {
        self.slots
    }

    /// Takes in what another took of the same.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.slots += std::mem::take(&mut other.slots);
    }

    /// Lets go of what exceeds so many.
    pub(super) fn keep(&mut self, slots: u64) {
        let slots = slots.min(self.slots);
        self.of.state().taken -= self.slots - slots;
        self.slots = slots;
        self.of.hand_out();
    }
}

impl Drop for FairSlot {
    fn drop(&mut self) {
        self.keep(0);
    }
}

impl std::fmt::Debug for FairSlot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FairSlot").field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// Hands out what may be free when it is dropped.
struct HandOut<'a>(&'a FairSlots);

impl Drop for HandOut<'_> {
    fn drop(&mut self) {
        self.0.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::pin::Pin;
    use std::task::Poll;

    use futures_util::poll;
    use proptest::prelude::*;

    use super::*;

    type Asking<'a> = Pin<Box<dyn Future<Output = FairSlot> + 'a>>;

    /// Asks, and waits.
    async fn ask<'a>(slots: &'a FairSlots, tenant: &'a str, count: u64, cost: u64) -> Asking<'a> {
        let mut asking: Asking<'a> = Box::pin(slots.acquire_many(tenant, count, cost));
        assert!(poll!(asking.as_mut()).is_pending());
        asking
    }

    /// What was asked for is there.
    async fn got(mut asking: Asking<'_>) -> FairSlot {
        match poll!(asking.as_mut()) {
            Poll::Ready(slot) => slot,
            Poll::Pending => panic!("nobody was served"),
        }
    }

    /// Which of them has been served, in this order; each lets go at once.
    async fn served(waiting: &mut [(&'static str, Asking<'_>)], held: FairSlot) -> String {
        let (mut held, mut order) = (Some(held), Vec::new());
        while held.take().is_some() {
            for (name, asking) in waiting.iter_mut().filter(|(name, _)| !order.contains(name)) {
                if let Poll::Ready(slot) = poll!(asking.as_mut()) {
                    order.push(*name);
                    assert!(held.replace(slot).is_none(), "only one at a time");
                    break;
                }
            }
        }
        order.join(" ")
    }

    #[tokio::test]
    async fn a_newcomer_is_next_and_who_asks_for_much_gets_fewer() {
        let slots = FairSlots::new(1);
        let held = slots.acquire("many", 1).await;
        let mut waiting = Vec::new();
        for (name, tenant, cost) in [
            ("many 1", "many", 3),
            ("many 2", "many", 3),
            ("many 3", "many", 3),
            ("one 1", "one", 1),
            ("one 2", "one", 1),
            ("one 3", "one", 1),
        ] {
            waiting.push((name, ask(&slots, tenant, 1, cost).await));
        }
        assert_eq!(served(&mut waiting, held).await, "one 1 one 2 many 1 one 3 many 2 many 3");
        assert_eq!(slots.free(), 1);
    }

    #[tokio::test]
    async fn who_gives_up_holds_nobody_up() {
        let slots = FairSlots::new(4);
        let held = slots.acquire_many("a", 2, 1).await;
        let (large, mut small) = (ask(&slots, "a", 3, 1).await, ask(&slots, "a", 1, 1).await);
        // The large one comes first, though a small one would fit; nor does anybody else pass by.
        assert!(poll!(small.as_mut()).is_pending() && slots.acquire_now(1).is_none());
        drop(large);
        assert_eq!(got(small).await.slots(), 1);

        // One that was served and never heard of it gives it back.
        let unheard = ask(&slots, "b", 3, 1).await;
        drop(held);
        assert_eq!(slots.free(), 1);
        drop(unheard);
        assert_eq!(slots.free(), 4);
    }

    #[tokio::test]
    async fn what_is_lowered_is_taken_back_and_what_is_raised_goes_to_who_waits() {
        let slots = FairSlots::new(2);
        let (one, other) = (slots.acquire("a", 1).await, slots.acquire("a", 1).await);
        slots.resize(1);
        let mut third = ask(&slots, "a", 1, 1).await;
        drop(one);
        assert!(poll!(third.as_mut()).is_pending() && slots.is_full());
        slots.resize(2);
        assert_eq!(got(third).await.slots(), 1);
        drop(other);
        assert_eq!(slots.free(), 2);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(usize, u64),
        GiveUp(usize),
        LetGo(usize),
        Keep(usize, u64),
        Resize(u64),
    }

    const ALL: u64 = 5;
    const TENANTS: [&str; 3] = ["a", "b", "c"];

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..TENANTS.len(), 1..=ALL).prop_map(|(tenant, count)| Step::Ask(tenant, count)),
            1 => (0..8_usize).prop_map(Step::GiveUp),
            3 => (0..8_usize).prop_map(Step::LetGo),
            1 => (0..8_usize, 0..ALL).prop_map(|(nth, slots)| Step::Keep(nth, slots)),
            1 => (1..=ALL).prop_map(Step::Resize),
        ];
        prop::collection::vec(step, 1..100)
    }

    proptest! {
        /// Whatever is asked for, given up and let go: never more is taken than there is, a tenant's are served in their order, and in the end
        /// everybody was served and all is free again.
        #[test]
        fn nothing_is_lost_and_nobody_is_forgotten(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let slots = FairSlots::new(ALL);
                let (mut asking, mut held) = (Vec::<(usize, usize, Asking<'_>)>::new(), Vec::<FairSlot>::new());
                let mut last = HashMap::new();
                let end = [Step::Resize(ALL)].into_iter().chain(std::iter::repeat_n(Step::LetGo(0), 200));
                for (nth, step) in steps.into_iter().chain(end).enumerate() {
                    let mut is_lowered = false;
                    match step {
                        Step::Ask(tenant, count) => {
                            asking.push((nth, tenant, Box::pin(slots.acquire_many(TENANTS[tenant], count, count))));
                        }
                        Step::GiveUp(nth) if nth < asking.len() => drop(asking.remove(nth)),
                        Step::LetGo(nth) if nth < held.len() => drop(held.remove(nth)),
                        Step::Keep(nth, slots) if nth < held.len() => held[nth].keep(slots),
                        Step::Resize(all) => {
                            is_lowered = true;
                            slots.resize(all);
                        }
                        Step::GiveUp(_) | Step::LetGo(_) | Step::Keep(..) => {}
                    }
                    let before: u64 = held.iter().map(FairSlot::slots).sum();
                    let mut still = Vec::new();
                    for (nth, tenant, mut one) in asking {
                        match poll!(one.as_mut()) {
                            Poll::Ready(slot) => {
                                assert!(last.insert(tenant, nth).is_none_or(|last| last < nth));
                                held.push(slot);
                            }
                            Poll::Pending => still.push((nth, tenant, one)),
                        }
                    }
                    asking = still;
                    let taken: u64 = held.iter().map(FairSlot::slots).sum();
                    let all = slots.state().all;
                    assert!(taken <= all.max(before) && taken == slots.state().taken || is_lowered);
                }
                assert!(asking.is_empty() && held.is_empty());
                assert_eq!(slots.free(), ALL);
            });
        }
    }
}
