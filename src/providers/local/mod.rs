//! Models that run inside this process, on candle: MiniLM, and any BERT whose folder has the usual files.
//!
//! The batches of a request go over our threads, and each thread works alone. What candle would share out within a batch it
//! shares out through one lock and threads that spin: start the process with `CANDLE_NUM_THREADS=1`, or a third of the
//! processor's time is spent waiting.

mod bert;
mod folder;
mod threads;

use std::path::Path;

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::{Embedded, Embedder, ProviderError, checked};
use bert::{Bert, Tokens};
use threads::Threads;

pub use folder::LocalError;

/// Texts of one pass through the model. More are slower: a batch is as wide as its longest text.
const BATCH: usize = 8;
/// Texts that one thread tokenizes at a time.
const TOKENIZED: usize = 64;

/// What `workers.toml` expects of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalModel {
    pub dimensions: usize,
    /// Most tokens of one text; what is longer is cut.
    pub longest: usize,
}

/// A sentence-transformers model of the BERT family, on threads of its own.
pub struct Local {
    threads: Threads<Bert>,
    dimensions: usize,
}

impl Local {
    /// Reads `config.json`, `tokenizer.json`, `model.safetensors` and, where they are there, `1_Pooling/config.json` and
    /// `modules.json`. Blocks for as long as reading takes.
    ///
    /// # Errors
    /// The folder lacks a file, a file cannot be read, or the model is not what `model` says: the message names the file.
    pub fn load(folder: &Path, model: LocalModel, threads: usize) -> Result<Self, LocalError> {
        let bert = folder::read(folder, model)?;
        let threads = Threads::start(bert, threads).map_err(LocalError::Threads)?;
        Ok(Self { threads, dimensions: model.dimensions })
    }

    async fn tokenize(&self, texts: &[String]) -> Result<Vec<Tokens>, ProviderError> {
        let parts = texts.chunks(TOKENIZED).map(|part| {
            let part = part.to_vec();
            self.threads.run(move |bert| bert.tokenize(&part))
        });
        let parts = try_join_all(parts).await.map_err(|_| panicked())?;
        Ok(parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    }

    async fn forward(&self, batch: Vec<(usize, Tokens)>) -> Result<Vec<(usize, Vec<f32>)>, ProviderError> {
        let (places, tokens): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let vectors = self.threads.run(move |bert| bert.embed(&tokens)).await.map_err(|_| panicked())?;
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
        let mut vectors = vec![Vec::new(); texts.len()];
        for (place, vector) in
            try_join_all(sorted.chunks(BATCH).map(|batch| self.forward(batch.to_vec()))).await?.concat()
        {
            vectors[place] = vector;
        }

        let vectors = checked(vectors, self.dimensions);
        Ok(Embedded { vectors, input_tokens: Some(input_tokens), ..Embedded::default() })
    }
}

fn panicked() -> ProviderError {
    ProviderError::Unavailable("the local model panicked".to_owned())
}
