//! The thin apalis backend: jobs come from the claimer's channel, ends are written by the engine itself.

use std::sync::Arc;
use std::task::{Context, Poll};

use apalis::layers::WorkerBuilderExt as _;
use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::error::WorkerError;
use apalis_core::task::Task;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::context::WorkerContext;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::domain::ClaimedJob;

use super::{Engine, EngineError, attempt};

/// Claimed jobs as apalis wants them.
struct Claimed {
    jobs: mpsc::Receiver<ClaimedJob>,
    /// Cancelled when the claimer has stopped and its last job is taken: apalis ends only when it is told to.
    drained: CancellationToken,
}

impl Backend for Claimed {
    type Task = Task<ClaimedJob>;
    type Error = std::convert::Infallible;

    fn poll_ready(&mut self, _cx: &mut Context<'_>, _worker: &WorkerContext) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _worker: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Self::Error>>> {
        // The receiver registers the waker itself; none comes once the claimer has stopped.
        let job = self.jobs.poll_recv(cx);
        if let Poll::Ready(None) = job {
            self.drained.cancel();
        }
        job.map(|job| job.map(|job| Ok(Task::new(job))))
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>, _worker: &WorkerContext) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Claimed {
    type Args = ClaimedJob;
    type Id = i64;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = tower_layer::Identity;

    fn config(&self) -> &Self::Config {
        &()
    }

    fn middleware(&mut self, _worker: &mut WorkerContext) -> Self::Layer {
        tower_layer::Identity::new()
    }
}

/// Runs attempts until the claimer has stopped and the last attempt is through.
pub(super) async fn run_worker(engine: Arc<Engine>, jobs: mpsc::Receiver<ClaimedJob>) -> Result<(), EngineError> {
    let slots = engine.settings.slots;
    let name = engine.name.clone();
    let drained = CancellationToken::new();
    let worker = WorkerBuilder::new(name).backend(Claimed { jobs, drained: drained.clone() }).concurrency(slots).build(
        move |job: ClaimedJob| {
            let engine = Arc::clone(&engine);
            // apalis polls every handler in one task; each attempt gets its own, so that they run in parallel.
            async move { tokio::spawn(async move { attempt::run(&engine, job).await }).await }
        },
    );
    let told = async move {
        drained.cancelled().await;
        Ok::<(), WorkerError>(())
    };
    worker.run_until(told).await.map_err(|error| EngineError::Runner(error.to_string()))
}
