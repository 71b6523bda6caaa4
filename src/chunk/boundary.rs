use std::cmp::Reverse;
use std::ops::Range;

use crate::domain::{Document, Heading};

use super::TokenSpan;
use super::sentence::{Stop, is_closer, is_mark, stop};

/// Of words, one in so many is remembered: enough to cut text without any punctuation, and where the same words stand again
/// the same are remembered again.
const WORDS_PER_BOUNDARY: u64 = 32;

/// A line at least this long, in bytes, that ends in the middle of a sentence was wrapped.
const WRAPPED_LINE: usize = 45;

/// How good a place is for a cut, the worst first. Those from a sentence on are strong, the others weak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Word,
    Clause,
    Sentence,
    Line,
    Paragraph,
    /// Before a heading, by its level.
    Heading(Reverse<u8>),
}

/// A place where a text may be cut: the left side ends at `end`, the right one starts at `at`, nothing visible is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boundary {
    pub end: usize,
    pub at: usize,
    /// The same two places, counted in characters.
    pub end_char: usize,
    pub at_char: usize,
    /// Tokens that start before `end`.
    pub tokens: usize,
    pub rank: Rank,
    /// A hash of the first bytes on the right: it ranks equals in a way that knows nothing of the text further away.
    pub hash: u64,
}

/// A part of a text: its bytes, and the characters before it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub bytes: Range<usize>,
    pub at_char: usize,
}

/// The boundaries of a part.
#[derive(Debug, Default)]
pub(super) struct Boundaries {
    /// The strong ones in order; the first and the last are the ends of what is visible. Empty where nothing is.
    pub strong: Vec<Boundary>,
    /// From which place on the line of a heading ends where; it stays with what follows.
    heading_ends: Vec<(usize, usize)>,
}

/// Finds the strong boundaries of a part. They are enough for nearly all text, and seldom: a look at each mark and line finds them, where
/// the weak ones take a look at each word. Where the strong ones are not enough, [`Boundaries::weak`] finds those.
pub(super) fn scan(document: &Document, part: &Part, spans: &[TokenSpan]) -> Boundaries {
    let text = &document.text[..part.bytes.end];
    let part_text = &text[part.bytes.start..];
    let first = part.bytes.end - part_text.trim_start().len();
    if first == part.bytes.end {
        return Boundaries::default();
    }
    let mut scan = Scan::new(document, part, spans);
    scan.first(first);
    let end = text.trim_end().len();
    let mut at = first;
    while let Some(place) = scan.next(&text[..end], at) {
        at = place;
    }
    scan.finish(end)
}

impl Boundaries {
    /// The strong boundaries that start after `from` and before `to`.
    pub(super) fn strong_between(&self, from: usize, to: usize) -> &[Boundary] {
        let first = self.strong.partition_point(|boundary| boundary.at <= from);
        let last = self.strong.partition_point(|boundary| boundary.at < to);
        &self.strong[first..last.max(first)]
    }

    /// The weak boundaries between two others in order: clauses, and a sample of the words.
    pub(super) fn weak(&self, text: &str, spans: &[TokenSpan], from: &Boundary, to: &Boundary) -> Vec<Boundary> {
        let mut found = Vec::new();
        let mut left = from;
        for right in self.strong_between(from.at, to.at).iter().chain([to]) {
            let known = self.heading_ends.partition_point(|&(at, _)| at <= left.at);
            let heading_end = known.checked_sub(1).map_or(0, |last| self.heading_ends[last].1);
            Words::new(text, spans, left, heading_end).find(right.end, &mut found);
            left = right;
        }
        found
    }
}

