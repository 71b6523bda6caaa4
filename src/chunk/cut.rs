use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use unicode_segmentation::GraphemeCursor;

use super::TokenSpan;
use super::boundary::{Boundaries, Boundary, Rank};
use super::marks::Marks;

/// What a piece may have at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub tokens: usize,
    pub chars: usize,
}

impl Limit {
    /// Half of it, and at least one.
    pub(super) fn half(self) -> Self {
        Self { tokens: (self.tokens / 2).max(1), chars: (self.chars / 2).max(1) }
    }

    /// Whether there is no smaller limit.
    pub(super) fn is_least(self) -> bool {
        self.tokens == 1 && self.chars == 1
    }

    /// Whether what is between two boundaries, taken `times` times, stays within the limit.
    fn holds(self, left: &Boundary, right: &Boundary, times: usize) -> bool {
        (right.tokens - left.tokens) * times <= self.tokens
            && right.end_char.saturating_sub(left.at_char) * times <= self.chars
    }
}

/// A text, its tokens and its strong boundaries.
#[derive(Clone, Copy)]
pub(super) struct Cutter<'text> {
    pub text: &'text str,
    pub spans: &'text [TokenSpan],
    pub boundaries: &'text Boundaries,
}

impl Cutter<'_> {
    /// Cuts what is between two boundaries into pieces within the limit; both ends are among the cuts returned.
    pub(super) fn cut(&self, from: Boundary, to: Boundary, limit: Limit) -> Vec<Boundary> {
        if limit.holds(&from, &to, 1) {
            return vec![from, to];
        }
        let strong = match self.boundaries.strong.as_slice() {
            all @ [first, .., last] if (*first, *last) == (from, to) => Cow::Borrowed(all),
            _ => Cow::Owned(with_ends(from, self.boundaries.strong_between(from.at, to.at), to)),
        };
        let chosen = choose(&strong, limit, |left, right| {
            let weak = self.boundaries.weak(self.text, self.spans, left, right);
            choose(&with_ends(*left, &weak, *right), limit, |_, _| Vec::new())
        });
        let mut cuts = vec![from];
        for pair in chosen.windows(2) {
            self.force(pair[0], pair[1], limit, &mut cuts);
        }
        cuts
    }

    /// Where a piece had best start that is to start at `earliest` or later, between two cuts: at a sentence, else at a clause or word.
    pub(super) fn start_between(&self, earliest: usize, left: &Boundary, right: &Boundary) -> Option<usize> {
        if let Some(strong) = self.boundaries.strong_between(earliest.saturating_sub(1), right.at).first() {
            return Some(strong.at);
        }
        let weak = self.boundaries.weak(self.text, self.spans, left, right);
        let late_enough = weak.iter().filter(|boundary| boundary.at >= earliest);
        late_enough.min_by_key(|boundary| (Reverse(boundary.rank), boundary.at)).map(|boundary| boundary.at)
    }

    /// Where no boundary is left: full pieces one after the other, at a word if there is one and never inside a character.
    fn force(&self, from: Boundary, to: Boundary, limit: Limit, cuts: &mut Vec<Boundary>) {
        let mut left = from;
        while !limit.holds(&left, &to, 1) {
            let right = self.fill(left, to, limit);
            if right.at >= to.at {
                break;
            }
            cuts.push(right);
            left = right;
        }
        cuts.push(to);
    }

    /// The end of the longest good piece that starts at `left`.
    pub(super) fn fill(&self, left: Boundary, to: Boundary, limit: Limit) -> Boundary {
        let by_tokens = self.spans.get(left.tokens + limit.tokens).map_or(to.end, |span| span.start.min(to.end));
        let window = &self.text[left.at..self.text.floor_char_boundary(by_tokens).max(left.at)];
        let length = window.char_indices().nth(limit.chars).map_or(window.len(), |(at, _)| at);
        let window = &window[..length];

        let rest = &self.text[left.at..to.end];
        // A word is not worth half of the piece.
        let word = match rest[length..].chars().next() {
            Some(next) if !next.is_whitespace() => window.rfind(char::is_whitespace).filter(|&at| at > length / 2),
            _ => (length > 0).then_some(length),
        };
        let place = word.unwrap_or_else(|| last_grapheme(rest, length));
        self.boundary_at(left, left.at + place)
    }

    /// A boundary at any place behind `left`.
    fn boundary_at(&self, left: Boundary, place: usize) -> Boundary {
        let end = left.at + self.text[left.at..place].trim_end().len();
        let at = place + (self.text[place..].len() - self.text[place..].trim_start().len());
        let end_char = left.at_char + self.text[left.at..end].chars().count();
        let at_char = end_char + self.text[end..at].chars().count();
        let tokens = self.spans.partition_point(|span| span.start < end);
        Boundary { end, at, end_char, at_char, tokens, rank: Rank::Word, hash: 0 }
    }
}

/// The last boundary of graphemes in `text` up to `length`, or of characters where one grapheme is longer; never 0.
fn last_grapheme(text: &str, length: usize) -> usize {
    let length = length.max(text.chars().next().map_or(0, char::len_utf8));
    let mut cursor = GraphemeCursor::new(length, text.len(), true);
    match cursor.is_boundary(text, 0) {
        Ok(false) => cursor.prev_boundary(text, 0).ok().flatten().filter(|&at| at > 0).unwrap_or(length),
        _ => length,
    }
}

