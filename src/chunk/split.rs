use crate::domain::{Chunk, Document};

use super::{Rules, TokenSpan, Tokenizer, TooLong};

/// A document's chunks.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub chunks: Vec<Chunk>,
    /// Where one vector is wanted of a text that exceeds the model (`longer = "mean"`): the parts whose vectors are averaged, by
    /// the index of their chunk. Empty otherwise.
    pub parts: Vec<Vec<Chunk>>,
    /// Tokens of the whole text.
    pub tokens: usize,
}

/// Cuts a document. `dress` makes what is embedded out of a chunk, where that differs from its text; it counts in the limit.
///
/// # Errors
/// [`TooLong`], where a whole text exceeds the model and may not be cut.
pub fn split(
    _document: &Document,
    _rules: &Rules,
    _tokenizer: &Tokenizer,
    _dress: Option<&dyn Fn(&Chunk) -> String>,
) -> Result<Plan, TooLong> {
    let _ = TokenSpan { start: 0 };
    todo!()
}