/// Where a text is best taken apart within a range: at the highest heading, else a paragraph, a line or a word, and of equals where
/// what follows says so, so that an edit elsewhere leaves it where it is.
pub(super) fn apart(document: &Document, within: Range<usize>) -> Option<usize> {
    let bytes = document.text.as_bytes();
    let of_equals = |&at: &usize| hash(&bytes[at..]);
    let starts = document.headings.partition_point(|heading| heading.at < within.start);
    let headings = document.headings[starts..].iter().take_while(|heading| heading.at < within.end);
    let highest = headings.clone().map(|heading| heading.level).min();
    if let Some(level) = highest {
        return headings.filter(|heading| heading.level == level).map(|heading| heading.at).max_by_key(of_equals);
    }
    let text = &document.text[within.clone()];
    for (separator, more) in [(b'\n', "\n"), (b'\n', ""), (b' ', "")] {
        let visible = |at: usize| {
            let after = &text[at + 1..];
            let blank = after.starts_with(more).then(|| after.find(|character: char| !character.is_whitespace()))??;
            Some(within.start + at + 1 + blank)
        };
        let separators = hits(text.as_bytes(), 0, |byte| u8::from(byte == separator));
        let found = separators.filter_map(visible).max_by_key(of_equals);
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Finds strong boundaries.
struct Scan<'text> {
    text: &'text str,
    spans: &'text [TokenSpan],
    /// Those still to come.
    headings: std::iter::Peekable<std::slice::Iter<'text, Heading>>,
    /// Where the first of them is.
    next_heading: usize,
    found: Boundaries,
    tokens: usize,
    /// A place, and the characters before it.
    counted: (usize, usize),
    /// Whether each byte of the part is a character.
    is_ascii: bool,
    line_start: usize,
    /// The last bar met: a line with one is a row of a table.
    bar: usize,
    heading_end: usize,
}

impl<'text> Scan<'text> {
    fn new(document: &'text Document, part: &Part, spans: &'text [TokenSpan]) -> Self {
        let before = document.headings.partition_point(|heading| heading.at < part.bytes.start);
        let strong = Vec::with_capacity(part.bytes.len() / 96 + 2);
        Self {
            text: &document.text,
            spans,
            headings: document.headings[before..].iter().peekable(),
            next_heading: 0,
            found: Boundaries { strong, heading_ends: Vec::new() },
            tokens: 0,
            counted: (part.bytes.start, part.at_char),
            is_ascii: document.text[part.bytes.clone()].is_ascii(),
            line_start: 0,
            bar: 0,
            heading_end: 0,
        }
    }

    fn first(&mut self, at: usize) {
        let level = self.heading_before(at).unwrap_or(0);
        let at_char = self.characters(at);
        let rank = Rank::Heading(Reverse(level));
        self.found.strong.push(Boundary { end: 0, at, end_char: 0, at_char, tokens: 0, rank, hash: 0 });
        self.line_start = at;
    }

    /// Looks at the next place from `from` on where something may end that is more than a clause; where it is, unless there is none.
    fn next(&mut self, text: &str, from: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        let mut from = from;
        let end = loop {
            let Some(mark) = next_mark(&bytes[..bytes.len().min(self.next_heading)], from) else {
                return self.next_at_heading(text, from);
            };
            match bytes[mark] {
                b'\n' => break text[..mark].trim_end().len(),
                b'|' => {
                    self.bar = mark + 1;
                    from = mark + 1;
                }
                // Most that stand before a letter or another mark.
                byte if byte.is_ascii() && bytes.get(mark + 1).is_some_and(u8::is_ascii_graphic) => from = mark + 1,
                byte => {
                    let last = if byte.is_ascii() { char::from(byte) } else { text[mark..].chars().next()? };
                    from = mark + last.len_utf8();
                    let next = text[from..].chars().next()?;
                    if (is_mark(last) || is_closer(last)) && (next.is_whitespace() || !last.is_ascii()) {
                        break from;
                    }
                }
            }
        };
        let at = text.len() - text[end..].trim_start().len();
        self.weigh(end, at);
        Some(at)
    }

    /// The same where the next heading comes first: no place before it is one.
    fn next_at_heading(&mut self, text: &str, from: usize) -> Option<usize> {
        let from = text.ceil_char_boundary(from.max(self.next_heading));
        let mut last = text[..from].chars().next_back()?;
        for (offset, character) in text[from..].char_indices() {
            if !character.is_whitespace() && (last.is_whitespace() || !last.is_ascii()) {
                let at = from + offset;
                self.weigh(text[..at].trim_end().len(), at);
                return Some(at);
            }
            if character == '|' {
                self.bar = from + offset + 1;
            }
            last = character;
        }
        None
    }

    fn weigh(&mut self, end: usize, at: usize) {
        let newlines = self.text[end..at].bytes().filter(|&byte| byte == b'\n').count();
        let after_heading = end <= self.heading_end;
        let rank = match self.heading_before(at) {
            // A heading right below a heading: better together, but apart if need be.
            Some(_) if after_heading => Some(Rank::Line),
            Some(level) => Some(Rank::Heading(Reverse(level))),
            None if after_heading => None,
            None => self.rank(end, at, newlines),
        };
        if newlines > 0 {
            self.line_start = at;
        }
        if let Some(rank) = rank {
            self.push(end, at, rank, hash(&self.text.as_bytes()[at..]));
        }
    }

    fn rank(&self, end: usize, at: usize, newlines: usize) -> Option<Rank> {
        if newlines > 1 {
            return Some(Rank::Paragraph);
        }
        let last = self.text[..end].chars().next_back()?;
        let next = self.text[at..].chars().next()?;
        let is_sentence = stop(&self.text[..end], last, next, end < at) == Some(Stop::Sentence);
        if newlines == 1 && (is_sentence || self.is_own_line(end, at)) {
            return Some(Rank::Line);
        }
        is_sentence.then_some(Rank::Sentence)
    }

    /// Whether the line that just ended, or the one at `at`, is more than a wrapped part of a paragraph.
    fn is_own_line(&self, end: usize, at: usize) -> bool {
        let is_row = self.bar > self.line_start;
        is_row || end - self.line_start < WRAPPED_LINE || starts_item(&self.text[at..])
    }

    /// Takes the headings up to `at`; the level of the highest.
    fn heading_before(&mut self, at: usize) -> Option<u8> {
        let mut level = None;
        if at < self.next_heading {
            return level;
        }
        while let Some(heading) = self.headings.next_if(|heading| heading.at <= at) {
            level = Some(level.map_or(heading.level, |level: u8| level.min(heading.level)));
            let longest = heading.title.len() + 16;
            let line = &self.text[at..self.text.floor_char_boundary(at + longest + 1)];
            // Where the line is longer than the title, the heading is not in the text and there is nothing to keep together.
            if let Some(length) = line.find('\n').or((line.len() <= longest).then_some(line.len())) {
                self.heading_end = at + length;
                self.found.heading_ends.push((at, self.heading_end));
            }
        }
        self.next_heading = self.headings.peek().map_or(usize::MAX, |heading| heading.at);
        level
    }

    fn push(&mut self, end: usize, at: usize, rank: Rank, hash: u64) {
        self.tokens = starts_before(self.spans, self.tokens, end);
        let end_char = self.characters(end);
        let at_char = self.characters(at);
        self.found.strong.push(Boundary { end, at, end_char, at_char, tokens: self.tokens, rank, hash });
    }

    /// The characters before a place.
    fn characters(&mut self, at: usize) -> usize {
        let (from, before) = self.counted;
        let more = if self.is_ascii { at - from } else { self.text[from..at].chars().count() };
        self.counted = (at, before + more);
        self.counted.1
    }

    fn finish(mut self, end: usize) -> Boundaries {
        self.push(end, end, Rank::Heading(Reverse(0)), 0);
        self.found
    }
}

/// The next byte of a text after which a sentence or a line may end, or a bar.
fn next_mark(bytes: &[u8], from: usize) -> Option<usize> {
    let mut hits = hits(bytes, from, may_end);
    hits.find(|&hit| bytes[hit].is_ascii() || is_lead_of_mark(bytes[hit]))
}

/// Where the bytes are for which `is_hit` says 1, and not 0. A block's bytes are asked at once, which a search that stops at the
/// first hit would not let the compiler do.
fn hits(bytes: &[u8], from: usize, is_hit: impl Fn(u8) -> u8) -> impl Iterator<Item = usize> {
    const BLOCK: usize = 16;
    let (mut at, mut found) = (from, 0_u128);
    let mut base = from;
    std::iter::from_fn(move || {
        while found == 0 {
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let mut block = [0; BLOCK];
            if let Some(whole) = rest.first_chunk::<BLOCK>() {
                block.iter_mut().zip(whole).for_each(|(hit, &byte)| *hit = is_hit(byte));
            } else {
                block.iter_mut().zip(rest).for_each(|(hit, &byte)| *hit = is_hit(byte));
            }
            found = u128::from_le_bytes(block);
            base = at;
            at += BLOCK;
        }
        let hit = base + usize::try_from(found.trailing_zeros()).unwrap_or_default() / 8;
        found &= found - 1;
        Some(hit)
    })
}

/// 1 for the marks and closers of ASCII, a bar, the end of a line and the first byte of every other character. No branches: see above.
fn may_end(byte: u8) -> u8 {
    let is = |mark: u8| u8::from(byte == mark);
    let is_mark = is(b'.') | is(b'!') | is(b'?') | is(b'\n');
    let is_closer = is(b'"') | is(b'\'') | is(b')') | is(b']') | is(b'}');
    is_mark | is_closer | is(b'|') | u8::from(byte >= 0xc0)
}

/// Whether a mark or closer beyond ASCII begins with this byte.
fn is_lead_of_mark(byte: u8) -> bool {
    matches!(byte, 0xc2 | 0xd6 | 0xd8 | 0xdb | 0xe0..=0xe3 | 0xef)
}

/// How many tokens start before a place, of which the first `known` do.
fn starts_before(spans: &[TokenSpan], known: usize, place: usize) -> usize {
    const STRIDE: usize = 8;
    let is_before = |span: &TokenSpan| span.start < place;
    let mut count = known;
    while spans.get(count + STRIDE).is_some_and(is_before) {
        count += STRIDE;
    }
    count + spans[count..].iter().take_while(|span| is_before(span)).count()
}

/// Finds weak boundaries where there are no strong ones.
struct Words<'text> {
    text: &'text str,
    spans: &'text [TokenSpan],
    /// Where to go on, and the characters before.
    at: usize,
    at_char: usize,
    tokens: usize,
    /// The end of the last visible character, and that character.
    end: usize,
    end_char: usize,
    last: char,
    /// Up to here there is the line of a heading, in which nothing ends.
    heading_end: usize,
}

