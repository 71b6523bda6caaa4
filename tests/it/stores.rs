//! File stores on loopback: a Supabase Storage and an S3 that answer like the real ones, and a wire that answers anything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

pub const KEY: &str = "sb_secret_only-for-tests";
pub const KEY_ID: &str = "AKIDONLYFORTESTS";
pub const SECRET: &str = "only+for/tests";

/// What a store holds: bucket and path to media type and bytes.
type Objects = BTreeMap<(String, String), (&'static str, Bytes)>;

#[derive(Clone, Default)]
pub struct Store {
    objects: Arc<Mutex<Objects>>,
    buckets: Arc<Mutex<Vec<String>>>,
    /// Requests that came, as `METHOD path`.
    pub seen: Arc<Mutex<Vec<String>>>,
    /// Statuses to answer before anything else, last first.
    pub first: Arc<Mutex<Vec<u16>>>,
}

impl Store {
    pub fn put(&self, bucket: &str, path: &str, media_type: &'static str, bytes: &[u8]) {
        self.bucket(bucket);
        let bytes = Bytes::copy_from_slice(bytes);
        self.objects.lock().unwrap().insert((bucket.to_owned(), path.to_owned()), (media_type, bytes));
    }

    pub fn bucket(&self, bucket: &str) {
        self.buckets.lock().unwrap().push(bucket.to_owned());
    }

    fn has(&self, bucket: &str) -> bool {
        self.buckets.lock().unwrap().iter().any(|name| name == bucket)
    }

    fn get(&self, bucket: &str, path: &str) -> Option<(&'static str, Bytes)> {
        self.objects.lock().unwrap().get(&(bucket.to_owned(), path.to_owned())).cloned()
    }

    fn paths(&self, bucket: &str) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        objects.keys().filter(|(name, _)| name == bucket).map(|(_, path)| path.clone()).collect()
    }

    fn note(&self, request: &Request) -> Option<StatusCode> {
        self.seen.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
        self.first.lock().unwrap().pop().map(|status| StatusCode::from_u16(status).unwrap())
    }

    /// Serves as Supabase Storage, below `/storage/v1`.
    pub async fn supabase(&self) -> String {
        serve(Router::new().fallback(supabase).with_state(self.clone())).await
    }

    /// Serves as S3, with buckets in the path.
    pub async fn s3(&self) -> String {
        serve(Router::new().fallback(s3).with_state(self.clone())).await
    }
}

pub async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// Answers each connection with the next of `replies` (the last for ever), as bytes, and hangs up.
pub async fn wire(replies: Vec<Vec<u8>>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let index = count.fetch_add(1, Ordering::SeqCst).min(replies.len() - 1);
            let reply = replies[index].clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => return,
                    }
                }
                let _ = socket.write_all(&reply).await;
                let _ = socket.shutdown().await;
            });
        }
    });
    (address, connections)
}

