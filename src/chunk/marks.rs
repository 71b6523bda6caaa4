//! A set of places that knows its neighbours.

const BITS: usize = 64;

/// Places below a bound, a bit each; above them a bit for each word that is not empty, and so on. Asking for a neighbour takes a word
/// of each level, where a tree follows pointers.
pub(super) struct Marks(Vec<Vec<u64>>);

impl Marks {
    pub fn new(bound: usize) -> Self {
        let mut levels = Vec::new();
        let mut bound = bound.max(1);
        while bound > 1 || levels.is_empty() {
            bound = bound.div_ceil(BITS);
            levels.push(vec![0; bound]);
        }
        Self(levels)
    }

    pub fn insert(&mut self, mut place: usize) {
        for level in &mut self.0 {
            level[place / BITS] |= 1 << (place % BITS);
            place /= BITS;
        }
    }

    pub fn remove(&mut self, mut place: usize) {
        for level in &mut self.0 {
            let word = &mut level[place / BITS];
            *word &= !(1 << (place % BITS));
            if *word != 0 {
                break;
            }
            place /= BITS;
        }
    }

    /// The last place before this one, which is below the bound.
    pub fn before(&self, mut place: usize) -> Option<usize> {
        for (depth, level) in self.0.iter().enumerate() {
            let below = level.get(place / BITS).copied().unwrap_or(0) & ((1 << (place % BITS)) - 1);
            if below != 0 {
                let found = place / BITS * BITS + highest(below);
                return Some(self.0[..depth].iter().rev().fold(found, |at, level| at * BITS + highest(level[at])));
            }
            place /= BITS;
        }
        None
    }

    /// The first place from this one on.
    pub fn from(&self, mut place: usize) -> Option<usize> {
        for (depth, level) in self.0.iter().enumerate() {
            let above = level.get(place / BITS).copied().unwrap_or(0) & (u64::MAX << (place % BITS));
            if above != 0 {
                let found = place / BITS * BITS + lowest(above);
                return Some(self.0[..depth].iter().rev().fold(found, |at, level| at * BITS + lowest(level[at])));
            }
            place = place / BITS + 1;
        }
        None
    }

    pub fn into_places(self) -> Vec<usize> {
        std::iter::successors(self.from(0), |&place| self.from(place + 1)).collect()
    }
}

fn highest(word: u64) -> usize {
    BITS - 1 - zeros(word.leading_zeros())
}

fn lowest(word: u64) -> usize {
    zeros(word.trailing_zeros())
}

fn zeros(count: u32) -> usize {
    usize::try_from(count).unwrap_or(BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn neighbours_are_those_of_an_ordered_set(
            bound in prop_oneof![1_usize..200, 60_usize..70, 4_000_usize..4_200, 262_000_usize..263_000],
            steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..60),
            asked in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
        ) {
            let (mut marks, mut set) = (Marks::new(bound), BTreeSet::new());
            for (place, insert) in steps {
                let place = place.index(bound);
                if insert {
                    marks.insert(place);
                    set.insert(place);
                } else {
                    marks.remove(place);
                    set.remove(&place);
                }
            }
            for place in asked.into_iter().map(|place| place.index(bound + 1)) {
                let below = place.min(bound - 1);
                prop_assert_eq!(marks.before(below), set.range(..below).next_back().copied());
                prop_assert_eq!(marks.from(place), set.range(place..).next().copied());
            }
            prop_assert_eq!(marks.into_places(), set.into_iter().collect::<Vec<_>>());
        }
    }
}