/// The first boundary of graphemes in `text` from `at` on.
pub(super) fn next_grapheme(text: &str, at: usize) -> usize {
    let mut cursor = GraphemeCursor::new(at, text.len(), true);
    match cursor.is_boundary(text, 0) {
        Ok(false) => cursor.next_boundary(text, 0).ok().flatten().unwrap_or(at),
        _ => at,
    }
}

/// Chooses among boundaries so that what is between two chosen ones is within the limit, as far as there are boundaries.
///
/// The best go first, by rank and then by the hash of what follows them, wherever they are in the text; one is chosen where the
/// piece around it is still too long and no cut is within a third of a piece, or within a quarter if nothing else of its rank
/// is left. So a cut depends on its surroundings alone, and an edit moves only the cuts around it; packing from the front would
/// move all that follow. Cuts chosen later may leave an earlier one between two pieces that fit into one: such cuts go again,
/// the worst first. Without that real texts came out in pieces of 234 tokens where 400 were allowed, with it in 268, and a
/// paragraph edited in them makes fewer new chunks. A half in place of the third makes them no larger and edits dearer.
///
/// `finer` is asked for what to choose where a piece is still too long when all are; what it chooses comes after all others.
fn choose(
    boundaries: &[Boundary],
    limit: Limit,
    finer: impl Fn(&Boundary, &Boundary) -> Vec<Boundary>,
) -> Vec<Boundary> {
    let (chosen, needed) = best_first(boundaries, limit);
    let mut cuts = vec![boundaries[0]];
    for pair in chosen.windows(2) {
        let [left, right] = [pair[0], pair[1]].map(|index| &boundaries[index]);
        if !limit.holds(left, right, 1) {
            let between = finer(left, right);
            cuts.extend(between.iter().skip(1).take(between.len().saturating_sub(2)));
        }
        cuts.push(*right);
    }
    let mut left_over = Marks::new(cuts.len());
    (0..cuts.len()).for_each(|place| left_over.insert(place));
    for index in needed.into_iter().rev() {
        let Ok(place) = cuts.binary_search_by_key(&boundaries[index].at, |cut| cut.at) else { continue };
        let around = left_over.before(place).zip(left_over.from(place + 1));
        if around.is_some_and(|(left, right)| limit.holds(&cuts[left], &cuts[right], 1)) {
            left_over.remove(place);
        }
    }
    left_over.into_places().into_iter().map(|place| cuts[place]).collect()
}

/// Chooses as long as pieces are too long: the places of all that are chosen in order, the first and the last among them, and in
/// the order in which they were needed the others.
fn best_first(boundaries: &[Boundary], limit: Limit) -> (Vec<usize>, Vec<usize>) {
    let last = boundaries.len() - 1;
    let mut chosen = Marks::new(boundaries.len());
    chosen.insert(0);
    chosen.insert(last);
    let mut needed = Vec::new();
    for equals in by_rank(&boundaries[..last]).into_values() {
        let mut order = still_needed(boundaries, &chosen, &equals, limit);
        order.sort_unstable_by_key(|&index| (boundaries[index].hash, index));
        for nearest in [3, 4] {
            for &index in &order {
                let Some((left, right)) = chosen.before(index).zip(chosen.from(index)) else { continue };
                if right == index {
                    continue;
                }
                let [left, here, right] = [left, index, right].map(|index| &boundaries[index]);
                let is_needed = !limit.holds(left, right, 1);
                if is_needed && !limit.holds(left, here, nearest) && !limit.holds(here, right, nearest) {
                    chosen.insert(index);
                    needed.push(index);
                }
            }
        }
    }
    (chosen.into_places(), needed)
}

fn with_ends(first: Boundary, between: &[Boundary], last: Boundary) -> Vec<Boundary> {
    let mut all = Vec::with_capacity(between.len() + 2);
    all.push(first);
    all.extend_from_slice(between);
    all.push(last);
    all
}

/// The places of all but the first boundary, those of the best rank first.
fn by_rank(boundaries: &[Boundary]) -> BTreeMap<Reverse<Rank>, Vec<usize>> {
    let mut by_rank: BTreeMap<Reverse<Rank>, Vec<usize>> = BTreeMap::new();
    let mut first = 1;
    for equals in boundaries[1..].chunk_by(|left, right| left.rank == right.rank) {
        by_rank.entry(Reverse(equals[0].rank)).or_default().extend(first..first + equals.len());
        first += equals.len();
    }
    by_rank
}

/// Those of `places`, which grow, that are where a piece is still too long: where it is not, nothing more will be chosen.
fn still_needed(boundaries: &[Boundary], chosen: &Marks, places: &[usize], limit: Limit) -> Vec<usize> {
    let (mut right, mut too_long) = (0, false);
    let mut needed = Vec::new();
    for &place in places {
        if place >= right {
            let Some((left, next)) = chosen.before(place).zip(chosen.from(place)) else { continue };
            right = next;
            too_long = !limit.holds(&boundaries[left], &boundaries[right], 1);
        }
        if too_long {
            needed.push(place);
        }
    }
    needed
}
