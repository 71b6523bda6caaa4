//! From rows that wait to rows that have their vectors, and the same writes by hand.

use std::time::{Duration, Instant};

use crate::db;
use crate::db::bench::{Batch, Row, Written};

use super::super::failure::Failure;
use super::Bed;
use super::figure::{Figure, Target};
use super::ground::Field;
use super::provider::{self, Counted, Knobs, Loopback};
use super::texts;
use super::worker::{PIPELINE, Setup, Worker};

const DIMENSIONS: usize = 1536;
const BYTES: usize = 1_600;
const TENANTS: usize = 10;
/// Rows that are written by hand in one transaction.
const BY_HAND: usize = 2_000;
const MEBIBYTE: f64 = 1_048_576.0;
/// Longer than any bench takes.
const PATIENCE: Duration = Duration::from_mins(20);

/// The provider answers at once: what is left is ours and the database's.
pub(super) async fn instant(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let setup = Setup { slots: bed.slots, concurrency: 8, inputs: 2_048, dimensions: DIMENSIONS, files: None };
    let mut runs = Vec::new();
    let mut floors = Vec::new();
    for _ in 0..bed.rounds {
        floors.push(rate(bed.rows, by_hand(bed).await?));
        runs.push(by_worker(bed, &setup, bed.knobs.clone()).await?);
    }
    let each = |of: fn(&Run) -> f64| runs.iter().map(of).collect::<Vec<f64>>();
    Ok(vec![
        Figure::beside("end-to-end", "rows/s", &each(|run| run.rows / run.seconds), &floors)
            .to_reach(Target::RatioAtLeast(0.7)),
        Figure::of("end-to-end: worker's processor time", "ms/row", &each(|run| run.processor_ms / run.rows))
            .to_reach(Target::AtMost(0.2)),
        Figure::of("end-to-end: worker's peak memory", "MiB", &each(|run| run.peak_bytes / MEBIBYTE))
            .to_reach(Target::AtMost(60.0)),
        Figure::of("end-to-end: inputs of a request", "inputs", &each(Run::inputs_of_a_request)),
    ])
}

const LATENCY: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 2;
const INPUTS: usize = 100;

/// The provider takes its time: what is left is how well it is kept busy.
pub(super) async fn slow(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let setup = Setup { slots: bed.slots, concurrency: AT_ONCE, inputs: INPUTS, dimensions: DIMENSIONS, files: None };
    let mut rates = Vec::new();
    let mut floors = Vec::new();
    for _ in 0..bed.rounds {
        let run = by_worker(bed, &setup, Knobs::slow(LATENCY)).await?;
        let requests = real(bed.rows.div_ceil(INPUTS));
        floors.push(run.rows / (requests * LATENCY.as_secs_f64() / real(AT_ONCE)));
        rates.push(run.rows / run.seconds);
    }
    let figure = Figure::beside("latency: 100 ms, 2 requests at once", "rows/s", &rates, &floors);
    Ok(vec![figure.to_reach(Target::RatioAtLeast(0.9))])
}

/// What a worker's run was.
struct Run {
    rows: f64,
    seconds: f64,
    processor_ms: f64,
    peak_bytes: f64,
    counted: Counted,
}

impl Run {
    fn inputs_of_a_request(&self) -> f64 {
        float(self.counted.inputs) / float(self.counted.requests)
    }
}

