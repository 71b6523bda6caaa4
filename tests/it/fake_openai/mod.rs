//! A service that speaks OpenAI's embeddings API, and vLLM's `/pooling` with its plugin for BGE-M3, over real HTTP on loopback, on a thread of its own, so that it answers
//! workers in this process and in others alike.
//!
//! Left alone it behaves as the vendor does: it counts tokens, keeps the vendor's limits and makes vectors, each of which
//! tells its text (see [`vector_of`]). A test scripts what else it should do:
//! ```ignore
//! let vendor = FakeOpenAi::start(Options::default());
//! vendor.script([Answer::status(429).with("retry-after", "1"), Answer::html()]);  // then as usual again
//! vendor.poison("POISON");        // every request with a text that holds the word is refused
//! let gate = vendor.hold();       // requests wait …
//! vendor.arrived(3).await;        // … and when three are there …
//! gate.open();                    // … they are answered
//! assert_eq!(vendor.paid("One."), 1);
//! ```

mod answer;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use url::Url;

use answer::Form;
pub use answer::{Answer, Spoilt, vector_of, weights_of};

/// What the service is like. The default takes any key and model.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of the vectors, where a request does not ask for others.
    pub dimensions: usize,
    /// The one key that is let in.
    pub key: Option<String>,
    /// The one model there is.
    pub model: Option<String>,
    /// Most inputs of a request, tokens of a request, tokens of an input.
    pub most_inputs: usize,
    pub most_tokens: usize,
    pub longest: usize,
    /// Like services that do not know `encoding_format`.
    pub only_floats: bool,
    /// More requests at once are answered with 429 on the spot, to be sent again soon.
    pub most_at_once: usize,
    /// More requests in a second, beyond a tenth of them at once, are answered with 429 and no word on when to come again.
    pub most_a_second: Option<u32>,
    /// Tokens that are counted for each text beside its own, as by models that mark its beginning and end.
    pub added_tokens: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dimensions: 1536,
            key: None,
            model: None,
            most_inputs: 2_048,
            most_tokens: 300_000,
            longest: 8_192,
            only_floats: false,
            most_at_once: usize::MAX,
            most_a_second: None,
            added_tokens: 0,
        }
    }
}

/// One request as it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub path: &'static str,
    pub model: String,
    pub texts: Vec<String>,
    pub encoding_format: Option<String>,
    pub dimensions: Option<usize>,
    /// The header, scheme included.
    pub authorization: Option<String>,
    /// The status it was answered with; none while it waits, and where the client went away first.
    pub status: Option<u16>,
}

/// The service. It stops when this is dropped.
pub struct FakeOpenAi {
    address: SocketAddr,
    service: Arc<Service>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeOpenAi {
    /// Starts to listen; requests may be sent at once.
    pub fn start(options: Options) -> Self {
        let service = Arc::new(Service::new(options));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = Router::new()
            .route("/v1/embeddings", post(embeddings))
            .route("/v1/models", get(models))
            .route("/pooling", post(pooling))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&service));
        let thread = std::thread::spawn(move || serve(listener, router, stopped));
        Self { address, service, stop: Some(stop), thread: Some(thread) }
    }

    /// What goes into `url` of a provider: ends before `/embeddings`.
    pub fn url(&self) -> Url {
        format!("http://{}/v1", self.address).parse().unwrap()
    }

    /// The answers to the next requests, in the order in which these arrive; after them it behaves as usual.
    pub fn script<A: Into<Answer>>(&self, answers: impl IntoIterator<Item = A>) {
        self.service.script.lock().unwrap().extend(answers.into_iter().map(Into::into));
    }

    /// Forgets the answers that are still to come.
    pub fn unscript(&self) {
        self.service.script.lock().unwrap().clear();
    }

    /// The answer to every request that has no scripted one; `None`: as usual again.
    pub fn always(&self, answer: impl Into<Option<Answer>>) {
        *self.service.always.lock().unwrap() = answer.into();
    }

    /// Refuses every request with a text that holds `marker`, and quotes the text, as vendors do.
    pub fn poison(&self, marker: &str) {
        self.service.poison.lock().unwrap().push(marker.to_owned());
    }

    /// Spoils the vector of every text that holds `marker`, whatever else the request holds.
    pub fn spoil(&self, marker: &str, how: Spoilt) {
        self.service.spoilt.lock().unwrap().push((marker.to_owned(), how));
    }

    /// Makes requests wait, from now until the gate is opened or dropped.
    pub fn hold(&self) -> Gate {
        self.service.held.send_modify(|gates| *gates += 1);
        Gate(Arc::clone(&self.service))
    }

    /// Waits until so many requests have come in since the start.
    pub async fn arrived(&self, requests: usize) {
        self.service.arrived.subscribe().wait_for(|&arrived| arrived >= requests).await.unwrap();
    }

    /// Waits until so many requests have been answered since the start, whatever the answer.
    pub async fn answered(&self, requests: usize) {
        self.service.answered.subscribe().wait_for(|&answered| answered >= requests).await.unwrap();
    }

    /// How many requests have come in.
    pub fn requests(&self) -> usize {
        self.service.seen.lock().unwrap().len()
    }

    /// Every request so far, in the order they came in.
    pub fn seen(&self) -> Vec<Seen> {
        self.service.seen.lock().unwrap().clone()
    }

    /// The texts of all requests that were answered with status 200, once for each time.
    pub fn paid_texts(&self) -> Vec<String> {
        self.seen().into_iter().filter(|seen| seen.status == Some(200)).flat_map(|seen| seen.texts).collect()
    }

    /// How often this text was paid for.
    pub fn paid(&self, text: &str) -> usize {
        self.paid_texts().iter().filter(|paid| *paid == text).count()
    }

    /// How many requests were under way at once, at most.
    pub fn most_in_flight(&self) -> usize {
        self.service.most_in_flight.load(Ordering::SeqCst)
    }
}

