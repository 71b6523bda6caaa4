//! A database, a provider and workers, laid out for one run.

use std::time::{Duration, Instant};

use crate::db;
use crate::db::bench::{Row, Written};

use super::super::failure::Failure;
use super::Bed;
use super::ground::Field;
use super::provider::{Knobs, Loopback};
use super::worker::{PIPELINE, Setup, Worker};

/// Longer than any run takes.
const PATIENCE: Duration = Duration::from_mins(20);

pub(super) struct Rig {
    pub field: Field,
    pub provider: Loopback,
    pub workers: Vec<Worker>,
}

impl Rig {
    /// With one worker that has nothing to do yet.
    pub(super) async fn build(bed: &Bed, setup: &Setup, knobs: Knobs) -> Result<Self, Failure> {
        let field = bed.ground.field(setup.dimensions).await?;
        let provider = Loopback::start(knobs, setup.dimensions).await?;
        let worker = Worker::start(&field, &provider, setup).await?;
        Ok(Self { field, provider, workers: vec![worker] })
    }

    /// Adds a worker.
    pub(super) async fn join(&mut self, setup: &Setup) -> Result<(), Failure> {
        self.workers.push(Worker::start(&self.field, &self.provider, setup).await?);
        Ok(())
    }

    pub(super) async fn pause(&self) -> Result<(), Failure> {
        db::pipelines::pause(&self.field.pool, PIPELINE, "the bench is laid out").await?;
        Ok(())
    }

    /// Inserts rows and opens their jobs, which wait until [`Rig::go`].
    pub(super) async fn lay(&self, rows: &[Row]) -> Result<(), Failure> {
        self.pause().await?;
        lay(&self.field, rows).await?;
        self.rest().await;
        Ok(())
    }

    /// Waits until no worker does anything.
    pub(super) async fn rest(&self) {
        for worker in &self.workers {
            worker.rest().await;
        }
    }

    /// Lets the workers go; seconds until no job is left that is not finished. Asking disturbs: until the provider has answered so
    /// many inputs, it is seldom done.
    pub(super) async fn go(&mut self, inputs: usize) -> Result<f64, Failure> {
        let near = self.provider.counted().inputs + u64::try_from(inputs).unwrap_or(u64::MAX);
        let began = Instant::now();
        let mut looked = began;
        db::pipelines::resume(&self.field.pool, PIPELINE).await?;
        loop {
            if self.provider.counted().inputs >= near || looked.elapsed() > Duration::from_secs(1) {
                let seconds = began.elapsed().as_secs_f64();
                looked = Instant::now();
                if !db::bench::is_unfinished(&self.field.pool).await? {
                    return Ok(seconds);
                }
            }
            self.check(began)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether every worker is alive, and not for ever.
    pub(super) fn check(&mut self, began: Instant) -> Result<(), Failure> {
        for worker in &mut self.workers {
            worker.check()?;
            if began.elapsed() > PATIENCE {
                return Err(worker.failed("the worker does not come to an end"));
            }
        }
        Ok(())
    }

    pub(super) async fn leave(self) -> Result<(), Failure> {
        for worker in self.workers {
            worker.end().await?;
        }
        self.field.leave().await
    }
}

/// Inserts rows, opens their jobs, and brings it all to disk.
pub(super) async fn lay(field: &Field, rows: &[Row]) -> Result<(), Failure> {
    db::bench::insert(&mut *field.pool.acquire().await?, rows).await?;
    db::bench::open(&field.pool, PIPELINE).await?;
    Ok(db::bench::settle(&field.pool).await?)
}

/// A bench of work that was not done is none.
pub(super) fn whole(rows: usize, written: &Written) -> Result<(), Failure> {
    let Written { completed, failed, said, chunks, events, booked } = *written;
    let as_many = |count: &i64| usize::try_from(*count).is_ok_and(|count| count == rows);
    if failed == 0 && [completed, said, chunks, events].iter().all(as_many) && booked >= completed {
        return Ok(());
    }
    Err(Failure::Failed(format!("the work was not done: {written:?} of {rows} rows")))
}

/// So many rows, of ten tenants in turn.
pub(super) fn rows(contents: Vec<String>) -> Vec<Row> {
    let tenant = |id: i64| format!("tenant {}", id % 10);
    (1..).zip(contents).map(|(id, content)| Row { id, tenant: tenant(id), content, path: None }).collect()
}

pub(super) fn real(count: usize) -> f64 {
    float(u64::try_from(count).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bench are far below 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
