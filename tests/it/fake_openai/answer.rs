//! The answers the service can give, the broken ones among them.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tokens_of;

/// One answer, with headers of its own. A number is the status of an error.
#[derive(Debug, Clone)]
pub struct Answer {
    kind: Kind,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Tokens that are counted for each text beside its own.
    pub(super) added: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    /// An answer with vectors, spoilt in one way or in none: at the last text, or at the texts that hold a marker.
    Vectors(Spoilt, Option<String>),
    /// The connection closes before a byte of an answer.
    HungUp,
    /// This status and this body, whatever the request.
    Fixed(StatusCode, &'static str, String),
}

/// How an answer with vectors is spoilt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spoilt {
    No,
    /// The right vectors in another order, which the vendor may do.
    Shuffled,
    OneMissing,
    OneTwice,
    OneShort,
    OneNotFinite,
    OneZero,
    AllShort,
    AllNotFinite,
    CutOff,
    /// Good, but a byte a second.
    Dripping,
    /// Of `/pooling` alone: a weight below zero.
    OneWeight,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    Floats,
    Base64,
    /// Vectors and weights of tokens.
    Pooling,
}

impl Answer {
    /// As usual; for headers that come with it.
    pub fn good() -> Self {
        Self::vectors(Spoilt::No)
    }

    /// Good vectors in reverse order.
    pub fn shuffled() -> Self {
        Self::vectors(Spoilt::Shuffled)
    }

    /// One vector too few.
    pub fn wrong_count() -> Self {
        Self::vectors(Spoilt::OneMissing)
    }

    /// The right number of vectors, but the last is said to be the first text's.
    pub fn repeated_index() -> Self {
        Self::vectors(Spoilt::OneTwice)
    }

    /// The last vector lacks a number.
    pub fn wrong_dimensions() -> Self {
        Self::vectors(Spoilt::OneShort)
    }

    /// The last vector holds a `NaN`.
    pub fn not_finite() -> Self {
        Self::vectors(Spoilt::OneNotFinite)
    }

    /// The last vector is all zeros.
    pub fn zeros() -> Self {
        Self::vectors(Spoilt::OneZero)
    }

    /// The connection breaks in the middle of a good body.
    pub fn cut_off() -> Self {
        Self::vectors(Spoilt::CutOff)
    }

    /// A good body of which a byte comes each second.
    pub fn dripping() -> Self {
        Self::vectors(Spoilt::Dripping)
    }

    /// The connection closes without an answer.
    pub fn hang_up() -> Self {
        Self { kind: Kind::HungUp, headers: Vec::new(), added: 0 }
    }

    /// An error of this status, in the vendor's words.
    pub fn status(status: u16) -> Self {
        Self::error(status, "The server had an error processing your request.", "server_error", None)
    }

    /// 400 about the input, with this message.
    pub fn refused(message: &str) -> Self {
        Self::error(400, message, "invalid_request_error", None)
    }

    /// 429 that waiting does not cure.
    pub fn insufficient_quota() -> Self {
        let message = "You exceeded your current quota, please check your plan and billing details.";
        Self::error(429, message, "insufficient_quota", Some("insufficient_quota"))
    }

    /// 401, quoting the key.
    pub fn unauthorized(key: &str) -> Self {
        let message = format!("Incorrect API key provided: {key}.");
        Self::error(401, &message, "invalid_request_error", Some("invalid_api_key"))
    }

