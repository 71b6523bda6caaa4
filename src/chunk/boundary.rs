use std::cmp::Reverse;
use std::ops::Range;

use crate::domain::{Document, Heading};

use super::TokenSpan;
use super::sentence::{Stop, stop};

/// Of words, one in so many is remembered: enough to cut text without any punctuation, and where the same words stand again
/// the same are remembered again.
const WORDS_PER_BOUNDARY: u64 = 32;

/// A line at least this long, in bytes, that ends in the middle of a sentence was wrapped.
const WRAPPED_LINE: usize = 45;

/// How good a place is for a cut, the worst first.
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

/// The boundaries of a part in order, down to clauses and a sample of its words; the first and the last are the ends of what is
/// visible. Empty where nothing is.
pub(super) fn scan(document: &Document, part: &Part, spans: &[TokenSpan]) -> Vec<Boundary> {
    let mut scan = Scan::new(document, part, spans);
    let text = &document.text[..part.bytes.end];
    let bytes = text.as_bytes();
    let (mut at, mut at_char) = (part.bytes.start, part.at_char);
    while let Some(&byte) = bytes.get(at) {
        let character = if byte.is_ascii() { char::from(byte) } else { text[at..].chars().next().unwrap_or_default() };
        if character.is_whitespace() {
            scan.newlines += usize::from(character == '\n');
        } else {
            scan.visible(at, at_char, character);
        }
        at += character.len_utf8();
        at_char += 1;
        if character.is_ascii_graphic() {
            let rest = scan.go_on(&bytes[at..]);
            at += rest;
            at_char += rest;
        }
    }
    scan.finish()
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
    for separator in ["\n\n", "\n", " "] {
        let visible = |(at, _)| {
            let from: usize = at + separator.len();
            text[from..].find(|character: char| !character.is_whitespace()).map(|blank| within.start + from + blank)
        };
        let found = text.match_indices(separator).filter_map(visible).max_by_key(of_equals);
        if found.is_some() {
            return found;
        }
    }
    None
}

struct Scan<'text> {
    text: &'text str,
    spans: &'text [TokenSpan],
    /// Those still to come.
    headings: std::iter::Peekable<std::slice::Iter<'text, Heading>>,
    /// Where the first of them is, or before it.
    next_heading: usize,
    found: Vec<Boundary>,
    tokens: usize,
    /// The end of the last visible character, and that character.
    end: usize,
    end_char: usize,
    last: char,
    newlines: usize,
    line_start: usize,
    /// Whether the line is a row of a table.
    is_row: bool,
    /// Where the line of the last heading ends; it stays with what follows.
    heading_end: usize,
}

impl<'text> Scan<'text> {
    fn new(document: &'text Document, part: &Part, spans: &'text [TokenSpan]) -> Self {
        let before = document.headings.partition_point(|heading| heading.at < part.bytes.start);
        Self {
            text: &document.text,
            spans,
            headings: document.headings[before..].iter().peekable(),
            next_heading: 0,
            found: Vec::with_capacity(part.bytes.len() / 48 + 2),
            tokens: 0,
            end: 0,
            end_char: 0,
            last: ' ',
            newlines: 0,
            line_start: 0,
            is_row: false,
            heading_end: 0,
        }
    }

    fn visible(&mut self, at: usize, at_char: usize, character: char) {
        if self.found.is_empty() {
            self.first(at, at_char);
        } else if self.end < at || !self.last.is_ascii() {
            self.consider(at, at_char, character);
        }
        self.is_row |= character == '|';
        self.end = at + character.len_utf8();
        self.end_char = at_char + 1;
        self.last = character;
        self.newlines = 0;
    }

    /// Takes what is left of a word in ASCII at once, within which nothing can end; how much that is.
    fn go_on(&mut self, bytes: &[u8]) -> usize {
        let rest = bytes.iter().position(|byte| !byte.is_ascii_graphic()).map_or(bytes, |end| &bytes[..end]);
        if let Some(&last) = rest.last() {
            self.is_row |= rest.contains(&b'|');
            self.last = char::from(last);
            self.end += rest.len();
            self.end_char += rest.len();
        }
        rest.len()
    }

    fn first(&mut self, at: usize, at_char: usize) {
        let level = self.heading_before(at).unwrap_or(0);
        self.push(at, at_char, Rank::Heading(Reverse(level)), 0);
        self.line_start = at;
    }

    fn consider(&mut self, at: usize, at_char: usize, character: char) {
        let is_plain = self.last.is_ascii_alphanumeric() && self.newlines == 0;
        if is_plain && at < self.next_heading && self.heading_end < self.end {
            // From one word to the next, as nearly always: the rest would say the same, and costs more than all else here.
            self.word(at, at_char);
        } else {
            self.weigh(at, at_char, character);
        }
    }

    fn word(&mut self, at: usize, at_char: usize) {
        let hash = hash(&self.text.as_bytes()[at..]);
        if hash.is_multiple_of(WORDS_PER_BOUNDARY) {
            self.push(at, at_char, Rank::Word, hash);
        }
    }

    fn weigh(&mut self, at: usize, at_char: usize, character: char) {
        let after_heading = self.end <= self.heading_end;
        let rank = match self.heading_before(at) {
            // A heading right below a heading: better together, but apart if need be.
            Some(_) if after_heading => Some(Rank::Line),
            Some(level) => Some(Rank::Heading(Reverse(level))),
            None if after_heading => None,
            None => self.rank(at, character),
        };
        if self.newlines > 0 {
            self.line_start = at;
            self.is_row = false;
        }
        let Some(rank) = rank else { return };
        if rank > Rank::Word {
            self.push(at, at_char, rank, hash(&self.text.as_bytes()[at..]));
        } else {
            self.word(at, at_char);
        }
    }

    fn rank(&self, at: usize, next: char) -> Option<Rank> {
        if self.newlines > 1 {
            return Some(Rank::Paragraph);
        }
        let spaced = self.end < at;
        let stop = stop(&self.text[..self.end], self.last, next, spaced);
        if self.newlines == 1 && (stop == Some(Stop::Sentence) || self.is_own_line(at)) {
            return Some(Rank::Line);
        }
        match stop {
            Some(Stop::Sentence) => Some(Rank::Sentence),
            Some(Stop::Clause) => Some(Rank::Clause),
            None => spaced.then_some(Rank::Word),
        }
    }

    /// Whether the line that just ended, or the one at `at`, is more than a wrapped part of a paragraph.
    fn is_own_line(&self, at: usize) -> bool {
        self.is_row || self.end - self.line_start < WRAPPED_LINE || starts_item(&self.text[at..])
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
            }
        }
        self.next_heading = self.headings.peek().map_or(usize::MAX, |heading| heading.at);
        level
    }

    fn push(&mut self, at: usize, at_char: usize, rank: Rank, hash: u64) {
        while self.spans.get(self.tokens).is_some_and(|span| span.start < self.end) {
            self.tokens += 1;
        }
        let Self { end, end_char, tokens, .. } = *self;
        self.found.push(Boundary { end, at, end_char, at_char, tokens, rank, hash });
    }

    fn finish(mut self) -> Vec<Boundary> {
        if !self.found.is_empty() {
            self.push(self.end, self.end_char, Rank::Heading(Reverse(0)), 0);
        }
        self.found
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
