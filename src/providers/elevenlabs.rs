//! ElevenLabs' speech to text (scribe).

use std::time::Duration;

use async_trait::async_trait;
use reqwest::StatusCode;
use serde::Deserialize;
use url::Url;

use super::http::{self, BYTES_AROUND, LONGEST_QUESTION, LONGEST_TRANSCRIPT};
use super::{Audio, ProviderError, Segment, Transcribed, Transcriber, refusal};
use crate::config::{Secret, Speech};
use crate::net::Client;

/// One model with one key.
#[derive(Debug, Clone)]
pub struct ElevenLabs {
    client: Client,
    url: Url,
    key: Secret,
    model: String,
    speech: Speech,
    timeout: Duration,
}

impl ElevenLabs {
    /// `url` ends before `/v1`; `timeout` is for a whole request, its answer included.
    pub fn new(client: Client, url: Url, key: Secret, model: String, speech: Speech, timeout: Duration) -> Self {
        let url = super::openai::below(url, &["v1", "speech-to-text"]);
        Self { client, url, key, model, speech, timeout }
    }

    /// Asks for the list of models, which is never paid: whether the service is there and takes the credential. Of models that
    /// transcribe the list says nothing.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn ask(&self) -> Result<(), ProviderError> {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop().push("models");
        }
        let request = self.client.get(url).timeout(self.timeout.min(LONGEST_QUESTION));
        let response =
            request.header("xi-api-key", self.key.expose()).send().await.map_err(|error| http::away(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status == StatusCode::OK {
            return Ok(());
        }
        let body = http::read(response, BYTES_AROUND).await.unwrap_or_default();
        match refusal::error(status, &headers, &body, &[self.key.expose()]) {
            // A key that may do nothing but transcribe is known all the same.
            ProviderError::Credential(words) if words.contains("missing_permissions") => Ok(()),
            error => Err(error),
        }
    }

    fn fields(&self) -> Vec<(&str, &str)> {
        let mut fields = vec![("model_id", self.model.as_str())];
        fields.extend(self.speech.language.as_deref().map(|language| ("language_code", language)));
        fields.extend(super::options(&self.speech));
        fields
    }
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    language_code: Option<String>,
    language_probability: Option<f64>,
    words: Option<Vec<Word>>,
}

#[derive(Deserialize)]
struct Word {
    text: String,
    start: Option<f64>,
    end: Option<f64>,
    /// `word`, `spacing` or `audio_event`.
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Word {
    fn segment(self) -> Option<Segment> {
        let spoken = self.kind.as_deref() != Some("spacing");
        spoken.then_some(Segment::new(self.start?, self.end?, self.text))
    }
}

#[async_trait]
impl Transcriber for ElevenLabs {
    async fn transcribe(&self, audio: &Audio) -> Result<Transcribed, ProviderError> {
        let form = http::form(audio, self.fields())?;
        let request = self.client.post(self.url.clone()).timeout(self.timeout).multipart(form);
        let response =
            request.header("xi-api-key", self.key.expose()).send().await.map_err(|error| http::away(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status != StatusCode::OK {
            // What came of the body is enough: the status alone says most.
            let body = http::read(response, BYTES_AROUND).await.unwrap_or_default();
            return Err(refusal::error(status, &headers, &body, &[self.key.expose()]));
        }
        let answer: Answer = http::transcript(&http::read(response, LONGEST_TRANSCRIPT).await?)?;
        Ok(Transcribed {
            text: answer.text,
            language: answer.language_code,
            language_probability: answer.language_probability,
            segments: answer.words.into_iter().flatten().filter_map(Word::segment).collect(),
            request_id: http::request_id(&headers),
        })
    }
}
