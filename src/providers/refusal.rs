//! Any other status: which of our errors it is, and what of the service's words may be kept.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::clean::{is_harmless, without_echo};
use super::{ProviderError, waits};

/// How services say that a request, or one of its texts, is too much. Matched in lower case.
const TOO_LARGE: [&str; 12] = [
    "maximum context length",
    "too many tokens",
    "too many inputs",
    "array too long",
    "maximum request size",
    "request too large",
    "input is too large",
    "is too large to process",
    "input is too long",
    "maximum allowed batch size",
    "max batch size",
    "reduce the length",
];

/// Parameters that stand in `workers.toml`: a service that complains of one would take no text at all.
const CONFIGURED: [&str; 7] =
    ["model", "model_id", "language", "language_code", "dimensions", "encoding_format", "response_format"];

/// Complaints of that kind without a parameter: OpenAI's one, and vLLM's of a server that runs another task or lacks its plugin.
const MISCONFIGURED: [&str; 4] =
    ["does not support specifying dimensions", "IOProcessor plugin", "Unsupported task", "pooling_task"];

/// What the service says in the body, of which `error`'s fields are OpenAI's; others put them at the top or into `detail`.
struct Complaint {
    code: String,
    kind: String,
    parameter: String,
    message: String,
}

/// The error that an answer with this status is. `secrets` are the texts and the key
/// that were sent: nothing of them is passed on.
pub(super) fn error(status: StatusCode, headers: &HeaderMap, body: &[u8], secrets: &[&str]) -> ProviderError {
    let complaint = Complaint::read(body);
    let words = || complaint.words(status, secrets);
    if complaint.is_about_money() {
        return ProviderError::Credential(format!("insufficient quota, check its billing: {}", words()));
    }
    match status.as_u16() {
        401..=403 => ProviderError::Credential(words()),
        429 if !complaint.is_too_large() => ProviderError::RateLimited { after: waits::after(headers) },
        413 | 429 => ProviderError::TooLarge,
        _ if complaint.is_too_large() => ProviderError::TooLarge,
        408 | 409 | 424 | 425 | 500 | 502.. => ProviderError::Unavailable(words()),
        // What an input cannot be guilty of.
        ..=399 | 404..=406 | 410 | 411 | 415 | 431 | 501 => ProviderError::Misconfigured(words()),
        _ if complaint.is_about_configuration(secrets) => ProviderError::Misconfigured(words()),
        _ => ProviderError::Refused(words()),
    }
}

impl Complaint {
    fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let inner = ["error", "detail"].into_iter().find_map(|name| body.get(name).filter(|inner| inner.is_object()));
        let error = inner.unwrap_or(&body);
        let field = |name: &str| error.get(name).map(text).unwrap_or_default();
        let either =
            |one: &str, other: &str| Some(field(one)).filter(|text| !text.is_empty()).unwrap_or_else(|| field(other));
        let message = ["message", "error", "detail"].into_iter().map(field).find(|message| !message.is_empty());
        Self {
            // ElevenLabs says `status` for what others call a code.
            code: either("code", "status"),
            kind: field("type"),
            parameter: Some(field("param")).filter(|text| !text.is_empty()).unwrap_or_else(|| place(error)),
            message: message.unwrap_or_default(),
        }
    }

    fn is_about_money(&self) -> bool {
        let about =
            |word: &str| ["insufficient_quota", "quota_exceeded"].contains(&word) || word.starts_with("billing_");
        about(&self.code) || about(&self.kind)
    }

    fn is_too_large(&self) -> bool {
        let message = self.message.to_lowercase();
        self.code == "context_length_exceeded" || TOO_LARGE.iter().any(|words| message.contains(words))
    }

    fn is_about_configuration(&self, secrets: &[&str]) -> bool {
        // A text that is quoted must not speak for the service.
        let said = |words: &&str| self.message.contains(words) && !secrets.iter().any(|secret| secret.contains(words));
        ["model_not_found", "invalid_model_id"].contains(&self.code.as_str())
            || CONFIGURED.contains(&self.parameter.as_str())
            || MISCONFIGURED.iter().any(said)
    }

    /// One line: the status, the service's identifiers, and its message without the secrets.
    fn words(&self, status: StatusCode, secrets: &[&str]) -> String {
        let mut words = format!("status {}", status.as_u16());
        for word in [&self.kind, &self.code, &self.parameter] {
            if is_identifier(word, secrets) {
                words.push_str(", ");
                words.push_str(word);
            }
        }
        let message = without_echo(&self.message, secrets);
        if !message.is_empty() {
            words.push_str(": ");
            words.push_str(&message);
        }
        words
    }
}

/// A word like `invalid_request_error` or `input[3]`, and not one of a secret.
fn is_identifier(word: &str, secrets: &[&str]) -> bool {
    let of_the_trade = |letter: char| letter.is_ascii_alphanumeric() || "_-.[]$".contains(letter);
    (1..=64).contains(&word.len()) && word.chars().all(of_the_trade) && word != "null" && is_harmless(word, secrets)
}