impl<'text> Words<'text> {
    fn new(text: &'text str, spans: &'text [TokenSpan], from: &Boundary, heading_end: usize) -> Self {
        let Boundary { at, at_char, tokens, .. } = *from;
        Self { text, spans, at, at_char, tokens, end: at, end_char: at_char, last: ' ', heading_end }
    }

    fn find(mut self, until: usize, found: &mut Vec<Boundary>) {
        let text = &self.text[..until];
        let bytes = text.as_bytes();
        let from = self.at;
        while let Some(&byte) = bytes.get(self.at) {
            let character =
                if byte.is_ascii() { char::from(byte) } else { text[self.at..].chars().next().unwrap_or_default() };
            let here = self.at;
            if !character.is_whitespace() {
                if here > from && (self.end < here || !self.last.is_ascii()) {
                    found.extend(self.weigh(character));
                }
                self.end = here + character.len_utf8();
                self.end_char = self.at_char + 1;
                self.last = character;
            }
            self.at += character.len_utf8();
            self.at_char += 1;
            if character.is_ascii_graphic() {
                self.go_on(&bytes[self.at..]);
            }
        }
    }

    fn weigh(&mut self, next: char) -> Option<Boundary> {
        if self.end <= self.heading_end {
            return None;
        }
        let spaced = self.end < self.at;
        // After a letter or digit of ASCII, as nearly always, nothing but the word ends.
        let is_clause = !self.last.is_ascii_alphanumeric()
            && stop(&self.text[..self.end], self.last, next, spaced) == Some(Stop::Clause);
        if !is_clause && !spaced {
            return None;
        }
        let hash = hash(&self.text.as_bytes()[self.at..]);
        let rank = if is_clause { Rank::Clause } else { Rank::Word };
        if rank == Rank::Word && !hash.is_multiple_of(WORDS_PER_BOUNDARY) {
            return None;
        }
        self.tokens = starts_before(self.spans, self.tokens, self.end);
        let Self { at, at_char, end, end_char, tokens, .. } = *self;
        Some(Boundary { end, at, end_char, at_char, tokens, rank, hash })
    }