    /// 404 for a model that does not exist.
    pub fn unknown_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist or you do not have access to it.");
        Self::error(404, &message, "invalid_request_error", Some("model_not_found"))
    }

    /// 200 with a proxy's web page.
    pub fn html() -> Self {
        Self::fixed(200, "text/html", "<!doctype html><title>Sign in</title>")
    }

    /// 200 and nothing.
    pub fn empty() -> Self {
        Self::fixed(200, "application/json", "")
    }

    /// 200 and this body.
    pub fn body(body: &str) -> Self {
        Self::fixed(200, "application/json", body)
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((HeaderName::from_static(name), value.parse().unwrap()));
        self
    }

    /// With vectors that are spoilt in this way.
    pub fn vectors(spoilt: Spoilt) -> Self {
        Self { kind: Kind::Vectors(spoilt, None), headers: Vec::new(), added: 0 }
    }

    /// Spoilt where a text holds `marker`.
    pub(super) fn spoilt_at(marker: &str, how: Spoilt) -> Self {
        Self { kind: Kind::Vectors(how, Some(marker.to_owned())), headers: Vec::new(), added: 0 }
    }

    fn fixed(status: u16, content_type: &'static str, body: &str) -> Self {
        let status = StatusCode::from_u16(status).unwrap();
        Self { kind: Kind::Fixed(status, content_type, body.to_owned()), headers: Vec::new(), added: 0 }
    }

    fn error(status: u16, message: &str, kind: &str, code: Option<&str>) -> Self {
        let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
        Self::fixed(status, "application/json", &body.to_string())
    }

    pub(super) fn respond(self, texts: &[String], dimensions: usize, form: Form) -> Response {
        let (status, content_type, body) = match self.kind {
            Kind::Fixed(status, content_type, body) => (status, content_type, Body::from(body)),
            Kind::HungUp => {
                let broken = stream::iter([Err::<String, _>(io::Error::other("broken on purpose"))]);
                (StatusCode::OK, "application/json", Body::from_stream(broken))
            }
            Kind::Vectors(spoilt, marker) => {
                let body = embeddings(texts, dimensions, form, (spoilt, marker.as_deref()), self.added);
                (StatusCode::OK, "application/json", body)
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<u16> for Answer {
    fn from(status: u16) -> Self {
        Self::status(status)
    }
}

/// The vector that the service gives to this text: of length one, and no other text's.
pub fn vector_of(text: &str, dimensions: usize) -> Vec<f32> {
    let mut vector = Vec::with_capacity(dimensions + 16);
    for block in 0_u64.. {
        if vector.len() >= dimensions {
            break;
        }
        let hash = Sha256::new().chain_update(block.to_le_bytes()).chain_update(text).finalize();
        // Halves of the hash as numbers between -1 and 1, never 0.
        vector
            .extend(hash.chunks_exact(2).map(|half| f32::from(i16::from_le_bytes([half[0], half[1]]) | 1) / 32_768.0));
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    vector.into_iter().map(|number| number / length).collect()
}

/// The weights that the service gives to the words of this text, by token; one that is no word is not among them.
pub fn weights_of(text: &str) -> BTreeMap<u32, f32> {
    let word = |word: &str| {
        let hash = Sha256::digest(word);
        // The first four tokens are no words.
        let token = 4 + u32::from_le_bytes([hash[0], hash[1], hash[2], 0]) % 249_998;
        (token, (1.0 + f32::from(hash[3])) / 512.0)
    };
    text.split_whitespace().map(word).collect()
}

/// As vLLM's plugin says it: in any order, with tokens of weight 0 and some that are no words.
fn pooled((index, vector): (usize, Vec<f32>), text: &str, spoilt: bool) -> Value {
    let weight = |token: u32, weight: f32| json!({"token_id": token, "weight": weight, "token": null});
    let mut weights: Vec<Value> =
        weights_of(text).into_iter().rev().map(|(token, value)| weight(token, value)).collect();
    weights.extend([weight(3, 0.5), weight(250_000, 0.0)]);
    if spoilt {
        weights.push(weight(77, -0.5));
    }
    json!({"index": index, "object": "dense&sparse", "sparse_embedding": weights, "dense_embedding": vector})
}

fn embeddings(
    texts: &[String],
    dimensions: usize,
    form: Form,
    (spoilt, marker): (Spoilt, Option<&str>),
    added: usize,
) -> Body {
    let guilty = |nth: usize| marker.map_or(nth + 1 == texts.len(), |marker| texts[nth].contains(marker));
    let mut vectors: Vec<_> = texts.iter().map(|text| vector_of(text, dimensions)).enumerate().collect();
    // From the last on: spoiling may remove one.
    for nth in (0..texts.len()).rev().filter(|&nth| guilty(nth)) {
        spoil(&mut vectors, spoilt, nth);
    }
    let item = |(index, vector): (usize, Vec<f32>)| match form {
        Form::Pooling => pooled((index, vector), &texts[index], spoilt == Spoilt::OneWeight && guilty(index)),
        Form::Floats | Form::Base64 => {
            json!({"object": "embedding", "index": index, "embedding": written(&vector, form == Form::Base64)})
        }
    };
    let data: Vec<Value> = vectors.into_iter().map(item).collect();
    let tokens: usize = texts.iter().map(|text| tokens_of(text) + added).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let body = match form {
        Form::Pooling => {
            json!({"request_id": "pooling-1", "created_at": 1, "data": {"data": data, "usage": usage}}).to_string()
        }
        Form::Floats | Form::Base64 => {
            json!({"object": "list", "data": data, "model": "fake", "usage": usage}).to_string()
        }
    };
    match spoilt {
        Spoilt::CutOff => cut_off(&body),
        Spoilt::Dripping => dripping(body),
        _ => Body::from(body),
    }
}

/// Half of the body, and then the connection breaks.
fn cut_off(body: &str) -> Body {
    let half = body[..body.len() / 2].to_owned();
    let broken = stream::once(async {
        // Without this pause the first half would not be sent before the connection breaks.
        tokio::task::yield_now().await;
        Err(io::Error::other("broken on purpose"))
    });
    Body::from_stream(stream::iter([Ok(half)]).chain(broken))
}

/// A byte each second.
fn dripping(body: String) -> Body {
    let bytes = stream::iter(body.into_bytes()).then(|byte| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, io::Error>(vec![byte])
    });
    Body::from_stream(bytes)
}

fn spoil(vectors: &mut Vec<(usize, Vec<f32>)>, spoilt: Spoilt, nth: usize) {
    match spoilt {
        Spoilt::AllShort => vectors.iter_mut().for_each(|(_, vector)| vector.truncate(vector.len() - 1)),
        Spoilt::AllNotFinite => vectors.iter_mut().for_each(|(_, vector)| vector[0] = f32::NAN),
        one => spoil_one(vectors, one, nth),
    }
}

fn spoil_one(vectors: &mut Vec<(usize, Vec<f32>)>, spoilt: Spoilt, nth: usize) {
    let Some((index, vector)) = vectors.get_mut(nth) else { return };
    match spoilt {
        Spoilt::No
        | Spoilt::CutOff
        | Spoilt::Dripping
        | Spoilt::OneWeight
        | Spoilt::AllShort
        | Spoilt::AllNotFinite => {}
        Spoilt::Shuffled => vectors.reverse(),
        Spoilt::OneMissing => drop(vectors.remove(nth)),
        Spoilt::OneTwice => *index = 0,
        Spoilt::OneShort => drop(vector.pop()),
        Spoilt::OneNotFinite => vector[0] = f32::NAN,
        Spoilt::OneZero => vector.fill(0.0),
    }
}

/// As base64 of little-endian numbers or as a list, where JSON has `null` for a `NaN`.
fn written(vector: &[f32], base64: bool) -> Value {
    if base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        return json!(STANDARD.encode(bytes));
    }
    json!(vector)
}
