use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::providers::ProviderError;
use crate::telemetry::said;

/// What a worker cannot do without: a task that panics is told to whoever ends the worker, since a worker that lacks a part looks
/// alive and does nothing. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Vital(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    broken: OnceLock<Broken>,
    told: CancellationToken,
}

/// The first part that broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the {part} panicked: {said}")]
    Panicked { part: &'static str, said: &'static str },
    #[error(
        "pipeline {0} is not registered any more: schema gristmill was made anew under this worker; start it again, and it says what a person has to"
    )]
    Unregistered(String),
}

impl Vital {
    /// Spawns a part.
    pub fn spawn(&self, part: &'static str, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        tokio::spawn(self.clone().watch(part, task))
    }

    /// A part's task, for whoever spawns it.
    pub async fn watch(self, part: &'static str, task: impl Future<Output = ()> + Send) {
        if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
            self.end(Broken::Panicked { part, said: said(&*panic) });
        }
    }

    /// Ends the worker.
    pub fn end(&self, broken: Broken) {
        self.0.broken.set(broken).ok();
        self.0.told.cancel();
    }

    /// The part that broke, if one did.
    pub fn broken(&self) -> Option<&Broken> {
        self.0.broken.get()
    }

    /// Waits until a part breaks.
    pub async fn breaks(&self) {
        self.0.told.cancelled().await;
    }
}

/// A step over many jobs whose panic is one job's fault like an error: it is halved until that one stands alone.
pub(super) async fn guarded<T, E: From<sqlx::Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let outcome = AssertUnwindSafe(step).catch_unwind().await;
    outcome.unwrap_or_else(|_| Err(sqlx::Error::Encode(Box::new(Panicked)).into()))
}

/// Whether the error is a step's panic; its place is in the log.
pub(super) fn is_panic(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Encode(error) if error.is::<Panicked>())
}

#[derive(Debug, thiserror::Error)]
#[error("it panicked")]
struct Panicked;

/// A request whose driver may panic over what it is given, or over what comes back.
pub(super) async fn contained<T>(request: impl Future<Output = Result<T, ProviderError>>) -> Result<T, ProviderError> {
    AssertUnwindSafe(request).catch_unwind().await.unwrap_or(Err(ProviderError::Panicked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_step_that_panics_is_refused_and_not_tried_again() {
        let error = guarded::<(), sqlx::Error>(async { panic!("no grain") }).await.unwrap_err();
        assert!(!crate::db::is_passing(&error));
        assert!(is_panic(&error));
        assert!(!is_panic(&sqlx::Error::Encode("no grain".into())));
    }

    #[tokio::test]
    async fn the_first_part_that_panics_is_named() {
        let vital = Vital::default();
        vital.spawn("reader", async {}).await.unwrap();
        assert_eq!(vital.broken(), None);
        vital.spawn("claimer", async { panic!("no {}", "grain") }).await.unwrap();
        vital.spawn("sweeper", async { panic!("too late") }).await.unwrap();
        vital.breaks().await;
        assert_eq!(vital.broken().unwrap().to_string(), "the claimer panicked: no grain");
    }

    #[tokio::test]
    async fn what_a_panic_may_quote_is_not_repeated() {
        let vital = Vital::default();
        let text = String::from("zwölf Säcke");
        vital.spawn("batcher", async move { panic!("no grain in {text}") }).await.unwrap();
        let said = vital.broken().unwrap().to_string();
        assert_eq!(said, "the batcher panicked: its words may quote a text and are not repeated");
    }
}
