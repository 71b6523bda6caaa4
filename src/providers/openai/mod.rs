//! OpenAI's API of embeddings (here) and transcriptions, and what speaks it: vLLM, llama.cpp, LM Studio, Ollama, Infinity, Azure's `/openai/v1`.

mod answer;
mod pooling;
mod transcribe;

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use super::http::{self, BYTES_AROUND, LONGEST_QUESTION};
use super::{Embedded, Embedder, ProviderError, checked, refusal, waits};
use crate::config::Secret;
use crate::domain::{BadVector, Embedding};
use crate::net::Client;
use pooling::PoolingRequest;

pub use transcribe::OpenAiSpeech;

/// The most a number of a vector takes in JSON, with its comma and blanks.
const BYTES_PER_NUMBER: usize = 32;
/// A list of models is short; some services have thousands.
const LONGEST_LIST: usize = 8 << 20;

/// Where the API is, and who we are to it.
#[derive(Debug, Clone)]
pub struct OpenAiEndpoint {
    /// Ends before `/embeddings`; a query (`?api-version=…`) is kept.
    pub url: Url,
    pub key: Option<Secret>,
}

/// What the API calls the model, and what we expect of it.
#[derive(Debug, Clone)]
pub struct OpenAiModel {
    pub name: String,
    pub dimensions: usize,
    /// Whether to ask for `dimensions`; models of one size refuse the question.
    pub send_dimensions: bool,
    /// Whether to ask for weights of tokens beside each vector, at vLLM's `/pooling`.
    pub sparse: bool,
}

/// One model at one endpoint.
#[derive(Debug, Clone)]
pub struct OpenAi {
    client: Client,
    url: Url,
    key: Option<Secret>,
    model: OpenAiModel,
    timeout: Duration,
}

/// What `/models` answers.
#[derive(Deserialize)]
struct ModelList {
    data: Vec<ListedModel>,
}

#[derive(Deserialize)]
struct ListedModel {
    id: String,
}

#[derive(Serialize)]
struct EmbedRequest<'a> {
    model: &'a str,
    input: &'a [String],
    /// A quarter of the bytes of decimal numbers, and an order of magnitude faster to read.
    encoding_format: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
}

impl OpenAi {
    /// `timeout` is for a whole request, its answer included.
    pub fn new(client: Client, endpoint: OpenAiEndpoint, model: OpenAiModel, timeout: Duration) -> Self {
        let mut url = endpoint.url;
        // vLLM's own addresses stand beside OpenAI's `/v1`, not below it.
        let beside = model.sparse && url.path().trim_end_matches('/').ends_with("/v1");
        if beside && let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().pop();
        }
        let url = below(url, &[if model.sparse { "pooling" } else { "embeddings" }]);
        Self { client, url, key: endpoint.key, model, timeout }
    }

    /// Asks for the list of models, which is never paid: whether the service is there and takes the credential. Returns the models'
    /// names; none where the service has no such page, so that nothing is known of the credential.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn models(&self) -> Result<Option<Vec<String>>, ProviderError> {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop().push("models");
        }
        let mut request = self.client.get(url).timeout(self.timeout.min(LONGEST_QUESTION));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let response = request.send().await.map_err(|error| http::away(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
            return Ok(None);
        }
        let body = http::read(response, LONGEST_LIST).await?;
        if status != StatusCode::OK {
            let secrets: Vec<&str> = self.key.iter().map(Secret::expose).collect();
            return Err(refusal::error(status, &headers, &body, &secrets));
        }
        let list: Option<ModelList> = serde_json::from_slice(&body).ok();
        Ok(list.map(|list| list.data.into_iter().map(|model| model.id).collect()))
    }

    async fn post(&self, texts: &[String]) -> Result<Response, ProviderError> {
        let request = self.client.post(self.url.clone()).timeout(self.timeout);
        let mut request = if self.model.sparse {
            request.json(&PoolingRequest::new(&self.model.name, texts))
        } else {
            request.json(&EmbedRequest {
                model: &self.model.name,
                input: texts,
                encoding_format: "base64",
                dimensions: self.model.send_dimensions.then_some(self.model.dimensions),
            })
        };
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        request.send().await.map_err(|error| http::away(&error))
    }

    /// No honest answer is longer.
    fn longest_answer(&self, texts: &[String]) -> usize {
        // A token has a byte at least.
        let tokens = if self.model.sparse { texts.iter().map(String::len).sum::<usize>() } else { 0 };
        texts.len() * (self.model.dimensions * BYTES_PER_NUMBER) + tokens * pooling::BYTES_PER_WEIGHT + BYTES_AROUND
    }

    fn read(&self, body: &[u8], texts: usize) -> Result<Answer, ProviderError> {
        if self.model.sparse {
            return pooling::read(body, texts);
        }
        let (vectors, tokens) = answer::read(body, texts)?;
        Ok((vectors.into_iter().map(|vector| vector.map(Embedding::from)).collect(), tokens))
    }
}

/// An address below another, whose query is kept.
pub(super) fn below(mut url: Url, path: &[&str]) -> Url {
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}

#[async_trait]
impl Embedder for OpenAi {
    async fn embed(&self, texts: &[String]) -> Result<Embedded, ProviderError> {
        // The API refuses an empty list.
        if texts.is_empty() {
            return Ok(Embedded::default());
        }
        let response = self.post(texts).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status != StatusCode::OK {
            // What came of the body is enough: the status alone says most.
            let body = http::read(response, BYTES_AROUND).await.unwrap_or_default();
            let secrets = texts.iter().map(String::as_str).chain(self.key.as_ref().map(Secret::expose));
            return Err(refusal::error(status, &headers, &body, &secrets.collect::<Vec<_>>()));
        }
        let body = http::read(response, self.longest_answer(texts)).await?;
        let (vectors, input_tokens) = self.read(&body, texts.len())?;
        let check = |embedding| checked(embedding, self.model.dimensions);
        let vectors = vectors.into_iter().map(|vector| vector.and_then(check)).collect();
        Ok(Embedded { vectors, input_tokens, request_id: http::request_id(&headers), limits: waits::limits(&headers) })
    }
}

/// The embeddings in the order of the texts, and the tokens the service counted.
type Answer = (Vec<Result<Embedding, BadVector>>, Option<u64>);
