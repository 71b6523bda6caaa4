//! A service that transcribes over real HTTP on loopback, in the words of ElevenLabs and of OpenAI. It hears how long a WAV file is,
//! and says so.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// One request as it came in.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub path: String,
    /// The header that holds the key, scheme included.
    pub key: String,
    /// The form's fields as `name=value`, in their order.
    pub fields: Vec<String>,
    pub file_name: String,
    pub media_type: String,
    pub bytes: Vec<u8>,
    /// The status it was answered with; none while it waits, and where the client went away first.
    pub status: Option<u16>,
}

impl Seen {
    /// Seconds of the WAV file, by its own header.
    pub fn seconds(&self) -> f64 {
        let number = |at: usize| u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap());
        f64::from(number(40)) / f64::from(number(28))
    }
}

/// An answer that is scripted: a status, a header, a body.
pub type Scripted = (u16, Option<(&'static str, &'static str)>, Value);

/// The service. It stops when this is dropped.
pub struct FakeSpeech {
    address: SocketAddr,
    service: Arc<Service>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Service {
    script: Mutex<VecDeque<Scripted>>,
    always: Mutex<Option<Scripted>>,
    seen: Mutex<Vec<Seen>>,
    /// The answer to who asks for the list of models; none: an empty list.
    models: Mutex<Option<(u16, Value)>>,
    /// How many requests may be answered.
    allowed: watch::Sender<usize>,
    arrived: watch::Sender<usize>,
}

impl FakeSpeech {
    /// Starts to listen; requests may be sent at once.
    pub fn start() -> Self {
        let service = Arc::new(Service {
            script: Mutex::default(),
            always: Mutex::default(),
            seen: Mutex::default(),
            models: Mutex::default(),
            allowed: watch::Sender::new(usize::MAX),
            arrived: watch::Sender::default(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = Router::new()
            .route("/v1/speech-to-text", post(transcribe))
            .route("/v1/audio/transcriptions", post(transcribe))
            .route("/v1/models", get(models))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&service));
        let thread = std::thread::spawn(move || serve(listener, router, stopped));
        Self { address, service, stop: Some(stop), thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The answers to the next requests; after them it behaves as usual.
    pub fn script(&self, answers: impl IntoIterator<Item = Scripted>) {
        self.service.script.lock().unwrap().extend(answers);
    }

    /// The answer to every request that has no scripted one.
    pub fn always(&self, answer: Scripted) {
        *self.service.always.lock().unwrap() = Some(answer);
    }

    /// The answer to who asks for the list of models, which is not paid for.
    pub fn lists(&self, status: u16, body: Value) {
        *self.service.models.lock().unwrap() = Some((status, body));
    }

    /// Lets so many requests since the start be answered; later ones wait.
    pub fn allow(&self, requests: usize) {
        self.service.allowed.send_replace(requests);
    }

    /// Waits until so many requests have come in since the start.
    pub async fn arrived(&self, requests: usize) {
        self.service.arrived.subscribe().wait_for(|&arrived| arrived >= requests).await.unwrap();
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.service.seen.lock().unwrap().clone()
    }

    /// The seconds of each recording that was answered with a transcript.
    pub fn paid(&self) -> Vec<f64> {
        self.seen().iter().filter(|seen| seen.status == Some(200)).map(Seen::seconds).collect()
    }
}

impl Drop for FakeSpeech {
    fn drop(&mut self) {
        self.allow(usize::MAX);
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

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

async fn models(State(service): State<Arc<Service>>, headers: HeaderMap) -> (StatusCode, String) {
    assert!(headers.contains_key("xi-api-key"), "asked without a key");
    let (status, body) = service.models.lock().unwrap().clone().unwrap_or((200, json!([{"model_id": "eleven_v3"}])));
    (StatusCode::from_u16(status).unwrap(), body.to_string())
}

async fn transcribe(State(service): State<Arc<Service>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let seen = read(head.uri.path(), &head.headers, &body);
    let elevenlabs = seen.path == "/v1/speech-to-text";
    let seconds = seen.seconds();
    let number = {
        let mut all = service.seen.lock().unwrap();
        all.push(seen);
        all.len()
    };
    service.arrived.send_modify(|arrived| *arrived += 1);
    service.allowed.subscribe().wait_for(|&allowed| number <= allowed).await.unwrap();

    let scripted = service.script.lock().unwrap().pop_front().or_else(|| service.always.lock().unwrap().clone());
    let (status, header, body) = scripted.unwrap_or_else(|| (200, None, transcript(seconds, elevenlabs)));
    service.seen.lock().unwrap()[number - 1].status = Some(status);
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    if let Some((name, value)) = header {
        response.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    response
}

fn transcript(seconds: f64, elevenlabs: bool) -> Value {
    let text = format!(" Heard {seconds:.2} seconds.");
    if elevenlabs {
        let word = |text: &str, start: f64, end: f64, kind: &str| json!({"text": text, "start": start, "end": end, "type": kind, "speaker_id": null, "logprob": -0.1});
        return json!({
            "language_code": "eng", "language_probability": 0.98, "text": text, "audio_duration_secs": 7200,
            "words": [word("Heard", 0.1, 0.4, "word"), word(" ", 0.4, 0.5, "spacing"), word("(bell)", 0.5, 0.9, "audio_event")],
        });
    }
    json!({
        "task": "transcribe", "language": "english", "duration": 7200.0, "text": text,
        "segments": [{"id": 0, "seek": 0, "start": 0.0, "end": 1.5, "text": text, "tokens": [1], "temperature": 0.0}],
    })
}

/// Takes a form apart: fields, and a file that has to come last.
fn read(path: &str, headers: &HeaderMap, body: &Bytes) -> Seen {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let kind = header("content-type");
    let boundary = format!("--{}", kind.split_once("boundary=").expect("a form").1.trim_matches('"'));
    let key = Some(header("xi-api-key")).filter(|key| !key.is_empty()).unwrap_or_else(|| header("authorization"));
    let mut seen = Seen { path: path.to_owned(), key, ..Seen::default() };
    let mut rest = &body[boundary.len() + 2..];
    loop {
        let head_end = find(rest, b"\r\n\r\n");
        let head = std::str::from_utf8(&rest[..head_end]).unwrap();
        let value_end = head_end + 4 + find(&rest[head_end + 4..], format!("\r\n{boundary}").as_bytes());
        let value = &rest[head_end + 4..value_end];
        let quoted = |name: &str| head.split(&format!(" {name}=\"")).nth(1).map(|rest| rest.split('"').next().unwrap());
        let name = quoted("name").expect("a field has a name");
        if let Some(file_name) = quoted("filename") {
            assert_eq!(name, "file");
            file_name.clone_into(&mut seen.file_name);
            let kind =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-type: ").map(str::to_owned));
            seen.media_type = kind.unwrap_or_default();
            seen.bytes = value.to_vec();
        } else {
            assert!(seen.bytes.is_empty(), "a field comes after the file");
            seen.fields.push(format!("{name}={}", std::str::from_utf8(value).unwrap()));
        }
        let after = &rest[value_end + 2 + boundary.len()..];
        if after.starts_with(b"--") {
            return seen;
        }
        rest = &after[2..];
    }
}

fn find(text: &[u8], what: &[u8]) -> usize {
    text.windows(what.len()).position(|window| window == what).expect("the form is whole")
}
