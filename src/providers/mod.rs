//! Floor 2: one file per vendor. Each turns one vendor's answer into our words and nothing else; retries, limits and budgets
//! live above.

use std::time::Duration;

use async_trait::async_trait;

/// Makes vectors of texts.
#[async_trait]
pub trait Embedder: Send + Sync {
    /// One request. The vectors come in the order of the texts, each checked: count, length, finite, not zero.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn embed(&self, texts: &[String]) -> Result<Embedded, ProviderError>;
}

/// A provider's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    /// What the provider says it counted, where it says so.
    pub input_tokens: Option<u64>,
    /// The provider's own name for the request, for disputes.
    pub request_id: Option<String>,
}

/// What a caller would do differently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// 429: wait this long, where the provider says how long.
    #[error("rate limited")]
    RateLimited { after: Option<Duration> },
    /// Connection, timeout, 5xx: the provider is away.
    #[error("the provider is not available: {0}")]
    Unavailable(String),
    /// The request is larger than the provider takes: send less at once.
    #[error("the request is too large")]
    TooLarge,
    /// An input is refused; which one is not known unless it was alone.
    #[error("the provider refused the input: {0}")]
    Refused(String),
    /// No money or no right: the lane pauses until a person has looked.
    #[error("the provider refused the credential: {0}")]
    Credential(String),
    /// The answer broke the contract: count, length, finiteness, JSON.
    #[error("the provider's answer is not usable: {0}")]
    Garbled(String),
}