async fn supabase(State(store): State<Store>, request: Request) -> Response {
    if let Some(status) = store.note(&request) {
        return truth(status.as_u16(), "Unlucky", "try again");
    }
    let bearer = format!("Bearer {KEY}");
    let (uri, headers) = (request.uri().clone(), request.headers().clone());
    if header(&headers, "authorization") != bearer || header(&headers, "apikey") != KEY {
        return truth(403, "Unauthorized", "Invalid Compact JWS");
    }
    let Some(path) = uri.path().strip_prefix("/storage/v1/") else { return StatusCode::NOT_FOUND.into_response() };
    let segments: Vec<String> = path.split('/').map(decoded).collect();
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["bucket", bucket] if store.has(bucket) => axum::Json(json!({ "id": bucket })).into_response(),
        ["object", "list", bucket] if store.has(bucket) => {
            let body = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap();
            listing(&store, bucket, &serde_json::from_slice(&body).unwrap())
        }
        ["object", "authenticated", bucket, path @ ..] if store.has(bucket) => match store.get(bucket, &path.join("/"))
        {
            Some((media_type, bytes)) => ([("content-type", media_type)], bytes).into_response(),
            None => truth(404, "not_found", "Object not found"),
        },
        ["bucket" | "object", ..] => truth(404, "Bucket not found", "Bucket not found"),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// An error as Supabase Storage sends it: HTTP 400, and the truth inside.
fn truth(status: u16, error: &str, message: &str) -> Response {
    let body = json!({ "statusCode": status.to_string(), "error": error, "message": message });
    (StatusCode::BAD_REQUEST, axum::Json(body)).into_response()
}

/// The direct children of a folder whose names start like `search`; a name's length stands for its age.
fn listing(store: &Store, bucket: &str, query: &Value) -> Response {
    let word = |key: &str| query[key].as_str().unwrap().to_lowercase();
    let folder = format!("{}/", query["prefix"].as_str().unwrap());
    let mut files = Vec::new();
    for path in store.paths(bucket) {
        let Some(name) = path.strip_prefix(&folder) else { continue };
        if name.to_lowercase().starts_with(&word("search")) {
            let (name, id) = name.split_once('/').map_or((name, json!(path)), |(folder, _)| (folder, Value::Null));
            let updated = format!("2026-01-01T00:00:{:02}.5+00:00", name.len());
            files.push(json!({ "name": name, "id": id, "updated_at": updated, "metadata": {} }));
        }
    }
    let number = |key: &str| usize::try_from(query[key].as_u64().unwrap()).unwrap();
    let page: Vec<Value> = files.into_iter().skip(number("offset")).take(number("limit")).collect();
    axum::Json(page).into_response()
}

async fn s3(State(store): State<Store>, request: Request) -> Response {
    if let Some(status) = store.note(&request) {
        return (status, refusal("InternalError")).into_response();
    }
    if let Err(code) = signed(request.method().as_str(), request.uri(), request.headers()) {
        return (StatusCode::FORBIDDEN, refusal(code)).into_response();
    }
    let path = decoded(request.uri().path());
    let (bucket, path) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    if !store.has(bucket) {
        return (StatusCode::NOT_FOUND, refusal("NoSuchBucket")).into_response();
    }
    if path.is_empty() {
        return s3_listing(&store, bucket, request.uri().query().unwrap_or_default());
    }
    match store.get(bucket, path) {
        Some((media_type, bytes)) => {
            let headers = [("content-type", media_type), ("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")];
            (headers, Body::from(bytes)).into_response()
        }
        None => (StatusCode::NOT_FOUND, refusal("NoSuchKey")).into_response(),
    }
}

/// An error as S3 sends it: with the key in it.
fn refusal(code: &str) -> String {
    format!("<Error><Code>{code}</Code><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId></Error>")
}

fn s3_listing(store: &Store, bucket: &str, query: &str) -> Response {
    let word = |key: &str| {
        let found = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key);
        found.map(|(_, value)| decoded(value)).unwrap_or_default()
    };
    let contents: Vec<String> = store
        .paths(bucket)
        .into_iter()
        .filter(|path| path.starts_with(&word("prefix")) && *path > word("start-after"))
        .map(|path| {
            let seconds = path.len();
            format!(
                "<Contents><Key>{path}</Key><LastModified>2026-01-01T00:00:{seconds:02}.000Z</LastModified>\
                 <Size>1</Size><ETag>\"a\"</ETag></Contents>"
            )
        })
        .collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>", contents.concat())
        .into_response()
}

/// Checks the request's signature (AWS Signature Version 4) over what really came, so that a client which spells an address
/// in another way than it signed it is found out.
fn signed(method: &str, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let authorization = header(headers, "authorization");
    let part = |name: &str| {
        let (_, rest) = authorization.split_once(&format!("{name}=")).unwrap_or_default();
        rest.split(", ").next().unwrap_or_default().to_owned()
    };
    let credential = part("Credential");
    let Some((key_id, scope)) = credential.split_once('/') else { return Err("AccessDenied") };
    if key_id != KEY_ID {
        return Err("InvalidAccessKeyId");
    }
    let mut query: Vec<&str> = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let names = part("SignedHeaders");
    let lines: Vec<String> = names.split(';').map(|name| format!("{name}:{}\n", header(headers, name))).collect();
    let lines = lines.concat();
    let payload = header(headers, "x-amz-content-sha256");
    let canonical = format!("{method}\n{}\n{}\n{lines}\n{names}\n{payload}", uri.path(), query.join("&"));

    let time = header(headers, "x-amz-date");
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let key = scope.split('/').fold(format!("AWS4{SECRET}").into_bytes(), |key, word| hmac(&key, word.as_bytes()));
    if hex(&hmac(&key, text.as_bytes())) == part("Signature") { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| std::str::from_utf8(&tail[..2]).unwrap());
        bytes.push(escaped.map_or(*first, |digits| u8::from_str_radix(digits, 16).unwrap()));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap()
}
