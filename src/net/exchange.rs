use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response, StatusCode};
use sha2::{Digest, Sha256};

use super::deepest;
use super::guard::Refusal;

/// What is read of an answer that is not a success: enough for any error's words.
const ERROR_BODY: usize = 16 * 1024;
/// What is set aside for a body on its sender's word alone.
const TRUSTED_LENGTH: u64 = 64 * 1024 * 1024;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Of an answer that is not a success, the beginning only.
    pub body: Body,
}

impl Answer {
    /// A header as text, where it is there and is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Bytes with their hash, which was taken as they came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub bytes: Bytes,
    pub sha256: [u8; 32],
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    /// No connection, or one that broke before the answer was whole; it was tried twice.
    #[error("the connection failed: {0}")]
    Dropped(String),
    #[error("no answer in time")]
    TimedOut,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Sends a request and reads its answer up to `limit` bytes. A connection that breaks is tried once more at once; all longer
/// patience is the caller's. Only for requests that may be sent twice.
///
/// # Errors
/// [`ExchangeError`]; an answer of any status is not an error.
pub async fn exchange(request: RequestBuilder, limit: u64) -> Result<Answer, ExchangeError> {
    let again = request.try_clone();
    match (attempt(request, limit).await, again) {
        (Err(ExchangeError::Dropped(_)), Some(again)) => attempt(again, limit).await,
        (result, _) => result,
    }
}

async fn attempt(request: RequestBuilder, limit: u64) -> Result<Answer, ExchangeError> {
    let response = request.send().await.map_err(broken)?;
    let status = response.status();
    let headers = response.headers().clone();
    let body = if status.is_success() { whole(response, limit).await? } else { beginning(response).await };
    Ok(Answer { status, headers, body })
}

async fn whole(response: Response, limit: u64) -> Result<Body, ExchangeError> {
    let expected = response.content_length();
    gather(response.bytes_stream(), expected, limit).await.map_err(|error| match error {
        GatherError::TooLarge => ExchangeError::TooLarge { limit },
        GatherError::Short { expected, received } => {
            ExchangeError::Dropped(format!("{received} of {expected} bytes came"))
        }
        GatherError::Stream(error) => broken(error),
    })
}

/// The beginning of an error's body, which may break off: its status is known already.
async fn beginning(mut response: Response) -> Body {
    let mut bytes = BytesMut::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = ERROR_BODY - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if bytes.len() == ERROR_BODY {
            break;
        }
    }
    Body { sha256: Sha256::digest(&bytes).into(), bytes: bytes.freeze() }
}

fn broken(error: reqwest::Error) -> ExchangeError {
    if let Some(refusal) = Refusal::within(&error) {
        return ExchangeError::Refused(refusal);
    }
    if error.is_timeout() { ExchangeError::TimedOut } else { ExchangeError::Dropped(deepest(&error.without_url())) }
}

/// Why a stream did not become a [`Body`].
#[derive(Debug)]
pub enum GatherError<E> {
    TooLarge,
    Short { expected: u64, received: u64 },
    Stream(E),
}

/// Reads a stream that should have `expected` bytes, where that is known, and stops it at `limit`.
///
/// # Errors
/// [`GatherError`]; an announced length beyond the limit is refused before a byte is read.
pub async fn gather<E>(
    chunks: impl Stream<Item = Result<Bytes, E>>,
    expected: Option<u64>,
    limit: u64,
) -> Result<Body, GatherError<E>> {
    if expected.is_some_and(|expected| expected > limit) {
        return Err(GatherError::TooLarge);
    }
    let reserve = expected.unwrap_or(0).min(TRUSTED_LENGTH);
    let mut bytes = BytesMut::with_capacity(usize::try_from(reserve).unwrap_or(0));
    let mut hash = Sha256::new();
    let mut received: u64 = 0;

    let mut chunks = pin!(chunks);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(GatherError::Stream)?;
        received += chunk.len() as u64;
        if received > limit {
            return Err(GatherError::TooLarge);
        }
        hash.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    match expected {
        Some(expected) if expected != received => Err(GatherError::Short { expected, received }),
        _ => Ok(Body { bytes: bytes.freeze(), sha256: hash.finalize().into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    async fn check(parts: &[&'static str], expected: Option<u64>, limit: u64) -> String {
        let chunks = parts.iter().map(|part| Ok::<_, Infallible>(Bytes::from_static(part.as_bytes())));
        match gather(stream::iter(chunks), expected, limit).await {
            Ok(body) => String::from_utf8(body.bytes.to_vec()).expect("text"),
            Err(error) => format!("{error:?}"),
        }
    }

    #[tokio::test]
    async fn a_stream_is_read_whole_up_to_its_limit() {
        assert_eq!(check(&["ab", "", "c"], None, 3).await, "abc");
        assert_eq!(check(&["ab", "c"], Some(3), 3).await, "abc");
        assert_eq!(check(&[], Some(0), 0).await, "");
    }

    #[tokio::test]
    async fn what_is_too_large_is_cut_off() {
        assert_eq!(check(&["ab", "cd"], None, 3).await, "TooLarge");
        assert_eq!(check(&["ab", "cd"], Some(2), 3).await, "TooLarge");
        assert_eq!(check(&["ab"], Some(4), 3).await, "TooLarge");
    }

    #[tokio::test]
    async fn a_length_that_is_not_kept_is_noticed() {
        assert_eq!(check(&["ab"], Some(3), 9).await, "Short { expected: 3, received: 2 }");
        assert_eq!(check(&["abcd"], Some(3), 9).await, "Short { expected: 3, received: 4 }");
    }

    #[tokio::test]
    async fn the_hash_is_that_of_the_bytes() {
        let chunks = ["a", "bc"].map(|part| Ok::<_, Infallible>(Bytes::from_static(part.as_bytes())));
        let body = gather(stream::iter(chunks), None, 9).await.expect("three bytes");
        assert_eq!(body.sha256, <[u8; 32]>::from(Sha256::digest("abc")));
    }
}
