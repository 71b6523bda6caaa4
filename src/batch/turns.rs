//! Tenants in turn: what waits is taken so that each tenant gets as much as any other that has something waiting, and one that comes
//! anew waits for a round at the most, however much the others have (self-clocked fair queueing).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// From so many tenants on, those that have nothing waiting and owe nothing are forgotten.
const KNOWN: usize = 64;

/// What waits, by tenant: each tenant's in the order in which it came.
pub(super) struct Turns<T> {
    tenants: HashMap<Arc<str>, Queue<T>>,
    /// The tenants that have something waiting: whose turn is first, and of equal ones who has waited longer.
    order: BTreeMap<Place, Arc<str>>,
    /// The turn that was taken last: who comes anew has the next.
    now: u64,
    nth: u64,
    waiting: usize,
    /// So many tenants are worth a look at whom to forget.
    worth: usize,
}

/// A turn, and a number of its own.
type Place = (u64, u64);

struct Queue<T> {
    /// With what each costs.
    waiting: VecDeque<(T, u64)>,
    /// The turn of the first one. Of a tenant that has nothing waiting, what it was given before the others: its next turn is later.
    turn: u64,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), order: BTreeMap::new(), now: 0, nth: 0, waiting: 0, worth: KNOWN }
    }
}

impl<T> Turns<T> {
    pub fn len(&self) -> usize {
        self.waiting
    }

    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many tenants have something waiting.
    pub fn tenants(&self) -> usize {
        self.order.len()
    }

    /// Adds one, and what it counts for when the turns are dealt.
    pub fn push(&mut self, tenant: &str, cost: u64, one: T) {
        self.waiting += 1;
        let cost = cost.max(1);
        if let Some(queue) = self.tenants.get_mut(tenant) {
            queue.waiting.push_back((one, cost));
            if queue.waiting.len() > 1 {
                return;
            }
        } else {
            self.forget();
            self.tenants.insert(Arc::from(tenant), Queue { waiting: VecDeque::from([(one, cost)]), turn: 0 });
        }
        let Some((name, _)) = self.tenants.get_key_value(tenant) else { return };
        let name = Arc::clone(name);
        let Some(queue) = self.tenants.get_mut(tenant) else { return };
        queue.turn = queue.turn.max(self.now).saturating_add(cost);
        self.nth += 1;
        self.order.insert((queue.turn, self.nth), name);
    }

    fn forget(&mut self) {
        if self.tenants.len() >= self.worth {
            self.tenants.retain(|_, queue| !queue.waiting.is_empty() || queue.turn > self.now);
            self.worth = KNOWN + 2 * self.tenants.len();
        }
    }