    /// Takes what is left of a word in ASCII at once, within which nothing can end.
    fn go_on(&mut self, bytes: &[u8]) {
        let rest = bytes.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(bytes.len());
        if let Some(&last) = bytes[..rest].last() {
            self.at += rest;
            self.at_char += rest;
            self.end = self.at;
            self.end_char = self.at_char;
            self.last = char::from(last);
        }
    }
}

fn starts_item(line: &str) -> bool {
    let after_number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let mark = if after_number.len() < line.len() && line.len() - after_number.len() <= 3 {
        after_number.strip_prefix(['.', ')'])
    } else {
        line.strip_prefix(['-', '*', '+', '•', '–', '‣', '◦', '▪', '·', '|'])
    };
    mark.is_some_and(|rest| rest.starts_with(char::is_whitespace))
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: &[u8; 8]| {
        (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
    };
    let mixed = if let Some(first) = bytes.first_chunk::<32>() {
        // Nearly always, and of a length that the compiler knows.
        first.as_chunks::<8>().0.iter().chain([&[0; 8]]).fold(SEED, mix)
    } else {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        words.iter().chain([&last]).fold(SEED, mix)
    };
    (mixed ^ (mixed >> 29)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_that_is_passed_on_the_way_to_a_heading_still_makes_a_row() {
        let text = "An opening.\nab|cd ef and words until this line is not a short one\nanother line";
        let heading = Heading { at: text.find("b|cd").unwrap(), level: 1, title: "x".to_owned() };
        let document = Document { headings: vec![heading], ..Document::plain(text.to_owned()) };
        let all = Part { bytes: 0..text.len(), at_char: 0 };
        let found = scan(&document, &all, &[]).strong;
        let ranks: Vec<_> = found
            .iter()
            .map(|boundary| (&text[boundary.at..][..2.min(text.len() - boundary.at)], boundary.rank))
            .collect();
        let [top, heading] = [0, 1].map(|level| Rank::Heading(Reverse(level)));
        assert_eq!(ranks, [("An", top), ("ab", Rank::Line), ("ef", heading), ("an", Rank::Line), ("", top)]);
    }
}
