//! Models that run inside this process, on candle: MiniLM, BGE-M3, and any BERT or XLM-RoBERTa whose folder has the usual files.
//!
//! The batches of a request go over our threads, and each thread works alone. What candle would share out within a batch it
//! shares out through one lock and threads that spin: start the process with `CANDLE_NUM_THREADS=1`, or a third of the
//! processor's time is spent waiting.

mod encoder;
mod folder;
mod threads;

use std::path::Path;

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::{Embedded, Embedder, ProviderError, checked};
use crate::domain::{BadVector, Embedding};
use encoder::{Encoder, Tokens};
use threads::Threads;

pub use folder::LocalError;

/// Texts of one pass through the model. More are slower: a batch is as wide as its longest text.
const BATCH: usize = 8;
/// Texts times tokens times tokens of one pass: attention compares each token with each, and what BGE-M3 needs for one text of 2,700
/// tokens is 1 GB already.
const COMPARISONS: usize = BATCH * 512 * 512;
/// Texts that one thread tokenizes at a time.
const TOKENIZED: usize = 64;

/// What `workers.toml` expects of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalModel {
    pub dimensions: usize,
    /// Whether it gives weights of tokens beside each vector.
    pub sparse: bool,
    /// Most tokens of one text; what is longer is cut.
    pub longest: usize,
}

/// A sentence-transformers model of the BERT family, on threads of its own.
pub struct Local {
    threads: Threads<Encoder>,
    dimensions: usize,
}

impl Local {
    /// Reads `config.json`, `tokenizer.json`, `model.safetensors` or `pytorch_model.bin` and, where they are there,
    /// `1_Pooling/config.json` and `modules.json`; for weights of tokens also `sparse_linear.pt` or `sparse_linear.safetensors`.
    /// Blocks for as long as reading takes.
    ///
    /// # Errors
    /// The folder lacks a file, a file cannot be read, or the model is not what `model` says: the message names the file.
    pub fn load(folder: &Path, model: LocalModel, threads: usize) -> Result<Self, LocalError> {
        let encoder = folder::read(folder, model)?;
        let threads = Threads::start(encoder, threads).map_err(LocalError::Threads)?;
        Ok(Self { threads, dimensions: model.dimensions })
    }

    /// Whether [`Local::load`] would find its files, and all but the weights fit; these may be gigabytes, and are not read.
    ///
    /// # Errors
    /// As [`Local::load`].
    pub fn check(folder: &Path, model: LocalModel) -> Result<(), LocalError> {
        folder::check(folder, model)
    }

    async fn tokenize(&self, texts: &[String]) -> Result<Vec<Tokens>, ProviderError> {
        let parts = texts.chunks(TOKENIZED).map(|part| {
            let part = part.to_vec();
            self.threads.run(move |encoder| encoder.tokenize(&part))
        });
        let parts = try_join_all(parts).await.map_err(|_| panicked())?;
        Ok(parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    }

    async fn forward(&self, batch: Vec<(usize, Tokens)>) -> Result<Vec<(usize, Outcome)>, ProviderError> {
        let (places, tokens): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let vectors = self.threads.run(move |encoder| encoder.embed(&tokens)).await.map_err(|_| panicked())?;
        let vectors =
            vectors.map_err(|error| ProviderError::Unavailable(format!("the local model failed: {error}")))?;
        Ok(places.into_iter().zip(vectors).collect())
    }
}

#[async_trait]
impl Embedder for Local {
    async fn embed(&self, texts: &[String]) -> Result<Embedded, ProviderError> {
        let tokens = self.tokenize(texts).await?;
        let input_tokens = tokens.iter().map(|tokens| tokens.len() as u64).sum();

        // Texts of one length together waste no work on padding; the longest first leave no thread with a late long batch.
        let mut sorted: Vec<_> = tokens.into_iter().enumerate().collect();
        sorted.sort_by_key(|(_, tokens)| std::cmp::Reverse(tokens.len()));
        let passes = batches(&sorted).into_iter().map(|batch| self.forward(batch.to_vec()));
        let mut vectors: Vec<_> = try_join_all(passes).await?.concat();
        vectors.sort_by_key(|(place, _)| *place);
        let vectors = vectors
            .into_iter()
            .map(|(_, vector)| vector.and_then(|embedding| checked(embedding, self.dimensions)))
            .collect();
        Ok(Embedded { vectors, input_tokens: Some(input_tokens), ..Embedded::default() })
    }
}

type Outcome = Result<Embedding, BadVector>;

/// Texts, the longest first, in what goes through the model at once.
fn batches(mut sorted: &[(usize, Tokens)]) -> Vec<&[(usize, Tokens)]> {
    let mut batches = Vec::new();
    while let Some((_, longest)) = sorted.first() {
        let most = (COMPARISONS / longest.len().pow(2).max(1)).clamp(1, BATCH).min(sorted.len());
        let (batch, rest) = sorted.split_at(most);
        batches.push(batch);
        sorted = rest;
    }
    batches
}

fn panicked() -> ProviderError {
    ProviderError::Unavailable("the local model panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_go_in_smaller_batches() {
        let texts: Vec<(usize, Tokens)> = [8_192, 2_000, 1_000, 1_000, 1_000]
            .into_iter()
            .chain([512; 9])
            .map(|tokens| (0, vec![0; tokens]))
            .collect();
        let sizes: Vec<usize> = batches(&texts).into_iter().map(<[_]>::len).collect();
        assert_eq!(sizes, [1, 1, 2, 2, 8]);
        assert!(batches(&[]).is_empty());
    }
}