    /// Takes up to `most` that `fits`, tenant after tenant. A tenant goes on while its next one `belongs` to its last, up to a cost of
    /// `longest` and what exceeds it; one whose next does not fit keeps its turn.
    pub fn take(
        &mut self,
        most: usize,
        longest: u64,
        mut fits: impl FnMut(&T) -> bool,
        belongs: impl Fn(&T, &T) -> bool,
    ) -> Vec<T> {
        let mut taken = Vec::new();
        let mut kept = Vec::new();
        while taken.len() < most
            && let Some((place, tenant)) = self.order.pop_first()
        {
            let Some(queue) = self.tenants.get_mut(&tenant) else { continue };
            let (first, mut spent) = (taken.len(), 0_u64);
            while taken.len() < most
                && let Some((one, cost)) = queue.waiting.pop_front_if(|(one, _)| {
                    let goes_on = taken[first..].last().is_none_or(|last| spent < longest && belongs(last, one));
                    goes_on && fits(one)
                })
            {
                spent = spent.saturating_add(cost);
                taken.push(one);
                if let Some((_, next)) = queue.waiting.front() {
                    queue.turn = queue.turn.saturating_add(*next);
                }
            }
            if taken.len() == first {
                kept.push((place, tenant));
                continue;
            }
            self.now = self.now.max(place.0);
            if !queue.waiting.is_empty() {
                self.nth += 1;
                self.order.insert((queue.turn, self.nth), tenant);
            }
        }
        self.order.extend(kept);
        self.waiting -= taken.len();
        if self.is_empty() {
            self.tenants.clear();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One of each in turn, as a word.
    fn all(turns: &mut Turns<&'static str>) -> String {
        turns.take(usize::MAX, 0, |_| true, |_, _| false).join(" ")
    }

    fn push(turns: &mut Turns<&'static str>, tenant: &str, cost: u64, ones: &[&'static str]) {
        for one in ones {
            turns.push(tenant, cost, one);
        }
    }

    #[test]
    fn tenants_alternate_and_a_new_one_is_next() {
        let mut turns = Turns::default();
        push(&mut turns, "a", 1, &["a1", "a2", "a3", "a4"]);
        push(&mut turns, "b", 1, &["b1", "b2"]);
        assert_eq!((turns.len(), turns.tenants()), (6, 2));
        assert_eq!(turns.take(3, 0, |_| true, |_, _| false), ["a1", "b1", "a2"]);
        turns.push("c", 1, "c1");
        assert_eq!(all(&mut turns), "b2 a3 c1 a4");
        assert!(turns.is_empty());
    }

    #[test]
    fn who_has_large_ones_gets_fewer() {
        let mut turns = Turns::default();
        push(&mut turns, "a", 3, &["a1", "a2"]);
        push(&mut turns, "b", 1, &["b1", "b2", "b3", "b4", "b5", "b6", "b7"]);
        assert_eq!(all(&mut turns), "b1 b2 a1 b3 b4 b5 a2 b6 b7");
    }

    #[test]
    fn what_belongs_together_goes_together_and_is_made_up_for() {
        let mut turns = Turns::default();
        push(&mut turns, "a", 1, &["a1", "a1", "a1", "a2", "a2"]);
        push(&mut turns, "b", 1, &["b1", "b1", "b2", "b3"]);
        let same = |last: &&str, next: &&str| last == next;
        assert_eq!(turns.take(usize::MAX, 2, |_| true, same).join(" "), "a1 a1 b1 b1 a1 b2 a2 a2 b3");
    }

    #[test]
    fn who_comes_back_has_not_been_forgotten() {
        let mut turns = Turns::default();
        push(&mut turns, "a", 1, &["a1", "a2", "a3"]);
        push(&mut turns, "b", 1, &["b1", "b1", "b1"]);
        let same = |last: &&str, next: &&str| last == next;
        assert_eq!(turns.take(4, 9, |_| true, same).join(" "), "a1 b1 b1 b1");
        turns.push("b", 1, "b2");
        assert_eq!(all(&mut turns), "a2 a3 b2");
    }

    #[test]
    fn what_does_not_fit_is_first_next_time() {
        let mut turns = Turns::default();
        push(&mut turns, "a", 1, &["a1", "a2"]);
        push(&mut turns, "b", 1, &["B1", "b2"]);
        push(&mut turns, "c", 1, &["c1", "c2", "c3"]);
        let small = |one: &&str| one.starts_with(char::is_lowercase);
        assert_eq!(turns.take(4, 0, small, |_, _| false).join(" "), "a1 c1 a2 c2");
        assert_eq!(all(&mut turns), "B1 b2 c3");
    }

    #[test]
    fn tenants_that_are_through_are_forgotten() {
        let mut turns = Turns::default();
        turns.push("stays", 1, 0);
        for nth in 1..10_000 {
            turns.push("stays", 1, 0);
            turns.push(&nth.to_string(), 1, nth);
            turns.take(2, 0, |_| true, |_, _| false);
            assert!(turns.tenants.len() <= 3 * KNOWN, "{} are known", turns.tenants.len());
        }
    }

    const LARGEST: u64 = 5;

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8, u64),
        Take(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..6_u8, 1..=LARGEST).prop_map(|(tenant, cost)| Step::Push(tenant, cost)),
            1 => (1..6_usize).prop_map(Step::Take),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Nothing is lost, each tenant's order is kept, and who has something waiting does not fall behind another by more than a turn.
        #[test]
        fn each_gets_its_turn(steps in steps(), longest in 0..20_u64, left_over in 0..3_u32) {
            let mut turns = Turns::default();
            let (mut pushed, mut got) = (HashMap::<u8, Vec<usize>>::new(), HashMap::<u8, Vec<usize>>::new());
            // What each tenant was given, and since when two of them both have something waiting: what each had then.
            let mut given = [0_u64; 6];
            let mut since: HashMap<(u8, u8), [u64; 2]> = HashMap::new();
            let most = steps.iter().filter(|step| matches!(step, Step::Push(..))).count();
            for (nth, step) in steps.into_iter().chain([Step::Take(most)]).enumerate() {
                match step {
                    Step::Push(tenant, cost) => {
                        turns.push(&tenant.to_string(), cost, (tenant, nth, cost));
                        pushed.entry(tenant).or_default().push(nth);
                    }
                    Step::Take(most) => {
                        let belongs = |last: &(u8, usize, u64), _: &_| !last.1.is_multiple_of(1 + left_over as usize);
                        for (tenant, nth, cost) in turns.take(most, longest, |_| true, belongs) {
                            got.entry(tenant).or_default().push(nth);
                            given[usize::from(tenant)] += cost;
                        }
                    }
                }
                let waits = |tenant: u8| pushed.get(&tenant).map_or(0, Vec::len) > got.get(&tenant).map_or(0, Vec::len);
                for pair in (0..6).flat_map(|one| (0..6).map(move |other| (one, other))).filter(|(one, other)| one != other) {
                    let now = [given[usize::from(pair.0)], given[usize::from(pair.1)]];
                    if !waits(pair.0) {
                        since.remove(&pair);
                        continue;
                    }
                    let then = *since.entry(pair).or_insert(now);
                    let (own, others) = (now[0] - then[0], now[1] - then[1]);
                    prop_assert!(others <= own + 2 * (longest + 2 * LARGEST), "{pair:?}: {own}, {others}");
                }
            }
            prop_assert!(turns.is_empty());
            prop_assert_eq!(pushed, got);
        }
    }
}
