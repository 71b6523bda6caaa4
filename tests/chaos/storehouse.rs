//! A Supabase Storage on loopback that serves a folder, or has the trouble it is told to have.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, LOCATION};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures_util::stream::{self, StreamExt as _};
use tokio::net::TcpListener;

#[derive(Debug, Clone)]
pub enum Trouble {
    /// Half of what was promised comes, and then the connection ends.
    Short,
    Denied,
    Busy,
    /// It never ends, and does not say how long it is.
    Enormous,
    Redirect(String),
}

#[derive(Clone)]
pub struct Storehouse(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    trouble: Mutex<Option<Trouble>>,
    asked: AtomicUsize,
}

impl Storehouse {
    /// Serves a folder: itself, and its address.
    pub async fn open(folder: PathBuf) -> (Self, SocketAddr) {
        let storehouse = Self(Arc::new(Inner { folder, trouble: Mutex::new(None), asked: AtomicUsize::new(0) }));
        let router = Router::new()
            .route("/storage/v1/object/authenticated/files/{*path}", get(serve))
            .fallback(async |State(Self(inner)): State<Self>| {
                inner.asked.fetch_add(1, Ordering::SeqCst);
                StatusCode::NOT_FOUND
            })
            .with_state(storehouse.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (storehouse, address)
    }

    pub fn trouble(&self, trouble: Option<Trouble>) {
        *self.0.trouble.lock().unwrap() = trouble;
    }

    /// How many requests have come in.
    pub fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }
}

async fn serve(State(Storehouse(inner)): State<Storehouse>, Path(path): Path<String>) -> Response {
    inner.asked.fetch_add(1, Ordering::SeqCst);
    let Ok(bytes) = std::fs::read(inner.folder.join(path)) else { return StatusCode::NOT_FOUND.into_response() };
    let trouble = inner.trouble.lock().unwrap().clone();
    match trouble {
        None => bytes.into_response(),
        Some(Trouble::Short) => {
            let half = Bytes::copy_from_slice(&bytes[..bytes.len() / 2]);
            let broken =
                stream::once(async { tokio::task::yield_now().await }).map(|()| Err(std::io::Error::other("cut")));
            let body = Body::from_stream(stream::iter([Ok(half)]).chain(broken));
            ([(CONTENT_LENGTH, bytes.len().to_string())], body).into_response()
        }
        Some(Trouble::Denied) => StatusCode::FORBIDDEN.into_response(),
        Some(Trouble::Busy) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(Trouble::Enormous) => {
            let zeros = Bytes::from(vec![b'0'; 64 * 1024]);
            Body::from_stream(stream::repeat_with(move || Ok::<_, std::io::Error>(zeros.clone()))).into_response()
        }
        Some(Trouble::Redirect(to)) => (StatusCode::FOUND, [(LOCATION, to)]).into_response(),
    }
}
