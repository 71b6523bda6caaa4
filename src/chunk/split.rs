use crate::config::{ChunkSize, Longer};
use crate::domain::{Chunk, Document};

use super::boundary::{Boundary, Part, apart, scan};
use super::cut::{Cutter, Limit, next_grapheme};
use super::tokens::{first_seam, last_seam};
use super::{Rules, Tokenizer, TooLong};

/// A slice encoded anew may differ from its part of the whole text by so many tokens.
const MARGIN: usize = 2;

/// A token may stand for a very long run (an unknown word, a line of dots); a chunk of such tokens must not be a megabyte.
const CHARS_PER_TOKEN: usize = 32;

/// Longer texts are cut part by part: the tokens and boundaries of a text take some twenty times its size while it is cut.
pub(super) const LONGEST_PART: usize = 2 << 20;

/// A document's chunks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub chunks: Vec<Chunk>,
    /// Where one vector is wanted of a text that exceeds the model (`longer = "mean"`): the parts whose vectors are averaged, by
    /// the index of their chunk. Empty otherwise.
    pub parts: Vec<Vec<Chunk>>,
    /// Tokens of the whole text.
    pub tokens: usize,
}

/// Makes what is embedded out of a chunk.
pub type Dress<'a> = Option<&'a dyn Fn(&Chunk) -> String>;

/// Cuts a document. `dress` makes what is embedded out of a chunk, where that differs from its text; it counts in the limit.
/// Where it adds more than half of what the model takes and does not fit, the text goes without it.
///
/// # Errors
/// [`TooLong`], where a whole text exceeds the model and may not be cut.
pub fn split(document: &Document, rules: &Rules, tokenizer: &Tokenizer, dress: Dress<'_>) -> Result<Plan, TooLong> {
    split_by(document, rules, tokenizer, dress, LONGEST_PART)
}

pub(super) fn split_by(
    document: &Document,
    rules: &Rules,
    tokenizer: &Tokenizer,
    dress: Dress<'_>,
    longest_part: usize,
) -> Result<Plan, TooLong> {
    if !rules.whole
        && document.text.len() > longest_part
        && let Some(plan) = part_by_part(document, rules, tokenizer, dress, longest_part)
    {
        return Ok(plan);
    }
    let all = Part { bytes: 0..document.text.len(), at_char: 0 };
    let spans = tokenizer.encode(&document.text);
    let boundaries = scan(document, &all, &spans);
    let [first, .., last] = boundaries.strong[..] else { return Ok(Plan::default()) };
    let cutter = Cutter { text: &document.text, spans: &spans, boundaries: &boundaries };
    let splitter = Splitter { document, rules, tokenizer, dress, cutter };

    let tokens = spans.len() + tokenizer.special();
    if !rules.whole && tokens > rules.whole_up_to && !splitter.may_be_one(tokens, &last) {
        return Ok(Plan { chunks: splitter.pieces(first, last), parts: Vec::new(), tokens });
    }
    let whole = splitter.measure(0, Start::of(&first), &last);
    if whole.chunk.tokens <= rules.longest && (rules.whole || tokens <= rules.whole_up_to || splitter.is_good(&whole)) {
        return Ok(Plan { chunks: vec![whole.chunk], parts: Vec::new(), tokens });
    }
    if !rules.whole {
        return Ok(Plan { chunks: splitter.pieces(first, last), parts: Vec::new(), tokens });
    }
    match rules.longer {
        Longer::Fail => Err(TooLong { tokens: whole.chunk.tokens, longest: rules.longest }),
        Longer::Cut => Ok(Plan { chunks: vec![splitter.shortened(&whole, first, last)], parts: Vec::new(), tokens }),
        Longer::Mean => {
            let full = Rules { size: ChunkSize::Tokens(rules.longest), overlap: 0, ..rules.clone() };
            let parts = Splitter { rules: &full, ..splitter }.pieces(first, last);
            Ok(Plan { chunks: vec![whole.chunk], parts: vec![parts], tokens })
        }
    }
}

/// Cuts a text that is surely no single chunk; none where that is not sure. No overlap reaches from one part into the next.
fn part_by_part(
    document: &Document,
    rules: &Rules,
    tokenizer: &Tokenizer,
    dress: Dress<'_>,
    longest_part: usize,
) -> Option<Plan> {
    let text = &document.text;
    let mut plan = Plan { tokens: tokenizer.special(), ..Plan::default() };
    let mut part = Part { bytes: 0..0, at_char: 0 };
    while part.bytes.end < text.len() {
        let from = part.bytes.end;
        let until = text.floor_char_boundary(from.saturating_add(longest_part));
        let half = text.ceil_char_boundary(from + longest_part / 2);
        let until = if until < text.len() { apart(document, half..until).unwrap_or(until) } else { until };
        part = Part { at_char: part.at_char + text[part.bytes].chars().count(), bytes: from..until };

        let spans = tokenizer.encode_part(&text[part.bytes.clone()], from);
        if from == 0 && spans.len() <= rules.longest {
            return None;
        }
        plan.tokens += spans.len();
        let boundaries = scan(document, &part, &spans);
        let [first, .., last] = boundaries.strong[..] else { continue };
        let cutter = Cutter { text, spans: &spans, boundaries: &boundaries };
        Splitter { document, rules, tokenizer, dress, cutter }.add_pieces(first, last, &mut plan.chunks);
    }
    Some(plan)
}

