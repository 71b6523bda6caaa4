//! Floor 2: documents to chunks. Pure: no files, no network, no clock.

mod boundary;
mod cut;
mod marks;
mod sentence;
mod split;
#[cfg(test)]
mod tests;
mod tokens;

use crate::config::{ChunkSize, Longer};

pub use split::{Dress, Plan, split};
pub use tokens::{TokenSpan, Tokenizer};

/// A text that was to be one vector exceeds the model, and the pipeline says `longer = "fail"`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the text has {tokens} tokens and must be one vector, but the model takes {longest}; set chunks.longer to \"cut\" or \"mean\", or chunk it"
)]
pub struct TooLong {
    pub tokens: usize,
    pub longest: usize,
}

/// How one pipeline cuts.
#[derive(Debug, Clone)]
pub struct Rules {
    pub size: ChunkSize,
    pub overlap: usize,
    pub whole: bool,
    pub whole_up_to: usize,
    pub longer: Longer,
    /// Most tokens of one embedded text, the model's limit.
    pub longest: usize,
}