async fn by_worker(bed: &Bed, setup: &Setup, knobs: Knobs) -> Result<Run, Failure> {
    let field = bed.ground.field(setup.dimensions).await?;
    let clean = knobs.fail_every.is_none() && knobs.poison.is_none();
    let provider = Loopback::start(knobs, setup.dimensions).await?;
    let mut worker = Worker::start(&field, &provider, setup).await?;
    db::pipelines::pause(&field.pool, PIPELINE, "the bench is laid out").await?;
    fill(bed, &field).await?;
    worker.rest().await;

    let processor = worker.processor_time();
    let began = Instant::now();
    db::pipelines::resume(&field.pool, PIPELINE).await?;
    let seconds = finished(bed, &field, &provider, &mut worker, began).await?;
    let processor_ms = worker.processor_time().saturating_sub(processor).as_secs_f64() * 1_000.0;
    let run = Run {
        rows: real(bed.rows),
        seconds,
        processor_ms,
        peak_bytes: float(worker.peak_memory()),
        counted: provider.counted(),
    };
    bed.say(&format!(
        "  worker: {:.0} rows/s, {:.3} ms/row, {:.1} MiB, {:.0} inputs a request, at most {} at once, {} duplicates, {} limited",
        run.rows / seconds,
        processor_ms / run.rows,
        run.peak_bytes / MEBIBYTE,
        run.inputs_of_a_request(),
        run.counted.most_at_once,
        run.counted.duplicates,
        run.counted.limited,
    ));
    let written = db::bench::written(&field.pool).await?;
    worker.end().await?;
    field.leave().await?;
    // A bench of work that was not done is none.
    if clean && !whole(bed.rows, &written) {
        return Err(Failure::Failed(format!("the worker did not do its work: {written:?} of {} rows", bed.rows)));
    }
    Ok(run)
}

fn whole(rows: usize, written: &Written) -> bool {
    let Ok(rows) = i64::try_from(rows) else { return false };
    let Written { completed, failed, said, chunks, events, booked } = *written;
    failed == 0 && [completed, said, chunks, events].iter().all(|count| *count == rows) && booked >= rows
}

/// Seconds until no job is left that is not finished.
async fn finished(
    bed: &Bed,
    field: &Field,
    provider: &Loopback,
    worker: &mut Worker,
    began: Instant,
) -> Result<f64, Failure> {
    loop {
        // Counting disturbs: the provider knows when it is worth it.
        let near = provider.counted().inputs >= u64::try_from(bed.rows).unwrap_or(u64::MAX);
        if near || began.elapsed().as_millis() % 1_000 < 20 {
            let seconds = began.elapsed().as_secs_f64();
            if db::bench::unfinished(&field.pool).await? == 0 {
                return Ok(seconds);
            }
        }
        worker.check()?;
        if began.elapsed() > PATIENCE {
            return Err(worker.failed("the worker does not come to an end"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The rows and their jobs.
async fn fill(bed: &Bed, field: &Field) -> Result<(), Failure> {
    let rows: Vec<Row> = (1..)
        .zip(texts::texts(bed.rows, BYTES))
        .zip((0..TENANTS).cycle())
        .map(|((id, content), tenant)| Row { id, tenant: format!("tenant {tenant}"), content, path: None })
        .collect();
    db::bench::insert(&field.pool, &rows).await?;
    db::bench::open(&field.pool, PIPELINE, (1, i64::MAX)).await?;
    Ok(db::bench::settle(&field.pool).await?)
}

/// Seconds to write the same by hand.
async fn by_hand(bed: &Bed) -> Result<f64, Failure> {
    let field = bed.ground.field(DIMENSIONS).await?;
    db::bench::register(&field.pool, PIPELINE).await?;
    fill(bed, &field).await?;
    let contents = texts::texts(bed.rows, BYTES);
    let vectors = provider::vectors(DIMENSIONS);
    let mut connection = field.pool.acquire().await?;
    let began = Instant::now();
    for (nth, contents) in contents.chunks(BY_HAND).enumerate() {
        let first_id = i64::try_from(nth * BY_HAND + 1).unwrap_or(i64::MAX);
        db::bench::write(&mut connection, PIPELINE, Batch { first_id, contents, vectors: &vectors, tokens: 400 })
            .await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(connection);
    let written = db::bench::written(&field.pool).await?;
    field.leave().await?;
    if !whole(bed.rows, &written) {
        return Err(Failure::Failed(format!("the floor is not whole: {written:?} of {} rows", bed.rows)));
    }
    bed.say(&format!("  by hand: {:.0} rows/s", rate(bed.rows, seconds)));
    Ok(seconds)
}

fn rate(rows: usize, seconds: f64) -> f64 {
    real(rows) / seconds
}

fn real(count: usize) -> f64 {
    float(u64::try_from(count).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bench are far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}
