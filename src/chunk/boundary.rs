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
    for (nth, (at, character)) in document.text[part.bytes.clone()].char_indices().enumerate() {
        if character.is_whitespace() {
            scan.newlines += usize::from(character == '\n');
        } else {
            scan.visible(part.bytes.start + at, part.at_char + nth, character);
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

    fn first(&mut self, at: usize, at_char: usize) {
        let level = self.heading_before(at).unwrap_or(0);
        self.push(at, at_char, Rank::Heading(Reverse(level)), 0);
        self.line_start = at;
    }

    fn consider(&mut self, at: usize, at_char: usize, character: char) {
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
        let hash = hash(&self.text.as_bytes()[at..]);
        if rank > Rank::Word || hash.is_multiple_of(WORDS_PER_BOUNDARY) {
            self.push(at, at_char, rank, hash);
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
        while let Some(heading) = self.headings.next_if(|heading| heading.at <= at) {
            level = Some(level.map_or(heading.level, |level: u8| level.min(heading.level)));
            let longest = heading.title.len() + 16;
            let line = &self.text[at..self.text.floor_char_boundary(at + longest + 1)];
            // Where the line is longer than the title, the heading is not in the text and there is nothing to keep together.
            if let Some(length) = line.find('\n').or((line.len() <= longest).then_some(line.len())) {
                self.heading_end = at + length;
            }
        }
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

fn hash(bytes: &[u8]) -> u64 {
    let bytes = &bytes[..bytes.len().min(32)];
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain([&last]);
    let mixed = words.fold(0x9e37_79b9_7f4a_7c15_u64, |hash, word| {
        (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
    });
    (mixed ^ (mixed >> 29)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 8
}
