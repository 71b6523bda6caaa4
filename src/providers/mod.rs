//! Floor 2: one file per vendor. Each turns one vendor's answer into our words and nothing else; retries, limits and budgets
//! live above.

mod clean;
mod elevenlabs;
mod hash;
mod http;
mod local;
mod openai;
mod refusal;
mod waits;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::config::Speech;
use crate::domain::{BadVector, Embedding, check_vector};

pub use elevenlabs::ElevenLabs;
pub use hash::Hash;
pub use local::{Local, LocalError, LocalModel};
pub use openai::{OpenAi, OpenAiEndpoint, OpenAiModel, OpenAiSpeech};

/// Makes vectors of texts.
#[async_trait]
pub trait Embedder: Send + Sync {
    /// One request. The vectors come in the order of the texts, one for each, and each checked: length, finite, not zero. A model
    /// that was asked for weights of tokens gives them with each.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn embed(&self, texts: &[String]) -> Result<Embedded, ProviderError>;
}

/// A provider's answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embedded {
    /// A bad vector says nothing about its neighbours, which are paid for all the same.
    pub vectors: Vec<Result<Embedding, BadVector>>,
    /// What the provider says it counted, where it says so.
    pub input_tokens: Option<u64>,
    /// The provider's own name for the request, for disputes.
    pub request_id: Option<String>,
    /// How much more the provider would take now, where it says so.
    pub limits: Option<RateLimits>,
}

impl Embedded {
    /// The first bad vector, named by the number of its input.
    pub fn first_bad(&self) -> Option<String> {
        let bad = self.vectors.iter().enumerate().find_map(|(index, vector)| Some((index, *vector.as_ref().err()?)));
        bad.map(|(index, bad)| bad_vector(index, self.vectors.len(), bad))
    }

    /// The vectors, for callers to whom one bad vector spoils the answer.
    ///
    /// # Errors
    /// The first bad vector, named by the number of its input.
    pub fn all(self) -> Result<Vec<Vec<f32>>, ProviderError> {
        let texts = self.vectors.len();
        let named = |(index, vector): (usize, Result<_, BadVector>)| {
            vector
                .map(|embedding: Embedding| embedding.vector)
                .map_err(|bad| ProviderError::Garbled(bad_vector(index, texts, bad)))
        };
        self.vectors.into_iter().enumerate().map(named).collect()
    }
}

/// Names an input by its number, counted from 1, never by its text.
pub fn bad_vector(index: usize, texts: usize, bad: BadVector) -> String {
    format!("the vector of input {} of {texts} {bad}", index + 1)
}

/// What a provider allows our credential and what is left of it, as of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// What is allowed in a minute.
    pub requests: Option<u64>,
    pub tokens: Option<u64>,
    pub remaining_requests: Option<u64>,
    pub remaining_tokens: Option<u64>,
    /// How long until the budget of requests is whole again.
    pub reset_requests: Option<Duration>,
    /// How long until the budget of tokens is whole again.
    pub reset_tokens: Option<Duration>,
}

impl RateLimits {
    /// How long until there is something again of what has run out.
    pub fn exhausted(&self) -> Option<Duration> {
        let requests = (self.remaining_requests, self.reset_requests);
        let tokens = (self.remaining_tokens, self.reset_tokens);
        [requests, tokens].into_iter().filter(|(left, _)| *left == Some(0)).filter_map(|(_, reset)| reset).max()
    }
}

/// Makes text of recordings.
#[async_trait]
pub trait Transcriber: Send + Sync {
    /// One request.
    ///
    /// # Errors
    /// See [`ProviderError`].
    async fn transcribe(&self, audio: &Audio) -> Result<Transcribed, ProviderError>;
}

/// A recording as it is sent.
#[derive(Debug, Clone)]
pub struct Audio {
    pub bytes: Bytes,
    /// What its bytes are; services go by the name of a file.
    pub extension: &'static str,
    pub media_type: &'static str,
}

/// A transcript as a provider gives it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcribed {
    pub text: String,
    /// In the provider's own code.
    pub language: Option<String>,
    pub language_probability: Option<f64>,
    /// What was said when, as finely as the provider says it: words or sentences.
    pub segments: Vec<Segment>,
    /// The provider's own name for the request, for disputes.
    pub request_id: Option<String>,
}

/// A stretch of a transcript, in seconds from the beginning.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    pub start: f64,
    pub end: f64,
    pub text: String,
}

impl Segment {
    fn new(start: f64, end: f64, text: String) -> Self {
        Self { start, end, text }
    }

    /// The same stretch of a whole of which this was a part that began so many milliseconds in.
    #[must_use]
    pub fn later(self, ms: u64) -> Self {
        // To whole milliseconds: sums of fractions would end in noise.
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a recording are far below 2^52")]
        let later = |seconds: f64| ((seconds * 1000.0).round() + ms as f64) / 1000.0;
        Self { start: later(self.start), end: later(self.end), text: self.text }
    }
}

/// The options of a model as the fields of a form.
fn options(speech: &Speech) -> impl Iterator<Item = (&str, &str)> {
    speech.options.iter().flat_map(|(name, values)| values.iter().map(move |value| (name.as_str(), value.as_str())))
}

/// What a caller would do differently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// 429: wait this long, where the provider says how long.
    #[error("rate limited")]
    RateLimited { after: Option<Duration> },
    /// No connection, 5xx: the provider is away, and nothing is paid.
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
    /// No text would be taken: the address, the model's name or its options are wrong. The lane pauses, as for a credential.
    #[error("the provider cannot be used as configured: {0}")]
    Misconfigured(String),
    /// The request may have been taken, and paid, and yet there is no answer to any of it: none in time, one that breaks off, a proxy's
    /// page, an empty body.
    #[error("the provider gave no answer: {0}")]
    NoAnswer(String),
    /// The answer broke the contract, and which vector belongs to which text cannot be told.
    #[error("the provider's answer is not usable: {0}")]
    Garbled(String),
    /// Our own driver panicked: which input made it, and whether the request is paid, cannot be told.
    #[error("the worker panicked over the request; its log says where")]
    Panicked,
}

impl ProviderError {
    /// The call's outcome and kind of error as `provider_calls` has them.
    pub fn on_the_books(&self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Refused(_) | Self::TooLarge => ("refused", Some("refused")),
            Self::Credential(_) => ("refused", Some("credential")),
            Self::Misconfigured(_) => ("refused", Some("misconfigured")),
            Self::RateLimited { .. } => ("refused", Some("rate_limited")),
            // An answer came, so it is paid, even if it is of no use.
            Self::Garbled(_) => ("paid", Some("garbled")),
            Self::Unavailable(_) => ("failed", Some("unavailable")),
            // Nobody knows whether it is paid.
            Self::NoAnswer(_) => ("unknown", Some("no_answer")),
            Self::Panicked => ("unknown", Some("panicked")),
        }
    }
}

fn checked(embedding: Embedding, dimensions: usize) -> Result<Embedding, BadVector> {
    check_vector(&embedding.vector, dimensions).map(|()| embedding)
}

/// Scales a vector to length 1; one of zeros stays as it is.
fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        for value in vector {
            *value /= length;
        }
    }
}