#[derive(Clone, Copy)]
struct Splitter<'a> {
    document: &'a Document,
    rules: &'a Rules,
    tokenizer: &'a Tokenizer,
    dress: Dress<'a>,
    cutter: Cutter<'a>,
}

/// Where a chunk starts: at its cut, or before it where it overlaps.
#[derive(Clone, Copy)]
struct Start {
    at: usize,
    at_char: usize,
}

impl Start {
    fn of(boundary: &Boundary) -> Self {
        Self { at: boundary.at, at_char: boundary.at_char }
    }
}

/// A chunk, and the tokens of its text alone.
struct Measured {
    chunk: Chunk,
    text_tokens: usize,
}

impl Splitter<'_> {
    fn may_be_one(&self, tokens: usize, last: &Boundary) -> bool {
        match self.rules.size {
            ChunkSize::Tokens(most) => tokens <= most,
            ChunkSize::Characters(most) => last.end_char <= most,
        }
    }

    fn is_good(&self, measured: &Measured) -> bool {
        let Measured { chunk, text_tokens } = measured;
        let is_small = match self.rules.size {
            ChunkSize::Tokens(most) => *text_tokens <= most,
            ChunkSize::Characters(most) => chunk.end - chunk.start <= most,
        };
        is_small && chunk.tokens <= self.rules.longest
    }

    fn pieces(&self, first: Boundary, last: Boundary) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        self.add_pieces(first, last, &mut chunks);
        chunks
    }

    fn add_pieces(&self, first: Boundary, last: Boundary, chunks: &mut Vec<Chunk>) {
        let (limit, overlap) = self.limit();
        let cuts = self.cutter.cut(first, last, limit);
        let mut before = None;
        for pair in cuts.windows(2) {
            let [from, to] = [pair[0], pair[1]];
            let start = before.map_or(Start::of(&from), |before| self.overlapped(&before, &from, overlap));
            self.place(start, from, to, limit, chunks);
            before = Some(from);
        }
    }

    /// What is between two cuts may have at most, and the overlap that it leaves room for.
    fn limit(&self) -> (Limit, usize) {
        let Rules { size, overlap, longest, .. } = *self.rules;
        let model = longest.saturating_sub(self.dressing());
        let room = |tokens: usize| tokens.saturating_sub(self.tokenizer.special() + MARGIN).max(1);
        match size {
            ChunkSize::Tokens(most) => {
                let most = room(most.min(model));
                let overlap = overlap.min(most / 2);
                let tokens = most - overlap;
                (Limit { tokens, chars: tokens.saturating_mul(CHARS_PER_TOKEN) }, overlap)
            }
            ChunkSize::Characters(most) => {
                let overlap = overlap.min(most / 2);
                (Limit { tokens: room(model), chars: (most - overlap).max(1) }, overlap)
            }
        }
    }

    /// Tokens to keep free for the dressing, by that of the longest section title.
    fn dressing(&self) -> usize {
        let Some(dress) = self.dress else { return 0 };
        let longest = self.document.headings.iter().max_by_key(|heading| heading.title.len());
        let probe = Chunk {
            index: 0,
            text: String::new(),
            embedded: None,
            tokens: 0,
            page: None,
            section: longest.map(|heading| heading.title.clone()),
            level: longest.map(|heading| heading.level),
            start: 0,
            end: 0,
        };
        self.tokenizer.count_plain(&dress(&probe)).min(self.rules.longest / 4)
    }

    /// Adds what is between two cuts as a chunk; without its overlap, then in parts, where it proves too long.
    fn place(&self, start: Start, from: Boundary, to: Boundary, limit: Limit, chunks: &mut Vec<Chunk>) {
        let measured = self.measure(chunks.len(), start, &to);
        if self.is_good(&measured) {
            chunks.push(measured.chunk);
        } else if start.at < from.at {
            self.place(Start::of(&from), from, to, limit, chunks);
        } else if limit.is_least() {
            chunks.push(Chunk { embedded: None, tokens: measured.text_tokens, ..measured.chunk });
        } else {
            let limit = limit.half();
            for pair in self.cutter.cut(from, to, limit).windows(2) {
                self.place(Start::of(&pair[0]), pair[0], pair[1], limit, chunks);
            }
        }
    }

    /// As much of a whole text as the model takes.
    fn shortened(&self, whole: &Measured, first: Boundary, last: Boundary) -> Chunk {
        let around = whole.chunk.tokens.saturating_sub(whole.text_tokens) + self.tokenizer.special();
        let mut tokens = self.rules.longest.saturating_sub(around).max(1);
        loop {
            let limit = Limit { tokens, chars: tokens.saturating_mul(CHARS_PER_TOKEN) };
            let measured = self.measure(0, Start::of(&first), &self.cutter.fill(first, last, limit));
            let over = measured.chunk.tokens.saturating_sub(self.rules.longest);
            if over == 0 || tokens == 1 {
                return measured.chunk;
            }
            tokens = tokens.saturating_sub(over).max(1);
        }
    }

    /// Up to `overlap` before a cut: from the first sentence that starts there, else the first clause or word. Never from before
    /// a heading, nor from before the last piece.
    fn overlapped(&self, before: &Boundary, cut: &Boundary, overlap: usize) -> Start {
        let text = &self.document.text;
        let earliest = match self.rules.size {
            ChunkSize::Tokens(_) => self.cutter.spans[cut.tokens.saturating_sub(overlap)].start,
            ChunkSize::Characters(_) => {
                text[..cut.at].char_indices().rev().take(overlap).last().map_or(cut.at, |(at, _)| at)
            }
        };
        let heading = self.heading_above(cut.at).map_or(0, |index| self.document.headings[index].at);
        let earliest = text.ceil_char_boundary(earliest.max(heading).max(before.at));
        if overlap == 0 || earliest >= cut.end {
            return Start::of(cut);
        }

        let at = match self.cutter.start_between(earliest, before, cut) {
            _ if earliest == before.at => earliest,
            Some(best) => best,
            None => before.at + next_word(&text[before.at..cut.end], earliest - before.at),
        };
        if at < cut.end {
            Start { at, at_char: cut.at_char - text[at..cut.at].chars().count() }
        } else {
            Start::of(cut)
        }
    }

    fn heading_above(&self, at: usize) -> Option<usize> {
        self.document.headings.partition_point(|heading| heading.at <= at).checked_sub(1)
    }

    fn measure(&self, index: usize, start: Start, end: &Boundary) -> Measured {
        let text = &self.document.text[start.at..end.end];
        let heading = self.heading_above(start.at).map(|index| &self.document.headings[index]);
        let text_tokens = self.count(text, start.at, end.tokens, text);
        let mut chunk = Chunk {
            index,
            text: text.to_owned(),
            embedded: None,
            tokens: text_tokens,
            page: self.page(start.at),
            section: heading.map(|heading| heading.title.clone()),
            level: heading.map(|heading| heading.level),
            start: start.at_char,
            end: end.end_char,
        };
        self.put_on(&mut chunk, start.at, end.tokens);
        Measured { chunk, text_tokens }
    }

    fn put_on(&self, chunk: &mut Chunk, at: usize, until: usize) {
        let Some(dress) = self.dress else { return };
        let embedded = dress(chunk);
        if embedded == chunk.text || embedded.trim().is_empty() {
            return;
        }
        let tokens = self.count(&chunk.text, at, until, &embedded);
        let added = tokens.saturating_sub(chunk.tokens);
        if tokens <= self.rules.longest || added <= self.rules.longest / 2 {
            chunk.tokens = tokens;
            chunk.embedded = Some(embedded);
        }
    }

    fn page(&self, at: usize) -> Option<u32> {
        let page = self.document.pages.partition_point(|&start| start <= at);
        (!self.document.pages.is_empty()).then(|| u32::try_from(page.max(1)).unwrap_or(u32::MAX))
    }

    /// Tokens of `embedded`, special ones included, as if it were encoded anew. Where it holds the slice `text` that starts at
    /// `at` and has the tokens before `until`, only what is outside of the slice's first and last seam is: between seams nothing can have changed.
    fn count(&self, text: &str, at: usize, until: usize, embedded: &str) -> usize {
        let seams = first_seam(text, self.tokenizer).zip(last_seam(text, self.tokenizer));
        let is_all = std::ptr::eq(embedded, text) || embedded == text;
        let offset = if is_all { Some(0) } else { embedded.find(text) };
        let Some(((first, last), offset)) = seams.zip(offset) else {
            return self.tokenizer.count(embedded);
        };
        let known = self.starts_before(at + last, until) - self.starts_before(at + first, until);
        let head = self.tokenizer.count(&embedded[..offset + first]);
        head + known + self.tokenizer.count_plain(&embedded[offset + last..])
    }

    /// Tokens that start before a place, looked for from `until` backwards: a chunk has few, a text may have millions.
    fn starts_before(&self, at: usize, until: usize) -> usize {
        let spans = self.cutter.spans;
        let (mut from, mut to, mut step) = (until, until, 256);
        while from > 0 && spans[from - 1].start >= at {
            to = from;
            from = from.saturating_sub(step);
            step *= 2;
        }
        from + spans[from..to].partition_point(|span| span.start < at)
    }
}

/// Where the first word after `from` starts, or the first character where no other word does.
fn next_word(text: &str, from: usize) -> usize {
    let space = text[from..].find(char::is_whitespace);
    space.map_or_else(|| next_grapheme(text, from), |space| text.len() - text[from + space..].trim_start().len())
}
