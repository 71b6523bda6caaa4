//! A provider of OpenAI's shape on loopback that costs next to no processor time: its vectors are made once.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::super::failure::Failure;

/// How the provider behaves.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "The loopback provider")]
pub(super) struct Knobs {
    /// How long each answer takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency: u64,
    /// How much longer for each input, in microseconds
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub per_input: u64,
    /// Requests it takes in a minute, with a second's worth at once; beyond, it answers 429
    #[arg(long, value_name = "N")]
    pub requests_per_minute: Option<u32>,
    /// Tokens it takes in a minute, a token being four bytes
    #[arg(long, value_name = "N")]
    pub tokens_per_minute: Option<u32>,
    /// Requests it takes at once; beyond, it answers 429
    #[arg(long, value_name = "N")]
    pub at_once: Option<usize>,
    /// One answer in so many is a 500
    #[arg(long, value_name = "N")]
    pub fail_every: Option<u64>,
    /// A request with this in a text is refused
    #[arg(long, value_name = "TEXT")]
    pub poison: Option<String>,
    /// Answers lists of numbers, as services do that know no base64
    #[arg(long)]
    pub floats: bool,
}

impl Knobs {
    /// An instant one, with a latency.
    pub(super) fn slow(latency: Duration) -> Self {
        Self { latency: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX), ..Self::default() }
    }
}

/// What was asked of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub requests: u64,
    /// Of requests that were answered with vectors.
    pub inputs: u64,
    /// Inputs that had been answered before.
    pub duplicates: u64,
    /// Requests that were answered with 429.
    pub limited: u64,
    pub most_at_once: usize,
    pub largest_request: u64,
}

/// The provider, until this is dropped.
pub(super) struct Loopback {
    address: SocketAddr,
    inner: Arc<Inner>,
    server: JoinHandle<()>,
}

struct Inner {
    knobs: Knobs,
    /// Vectors as they stand in an answer, in base64 and as lists of numbers.
    base64: Vec<Vec<u8>>,
    numbers: Vec<Vec<u8>>,
    requests: AtomicU64,
    inputs: AtomicU64,
    duplicates: AtomicU64,
    limited: AtomicU64,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    largest_request: AtomicU64,
    seen: Mutex<HashSet<u64>>,
    requests_left: Mutex<Bucket>,
    tokens_left: Mutex<Bucket>,
}

/// Vectors that differ.
const PREPARED: usize = 64;

/// The canned vectors: each of length 1, none like another.
pub(super) fn vectors(dimensions: usize) -> Vec<Vec<f32>> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from(u16::try_from(state >> 48).unwrap_or_default()) / 32_768.0 - 1.0
    };
    let mut one = || {
        let raw: Vec<f32> = (0..dimensions).map(|_| next()).collect();
        let norm = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
        raw.into_iter().map(|value| value / norm).collect()
    };
    (0..PREPARED).map(|_| one()).collect()
}

impl Loopback {
    pub(super) async fn start(knobs: Knobs, dimensions: usize) -> Result<Self, Failure> {
        let numbers = |vector: &Vec<f32>| {
            let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
            format!("[{}]", numbers.join(",")).into_bytes()
        };
        let base64 = |vector: &Vec<f32>| {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            format!("\"{}\"", STANDARD.encode(bytes)).into_bytes()
        };
        let vectors = vectors(dimensions);
        let inner = Arc::new(Inner {
            requests_left: Mutex::new(Bucket::new(knobs.requests_per_minute)),
            tokens_left: Mutex::new(Bucket::new(knobs.tokens_per_minute)),
            knobs,
            base64: vectors.iter().map(base64).collect(),
            numbers: vectors.iter().map(numbers).collect(),
            requests: AtomicU64::new(0),
            inputs: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            largest_request: AtomicU64::new(0),
            seen: Mutex::default(),
        });
        let router = Router::new()
            .route("/v1/embeddings", post(embed))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&inner));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the loopback provider has ended");
            }
        });
        Ok(Self { address, inner, server })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(super) fn counted(&self) -> Counted {
        let inner = &self.inner;
        Counted {
            requests: inner.requests.load(Ordering::Relaxed),
            inputs: inner.inputs.load(Ordering::Relaxed),
            duplicates: inner.duplicates.load(Ordering::Relaxed),
            limited: inner.limited.load(Ordering::Relaxed),
            most_at_once: inner.most_at_once.load(Ordering::Relaxed),
            largest_request: inner.largest_request.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow)]
    input: Vec<&'a RawValue>,
    encoding_format: Option<&'a str>,
}

