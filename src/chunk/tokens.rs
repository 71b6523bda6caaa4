use std::sync::{Arc, LazyLock};

use tiktoken::CoreBpe;

/// The longest piece an encoder is given at once: its buffers, and what backtracking and merging cost, stay bounded.
const PIECE_BYTES: usize = 64 * 1024;

/// One token of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenSpan {
    /// Byte offset of the token's first byte in the text. May lie inside a character.
    pub start: usize,
}

/// Whose tokens are counted. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Kind);

#[derive(Clone)]
enum Kind {
    Tiktoken(&'static Tiktoken),
    Model(Arc<Model>),
}

struct Tiktoken {
    encoder: &'static CoreBpe,
    /// Bytes of each token, by its rank.
    lengths: Vec<usize>,
}

struct Model {
    encoder: tokenizers::Tokenizer,
    special: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            Kind::Tiktoken(_) => "Tokenizer(tiktoken)",
            Kind::Model(_) => "Tokenizer(model)",
        })
    }
}

static CL100K: LazyLock<Tiktoken> = LazyLock::new(|| Tiktoken::new("cl100k_base"));
static O200K: LazyLock<Tiktoken> = LazyLock::new(|| Tiktoken::new("o200k_base"));

impl Tokenizer {
    /// OpenAI's `cl100k_base`; its data is in the binary.
    pub fn cl100k() -> Self {
        Self(Kind::Tiktoken(&CL100K))
    }

    /// OpenAI's `o200k_base`; its data is in the binary.
    pub fn o200k() -> Self {
        Self(Kind::Tiktoken(&O200K))
    }

    /// A model's own `tokenizer.json`; padding and truncation in it are ignored.
    ///
    /// # Errors
    /// The file is not a tokenizer.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let mut encoder = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
        encoder.with_padding(None);
        encoder.with_truncation(None).map_err(|error| error.to_string())?;
        let special = encoder.encode_fast("", true).map_err(|error| error.to_string())?.len();
        Ok(Self(Kind::Model(Arc::new(Model { encoder, special }))))
    }

    /// Tokens of a text as the model counts them, special tokens included.
    pub fn count(&self, text: &str) -> usize {
        self.special() + self.count_plain(text)
    }

    /// Tokens that the model puts around every text.
    pub fn special(&self) -> usize {
        match &self.0 {
            Kind::Tiktoken(_) => 0,
            Kind::Model(model) => model.special,
        }
    }

    /// The tokens of a text in order, special tokens left out.
    pub fn encode(&self, text: &str) -> Vec<TokenSpan> {
        self.encode_part(text, 0)
    }

    /// The tokens of a part that starts at `at` of a text.
    pub(super) fn encode_part(&self, part: &str, at: usize) -> Vec<TokenSpan> {
        let mut spans: Vec<TokenSpan> = Vec::with_capacity(part.len() / 4);
        for (offset, piece) in self.pieces(part) {
            self.encode_piece(piece, at + offset, &mut spans);
        }
        spans
    }

    /// Tokens of a text, special tokens left out.
    pub(super) fn count_plain(&self, text: &str) -> usize {
        self.pieces(text).map(|(_, piece)| self.count_piece(piece)).sum()
    }

    /// Whether tokens always end between these two neighbours, whatever stands around them: what is on the left and on the
    /// right of a seam has the same tokens apart as together.
    pub(super) fn is_seam(&self, before: char, after: char) -> bool {
        let before_space = after == ' ' && !before.is_whitespace();
        match self.0 {
            Kind::Tiktoken(_) => before_space || (is_surely_letter_or_digit(before) && ends_a_run_of_letters(after)),
            Kind::Model(_) => before_space,
        }
    }

    /// The text in pieces that an encoder may be given, cut at seams where there are any.
    fn pieces<'text>(&self, text: &'text str) -> impl Iterator<Item = (usize, &'text str)> {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let rest = &text[offset..];
            let end = if rest.len() > PIECE_BYTES { self.piece_end(rest) } else { rest.len() };
            let piece = (offset, &rest[..end]);
            offset += end;
            (end > 0).then_some(piece)
        })
    }

    fn piece_end(&self, rest: &str) -> usize {
        let limit = rest.floor_char_boundary(PIECE_BYTES);
        let from = rest.floor_char_boundary(PIECE_BYTES / 4 * 3);
        last_seam(&rest[from..limit], self).map_or(limit, |at| from + at)
    }

    fn encode_piece(&self, piece: &str, offset: usize, spans: &mut Vec<TokenSpan>) {
        #[cfg(test)]
        tally::add(piece.len());
        match &self.0 {
            Kind::Tiktoken(tiktoken) => {
                let mut start = offset;
                for rank in tiktoken.encoder.encode(piece) {
                    spans.push(TokenSpan { start });
                    start += tiktoken.length(rank);
                }
            }
            Kind::Model(model) => model.encode(piece, offset, spans),
        }
    }

    fn count_piece(&self, piece: &str) -> usize {
        #[cfg(test)]
        tally::add(piece.len());
        match &self.0 {
            Kind::Tiktoken(tiktoken) => tiktoken.encoder.count(piece),
            Kind::Model(model) => model
                .encoder
                .encode_fast(piece, false)
                .map_or_else(|_| piece.chars().count(), |encoding| encoding.len()),
        }
    }
}