/// Serves until told to stop; connections under way end with the runtime.
fn serve(listener: std::net::TcpListener, router: Router, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).unwrap();
        tokio::select! {
            served = axum::serve(listener, router) => served.unwrap(),
            _ = stopped => {}
        }
    });
}

impl Drop for FakeOpenAi {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

/// While it exists, requests wait.
pub struct Gate(Arc<Service>);

impl Gate {
    /// Lets the waiting requests and all later ones go on.
    pub fn open(self) {
        drop(self);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.held.send_modify(|gates| *gates -= 1);
    }
}

/// The tokens of a text as the vendor bills them.
pub fn tokens_of(text: &str) -> usize {
    tiktoken_rs::cl100k_base_singleton().encode_ordinary(text).len()
}

struct Service {
    options: Options,
    script: Mutex<std::collections::VecDeque<Answer>>,
    always: Mutex<Option<Answer>>,
    poison: Mutex<Vec<String>>,
    spoilt: Mutex<Vec<(String, Spoilt)>>,
    seen: Mutex<Vec<Seen>>,
    /// How many gates are closed.
    held: watch::Sender<usize>,
    /// When the requests that were let in would have come, had they come evenly.
    due: Mutex<Option<Instant>>,
    arrived: watch::Sender<usize>,
    answered: watch::Sender<usize>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

/// The body of a request.
#[derive(Debug, Deserialize)]
struct Request {
    model: String,
    input: Vec<String>,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

/// The body of a request to `/pooling`.
#[derive(Debug, Deserialize)]
struct PoolingRequest {
    model: String,
    task: String,
    data: PoolingInput,
}

#[derive(Debug, Deserialize)]
struct PoolingInput {
    input: Vec<String>,
    embed_task: String,
}

async fn embeddings(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Request>(&body) else {
        return Answer::status(400).respond(&[], 0, Form::Floats);
    };
    let base64 = request.encoding_format.as_deref() == Some("base64") && !service.options.only_floats;
    let form = if base64 { Form::Base64 } else { Form::Floats };
    answer(&service, &headers, "/v1/embeddings", &request, form).await
}

async fn pooling(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<PoolingRequest>(&body) else {
        return Answer::status(400).respond(&[], 0, Form::Floats);
    };
    let PoolingRequest { model, task, data } = request;
    if (task.as_str(), data.embed_task.as_str()) != ("plugin", "dense&sparse") {
        return Answer::refused(&format!("Unsupported task: {task:?}")).respond(&[], 0, Form::Floats);
    }
    let request = Request { model, input: data.input, encoding_format: None, dimensions: None };
    answer(&service, &headers, "/pooling", &request, Form::Pooling).await
}

async fn answer(service: &Service, headers: &HeaderMap, path: &'static str, request: &Request, form: Form) -> Response {
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let number = service.note(path, request, authorization.clone());
    let in_flight = InFlight::enter(service);
    let too_many = in_flight.1 > service.options.most_at_once;
    let scripted = service.script.lock().unwrap().pop_front();
    service.arrived.send_modify(|arrived| *arrived += 1);
    if !too_many {
        service.held.subscribe().wait_for(|&gates| gates == 0).await.unwrap();
    }

    let usual = || {
        if too_many {
            Answer::status(429).with("retry-after-ms", "50")
        } else if service.is_too_soon() {
            Answer::status(429)
        } else {
            service.usual(request, authorization.as_deref())
        }
    };
    let mut answer = scripted.unwrap_or_else(usual);
    answer.added = service.options.added_tokens;
    let dimensions = request.dimensions.unwrap_or(service.options.dimensions);
    let response = answer.respond(&request.input, dimensions, form);
    service.seen.lock().unwrap()[number].status = Some(response.status().as_u16());
    service.answered.send_modify(|answered| *answered += 1);
    response
}

/// The list of models, which nobody pays for: answered from the options alone.
async fn models(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap());
    if let Some(refused) = service.unauthorized(authorization) {
        return refused.respond(&[], 0, Form::Floats);
    }
    let model = service.options.model.as_deref().unwrap_or("text-embedding-3-small");
    axum::Json(serde_json::json!({ "object": "list", "data": [{ "id": model, "object": "model" }] })).into_response()
}

impl Service {
    fn new(options: Options) -> Self {
        Self {
            options,
            script: Mutex::default(),
            always: Mutex::default(),
            poison: Mutex::default(),
            spoilt: Mutex::default(),
            seen: Mutex::default(),
            held: watch::Sender::default(),
            due: Mutex::default(),
            arrived: watch::Sender::default(),
            answered: watch::Sender::default(),
            in_flight: AtomicUsize::default(),
            most_in_flight: AtomicUsize::default(),
        }
    }