async fn embed(State(inner): State<Arc<Inner>>, body: Bytes) -> Response {
    let nth = inner.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let at_once = inner.at_once.fetch_add(1, Ordering::Relaxed) + 1;
    inner.most_at_once.fetch_max(at_once, Ordering::Relaxed);
    let answer = inner.answer(nth, at_once, &body).await;
    inner.at_once.fetch_sub(1, Ordering::Relaxed);
    answer
}

impl Inner {
    async fn answer(&self, nth: u64, at_once: usize, body: &[u8]) -> Response {
        let knobs = &self.knobs;
        let Ok(asked) = serde_json::from_slice::<Asked<'_>>(body) else {
            return refusal(StatusCode::BAD_REQUEST, "no list of texts");
        };
        let tokens: u64 = asked.input.iter().map(|text| wide(text.get().len() / 4)).sum();
        let wait = taken(&self.requests_left, 1).max(taken(&self.tokens_left, tokens));
        if !wait.is_zero() || knobs.at_once.is_some_and(|most| at_once > most) {
            self.limited.fetch_add(1, Ordering::Relaxed);
            let after = [(header::RETRY_AFTER, wait.as_secs_f64().ceil().max(1.0).to_string())];
            return (after, refusal(StatusCode::TOO_MANY_REQUESTS, "too many requests")).into_response();
        }
        let pause =
            Duration::from_millis(knobs.latency) + Duration::from_micros(knobs.per_input) * small(asked.input.len());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if knobs.fail_every.is_some_and(|every| nth.is_multiple_of(every.max(1))) {
            return refusal(StatusCode::INTERNAL_SERVER_ERROR, "out of order");
        }
        if knobs.poison.as_ref().is_some_and(|poison| asked.input.iter().any(|text| text.get().contains(poison))) {
            return refusal(StatusCode::BAD_REQUEST, "a text is not wanted");
        }
        self.count(&asked.input);
        let json = [(header::CONTENT_TYPE, "application/json")];
        let base64 = asked.encoding_format == Some("base64") && !knobs.floats;
        let vectors = if base64 { &self.base64 } else { &self.numbers };
        (json, written(vectors, asked.input.len(), tokens)).into_response()
    }

    fn count(&self, texts: &[&RawValue]) {
        self.inputs.fetch_add(wide(texts.len()), Ordering::Relaxed);
        self.largest_request.fetch_max(wide(texts.len()), Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let again = texts.iter().filter(|text| {
            let mut hasher = DefaultHasher::new();
            text.get().hash(&mut hasher);
            !seen.insert(hasher.finish())
        });
        self.duplicates.fetch_add(wide(again.count()), Ordering::Relaxed);
    }
}

fn written(vectors: &[Vec<u8>], texts: usize, tokens: u64) -> Vec<u8> {
    let mut answer = Vec::with_capacity(texts * (vectors[0].len() + 64) + 128);
    answer.extend(br#"{"object":"list","data":["#);
    for (index, vector) in vectors.iter().cycle().take(texts).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        answer.extend(format!(r#"{comma}{{"object":"embedding","index":{index},"embedding":"#).as_bytes());
        answer.extend(vector);
        answer.push(b'}');
    }
    let usage = format!(r#"],"model":"bench","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#);
    answer.extend(usage.as_bytes());
    answer
}

/// What may still be asked: it fills evenly, up to a second's worth.
#[derive(Debug)]
struct Bucket {
    per_second: Option<f64>,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: Option<u32>) -> Self {
        let per_second = per_minute.map(|per_minute| f64::from(per_minute) / 60.0);
        Self { per_second, level: per_second.unwrap_or_default(), at: Instant::now() }
    }
}

/// Takes from a bucket, or says how long it takes until there is enough. What is more than a second's worth goes when it is full.
fn taken(bucket: &Mutex<Bucket>, amount: u64) -> Duration {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(per_second) = bucket.per_second else { return Duration::ZERO };
    let full = per_second.max(1.0);
    bucket.level = (bucket.level + bucket.at.elapsed().as_secs_f64() * per_second).min(full);
    bucket.at = Instant::now();
    let amount = f64::from(u32::try_from(amount).unwrap_or(u32::MAX));
    if bucket.level >= amount.min(full) {
        bucket.level -= amount;
        return Duration::ZERO;
    }
    Duration::from_secs_f64((amount.min(full) - bucket.level) / per_second)
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "error": { "message": message } }))).into_response()
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
