//! OpenAI's transcriptions and what speaks them: Azure, Groq, vLLM, speaches, whisper.cpp.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use serde::Deserialize;
use url::Url;

use super::OpenAiEndpoint;
use crate::config::{Secret, Speech};
use crate::net::Client;
use crate::providers::http::{self, BYTES_AROUND, LONGEST_TRANSCRIPT};
use crate::providers::{Audio, ProviderError, Segment, Transcribed, Transcriber, options, refusal};

/// One model that transcribes, at one endpoint.
#[derive(Debug, Clone)]
pub struct OpenAiSpeech {
    client: Client,
    url: Url,
    key: Option<Secret>,
    model: String,
    speech: Speech,
    timeout: Duration,
}

impl OpenAiSpeech {
    /// `timeout` is for a whole request, its answer included.
    pub fn new(client: Client, endpoint: OpenAiEndpoint, model: String, speech: Speech, timeout: Duration) -> Self {
        let url = super::below(endpoint.url, &["audio", "transcriptions"]);
        Self { client, url, key: endpoint.key, model, speech, timeout }
    }

    fn fields(&self) -> Vec<(&str, &str)> {
        let mut fields = vec![("model", self.model.as_str())];
        fields.extend(self.speech.language.as_deref().map(|language| ("language", language)));
        if !self.speech.options.contains_key("response_format") {
            // The models named gpt-… know no other with their text alone.
            let format = if self.model.starts_with("gpt-") { "json" } else { "verbose_json" };
            fields.push(("response_format", format));
        }
        fields.extend(options(&self.speech));
        fields
    }
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    language: Option<String>,
    segments: Option<Vec<Piece>>,
}

#[derive(Deserialize)]
struct Piece {
    start: f64,
    end: f64,
    text: String,
}

#[async_trait]
impl Transcriber for OpenAiSpeech {
    async fn transcribe(&self, audio: &Audio) -> Result<Transcribed, ProviderError> {
        let form = http::form(audio, self.fields())?;
        let mut request = self.client.post(self.url.clone()).timeout(self.timeout).multipart(form);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let response = request.send().await.map_err(|error| http::away(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status != StatusCode::OK {
            // What came of the body is enough: the status alone says most.
            let body = http::read(response, BYTES_AROUND).await.unwrap_or_default();
            let secrets: Vec<&str> = self.key.iter().map(Secret::expose).collect();
            return Err(refusal::error(status, &headers, &body, &secrets));
        }
        let answer: Answer = http::transcript(&http::read(response, LONGEST_TRANSCRIPT).await?)?;
        let segments = answer.segments.into_iter().flatten();
        Ok(Transcribed {
            text: answer.text,
            language: answer.language,
            language_probability: None,
            segments: segments.map(|piece| Segment::new(piece.start, piece.end, piece.text)).collect(),
            request_id: http::request_id(&headers),
        })
    }
}