    fn is_too_soon(&self) -> bool {
        let Some(most) = self.options.most_a_second else { return false };
        let (now, mut due) = (Instant::now(), self.due.lock().unwrap());
        let next = due.map_or(now, |due| due.max(now.checked_sub(Duration::from_millis(100)).unwrap_or(now)));
        let is_too_soon = next > now;
        if !is_too_soon {
            *due = Some(next + Duration::from_secs(1) / most);
        }
        is_too_soon
    }

    fn note(&self, path: &'static str, request: &Request, authorization: Option<String>) -> usize {
        let mut seen = self.seen.lock().unwrap();
        seen.push(Seen {
            path,
            model: request.model.clone(),
            texts: request.input.clone(),
            encoding_format: request.encoding_format.clone(),
            dimensions: request.dimensions,
            authorization,
            status: None,
        });
        seen.len() - 1
    }

    /// What the vendor would say, the wish of [`FakeOpenAi::always`] first.
    fn usual(&self, request: &Request, authorization: Option<&str>) -> Answer {
        let always = self.always.lock().unwrap().clone();
        always
            .or_else(|| self.refusal(request, authorization))
            .or_else(|| self.spoils(&request.input))
            .unwrap_or_else(Answer::good)
    }

    fn spoils(&self, texts: &[String]) -> Option<Answer> {
        let spoilt = self.spoilt.lock().unwrap();
        let (marker, how) = spoilt.iter().find(|(marker, _)| texts.iter().any(|text| text.contains(marker)))?;
        Some(Answer::spoilt_at(marker, *how))
    }

    fn refusal(&self, request: &Request, authorization: Option<&str>) -> Option<Answer> {
        let options = &self.options;
        if let Some(refused) = self.unauthorized(authorization) {
            return Some(refused);
        }
        if options.model.as_ref().is_some_and(|model| *model != request.model) {
            return Some(Answer::unknown_model(&request.model));
        }
        if request.input.is_empty() || request.input.iter().any(String::is_empty) {
            return Some(Answer::refused("'$.input' is invalid. Please check the API reference."));
        }
        self.too_much(&request.input).or_else(|| self.poisoned(&request.input))
    }

    fn unauthorized(&self, authorization: Option<&str>) -> Option<Answer> {
        let wanted = format!("Bearer {}", self.options.key.as_ref()?);
        (authorization != Some(&wanted)).then(|| Answer::unauthorized(authorization.unwrap_or_default()))
    }

    fn too_much(&self, texts: &[String]) -> Option<Answer> {
        let Options { most_inputs, most_tokens, longest, .. } = self.options;
        // A token has at least a byte, so short texts need no counting.
        let bytes: usize = texts.iter().map(String::len).sum();
        let long = |text: &&String| text.len() > longest && tokens_of(text) > longest;
        if texts.len() > most_inputs {
            return Some(Answer::refused(&format!("'$.input' is invalid: array too long, max {most_inputs} inputs")));
        }
        if texts.iter().any(|text| long(&text)) {
            return Some(Answer::refused(&format!("This model's maximum context length is {longest} tokens.")));
        }
        (bytes > most_tokens && texts.iter().map(|text| tokens_of(text)).sum::<usize>() > most_tokens).then(|| {
            Answer::refused(&format!("Invalid input: maximum request size is {most_tokens} tokens per request."))
        })
    }

    fn poisoned(&self, texts: &[String]) -> Option<Answer> {
        let poison = self.poison.lock().unwrap();
        let guilty = texts.iter().find(|text| poison.iter().any(|marker| text.contains(marker)))?;
        Some(Answer::refused(&format!("Rejected by our policy: \"{guilty}\". The text was: {guilty}")))
    }
}

/// Counts a request while it is under way, to its end or until the client goes away; and how many there were with it.
struct InFlight<'a>(&'a Service, usize);

impl<'a> InFlight<'a> {
    fn enter(service: &'a Service) -> Self {
        let now = service.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        service.most_in_flight.fetch_max(now, Ordering::SeqCst);
        Self(service, now)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}
