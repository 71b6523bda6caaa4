//! From rows that wait to rows that have their vectors, and the same writes by hand.

use std::time::{Duration, Instant};

use crate::db;
use crate::db::bench::Batch;

use super::super::failure::Failure;
use super::Bed;
use super::figure::{Figure, Target};
use super::provider::{self, Counted, Knobs};
use super::rig::{self, Rig, float, real};
use super::texts;
use super::worker::{PIPELINE, Setup};

pub(super) const DIMENSIONS: usize = 1536;
pub(super) const BYTES: usize = 1_600;
/// Rows that are written by hand in one transaction.
const BY_HAND: usize = 2_000;
pub(super) const MEBIBYTE: f64 = 1_048_576.0;

/// The provider answers at once: what is left is ours and the database's.
pub(super) async fn instant(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    let setup = Setup::of(bed.slots);
    let mut runs = Vec::new();
    let mut floors = Vec::new();
    for _ in 0..bed.rounds {
        floors.push(real(bed.rows) / by_hand(bed).await?);
        runs.push(by_worker(bed, &setup, bed.knobs.clone(), bed.rows).await?);
    }
    let each = |of: fn(&Run) -> f64| runs.iter().map(of).collect::<Vec<f64>>();
    Ok(vec![
        Figure::beside("end-to-end", "rows/s", &each(|run| run.rows / run.seconds), &floors)
            .held_to(Target::RatioAtLeast(0.7)),
        Figure::of("end-to-end: worker's processor time", "ms/row", &each(|run| run.processor_ms / run.rows))
            .held_to(Target::AtMost(0.2)),
        Figure::of("end-to-end: worker's peak memory", "MiB", &each(|run| run.peak_bytes / MEBIBYTE))
            .held_to(Target::AtMost(60.0)),
        Figure::of("end-to-end: inputs of a request", "inputs", &each(Run::inputs_of_a_request)),
    ])
}

const LATENCY: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 2;
const INPUTS: usize = 100;

/// The provider takes its time: what is left is how well it is kept busy.
pub(super) async fn slow(bed: &Bed) -> Result<Vec<Figure>, Failure> {
    // As many in hand as the provider has at once, and as many again before and behind it.
    let slots = bed.slots.max(4 * AT_ONCE * INPUTS);
    let setup = Setup { concurrency: AT_ONCE, inputs: INPUTS, ..Setup::of(slots) };
    let mut rates = Vec::new();
    let mut floors = Vec::new();
    for _ in 0..bed.rounds {
        let run = by_worker(bed, &setup, Knobs::slow(LATENCY), bed.rows).await?;
        let requests = real(bed.rows.div_ceil(INPUTS));
        floors.push(run.rows / (requests * LATENCY.as_secs_f64() / real(AT_ONCE)));
        rates.push(run.rows / run.seconds);
    }
    let figure = Figure::beside("latency: 100 ms, 2 requests at once", "rows/s", &rates, &floors);
    Ok(vec![figure.held_to(Target::RatioAtLeast(0.9))])
}

/// What a worker's run was.
pub(super) struct Run {
    pub rows: f64,
    pub seconds: f64,
    pub processor_ms: f64,
    pub peak_bytes: f64,
    counted: Counted,
}

impl Run {
    fn inputs_of_a_request(&self) -> f64 {
        float(self.counted.inputs) / float(self.counted.requests)
    }
}

pub(super) async fn by_worker(bed: &Bed, setup: &Setup, knobs: Knobs, rows: usize) -> Result<Run, Failure> {
    let clean = knobs.fail_every.is_none() && knobs.poison.is_none();
    let mut rig = Rig::build(bed, setup, knobs).await?;
    let resting = float(rig.workers[0].peak_memory());
    rig.lay(&rig::rows(texts::texts(rows, BYTES))).await?;

    let processor = rig.workers[0].processor_time();
    let seconds = rig.go(rows).await?;
    let processor_ms = rig.workers[0].processor_time().saturating_sub(processor).as_secs_f64() * 1_000.0;
    let run = Run {
        rows: real(rows),
        seconds,
        processor_ms,
        peak_bytes: float(rig.workers[0].peak_memory()),
        counted: rig.provider.counted(),
    };
    let Counted { requests, largest_request, most_at_once, duplicates, limited, .. } = run.counted;
    bed.say(&format!(
        "  worker: {:.0} rows/s, {:.3} ms/row, {:.0} MiB ({:.0} at rest); {requests} requests of {:.0} inputs, at most {largest_request}, \
         at most {most_at_once} at once, {duplicates} inputs twice, {limited} answered with 429",
        run.rows / seconds,
        processor_ms / run.rows,
        run.peak_bytes / MEBIBYTE,
        resting / MEBIBYTE,
        run.inputs_of_a_request(),
    ));
    let written = db::bench::written(&rig.field.pool).await?;
    rig.leave().await?;
    if clean {
        rig::whole(rows, &written)?;
    }
    Ok(run)
}

/// Seconds to write the same by hand.
async fn by_hand(bed: &Bed) -> Result<f64, Failure> {
    let field = bed.ground.field(DIMENSIONS).await?;
    db::bench::register(&field.pool, PIPELINE).await?;
    let contents = texts::texts(bed.rows, BYTES);
    rig::lay(&field, &rig::rows(contents.clone())).await?;
    let vectors = provider::vectors(DIMENSIONS);
    let mut connection = field.pool.acquire().await?;
    db::bench::keep_plans(&mut connection).await?;
    let began = Instant::now();
    for (nth, contents) in contents.chunks(BY_HAND).enumerate() {
        let first_id = i64::try_from(nth * BY_HAND + 1).unwrap_or(i64::MAX);
        let batch = Batch { first_id, contents, vectors: &vectors, tokens: 400 };
        db::bench::write(&mut connection, PIPELINE, batch).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(connection);
    rig::whole(bed.rows, &db::bench::written(&field.pool).await?)?;
    field.leave().await?;
    bed.say(&format!("  by hand: {:.0} rows/s", real(bed.rows) / seconds));
    Ok(seconds)
}
