//! What drivers that speak HTTP have in common.

use std::error::Error as _;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::Response;
use reqwest::header::HeaderMap;
use reqwest::multipart::{Form, Part};
use serde::de::DeserializeOwned;

use super::{Audio, ProviderError};

/// The most of an error's body that is read, and the most of an answer beside what was asked for.
pub(super) const BYTES_AROUND: usize = 64 * 1024;
/// No honest transcript is longer: nine hours of fast speech with the times of every word stay below.
pub(super) const LONGEST_TRANSCRIPT: usize = 64 * 1024 * 1024;

/// How long a question of `check` may take.
pub(super) const LONGEST_QUESTION: Duration = Duration::from_secs(10);

pub(super) fn request_id(headers: &HeaderMap) -> Option<String> {
    let named = ["x-request-id", "request-id"].into_iter().find_map(|name| headers.get(name));
    named?.to_str().ok().filter(|id| is_id(id)).map(str::to_owned)
}

/// What a provider may have its requests called: short, with a digit, and no more like a text than that. It stays on the books.
fn is_id(id: &str) -> bool {
    id.len() <= 64
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        && id.bytes().filter(u8::is_ascii_digit).count() >= 4
}

/// Reads a body while it streams, and stops where it gets longer than `longest` bytes.
pub(super) async fn read(mut response: Response, longest: usize) -> Result<BytesMut, ProviderError> {
    let said = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut body = BytesMut::with_capacity(said.unwrap_or_default().min(longest));
    while let Some(part) = response.chunk().await.map_err(|error| away(&error))? {
        if body.len() + part.len() > longest {
            return Err(ProviderError::Garbled(format!("the answer is longer than {longest} bytes")));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// A request that got no whole answer.
pub(super) fn away(error: &reqwest::Error) -> ProviderError {
    if error.is_builder() {
        return ProviderError::Misconfigured("its url or key cannot be sent over HTTP".to_owned());
    }
    let what = match error {
        error if error.is_connect() => "cannot connect",
        error if error.is_timeout() => "no answer in time",
        error if error.is_body() || error.is_decode() => "the answer broke off",
        _ => "the connection failed",
    };
    // The root says what a person can act on; the layers above it repeat the address.
    let mut root = error.source();
    while let Some(cause) = root.and_then(std::error::Error::source) {
        root = Some(cause);
    }
    let said = root.map_or(what.to_owned(), |root| format!("{what}: {root}"));
    // Only what never reached the provider is certainly not paid.
    if error.is_connect() { ProviderError::Unavailable(said) } else { ProviderError::NoAnswer(said) }
}

/// A form with the recording as `file`, and these fields before it: some services read a form as it comes in.
pub(super) fn form<'a>(
    audio: &Audio,
    fields: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Form, ProviderError> {
    // Its name is ours: a row's own may hold what is nobody else's business.
    let name = format!("audio.{}", audio.extension);
    let file = Part::stream_with_length(audio.bytes.clone(), audio.bytes.len() as u64).file_name(name);
    let file = file.mime_str(audio.media_type).map_err(|error| away(&error))?;
    let fields = fields.into_iter();
    let form = fields.fold(Form::new(), |form, (name, value)| form.text(name.to_owned(), value.to_owned()));
    Ok(form.part("file", file))
}

/// A transcript's JSON. What else the service says of a recording it took, it says again when it is asked, and paid, again.
pub(super) fn transcript<T: DeserializeOwned>(body: &[u8]) -> Result<T, ProviderError> {
    serde_json::from_slice(body).map_err(|error| match not_an_answer(body, &error, "transcript") {
        ProviderError::NoAnswer(text) if !is_page(body) => ProviderError::Garbled(text),
        error => error,
    })
}

/// What stands before the service, and not the service, sends pages.
fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// Says where the JSON ends to be an answer, never what stands there.
pub(super) fn not_an_answer(body: &[u8], error: &serde_json::Error, wanted: &str) -> ProviderError {
    let body = body.trim_ascii();
    ProviderError::NoAnswer(match body.first() {
        None => "its body is empty".to_owned(),
        Some(b'<') => "it sent a web page, not JSON; is the url right?".to_owned(),
        Some(_) if error.is_eof() => "its JSON is cut off".to_owned(),
        Some(_) => format!("it sent no {wanted} in JSON (line {}, column {})", error.line(), error.column()),
    })
}