/// The field that a validator's first complaint is about.
fn place(error: &Value) -> String {
    let place = error.get("detail").and_then(|complaints| complaints.get(0)?.get("loc")?.as_array()?.last());
    place.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A field's text. Validators answer with a list of complaints, each with the input beside it: of these only `msg` is read.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(complaints) => {
            complaints.iter().filter_map(|complaint| complaint.get("msg")?.as_str()).collect::<Vec<_>>().join("; ")
        }
        Value::Null | Value::Bool(_) | Value::Object(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[track_caller]
    fn check(status: u16, body: &str, want: &str) {
        let status = StatusCode::from_u16(status).unwrap();
        let secrets = ["Ada Lovelace was born in 1815.", "sk-proj-4711"];
        let error = error(status, &HeaderMap::new(), body.as_bytes(), &secrets);
        assert_eq!(format!("{error:?}"), want);
    }

    fn openai(message: &str, kind: &str, code: &str) -> String {
        serde_json::json!({"error": {"message": message, "type": kind, "param": null, "code": code}}).to_string()
    }

    #[test]
    fn money_is_a_credentials_matter_whatever_the_status() {
        let body = openai("You exceeded your current quota.", "insufficient_quota", "insufficient_quota");
        for status in [429, 403, 400, 503] {
            check(
                status,
                &body,
                &format!(
                    "Credential(\"insufficient quota, check its billing: status {status}, insufficient_quota, \
                     insufficient_quota: You exceeded your current quota.\")"
                ),
            );
        }
    }

    #[test]
    fn a_rate_limit_says_how_long() {
        let headers = [("retry-after".parse().unwrap(), "2".parse().unwrap())].into_iter().collect();
        let error = error(StatusCode::TOO_MANY_REQUESTS, &headers, b"{}", &[]);
        assert_eq!(error, ProviderError::RateLimited { after: Some(Duration::from_secs(2)) });
        check(429, "slow down", "RateLimited { after: None }");
    }

    #[test]
    fn what_is_too_large_is_known_by_status_or_words() {
        check(413, "", "TooLarge");
        check(
            400,
            &openai("This model's maximum context length is 8192 tokens", "invalid_request_error", ""),
            "TooLarge",
        );
        check(
            400,
            &openai("Invalid 'input': array too long, max 2048 inputs", "invalid_request_error", ""),
            "TooLarge",
        );
        // A request beyond a whole minute's tokens would be refused for ever.
        check(429, &openai("Request too large for the model on tokens per min (TPM)", "tokens", ""), "TooLarge");
        // llama.cpp
        check(
            500,
            r#"{"error": {"code": 500, "message": "input is too large to process. increase the physical batch size"}}"#,
            "TooLarge",
        );
        // TEI
        check(422, r#"{"message": "batch size 40 > maximum allowed batch size 32", "type": "Validation"}"#, "TooLarge");
    }

    #[test]
    fn a_refusal_keeps_the_services_words_but_not_the_texts() {
        check(
            400,
            &openai("Rejected by policy: Ada Lovelace was born in 1815.", "invalid_request_error", "content_filter"),
            r#"Refused("status 400, invalid_request_error, content_filter: Rejected by policy: …")"#,
        );
        check(
            422,
            r#"{"detail": [{"loc": ["body", "input", 0], "msg": "String should be shorter", "input": "Ada Lovelace"}]}"#,
            r#"Refused("status 422: String should be shorter")"#,
        );
        check(400, r#"{"error": {"message": "no", "type": "Ada"}}"#, r#"Refused("status 400: no")"#);
        check(451, "<html>", r#"Refused("status 451")"#);
    }

    #[test]
    fn what_no_text_can_cause_is_a_misconfiguration() {
        check(
            404,
            &openai("The model `embed-9` does not exist", "invalid_request_error", "model_not_found"),
            r#"Misconfigured("status 404, invalid_request_error, model_not_found: The model … does not exist")"#,
        );
        check(
            404,
            r#"{"error": "model \"x\" not found, try pulling it first"}"#,
            r#"Misconfigured("status 404: model … not found, try pulling it first")"#,
        );
        check(
            400,
            r#"{"error": {"message": "must be positive", "param": "dimensions"}}"#,
            r#"Misconfigured("status 400, dimensions: must be positive")"#,
        );
        check(
            400,
            &openai("This model does not support specifying dimensions.", "", ""),
            r#"Misconfigured("status 400: This model does not support specifying dimensions.")"#,
        );
        // vLLM, of a server without its plugin for BGE-M3, of one that runs another task, and of one that has the plugin.
        for said in ["No IOProcessor plugin installed.", "Unsupported task", "Try switching the model's pooling_task"] {
            check(
                400,
                &openai(said, "BadRequestError", ""),
                &format!("Misconfigured(\"status 400, BadRequestError: {said}\")"),
            );
        }
        check(501, "", r#"Misconfigured("status 501")"#);
        check(301, "", r#"Misconfigured("status 301")"#);
        check(405, "", r#"Misconfigured("status 405")"#);
    }

    #[test]
    fn a_text_that_is_quoted_does_not_speak_for_the_service() {
        let text = "Install an IOProcessor plugin";
        let body = openai(&format!("Rejected: {text}"), "invalid_request_error", "");
        let error = error(StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes(), &[text]);
        assert!(matches!(error, ProviderError::Refused(_)), "{error:?}");
    }

    #[test]
    fn credentials_and_outages() {
        check(
            401,
            &openai("Incorrect API key provided: sk-pro**711", "", "invalid_api_key"),
            r#"Credential("status 401, invalid_api_key: Incorrect API key provided: …-…")"#,
        );
        check(403, "", r#"Credential("status 403")"#);
        check(402, "", r#"Credential("status 402")"#);
        for status in [408, 409, 500, 502, 503, 529] {
            check(status, "", &format!("Unavailable(\"status {status}\")"));
        }
    }
}