impl Tiktoken {
    fn new(name: &str) -> Self {
        let encoder = tiktoken::get_encoding(name).expect("its data is compiled in, as Cargo.toml says");
        let ranks = 0..u32::try_from(encoder.vocab_size()).unwrap_or(u32::MAX);
        Self { encoder, lengths: ranks.map(|rank| encoder.decode(&[rank]).len()).collect() }
    }

    fn length(&self, rank: u32) -> usize {
        usize::try_from(rank).ok().and_then(|rank| self.lengths.get(rank)).copied().unwrap_or(0)
    }
}

impl Model {
    /// Offsets are bytes of the text before normalisation. A piece that the model has no tokens for (no unknown token in its
    /// vocabulary) counts one for each character.
    fn encode(&self, piece: &str, offset: usize, spans: &mut Vec<TokenSpan>) {
        let Ok(encoding) = self.encoder.encode(piece, false) else {
            spans.extend(piece.char_indices().map(|(at, _)| TokenSpan { start: offset + at }));
            return;
        };
        // Normalisation may reorder marks, so that a token starts before its predecessor; ours only ever grow.
        let mut latest = offset;
        for &(start, _) in encoding.get_offsets() {
            latest = latest.max(offset + start);
            spans.push(TokenSpan { start: latest });
        }
    }
}

/// The first seam of a text, in bytes.
pub(super) fn first_seam(text: &str, tokenizer: &Tokenizer) -> Option<usize> {
    let after = text.char_indices().skip(1);
    text.chars().zip(after).find(|&(before, (_, after))| tokenizer.is_seam(before, after)).map(|(_, (at, _))| at)
}

/// The last seam of a text, in bytes.
pub(super) fn last_seam(text: &str, tokenizer: &Tokenizer) -> Option<usize> {
    let before = text.chars().rev().skip(1);
    text.char_indices()
        .rev()
        .zip(before)
        .find(|&((_, after), before)| tokenizer.is_seam(before, after))
        .map(|((at, _), _)| at)
}

/// Letters and digits in the sense of the encoders' patterns. Marks, which `is_alphanumeric` admits in part, are not.
fn is_surely_letter_or_digit(character: char) -> bool {
    matches!(character,
        'a'..='z' | 'A'..='Z' | '0'..='9'
        | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fa5}'
        | '\u{ac00}'..='\u{d7a3}')
}

fn ends_a_run_of_letters(character: char) -> bool {
    matches!(character, '\n' | ',' | '.' | ';' | ':' | '!' | '?' | '。' | '，' | '、' | '；' | '：' | '！' | '？')
}

/// What the tests ask instead of a clock: how many bytes were encoded.
#[cfg(test)]
pub(super) mod tally {
    use std::cell::Cell;

    thread_local! {
        static BYTES: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn add(bytes: usize) {
        BYTES.set(BYTES.get() + bytes);
    }

    /// The bytes encoded since the last call.
    pub fn take() -> usize {
        BYTES.replace(0)
    }
}
